"""Functions of TIR for one operation or a group of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.loops import Space, is_flat, nest
from planish.backends.tvm.dims import Dims
from planish.backends.tvm.expressions import Call, Elements
from planish.backends.tvm.stages import LOOPS
from planish.backends.tvm.table import storage, table
from planish.ir.node import Node, Program
from planish.ir.types import Symbol, TensorType, bounds, symbols_of

_DONE = {"tirx.is_scheduled": 1, LOOPS: 1}


@dataclass(frozen=True)
class Primitive:
    """A function of TIR: its operands, one number (i64) for each of ``symbols``, then its results."""

    function: Any
    operands: tuple[Node, ...]
    symbols: tuple[Symbol, ...]


def results(node: Node) -> tuple[TensorType, ...]:
    """The types of the results of a node."""
    return (node.type,) if isinstance(node.type, TensorType) else node.type.items


def operands(group: frozenset[Node], root: Node) -> tuple[Node, ...]:
    """What a group reads from outside, in a fixed order."""
    order = [n for n in _members(group, root) if n in group]
    return tuple(dict.fromkeys(o for n in order for o in n.operands if o not in group))


def _members(group: frozenset[Node], root: Node) -> Sequence[Node]:
    if len(group) == 1:
        return (root,)
    done: dict[Node, None] = {}
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done[node] = None
            continue
        stack.append((node, True))
        stack.extend((o, False) for o in reversed(node.operands) if o in group)
    return tuple(done)


def key(group: frozenset[Node], root: Node) -> Any:
    """Equal for groups that compute the same function."""
    outside = {n: i for i, n in enumerate(operands(group, root))}
    inside: dict[Node, int] = {}

    def argument(arg: Any) -> Any:
        if isinstance(arg, Node):
            return ("in", inside[arg]) if arg in inside else ("out", outside[arg])
        if isinstance(arg, tuple):
            return tuple(argument(a) for a in arg)
        return (type(arg).__name__, repr(arg)) if isinstance(arg, (bool, float)) else arg

    lines = []
    for node in _members(group, root):
        lines.append((node.op, tuple(argument(a) for a in node.args)))
        inside[node] = len(inside)
    return tuple(n.type for n in outside), tuple(lines)


def free_symbols(group: frozenset[Node], given: Sequence[Node], root: Node) -> tuple[Symbol, ...]:
    """Symbols that a group needs and that are not the size of an axis of an operand."""
    found: set[Symbol] = set()
    for node in group:
        found |= symbols_of(node.type) | _argument_symbols(node.args)
    for node in given:
        found |= symbols_of(node.type)
    bound = {s for n in given for s in n.shape if isinstance(s, Symbol)}
    return tuple(sorted(found - bound, key=lambda s: (s.name, s.low, s.high)))


def _argument_symbols(args: Any) -> set[Symbol]:
    found: set[Symbol] = set()
    for arg in args:
        if isinstance(arg, tuple):
            found |= _argument_symbols(arg)
        elif not isinstance(arg, (Node, Program)):
            found |= symbols_of(arg)
    return found


def build(group: frozenset[Node], root: Node, *, cpu: bool) -> Primitive:
    """The function of a group, without a schedule, or with that of its row of form ``loops``."""
    given = operands(group, root)
    symbols = free_symbols(group, given, root)
    dims = Dims()
    if table()[root.op].form == "loops":
        function = _loops(root, given, symbols, dims, cpu)
    elif table()[root.op].form == "tensor":
        function = _tensors(group, root, given, symbols, dims, cpu)
    else:
        function = _elements(group, root, given, symbols, dims, cpu)
    return Primitive(function, given, symbols)


def _tensors(
    group: frozenset[Node],
    root: Node,
    given: Sequence[Node],
    symbols: Sequence[Symbol],
    dims: Dims,
    cpu: bool,
) -> Any:
    placed = {n: te.placeholder(dims.shape(n.shape), storage(n.dtype), f"a{i}") for i, n in enumerate(given)}
    elements = Elements(group, {n: _called(t) for n, t in placed.items()}, dims, cpu)
    made = table()[root.op].emit(Call(root, elements), *elements.arguments(root))
    made = list(made) if isinstance(made, (tuple, list)) else [made]
    function = te.create_prim_func([*placed.values(), *(dims.var(s) for s in symbols), *made])
    return function.with_attr("planish.form", "tensor")


def _elements(
    group: frozenset[Node],
    root: Node,
    given: Sequence[Node],
    symbols: Sequence[Symbol],
    dims: Dims,
    cpu: bool,
) -> Any:
    """One loop nest over the result."""
    with IRBuilder() as builder, T.prim_func(s_tir=not cpu):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "planish.form": "elements"} | (_DONE if cpu else {}))
        buffers, made = _parameters(root, given, symbols, dims)
        elements = Elements(group, {n: _element(b) for n, b in buffers.items()}, dims, cpu)
        sizes = [_size(s) for s in dims.shape(root.shape)]

        def write(index: tuple[Any, ...]) -> None:
            elements.write(lambda: T.buffer_store(made[0], elements.value(root, index), list(index)))

        if cpu:
            nest(Space(tuple(sizes), *_extent(root)), write, len(group), is_flat(group, given, root))
        else:
            _blocks(sizes, write)
    return builder.get()


def _blocks(sizes: Sequence[Any], write: Callable[[tuple[Any, ...]], None]) -> None:
    """A loop nest with a block in it, which a schedule may change."""
    with ExitStack() as loops:
        places = [loops.enter_context(T.serial(0, s)) for s in sizes]
        loops.enter_context(T.sblock("out"))
        write(tuple(T.axis.spatial(s, i, "int64") for s, i in zip(sizes, places, strict=True)))


def _extent(node: Node) -> tuple[float, float]:
    low, high = bounds(node.tensor.numel)
    return low, high


def _parameters(
    root: Node, given: Sequence[Node], symbols: Sequence[Symbol], dims: Dims
) -> tuple[dict[Node, Any], list[Any]]:
    """Declare the parameters of a function: buffers of the operands by node, and buffers of the results."""
    buffers: dict[Node, Any] = {}
    for i, node in enumerate(given):
        buffers[node] = T.arg(f"a{i}", T.Buffer(_sizes(dims, node.shape), storage(node.dtype)))
    for symbol in symbols:
        T.arg(symbol.name, dims.var(symbol))
    made = []
    for i, kind in enumerate(results(root)):
        made.append(T.arg(f"out{i}", T.Buffer(_sizes(dims, kind.shape), storage(kind.dtype))))
    return buffers, made


def _size(value: Any) -> Any:
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def _sizes(dims: Dims, shape: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_size(s) for s in dims.shape(shape))


def _element(tensor: Any) -> Callable[[tuple[Any, ...]], Any]:
    return lambda index: tensor[tuple(index)] if len(tensor.shape) else tensor[()]


def _called(tensor: Any) -> Callable[[tuple[Any, ...]], Any]:
    return lambda index: tensor(*index)


def _loops(root: Node, given: Sequence[Node], symbols: Sequence[Symbol], dims: Dims, cpu: bool) -> Any:
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": 1, LOOPS: 1, "planish.form": "loops"})
        buffers, made = _parameters(root, given, symbols, dims)
        elements = Elements(frozenset(), {}, dims, cpu)

        def argument(arg: Any) -> Any:
            if isinstance(arg, Node):
                return buffers[arg]
            return tuple(argument(a) for a in arg) if isinstance(arg, tuple) else arg

        table()[root.op].emit(Call(root, elements), *(argument(a) for a in root.args), *made)
    return builder.get()


__all__ = ["Primitive", "build", "free_symbols", "key", "operands", "results"]
