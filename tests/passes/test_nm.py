"""The N:M codec: what is kept, where, bytes as promised, and weights that are sparse already."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import UsageError
from planish.ir.eager import unpack
from planish.ir.ops.sparse import kept, position_bits
from planish.ir.parser import parse
from planish.ir.rewrite import Log
from planish.ir.run import run
from planish.ir.types import DTYPES, bf16, f16, f32
from planish.ir.weights import Weights
from planish.passes.base import Pass
from planish.passes.compress import nm
from planish.passes.compress.nm import Nm, NmCodec
from planish.passes.registry import make_pass

PAIRS = [(n, m) for m in (2, 4, 8) for n in range(1, m)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def pruned(value: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """What is to be kept, element by element."""
    out = torch.zeros_like(value)
    for row in itertools.product(*(range(s) for s in value.shape[:-1])):
        for begin in range(0, value.shape[-1], m):
            block = value[row][begin : begin + m].tolist()
            order = sorted(range(len(block)), key=lambda i: (-abs(block[i]), i))
            for i in order[:n]:
                out[(*row, begin + i)] = block[i]
    return out


@pytest.mark.parametrize(("n", "m"), PAIRS)
@pytest.mark.parametrize("shape", [(5, 40), (3, 37), (2, 3, 16), (1, 1)])
def test_the_largest_of_each_block_are_kept(n, m, shape):
    value = normal(*shape)
    codec = NmCodec(n, m, "f32")
    parts = codec.encode(value)
    assert torch.equal(codec.decode(parts, shape, f32), pruned(value, n, m))
    count = kept(shape[-1], n, m)
    places = unpack(parts["positions"], position_bits(m), count).reshape(-1, n).int()
    assert bool((places[:, 1:] > places[:, :-1]).all())
    stored = sum(p.numel() * p.element_size() for p in parts.values())
    assert 8 * stored / value.numel() == pytest.approx(codec.bits_per_weight(shape))
    lost = float((value - pruned(value, n, m)).norm() / value.norm())
    assert codec.error(value, parts, f32) == pytest.approx(lost, rel=1e-5)


@given(st.sampled_from(PAIRS), st.integers(1, 5), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_of_equal_magnitudes_the_first_are_kept(pair, rows, length, seed):
    value = torch.randint(-2, 3, (rows, length), generator=torch.Generator().manual_seed(seed)).float()
    codec = NmCodec(*pair, "f16")
    assert torch.equal(codec.decode(codec.encode(value), value.shape, f32), pruned(value, *pair))


@pytest.mark.parametrize(("n", "m"), PAIRS)
@pytest.mark.parametrize(("kind", "stored"), [(f16, "f16"), (bf16, "bf16"), (f32, "f32")])
def test_sparse_weights_come_back_exactly(n, m, kind, stored):
    given = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[kind.name]
    value = pruned(normal(8, 50), n, m).to(given).float()
    codec = NmCodec(n, m, "same").adapted(value)
    assert codec.values == stored
    decoded = codec.decode(codec.encode(value), value.shape, DTYPES[kind.name])
    assert decoded.dtype is given and torch.equal(decoded.float(), value)


def test_bytes():
    assert NmCodec(2, 4).bits_per_weight((7, 64)) == 9.0
    assert NmCodec(1, 4).bits_per_weight((7, 64)) == 4.5
    assert NmCodec(1, 2).bits_per_weight((7, 64)) == 8.5
    assert NmCodec(4, 8).bits_per_weight((7, 64)) == 9.5
    assert NmCodec(2, 4, "f32").bits_per_weight((7, 64)) == 17.0


def test_positions_are_packed_little_end_first():
    parts = NmCodec(2, 4).encode(torch.tensor([[0.0, 1.0, 0.0, 2.0, 3.0, 0.0, 4.0, 0.0]]))
    assert parts["positions"].tolist() == [[0b10_00_11_01]]
    assert parts["values"].tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("factor", [1e-12, 1e-4, 1e8])
def test_values_beyond_half_precision_are_single(factor):
    value = normal(8, 64) * factor
    codec = NmCodec(2, 4).adapted(value)
    assert codec.values == "f32" and codec.spec == "nm{n=2,m=4,values=f32}"
    assert NmCodec(2, 4).adapted(normal(8, 64)) == NmCodec(2, 4)


def test_the_result_does_not_depend_on_how_rows_are_split(monkeypatch):
    value = normal(50, 64)
    whole = NmCodec().encode(value)
    monkeypatch.setattr(nm, "CHUNK", 64)
    split = NmCodec().encode(value)
    assert all(torch.equal(whole[k], split[k]) for k in whole)


@pytest.mark.parametrize("values", ["f16", "same"])
def test_the_pass_replaces_weights(values):
    program = parse(
        "T = dim(1, 9)\ndef main(x: f32[T, 64]):\n    w: f32[48, 64] = const('a.weight')\n"
        "    y = aten.linear(x, w)\n    return y\n"
    )
    value, x = normal(48, 64), normal(3, 64, seed=1)
    weights = Weights()
    weights.add("a.weight", value)
    made = make_pass("nm", {"values": values})
    assert isinstance(made, Nm) and isinstance(made, Pass)
    log = Log()
    after = made.apply(program, weights, log)
    want = x @ pruned(value, 2, 4).T
    torch.testing.assert_close(
        run(after, weights, x)[0], want, rtol=0, atol=1e-4 if values == "f16" else 1e-6
    )
    leaves = sum(n.tensor.nbytes for n in after.nodes if n.op == "const")
    assert leaves == 48 * 64 * (9 if values == "f16" else 17) // 8 == log.notes[0].nbytes


@pytest.mark.parametrize(
    "options", [{"m": 3}, {"m": 16}, {"n": 0}, {"n": 4}, {"n": True}, {"n": 2, "m": 2}, {"values": "f64"}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError) as caught:
        NmCodec(**options)
    assert caught.value.code == "PL813"


def test_specs():
    assert NmCodec().spec == "nm{n=2,m=4}"
    assert NmCodec(1, 8, "same").spec == "nm{n=1,m=8,values=same}"
