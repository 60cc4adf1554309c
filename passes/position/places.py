"""Values of positions, computed at the positions of new rows and of the rows of a cache.

The positions of all new rows stand in one axis ``B*S``, because sequences of a batch begin at positions of their own.
Where such a value meets rows of tokens, that axis is split and its parts go to the batch and to the rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from planish.errors import PlanishError, UnsupportedOpError
from planish.ir.namespace import aten, make
from planish.ir.node import Node, Program, const
from planish.ir.run import run_with
from planish.ir.types import TensorType, product, size, symbols_of
from planish.ir.weights import Weights
from planish.passes.position.axes import routes, rows_of
from planish.passes.position.labels import Label, Sequence, refused

NEW, OLD = "new", "old"
"""Roles of an axis along the sequence: the new rows, or the rows of a cache."""

TABLE_BYTES = 64 << 20
"""Largest table of positions that is evaluated at compile time."""

Roles = "tuple[tuple[int, str], ...]"


@dataclass
class Places:
    """Rebuilds values of positions for ``batch * new`` rows and for the ``context`` rows of a cache."""

    sequence: Sequence
    weights: Weights
    batch: Any
    new: Any
    context: int
    start: Node
    known: dict[Any, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = aten.add(aten.view(self.start, [self.batch, 1]), aten.arange(0, self.new))
        self.positions = aten.view(rows, [self.total])

    @property
    def total(self) -> Any:
        """New rows of all sequences."""
        return product((self.batch, self.new))

    def rows_for(self, value: Node, user: Node) -> Node:
        """A value of positions as an operand of ``user``, a row of tokens: it has new rows there."""
        axes = self.sequence.rows(value)
        if len(axes) != 1:
            raise refused(
                self.sequence.program, user, f"reads {value.type}, a value of the length as a whole"
            )
        made = self.at(value, ((axes[0], NEW),))
        placed = self._split(made, axes[0], user.rank, self._batch_axis(user))
        if user.op != "aten.cat":
            return placed
        shape = [self._sized(s, NEW) for s in value.shape]
        return aten.expand(placed, shape)

    def bias_for(self, mask: Node, attention: Node) -> Node:
        """A mask of positions ``[..., T, T]`` for new rows over the rows of a cache: ``[.., S, C]``."""
        axes = self.sequence.rows(mask)
        roles = tuple((a, OLD if a == mask.rank - 1 else NEW) for a in axes)
        if any(a not in (mask.rank - 1, mask.rank - 2) for a in axes):
            raise refused(self.sequence.program, attention, f"has a mask of type {mask.type}")
        made = self._bias(mask, roles)
        rows = [a for a, role in roles if role == NEW]
        return self._split(made, rows[0], 4, 0) if rows else made

    def _bias(self, mask: Node, roles: tuple[tuple[int, str], ...]) -> Node:
        """A bias; one of keys alone may differ by a number for all keys, which softmax does not see."""
        try:
            return self.at(mask, roles)
        except UnsupportedOpError:
            if any(role == NEW for _, role in roles) or not mask.dtype.is_float:
                raise
            return self._table(mask, dict(roles), shift=True)

    def at(self, node: Node, roles: tuple[tuple[int, str], ...]) -> Node:
        """The value with its axes along the sequence at the positions that ``roles`` name."""
        key = (node, roles)
        if key not in self.known:
            made = self._same(node, dict(roles))
            self.known[key] = self._table(node, dict(roles)) if made is None else made
        return self.known[key]

    def _same(self, node: Node, roles: dict[int, str]) -> Node | None:
        """The same operation at other positions; None if it cannot be had that way."""
        length = self.sequence.length
        if any(node.shape[axis] != length for axis in roles):
            return None
        if node.op == "aten.arange":
            first, end, step, kind = node.args
            if first != 0 or step != 1 or end != length:
                return None
            places = self.positions if roles[0] == NEW else aten.arange(0, self.context)
            return places if kind == places.dtype else aten.to(places, kind)
        if node.op == "aten.embedding" and self.sequence.rows(node.args[1]):
            last = self.evaluated(node.args[1], self.context)
            self._long_enough(node.args[0].shape[0], node, int(last.max()) + 1 if last.numel() else 0)
        if node.op == "aten.slice" and not self.sequence.rows(node.args[0]):
            return self._rows_of_table(node, roles)
        found = routes(node)
        if found is None or (node.op not in SAME and not _pointwise(node)):
            return None
        operands: dict[Node, Node] = {}
        for operand, route in found:
            if self.sequence.labels[operand] is not Label.POSITION:
                if operand in operands or self.sequence.labels[operand] is Label.FIXED:
                    continue
                return None
            inner = []
            for axis in self.sequence.rows(operand):
                place = route[axis]
                if place is None or place not in roles:
                    return None
                inner.append((axis, roles[place]))
            if not inner:
                return None
            made = self.at(operand, tuple(inner))
            if operands.setdefault(operand, made) is not made:
                return self._twice(node, found, roles)
        return make(node.op, *self._arguments(node, node.args, operands, roles))

    def _twice(self, node: Node, found: Any, roles: dict[int, str]) -> Node | None:
        """An operation that reads one value in two roles, such as ``i - j`` of one list of positions."""
        made = [
            self.at(o, tuple((a, roles[r[a]]) for a in self.sequence.rows(o))) if self.sequence.rows(o) else o
            for o, r in found
        ]
        rest = iter(made)
        return make(node.op, *(next(rest) if isinstance(a, Node) else a for a in node.args))

    def _arguments(
        self, node: Node, args: Any, operands: dict[Node, Node], roles: dict[int, str]
    ) -> tuple[Any, ...]:
        shaped = node.op in ("aten.view", "aten.expand", "aten.full")
        made: list[Any] = []
        for arg in args:
            if isinstance(arg, Node):
                made.append(operands.get(arg, arg))
            elif isinstance(arg, tuple) and shaped:
                made.append(tuple(self._sized(s, roles.get(i, "")) for i, s in enumerate(arg)))
            elif isinstance(arg, tuple):
                made.append(self._arguments(node, arg, operands, roles))
            else:
                made.append(arg)
        return tuple(made)

    def _sized(self, value: Any, role: str) -> Any:
        """A size of a value of positions: its rows by their role; one stands for every sequence of the batch."""
        import sympy

        if value == self.sequence.length:
            return self.total if role == NEW else self.context
        if hasattr(value, "xreplace"):
            return size(value.xreplace({self.sequence.batch: sympy.Integer(1)}))
        return value

    def _rows_of_table(self, node: Node, roles: dict[int, str]) -> Node | None:
        """Rows of a stored table, which is cut to the length."""
        x, axis, first, end, step = node.args
        if first != 0 or step != 1 or end != self.sequence.length or set(roles) != {axis}:
            return None
        self._long_enough(x.shape[axis], node, self.context)
        if roles[axis] == NEW:
            return aten.index_select(x, axis, self.positions)
        return aten.slice(x, axis, 0, self.context)

    def _long_enough(self, rows: Any, node: Node, needed: int) -> None:
        if isinstance(rows, int) and rows < needed:
            most = self.context - (needed - rows)
            raise UnsupportedOpError(
                "PL262", f"the context is {self.context}, the model has {most} positions",
                where=getattr(self.sequence.program.origins.get(node), "source", None),
                hint=f"ask for a context of {most} or less",
            )  # fmt: skip

    def _table(self, node: Node, roles: dict[int, str], shift: bool = False) -> Node:
        """The value at every position of the context, evaluated now, and rows of it; a prefix is seen to be stable,
        with ``shift`` but for a number that is added to all.
        """
        table = self.evaluated(node, self.context)
        for shorter in (1, 2, 3, self.context // 2 + 1):
            if shorter > self.context:
                continue
            part = self.evaluated(node, shorter)
            whole = table[tuple(slice(0, shorter) if a in roles else slice(None) for a in range(table.dim()))]
            same = part.shape == whole.shape
            if same and shift:
                apart = part - whole
                same = bool(((apart - apart[..., :1]).abs() <= 1e-6 * table.abs().max()).all())
            elif same:
                same = bool((part == whole).all())
            if not same:
                raise refused(
                    self.sequence.program, node, f"gives {node.type}, which changes as the length grows"
                )
        digest = hashlib.sha256(table.contiguous().numpy().tobytes()).hexdigest()[:12]
        name = f"positions#{digest}"
        kind = TensorType(node.dtype, tuple(table.shape))
        if name not in self.weights:
            self.weights.add(name, table)
        made = const(name, kind)
        for axis, role in roles.items():
            made = aten.index_select(made, axis, self.positions) if role == NEW else made
        return made

    def evaluated(self, node: Node, length: int) -> Any:
        """The value at all positions of a length, one sequence, as a tensor; PL260 if it cannot be had."""
        others = symbols_of(node.type) | {s for n in _below(node) for s in symbols_of(n.args)}
        binding = {s: length if s is self.sequence.length else 1 for s in others}
        if others - {self.sequence.length, self.sequence.batch}:
            raise refused(self.sequence.program, node, f"gives {node.type}, of several lengths")
        bytes_needed = self._bytes(node, length)
        if bytes_needed > TABLE_BYTES:
            raise refused(self.sequence.program, node, f"would need a table of {bytes_needed:,} bytes")
        try:
            return run_with(Program("positions", (), (node,)), self.weights, binding)[0]
        except (PlanishError, IndexError, RuntimeError) as problem:
            raise refused(
                self.sequence.program, node, f"cannot be evaluated at {length} positions: {problem}"
            ) from problem

    def _bytes(self, node: Node, length: int) -> int:
        import math

        sizes = [
            length if rows_of((s,), self.sequence.length) else 1 if symbols_of(s) else int(s)
            for s in node.shape
        ]
        return math.prod(sizes) * 8

    def _batch_axis(self, user: Node) -> int | None:
        if self.sequence.batch == 1 or self.batch == 1:
            return None
        found = [i for i, s in enumerate(user.shape) if s == self.sequence.batch]
        if not found:
            raise refused(
                self.sequence.program, user, f"reads positions, but {user.type} has no axis of the batch"
            )
        return found[0]

    def _split(self, value: Node, axis: int, rank: int, batch_axis: int | None) -> Node:
        """The axis ``B*S`` as a batch, at ``batch_axis`` of ``rank`` axes, and as rows where it is."""
        if self.batch == 1 or batch_axis is None:
            return value
        lead, rest = value.shape[:axis], value.shape[axis + 1 :]
        first = value
        if any(s != 1 for s in lead):
            apart = aten.view(value, [*lead, self.batch, self.new, *rest])
            first = aten.permute(apart, [axis, *range(axis), *range(axis + 1, value.rank + 1)])
        place = batch_axis - (rank - value.rank)
        shape = [*lead, self.new, *rest]
        if place < 0:
            return aten.view(first, [self.batch, *[1] * (-place - 1), *shape])
        if any(s != 1 for s in shape[: place + 1]):
            raise UnsupportedOpError(
                "PL260", f"values of positions {value.type} cannot be split at axis {axis}"
            )
        return aten.view(first, [*shape[:place], self.batch, *shape[place + 1 :]])


SAME = frozenset({
    "aten.view", "aten.expand", "aten.permute", "aten.full", "aten.embedding", "aten.slice", "aten.cat",
    "aten.matmul", "aten.linear",
})  # fmt: skip
"""Operations besides the pointwise ones that work row by row at any positions."""


def _pointwise(node: Node) -> bool:
    from planish.ir.dialect import operation

    return operation(node.op).pointwise


def _below(node: Node) -> tuple[Node, ...]:
    from planish.ir.node import topological

    return topological([node])
