"""Loop nests of plain operations: rows in parallel where there is much to do, the last axis left to LLVM's vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.table import table
from planish.ir.node import Node
from planish.ir.types import TensorType

PARALLEL_WORK = 1 << 16
"""Steps below which starting threads takes longer than they save."""

CHUNK = 1 << 13
"""Elements of one part of a flat loop."""

Write = Callable[[tuple[Any, ...]], None]


@dataclass(frozen=True)
class Space:
    """The index space of a result: its sizes as expressions (i64), and bounds of their product."""

    sizes: tuple[Any, ...]
    low: float
    high: float

    @property
    def total(self) -> Any:
        """Number of elements."""
        return product(self.sizes)


def product(sizes: Sequence[Any]) -> Any:
    """The product of expressions; 1 for none."""
    return reduce(lambda a, b: a * b, sizes) if sizes else tirx.IntImm("int64", 1)


def is_flat(group: frozenset[Node], given: Sequence[Node], root: Node) -> bool:
    """True if all tensors have the shape of the result, so that axes do not matter."""

    def same(node: Node) -> bool:
        return isinstance(node.type, TensorType) and (node.shape == root.shape or node.tensor.numel == 1)

    return all(table()[n.op].form == "scalar" for n in group) and all(map(same, (*group, *given)))


def nest(space: Space, write: Write, cost: int, flat: bool) -> None:
    """Write every element. ``cost`` is the number of steps that one takes."""
    sizes = space.sizes
    if not sizes:
        write(())
        return
    threshold = max(PARALLEL_WORK // max(cost, 1), 1)
    inner = _flat(space, write) if flat else _rows(sizes, write)
    if len(sizes) == 1 and not flat:
        inner = _flat(space, write)
    if space.high < threshold:
        inner(False)
    elif space.low >= threshold:
        inner(True)
    else:
        with T.If(space.total >= tirx.IntImm("int64", threshold)):
            with T.Then():
                inner(True)
            with T.Else():
                inner(False)


def _flat(space: Space, write: Write) -> Callable[[bool], None]:
    """One loop over all elements; the index counts along the last axis that is not one."""
    sizes = space.sizes
    axis = max((i for i, s in enumerate(sizes) if not _is_one(s)), default=0)
    zero = tirx.IntImm("int64", 0)

    def at(i: Any) -> tuple[Any, ...]:
        return tuple(i if k == axis else zero for k in range(len(sizes)))

    def loop(parallel: bool) -> None:
        total = space.total
        if not parallel:
            with T.serial(0, total) as i:
                write(at(i))
            return
        parts = tirx.floordiv(total + (CHUNK - 1), tirx.IntImm("int64", CHUNK))
        with T.parallel(0, parts) as part:
            length = tirx.min(tirx.IntImm("int64", CHUNK), total - part * CHUNK)
            with T.serial(0, length) as i:
                write(at(part * CHUNK + i))

    return loop


def _rows(sizes: Sequence[Any], write: Write) -> Callable[[bool], None]:
    *lead, last = sizes

    def loop(parallel: bool) -> None:
        if not parallel:
            with ExitStack() as loops:
                write(tuple(loops.enter_context(T.serial(0, s)) for s in sizes))
            return
        with T.parallel(0, product(lead)) as row, T.serial(0, last) as i:
            write((*unravel(row, lead), i))

    return loop


def unravel(row: Any, sizes: Sequence[Any]) -> tuple[Any, ...]:
    """The index of the element ``row`` of a space of several axes."""
    places: list[Any] = []
    for size in reversed(sizes[1:]):
        places.append(tirx.IntImm("int64", 0) if _is_one(size) else tirx.floormod(row, size))
        row = row if _is_one(size) else tirx.floordiv(row, size)
    return (row, *reversed(places))


def _is_one(size: Any) -> bool:
    return isinstance(size, (int, tirx.IntImm)) and int(size) == 1
