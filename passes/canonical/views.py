"""Exact equations of views, slices and joins."""

from __future__ import annotations

from typing import Any

from planish.ir.namespace import aten
from planish.ir.node import Node, input_leaf
from planish.ir.parser import parse_type
from planish.ir.rule import Decline, rule
from planish.ir.types import DType, Size, at_least, dtype, equal, minimum, size
from planish.passes.canonical.terms import require, single, typed

X = "f32[2, 3, 4]"


def _given(name: str, kind: str) -> Node:
    return input_leaf(name, parse_type(kind))


# Views


@rule(lambda x, s: aten.view(x, s), example={"x": "f32[T, 3]", "s": parse_type("f32[T, 3]").shape})
def view_same(x: Node, s: Any) -> Node:
    """view(x, s) = x if x has shape s"""
    require(x.shape == s, "the shape changes")
    return x


@rule(lambda x, s, t: aten.view(aten.view(x, s), t), example={"x": X, "s": (6, 4), "t": (24,)})
def view_view(x: Node, s: Any, t: Any) -> Node:
    """view(view(x, s), t) = view(x, t)"""
    return aten.view(x, t)


@rule(lambda x, p: aten.permute(x, p), example={"x": X, "p": (0, 1, 2)})
def permute_same(x: Node, p: Any) -> Node:
    """permute(x, [0, 1, ..]) = x"""
    require(p == tuple(range(x.rank)), "the order changes")
    return x


@rule(lambda x, p, q: aten.permute(aten.permute(x, p), q), example={"x": X, "p": (2, 0, 1), "q": (1, 0, 2)})
def permute_permute(x: Node, p: Any, q: Any) -> Node:
    """permute(permute(x, p), q) = permute(x, p[q])"""
    return aten.permute(x, [p[i] for i in q])


@rule(lambda x, p: aten.permute(x, p), example={"x": "f32[2, 1, 4]", "p": (1, 0, 2)})
def permute_single(x: Node, p: Any) -> Node:
    """permute(x, p) = view(x, s) if only axes of size one move"""
    moving = [i for i in p if not single(x.shape[i])]
    require(moving == sorted(moving), "an axis that may be longer than one moves")
    return aten.view(x, [x.shape[i] for i in p])


@rule(lambda x, s: aten.expand(x, s), example={"x": X, "s": (2, 3, 4)})
def expand_same(x: Node, s: Any) -> Node:
    """expand(x, s) = x if x has shape s"""
    require(x.shape == s, "the shape changes")
    return x


@rule(lambda x, s: aten.expand(x, s), example={"x": X, "s": (1, 2, 3, 4)})
def expand_single(x: Node, s: Any) -> Node:
    """expand(x, s) = view(x, s) if it only adds axes of size one"""
    added = s[: len(s) - x.rank]
    require(all(map(single, added)) and s[len(added) :] == x.shape, "elements are repeated")
    return aten.view(x, s)


@rule(
    lambda x, s, t: aten.expand(aten.expand(x, s), t), example={"x": "f32[3, 1]", "s": (3, 4), "t": (2, 3, 4)}
)
def expand_expand(x: Node, s: Any, t: Any) -> Node:
    """expand(expand(x, s), t) = expand(x, t)"""
    return aten.expand(x, t)


# Slices


@rule(lambda x, d, a, b: aten.slice(x, d, a, b, 1), example={"x": X, "d": 1, "a": 0, "b": 3})
def slice_all(x: Node, d: int, a: Any, b: Any) -> Node:
    """x[0:n] = x if the axis has n elements"""
    require(equal(a, 0) and equal(b, x.shape[d]), "the slice leaves something out")
    return x


@rule(lambda x, d, a, b, s, e, f, t: aten.slice(aten.slice(x, d, a, b, s), d, e, f, t),
      example={"x": "f32[2, 32]", "d": 1, "a": 3, "b": 30, "s": 2, "e": 2, "f": 11, "t": 3})  # fmt: skip
def slice_slice(x: Node, d: int, a: Any, b: Any, s: int, e: Any, f: Any, t: int) -> Node:
    """x[a:b:s][e:f:t] = x[a + e*s : a + f*s : s*t]"""
    end = minimum(size(a + f * s), b)
    both = aten.slice(x, d, size(a + e * s), end, s * t)
    return typed(both, aten.slice(aten.slice(x, d, a, b, s), d, e, f, t))


@rule(lambda x, y, d, a, b: aten.slice_scatter(x, y, d, a, b, 1),
      example={"x": X, "y": X, "d": 1, "a": 0, "b": 3})  # fmt: skip
def slice_scatter_all(x: Node, y: Node, d: int, a: Any, b: Any) -> Node:
    """x[0:n] := y gives y if the axis has n elements: slice_scatter(x, y, 0, n) = y"""
    require(equal(a, 0) and equal(b, x.shape[d]), "something of the old value remains")
    return y


@rule(lambda xs, d, a, b, t: aten.slice(aten.cat(xs, d), d, a, b, t),
      example={"xs": (_given("x", "f32[2, 3]"), _given("y", "f32[2, 4]"), _given("z", "f32[2, 5]")), "d": 1,
               "a": 4, "b": 7, "t": 1})  # fmt: skip
def slice_cat(xs: Any, d: int, a: Any, b: Any, t: int) -> Node:
    """cat(x, y, z)[a:b] = y[a-n : b-n] if the range lies in y, which begins at n; or cat of those it covers"""
    left = aten.slice(aten.cat(xs, d), d, a, b, t)
    edges: list[Size] = [0]
    for x in xs:
        edges.append(size(edges[-1] + x.shape[d]))
    for x, low, high in zip(xs, edges[:-1], edges[1:], strict=True):
        if at_least(a, low) and at_least(high, b):
            return typed(aten.slice(x, d, size(a - low), size(b - low), t), left)
    starts = [i for i, edge in enumerate(edges) if equal(edge, a)]
    ends = [i for i, edge in enumerate(edges) if equal(edge, b)]
    if t == 1 and starts and ends and 0 < ends[0] - starts[0] < len(xs):
        return typed(aten.cat(xs[starts[0] : ends[0]], d), left)
    raise Decline("the range crosses parts")


# Joins


@rule(lambda x, d: aten.cat([x], d), example={"x": X, "d": 1})
def cat_one(x: Node, d: int) -> Node:
    """cat(x) = x"""
    return x


@rule(lambda xs, d: aten.cat(xs, d),
      example={"xs": (aten.cat((_given("x", X), _given("y", X)), 1), _given("z", X)), "d": 1})  # fmt: skip
def cat_cat(xs: Any, d: int) -> Node:
    """cat(cat(x, y), z) = cat(x, y, z)"""
    require(any(_joined(x, d) for x in xs), "no part is a join")
    return aten.cat([part for x in xs for part in (x.args[0] if _joined(x, d) else (x,))], d)


def _joined(x: Node, d: int) -> bool:
    return x.op == "aten.cat" and x.args[1] == d


@rule(lambda xs, d: aten.cat(xs, d), example={"xs": (_given("x", X), _given("e", "f32[2, 0, 4]")), "d": 1})
def cat_empty(xs: Any, d: int) -> Node:
    """cat(x, e) = x if e has no elements"""
    kept = [x for x in xs if not equal(x.shape[d], 0)]
    require(0 < len(kept) < len(xs), "no part is empty")
    return aten.cat(kept, d)


@rule(lambda xs, d: aten.cat(xs, d),
      example={"xs": (aten.slice(_given("x", X), 2, 0, 1), aten.slice(_given("x", X), 2, 1, 4)), "d": 2})  # fmt: skip
def cat_slices(xs: Any, d: int) -> Node:
    """cat(x[a:b], x[b:c]) = x[a:c]"""
    parts = list(xs[:1])
    for x in xs[1:]:
        last = parts[-1]
        if (
            _part_of(last, d)
            and _part_of(x, d)
            and last.args[0] is x.args[0]
            and equal(last.args[3], x.args[2])
        ):
            parts[-1] = aten.slice(x.args[0], d, last.args[2], x.args[3])
        else:
            parts.append(x)
    require(len(parts) < len(xs), "no two neighbours are adjacent slices of one tensor")
    return typed(aten.cat(parts, d), aten.cat(xs, d))


def _part_of(x: Node, d: int) -> bool:
    return x.op == "aten.slice" and x.args[1] == d and x.args[4] == 1


# Flips and padding


@rule(lambda x, d: aten.flip(x, d), example={"x": "f32[2, 1, 4]", "d": (1,)})
def flip_single(x: Node, d: Any) -> Node:
    """flip(x, d) = x if the axes d have size one"""
    kept = [i for i in d if not single(x.shape[i])]
    require(len(kept) < len(d) or not d, "an axis may be longer than one")
    return aten.flip(x, kept) if kept else x


@rule(lambda x, d, e: aten.flip(aten.flip(x, d), e), example={"x": X, "d": (0, 1), "e": (1, 2)})
def flip_flip(x: Node, d: Any, e: Any) -> Node:
    """flip(flip(x, d), e) = flip(x, d ^ e)"""
    left = sorted(set(d) ^ set(e))
    return aten.flip(x, left) if left else x


@rule(lambda x, n, m, v: aten.pad(x, n, m, v), example={"x": X, "n": (0, 0), "m": "constant", "v": 0.0})
def pad_nothing(x: Node, n: Any, m: str, v: Any) -> Node:
    """pad(x, [0, 0, ..]) = x"""
    require(all(equal(each, 0) for each in n), "something is added")
    return x


# Constants without data


@rule(lambda s, v, e, t: aten.view(aten.full(s, v, e), t),
      example={"s": (2, 3), "v": 1.5, "e": dtype("f32"), "t": (6,)})  # fmt: skip
def view_full(s: Any, v: Any, e: DType, t: Any) -> Node:
    """view(full(s, v), t) = full(t, v)"""
    return aten.full(t, v, e)


@rule(lambda s, v, e, t: aten.expand(aten.full(s, v, e), t),
      example={"s": (1, 3), "v": 1.5, "e": dtype("f32"), "t": (2, 3)})  # fmt: skip
def expand_full(s: Any, v: Any, e: DType, t: Any) -> Node:
    """expand(full(s, v), t) = full(t, v)"""
    return aten.full(t, v, e)


@rule(lambda s, v, e, p: aten.permute(aten.full(s, v, e), p),
      example={"s": (2, 3), "v": 1.5, "e": dtype("f32"), "p": (1, 0)})  # fmt: skip
def permute_full(s: Any, v: Any, e: DType, p: Any) -> Node:
    """permute(full(s, v), p) = full(s[p], v)"""
    return aten.full([s[i] for i in p], v, e)


@rule(lambda s, v, e, d, a, b, t: aten.slice(aten.full(s, v, e), d, a, b, t),
      example={"s": (2, 9), "v": 1.5, "e": dtype("f32"), "d": 1, "a": 2, "b": 8, "t": 2})  # fmt: skip
def slice_full(s: Any, v: Any, e: DType, d: int, a: Any, b: Any, t: int) -> Node:
    """full(s, v)[a:b:t] = full(s', v) with the length of the slice"""
    return aten.full(aten.slice(aten.full(s, v, e), d, a, b, t).shape, v, e)


@rule(lambda xs, d: aten.cat(xs, d),
      example={"xs": (aten.full((2, 3), 0.5, dtype("f32")), aten.full((2, 1), 0.5, dtype("f32"))), "d": 1})  # fmt: skip
def cat_full(xs: Any, d: int) -> Node:
    """cat(full(s, v), full(t, v)) = full(s + t, v)"""
    require(all(x.op == "aten.full" for x in xs), "a part is not filled with one number")
    values = {repr(x.args[1]) for x in xs}
    require(len(values) == 1, "the numbers differ")
    return aten.full(aten.cat(xs, d).shape, xs[0].args[1], xs[0].dtype)
