"""Operations on one element of each operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from planish.backends.tvm.cpu import math as vector
from planish.backends.tvm.expressions import Call, cast, literal, unequal
from planish.backends.tvm.table import lowers

Value = Any


def libm(name: str, *values: Value) -> Value:
    """A function of the C library."""
    kind = str(values[0].ty)
    return tirx.call_pure_extern(kind, name + ("f" if kind == "float32" else ""), *values)


def is_nan(x: Value) -> Value:
    """True for NaN."""
    return tirx.isnan(x)


def equal(a: Value, b: Value) -> Value:
    """True where two numbers are equal."""
    return _ordered(a, b, tirx.EQ(a, b))


def _ordered(a: Value, b: Value, comparison: Value) -> Value:
    """A comparison that holds of equal numbers: TVM takes it for true of a value with itself, which may be NaN."""
    is_float = str(a.ty).startswith("float")
    return tirx.Not(is_nan(a)) if is_float and a.same_as(b) else comparison


def constant(like: Value, value: float) -> Value:
    """A number of the type of an expression."""
    return literal(value, str(like.ty))


def _choose(condition: Value, a: Value, b: Value) -> Value:
    return tirx.Select(condition, a, b)


def exp(c: Call, x: Value) -> Value:
    """e to the ``x``."""
    if not c.cpu:
        return tirx.exp(x)
    return c.let(vector.exp(c.let(x))) if str(x.ty) == "float32" else libm("exp", x)


def tanh(c: Call, x: Value) -> Value:
    """The hyperbolic tangent."""
    if not c.cpu:
        return tirx.tanh(x)
    return c.let(vector.tanh(c.let(x))) if str(x.ty) == "float32" else libm("tanh", x)


def erf(c: Call, x: Value) -> Value:
    """The error function."""
    if not c.cpu:
        return tirx.erf(x)
    return c.let(vector.erf(c.let(x))) if str(x.ty) == "float32" else libm("erf", x)


def sigmoid(c: Call, x: Value) -> Value:
    """``1 / (1 + exp(-x))``"""
    return constant(x, 1.0) / (constant(x, 1.0) + exp(c, constant(x, 0.0) - x))


lowers("aten.exp")(exp)
lowers("aten.tanh")(tanh)
lowers("aten.erf")(erf)
lowers("aten.sigmoid")(sigmoid)

_LIBM = (
    "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "asinh", "acosh", "atanh",
)  # fmt: skip


def _register_libm(name: str) -> None:
    def emit(c: Call, x: Value) -> Value:
        native = getattr(tirx, name, None)
        return libm(name, x) if c.cpu or native is None else native(x)

    lowers(f"aten.{name}")(emit)


for _name in _LIBM:
    _register_libm(_name)


@lowers("aten.sqrt")
def sqrt(c: Call, x: Value) -> Value:
    """The square root."""
    return tirx.sqrt(x)


@lowers("aten.rsqrt")
def _rsqrt(c: Call, x: Value) -> Value:
    return constant(x, 1.0) / tirx.sqrt(x)


@lowers("aten.reciprocal")
def _reciprocal(c: Call, x: Value) -> Value:
    return constant(x, 1.0) / x


@lowers("aten.silu")
def _silu(c: Call, x: Value) -> Value:
    return x / (constant(x, 1.0) + exp(c, constant(x, 0.0) - x))


@lowers("aten.gelu")
def _gelu(c: Call, x: Value, approximate: str) -> Value:
    half = constant(x, 0.5) * x
    if approximate == "tanh":
        inner = x + constant(x, 0.044715) * (x * x * x)
        return half * (constant(x, 1.0) + tanh(c, constant(x, 0.7978845608028654) * inner))
    return half * (constant(x, 1.0) + erf(c, x * constant(x, 0.7071067811865476)))


def softplus(c: Call, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """``log(1 + exp(beta * x)) / beta``, ``x`` itself above the threshold."""
    scaled = c.let(x * constant(x, beta))
    small = exp(c, tirx.Select(scaled > constant(x, threshold), constant(x, 0.0), scaled))
    small = c.let(small)
    soft = (libm("log1p", small) if c.cpu else tirx.log1p(small)) / constant(x, beta)
    return _choose(scaled > constant(x, threshold), x, soft)


lowers("aten.softplus")(softplus)


@lowers("aten.mish")
def _mish(c: Call, x: Value) -> Value:
    return x * tanh(c, c.let(softplus(c, x)))


@lowers("aten.hardsigmoid")
def _hardsigmoid(c: Call, x: Value) -> Value:
    return clamp(x + constant(x, 3.0), constant(x, 0.0), constant(x, 6.0)) / constant(x, 6.0)


@lowers("aten.hardswish")
def _hardswish(c: Call, x: Value) -> Value:
    return x * clamp(x + constant(x, 3.0), constant(x, 0.0), constant(x, 6.0)) / constant(x, 6.0)


@lowers("aten.elu")
def _elu(c: Call, x: Value, alpha: float, scale: float, input_scale: float) -> Value:
    inner = c.let(x * constant(x, input_scale))
    low = libm("expm1", inner) if c.cpu else tirx.exp(inner) - constant(x, 1.0)
    return _choose(x > constant(x, 0.0), x * constant(x, scale), low * constant(x, alpha * scale))


@lowers("aten.leaky_relu")
def _leaky_relu(c: Call, x: Value, slope: float) -> Value:
    return _choose(x > constant(x, 0.0), x, x * c.number(slope))


# Signs and whole numbers


@lowers("aten.neg")
def _neg(c: Call, x: Value) -> Value:
    return x * constant(x, -1.0) if c.is_float else literal(0, c.dtype) - x


@lowers("aten.abs")
def _abs(c: Call, x: Value) -> Value:
    return tirx.abs(x) if c.is_float else _choose(x < literal(0, c.dtype), literal(0, c.dtype) - x, x)


@lowers("aten.sign")
def _sign(c: Call, x: Value) -> Value:
    zero, one = literal(0, c.dtype), literal(1, c.dtype)
    if c.kind.kind == "uint":
        return _choose(x > zero, one, zero)
    return _choose(x > zero, one, _choose(x < zero, literal(-1, c.dtype), zero))


@lowers("aten.relu")
def _relu(c: Call, x: Value) -> Value:
    return _choose(x < literal(0, c.dtype), literal(0, c.dtype), x)


def _rounding(name: str, function: Callable[[Value], Value]) -> None:
    lowers(f"aten.{name}")(lambda c, x: function(x) if c.is_float else x)


_rounding("floor", tirx.floor)
_rounding("ceil", tirx.ceil)
_rounding("trunc", tirx.trunc)
_rounding("round", lambda x: tirx.nearbyint(x))  # half to even


def clamp(x: Value, low: Value | None, high: Value | None) -> Value:
    """``x`` within bounds; NaN stays, and the upper bound wins."""
    if low is not None:
        x = _choose(x < low, low, x)
    return _choose(x > high, high, x) if high is not None else x


@lowers("aten.clamp")
def _clamp(c: Call, x: Value, low: Any, high: Any) -> Value:
    x = x if low is None else c.let(_choose(x < c.number(low), c.number(low), x))
    return x if high is None else _choose(x > c.number(high), c.number(high), x)


@lowers("aten.isnan")
def _isnan(c: Call, x: Value) -> Value:
    return is_nan(x) if c.is_float else literal(False, "bool")


@lowers("aten.isinf")
def _isinf(c: Call, x: Value) -> Value:
    return tirx.abs(x) >= literal(float("inf"), c.dtype) if c.is_float else literal(False, "bool")


@lowers("aten.logical_not")
def _logical_not(c: Call, x: Value) -> Value:
    return tirx.Not(cast(x, "bool"))


@lowers("aten.to")
def _to(c: Call, x: Value, kind: Any) -> Value:
    return x  # the result of every row is cast


# Two operands


@lowers("aten.add")
def _add(c: Call, a: Value, b: Value) -> Value:
    return a + b


@lowers("aten.sub")
def _sub(c: Call, a: Value, b: Value) -> Value:
    return a - b


@lowers("aten.mul")
def _mul(c: Call, a: Value, b: Value) -> Value:
    return a * b


@lowers("aten.div")
def _div(c: Call, a: Value, b: Value) -> Value:
    return a / b


def _whole_division(c: Call, a: Value, b: Value) -> tuple[Value, Value]:
    """Quotient and remainder truncated toward zero; no operand stops the process."""
    zero, one = literal(0, c.dtype), literal(1, c.dtype)
    if c.kind.kind == "uint":
        safe = c.let(_choose(equal(b, zero), one, b))
        quotient = c.let(tirx.truncdiv(a, safe))
        return quotient, c.let(a - quotient * safe)
    minus = literal(-1, c.dtype)
    safe = c.let(_choose(tirx.any(equal(b, zero), equal(b, minus)), one, b))
    quotient = c.let(_choose(equal(b, minus), zero - a, tirx.truncdiv(a, safe)))
    return quotient, c.let(a - quotient * b)


def _fmod(a: Value, b: Value) -> Value:
    return libm("fmod", a, b)


@lowers("aten.fmod")
def _fmod_row(c: Call, a: Value, b: Value) -> Value:
    return _fmod(a, b) if c.is_float else _whole_division(c, a, b)[1]


@lowers("aten.remainder")
def _remainder(c: Call, a: Value, b: Value) -> Value:
    zero = literal(0, c.dtype)
    rest = c.let(_fmod(a, b)) if c.is_float else _whole_division(c, a, b)[1]
    if c.kind.kind == "uint":
        return rest
    other_sign = tirx.Select(b < zero, rest > zero, rest < zero)
    return _choose(other_sign, rest + b, rest)


@lowers("aten.floor_divide")
def _floor_divide(c: Call, a: Value, b: Value) -> Value:
    zero = literal(0, c.dtype)
    if not c.is_float:
        quotient, rest = _whole_division(c, a, b)
        if c.kind.kind == "uint":
            return quotient
        other_sign = tirx.Select(b < zero, rest > zero, rest < zero)
        return _choose(other_sign, quotient - literal(1, c.dtype), quotient)
    rest = c.let(_fmod(a, b))
    other_sign = tirx.Select(b < zero, rest > zero, rest < zero)
    quotient = c.let((a - rest) / b)
    quotient = c.let(_choose(other_sign, quotient - literal(1, c.dtype), quotient))
    down = c.let(tirx.floor(quotient))
    whole = _choose(quotient - down > literal(0.5, c.dtype), down + literal(1, c.dtype), down)
    whole = _choose(equal(quotient, zero), zero, whole)
    return _choose(equal(b, zero), a / b, whole)


@lowers("aten.pow")
def _pow(c: Call, a: Value, b: Value) -> Value:
    if c.is_float:
        power = float(b.value) if isinstance(b, tirx.FloatImm) else 0.0
        if power in (1.0, 2.0, 3.0):
            return a if power == 1.0 else a * a if power == 2.0 else a * a * a
        if power == 0.5:
            return tirx.sqrt(a)
        return libm("pow", a, b) if c.cpu else tirx.pow(a, b)
    return _whole_power(c, a, b)


def _whole_power(c: Call, a: Value, b: Value) -> Value:
    """By squaring, modulo the range of the type; negative exponents give 0 except for 1 and -1."""
    zero, one = literal(0, c.dtype), literal(1, c.dtype)
    power, base = one, a
    for bit in range(6):
        odd = tirx.bitwise_and(tirx.shift_right(b, literal(bit, c.dtype)), one) > zero
        power = c.let(_choose(odd, power * base, power))
        base = c.let(base * base)
    if c.kind.kind == "uint":
        return power
    minus = literal(-1, c.dtype)
    odd = tirx.bitwise_and(b, one) > zero
    inverse = _choose(equal(a, one), one, _choose(equal(a, minus), _choose(odd, minus, one), zero))
    return _choose(b < zero, inverse, power)


@lowers("aten.atan2")
def _atan2(c: Call, a: Value, b: Value) -> Value:
    return libm("atan2", a, b) if c.cpu else tirx.atan2(a, b)


@lowers("aten.maximum")
def _maximum(c: Call, a: Value, b: Value) -> Value:
    return larger(a, b)


@lowers("aten.minimum")
def _minimum(c: Call, a: Value, b: Value) -> Value:
    return smaller(a, b)


def larger(a: Value, b: Value) -> Value:
    """The larger value; NaN wins."""
    kind = str(a.ty)
    if kind == "bool":
        return tirx.any(a, b)
    if kind.startswith("float"):
        return _choose(tirx.any(a > b, is_nan(a)), a, b)
    return _choose(a > b, a, b)


def smaller(a: Value, b: Value) -> Value:
    """The smaller value; NaN wins."""
    kind = str(a.ty)
    if kind == "bool":
        return tirx.all(a, b)
    if kind.startswith("float"):
        return _choose(tirx.any(a < b, is_nan(a)), a, b)
    return _choose(a < b, a, b)


def _compare(name: str, function: Callable[[Value, Value], Value]) -> None:
    def emit(c: Call, a: Value, b: Value) -> Value:
        if c.dtype == "bool":
            a, b = cast(a, "int32"), cast(b, "int32")
        return function(a, b)

    lowers(f"aten.{name}")(emit)


_compare("eq", equal)
_compare("ne", unequal)
_compare("lt", lambda a, b: a < b)
_compare("le", lambda a, b: _ordered(a, b, a <= b))
_compare("gt", lambda a, b: a > b)
_compare("ge", lambda a, b: _ordered(a, b, a >= b))


def _bits(name: str, function: Callable[[Value, Value], Value]) -> None:
    def emit(c: Call, a: Value, b: Value) -> Value:
        if c.dtype == "bool":
            return function(cast(a, "int32"), cast(b, "int32")) > literal(0, "int32")
        return function(a, b)

    lowers(f"aten.bitwise_{name}")(emit)


_bits("and", tirx.bitwise_and)
_bits("or", tirx.bitwise_or)
_bits("xor", tirx.bitwise_xor)


@lowers("aten.bitwise_not")
def _bitwise_not(c: Call, x: Value) -> Value:
    return tirx.Not(x) if c.dtype == "bool" else tirx.bitwise_not(x)


def _shift(c: Call, a: Value, b: Value, function: Callable[[Value, Value], Value], beyond: Value) -> Value:
    inside = tirx.all(b >= literal(0, c.dtype), b < literal(c.kind.bits, c.dtype))
    return _choose(inside, function(a, _choose(inside, b, literal(0, c.dtype))), beyond)


@lowers("aten.bitwise_left_shift")
def _left_shift(c: Call, a: Value, b: Value) -> Value:
    return _shift(c, a, b, tirx.shift_left, literal(0, c.dtype))


@lowers("aten.bitwise_right_shift")
def _right_shift(c: Call, a: Value, b: Value) -> Value:
    zero = literal(0, c.dtype)
    beyond = zero if c.kind.kind == "uint" else _choose(a < zero, literal(-1, c.dtype), zero)
    return _shift(c, a, b, tirx.shift_right, beyond)


@lowers("aten.where")
def _where(c: Call, condition: Value, a: Value, b: Value) -> Value:
    return _choose(condition, a, b)
