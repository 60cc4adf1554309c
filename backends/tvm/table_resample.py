"""Resampling of images, with the arithmetic of torch: positions in f32 (f64 for f64)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from planish.backends.tvm.expressions import Call, Index, Reader, all_of, as_expression, cast, literal
from planish.backends.tvm.table import lowers

CUBIC = -0.75


def _clamped(place: Any, size: Any) -> Any:
    return tirx.max(tirx.min(place, as_expression(size) - 1), literal(0, "int64"))


def _whole(value: Any) -> Any:
    return tirx.Cast("int64", value)


@lowers("aten.upsample_nearest2d", form="index")
def _nearest(c: Call, index: Index, x: Reader, output: Sequence[Any]) -> Any:
    *lead, _, _ = index
    sizes = zip(index[-2:], x.node.shape[-2:], x.shape[-2:], output, strict=True)
    return x(*lead, *(_nearest_place(c, *each) for each in sizes))


def _nearest_place(c: Call, i: Any, length: Any, have: Any, want: Any) -> Any:
    """The place in the input, once for several images: TVM cannot lower numbers in f32 that it names itself."""

    def make() -> Any:
        ratio = cast(as_expression(have), "float32") / cast(as_expression(c.size(want)), "float32")
        at = c.let(cast(i, "float32") * ratio)
        return c.let(_clamped(_whole(tirx.floor(at)), have))

    return c.elements.shared(("nearest", length, want), (i,), make)


def _source(c: Call, i: Any, have: Any, want: Any, align: bool) -> Any:
    """The position in the input of a place of the result."""
    kind = c.dtype
    have, want = cast(as_expression(have), kind), cast(as_expression(c.size(want)), kind)
    one, half = literal(1, kind), literal(0.5, kind)
    if align:
        many = want > one
        ratio = tirx.Select(many, (have - one) / tirx.Select(many, want - one, one), literal(0, kind))
        return cast(i, kind) * ratio
    return (have / want) * (cast(i, kind) + half) - half


@lowers("aten.upsample_bilinear2d", form="index")
def _bilinear(c: Call, index: Index, x: Reader, output: Sequence[Any], align: bool) -> Any:
    *lead, _, _ = index
    taps = []
    for i, have, want in zip(index[-2:], x.shape[-2:], output, strict=True):
        at = c.let(tirx.max(_source(c, i, have, want, align), literal(0, c.dtype)))
        low = c.let(_clamped(_whole(tirx.floor(at)), have))
        share = c.let(at - cast(low, c.dtype))
        taps.append(((low, literal(1, c.dtype) - share), (_clamped(low + 1, have), share)))
    return _weighted(x, lead, taps)


def _weighted(x: Reader, lead: Sequence[Any], taps: Sequence[Any]) -> Any:
    total = None
    for row, share in taps[0]:
        line = None
        for column, part in taps[1]:
            value = x.wide(*lead, row, column) * part
            line = value if line is None else line + value
        total = line * share if total is None else total + line * share
    return total


def cubic_weights(t: Any, kind: str) -> list[Any]:
    """Weights of four neighbours at a distance ``t`` from the second."""
    a = literal(CUBIC, kind)
    n = {k: literal(k, kind) for k in (1, 2, 3, 4, 5, 8)}

    def near(v: Any) -> Any:
        return ((a + n[2]) * v - (a + n[3])) * v * v + n[1]

    def far(v: Any) -> Any:
        return ((a * v - n[5] * a) * v + n[8] * a) * v - n[4] * a

    return [far(t + n[1]), near(t), near(n[1] - t), far(n[2] - t)]


@lowers("aten.upsample_bicubic2d", form="index")
def _bicubic(c: Call, index: Index, x: Reader, output: Sequence[Any], align: bool) -> Any:
    *lead, _, _ = index
    taps = []
    for i, have, want in zip(index[-2:], x.shape[-2:], output, strict=True):
        at = c.let(_source(c, i, have, want, align))
        floor = c.let(tirx.floor(at))
        weights = [c.let(w) for w in cubic_weights(c.let(at - floor), c.dtype)]
        low = c.let(_whole(floor))
        taps.append([(_clamped(low + k - 1, have), w) for k, w in enumerate(weights)])
    return _weighted(x, lead, taps)


@lowers("aten.grid_sampler_2d", form="index")
def _grid_sample(
    c: Call, index: Index, x: Reader, grid: Reader, interpolation: int, padding: int, align: bool
) -> Any:
    batch, channel, row, column = index
    kind = c.dtype
    sizes = x.shape[-2:]
    raw = [grid.wide(batch, row, column, k) for k in (1, 0)]
    at = [c.let(_unnormalised(c.let(v), s, align, kind)) for v, s in zip(raw, sizes, strict=True)]

    def read(places: Sequence[Any]) -> Any:
        inside = all_of(
            [t for p, s in zip(places, sizes, strict=True) for t in (p >= 0, p < as_expression(s))]
        )
        held = [_clamped(p, s) for p, s in zip(places, sizes, strict=True)]
        return tirx.Select(inside, x.wide(batch, channel, *held), literal(0, kind))

    if interpolation != 2:
        at = [c.let(_placed(v, s, padding, align, kind)) for v, s in zip(at, sizes, strict=True)]
    if interpolation == 1:
        return read([_whole(tirx.nearbyint(v)) for v in at])
    floors = [c.let(tirx.floor(v)) for v in at]
    lows = [c.let(_whole(f)) for f in floors]
    shares = [c.let(v - f) for v, f in zip(at, floors, strict=True)]
    one = literal(1, kind)
    if interpolation == 0:
        total = literal(0, kind)
        for dy in (0, 1):
            for dx in (0, 1):
                share = (shares[0] if dy else one - shares[0]) * (shares[1] if dx else one - shares[1])
                total = total + read([lows[0] + dy, lows[1] + dx]) * share
        return total
    weights = [[c.let(w) for w in cubic_weights(s, kind)] for s in shares]
    total = literal(0, kind)
    for dy in range(4):
        line = literal(0, kind)
        for dx in range(4):
            places = [floors[0] + literal(dy - 1, kind), floors[1] + literal(dx - 1, kind)]
            held = [_whole(_placed(p, s, padding, align, kind)) for p, s in zip(places, sizes, strict=True)]
            line = line + read(held) * weights[1][dx]
        total = total + line * weights[0][dy]
    return total


def _unnormalised(v: Any, size: Any, align: bool, kind: str) -> Any:
    size, one, half = cast(as_expression(size), kind), literal(1, kind), literal(0.5, kind)
    return (v + one) * half * (size - one) if align else ((v + one) * size - one) * half


def _placed(v: Any, size: Any, padding: int, align: bool, kind: str) -> Any:
    """A position moved into the image; ``padding`` is 0 (zeros), 1 (border) or 2 (reflection)."""
    if padding == 0:
        return v
    top = cast(as_expression(size), kind) - literal(1, kind)
    if padding == 2:
        v = _reflected(v, size, align, kind)
    return tirx.max(tirx.min(v, top), literal(0, kind))


def _reflected(v: Any, size: Any, align: bool, kind: str) -> Any:
    size, zero, half = cast(as_expression(size), kind), literal(0, kind), literal(0.5, kind)
    low = zero if align else zero - half
    span = size - literal(1, kind) if align else size
    away = tirx.abs(v - low)
    safe = tirx.Select(span > zero, span, literal(1, kind))
    turns = tirx.floor(away / safe)
    rest = away - turns * safe
    odd = tirx.floor(turns * half) * literal(2, kind)
    found = tirx.Select(tirx.EQ(turns, odd), rest + low, safe - rest + low)
    return tirx.Select(span > zero, found, zero)
