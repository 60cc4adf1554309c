"""Elementary functions on vectors of f32, as expressions of TIR that LLVM keeps in vector registers.

Each takes an expression of type f32 with any number of lanes and gives one of the same type. NaN stays NaN. TVM's own
``exp``, ``erf`` and ``tanh`` would call the scalar functions of the C library, lane by lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

Unary = Callable[[Any], Any]

_ROUNDER = 12582912.0  # 1.5 * 2**23: adding it leaves a whole number in the low bits of the sum
_ROUNDER_BITS = 0x4B400000


def lanes_of(v: Any) -> int:
    """Lanes of an expression; 1 for a scalar."""
    _, _, count = str(v.ty).partition("x")
    return int(count) if count else 1


def bind(value: Any, body: Unary) -> Any:
    """``body`` of a variable that stands for ``value``, so that the value is computed once."""
    name = tirx.Var("v", str(value.ty))
    return tirx.Let(name, value, body(name))


def constant(number: float, like: Any) -> Any:
    """A number in every lane of a vector of f32 like ``like``."""
    scalar, lanes = tirx.FloatImm("float32", number), lanes_of(like)
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def fma(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where the machine can."""
    return tirx.call_llvm_pure_intrin(str(a.ty), "llvm.fmuladd", a, b, c)


def _integers(number: int, like: Any) -> Any:
    scalar, lanes = tirx.IntImm("int32", number), lanes_of(like)
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def _reinterpret(kind: str, v: Any) -> Any:
    lanes = lanes_of(v)
    return T.reinterpret(f"{kind}x{lanes}" if lanes > 1 else kind, v)


def smaller(v: Any, bound: float) -> Any:
    """``min(v, bound)``; NaN stays."""
    limit = constant(bound, v)
    return bind(v, lambda x: tirx.Select(limit < x, limit, x))


def larger(v: Any, bound: float) -> Any:
    """``max(v, bound)``; NaN stays."""
    limit = constant(bound, v)
    return bind(v, lambda x: tirx.Select(limit > x, limit, x))


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """The value at a variable; the coefficient of the highest power comes first."""
    first, *rest = coefficients
    total = constant(first, x)
    for coefficient in rest:
        total = fma(total, x, constant(coefficient, x))
    return total


def exp(v: Any) -> Any:
    """e to the ``v``: within 2 units in the last place; 0 below -87, infinity above 88.73."""

    def reduced(x: Any) -> Any:
        shifted = fma(x, constant(1.44269504088896341, x), constant(_ROUNDER, x))
        return bind(shifted, lambda t: bind(t - constant(_ROUNDER, t), lambda n: rest(x, t, n)))

    def rest(x: Any, t: Any, n: Any) -> Any:
        high = fma(n, constant(-0.693359375, n), x)
        return bind(fma(n, constant(2.12194440e-4, n), high), lambda r: power(r, t))

    def power(r: Any, t: Any) -> Any:
        tail = _polynomial(
            r,
            (
                1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
                5.0000001201e-1, 1.0, 1.0,
            ),
        )  # fmt: skip
        # half of the power of two, so that 2**128 is not needed and 2**-127 becomes 0
        biased = _reinterpret("int32", t) - _integers(_ROUNDER_BITS - 126, t)
        half = _reinterpret("float32", tirx.shift_left(biased, _integers(23, t)))
        return bind(tail * half, lambda p: p + p)

    return bind(larger(smaller(v, 89.0), -87.3), reduced)


def erf(v: Any) -> Any:
    """The error function within 2e-7, by a rational function of the square."""

    def value(x: Any) -> Any:
        return bind(x * x, lambda s: x * _polynomial(s, _ERF_TOP) / _polynomial(s, _ERF_BOTTOM))

    return bind(larger(smaller(v, 4.0), -4.0), value)


_ERF_TOP = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_BOTTOM = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


def tanh(v: Any) -> Any:
    """The hyperbolic tangent within a few units in the last place, by a rational function of the square."""

    def value(x: Any) -> Any:
        return bind(x * x, lambda s: x * _polynomial(s, _TANH_TOP) / _polynomial(s, _TANH_BOTTOM))

    return bind(larger(smaller(v, 7.90531110763549805), -7.90531110763549805), value)


_TANH_TOP = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_BOTTOM = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def sigmoid(v: Any) -> Any:
    """``1 / (1 + exp(-v))``"""
    one = constant(1.0, v)
    return one / (one + exp(constant(0.0, v) - v))


def silu(v: Any) -> Any:
    """``v * sigmoid(v)``"""
    return bind(v, lambda x: x / (constant(1.0, x) + exp(constant(0.0, x) - x)))


def relu(v: Any) -> Any:
    """``max(v, 0)``"""
    return larger(v, 0.0)


def gelu(v: Any) -> Any:
    """``v/2 * (1 + erf(v / sqrt(2)))``"""

    def value(x: Any) -> Any:
        half = constant(0.5, x) * x
        return bind(half, lambda h: fma(h, erf(x * constant(0.70710678118654752, x)), h))

    return bind(v, value)


def gelu_tanh(v: Any) -> Any:
    """``v/2 * (1 + tanh(sqrt(2/pi) * (v + 0.044715 v^3)))``, written as ``v * sigmoid(2 ...)``."""

    def value(x: Any) -> Any:
        inner = fma(x * x, constant(-1.5957691216057308 * 0.044715, x), constant(-1.5957691216057308, x))
        return x / (constant(1.0, x) + exp(x * inner))

    return bind(v, value)


ACTIVATIONS: dict[str, Unary] = {
    "none": lambda v: v,
    "relu": relu,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "tanh": tanh,
    "sigmoid": sigmoid,
}
"""The activations that kernels apply to what they computed, by name."""
