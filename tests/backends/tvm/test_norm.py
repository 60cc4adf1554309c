"""Kernels of norms and softmax against their meaning, with lengths that vectors do not divide."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planish.backends.tvm.kernels import norm as declarations
from planish.ir.node import Node
from planish.ir.rule import check_example
from tests.backends.tvm.kernel_check import ISAS, compiled, gap, kernel_node, leaf, symbol, values_for

B, T, S = symbol("B"), symbol("T"), symbol("S")
LENGTHS = (576, 100, 33, 1)


def _weights(length: int, count: int) -> list[Node]:
    return [leaf(f"w{i}", "f32", length) for i in range(count)]


def _check(node: Node, isa: Any, rows: Any, tolerance: float = 1e-5) -> None:
    function = compiled(node, isa)
    for seed, (batch, positions) in enumerate(rows):
        values = values_for(node, {B: batch, T: positions}, seed)
        values[0] = values[0] * 3 + 0.5
        assert gap(node, function, values) < tolerance, (batch, positions)


ROWS = ((1, 1), (2, 7), (0, 3), (1, 0), (3, 61))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_rms_norm(isa: Any, length: int) -> None:
    x, residual = leaf("x", "f32", B, T, length), leaf("r", "f32", B, T, length)
    _check(kernel_node("rms_norm", x, *_weights(length, 1), None, 1e-5), isa, ROWS)
    if length == 33:
        _check(kernel_node("rms_norm", x, None, residual, 1e-5), isa, ROWS)


@pytest.mark.parametrize("length", LENGTHS[:3])
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_layer_norm(isa: Any, length: int) -> None:
    x, residual = leaf("x", "f32", B, T, length), leaf("r", "f32", B, T, length)
    _check(kernel_node("layer_norm", x, *_weights(length, 2), residual, 1e-5), isa, ROWS)
    if length == 33:
        _check(kernel_node("layer_norm", x, None, None, None, 1e-5), isa, ROWS)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_layer_norm_of_values_far_from_zero(isa: Any) -> None:
    node = kernel_node("layer_norm", leaf("x", "f32", T, 384), None, None, None, 1e-5)
    function = compiled(node, isa)
    x = torch.randn(5, 384) + 1000.0
    assert gap(node, function, [x]) < 1e-3
    assert gap(node, function, [torch.full((2, 384), 3.0)]) < 1.0


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_softmax(isa: Any) -> None:
    node = kernel_node("softmax", leaf("x", "f32", B, S))
    function = compiled(node, isa)
    for rows, length in ((1, 1), (3, 100), (0, 5), (4, 0), (7, 1003), (60, 2048)):
        (x,) = values_for(node, {B: rows, S: length}, length)
        assert gap(node, function, [x * 10]) < 1e-5, (rows, length)
    odd = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf] * 3, [torch.nan, 0.0, 1.0]])
    assert gap(node, function, [odd]) < 1e-5


@pytest.mark.parametrize(
    "each",
    (
        declarations.select_rms_norm, declarations.select_layer_norm, declarations.layer_norm_of_sum,
        declarations.select_softmax,
    ),
    ids=lambda r: r.name,
)  # fmt: skip
def test_rules(each: Any) -> None:
    assert check_example(each) < 1e-6
