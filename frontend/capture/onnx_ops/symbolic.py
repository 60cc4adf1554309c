"""Operators on known arrays: arithmetic of sizes, done while the model is read.

Each function takes known arrays and returns one, or None where the answer depends on a symbol that its range does
not decide; then the operator is captured as tensor code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import sympy

from planish.frontend.capture.onnx_ops.values import FROM_ONNX, KNOWN_LIMIT, Known, known, wrapped
from planish.ir import types
from planish.ir.types import DType, at_least, boolean, different, equal, i64

Attributes = Mapping[str, Any]
Evaluate = Callable[..., "Known | None"]
SYMBOLIC: dict[str, Evaluate] = {}


class Undecided(Exception):
    """The answer depends on a symbol."""


def symbolic(*names: str) -> Callable[[Evaluate], Evaluate]:
    """Register the evaluation of operators on known arrays."""

    def register(function: Evaluate) -> Evaluate:
        for name in names:
            SYMBOLIC[name] = function
        return function

    return register


def evaluate(name: str, inputs: list[Known | None], attributes: Attributes, outputs: int) -> Any:
    """The results of an operator on known arrays, or None; a tuple if there are several."""
    function = SYMBOLIC.get(name)
    if function is None:
        return None
    try:
        if name == "Split":
            return split(*inputs, outputs=outputs, **attributes)
        result = function(*inputs, **attributes)
    except Undecided:
        return None
    if result is None or result.array.size > KNOWN_LIMIT:
        return None
    return result


def _elementwise(f: Callable[..., Any], dtype: DType | None = None) -> Evaluate:
    def apply(*inputs: Known) -> Known | None:
        if inputs[-1].dtype.is_float and all(x.numeric for x in inputs):
            return None  # rounding is the business of tensor code
        arrays = np.broadcast_arrays(*(x.array for x in inputs))
        out = np.empty(arrays[0].shape, dtype=object)
        kind = dtype or inputs[-1].dtype
        for place in np.ndindex(*arrays[0].shape):
            result = f(*(_exact(a[place]) for a in arrays))
            plain = kind.is_float and (isinstance(result, int) or getattr(result, "is_Number", False))
            out[place] = float(result) if plain else wrapped(kind, result)
        return Known(kind, out)

    return apply


def _exact(value: Any) -> Any:
    """A floating-point number that meets sizes as a whole number or simple fraction."""
    if not isinstance(value, float):
        return value
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    parts = Fraction(value) if math.isfinite(value) else Fraction(0)
    if not 1 < parts.denominator <= 64:
        raise Undecided
    return sympy.Rational(parts.numerator, parts.denominator)


def _truncated(a: Any, b: Any) -> Any:
    if b == 0 or (isinstance(b, sympy.Basic) and not at_least(b, 1)):
        raise Undecided
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    if at_least(a, 0) and at_least(b, 1):
        return types.floor_div(a, b)
    if at_least(b, 1) and at_least(types.size(-a), 0):
        return types.size(-types.floor_div(types.size(-a), b))
    raise Undecided


def _modulo(a: Any, b: Any) -> Any:
    if (isinstance(b, int) and b == 0) or not (isinstance(b, int) or at_least(b, 1)):
        raise Undecided
    if isinstance(b, int) and b < 0 and not isinstance(a, int):
        raise Undecided
    return types.mod(a, b)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, sympy.Basic) or isinstance(b, sympy.Basic):
        if equal(a, b):
            return True
        if different(a, b):
            return False
        raise Undecided
    return bool(a == b)


def _at_least(a: Any, b: Any) -> bool:
    if not (isinstance(a, sympy.Basic) or isinstance(b, sympy.Basic)):
        return bool(a >= b)
    if at_least(a, b):
        return True
    if at_least(b, types.size(a + 1)):
        return False
    raise Undecided


def _size(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:
        result = f(a, b)
        if isinstance(result, sympy.Basic):
            return sympy.expand(result) if not result.is_integer else types.size(result)
        return result

    return apply


def _power(a: Any, b: Any) -> Any:
    if not isinstance(b, int) or b < 0:
        raise Undecided
    return types.size(a**b) if isinstance(a, sympy.Basic) else a**b


def _reduced(f: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *xs: xs[0] if len(xs) == 1 else f(xs[0], _reduced(f)(*xs[1:]))


SYMBOLIC["Add"] = _elementwise(_size(lambda a, b: a + b))
SYMBOLIC["Sub"] = _elementwise(_size(lambda a, b: a - b))
SYMBOLIC["Mul"] = _elementwise(_size(lambda a, b: a * b))


@symbolic("Div")
def _div(a: Known, b: Known) -> Known | None:
    if not a.dtype.is_float:
        return _elementwise(_truncated)(a, b)
    return _elementwise(_quotient)(a, b)


def _quotient(a: Any, b: Any) -> Any:
    if not isinstance(b, (int, sympy.Rational)) or b == 0:
        raise Undecided
    return sympy.expand(sympy.sympify(a) / b)


def _floor(value: Any) -> Any:
    return types.size(sympy.floor(value)) if isinstance(value, sympy.Basic) else math.floor(value)


SYMBOLIC["Floor"] = _elementwise(_floor)
SYMBOLIC["Ceil"] = _elementwise(lambda v: types.size(-_floor(-v)))
SYMBOLIC["Pow"] = _elementwise(_power)
SYMBOLIC["Max"] = _elementwise(_reduced(types.maximum))
SYMBOLIC["Min"] = _elementwise(_reduced(types.minimum))
SYMBOLIC["Neg"] = _elementwise(lambda a: types.size(-a) if isinstance(a, sympy.Basic) else -a)
SYMBOLIC["Abs"] = _elementwise(lambda a: types.maximum(a, types.size(-a)))
SYMBOLIC["Equal"] = _elementwise(_equal, boolean)
SYMBOLIC["GreaterOrEqual"] = _elementwise(_at_least, boolean)
SYMBOLIC["LessOrEqual"] = _elementwise(lambda a, b: _at_least(b, a), boolean)
SYMBOLIC["Greater"] = _elementwise(lambda a, b: not _at_least(b, a), boolean)
SYMBOLIC["Less"] = _elementwise(lambda a, b: not _at_least(a, b), boolean)
SYMBOLIC["And"] = _elementwise(lambda a, b: bool(a and b), boolean)
SYMBOLIC["Or"] = _elementwise(lambda a, b: bool(a or b), boolean)
SYMBOLIC["Xor"] = _elementwise(lambda a, b: bool(a) != bool(b), boolean)
SYMBOLIC["Not"] = _elementwise(lambda a: not a, boolean)


@symbolic("Mod")
def _mod(a: Known, b: Known, fmod: int = 0) -> Known | None:
    return None if fmod else _elementwise(_modulo)(a, b)


@symbolic("Identity")
def _identity(x: Known) -> Known:
    return x


@symbolic("Where")
def _where(condition: Known, a: Known, b: Known) -> Known:
    parts = np.broadcast_arrays(condition.array, a.array, b.array)
    out = np.empty(parts[0].shape, dtype=object)
    for place in np.ndindex(*out.shape):
        out[place] = parts[1][place] if parts[0][place] else parts[2][place]
    return Known(a.dtype, out)


@symbolic("Cast")
def _cast(x: Known, to: int, saturate: int = 1, round_mode: str = "up") -> Known | None:
    dtype = FROM_ONNX.get(to)
    if dtype is None or (dtype.bits < 32 and dtype is not boolean):
        return None
    return cast_known(x, dtype)


def cast_known(x: Known, dtype: DType) -> Known | None:
    """Another element type, where that is exact."""

    def one(v: Any) -> Any:
        if isinstance(v, sympy.Basic):
            if dtype is boolean:
                if at_least(v, 1):
                    return True
                raise Undecided
            if dtype.is_float or v.is_integer:
                return v
            if not types.bounds(v)[0] >= 0:
                raise Undecided
            return _floor(v)
        if dtype is boolean:
            return bool(v)
        if dtype.is_float:
            return float(np.float32(v)) if dtype is types.f32 else float(v)
        if isinstance(v, float) and not abs(v) < 2**62:
            raise Undecided
        return wrapped(dtype, int(v))

    try:
        return known(dtype, [one(v) for v in x.items], x.shape)
    except Undecided:
        return None


@symbolic("Shape")
def shape_of(x: Any, start: int = 0, end: int | None = None) -> Known:
    """The sizes of a tensor or known array, as a known array."""
    return known(i64, list(x.shape)[slice(start, end)])


@symbolic("Size")
def size_of(x: Any) -> Known:
    """The number of elements of a tensor or known array, as a known array."""
    return known(i64, [types.product(x.shape)], ())


@symbolic("Gather")
def _gather(x: Known, index: Known, axis: int = 0) -> Known | None:
    if not index.numeric:
        return None
    return Known(x.dtype, _object(np.take(x.array, index.numbers().astype(np.int64), axis=axis)))


@symbolic("Concat")
def _concat(*xs: Known, axis: int) -> Known:
    return Known(xs[0].dtype, np.concatenate([x.array for x in xs], axis=axis))


@symbolic("Unsqueeze")
def _unsqueeze(x: Known, axes: Known) -> Known:
    rank = x.rank + len(axes.items)
    return Known(x.dtype, np.expand_dims(x.array, tuple(int(a) % rank for a in axes.items)))


@symbolic("Squeeze")
def _squeeze(x: Known, axes: Known | None = None) -> Known:
    places = None if axes is None else tuple(int(a) for a in axes.items)
    return Known(x.dtype, _object(np.squeeze(x.array, places)))


@symbolic("Transpose")
def _transpose(x: Known, perm: Any = None) -> Known:
    return Known(x.dtype, np.transpose(x.array, perm))


@symbolic("Flatten")
def _flatten(x: Known, axis: int = 1) -> Known:
    axis = axis + x.rank if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis]))
    return Known(x.dtype, x.array.reshape(rows, -1 if x.array.size else 0))


@symbolic("Reshape")
def _reshape(x: Known, shape: Known, allowzero: int = 0) -> Known | None:
    if not shape.numeric:
        return None
    want = [x.shape[i] if v == 0 and not allowzero else int(v) for i, v in enumerate(shape.items)]
    return Known(x.dtype, x.array.reshape(want))


@symbolic("Expand")
def _expand(x: Known, shape: Known) -> Known | None:
    if not shape.numeric or np.prod([max(int(v), 1) for v in shape.items], dtype=float) > KNOWN_LIMIT:
        return None
    want = np.broadcast_shapes(x.shape, tuple(int(v) for v in shape.items))
    return Known(x.dtype, np.broadcast_to(x.array, want).copy())


@symbolic("Tile")
def _tile(x: Known, repeats: Known) -> Known | None:
    if not repeats.numeric or np.prod([max(int(v), 1) for v in repeats.items], dtype=float) > KNOWN_LIMIT:
        return None
    return Known(x.dtype, np.tile(x.array, [int(v) for v in repeats.items]))


@symbolic("Slice")
def _slice(
    x: Known, starts: Known, ends: Known, axes: Known | None = None, steps: Known | None = None
) -> Known | None:
    parts = [starts, ends, *(p for p in (axes, steps) if p is not None)]
    if not all(p.numeric for p in parts):
        return None
    places = [int(a) for a in axes.items] if axes is not None else list(range(len(starts.items)))
    strides = [int(s) for s in steps.items] if steps is not None else [1] * len(places)
    where: list[slice] = [slice(None)] * x.rank
    for axis, start, end, step in zip(places, starts.items, ends.items, strides, strict=True):
        if step < 0 and end < -x.shape[axis]:
            end = None
        where[axis] = slice(int(start), None if end is None else int(end), step)
    return Known(x.dtype, x.array[tuple(where)])


@symbolic("Range")
def _range(start: Known, limit: Known, delta: Known) -> Known | None:
    ends = [v.items[0] for v in (start, limit, delta)]
    if not all(isinstance(v, int) for v in ends) or ends[2] == 0:
        return None
    count = len(range(*ends))
    return known(start.dtype, list(range(*ends)), (count,)) if count <= 64 else None


@symbolic("ConstantOfShape")
def _constant_of_shape(shape: Known, value: Any = None) -> Known | None:
    if not shape.numeric or np.prod([float(v) for v in shape.items]) > 64:
        return None
    dtype, item = types.f32, 0.0
    if value is not None:
        if int(value.dtype) not in FROM_ONNX or value.size != 1:
            return None
        dtype, item = FROM_ONNX[int(value.dtype)], value.numpy().reshape(()).item()
    want = tuple(int(v) for v in shape.items)
    return known(dtype, [item] * int(np.prod(want)), want)


def _fold(f: Callable[[Any, Any], Any]) -> Evaluate:
    def apply(
        x: Known, axes: Known | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0, **rest: Any
    ) -> Known | None:
        if x.dtype.is_float or rest:
            return None
        places = tuple(int(a) % max(x.rank, 1) for a in axes.items) if axes is not None else ()
        if not places:
            if noop_with_empty_axes:
                return x
            places = tuple(range(x.rank))
        kept = [i for i in range(x.rank) if i not in places]
        moved = np.transpose(x.array, kept + list(places)).reshape([x.shape[i] for i in kept] + [-1])
        out = np.empty(moved.shape[:-1], dtype=object)
        for place in np.ndindex(*out.shape):
            row = list(moved[place])
            if not row:
                return None
            total = row[0]
            for v in row[1:]:
                total = f(total, v)
            out[place] = wrapped(x.dtype, total)
        shape = [1 if i in places else s for i, s in enumerate(x.shape)] if keepdims else list(out.shape)
        return Known(x.dtype, out.reshape(shape))

    return apply


SYMBOLIC["ReduceProd"] = _fold(_size(lambda a, b: a * b))
SYMBOLIC["ReduceSum"] = _fold(_size(lambda a, b: a + b))
SYMBOLIC["ReduceMax"] = _fold(types.maximum)
SYMBOLIC["ReduceMin"] = _fold(types.minimum)


@symbolic("CumSum")
def _cumsum(x: Known, axis: Known, exclusive: int = 0, reverse: int = 0) -> Known | None:
    if x.rank != 1 or x.dtype.is_float or exclusive or reverse:
        return None
    out: list[Any] = []
    for v in x.items:
        out.append(types.size(out[-1] + v) if out else v)
    return known(x.dtype, out)


@symbolic("ScatterND")
def _scatter_nd(x: Known, index: Known, updates: Known, reduction: str = "none") -> Known | None:
    if not index.numeric or reduction != "none":
        return None
    out = x.array.copy()
    places = index.numbers().astype(np.int64)
    for place in np.ndindex(*places.shape[:-1]):
        out[tuple(places[place])] = updates.array[place]
    return Known(x.dtype, out)


@symbolic("Split")
def split(
    x: Known, parts: Known | None = None, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> Any:
    """Pieces of a known array."""
    if parts is not None and not parts.numeric:
        return None
    length = x.shape[axis]
    if parts is not None:
        ends = np.cumsum([int(v) for v in parts.items])
    else:
        count = num_outputs or outputs
        each = -(-length // count)
        ends = np.array([min(each * (i + 1), length) for i in range(count)])
    return tuple(Known(x.dtype, p) for p in np.split(x.array, ends[:-1], axis=axis))


def _object(array: Any) -> np.ndarray[Any, Any]:
    if isinstance(array, np.ndarray):
        return array
    out = np.empty((), dtype=object)
    out[()] = array
    return out
