"""Pointwise ATen operators."""

from __future__ import annotations

import math
from typing import Any

from planish.frontend.capture.torch_ops.base import (
    HANDLERS,
    cast,
    floating,
    handles,
    promoted,
    refuse,
    result_type,
    tensor,
    to_dtype,
)
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import boolean, dtype, f32


def _unary(name: str, to_float: bool) -> Any:
    build = getattr(aten, name)

    def apply(x: Any) -> Node:
        node: Node = build(floating(tensor(x)) if to_float else tensor(x))
        return node

    return apply


TO_FLOAT = """
exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh
erf sigmoid silu mish hardswish hardsigmoid
"""
for _name in TO_FLOAT.split():
    HANDLERS[f"{_name}.default"] = _unary(_name, True)
for _name in ("neg", "abs", "sign", "relu", "isnan", "isinf", "logical_not", "bitwise_not"):
    HANDLERS[f"{_name}.default"] = _unary(_name, False)
HANDLERS["sgn.default"] = HANDLERS["sign.default"]


def _rounding(name: str) -> Any:
    def apply(x: Node) -> Node:
        return x if x.dtype.is_integer else getattr(aten, name)(x)

    return apply


for _name in ("floor", "ceil", "round", "trunc"):
    HANDLERS[f"{_name}.default"] = _rounding(_name)
HANDLERS["fix.default"] = HANDLERS["trunc.default"]


@handles("round.decimals")
def round_decimals(x: Node, *, decimals: int = 0) -> Node:
    """round(x * 10^d) / 10^d."""
    factor = 10.0**decimals
    return aten.div(aten.round(aten.mul(x, factor)), factor) if decimals else aten.round(x)


@handles("relu6.default")
def relu6(x: Node) -> Node:
    """clamp(x, 0, 6)."""
    return aten.clamp(x, 0.0, 6.0)


@handles("square.default")
def square(x: Node) -> Node:
    """x * x."""
    return aten.mul(x, x)


@handles("isfinite.default")
def isfinite(x: Node) -> Node:
    """Neither infinite nor nan."""
    return aten.logical_not(aten.bitwise_or(aten.isnan(x), aten.isinf(x)))


def _binary(name: str) -> Any:
    build = getattr(aten, name)

    def apply(a: Any, b: Any) -> Node:
        node: Node = build(*promoted(a, b))
        return node

    return apply


for _name in ("maximum", "minimum", "atan2", "eq", "ne", "lt", "le", "gt", "ge"):
    for _overload in ("default", "Tensor", "Scalar"):
        HANDLERS[f"{_name}.{_overload}"] = _binary(_name)
HANDLERS["min.other"], HANDLERS["max.other"] = _binary("minimum"), _binary("maximum")
for _name in ("floor_divide", "remainder", "fmod"):
    for _overload in ("default", "Tensor", "Scalar", "Scalar_Tensor"):
        HANDLERS[f"{_name}.{_overload}"] = _binary(_name)


def _times(b: Any, alpha: Any) -> Any:
    """``alpha * b``, where alpha is a number."""
    if alpha == 1:
        return b
    return aten.mul(b, cast(alpha, b.dtype)) if isinstance(b, Node) else b * alpha


@handles("add.Tensor", "add.Scalar")
def add(a: Any, b: Any, alpha: Any = 1) -> Node:
    """a + alpha * b."""
    a, b = promoted(a, b)
    if tensor(a, boolean).dtype is boolean:
        return aten.bitwise_or(a, b)
    return aten.add(a, _times(b, alpha))


@handles("sub.Tensor", "sub.Scalar")
def sub(a: Any, b: Any, alpha: Any = 1) -> Node:
    """a - alpha * b."""
    a, b = promoted(a, b)
    return aten.sub(a, _times(b, alpha))


@handles("rsub.Scalar", "rsub.Tensor")
def rsub(a: Any, b: Any, alpha: Any = 1) -> Node:
    """b - alpha * a."""
    return sub(b, a, alpha)


@handles("mul.Tensor", "mul.Scalar")
def mul(a: Any, b: Any) -> Node:
    """a * b; for bool it is "and"."""
    a, b = promoted(a, b)
    if (a if isinstance(a, Node) else b).dtype is boolean:
        return aten.bitwise_and(a, b)
    return aten.mul(a, b)


@handles("div.Tensor", "div.Scalar", "true_divide.Tensor")
def div(a: Any, b: Any) -> Node:
    """a / b in floating point."""
    kind = result_type(a, b)
    kind = kind if kind.kind in ("float", "complex") else f32
    return aten.div(cast(a, kind), cast(b, kind))


@handles("div.Tensor_mode", "div.Scalar_mode")
def div_mode(a: Any, b: Any, *, rounding_mode: str | None) -> Node:
    """Division rounded down or towards zero."""
    if rounding_mode is None:
        return div(a, b)
    a, b = promoted(a, b)
    if rounding_mode == "floor":
        return aten.floor_divide(a, b)
    kind = (a if isinstance(a, Node) else b).dtype
    if kind.is_float:
        return aten.trunc(aten.div(a, b))
    return aten.floor_divide(aten.sub(a, aten.fmod(a, b)), b)


@handles("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar")
def power(a: Any, b: Any) -> Node:
    """a ** b."""
    a, b = promoted(a, b)
    return aten.pow(a, b)


@handles("clamp.default", "clip.default", "hardtanh.default")
def clamp(x: Node, low: Any = None, high: Any = None, *, min_val: Any = None, max_val: Any = None) -> Node:
    """Bounds by numbers; an integer tensor with fractional bounds becomes floating point."""
    low, high = (min_val if low is None else low), (max_val if high is None else high)
    kind = result_type(x, *(v for v in (low, high) if v is not None))
    limits = [None if v is None else cast(v, kind) for v in (low, high)]
    return aten.clamp(cast(x, kind), *limits)


HANDLERS["hardtanh.default"] = lambda x, low=-1, high=1: clamp(x, low, high)
HANDLERS["clamp_min.default"] = lambda x, low: clamp(x, low)
HANDLERS["clamp_max.default"] = lambda x, high: clamp(x, None, high)


@handles("clamp.Tensor", "clip.Tensor")
def clamp_tensor(x: Node, low: Any = None, high: Any = None) -> Node:
    """Bounds by tensors."""
    if low is not None:
        x = aten.maximum(*promoted(x, low))
    return x if high is None else aten.minimum(*promoted(x, high))


HANDLERS["clamp_min.Tensor"] = lambda x, low: clamp_tensor(x, low)
HANDLERS["clamp_max.Tensor"] = lambda x, high: clamp_tensor(x, None, high)


def _logical(name: str) -> Any:
    def apply(a: Any, b: Any) -> Node:
        a, b = (
            aten.ne(x, cast(0, x.dtype)) if isinstance(x, Node) and x.dtype is not boolean else x
            for x in (a, b)
        )
        node: Node = getattr(aten, name)(
            a if isinstance(a, Node) else bool(a), b if isinstance(b, Node) else bool(b)
        )
        return node

    return apply


for _name in ("and", "or", "xor"):
    HANDLERS[f"logical_{_name}.default"] = _logical(f"bitwise_{_name}")
    for _overload in ("Tensor", "Scalar", "Scalar_Tensor"):
        HANDLERS[f"bitwise_{_name}.{_overload}"] = _binary(f"bitwise_{_name}")
        HANDLERS[f"__{_name}__.{_overload}"] = _binary(f"bitwise_{_name}")
for _name, _alias in (("bitwise_left_shift", "__lshift__"), ("bitwise_right_shift", "__rshift__")):
    for _overload in ("Tensor", "Tensor_Scalar", "Scalar"):
        HANDLERS[f"{_name}.{_overload}"] = HANDLERS[f"{_alias}.{_overload}"] = _binary(_name)


@handles("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def where(condition: Node, a: Any, b: Any) -> Node:
    """Choice by a condition."""
    if not isinstance(a, Node) and not isinstance(b, Node):
        kind = (
            f32
            if isinstance(a, float) or isinstance(b, float)
            else dtype("bool" if isinstance(a, bool) else "i64")
        )
        return aten.where(condition, tensor(a, kind), cast(b, kind))
    a, b = promoted(a, b)
    return aten.where(condition, a, b)


@handles("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(x: Node, mask: Node, value: Any) -> Node:
    """where(mask, value, x)."""
    return aten.where(mask, cast(value, x.dtype), x)


@handles("gelu.default")
def gelu(x: Node, *, approximate: str = "none") -> Node:
    """Gaussian error linear unit."""
    return aten.gelu(x, approximate)


@handles("softplus.default")
def softplus(x: Node, beta: Any = 1, threshold: Any = 20) -> Node:
    """Smooth relu."""
    return aten.softplus(x, float(beta), float(threshold))


@handles("elu.default")
def elu(x: Node, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Node:
    """Exponential linear unit."""
    return aten.elu(x, float(alpha), float(scale), float(input_scale))


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
HANDLERS["selu.default"] = lambda x: aten.elu(x, SELU_ALPHA, SELU_SCALE, 1.0)
HANDLERS["celu.default"] = lambda x, alpha=1.0: aten.elu(x, float(alpha), 1.0, 1.0 / alpha)
HANDLERS["leaky_relu.default"] = lambda x, slope=0.01: aten.leaky_relu(x, float(slope))
HANDLERS["prelu.default"] = HANDLERS["_prelu_kernel.default"] = lambda x, weight: prelu(x, weight)
HANDLERS["log_sigmoid.default"] = lambda x: aten.neg(aten.softplus(aten.neg(x)))
HANDLERS["log_sigmoid_forward.default"] = lambda x: (aten.neg(aten.softplus(aten.neg(x))), None)


def prelu(x: Node, weight: Node) -> Node:
    """max(x, 0) + weight * min(x, 0), one weight or one per channel."""
    if weight.rank == 1 and x.rank > 1 and weight.shape[0] != 1:
        weight = aten.view(weight, [1, weight.shape[0], *[1] * (x.rank - 2)])
    elif weight.rank == 1 and x.rank != 1:
        weight = aten.view(weight, [1] * x.rank)
    return aten.where(aten.gt(x, 0.0), x, aten.mul(x, weight))


@handles("glu.default")
def glu(x: Node, dim: int = -1) -> Node:
    """a * sigmoid(b) for the two halves of an axis."""
    length = x.shape[dim]
    if not isinstance(length, int) or length % 2:
        raise refuse("glu needs an axis of known even length")
    a, b = aten.slice(x, dim, 0, length // 2), aten.slice(x, dim, length // 2, length)
    return aten.mul(a, aten.sigmoid(b))


@handles("addcmul.default")
def addcmul(x: Node, a: Node, b: Node, *, value: Any = 1) -> Node:
    """x + value * a * b."""
    return aten.add(x, mul(mul(a, b), value) if value != 1 else mul(a, b))


@handles("addcdiv.default")
def addcdiv(x: Node, a: Node, b: Node, *, value: Any = 1) -> Node:
    """x + value * a / b."""
    return aten.add(x, mul(div(a, b), value) if value != 1 else div(a, b))


@handles("lerp.Scalar", "lerp.Tensor")
def lerp(a: Node, b: Node, weight: Any) -> Node:
    """a + weight * (b - a)."""
    return aten.add(a, mul(aten.sub(b, a), weight))


@handles("erfc.default")
def erfc(x: Node) -> Node:
    """1 - erf(x)."""
    return aten.sub(1.0, aten.erf(x))


@handles("logit.default")
def logit(x: Node, eps: float | None = None) -> Node:
    """log(x / (1 - x))."""
    x = x if eps is None else aten.clamp(x, eps, 1 - eps)
    return aten.log(aten.div(x, aten.sub(1.0, x)))


@handles("logaddexp.default")
def logaddexp(a: Node, b: Node) -> Node:
    """log(exp(a) + exp(b)), stable."""
    larger = aten.maximum(a, b)
    return aten.add(larger, aten.log1p(aten.exp(aten.neg(aten.abs(aten.sub(a, b))))))


@handles(
    "to.dtype",
    "to.dtype_layout",
    "_to_copy.default",
    "to.device",
    "to.other",
    "type_as.default",
    "to.prim_dtype",
)
def to(x: Node, *args: Any, dtype: Any = None, **_: Any) -> Node:
    """A cast; devices and layouts are not part of a program."""
    kinds = [a for a in (*args, dtype) if type(a).__name__ == "dtype"]
    like = [a for a in args if isinstance(a, Node)]
    target = to_dtype(kinds[0]) if kinds else like[0].dtype if like else x.dtype
    return cast(x, target)


@handles("deg2rad.default")
def deg2rad(x: Node) -> Node:
    """Degrees to radians."""
    return aten.mul(floating(x), math.pi / 180)
