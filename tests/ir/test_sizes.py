"""Sizes: the canonical form of divisions says the same as Python's own, and equal sizes are equal objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.ir.parser import parse_size
from planish.ir.types import dim, equal, evaluate, floor_div, format_size, size

L = dim("L")
steps = st.lists(st.tuples(st.integers(1, 3), st.integers(-9, 9), st.integers(1, 6)), min_size=1, max_size=4)


@given(steps, st.integers(1, 200))
def test_nested_division_is_division(steps, value):
    expression, number = L, value
    for factor, term, divisor in steps:
        expression = floor_div(size(factor * expression + term), divisor)
        number = (factor * number + term) // divisor
    assert evaluate(expression, {L: value}) == number
    assert parse_size(format_size(expression), {"L": L}) == expression


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (floor_div(floor_div(L, 5), 2), floor_div(L, 10)),
        (floor_div(size(L - 30), 20) + 1, floor_div(size(L - 10), 20)),
        (floor_div(size(floor_div(size(L - 1), 2) + 1), 2), floor_div(size(L + 1), 4)),
        (floor_div(size(4 * L), 2), size(2 * L)),
        (floor_div(floor_div(size(6 * L + 3), 3), 2), L),
    ],
)  # fmt: skip
def test_equal_divisions_are_one_expression(one, other):
    assert size(one) == size(other)
    assert equal(one, other)
