"""Pointwise operations."""

from __future__ import annotations

import math
from typing import Any

from planish.backends.ort.graph import number
from planish.backends.ort.table import COMMON, FLOATS, NUMBERS, Call, Emit, lowers
from planish.ir.types import DType, Size

# Direct translations


def _same(kind: str, **attributes: Any) -> Emit:
    def emit(c: Call, *inputs: str) -> str:
        return c.op(kind, *inputs, **attributes)

    return emit


for _name, _kind in (
    ("exp", "Exp"), ("log", "Log"), ("sqrt", "Sqrt"), ("reciprocal", "Reciprocal"), ("sin", "Sin"), ("cos", "Cos"),
    ("tanh", "Tanh"), ("sigmoid", "Sigmoid"),
):  # fmt: skip
    lowers(f"aten.{_name}", native=FLOATS)(_same(_kind))
for _name, _kind in (
    ("tan", "Tan"), ("asin", "Asin"), ("acos", "Acos"), ("atan", "Atan"), ("sinh", "Sinh"), ("cosh", "Cosh"),
    ("asinh", "Asinh"), ("acosh", "Acosh"), ("atanh", "Atanh"), ("erf", "Erf"),
):  # fmt: skip
    lowers(f"aten.{_name}", native="f32")(_same(_kind))
lowers("aten.hardsigmoid", native="f32")(_same("HardSigmoid", alpha=1 / 6, beta=0.5))
lowers("aten.abs", native=NUMBERS)(_same("Abs"))
lowers("aten.neg", native="f32 f64 i8 i16 i32 i64")(_same("Neg"))
lowers("aten.sign", native=NUMBERS)(_same("Sign"))
for _name, _kind in (("add", "Add"), ("sub", "Sub"), ("mul", "Mul")):
    lowers(f"aten.{_name}", native=NUMBERS)(_same(_kind))
lowers("aten.div", native=FLOATS)(_same("Div"))
lowers("aten.pow", native=COMMON)(_same("Pow"))
lowers("aten.eq", native=NUMBERS + " bool")(_same("Equal"))
for _name, _kind in (("lt", "Less"), ("le", "LessOrEqual"), ("gt", "Greater"), ("ge", "GreaterOrEqual")):
    lowers(f"aten.{_name}", native=NUMBERS)(_same(_kind))


@lowers("aten.where", native="f32 f64 i8 i32 i64 u8 bool")
def _where(c: Call, condition: str, a: str, b: str) -> str:
    if c.dtype.kind != "bool":
        return c.op("Where", condition, a, b)
    return c.op("Or", c.op("And", condition, a), c.op("And", c.op("Not", condition), b))


@lowers("aten.ne", native=NUMBERS + " bool")
def _ne(c: Call, a: str, b: str) -> str:
    return c.op("Not", c.op("Equal", a, b))


@lowers("aten.relu", native=NUMBERS)
def _relu(c: Call, x: str) -> str:
    if c.dtype.kind == "uint":
        return x
    if c.dtype.name in ("i16", "i64"):
        return c.op("Mul", x, c.graph.cast(c.op("Greater", x, c.number(0)), c.dtype))
    return c.op("Relu", x)


def _rounding(kind: str) -> Emit:
    def emit(c: Call, x: str) -> str:
        return c.op(kind, x) if c.is_float else x

    return emit


for _name, _kind in (("floor", "Floor"), ("ceil", "Ceil"), ("round", "Round")):
    lowers(f"aten.{_name}", native=NUMBERS)(_rounding(_kind))


@lowers("aten.trunc", native=NUMBERS)
def _trunc(c: Call, x: str) -> str:
    if not c.is_float:
        return x
    return c.op("Where", c.op("Less", x, c.number(0.0)), c.op("Ceil", x), c.op("Floor", x))


@lowers("aten.maximum", native="f32 f64 i8 i32 i64 u8 u32 u64 bool")
def _maximum(c: Call, a: str, b: str) -> str:
    return c.op("Or" if c.dtype.kind == "bool" else "Max", a, b)


@lowers("aten.minimum", native="f32 f64 i8 i32 i64 u8 u32 u64 bool")
def _minimum(c: Call, a: str, b: str) -> str:
    return c.op("And" if c.dtype.kind == "bool" else "Min", a, b)


@lowers("aten.to")
def _to(c: Call, x: str, dtype: DType) -> str:
    have = c.type(0).dtype
    if have is dtype:
        return x
    if have.is_float and dtype.is_integer and dtype.bits < 32:
        return c.graph.cast(c.graph.cast(x, "i32"), dtype)  # wraps around as torch does
    return c.graph.cast(x, dtype)


# Exponentials and logarithms


@lowers("aten.exp2", native=FLOATS)
def _exp2(c: Call, x: str) -> str:
    return c.op("Pow", c.number(2.0), x)


@lowers("aten.expm1", native=FLOATS)
def _expm1(c: Call, x: str) -> str:
    """For small x: expm1(x) = 2t/(1 - t), t = tanh(x/2), which loses nothing to cancellation."""
    t = c.op("Tanh", c.op("Mul", x, c.number(0.5)))
    near = c.op("Div", c.op("Add", t, t), c.op("Sub", c.number(1.0), t))
    far = c.op("Sub", c.op("Exp", x), c.number(1.0))
    return c.op("Where", c.op("Less", c.op("Abs", x), c.number(1.0)), near, far)


@lowers("aten.log1p", native=FLOATS)
def _log1p(c: Call, x: str) -> str:
    return log1p(c, x)


def log1p(c: Call, x: str) -> str:
    """log(1 + x) without loss for small x: with y = 1 + x rounded, log(y) * x / (y - 1)."""
    y = c.op("Add", x, c.number(1.0))
    difference = c.op("Sub", y, c.number(1.0))
    same = c.op("Or", c.op("Equal", difference, c.number(0.0)), c.op("IsInf", x))
    safe = c.op("Where", same, c.number(1.0), difference)
    return c.op("Where", same, x, c.op("Div", c.op("Mul", c.op("Log", y), x), safe))


def _logarithm(base: float) -> Emit:
    def emit(c: Call, x: str) -> str:
        return c.op("Mul", c.op("Log", x), c.number(1 / math.log(base)))

    return emit


lowers("aten.log2", native=FLOATS)(_logarithm(2))
lowers("aten.log10", native=FLOATS)(_logarithm(10))


@lowers("aten.rsqrt", native=FLOATS)
def _rsqrt(c: Call, x: str) -> str:
    return c.op("Reciprocal", c.op("Sqrt", x))


@lowers("aten.atan2", native="f32")
def _atan2(c: Call, a: str, b: str) -> str:
    """The angle of (b, a): atan(a/b), and half a turn more on the side where b < 0."""
    zero = c.number(0.0)
    below = c.op("Or", c.op("Less", a, zero), c.op("Less", c.op("Reciprocal", a), zero))
    half_turn = c.op("Where", below, c.number(-math.pi), c.number(math.pi))
    left = c.op("Less", b, zero)
    origin = c.op("And", c.op("Equal", a, zero), c.op("Equal", b, zero))
    angle = c.op("Where", origin, a, c.op("Atan", c.op("Div", a, b)))
    return c.op("Where", left, c.op("Add", angle, half_turn), angle)


# Activations


@lowers("aten.silu", native=FLOATS)
def _silu(c: Call, x: str) -> str:
    if c.dtype.name == "f32":
        return c.contrib("QuickGelu", x, alpha=1.0)
    return c.op("Mul", x, c.op("Sigmoid", x))


@lowers("aten.gelu", native="f32")
def _gelu(c: Call, x: str, approximate: str) -> str:
    return c.op("Gelu", x, approximate=approximate)


@lowers("aten.mish", native="f32")
def _mish(c: Call, x: str) -> str:
    return c.op("Mul", x, c.op("Tanh", c.op("Softplus", x)))


@lowers("aten.hardswish", native="f32")
def _hardswish(c: Call, x: str) -> str:
    return c.op("Mul", x, c.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


@lowers("aten.softplus", native="f32")
def _softplus(c: Call, x: str, beta: float, threshold: float) -> str:
    scaled = x if beta == 1 else c.op("Mul", x, c.number(beta))
    soft = c.op("Softplus", scaled)
    soft = soft if beta == 1 else c.op("Div", soft, c.number(beta))
    if threshold >= 20:
        return soft  # from there on both are x to within rounding
    return c.op("Where", c.op("Greater", scaled, c.number(threshold)), x, soft)


@lowers("aten.elu", native="f32")
def _elu(c: Call, x: str, alpha: float, scale: float, input_scale: float) -> str:
    if input_scale == 1:
        out = c.op("Elu", x, alpha=alpha)
    else:
        curved = c.op("Elu", c.op("Mul", x, c.number(input_scale)), alpha=alpha)
        out = c.op("Where", c.op("Greater", x, c.number(0.0)), x, curved)
    return out if scale == 1 else c.op("Mul", out, c.number(scale))


@lowers("aten.leaky_relu", native=FLOATS)
def _leaky_relu(c: Call, x: str, negative_slope: float) -> str:
    if c.dtype.name == "f32":
        return c.op("LeakyRelu", x, alpha=negative_slope)
    return c.op("Where", c.op("Greater", x, c.number(0.0)), x, c.op("Mul", x, c.number(negative_slope)))


@lowers("aten.clamp", native="f32 f64 i8 i32 i64 u8 u32 u64")
def _clamp(c: Call, x: str, low: Any, high: Any) -> str:
    if isinstance(low, str) or isinstance(high, str):  # bounds that are tensors broadcast
        x = x if low is None else c.op("Max", x, _bound(c, low))
        return x if high is None else c.op("Min", x, _bound(c, high))
    return c.op("Clip", x, *(None if b is None else _bound(c, b) for b in (low, high)))


def _bound(c: Call, value: Any) -> str:
    if isinstance(value, str):
        return value
    return c.number(value) if number(value) else _size_operand(c, value)


def _size_operand(c: Call, value: Size) -> str:
    return c.graph.scalar(value, c.dtype.name)


# Truth


@lowers("aten.isnan")
def _isnan(c: Call, x: str) -> str:
    if not c.is_float:
        return c.op("Expand", c.number(False, "bool"), c.op("Shape", x))
    return c.op("IsNaN", x)


@lowers("aten.isinf")
def _isinf(c: Call, x: str) -> str:
    if not c.is_float:
        return c.op("Expand", c.number(False, "bool"), c.op("Shape", x))
    return c.op("IsInf", x)


@lowers("aten.logical_not")
def _logical_not(c: Call, x: str) -> str:
    return c.op("Not", x if c.dtype.kind == "bool" else c.graph.cast(x, "bool"))


@lowers("aten.bitwise_not")
def _bitwise_not(c: Call, x: str) -> str:
    return c.op("Not" if c.dtype.kind == "bool" else "BitwiseNot", x)


def _bitwise(name: str) -> Emit:
    def emit(c: Call, a: str, b: str) -> str:
        return c.op(name if c.dtype.kind == "bool" else f"Bitwise{name}", a, b)

    return emit


for _name, _kind in (("and", "And"), ("or", "Or"), ("xor", "Xor")):
    lowers(f"aten.bitwise_{_name}")(_bitwise(_kind))


@lowers("aten.bitwise_left_shift")
def _left_shift(c: Call, a: str, b: str) -> str:
    return (
        c.graph.cast(_shift(c, a, b, "LEFT"), c.dtype) if c.dtype.kind == "int" else _shift(c, a, b, "LEFT")
    )


@lowers("aten.bitwise_right_shift")
def _right_shift(c: Call, a: str, b: str) -> str:
    """A negative number keeps its sign: it is shifted with all bits turned, and they are turned back."""
    if c.dtype.kind == "uint":
        return _shift(c, a, b, "RIGHT")
    negative = c.op("Less", a, c.number(0))
    turned = c.op("Where", negative, c.op("BitwiseNot", _wide(c, a)), _wide(c, a))
    shifted = c.graph.cast(_shift(c, turned, b, "RIGHT"), "i64")
    return c.graph.cast(c.op("Where", negative, c.op("BitwiseNot", shifted), shifted), c.dtype)


def _wide(c: Call, value: str) -> str:
    return c.graph.cast(value, "i64")


def _shift(c: Call, a: str, b: str, direction: str) -> str:
    """Shifts are for unsigned integers; wider ones hold the same bits."""
    if c.dtype.kind == "int":
        a, b = c.graph.cast(a, "u64"), c.graph.cast(b, "u64")
    return c.op("BitShift", a, b, direction=direction)


# Division of whole numbers, and remainders


@lowers("aten.floor_divide", native=NUMBERS)
def _floor_divide(c: Call, a: str, b: str) -> str:
    if c.dtype.kind == "uint":
        return c.op("Div", a, b)
    if not c.is_float:
        return c.op("Div", c.op("Sub", a, c.op("Mod", a, b)), b)
    rest = _float_remainder(c, a, b)
    exact = c.op("Round", c.op("Div", c.op("Sub", a, rest), b))
    return c.op("Where", c.op("Equal", b, c.number(0.0)), c.op("Div", a, b), exact)


@lowers("aten.remainder", native=NUMBERS)
def _remainder(c: Call, a: str, b: str) -> str:
    return _float_remainder(c, a, b) if c.is_float else c.op("Mod", a, b)


def _float_remainder(c: Call, a: str, b: str) -> str:
    rest = c.op("Mod", a, b, fmod=1)
    zero = c.number(0.0)
    differs = c.op("Xor", c.op("Less", rest, zero), c.op("Less", b, zero))
    needs = c.op("And", differs, c.op("Not", c.op("Equal", rest, zero)))
    return c.op("Where", needs, c.op("Add", rest, b), rest)


@lowers("aten.fmod", native=NUMBERS)
def _fmod(c: Call, a: str, b: str) -> str:
    return c.op("Mod", a, b, fmod=1)
