"""Sizes: the canonical form of divisions says the same as Python's own, and equal sizes are equal objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.ir.parser import parse_size
from planish.ir.types import bounds, dim, equal, evaluate, floor_div, format_size, mod, size, without_mod

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


KINDS = {
    "divide": lambda e, n, d: (floor_div(e, d), n // d),
    "remainder": lambda e, n, d: (mod(e, d), n % d),
    "pad": lambda e, n, d: (size(e + mod(size(-1 * e), d)), n + -n % d),
    "scale": lambda e, n, d: (size((d - 4) * e + d - L), (d - 4) * n + d),
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 7)), min_size=1, max_size=4),
    st.integers(1, 40),
)
def test_size_arithmetic_is_arithmetic(steps, value):
    expression, number = L, value
    for kind, operand in steps:
        expression, number = KINDS[kind](expression, number, operand)
        number -= value if kind == "scale" else 0
    low, high = bounds(expression)
    assert evaluate(expression, {L: value}) == evaluate(without_mod(expression), {L: value}) == number
    assert low <= number <= high
    assert parse_size(format_size(expression), {"L": L}) == expression


def test_ranges_of_what_division_leaves():
    whole = size(L + mod(size(-L), 64))
    assert bounds(size(L - 2 * floor_div(L, 2))) == (0, 1)
    assert bounds(size(64 * floor_div(whole, 64) - L)) == (0, 63)
    assert bounds(floor_div(size(mod(L, 6) + 1), 3)) == (0, 2)


@pytest.mark.parametrize("text", ["-(L//2) + 7", "-(L%5)", "3 - L//2", "-2*(L//3) + L", "(1 - L)//2"])
def test_a_leading_minus_is_written_so_that_it_reads_back(text):
    expression = parse_size(text, {"L": L})
    names = {"L": 9}
    assert evaluate(expression, {L: 9}) == eval(text, names)
    assert parse_size(format_size(expression), {"L": L}) == expression
    assert eval(format_size(expression), names) == eval(text, names)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (floor_div(floor_div(L, 5), 2), floor_div(L, 10)),
        (floor_div(size(L - 30), 20) + 1, floor_div(size(L - 10), 20)),
        (floor_div(size(floor_div(size(L - 1), 2) + 1), 2), floor_div(size(L + 1), 4)),
        (floor_div(size(4 * L), 2), size(2 * L)),
        (floor_div(floor_div(size(6 * L + 3), 3), 2), L),
        (size(4 * floor_div(size(L + mod(size(-L), 4)), 4)), size(L + mod(size(-L), 4))),
    ],
)  # fmt: skip
def test_equal_divisions_are_one_expression(one, other):
    assert without_mod(size(one)) == without_mod(size(other))
    assert equal(one, other)
