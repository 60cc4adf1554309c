"""Compare what a captured model computes with the model itself, at sizes that capture did not see."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from planish.frontend.capture.base import Captured
from planish.frontend.capture.torch import capture_torch
from planish.ir.node import Program
from planish.ir.parser import parse
from planish.ir.printer import print_program
from planish.ir.run import run
from planish.ir.weights import Weights
from planish.passes.pipeline import run_pipeline
from tests.models import CASES, ModelCase, Sizes

INTERPRETER_TOLERANCE = 1e-5
"""Largest error of the interpreter against eager PyTorch, relative to the largest value of an output."""
RECOGNISED_TOLERANCE = 1e-5
"""The same for a program whose norms, rotary embeddings and attentions were recognised."""
RULE_FLOOR = 1e-5
"""What a lowered program may be off beyond twice the error of eager PyTorch, relative to the largest value."""
ORT_TOLERANCE = 1e-4
"""Largest error of ONNX Runtime in fp32 against eager PyTorch, relative to the largest value of an output."""


@cache
def model_of(name: str) -> nn.Module:
    """The model of a case."""
    return CASES[name].build()


@cache
def captured(name: str) -> Captured:
    """The model of a case as a program."""
    case = CASES[name]
    return capture_torch(model_of(name), case.inputs(case.capture_size), dynamic_shapes=case.dynamic)


def expected(case: ModelCase, sizes: Sizes) -> list[Tensor]:
    """What the model itself computes: its tensors, in the order of its outputs."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(model_of(case.name)(**case.inputs(sizes)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def ordered(program: Program, case: ModelCase, sizes: Sizes) -> list[Tensor]:
    """Inputs of a case in the order of the program's inputs."""
    inputs = case.inputs(sizes)
    return [inputs[leaf.name] for leaf in program.inputs]


def relative_error(have: Sequence[Any], want: Sequence[Tensor]) -> float:
    """The largest error of any output, relative to its largest value; infinite if types, sizes or infinities differ."""
    if len(have) != len(want):
        return math.inf
    worst = 0.0
    for got, reference in zip(have, want, strict=True):
        got = torch.as_tensor(got)
        if got.shape != reference.shape or got.dtype != reference.dtype:
            return math.inf
        a, b = got.double(), reference.double()
        finite = torch.isfinite(b)
        if not torch.equal(torch.isfinite(a), finite) or not torch.equal(a[~finite], b[~finite]):
            return math.inf
        if finite.any():
            gap, scale = (a - b)[finite].abs().max().item(), b[finite].abs().max().item()
            worst = max(worst, gap / scale if scale else math.inf if gap else 0.0)
    return worst


def worst_error(case: ModelCase, program: Program, execute: Callable[[list[Tensor]], Sequence[Any]]) -> float:
    """The largest relative error at the two sizes of a case that capture did not see."""
    return max(
        relative_error(execute(ordered(program, case, sizes)), expected(case, sizes))
        for sizes in case.check_sizes
    )


@cache
def recognised(name: str) -> Program:
    """The program of a case after the pass `recognise`."""
    whole = captured(name)
    return run_pipeline(whole.program, whole.weights, "recognise").program


def interpreter_error(case: ModelCase, program: Program, weights: Weights) -> float:
    """The interpreter against eager PyTorch."""
    with torch.no_grad():
        return worst_error(case, program, lambda inputs: run(program, weights, *inputs))


def ort_error(case: ModelCase, program: Program, weights: Weights) -> float:
    """ONNX Runtime in fp32 against eager PyTorch; building checks the bytes of what is written."""
    from planish.backends.ort.build import build
    from planish.backends.ort.lower import lower

    session = build(lower(program, weights), threads=1)

    def execute(inputs: list[Tensor]) -> Sequence[Any]:
        results = session(*inputs)
        return results if isinstance(results, tuple) else (results,)

    return worst_error(case, program, execute)


def check_text(program: Program) -> None:
    """Printing and parsing give back the same node objects and the same text."""
    text = print_program(program)
    again = parse(text)
    assert again.inputs == program.inputs, "the parsed program has other inputs"
    assert all(a is b for a, b in zip(again.roots, program.roots, strict=True)), "parsing made other nodes"
    assert print_program(again) == text, "the parsed program prints differently"


@cache
def exact(name: str, index: int) -> tuple[list[Tensor], list[Tensor]]:
    """What the model of a case computes at one of its check sizes: in double precision, and as it is.

    A model that torch cannot run in double precision stands in for itself, which only makes the rule stricter.
    """
    case = CASES[name]
    sizes = case.check_sizes[index]
    double = nn.Module.double(copy.deepcopy(model_of(name)))
    inputs = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in case.inputs(sizes).items()
    }
    plain = expected(case, sizes)
    try:
        with torch.no_grad():
            leaves = pytree.tree_leaves(double(**inputs))
    except RuntimeError:
        return plain, plain
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], plain


def excess(have: Sequence[Any], wanted: tuple[list[Tensor], list[Tensor]]) -> float:
    """How far results exceed the rule for lowered programs; at most 0 if it holds.

    The error against double precision may be twice that of eager PyTorch plus 1e-5 of the largest value.
    """
    reference, plain = wanted
    if len(have) != len(reference):
        return math.inf
    worst = -math.inf
    for got, exactly, own in zip(have, reference, plain, strict=True):
        got = torch.as_tensor(got)
        if got.shape != own.shape or got.dtype != own.dtype:
            return math.inf
        if not own.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(got, own) else math.inf)
            continue
        finite = torch.isfinite(own)
        if not torch.equal(torch.isfinite(got), finite) or not torch.equal(got[~finite], own[~finite]):
            return math.inf
        if finite.any():
            values = exactly[finite].double()
            scale = values.abs().max().item()
            mine = (got[finite].double() - values).abs().max().item()
            eager = (own[finite].double() - values).abs().max().item()
            worst = max(worst, mine - 2 * eager - RULE_FLOOR * scale)
    return worst


def native_excess(case: ModelCase, target: str) -> float:
    """How far a model compiled for a target exceeds the rule, at the two sizes that capture did not see."""
    from planish.frontend import api

    with api.compile_captured(captured(case.name), api.make_options(target=target)) as compiled:
        names = [leaf.name for leaf in captured(case.name).program.inputs]
        found = []
        for index, sizes in enumerate(case.check_sizes):
            given = dict(zip(names, ordered(captured(case.name).program, case, sizes), strict=True))
            results = compiled.run(given)
            found.append(excess([torch.as_tensor(r) for r in results.values()], exact(case.name, index)))
        assert compiled.report.target == target.partition("{")[0]
        assert not any("ONNX Runtime is used" in note for note in compiled.report.notes)
    return max(found)
