"""Where the axes of operands go: the transfer rules behind every statement about a sequence.

A route says for each axis of an operand which axis of the result it becomes, row by row: row i of the result depends
on row i of the operand and on no other one. ``None`` says that rows are mixed, or that the axis is consumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from planish.ir.dialect import operation
from planish.ir.node import Node
from planish.ir.types import Size, equal, product, size, symbols_of

Route: TypeAlias = "tuple[int | None, ...]"
Routes: TypeAlias = "dict[Node, list[Route]]"


def routes(node: Node) -> list[tuple[Node, Route]] | None:
    """For every operand, in order, its route; None for an operation without a rule."""
    if operation(node.op).pointwise or node.op in ALIGNED:
        return [(o, aligned(o, node)) for o in node.operands]
    rule = RULES.get(node.op)
    return rule(node) if rule is not None else None


def aligned(operand: Node, node: Node) -> Route:
    """Axes counted from the last one, as in broadcasting; an axis of one row is no axis of rows."""
    shift = node.rank - operand.rank
    return tuple(i + shift for i in range(operand.rank))


def mixed(operand: Node) -> Route:
    """Every axis is consumed."""
    return (None,) * operand.rank


def _but(node: Node, operand: Node, axes: Any) -> Route:
    """All axes stay where they are, but rows along some are mixed."""
    hidden = {a % max(operand.rank, 1) for a in axes}
    return tuple(None if i in hidden else i for i in range(operand.rank))


def _along(place: int) -> Callable[[Node], list[tuple[Node, Route]]]:
    """Operations that mix rows along the axis in argument ``place`` and keep all axes."""
    return lambda node: [(node.args[0], _but(node, node.args[0], (node.args[place],)))]


def _reduction(node: Node) -> list[tuple[Node, Route]]:
    x, dims = node.args[0], node.args[1]
    gone = {dims} if isinstance(dims, int) else set(dims)
    route: list[int | None] = []
    for i in range(x.rank):
        left = i if node.args[-1] is True else i - sum(d < i for d in gone)
        route.append(None if i in gone else left)
    return [(x, tuple(route))]


def _normalisation(node: Node) -> list[tuple[Node, Route]]:
    x = node.args[0]
    first = x.rank - len(node.args[1])
    return [(x, _but(node, x, range(first, x.rank)))] + [(o, mixed(o)) for o in node.operands[1:]]


def _linear(node: Node) -> list[tuple[Node, Route]]:
    x = node.args[0]
    return [(x, _but(node, x, (x.rank - 1,)))] + [(o, mixed(o)) for o in node.operands[1:]]


def _matmul(node: Node) -> list[tuple[Node, Route]]:
    a, b = node.args
    if min(a.rank, b.rank) < 2:
        return [(a, mixed(a)), (b, mixed(b))]
    left, right = aligned(a, node), aligned(b, node)
    return [(a, (*left[:-1], None)), (b, (*right[:-2], None, right[-1]))]


def _permute(node: Node) -> list[tuple[Node, Route]]:
    x, dims = node.args
    return [(x, tuple(dims.index(i) for i in range(x.rank)))]


def _slice(node: Node) -> list[tuple[Node, Route]]:
    x, dim = node.args[:2]
    whole = equal(node.shape[dim], x.shape[dim])
    return [(x, tuple(i if i != dim or whole else None for i in range(x.rank)))]


def _cat(node: Node) -> list[tuple[Node, Route]]:
    return [(x, _but(node, x, (node.args[1],))) for x in node.args[0]]


def _pad(node: Node) -> list[tuple[Node, Route]]:
    x = node.args[0]
    return [(x, tuple(i if equal(node.shape[i], x.shape[i]) else None for i in range(x.rank)))]


def _embedding(node: Node) -> list[tuple[Node, Route]]:
    table, ids = node.args
    return [(table, mixed(table)), (ids, tuple(range(ids.rank)))]


def _gather(node: Node) -> list[tuple[Node, Route]]:
    x, dim, index = node.args
    return [
        (x, tuple(i if i != dim and equal(x.shape[i], index.shape[i]) else None for i in range(x.rank))),
        (index, tuple(range(index.rank))),
    ]


def _scatter(node: Node) -> list[tuple[Node, Route]]:
    x, dim, index, source = node.args[:4]
    return [(x, _but(node, x, (dim,)))] + [
        (o, tuple(i if i != dim and equal(o.shape[i], x.shape[i]) else None for i in range(o.rank)))
        for o in (index, source)
    ]


def _index_select(node: Node) -> list[tuple[Node, Route]]:
    x, dim, index = node.args
    return [(x, _but(node, x, (dim,))), (index, (dim,))]


def _index(node: Node) -> list[tuple[Node, Route]]:
    """Lists of places along one axis, or along the first ones."""
    x, indices = node.args
    given = [i for i, index in enumerate(indices) if index is not None]
    lists = [indices[i] for i in given]
    if given != list(range(given[0], given[-1] + 1)):
        return [(o, mixed(o)) for o in node.operands]
    rank = max(index.rank for index in lists)
    first, last = given[0], given[-1]
    stays = tuple(i if i < first else None if i <= last else i + rank - len(given) for i in range(x.rank))
    return [
        (x, stays),
        *((index, tuple(first + rank - index.rank + i for i in range(index.rank))) for index in lists),
    ]


def _attention(node: Node) -> list[tuple[Node, Route]]:
    """Rows of q; keys and values are consumed; a mask by its queries."""
    q, k, v, mask = node.args[:4]
    made = [(q, (*range(q.rank - 1), None)), (k, mixed(k)), (v, mixed(v))]
    return made if mask is None else [*made, (mask, (*aligned(mask, node)[:-1], None))]


def _rotation(node: Node) -> list[tuple[Node, Route]]:
    x, cos, sin = node.args[:3]
    made: list[tuple[Node, Route]] = [(x, (*range(x.rank - 1), None))]
    return [*made, *((o, (*aligned(o, node)[:-1], None)) for o in (cos, sin))]


def _view(node: Node) -> list[tuple[Node, Route]]:
    return [(node.args[0], view_route(node.args[0].shape, node.shape))]


def view_route(before: tuple[Size, ...], after: tuple[Size, ...]) -> Route:
    """Axes that stay axes of their own in another view, or become the fast part of a longer one (and back).

    An axis is known again by the elements that lie behind each of its rows. In ``[B, T, d]`` and ``[B*T, d]`` the
    rows of T are those of the longer axis, as long as B and T are told apart by what reads them.
    """
    places = {}
    for j in reversed(range(len(after))):
        inner = product(after[j + 1 :])
        if after[j] != 1:
            places[inner] = j
    route: list[int | None] = []
    for i, length in enumerate(before):
        inner = product(before[i + 1 :])
        place = places.get(inner)
        route.append(None if length == 1 or place is None or not _shares(length, after[place]) else place)
    return tuple(route)


def follow(
    before: tuple[Size, ...], after: tuple[Size, ...], axis: int, inner: Size, length: Any
) -> tuple[int, Size] | None:
    """Where the rows of a sequence are in another view: the axis, and how many elements of it each row has.

    ``inner`` is that number for ``axis`` of the shape ``before``: 1 for ``[B*T, 2]``, 2 once that is ``[2*B*T]``.
    """
    step = product((inner, *before[axis + 1 :]))
    for j in range(len(after)):
        behind = product(after[j + 1 :])
        if whole_multiple(step, behind) and whole_multiple(
            product((behind, after[j])), product((step, length))
        ):
            return j, size(size_ratio(step, behind))
    return None


def whole_multiple(a: Size, b: Size) -> bool:
    """True if ``a`` is surely a whole multiple of ``b``."""
    ratio = size_ratio(a, b)
    if symbols_of(ratio):
        return bool(ratio.is_polynomial()) and all(c.is_integer for c in ratio.as_poly().coeffs())
    return bool(float(ratio).is_integer())


def _shares(a: Size, b: Size) -> bool:
    """True if one length is a whole multiple of the other one."""
    return whole_multiple(a, b) or whole_multiple(b, a)


def size_ratio(a: Size, b: Size) -> Any:
    """``a / b`` as sympy simplifies it."""
    import sympy

    return sympy.cancel(sympy.sympify(a) / sympy.sympify(b)) if b != 0 else sympy.Integer(0)


def _first_only(node: Node) -> list[tuple[Node, Route]]:
    """Layers over channels and space: only the batch is rows."""
    x = node.operands[0]
    return [(x, (0, *mixed(x)[1:]))] + [(o, mixed(o)) for o in node.operands[1:]]


def _none(node: Node) -> list[tuple[Node, Route]]:
    return [(o, mixed(o)) for o in node.operands]


ALIGNED = frozenset({"aten.expand", "planish.fake_quantize"})
"""Operations besides the pointwise ones whose axes line up from the last one."""

RULES: dict[str, Callable[[Node], list[tuple[Node, Route]]]] = {
    "aten.linear": _linear,
    "aten.matmul": _matmul,
    "aten.permute": _permute,
    "aten.slice": _slice,
    "aten.cat": _cat,
    "aten.pad": _pad,
    "aten.view": _view,
    "aten.embedding": _embedding,
    "aten.gather": _gather,
    "aten.index_select": _index_select,
    "aten.index": _index,
    "aten.rms_norm": _normalisation,
    "aten.layer_norm": _normalisation,
    "planish.attention": _attention,
    "aten.scaled_dot_product_attention": _attention,
    "planish.rope": _rotation,
    "aten.arange": _none,
    "aten.full": _none,
    "planish.unpack": _none,
    "planish.dequant": _none,
    "planish.expand_nm": _none,
    **dict.fromkeys(("aten.softmax", "aten.log_softmax", "aten.cumsum", "aten.cumprod", "aten.argsort"), _along(1)),
    **dict.fromkeys(("aten.flip",), lambda node: [(node.args[0], _but(node, node.args[0], node.args[1]))]),
    "planish.sort_values": _along(1),
    "planish.topk_values": _along(2),
    "planish.topk_indices": _along(2),
    **dict.fromkeys(
        (
            "aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.logsumexp", "aten.var", "aten.prod", "aten.any",
            "aten.all", "aten.argmax", "aten.argmin",
        ),
        _reduction,
    ),
    **dict.fromkeys(("aten.scatter", "aten.scatter_add", "aten.scatter_reduce"), _scatter),
    **dict.fromkeys(("aten.convolution", "aten.group_norm", "aten.batch_norm"), _first_only),
}  # fmt: skip


def rows_of(shape: tuple[Size, ...], length: Any) -> tuple[int, ...]:
    """The axes of a shape whose sizes follow a symbol."""
    return tuple(i for i, s in enumerate(shape) if length in symbols_of(size(s)))
