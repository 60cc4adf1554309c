"""Kernel selection on rules of its own, so that the pass is tested apart from any backend."""

from __future__ import annotations

import pytest
import torch

from planish.ir.namespace import aten, planish
from planish.ir.node import Program, const, input_leaf
from planish.ir.parser import parse, parse_type
from planish.ir.rewrite import Log
from planish.ir.run import run
from planish.ir.target import Machine
from planish.ir.weights import Weights
from planish.passes.activations import RoundActivations, RoundOperands
from planish.passes.materialise import materialise
from planish.passes.select import constant_values, is_constant, lay_out

CODED = """
def main(x: f32[3, 64]):
    codes: u8[32, 32] = const('w/codes')
    scale: f16[32, 1] = const('w/scale')
    w = planish.dequant(planish.unpack(codes, 4, 64), scale, 8, 64)
    y = aten.linear(x, w)
    return y
"""


def coded() -> tuple[Program, Weights]:
    text = CODED.replace(
        "planish.dequant(planish.unpack(codes, 4, 64), scale", "planish.dequant(u, scale"
    ).replace("    w =", "    u = planish.unpack(codes, 4, 64)\n    w =")
    weights = Weights()
    make = torch.Generator().manual_seed(0)
    weights.add("w/codes", torch.randint(0, 256, (32, 32), dtype=torch.uint8, generator=make))
    weights.add("w/scale", torch.rand(32, 1, generator=make).half())
    return parse(text), weights


def test_constants_are_what_depends_on_constants_alone() -> None:
    x, w = input_leaf("x", parse_type("f32[4]")), const("w", parse_type("f32[4]"))
    both, one = aten.add(x, w), aten.mul(w, w)
    assert is_constant(one) and not is_constant(both) and not is_constant(x)
    assert constant_values([x, w, one, both]) == {w, one}


def test_rounded_activations_are_within_half_a_step() -> None:
    program, weights = coded()
    after = RoundActivations().apply(program, weights, Log())
    assert after.count("planish.fake_quantize") == 1
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    step = x.abs().amax(-1, keepdim=True) / 127
    assert bool(((planish.fake_quantize(x, 8, 64) - x).abs() <= step / 2 * 1.0001).all())
    plain, rounded = run(program, weights, x)[0], run(after, weights, x)[0]
    assert 0 < float((plain - rounded).norm() / plain.norm()) < 0.01
    assert RoundActivations().apply(after, weights, Log()) == after


@pytest.mark.parametrize("op", ["linear", "convolution"])
def test_rounded_operands_are_bf16(op: str) -> None:
    weights = Weights()
    if op == "linear":
        program = parse(
            "def main(x: f32[3, 8]):\n    w: f32[4, 8] = const('w')\n    y = aten.linear(x, w)\n    return y\n"
        )
        weights.add("w", torch.randn(4, 8))
    else:
        program = parse(
            "def main(x: f32[1, 3, 6, 6]):\n    w: f32[4, 3, 3, 3] = const('w')\n"
            "    y = aten.convolution(x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)\n    return y\n"
        )
        weights.add("w", torch.randn(4, 3, 3, 3))
    after = RoundOperands().apply(program, weights, Log())
    x = torch.randn([int(s) for s in program.inputs[0].shape])
    rounded = Weights()
    rounded.add("w", weights.tensor("w").bfloat16().float())
    assert torch.equal(run(after, weights, x)[0], run(program, rounded, x.bfloat16().float())[0])


def test_what_no_kernel_decodes_is_computed_at_load() -> None:
    program, weights = coded()
    split = materialise(program, Machine("test"))
    assert split.load is not None and split.main.count("planish.dequant") == 0
    (choice,) = split.choices
    assert choice.at_load and choice.bytes == 32 * 64 * 4 and choice.loaded < choice.each_call
    (value,) = run(split.load, weights)
    more = Weights()
    more.add(split.load.output_names[0], value)
    x = torch.randn(3, 64)
    assert torch.equal(run(split.main, more, x)[0], run(program, weights, x)[0])


def test_a_limit_keeps_values_out_of_memory() -> None:
    program, _ = coded()
    split = materialise(program, Machine("test"), limit=100)
    assert split.load is None and split.main is program and not split.choices[0].at_load


@pytest.mark.parametrize("decoded", [True, False])
def test_codes_are_laid_out_but_never_decoded(decoded: bool) -> None:
    """Also those of small weights, whose parts are larger than the decoded weight once they fill whole tiles."""
    value = "planish.tile_rows(w, 2, 1)" if decoded else "planish.panel(u, 4)"
    program = parse(
        "def main(x: f32[3, 64]):\n    codes: u8[2, 32] = const('w/codes')\n    scale: f16[2, 1] = const('w/scale')\n"
        "    u = planish.unpack(codes, 4, 64)\n    w = planish.dequant(u, scale, 8, 64)\n"
        f"    t = {value}\n    return x, t\n"
    )
    after = lay_out(program, coded()[1], Log())
    assert any("#layout" in leaf.name for leaf in after.constants()) == (not decoded)
