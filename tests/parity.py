"""Compare what a captured model computes with the model itself, at sizes that capture did not see."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
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
from tests.models import CASES, Inputs, ModelCase, Sizes

INTERPRETER_TOLERANCE = 1e-5
"""Largest error of the interpreter against eager PyTorch, relative to the largest value of an output."""
RECOGNISED_TOLERANCE = 1e-5
"""The same for a program whose norms, rotary embeddings and attentions were recognised."""
RULE_FLOOR = 1e-5
"""What a lowered program may be off beyond twice the error of eager PyTorch, relative to the largest value."""
ORT_TOLERANCE = 1e-4
"""Largest error of ONNX Runtime in fp32 against eager PyTorch, relative to the largest value of an output."""


@cache
def model_of(name: str, kind: torch.dtype = torch.float32) -> nn.Module:
    """The model of a case, its floating point in the type ``kind``."""
    if kind is torch.float32:
        return CASES[name].build()
    return copy.deepcopy(model_of(name)).to(kind)


@cache
def captured(name: str, kind: torch.dtype = torch.float32) -> Captured:
    """The model of a case as a program."""
    case = CASES[name]
    inputs = inputs_of(case, case.capture_size, kind)
    return capture_torch(model_of(name, kind), inputs, dynamic_shapes=case.dynamic)


def inputs_of(case: ModelCase, sizes: Sizes, kind: torch.dtype = torch.float32) -> Inputs:
    """Inputs of a case, floating point rounded to the type ``kind``."""
    return _rounded(case.inputs(sizes), kind)


def _rounded(inputs: Inputs, kind: torch.dtype) -> Inputs:
    return {n: v.to(kind) if v.is_floating_point() else v for n, v in inputs.items()}


def expected(case: ModelCase, sizes: Sizes, kind: torch.dtype = torch.float32) -> list[Tensor]:
    """What the model itself computes: its tensors, in the order of its outputs."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(model_of(case.name, kind)(**inputs_of(case, sizes, kind)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def ordered(
    program: Program, case: ModelCase, sizes: Sizes, kind: torch.dtype = torch.float32
) -> list[Tensor]:
    """Inputs of a case in the order of the program's inputs."""
    inputs = inputs_of(case, sizes, kind)
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
def exact(name: str, index: int, kind: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """What the model of a case computes at one of its check sizes: in double precision, and in the type ``kind``.

    Both have the weights and inputs of that type. A model that torch cannot run in double precision stands in
    for itself, which only makes the rule stricter.
    """
    case = CASES[name]
    sizes = case.check_sizes[index]
    double = nn.Module.double(copy.deepcopy(model_of(name, kind)))
    inputs = _rounded(inputs_of(case, sizes, kind), torch.float64)
    plain = expected(case, sizes, kind)
    try:
        with torch.no_grad():
            leaves = pytree.tree_leaves(double(**inputs))
    except RuntimeError:
        return plain, plain
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], plain


def excess(have: Sequence[Any], wanted: tuple[list[Tensor], list[Tensor]], share: float = 1.0) -> float:
    """How far results exceed the rule for lowered programs; at most 0 if it holds.

    The error against double precision may be twice that of eager PyTorch plus 1e-5 of the largest value; of the errors
    in order of size the one is taken that so large a ``share`` does not exceed.
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
            mine, eager = (
                torch.quantile((x[finite].double() - values).abs(), share).item() for x in (got, own)
            )
            worst = max(worst, mine - 2 * eager - RULE_FLOOR * scale)
    return worst


def native_excess(case: ModelCase, target: str, kind: torch.dtype = torch.float32) -> float:
    """How far a model compiled for a target exceeds the rule, at the two sizes that capture did not see.

    In f16 and bf16 the tenth of the results that is furthest off does not count for models that choose: where two
    experts are about equal, rounding decides, in PyTorch for some tokens and here for others.
    """
    from planish.frontend import api

    whole = captured(case.name, kind)
    share = 0.9 if case.chooses and kind is not torch.float32 else 1.0
    with api.compile_captured(whole, api.make_options(target=target)) as compiled:
        found = []
        for index, sizes in enumerate(case.check_sizes):
            given = inputs_of(case, sizes, kind)
            results = compiled.run({leaf.name: given[leaf.name] for leaf in whole.program.inputs})
            found.append(
                excess([as_tensor(r) for r in results.values()], exact(case.name, index, kind), share)
            )
        assert compiled.report.target == target.partition("{")[0]
        assert not any("ONNX Runtime is used" in note for note in compiled.report.notes)
    return max(found)


def as_tensor(result: Any) -> Tensor:
    """A result as a tensor; torch cannot read the type that numpy has for bf16."""
    if isinstance(result, np.ndarray) and result.dtype.name == "bfloat16":
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    return torch.as_tensor(result)
