"""Channels last: permutations around kernels move down through a program until they meet and vanish.

Kernels of convolutions and pooling read and write images as ``[B, H, W, C]``; selection puts a permutation before and
after each. What is computed element by element, joined or reduced is the same in either order of axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.ir.dialect import operation
from planish.ir.namespace import aten, make
from planish.ir.node import Node, Program, users_of
from planish.ir.rewrite import Log, NodeRule, remake, substitute
from planish.ir.rule import Kind
from planish.ir.types import equal
from planish.ir.weights import Weights
from planish.passes.base import Pass, map_programs, rewrite_all
from planish.passes.batch_norm import scale_and_shift

FIRST = (0, 3, 1, 2)
"""The order of axes that makes ``[B, C, H, W]`` of ``[B, H, W, C]``."""
LAST = (0, 2, 3, 1)
"""The order of axes that makes ``[B, H, W, C]`` of ``[B, C, H, W]``."""
KERNELS = frozenset({"kernel.conv", "kernel.depthwise"})
"""Kernels that can add a residual and apply an activation to what they computed."""
REDUCTIONS = frozenset({"aten.mean", "aten.sum", "aten.amax", "aten.amin"})


@dataclass(frozen=True)
class ChannelsLast(Pass):
    """Move permutations of images down until they vanish; additions and activations join the kernels below them."""

    kind: ClassVar[Kind] = "close"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Move permutations until none can, then join."""
        moved = rewrite_all(program, MOVES, log)
        return map_programs(moved, lambda each: _joined(each, log))


def _inner(value: Any) -> Node | None:
    """``y`` if the value is ``permute(y)`` from channels last to channels first."""
    if isinstance(value, Node) and value.op == "aten.permute" and value.args[1] == FIRST:
        found: Node = value.args[0]
        return found
    return None


def _cancel(node: Node) -> Node | None:
    """permute(permute(y, p), q) = permute(y, p[q]), or y"""
    if node.op != "aten.permute" or node.args[0].op != "aten.permute":
        return None
    inner, order = node.args
    both = tuple(inner.args[1][i] for i in order)
    source: Node = inner.args[0]
    return source if both == tuple(range(len(both))) else aten.permute(source, list(both))


def _single(node: Node) -> Node | None:
    """permute(y, p) = view(y) if no axis longer than one changes its place among the others"""
    if node.op != "aten.permute" or node.args[1] not in (FIRST, LAST):
        return None
    y, order = node.args
    longer = [i for i in order if not equal(y.shape[i], 1)]
    return aten.view(y, [y.shape[i] for i in order]) if longer == sorted(longer) else None


def _pointwise(node: Node) -> Node | None:
    """f(permute(x), permute(y), c) = permute(f(x, y, c')) for f by elements"""
    if node.is_leaf or not operation(node.op).pointwise or not any(map(_inner, node.operands)):
        return None
    args = []
    for arg in node.args:
        turned = _turned(arg) if isinstance(arg, Node) else arg
        if isinstance(arg, Node) and turned is None:
            return None
        args.append(turned)
    return aten.permute(make(node.op, *args), FIRST)


def _turned(value: Node) -> Node | None:
    """The value with channels last, if that costs nothing or little."""
    inner = _inner(value)
    if inner is not None or value.rank == 0:
        return value if inner is None else inner
    if value.rank > 4:
        return None
    shape = (1,) * (4 - value.rank) + tuple(value.shape)
    flat = sum(not equal(size, 1) for size in shape[2:]) == 0
    if not flat and value.op != "const":
        return None
    wide = value if value.rank == 4 else aten.view(value, shape)
    return aten.view(wide, [shape[i] for i in LAST]) if flat else aten.permute(wide, LAST)


def _cat(node: Node) -> Node | None:
    """cat(permute(x), permute(y), d) = permute(cat(x, y, d'))"""
    if node.op != "aten.cat":
        return None
    parts = [_inner(x) for x in node.args[0]]
    if any(p is None for p in parts):
        return None
    return aten.permute(aten.cat(parts, FIRST[node.args[1]]), FIRST)


def _slice(node: Node) -> Node | None:
    """permute(y)[d: a:b] = permute(y[d': a:b])"""
    inner = _inner(node.args[0]) if node.op == "aten.slice" else None
    if inner is None:
        return None
    return aten.permute(aten.slice(inner, FIRST[node.args[1]], *node.args[2:]), FIRST)


def _pad(node: Node) -> Node | None:
    """pad(permute(y), n) = permute(pad(y, n')) for padding with a number"""
    inner = _inner(node.args[0]) if node.op == "aten.pad" else None
    if inner is None or node.args[2] != "constant":
        return None
    amounts = dict.fromkeys(range(4), (0, 0))
    given = node.args[1]
    for i in range(len(given) // 2):
        amounts[FIRST[3 - i]] = (given[2 * i], given[2 * i + 1])
    flat = [n for axis in (3, 2, 1, 0) for n in amounts[axis]]
    while len(flat) > 2 and equal(flat[-1], 0) and equal(flat[-2], 0):
        flat = flat[:-2]
    return aten.permute(aten.pad(inner, flat, *node.args[2:]), FIRST)


def _reduce(node: Node) -> Node | None:
    """mean(permute(y), dims) = mean(y, dims'), with a permutation if axes remain out of order"""
    inner = _inner(node.args[0]) if node.op in REDUCTIONS else None
    if inner is None:
        return None
    _, dims, keep = node.args
    turned = [FIRST[d] for d in dims]
    done = make(node.op, inner, turned, keep)
    if keep:
        return aten.permute(done, FIRST)
    kept = [FIRST[d] for d in range(4) if d not in dims]
    order = [sorted(kept).index(axis) for axis in kept]
    return done if order == sorted(order) else aten.permute(done, order)


def _batch_norm(node: Node) -> Node | None:
    """batch_norm(permute(y)) = permute(y * scale + shift)"""
    inner = _inner(node.args[0]) if node.op == "aten.batch_norm" else None
    if inner is None:
        return None
    scale, shift = scale_and_shift(*node.args[1:])
    kind = inner.dtype
    wide = aten.to(inner, scale.dtype) if kind is not scale.dtype else inner
    moved = aten.add(aten.mul(wide, scale), shift)
    return aten.permute(aten.to(moved, kind) if kind is not moved.dtype else moved, FIRST)


def _typed(change: Callable[[Node], Node | None]) -> NodeRule:
    def checked(node: Node) -> Node | None:
        after = change(node)
        return after if after is not None and after.type == node.type else None

    return checked


MOVES: tuple[tuple[str, NodeRule], ...] = (
    ("permute-permute", _typed(_cancel)),
    ("permute-single", _typed(_single)),
    ("last-pointwise", _typed(_pointwise)),
    ("last-cat", _typed(_cat)),
    ("last-slice", _typed(_slice)),
    ("last-pad", _typed(_pad)),
    ("last-reduce", _typed(_reduce)),
    ("last-batch-norm", _typed(_batch_norm)),
)
"""Equations that move a permutation from the operands of a node to its result."""


def _activation(node: Node) -> str | None:
    """The name under which kernels know an activation."""
    match node.op:
        case "aten.relu" | "aten.silu" | "aten.hardswish" | "aten.tanh" | "aten.sigmoid":
            return node.op.removeprefix("aten.")
        case "aten.gelu":
            return "gelu" if node.args[1] == "none" else "gelu_tanh"
        case "aten.clamp" if node.args[1:] == (0.0, 6.0):
            return "relu6"
    return None


def _with(node: Node, **changes: Any) -> Node:
    """A kernel with some arguments replaced."""
    named = {p.name: a for p, a in zip(operation(node.op).parameters, node.args, strict=True)}
    return make(node.op, **{**named, **changes})


def _plain(node: Node, *names: str) -> bool:
    """True for a kernel whose named arguments are as yet unused."""
    if node.op not in KERNELS:
        return False
    named = {p.name: a for p, a in zip(operation(node.op).parameters, node.args, strict=True)}
    return all(named[name] in (None, "none") for name in names)


def _joined(program: Program, log: Log) -> Program:
    """Additions and activations become part of the kernels that nothing else reads."""
    users, roots = users_of(program), set(program.roots)
    changed: dict[Node, Node] = {}
    for node in program.nodes:
        after = remake(node, changed)
        own = [o not in roots and len(users[o]) == 1 for o in node.operands]
        joined = None if node.is_leaf or log.exhausted else _join(after, own)
        if joined is not None and joined.type == node.type:
            log.record("join", after, joined)
            after = joined
        if after is not node:
            changed[node] = after
    if not changed:
        return program
    origins = dict(program.origins)
    origins.update({changed[n]: origins[n] for n in changed if n in origins})
    return substitute(program, changed, origins)


def _join(node: Node, own: list[bool]) -> Node | None:
    """The kernel that does what the node does, if an operand is a kernel that only this node reads."""
    name = _activation(node)
    if name is not None:
        below = node.operands[0]
        return _with(below, activation=name) if own[0] and _plain(below, "activation") else None
    if node.op != "aten.add" or len(node.operands) != 2 or node.operands[0] is node.operands[1]:
        return None
    for below, other, mine in zip(node.operands, reversed(node.operands), own, strict=True):
        if mine and _plain(below, "activation", "residual") and other.type == below.type:
            return _with(below, residual=other)
    return None
