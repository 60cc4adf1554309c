"""Verification: each check of the table finds what it is there for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planish.errors import ShapeError
from planish.ir import verify as checks
from planish.ir.namespace import aten, planish
from planish.ir.node import Program, const, input_leaf, intern, state
from planish.ir.types import dim, dtype, tensor_type
from planish.ir.weights import Weights

T = dim("T", 2, 8)
X = input_leaf("x", tensor_type("f32", T, 4))


def program(*outputs, inputs=(X,), states=()):
    return Program("main", inputs, outputs, states)


F32 = tensor_type("f32", 4)
BAD = {
    "no such operation": (
        program(intern("aten.nothing", (X,), X.type)),
        "aten.nothing is not in the dialect",
    ),
    "arguments do not fit": (program(intern("aten.neg", (X, X), X.type)), "takes 1 arguments, got 2"),
    "arguments not canonical": (
        program(intern("aten.softmax", (X, -1), X.type)),
        "arguments are not canonical",
    ),
    "wrong type": (program(intern("aten.abs", (X,), F32)), r"the type should be f32\[T, 4\]"),
    "input not declared": (program(aten.neg(X), inputs=()), "input x is used but is not a parameter"),
    "input twice": (program(aten.neg(X), inputs=(X, input_leaf("x", F32))), "two inputs are called x"),
    "no result": (program(), "main returns nothing"),
    "result of several parts": (
        program(
            planish.scan(program(aten.neg(input_leaf("r", F32)), inputs=(input_leaf("r", F32),)), [], [X])
        ),
        "has several results; return planish.item of it",
    ),
    "state of another type": (
        program(aten.neg(state("s", F32)), states=(("s", aten.neg(X)),)),
        r"state s is f32\[4\] but its next value is f32\[T, 4\]",
    ),
    "constant of two types": (
        program(const("w", F32), const("w", tensor_type("f32", 5))),
        r"const w is used with two types, f32\[4\] and f32\[5\]",
    ),
    "dimension from nowhere": (
        program(aten.full([dim("S", 1, 4)], 0.0, dtype("f32")), aten.neg(X)),
        "the dimension S is not bound by any input",
    ),
    "dimension of two ranges": (
        program(aten.neg(X), inputs=(X, input_leaf("y", tensor_type("f32", dim("T", 2, 9))))),
        "the dimension T is used with two ranges",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_found(name):
    bad, message = BAD[name]
    with pytest.raises(ShapeError, match=message) as caught:
        checks.verify(bad)
    assert caught.value.code == "PL360"


def test_nested_programs_are_checked():
    row = input_leaf("r", F32)
    body = program(intern("aten.abs", (row,), tensor_type("f32", 5)), inputs=(row,))
    bad = program(planish.item(planish.scan(replace(body, name="body"), [], [X]), 0))
    assert any("in body: " in message for message in checks.problems(bad))


def test_weights_are_compared():
    good = program(aten.add(X, const("w", F32)))
    weights = Weights()
    assert checks.problems(good, weights) == ["constant w is not among the weights"]
    weights.add("w", torch.zeros(5))
    assert checks.problems(good, weights) == ["constant w is f32[4], the weight is f32[5]"]
    assert checks.problems(good) == []


def test_a_good_program_is_returned():
    good = program(aten.neg(X))
    assert checks.verify(good) is good


def test_every_check_is_in_the_table():
    found = [
        f for f in vars(checks).values() if callable(f) and getattr(f, "__module__", "") == checks.__name__
    ]
    names = {f.__name__ for f in found} - {"problems", "verify"}
    assert names == {check.__name__ for check in checks.CHECKS}


def test_long_lists_are_cut():
    nodes = [intern("aten.abs", (X,), tensor_type("f32", n)) for n in range(30, 31)]
    many = program(*[const(f"w{i}", F32) for i in range(30)], *nodes)
    with pytest.raises(ShapeError, match=r"and 1[01] more"):
        checks.verify(many, Weights())
