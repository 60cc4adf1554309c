"""Sizes and types: text both ways, equal sizes are equal objects, and bounds hold."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import assume, given
from hypothesis import strategies as st

from planish.errors import ShapeError
from planish.ir.parser import parse_size, parse_type
from planish.ir.types import (
    DTYPES,
    TensorType,
    at_least,
    bounds,
    different,
    dim,
    dtype,
    equal,
    evaluate,
    floor_div,
    format_size,
    maximum,
    minimum,
    mod,
    product,
    size,
    symbols_of,
    tensor_type,
)

B, S, T = dim("B", 1, 8), dim("S", 0, 100), dim("T", 2, 512)
SYMBOLS = {"B": B, "S": S, "T": T}
NUMBERS = st.integers(1, 9)


def combine(parts):
    return st.one_of(
        st.tuples(parts, parts).map(lambda p: size(sympy.sympify(p[0]) + p[1])),
        st.tuples(parts, parts).map(lambda p: size(sympy.sympify(p[0]) - p[1])),
        st.tuples(parts, parts).map(product),
        st.tuples(parts, NUMBERS).map(lambda p: floor_div(*p)),
        st.tuples(parts, NUMBERS).map(lambda p: mod(*p)),
        st.tuples(parts, parts).map(lambda p: maximum(*p)),
        st.tuples(parts, parts).map(lambda p: minimum(*p)),
    )


sizes = st.recursive(st.one_of(NUMBERS, st.sampled_from([B, S, T])), combine, max_leaves=5)
bindings = st.fixed_dictionaries({B: st.integers(1, 8), S: st.integers(0, 100), T: st.integers(2, 512)})


@given(sizes)
def test_sizes_read_back(value):
    assert parse_size(format_size(value), SYMBOLS) == value


@given(sizes, bindings)
def test_text_means_what_the_size_means(value, binding):
    names = {str(k): v for k, v in binding.items()}
    meaning = eval(format_size(value), {"__builtins__": {}, "max": max, "min": min}, names)
    assert meaning == evaluate(value, binding)


@given(sizes, bindings)
def test_bounds_hold(value, binding):
    low, high = bounds(value)
    assert low <= evaluate(value, binding) <= high


@given(sizes, sizes, bindings)
def test_comparisons_are_true_wherever_they_claim_to_be(a, b, binding):
    x, y = evaluate(a, binding), evaluate(b, binding)
    assert not equal(a, b) or x == y
    assert not different(a, b) or x != y
    assert not at_least(a, b) or x >= y
    assert evaluate(maximum(a, b), binding) == max(x, y)
    assert evaluate(minimum(a, b), binding) == min(x, y)


@given(sizes, NUMBERS, bindings)
def test_division(a, n, binding):
    assume(evaluate(a, binding) >= 0)
    assert evaluate(floor_div(a, n), binding) == evaluate(a, binding) // n
    assert evaluate(mod(a, n), binding) == evaluate(a, binding) % n


def test_equal_sizes_are_equal_objects():
    assert size(T + T) == size(2 * T)
    assert product((2, T, 3)) == size(6 * T)
    assert floor_div(product((4, T)), 2) == size(2 * T)
    assert dim("T", 2, 512) is T and dim("T", 2, 511) is not T
    assert isinstance(size(sympy.Integer(3)), int)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_types_read_back(name):
    for kind in (tensor_type(name), tensor_type(name, 3), tensor_type(name, T, size(2 * T + 1), 4)):
        assert parse_type(str(kind), SYMBOLS) == kind


def test_type_of_a_scalar():
    assert str(tensor_type("f32")) == "f32[()]"
    assert tensor_type("f32").numel == 1


def test_bytes():
    assert tensor_type("f16", T, 4).nbytes == size(8 * T)
    assert tensor_type("u8", 3, 5).nbytes == 15
    assert TensorType(dtype("bool"), (7,)).nbytes == 7


def test_symbols():
    assert symbols_of(tensor_type("f32", T, size(T + B))) == {T, B}
    assert symbols_of((3, (S, [T]))) == {S, T}


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: dim("T", 4, 3), "PL302"),
        (lambda: dim("T", -1, 3), "PL302"),
        (lambda: dtype("f33"), "PL301"),
        (lambda: size(sympy.Rational(1, 2)), "PL303"),
        (lambda: evaluate(size(T + 1), {}), "PL304"),
        (lambda: parse_type("f32[T"), "PL340"),
        (lambda: parse_type("f32"), "PL340"),
        (lambda: parse_type("f32[4.5]"), "PL340"),
    ],
)
def test_refused(make, code):
    with pytest.raises(ShapeError) as caught:
        make()
    assert caught.value.code == code
