"""Writing rows to caches and attention over caches, by standard operators: right for every layout and batch."""

from __future__ import annotations

from planish.backends.ort.graph import Graph
from planish.backends.ort.table import Call, lowers
from planish.ir.types import Size, TensorType, bounds, equal

_SELECTABLE = "f32 f64 i8 i32 i64 u8"
_WIDER = {"i16": "i32", "u16": "i32", "u32": "i64", "u64": "i64", "bool": "u8"}


@lowers("planish.put")
def _put(c: Call, cache: str, new: str, start: str, count: str, ring: bool) -> str:
    """Rows that are not to be written replace themselves, so that one write to distinct places does all."""
    cache_type, rows = c.type(0), c.shape(1)[-2]
    g, capacity = c.graph, cache_type.shape[-2]
    number = g.size(rows)
    order = _row(g, _range(g, None, number))
    if not (isinstance(capacity, int) and bounds(rows)[1] <= capacity):
        number = g.op("Min", number, g.size(capacity))
        new, order = _last(c, new, count, number, ring)
    places, valid = _places(g, order, start, count, capacity, ring)
    index = _index(g, cache_type, places, number)
    lead = cache_type.rank - 3
    chosen = _column(g, valid, lead)
    rows_now = select(g, chosen, new, g.op("GatherND", cache, index), cache_type.dtype.name)
    return g.op("ScatterND", cache, index, rows_now)


def row_index(g: Graph, cache: TensorType, places: str) -> str:
    """The index of the row ``places[b, i]`` of each sequence of a cache ``[B, ..., C, D]``, ``i64[B, ..., S, n]``."""
    return _index(g, cache, places, g.op("Shape", places, start=1, end=2))


def select(g: Graph, chosen: str, a: str, b: str, kind: str) -> str:
    """``where(chosen, a, b)`` of any element type; types without a kernel go through one that holds them."""
    if kind in _SELECTABLE.split():
        return g.op("Where", chosen, a, b)
    wide = _WIDER.get(kind, "f32")
    return g.cast(g.op("Where", chosen, g.cast(a, wide), g.cast(b, wide)), kind)


def _last(c: Call, new: str, count: str, number: str, ring: bool) -> tuple[str, str]:
    """Of more new rows than the cache has, those that may stay, with their order among the new ones."""
    g, shape = c.graph, c.shape(1)
    order, rank = _row(g, _range(g, None, number)), len(shape)
    if not ring:
        return g.op("Slice", new, g.ints(0), number, g.ints(rank - 2)), order
    room = g.size(c.shape()[-2])
    order = g.op("Add", g.op("Unsqueeze", g.op("Max", g.op("Sub", count, room), g.ints(0)), g.ints(1)), order)
    rows = g.op("Min", order, g.op("Sub", g.size(shape[-2]), g.ints(1)))
    lead = g.op("Concat", g.sizes(shape[:-2]), number, g.ints(1), axis=0)
    index = g.op("Expand", _column(g, rows, rank - 3), lead)
    return g.op("GatherND", new, index, batch_dims=rank - 2), order


def _places(g: Graph, order: str, start: str, count: str, capacity: Size, ring: bool) -> tuple[str, str]:
    """Where rows go, and which of them: both ``[B, S]``. Places of rows that go nowhere are distinct, too."""
    one, room = g.ints(1), g.size(capacity)
    places = g.op("Add", g.op("Unsqueeze", start, one), order)
    valid = g.op("Less", order, g.op("Unsqueeze", count, one))
    if not ring:
        valid = g.op("And", valid, g.op("Less", places, room))
    return g.op("Mod", places, room), valid


def _index(g: Graph, cache: TensorType, places: str, number: str) -> str:
    lead = cache.shape[:-2]
    whole = g.op("Concat", g.sizes(lead), number, g.ints(1), axis=0)
    columns = []
    for axis, size in enumerate(lead):
        steps = g.op("Reshape", _range(g, None, g.size(size)), g.ints(-1, *[1] * (len(lead) - axis + 1)))
        columns.append(g.op("Expand", steps, whole))
    columns.append(g.op("Expand", _column(g, places, len(lead) - 1), whole))
    return g.op("Concat", *columns, axis=len(lead) + 1)


@lowers("planish.attend")
def _attend(
    c: Call, q: str, k: str, v: str, start: str, count: str, bias: str | None, window: Size | None,
    scale: float | None, softcap: float | None, ring: bool,
) -> str:  # fmt: skip
    """Attention over the rows that are in use; what others hold takes part in nothing."""
    g, kind, (batch, heads, rows, _), keys = c.graph, c.dtype.name, c.shape(), c.shape(1)
    capacity, alone = keys[2], equal(batch, 1)
    one = g.ints(1)
    end = g.op("Add", start, count)
    used = g.op("Min", g.op("Max", _extreme(g, "Max", end, alone), one), g.size(capacity))
    begin = g.ints(0)
    if window is not None and not ring:
        first = g.op("Sub", g.op("Add", _extreme(g, "Min", start, alone), one), g.size(window))
        begin = g.op("Min", g.op("Max", first, begin), g.op("Sub", used, one))
    k, v = (g.op("Slice", each, begin, used, g.ints(2)) for each in (k, v))
    q, k, v = (each if kind == "f32" else g.cast(each, "f32") for each in (q, k, v))
    ends = g.op("Unsqueeze", end, one)
    held = _row(g, _range(g, begin, used))
    present = g.op("Less", held, ends)
    if ring:
        last = g.op("Sub", ends, one)
        held = g.op("Sub", last, g.op("Mod", g.op("Sub", last, held), g.size(capacity)))
        present = g.op("GreaterOrEqual", held, g.ints(0))
    if not alone:
        mine = _column(g, present, 1)
        k, v = (g.op("Where", mine, each, g.constant(0, "f32")) for each in (k, v))
    grouped = equal(rows, 1) and heads != keys[1]
    mask = None
    if not (alone and equal(rows, 1) and not ring and window is None and bias is None):
        seen = _seen(c, start, held, present, window)
        mask = seen if bias is None else _biased(c, bias, seen, begin, used)
    if grouped:
        q = g.reshape(q, c.shape(), (batch, keys[1], heads // keys[1], keys[3]))
        mask = None if mask is None else _grouped(c, mask, bias)
    out = g.op("Attention", q, k, v, mask, scale=scale, softcap=softcap or None)
    if grouped:
        have = (batch, keys[1], heads // keys[1], c.node.shape[3])
        out = g.reshape(out, have, c.node.shape)
    return out if kind == "f32" else g.cast(out, kind)


def _seen(c: Call, start: str, held: str, present: str, window: Size | None) -> str:
    """Which rows of the caches each query sees, ``bool[B, 1, S, U]``."""
    g = c.graph
    queries = g.op("Add", g.op("Unsqueeze", start, g.ints(1)), _row(g, _range(g, None, g.size(c.shape()[2]))))
    queries, keys = g.op("Unsqueeze", queries, g.ints(1, 3)), g.op("Unsqueeze", held, g.ints(1, 2))
    seen = g.op("And", g.op("LessOrEqual", keys, queries), g.op("Unsqueeze", present, g.ints(1, 2)))
    if window is not None:
        seen = g.op("And", seen, g.op("Less", g.op("Sub", queries, keys), g.size(window)))
    return seen


def _biased(c: Call, bias: str, seen: str, begin: str, used: str) -> str:
    """The bias of the rows in use, together with what is seen."""
    g, kind = c.graph, c.type(5)
    if kind.rank and not equal(kind.shape[-1], 1):
        bias = g.op("Slice", bias, begin, used, g.ints(kind.rank - 1))
    if kind.dtype.kind == "bool":
        return g.op("And", seen, bias)
    bias = bias if kind.dtype.name == "f32" else g.cast(bias, "f32")
    return g.op("Where", seen, bias, g.constant(float("-inf"), "f32"))


def _grouped(c: Call, mask: str, bias: str | None) -> str:
    """The mask ``[B, 1 or H, 1, U]`` for queries ``[B, Hk, H / Hk, D]``."""
    g, keys = c.graph, c.shape(1)[1]
    group = c.shape()[1] // keys
    per_head = bias is not None and c.type(5).rank > 2 and not equal(c.type(5).shape[-3], 1)
    ends = g.op("Shape", mask, start=3, end=4)
    lead = g.op("Shape", mask, start=0, end=1)
    if per_head:
        return g.op("Reshape", mask, g.op("Concat", lead, g.sizes((keys, group)), ends, axis=0))
    return g.op("Expand", mask, g.op("Concat", lead, g.ints(1), g.size(group), ends, axis=0))


@lowers("planish.attend_parallel")
def _attend_parallel(
    c: Call, q: str, k: str, v: str, start: str, count: str, first: str, last: str, temperature: str, share: str,
    scale: float | None, softcap: float | None,
) -> str:  # fmt: skip
    """One softmax: scores of contexts are divided by the temperature, and shifted by their log-sum-exp."""
    g, (batch, heads, rows, width), (_, groups, capacity, deep) = c.graph, c.shape(), c.shape(2)
    wide = "f64" if c.dtype.name == "f64" else "f32"
    zero, nothing = g.constant(0, wide), g.constant(float("-inf"), wide)
    end = g.op("Add", start, count)
    used = g.op("Min", g.op("Max", _extreme(g, "Max", end, equal(batch, 1)), g.ints(1)), g.size(capacity))
    k, v = (g.op("Slice", x, g.ints(0), used, g.ints(2)) for x in (k, v))
    q, k, v = (g.cast(x, wide) for x in (q, k, v))
    held = _row(g, _range(g, None, used))
    present = g.op("Less", held, g.op("Unsqueeze", end, g.ints(1)))
    v = g.op("Where", _column(g, present, 1), v, zero)
    q = g.reshape(q, c.shape(), (batch, groups, heads // groups, rows, width))
    k, v = (g.op("Unsqueeze", x, g.ints(2)) for x in (k, v))
    seen = g.op("Unsqueeze", _seen(c, start, held, present, None), g.ints(1))
    context = g.op(
        "And",
        *(
            g.op(kind, held, g.op("Unsqueeze", x, g.ints(1)))
            for kind, x in (("GreaterOrEqual", first), ("Less", last))
        ),
    )
    context = g.op("Unsqueeze", context, g.ints(1, 2, 3))
    temperature, share = (
        g.cast(g.op("Unsqueeze", x, g.ints(1, 2, 3, 4)), wide) for x in (temperature, share)
    )
    factor = width**-0.5 if scale is None else scale
    scores = g.op(
        "MatMul", g.op("Mul", q, g.constant(factor, wide)), g.op("Transpose", k, perm=[0, 1, 2, 4, 3])
    )
    if softcap is not None:
        cap = g.constant(softcap, wide)
        scores = g.op("Mul", g.op("Tanh", g.op("Div", scores, cap)), cap)
    cool = g.op("Div", scores, temperature)
    inner = g.op("Where", g.op("And", seen, context), cool, nothing)
    inner = g.op(
        "Where", _empty(g, inner, nothing), zero, g.op("ReduceLogSumExp", inner, g.ints(4), keepdims=1)
    )
    shift = g.op("Mul", g.op("Sub", g.op("Mul", temperature, share), g.constant(1, wide)), inner)
    scores = g.op("Where", context, g.op("Add", cool, shift), scores)
    scores = g.op("Where", seen, scores, nothing)
    out = g.op("MatMul", g.op("Softmax", scores, axis=4), v)
    out = g.op("Where", _empty(g, scores, nothing), zero, out)
    return g.cast(g.reshape(out, (batch, groups, heads // groups, rows, deep), c.node.shape), c.node.dtype)


def _empty(g: Graph, scores: str, nothing: str) -> str:
    """Which queries have no score at all."""
    return g.op("Equal", g.op("ReduceMax", scores, g.ints(4), keepdims=1), nothing)


def _extreme(g: Graph, which: str, value: str, alone: bool) -> str:
    """The largest or smallest of ``i64[B]`` as ``i64[1]``."""
    return value if alone else g.op(f"Reduce{which}", value, g.ints(0), keepdims=1)


def _range(g: Graph, begin: str | None, end: str) -> str:
    """``begin .. end - 1``, both ``i64[1]``."""
    first = g.constant(0, "i64") if begin is None else g.op("Squeeze", begin, g.ints(0))
    return g.op("Range", first, g.op("Squeeze", end, g.ints(0)), g.constant(1, "i64"))


def _row(g: Graph, value: str) -> str:
    return g.op("Unsqueeze", value, g.ints(0))


def _column(g: Graph, value: str, lead: int) -> str:
    """``[B, S]`` as ``[B, 1, ..., S, 1]`` with ``lead`` axes in between."""
    return g.op("Unsqueeze", value, g.ints(*range(1, 1 + lead), 2 + lead))
