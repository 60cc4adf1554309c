"""Pointwise operations of ATen."""

from planish.ir.dialect import define
from planish.ir.shapes import (
    arithmetic,
    bitwise,
    cast,
    clamped,
    compare,
    elementwise,
    float_arithmetic,
    keep_float,
    keep_integer,
    keep_numeric,
    to_bool,
    where,
)

for name in ("neg", "abs", "sign", "relu", "floor", "ceil", "round", "trunc"):
    define(f"aten.{name}", "x", keep_numeric, pointwise=True)

for name in (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tan", "asin",
    "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "silu", "mish", "hardswish",
    "hardsigmoid",
):  # fmt: skip
    define(f"aten.{name}", "x", keep_float, pointwise=True)

define("aten.gelu", "x, approximate:str='none'", keep_float, pointwise=True, torch="custom:gelu")
define("aten.softplus", "x, beta:float=1.0, threshold:float=20.0", keep_float, pointwise=True)
define("aten.elu", "x, alpha:float=1.0, scale:float=1.0, input_scale:float=1.0", keep_float, pointwise=True)
define("aten.leaky_relu", "x, negative_slope:float=0.01", keep_float, pointwise=True)
define("aten.clamp", "x, min:any=None, max:any=None", clamped, pointwise=True)
define("aten.isnan", "x", to_bool, pointwise=True)
define("aten.isinf", "x", to_bool, pointwise=True)
define("aten.logical_not", "x", to_bool, pointwise=True)
define("aten.bitwise_not", "x", keep_integer, pointwise=True)
define("aten.to", "x, dtype:dtype", cast, pointwise=True, torch="to.dtype")

for name in ("add", "mul"):
    define(
        f"aten.{name}",
        "a:operand, b:operand",
        arithmetic,
        commutative=True,
        pointwise=True,
        torch=f"{name}.Tensor",
    )
define("aten.sub", "a:operand, b:operand", arithmetic, pointwise=True, torch="sub.Tensor")
define("aten.div", "a:operand, b:operand", float_arithmetic, pointwise=True, torch="div.Tensor")
define("aten.floor_divide", "a:operand, b:operand", arithmetic, pointwise=True)
define(
    "aten.remainder",
    "a:operand, b:operand",
    arithmetic,
    pointwise=True,
    torch="remainder.Tensor",
    doc="sign of b",
)
define("aten.fmod", "a:operand, b:operand", arithmetic, pointwise=True, torch="fmod.Tensor", doc="sign of a")
define("aten.pow", "a:operand, b:operand", arithmetic, pointwise=True, torch="pow.Tensor_Tensor")
define("aten.atan2", "a:operand, b:operand", float_arithmetic, pointwise=True)
define("aten.maximum", "a:operand, b:operand", elementwise, commutative=True, pointwise=True)
define("aten.minimum", "a:operand, b:operand", elementwise, commutative=True, pointwise=True)
define("aten.eq", "a:operand, b:operand", compare, commutative=True, pointwise=True, torch="eq.Tensor")
define("aten.ne", "a:operand, b:operand", compare, commutative=True, pointwise=True, torch="ne.Tensor")
for name in ("lt", "le", "gt", "ge"):
    define(f"aten.{name}", "a:operand, b:operand", compare, pointwise=True, torch=f"{name}.Tensor")
for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    define(
        f"aten.{name}",
        "a:operand, b:operand",
        bitwise,
        commutative=True,
        pointwise=True,
        torch=f"{name}.Tensor",
    )
for name in ("bitwise_left_shift", "bitwise_right_shift"):
    define(f"aten.{name}", "a:operand, b:operand", bitwise, pointwise=True, torch=f"{name}.Tensor")
define("aten.where", "condition, a:operand, b:operand", where, pointwise=True, torch="where.self")
