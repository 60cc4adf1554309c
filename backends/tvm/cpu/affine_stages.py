"""Stages of a linear layer on affine codes: scratch, rows of x, codes of a panel, scales, and the end of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit as E
from planish.backends.tvm.cpu.affine_spec import NAMES, AffineSpec, Plane
from planish.backends.tvm.cpu.math import ACTIVATIONS, bind, fma
from planish.backends.tvm.dims import Dims
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node
from planish.ir.ops.layout import TILE

W = 16
"""Elements of x that the stages before the product take at a time."""

DIGITS_TOP = 126 * 65536
"""Largest magnitude of an activation as a whole number of three signed bytes."""


@dataclass(frozen=True)
class Operands:
    """Buffers of the operands and of the result; x, residual and the result as matrices. Absent ones are None."""

    x: Any
    panels: Any
    scale: Any
    zero: Any
    bias: Any
    norm: Any
    residual: Any
    left: Any
    right: Any
    out: Any
    rows: Any
    """Number of rows of x: an ``int`` or an i64 expression."""


@dataclass(frozen=True)
class Rows:
    """Scratch for prepared rows of x: int8 ``codes [R, D, Kp]`` of D digits with ``scales`` and ``sums [R, G]``
    (the sum of codes times the scale), or ``normed`` f32 ``[R, Kp]``; ``low [R, r]`` is the row times ``right``."""

    codes: Any
    scales: Any
    sums: Any
    normed: Any
    low: Any
    digits: int


def declare_operands(node: Node, spec: AffineSpec) -> Operands:
    """Declare the arguments of the function that is being built: operands in order, then the result."""
    dims, names = Dims(), ("x", "panels", "scale", "zero", "bias", "norm", "residual", "left", "right")
    made: dict[str, Any] = dict.fromkeys(names)
    rows = dims(spec.rows)

    def argument(name: str, value: Node) -> Any:
        return T.arg(name, T.Buffer(dims.shape(value.shape), NAMES[value.dtype.name]))

    def matrix(buffer: Any, value: Node, width: int) -> Any:
        if value.rank == 2:
            return buffer
        return T.decl_buffer((rows, width), NAMES[value.dtype.name], data=buffer.data)

    for name, value in zip(names, node.args, strict=False):
        if isinstance(value, Node):
            made[name] = argument(name, value)
    out = argument("out", node)  # all arguments come before what is made of them
    for name in ("x", "residual"):
        value = node.args[names.index(name)]
        if value is not None:
            made[name] = matrix(made[name], value, int(value.shape[-1]))
    return Operands(**made, out=matrix(out, node, spec.width), rows=rows)


def allocate(spec: AffineSpec, count: int, digits: int) -> Rows:
    """Scratch for ``count`` rows: as f32 (``digits`` 0), int8 (1) or 24-bit whole numbers of three bytes (3)."""
    low = T.alloc_buffer((count, spec.rank), "float32") if spec.rank else None
    if not digits:
        return Rows(None, None, None, T.alloc_buffer((count, spec.padded), "float32"), low, 0)
    return Rows(
        T.alloc_buffer((count, digits, spec.padded), "int8"),
        T.alloc_buffer((count, spec.groups), "float32"),
        T.alloc_buffer((count, spec.groups), "float32"),
        None,
        low,
        digits,
    )


def vectors(count: int, unroll: int, body: Callable[[Any, int], None]) -> None:
    """``body(index, place)`` for ``count`` vectors; ``index % unroll == place``; a loop only if it is long."""
    whole = count // unroll
    if whole > 1:
        with T.serial(0, whole) as i:
            for place in range(unroll):
                body(i * unroll + place, place)
    first = whole * unroll if whole > 1 else 0
    for index in range(first, count):
        body(index, index % unroll)


def registers(count: int, lanes: int, dtype: str = "float32") -> Any:
    """Registers ``[count, lanes]`` on the stack: TVM asks its workspace for every buffer of local scope."""
    return T.alloc_buffer((count, lanes), dtype)


def keep(value: Any) -> Any:
    """The value from a register of its own: TVM would copy an expression to every place where it is read."""
    kind, _, lanes = str(value.ty).partition("x")
    count = int(lanes or 1)
    register = registers(1, count, kind)
    E.store(register, (0, 0), value, count)
    return E.load(register, (0, 0), count)


def _intrinsic(kind: str, name: str, *args: Any) -> Any:
    return tirx.call_llvm_pure_intrin(kind, name, *args)


def _larger(a: Any, b: Any) -> Any:
    return tirx.Select(a > b, a, b)


def across(value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """A scalar variable: the elements of a vector of 16 f32 combined pairwise."""
    lanes = W
    value = keep(value)
    while lanes > 1:
        lanes //= 2
        halves = [
            tirx.Shuffle([value], [tirx.IntImm("int32", i + first) for i in range(lanes)])
            for first in (0, lanes)
        ]
        value = keep(combine(*halves))
    return value


def _accumulators(count: int, unroll: int) -> Any:
    made = registers(min(count, unroll), W)
    for i in range(min(count, unroll)):
        E.store(made, (i, 0), constant_vector(0.0), W)
    return made


def constant_vector(number: float) -> Any:
    """A number in 16 lanes of f32."""
    return tirx.Broadcast(tirx.FloatImm("float32", number), W)


def _total(accumulators: Any, combine: Callable[[Any, Any], Any]) -> Any:
    count = int(accumulators.shape[0])
    value = E.load(accumulators, (0, 0), W)
    for i in range(1, count):
        value = combine(value, E.load(accumulators, (i, 0), W))
    return across(value, combine)


def _inverse_root(spec: AffineSpec, x: Any, row: Any) -> Any:
    """``1 / sqrt(mean(x^2) + eps)`` of a row, a scalar variable."""
    whole = spec.length // W
    tail = T.alloc_buffer((1,), "float32")
    T.buffer_store(tail, T.float32(0.0), [0])
    for k in range(whole * W, spec.length):
        T.buffer_store(tail, tail[0] + x[row, k] * x[row, k], [0])
    total = tail[0]
    if whole:
        squares = _accumulators(whole, 4)

        def add(i: Any, place: int) -> None:
            v = keep(E.load(x, (row, i * W), W))
            E.store(squares, (place, 0), fma(v, v, E.load(squares, (place, 0), W)), W)

        vectors(whole, 4, add)
        total = total + _total(squares, lambda a, b: a + b)
    mean = total * T.float32(1.0 / spec.length) + T.float32(spec.eps)
    return keep(T.float32(1.0) / tirx.sqrt(mean))


def _fill(spec: AffineSpec, operands: Operands, row: Any, into: Any, slot: Any) -> None:
    """The row, normed if asked for, padded with zeros."""
    x, norm = operands.x, operands.norm
    inverse = _inverse_root(spec, x, row) if spec.norm else None

    def value(k: Any, lanes: int) -> Any:
        v = E.load(x, (row, k), lanes)
        return v if inverse is None else v * E.splat(inverse, lanes) * E.load(norm, (k,), lanes)

    whole = spec.length // W
    vectors(whole, 4, lambda i, _: E.store(into, (slot, i * W), value(i * W, W), W))
    for k in range(whole * W, spec.padded):
        E.store(into, (slot, k), value(k, 1) if k < spec.length else T.float32(0.0), 1)


def _low_rank(spec: AffineSpec, operands: Operands, source: Any, place: Any, rows: Rows, slot: Any) -> None:
    """The row times ``right``."""
    whole = spec.length // W
    with T.serial(0, spec.rank) as j:
        total: Any = T.float32(0.0)
        if whole:
            sums = _accumulators(whole, 4)

            def add(i: Any, unrolled: int, j: Any = j, sums: Any = sums) -> None:
                a, b = E.load(source, (place, i * W), W), E.load(operands.right, (j, i * W), W)
                E.store(sums, (unrolled, 0), fma(a, b, E.load(sums, (unrolled, 0), W)), W)

            vectors(whole, 4, add)
            total = _total(sums, lambda a, b: a + b)
        for k in range(whole * W, spec.length):
            total = total + source[place, k] * operands.right[j, k]
        T.buffer_store(rows.low, total, [slot, j])


def _rounded(isa: Isa, v: Any, digits: int) -> Any:
    """The nearest whole number, half to even."""
    if isa.lanes > 4:
        return _intrinsic(f"float32x{W}", "llvm.nearbyint", v)
    assert digits < 3
    return keep(v + constant_vector(12582912.0)) - constant_vector(12582912.0)


def _store_digits(rounded: Any, rows: Rows, slot: Any, k: Any) -> None:
    """Whole numbers as one signed byte, or as three, the lowest first."""
    if rows.digits == 1:
        E.store(rows.codes, (slot, 0, k), tirx.Cast(f"int8x{W}", rounded), W)
        return
    left = keep(tirx.Cast(f"int32x{W}", rounded))
    for digit in range(rows.digits):
        low = keep(tirx.Cast(f"int8x{W}", left))  # the low byte, read as signed
        E.store(rows.codes, (slot, digit, k), low, W)
        if digit + 1 < rows.digits:
            eight = tirx.Broadcast(tirx.IntImm("int32", 8), W)
            left = keep(tirx.shift_right(left - tirx.Cast(f"int32x{W}", low), eight))


def _quantize_group(
    isa: Isa, spec: AffineSpec, source: Any, place: Any, rows: Rows, slot: Any, group: Any, length: int
) -> None:
    """One group of a row: whole multiples of a scale."""
    top = float(DIGITS_TOP if rows.digits == 3 else 127)
    count, begin = length // W, group * spec.group
    largest = _accumulators(count, 4)

    def widen(i: Any, unrolled: int) -> None:
        v = _intrinsic(f"float32x{W}", "llvm.fabs", E.load(source, (place, begin + i * W), W))
        E.store(largest, (unrolled, 0), _larger(v, E.load(largest, (unrolled, 0), W)), W)

    vectors(count, 4, widen)
    most = _total(largest, _larger)
    inverse = keep(tirx.Select(most > T.float32(0.0), T.float32(top) / most, T.float32(0.0)))
    scale = keep(most / T.float32(top))
    sums = _accumulators(count, 4)

    def narrow(i: Any, unrolled: int) -> None:
        k = begin + i * W
        v = keep(_rounded(isa, E.load(source, (place, k), W) * E.splat(inverse, W), rows.digits))
        if not rows.digits:
            E.store(rows.normed, (slot, k), v * E.splat(scale, W), W)
            return
        E.store(sums, (unrolled, 0), E.load(sums, (unrolled, 0), W) + v, W)
        _store_digits(v, rows, slot, k)

    vectors(count, 4, narrow)
    if rows.digits:
        T.buffer_store(rows.scales, scale, [slot, group])
        T.buffer_store(rows.sums, scale * _total(sums, lambda a, b: a + b), [slot, group])


def prepare(isa: Isa, spec: AffineSpec, operands: Operands, row: Any, rows: Rows, slot: Any) -> None:
    """Fill the place ``slot`` of the scratch from the row ``row`` of x: norm, low-rank product, rounding."""
    source, place = operands.x, row
    if rows.normed is not None:
        source, place = rows.normed, slot
    elif spec.norm or spec.length != spec.padded:
        source, place = T.alloc_buffer((1, spec.padded), "float32"), 0
    if source is not operands.x:
        _fill(spec, operands, row, source, place)
    if rows.low is not None:
        _low_rank(spec, operands, source, place, rows, slot)
    if not rows.digits and spec.activation_bits != 8:
        return
    if spec.groups > 1:
        with T.serial(0, spec.groups - 1) as group:
            _quantize_group(isa, spec, source, place, rows, slot, group, spec.group)
    _quantize_group(isa, spec, source, place, rows, slot, spec.groups - 1, spec.tail)


def _word(number: int) -> Any:
    return tirx.Broadcast(tirx.IntImm("uint32", number), TILE)


def decode_block(spec: AffineSpec, panels: Any, tile: Any, block: Any) -> list[Any]:
    """The eight quads of the inputs ``32 * block ..`` of a tile: u32 words, one lane a row.

    Byte j of the lane r of quad q holds the code of row r and input ``32*block + 4*q + j``.
    """
    loaded: dict[tuple[int, int], Any] = {}

    def part(plane: Plane, quad: int) -> Any:
        step, place = divmod(quad, plane.per)
        key = (plane.width, step)
        if key not in loaded:
            index = plane.offset + (block * (8 // plane.per) + step) * 64
            loaded[key] = keep(T.reinterpret(f"uint32x{TILE}", E.load(panels, (tile, index), 64)))
        word, shift = loaded[key], place * plane.width - plane.below
        if shift > 0:
            word = tirx.shift_right(word, _word(shift))
        elif shift < 0:
            word = tirx.shift_left(word, _word(-shift))
        if plane.width == 8:
            return word
        return tirx.bitwise_and(word, _word(((1 << plane.width) - 1 << plane.below) * 0x01010101))

    made = []
    for quad in range(8):
        first, *rest = (part(plane, quad) for plane in spec.planes)
        for other in rest:
            first = tirx.bitwise_or(first, other)
        made.append(keep(first))
    return made


def single(isa: Isa, half: Any) -> Any:
    """Finite f16 values in 16 lanes as f32."""
    if isa.lanes > 4:
        return tirx.Cast(f"float32x{TILE}", half)

    def widened(bits: Any) -> Any:
        magnitude = tirx.shift_left(tirx.bitwise_and(bits, _word(0x7FFF)), _word(13))
        sign = tirx.shift_left(tirx.bitwise_and(bits, _word(0x8000)), _word(16))
        value = T.reinterpret(f"float32x{TILE}", magnitude) * constant_vector(2.0**112)
        return T.reinterpret(f"float32x{TILE}", tirx.bitwise_or(T.reinterpret(f"uint32x{TILE}", value), sign))

    return bind(tirx.Cast(f"uint32x{TILE}", T.reinterpret(f"uint16x{TILE}", half)), widened)


def group_scale(isa: Isa, spec: AffineSpec, operands: Operands, tile: Any, group: Any) -> Any:
    """The scales of a group for the 16 rows of a tile, f32."""
    value = E.load(operands.scale, (tile, group, 0), TILE)
    return single(isa, value) if spec.scale == "float16" else value


def group_zero(isa: Isa, spec: AffineSpec, operands: Operands, tile: Any, group: Any) -> Any:
    """The zeros of a group for the 16 rows of a tile, f32."""
    if spec.zero == "number":
        return constant_vector(spec.zero_number)
    if spec.zero == "float":
        value = E.load(operands.zero, (tile, group, 0), TILE)
        return single(isa, value) if spec.zero_type == "float16" else value

    def byte(index: Any) -> Any:
        return tirx.Cast(f"int32x{TILE}", E.load(operands.zero, (tile, index, 0), TILE))

    if spec.bits == 8:
        return tirx.Cast(f"float32x{TILE}", byte(group))
    bit = group * spec.bits
    index, shift = bit // 8, bit % 8
    word = byte(index)
    if 8 % spec.bits:
        following = byte(tirx.min(index + 1, spec.zero_bytes - 1))
        word = tirx.bitwise_or(
            word, tirx.shift_left(following, tirx.Broadcast(tirx.IntImm("int32", 8), TILE))
        )
    word = tirx.shift_right(word, tirx.Broadcast(tirx.Cast("int32", shift), TILE))
    mask = tirx.Broadcast(tirx.IntImm("int32", (1 << spec.bits) - 1), TILE)
    return tirx.Cast(f"float32x{TILE}", tirx.bitwise_and(word, mask))


def _side(spec: AffineSpec, operands: Operands, rows: Rows, slot: Any, tile: Any, value: Any) -> Any:
    """``value`` plus the low-rank side of a tile, a variable."""
    if not spec.rank:
        return keep(value)
    total = registers(1, TILE)
    E.store(total, (0, 0), value, TILE)
    with T.serial(0, spec.rank) as j:
        low = E.splat(rows.low[slot, j], TILE)
        term = fma(low, E.load(operands.left, (tile, j, 0), TILE), E.load(total, (0, 0), TILE))
        E.store(total, (0, 0), term, TILE)
    return keep(E.load(total, (0, 0), TILE))


def finish(
    spec: AffineSpec,
    operands: Operands,
    row: Any,
    rows: Rows,
    slot: Any,
    tile: Any,
    value: Any,
    gate: Any = None,
) -> None:
    """The end of a tile of the result: low-rank side, bias, activation, gate, residual, store.

    ``value`` is f32 with one lane a row of the tile; ``gate`` is that of the tile ``tile + tiles // 2``, which
    multiplies the activated ``value``, if the layer is gated. ``row`` is the row of the result, ``slot`` of ``rows``.
    """
    value = _side(spec, operands, rows, slot, tile, value)
    if spec.gated:
        gate = _side(spec, operands, rows, slot, tile + spec.tiles // 2, gate)
    base = tile * TILE

    def ended(y: Any, second: Any, at: Any, lanes: int) -> Any:
        if spec.bias:
            y = y + E.load(operands.bias, (at,), lanes)
        y = ACTIVATIONS[spec.activation](y)
        if second is not None:
            if spec.bias:
                second = second + E.load(operands.bias, (at + spec.width,), lanes)
            y = y * second
        return y + E.load(operands.residual, (row, at), lanes) if spec.residual else y

    def whole() -> None:
        E.store(operands.out, (row, base), ended(value, gate, base, TILE), TILE)

    ragged = spec.outputs % TILE
    if not ragged:
        whole()
        return
    with T.If(tile < spec.outputs // TILE):
        with T.Then():
            whole()
        with T.Else():
            last = T.alloc_buffer((TILE,), "float32")
            E.store(last, (0,), value, TILE)
            with T.serial(0, ragged) as r:
                E.store(operands.out, (row, base + r), ended(last[r], None, base + r, 1), 1)
