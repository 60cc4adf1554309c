"""Elementwise operators: arithmetic, logic, comparisons, activations and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planish.frontend.capture.onnx_ops.registry import (
    At,
    Known,
    Operand,
    Result,
    Value,
    convert,
    onnx_op,
    truthy,
)
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import DTYPES, DType, boolean, f32, f64, i64

WIDE = ("u16", "u32", "u64")
_SIGN = -(2**63)


def one_dtype(*xs: Any) -> DType:
    """The element type of the first tensor among operands."""
    return next(x.dtype for x in xs if isinstance(x, Node))


def widened(f: Callable[..., Node], *xs: Any) -> Node:
    """Apply ``f``; 16- to 64-bit unsigned integers, which torch hardly computes with, go through i64.

    Right where bits beyond the width do not flow back: sums, products, and for u16 and u32 all else.
    """
    kind = one_dtype(*xs)
    if kind.name not in WIDE:
        return f(*xs)
    result = f(*(_as_i64(x) for x in xs))
    return result if result.dtype is boolean else aten.to(result, kind)


def ordered(f: Callable[..., Node], *xs: Any) -> Node:
    """Apply an operation that depends on order only (comparison, extremes), also to u64."""
    if one_dtype(*xs).name != "u64":
        return widened(f, *xs)
    result = f(*(aten.bitwise_xor(x, _SIGN) if isinstance(x, Node) else x ^ _SIGN for x in map(_as_i64, xs)))
    return result if result.dtype is boolean else aten.to(aten.bitwise_xor(result, _SIGN), DTYPES["u64"])


def _as_i64(x: Any) -> Any:
    if isinstance(x, Node):
        return aten.to(x, i64)
    return x - 2**64 if isinstance(x, int) and x >= 2**63 else x


def cast(x: Node, dtype: DType) -> Node:
    """The tensor in another element type; itself if it has it."""
    return x if x.dtype is dtype else aten.to(x, dtype)


def _truncated_division(a: Any, b: Any, at: At) -> Node:
    kind = one_dtype(a, b)
    if kind.is_float:
        return aten.div(a, b)
    if kind.name == "u64":
        at.refuse("division of 64-bit unsigned integers is not supported")
    if kind.kind == "uint":
        return widened(aten.floor_divide, a, b)
    return aten.floor_divide(aten.sub(a, aten.fmod(a, b)), b)


def _binary(name: str, f: Callable[..., Node]) -> None:
    @onnx_op(name)
    def apply(a: Operand, b: Operand) -> Result:
        return f(a, b)


for _name, _function in (
    ("Add", lambda a, b: widened(aten.add, a, b)),
    ("Sub", lambda a, b: widened(aten.sub, a, b)),
    ("Mul", lambda a, b: widened(aten.mul, a, b)),
    ("Equal", lambda a, b: ordered(aten.eq, a, b)),
    ("Less", lambda a, b: ordered(aten.lt, a, b)),
    ("LessOrEqual", lambda a, b: ordered(aten.le, a, b)),
    ("Greater", lambda a, b: ordered(aten.gt, a, b)),
    ("GreaterOrEqual", lambda a, b: ordered(aten.ge, a, b)),
    ("And", lambda a, b: aten.bitwise_and(a, b)),
    ("Or", lambda a, b: aten.bitwise_or(a, b)),
    ("Xor", lambda a, b: aten.bitwise_xor(a, b)),
    ("BitwiseAnd", lambda a, b: aten.bitwise_and(a, b)),
    ("BitwiseOr", lambda a, b: aten.bitwise_or(a, b)),
    ("BitwiseXor", lambda a, b: aten.bitwise_xor(a, b)),
):
    _binary(_name, _function)


@onnx_op("Div")
def div(a: Operand, b: Operand, *, at: At) -> Result:
    """a / b; whole numbers are cut towards zero"""
    return _truncated_division(a, b, at)


@onnx_op("Mod")
def mod(a: Operand, b: Operand, *, fmod: int = 0, at: At) -> Result:
    """remainder with the sign of b, or of a with fmod"""
    if one_dtype(a, b).name == "u64":
        at.refuse("remainders of 64-bit unsigned integers are not supported")
    if fmod:
        return widened(aten.fmod, a, b)
    if not one_dtype(a, b).is_float:
        return widened(aten.remainder, a, b)
    rest = aten.fmod(a, b)
    zero = _zero_like_sign(rest, b)
    wrong = aten.bitwise_and(aten.ne(rest, 0.0), aten.ne(aten.lt(rest, 0.0), _negative(b, rest)))
    return aten.where(wrong, aten.add(rest, b), aten.where(aten.eq(rest, 0.0), zero, rest))


def _negative(b: Any, like: Node) -> Node:
    return aten.lt(b if isinstance(b, Node) else aten.full((), b, like.dtype), 0.0)


def _zero_like_sign(rest: Node, b: Any) -> Node:
    """Zeros with the sign of the divisor."""
    return aten.where(_negative(b, rest), -0.0, aten.full((), 0.0, rest.dtype))


@onnx_op("Pow")
def power(a: Operand, b: Operand) -> Result:
    """a ** b in the type of a"""
    if not isinstance(a, Node) or not isinstance(b, Node):
        if isinstance(a, Node) and isinstance(b, float) and not a.dtype.is_float:
            return aten.to(aten.pow(aten.to(a, f32), b), a.dtype)
        return aten.pow(a, b)
    kind = a.dtype
    if kind is b.dtype:
        return aten.pow(a, b)
    if not kind.is_float and b.dtype.is_float:
        return aten.to(aten.pow(aten.to(a, b.dtype), b), kind)
    return widened(aten.pow, a, cast(b, kind))


def _variadic(name: str, f: Callable[..., Node]) -> None:
    @onnx_op(name)
    def apply(*xs: Node) -> Result:
        result = xs[0]
        for x in xs[1:]:
            result = f(result, x)
        return aten.div(result, float(len(xs))) if name == "Mean" else result


_variadic("Max", lambda a, b: ordered(aten.maximum, a, b))
_variadic("Min", lambda a, b: ordered(aten.minimum, a, b))
_variadic("Sum", lambda a, b: aten.add(a, b))
_variadic("Mean", lambda a, b: aten.add(a, b))


@onnx_op("BitShift")
def bit_shift(a: Node, b: Node, *, direction: str) -> Result:
    """Shifts; by the width or more, or by a negative count, all bits leave."""
    kind, width = a.dtype, a.dtype.bits
    x, count = (aten.to(a, i64), aten.to(b, i64))
    outside = aten.bitwise_or(aten.lt(count, 0), aten.ge(count, width))
    count = aten.where(outside, 0, count)
    if direction == "LEFT":
        shifted, gone = aten.bitwise_left_shift(x, count), aten.full((), 0, i64)
    elif kind.name == "u64":
        half = aten.bitwise_and(aten.bitwise_right_shift(x, 1), 2**63 - 1)
        shifted = aten.where(
            aten.eq(count, 0), x, aten.bitwise_right_shift(half, aten.clamp(aten.sub(count, 1), 0))
        )
        gone = aten.full((), 0, i64)
    else:
        shifted = aten.bitwise_right_shift(x, count)
        gone = aten.bitwise_right_shift(x, 63) if kind.kind == "int" else aten.full((), 0, i64)
    return aten.to(aten.where(outside, gone, shifted), kind)


def _unary(name: str, f: Callable[[Node], Node]) -> None:
    @onnx_op(name)
    def apply(x: Node) -> Result:
        return f(x)


for _name in (
    "Exp", "Log", "Sqrt", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Asin", "Acos", "Atan", "Asinh", "Acosh",
    "Atanh", "Erf", "Sigmoid", "Mish", "HardSwish", "Floor", "Ceil", "Round", "Reciprocal", "Relu",
):  # fmt: skip
    _unary(_name, getattr(aten, _name.lower()))

for _name, _unary_function in (
    ("Abs", lambda x: x if x.dtype.kind == "uint" else aten.abs(x)),
    ("Neg", aten.neg),
    ("Sign", lambda x: widened(aten.sign, x) if x.dtype.name != "u64" else aten.to(aten.ne(x, 0), x.dtype)),
    ("Not", aten.logical_not),
    ("BitwiseNot", lambda x: widened(aten.bitwise_not, x)),
    ("IsNaN", aten.isnan),
    ("Softplus", aten.softplus),
    ("Softsign", lambda x: aten.div(x, aten.add(aten.abs(x), 1.0))),
    ("Identity", lambda x: x),
):
    if _name != "Identity":
        _unary(_name, _unary_function)


@onnx_op("Identity")
def identity(x: Value) -> Result:
    """The value itself."""
    return x


@onnx_op("IsInf")
def is_inf(x: Node, *, detect_negative: int = 1, detect_positive: int = 1) -> Result:
    """Which elements are infinite, of the chosen signs"""
    if detect_negative and detect_positive:
        return aten.isinf(x)
    if not detect_negative and not detect_positive:
        return aten.full(x.shape, False, boolean)
    return aten.eq(x, float("inf") if detect_positive else float("-inf"))


@onnx_op("Clip")
def clip(x: Node, low: Operand | None = None, high: Operand | None = None) -> Result:
    """max(low, min(x, high)), high first in force"""
    numbers = not isinstance(low, Node) and not isinstance(high, Node)
    if numbers and x.dtype.name not in WIDE and (low is not None or high is not None):
        return aten.clamp(x, low, high)
    if low is not None:
        x = ordered(aten.maximum, x, low)
    return x if high is None else ordered(aten.minimum, x, high)


@onnx_op("Elu")
def elu(x: Node, *, alpha: float = 1.0) -> Result:
    """x if x > 0 else alpha*(exp(x) - 1)"""
    return aten.elu(x, alpha)


@onnx_op("Selu")
def selu(x: Node, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507009873554805) -> Result:
    """gamma * elu(x, alpha)"""
    return aten.elu(x, alpha, gamma)


@onnx_op("Celu")
def celu(x: Node, *, alpha: float = 1.0) -> Result:
    """x if x > 0 else alpha*(exp(x/alpha) - 1)"""
    return aten.elu(x, alpha, 1.0, 1.0 / alpha)


@onnx_op("LeakyRelu")
def leaky_relu(x: Node, *, alpha: float = 0.01) -> Result:
    """x if x > 0 else alpha*x"""
    return aten.leaky_relu(x, alpha)


@onnx_op("PRelu")
def prelu(x: Node, slope: Node) -> Result:
    """x if x >= 0 else slope*x"""
    zero = 0.0 if x.dtype.is_float else 0
    return aten.where(aten.lt(x, zero), aten.mul(x, slope), x)


@onnx_op("ThresholdedRelu")
def thresholded_relu(x: Node, *, alpha: float = 1.0) -> Result:
    """x if x > alpha else 0"""
    return aten.where(aten.gt(x, alpha), x, 0.0)


@onnx_op("Shrink")
def shrink(x: Node, *, bias: float = 0.0, lambd: float = 0.5) -> Result:
    """x + bias below -lambd, x - bias above lambd, else 0"""
    if not x.dtype.is_float:
        return aten.to(_shrink(aten.to(x, f64), bias, lambd), x.dtype)
    return _shrink(x, bias, lambd)


def _shrink(x: Node, bias: float, lambd: float) -> Node:
    return aten.where(
        aten.lt(x, -lambd), aten.add(x, bias), aten.where(aten.gt(x, lambd), aten.sub(x, bias), 0.0)
    )


@onnx_op("HardSigmoid")
def hard_sigmoid(x: Node, *, alpha: float = 0.2, beta: float = 0.5) -> Result:
    """clip(alpha*x + beta, 0, 1)"""
    if beta == 0.5 and abs(alpha - 1 / 6) < 1e-7:
        return aten.hardsigmoid(x)
    return aten.clamp(aten.add(aten.mul(x, alpha), beta), 0.0, 1.0)


@onnx_op("Gelu")
def gelu(x: Node, *, approximate: str = "none") -> Result:
    """x * Phi(x), by erf or tanh"""
    return aten.gelu(x, approximate)


@onnx_op("Swish")
def swish(x: Node, *, alpha: float = 1.0) -> Result:
    """x * sigmoid(alpha*x)"""
    return aten.silu(x) if alpha == 1.0 else aten.mul(x, aten.sigmoid(aten.mul(x, alpha)))


@onnx_op("Softmax")
def softmax(x: Node, *, axis: int = -1) -> Result:
    """Softmax along an axis"""
    return aten.softmax(x, axis)


@onnx_op("LogSoftmax")
def log_softmax(x: Node, *, axis: int = -1) -> Result:
    """Logarithm of softmax along an axis"""
    return aten.log_softmax(x, axis)


@onnx_op("Hardmax")
def hardmax(x: Node, *, axis: int = -1) -> Result:
    """One at the first largest element along an axis, else zero"""
    axis %= x.rank
    places = aten.arange(0, x.shape[axis])
    places = aten.view(places, tuple(x.shape[axis] if i == axis else 1 for i in range(x.rank)))
    return aten.to(aten.eq(places, aten.argmax(x, axis, True)), x.dtype)


@onnx_op("Where")
def where(condition: Node, a: Value, b: Value, *, at: At) -> Result:
    """a where the condition holds, else b"""
    first, second = (convert(at, v, "Operand", "a choice", condition.rank) for v in (a, b))
    if not isinstance(first, Node) and not isinstance(second, Node):
        first = at.node_of(a)
    return aten.where(condition, first, second)


@onnx_op("Cast")
def cast_to(x: Node, *, to: int, saturate: int = 1, round_mode: str = "up", at: At) -> Result:
    """Another element type"""
    return cast(x, at.dtype(to))


@onnx_op("CastLike")
def cast_like(x: Node, target: Node, *, saturate: int = 1, round_mode: str = "up") -> Result:
    """The element type of another tensor"""
    return cast(x, target.dtype)


@onnx_op("BitCast")
def bit_cast(x: Node, *, to: int, at: At) -> Result:
    """The same bits as another integer type"""
    kind = at.dtype(to)
    integers = all(d.is_integer or d is boolean for d in (x.dtype, kind)) and kind is not boolean
    at.need(x.dtype is kind or (integers and x.dtype.bits == kind.bits), f"the bits of {x.dtype} as {kind}")
    return cast(x, kind)


@onnx_op("Dropout")
def dropout(
    x: Node, ratio: Value | None = None, training: Value | None = None, *, seed: int = 0, at: At
) -> Result:
    """Inference: the input, and a mask of ones"""
    still = training is None or truthy(training) is False
    if not still:
        zero = isinstance(ratio, Known) and ratio.items[0] == 0.0
        if truthy(training) is None and not zero:
            at.unknown(training, "the input 'training_mode'")
        if isinstance(ratio, Node):
            at.unknown(ratio, "the input 'ratio'")
        at.need(zero, "dropout in training mode is random")
    return (x, aten.full(x.shape, True, boolean))[: max(1, at.outputs)] if at.wants(1) else x
