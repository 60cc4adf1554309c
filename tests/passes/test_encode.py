"""Encoding the constants of a program: which, how they are named, what it costs, and what is refused."""

from __future__ import annotations

import pytest
import torch

from planish.errors import GuardError, UsageError
from planish.ir.parser import parse
from planish.ir.printer import print_program
from planish.ir.rewrite import Log
from planish.ir.run import run
from planish.ir.verify import verify
from planish.ir.weights import Weights
from planish.passes.base import leaf_bytes
from planish.passes.canonical.fold import Fold
from planish.passes.canonical.passes import Canonical
from planish.passes.compress.affine import Affine, AffineCodec
from planish.passes.compress.encode import (
    EncodedWeight,
    apply_layer_rules,
    encodable,
    encode_constants,
    matches,
)
from planish.passes.pipeline import run_pipeline

TEXT = """T = dim(2, 512)


def main(ids: i64[T], image: f32[1, 8, 9, 9]):
    embed: f32[50, 64] = const('embed.weight')
    norm: f32[64]      = const('norm.weight')
    q: f32[64, 64]     = const('layers.0.q_proj.weight')
    k: f32[64, 64]     = const('layers.0.k_proj.weight')
    conv: f32[16, 8, 3, 3] = const('conv.weight')
    right: f32[64, 48] = const('right')
    tiny: f32[4, 64]   = const('tiny.weight')
    tall: f32[64, 40]  = const('tall.weight')
    h = aten.embedding(embed, ids)
    n = aten.rms_norm(h, [64], norm)
    a = aten.linear(n, q)
    b = aten.linear(a, k)
    c = aten.matmul(b, right)
    t = aten.permute(tall, [1, 0])
    d = aten.linear(b, t)
    e = aten.linear(b, tiny)
    logits = aten.linear(b, embed)
    i = aten.convolution(image, conv, None, [1, 1], [1, 1], [1, 1])
    return c, d, e, logits, i
"""
NAMES = [
    "conv.weight",
    "embed.weight",
    "layers.0.k_proj.weight",
    "layers.0.q_proj.weight",
    "right",
    "tall.weight",
]


@pytest.fixture
def program():
    return verify(parse(TEXT))


@pytest.fixture
def weights(program):
    made = Weights()
    generator = torch.Generator().manual_seed(0)
    for leaf in program.constants():
        made.add(leaf.name, torch.randn(leaf.shape, generator=generator) * 0.1)
    return made


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.arange(5), torch.randn(1, 8, 9, 9, generator=generator)]


def test_which_constants_and_in_which_layout(program):
    found = {leaf.name: layout for leaf, layout in encodable(program).items()}
    assert found == {
        "conv.weight": "filters", "embed.weight": "rows", "layers.0.k_proj.weight": "rows",
        "layers.0.q_proj.weight": "rows", "right": "columns", "tall.weight": "columns", "tiny.weight": "rows",
    }  # fmt: skip


@pytest.mark.parametrize(
    "codec",
    [AffineCodec(8, 32), AffineCodec(4, 32, True), AffineCodec(6, 0, zero="float")],
    ids=lambda c: c.spec,
)
def test_results_stay_near_and_bytes_shrink(program, weights, codec):
    log = Log()
    before = run(program, weights, *inputs())
    after = encode_constants(program, weights, codec, log=log)
    verify(after, weights)
    assert leaf_bytes(after) < leaf_bytes(program) * (codec.bits + 2) / 32
    for a, b in zip(before, run(after, weights, *inputs()), strict=True):
        assert float((a - b).norm() / a.norm()) < (0.4 if codec.bits == 4 else 0.1)
    notes = {note.name: note for note in log.notes}
    assert sorted(notes) == NAMES
    assert [s.rule for s in log.steps] == ["encode"] * len(NAMES)
    assert all(n.spec == codec.spec for n in notes.values())
    total = sum(n.nbytes for n in notes.values())
    assert leaf_bytes(after) == total + weights.nbytes("norm.weight") + weights.nbytes("tiny.weight")


def test_names_are_recipes(program, weights):
    after = encode_constants(program, weights, AffineCodec(4, 32), only="*q_proj*")
    names = {leaf.name for leaf in after.constants()} - {leaf.name for leaf in program.constants()}
    assert names == {f"layers.0.q_proj.weight#int4{{group=32}}/{part}" for part in ("codes", "scale", "zero")}
    assert "layers_0_q_proj0" in str(after)
    assert parse(str(after)) == after


def test_a_tied_weight_is_encoded_once(program, weights):
    after = encode_constants(program, weights, AffineCodec(4, 32), only="embed.weight")
    assert after.count("planish.dequant") == 1
    decoded = next(n for n in after.nodes if n.op == "planish.dequant")
    assert {n.op for n in after.nodes if decoded in n.operands} == {"aten.embedding", "aten.linear"}


def test_decodings_are_not_folded_back(program, weights):
    after = run_pipeline(program, weights, "int4{group=32},canonical,fold,simplify,fold").program
    assert leaf_bytes(after) < leaf_bytes(program) * 0.25
    assert after.count("planish.dequant") == len(NAMES)


def test_globs(program, weights):
    assert matches("a.q_proj.weight", "*.q_proj") and matches("a.q_proj.weight", "x|a.*")
    assert not matches("a.q_proj.weight", "q_proj") and not matches("a", "")
    log = Log()
    encode_constants(
        program, weights, AffineCodec(4, 32), only=("layers.*", "right"), skip="*k_proj", log=log
    )
    assert sorted(n.name for n in log.notes) == ["layers.0.q_proj.weight", "right"]


@pytest.mark.parametrize(
    "options", [{"only": "*v_proj*"}, {"skip": "*v_proj*"}, {"only": "norm.weight"}, {"only": "right|no"}]
)
def test_a_glob_that_matches_nothing_is_refused(program, weights, options):
    with pytest.raises(UsageError) as caught:
        encode_constants(program, weights, AffineCodec(), **options)
    assert caught.value.code == "PL814"
    assert "matches no weight; weights are: conv.weight, embed.weight" in str(caught.value)
    assert len(weights) == len(program.constants())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(program, value):
    weights = Weights()
    for leaf in program.constants():
        tensor = torch.ones(leaf.shape)
        if leaf.name == "right":
            tensor[3, 4] = value
        weights.add(leaf.name, tensor)
    with pytest.raises(GuardError, match=r"weight right, f32\[64, 48\], .* NaN or infinity") as caught:
        run_pipeline(program, weights, [Affine()])
    assert caught.value.code == "PL511" and caught.value.where == "pass int4{group=64}"


def test_the_limit_holds_for_weights_too(program, weights):
    result = run_pipeline(program, weights, "int4", limit=2)
    assert len(result.log.steps) == 2 and len(result.notes) == 2


def test_a_second_run_encodes_nothing_anew(program, weights, monkeypatch):
    first = encode_constants(program, weights, AffineCodec(4, 32))
    monkeypatch.setattr(AffineCodec, "encode", None)
    log = Log()
    assert encode_constants(program, weights, AffineCodec(4, 32), log=log) == first
    assert len(log.notes) == len(NAMES)


def test_what_would_grow_stays(program, weights):
    after = encode_constants(program, weights, AffineCodec(8, 1, scale="f32"))
    assert after == program


def test_notes_say_what_is_stored(program, weights):
    log = Log()
    encode_constants(program, weights, AffineCodec(4, 64), only="layers.0.q_proj", log=log)
    (note,) = log.notes
    assert isinstance(note, EncodedWeight)
    assert note.nbytes == 64 * (32 + 2 + 1) and note.bits_per_weight == 8 * 35 / 64
    assert 0.07 < note.error < 0.1
    assert (
        str(note)
        == f"layers.0.q_proj.weight: int4{{group=64}}, 4.375 bits per weight, error {note.error:.4f}"
    )


def test_weights_in_nested_programs(weights):
    program = parse(
        """def then(v: f32[2, 64]):
    w: f32[64, 64] = const('layers.0.q_proj.weight')
    a = aten.linear(v, w)
    return a


def other(v: f32[2, 64]):
    b = aten.neg(v)
    return b


def main(x: f32[2, 64], p: bool[1]):
    w: f32[64, 64] = const('layers.0.q_proj.weight')
    y = aten.linear(x, w)
    r = planish.cond(p, then, other, [y])
    z = planish.item(r, 0)
    return z
"""
    )
    log = Log()
    after = encode_constants(program, weights, AffineCodec(8, 32), log=log)
    verify(after, weights)
    assert all("#int8" in leaf.name for leaf in after.constants()) and len(after.constants()) == 3
    assert len(log.notes) == 1
    x = torch.randn(2, 64)
    for p in (True, False):
        a, b = (run(each, weights, x, torch.tensor([p]))[0] for each in (program, after))
        assert float((a - b).norm() / a.norm()) < 0.02


def test_half_precision_and_cast_weights():
    program = parse(
        """def main(x: f32[2, 64]):
    w: f16[64, 64] = const('w')
    d = aten.to(w, f32)
    y = aten.linear(x, d)
    return y
"""
    )
    weights = Weights()
    weights.add("w", torch.randn(64, 64).half())
    after = run_pipeline(program, weights, "int8{group=32}").program
    assert leaf_bytes(after) < 0.6 * leaf_bytes(program)
    assert next(n for n in after.nodes if n.op == "planish.dequant").dtype.name == "f16"


def test_layer_rules(program, weights):
    rules = [
        {"match": "*.q_proj", "bits": 3, "group": 16},
        {"match": "layers.*", "freeze": True},
        {"match": "conv", "symmetric": True},
        {"match": "tiny", "bits": 8},
    ]
    log = Log()
    after = apply_layer_rules(program, weights, rules, AffineCodec(4, 32), log=log)
    verify(after, weights)
    assert {n.name: n.spec for n in log.notes} == {
        "layers.0.q_proj.weight": "int3{group=16}", "conv.weight": "int4{group=32,symmetric=true}",
        "tiny.weight": "int8{group=32}", "embed.weight": "int4{group=32}", "right": "int4{group=32}",
        "tall.weight": "int4{group=32}",
    }  # fmt: skip
    only = apply_layer_rules(program, weights, [{"match": "right", "bits": 8}], None, log=(alone := Log()))
    assert only != program and [n.spec for n in alone.notes] == ["int8{group=64}"]


@pytest.mark.parametrize(
    ("rules", "code", "message"),
    [
        ([{"match": "*.v_proj", "bits": 3}], "PL814", "layer rule 1: '*.v_proj' matches no weight"),
        ([{"match": "*"}, {"match": "right", "bits": 3}], "PL814", "layer rule 2: earlier rules take all"),
        ([{"bits": 3}], "PL815", "layer rule 1 needs a glob under 'match'"),
        ([{"match": 3}], "PL815", "needs a glob"),
        ([{"match": "*", "bit": 3}], "PL815", "unknown key 'bit'; keys: match, freeze, bits, group"),
        ([{"match": "*", "bits": "3"}], "PL815", "bits='3': expected int"),
        ([{"match": "*", "bits": True}], "PL815", "expected int"),
        ([{"match": "*", "bits": 11}], "PL813", "bits=11"),
        ([{"match": "*", "freeze": True, "bits": 3}], "PL815", "stands alone"),
        ([{"match": "*", "freeze": 1}], "PL815", "'freeze' is true or false"),
    ],
)
def test_bad_layer_rules(program, weights, rules, code, message):
    with pytest.raises(UsageError) as caught:
        apply_layer_rules(program, weights, rules, AffineCodec())
    assert caught.value.code == code and message in str(caught.value)


def test_gradients_reach_scales(program, weights):
    """Decodings are ordinary operations: their parts can be trained."""
    after = encode_constants(program, weights, AffineCodec(4, 32), only="right")
    leaf = next(n for n in after.constants() if n.name.endswith("/scale"))
    scale = weights.tensor(leaf.name).float().requires_grad_()
    result = run(after, weights, *inputs(), override={leaf: scale})[0]
    result.square().sum().backward()
    assert scale.grad is not None and float(scale.grad.abs().sum()) > 0


def test_canonical_keeps_what_is_encoded(program, weights):
    after = encode_constants(program, weights, AffineCodec(4, 32))
    assert leaf_bytes(Canonical().apply(after, weights, Log())) == leaf_bytes(after)
    assert leaf_bytes(Fold().apply(after, weights, Log())) <= leaf_bytes(after)
    assert print_program(after).count("planish.dequant") == len(NAMES)
