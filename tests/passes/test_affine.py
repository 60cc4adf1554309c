"""The affine codec: packing, rounding, scales as stored, errors and bytes as promised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import UsageError
from planish.ir.eager import unpack
from planish.ir.types import f16, f32
from planish.passes.compress import affine
from planish.passes.compress.affine import AffineCodec
from planish.passes.compress.codec import pack, packed_bytes

CODECS = [
    AffineCodec(bits, group, symmetric, search, zero)
    for bits in range(2, 9)
    for group in (32, 0)
    for symmetric, zero in ((False, "int"), (False, "float"), (True, "int"))
    for search in ("mse", "none")
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@given(st.integers(1, 8), st.integers(1, 70), st.lists(st.integers(1, 3), max_size=2), st.integers(0, 2**31))
def test_unpack_inverts_pack(bits, length, lead, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (*lead, length), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*lead, packed_bytes(length, bits))
    assert torch.equal(unpack(packed, bits, length), codes)


def test_packing_is_little_end_first():
    assert pack(torch.tensor([1, 2], dtype=torch.uint8), 4).tolist() == [0x21]
    assert pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 2).tolist() == [0b00_11_10_01]
    codes = torch.arange(8, dtype=torch.uint8)
    word = sum(c << (3 * i) for i, c in enumerate(range(8)))
    assert pack(codes, 3).tolist() == list(word.to_bytes(3, "little"))


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.spec)
def test_parts(codec):
    value = normal(24, 100)
    parts = codec.encode(value)
    decoded = codec.decode(parts, (24, 100), f32)
    assert decoded.shape == value.shape and decoded.dtype == torch.float32
    stored = sum(p.numel() * p.element_size() for p in parts.values())
    assert 8 * stored / value.numel() == pytest.approx(codec.bits_per_weight((24, 100)))
    direct = float((value - decoded).norm() / value.norm())
    assert codec.error(value, parts, f32) == pytest.approx(direct, rel=1e-4)
    assert set(parts) == ({"codes", "scale"} if codec.symmetric else {"codes", "scale", "zero"})
    # Each code is the nearest one for the scale that is stored, where it is not cut off.
    scale = parts["scale"].float().repeat_interleave(codec.group_of(100), 1)[:, :100]
    codes = unpack(parts["codes"], codec.bits, 100)
    inside = (codes > 0) & (codes < 2**codec.bits - 1)
    assert bool(((value - decoded).abs() <= 0.5001 * scale.abs() + 1e-7)[inside].all())


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_follow_from_the_stored_scale(bits):
    """q = clip(rint(w / s) + z) with s as half precision holds it."""
    codec = AffineCodec(bits, 16, search="none")
    value = normal(8, 64, seed=bits)
    parts = codec.encode(value)
    groups = value.reshape(-1, 16)
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    zero = (-low / scale).round().clamp(0, 2**bits - 1)
    assert torch.equal(parts["scale"].reshape(-1).float(), scale)
    assert torch.equal(unpack(parts["zero"], bits, 4).reshape(-1).float(), zero)
    codes = ((groups / scale[:, None]).round() + zero[:, None]).clamp(0, 2**bits - 1)
    assert torch.equal(unpack(parts["codes"], bits, 64).reshape(-1, 16).float(), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_search_is_no_worse_than_the_nearest_in_any_group(bits, symmetric):
    value = normal(64, 96, seed=7)
    value[3, 5] = 0.5  # an outlier
    losses = []
    for search in ("none", "mse"):
        codec = AffineCodec(bits, 32, symmetric, search)
        decoded = codec.decode(codec.encode(value), (64, 96), f32)
        losses.append((value - decoded).reshape(-1, 32).square().sum(1))
    assert bool((losses[1] <= losses[0] * 1.001 + 1e-12).all())
    assert float(losses[1].sum()) < float(losses[0].sum())


@pytest.mark.parametrize(
    ("bits", "limit"), [(2, 0.36), (3, 0.18), (4, 0.09), (5, 0.045), (6, 0.022), (7, 0.0112), (8, 0.0056)]
)
def test_errors_on_normal_weights(bits, limit):
    value = normal(128, 512)
    codec = AffineCodec(bits, 64, search="mse")
    assert codec.error(value, codec.encode(value), f32) < limit


@pytest.mark.parametrize(
    "codec",
    [AffineCodec(4, 32), AffineCodec(4, 32, True), AffineCodec(3, 0, zero="float")],
    ids=lambda c: c.spec,
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 31), (5, 64), (2, 3, 40)])
def test_shapes(codec, shape):
    value = normal(*shape)
    parts = codec.encode(value)
    decoded = codec.decode(parts, shape, f32)
    assert decoded.shape == value.shape
    assert all(part.shape[:-1] == shape[:-1] for part in parts.values())
    assert codec.error(value, parts, f32) < 0.3


@pytest.mark.parametrize("symmetric", [False, True])
def test_padding_is_no_part_of_a_group(symmetric):
    """The last, shorter group is coded as if it stood alone."""
    codec = AffineCodec(4, 32, symmetric)
    value = normal(4, 40) + 0.01
    alone = codec.decode(codec.encode(value[:, 32:].contiguous()), (4, 8), f32)
    assert torch.equal(codec.decode(codec.encode(value), (4, 40), f32)[:, 32:], alone)


@pytest.mark.parametrize("codec", [c for c in CODECS if c.group], ids=lambda c: c.spec)
def test_extreme_groups(codec):
    value = torch.zeros(4, 64)
    value[1] = 0.25
    value[2] = -3.0
    value[3, 7] = 1000.0
    decoded = codec.decode(codec.encode(value), (4, 64), f32)
    assert bool(decoded.isfinite().all())
    assert torch.equal(decoded[0], value[0])
    assert (
        float((decoded - value)[1:3].abs().max())
        <= (0.5 if codec.symmetric and codec.search == "none" else 0.01) * 3
    )
    assert float((decoded - value)[3].abs().max()) <= 340.0


@pytest.mark.parametrize("factor", [1e-12, 1e-7, 1e6, 1e15])
def test_scales_beyond_half_precision_are_single(factor):
    value = normal(16, 64) * factor
    codec = AffineCodec(4, 32)
    adapted = codec.adapted(value)
    assert adapted.scale == "f32" and adapted.spec == "int4{group=32,scale=f32}"
    assert adapted.error(value, adapted.encode(value), f32) < 0.1
    assert codec.adapted(normal(16, 64)) is codec
    assert codec.adapted(torch.zeros(4, 64)) is codec


def test_half_precision_weights():
    value = normal(16, 64)
    codec = AffineCodec(8, 32)
    parts = codec.encode(value.half().float())
    assert codec.decode(parts, (16, 64), f16).dtype == torch.float16
    assert codec.error(value.half().float(), parts, f16) < 0.01


@settings(max_examples=40)
@given(st.sampled_from(CODECS), st.integers(1, 6), st.integers(1, 80), st.integers(0, 100))
def test_any_shape_decodes_near(codec, rows, length, seed):
    value = normal(rows, length, seed=seed)
    parts = codec.encode(value)
    assert codec.error(value, parts, f32) <= 1.0
    assert bool(codec.decode(parts, (rows, length), f32).isfinite().all())


def test_the_result_does_not_depend_on_how_rows_are_split(monkeypatch):
    value = normal(50, 64)
    codec = AffineCodec(3, 32)
    whole = codec.encode(value)
    monkeypatch.setattr(affine, "CHUNK", 64)
    split = codec.encode(value)
    assert all(torch.equal(whole[k], split[k]) for k in whole)
    assert codec.error(value, split, f32) == pytest.approx(0.163, rel=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 1},
        {"bits": 9},
        {"bits": True},
        {"group": -1},
        {"search": "best"},
        {"zero": "half"},
        {"scale": "bf16"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError) as caught:
        AffineCodec(**options)
    assert caught.value.code == "PL813"


def test_specs():
    assert AffineCodec().spec == "int4{group=64}"
    assert (
        AffineCodec(3, 0, True, "none", scale="f32").spec
        == "int3{group=0,symmetric=true,search=none,scale=f32}"
    )
