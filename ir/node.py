"""Nodes, programs and modules: immutable values.

Nodes are interned: two structurally equal nodes are the same object, so common subexpressions cannot exist and a
rewritten program shares everything that did not change. Names and source lines live in the program, not in nodes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import sympy

from planish.ir.types import DType, Symbol, TensorType, TupleType, Type, symbols_of

LEAVES = ("input", "const", "state")
Argument: TypeAlias = Any
"""A node, ``int``, ``float``, ``bool``, ``str``, ``None``, ``DType``, size, ``Program`` or a tuple of arguments."""


class Node:
    """One operation with its arguments and result type. Never made directly: see :func:`intern` and the namespaces."""

    __slots__ = ("__weakref__", "args", "operands", "op", "type")
    op: str
    args: tuple[Argument, ...]
    type: Type
    operands: tuple[Node, ...]

    @property
    def tensor(self) -> TensorType:
        """The type of a node that is one tensor."""
        assert isinstance(self.type, TensorType), f"{self.op} has several results"
        return self.type

    @property
    def shape(self) -> tuple[Any, ...]:
        """The sizes of a node that is one tensor."""
        return self.tensor.shape

    @property
    def dtype(self) -> DType:
        """The element type of a node that is one tensor."""
        return self.tensor.dtype

    @property
    def rank(self) -> int:
        """Number of dimensions of a node that is one tensor."""
        return len(self.tensor.shape)

    @property
    def is_leaf(self) -> bool:
        """True for inputs, constants and states."""
        return self.op in LEAVES

    @property
    def name(self) -> str:
        """The name of a leaf."""
        assert self.op in LEAVES
        return str(self.args[0])

    def __repr__(self) -> str:
        shown = ", ".join(repr_argument(a) for a in self.args)
        return f"{self.op}({shown}): {self.type}"

    def __reduce__(self) -> Any:
        raise TypeError("nodes are not pickled; print the program and parse it back")


def repr_argument(arg: Argument) -> str:
    """Short text of an argument for messages: operands are shown by their types."""
    if isinstance(arg, Node):
        return str(arg.type)
    if isinstance(arg, tuple):
        return f"[{', '.join(map(repr_argument, arg))}]"
    if isinstance(arg, Program):
        return arg.name
    return str(arg) if isinstance(arg, (sympy.Basic, DType)) else repr(arg)


def argument_key(arg: Argument) -> Any:
    """A hashable key that tells apart 1, 1.0 and True, and keeps -0.0 and nan."""
    kind = type(arg)
    if kind is bool or kind is float:
        return (kind.__name__, repr(arg))
    if kind is tuple:
        return tuple([argument_key(a) for a in arg])
    return arg


_interned: weakref.WeakValueDictionary[Any, Node] = weakref.WeakValueDictionary()


def intern(op: str, args: tuple[Argument, ...], result: Type) -> Node:
    """The one node with this operation, these (complete, normalised) arguments and this result type."""
    key = (op, tuple([argument_key(a) for a in args]), result if op in LEAVES else None)
    found = _interned.get(key)
    if found is not None:
        return found
    made = Node()
    made.op, made.args, made.type = op, args, result
    made.operands = tuple(operands_of(args))
    _interned[key] = made
    return made


def operands_of(args: Iterable[Argument]) -> Iterator[Node]:
    """The nodes among (nested) arguments, in order, with repeats."""
    for arg in args:
        if isinstance(arg, Node):
            yield arg
        elif isinstance(arg, tuple):
            yield from operands_of(arg)


def input_leaf(name: str, kind: TensorType) -> Node:
    """The input ``name`` of a program."""
    return intern("input", (name,), kind)


def const(name: str, kind: TensorType) -> Node:
    """The constant ``name``; its values are in a :class:`~planish.ir.weights.Weights`."""
    return intern("const", (name,), kind)


def state(name: str, kind: TensorType) -> Node:
    """The state ``name`` that a session keeps between calls."""
    return intern("state", (name,), kind)


def map_operands(args: tuple[Argument, ...], change: Callable[[Node], Node]) -> tuple[Argument, ...]:
    """The arguments with every node replaced by ``change(node)``."""
    return tuple(
        change(a) if isinstance(a, Node) else map_operands(a, change) if isinstance(a, tuple) else a
        for a in args
    )


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: the module path or weight that it serves, and the user's source line if known."""

    scope: str = ""
    source: str | None = None


@dataclass(frozen=True, eq=False)
class Program:
    """A function of tensors: inputs, outputs and next states. A value; passes return new ones.

    ``origins`` maps nodes to where they come from; it is not part of a program's identity.
    """

    name: str
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    states: tuple[tuple[str, Node], ...] = ()
    origins: Mapping[Node, Origin] = field(default_factory=dict)
    output_names: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes two programs equal: name, inputs, outputs and next states."""
        return (self.name, self.inputs, self.outputs, self.states)

    @property
    def roots(self) -> tuple[Node, ...]:
        """Outputs and next states."""
        return self.outputs + tuple(n for _, n in self.states)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes reached from the roots, operands before users, in a fixed order."""
        return topological(self.roots)

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The symbolic dimensions in use, sorted by name."""
        found: set[Symbol] = set()
        for node in (*self.inputs, *self.nodes):
            found |= symbols_of(node.type if node.is_leaf else node.args)
        return tuple(sorted(found, key=lambda s: (s.name, s.low, s.high)))

    def constants(self) -> tuple[Node, ...]:
        """The constant leaves in use, also those of nested programs."""
        mine = [n for n in self.nodes if n.op == "const"]
        for nested in self.nested():
            mine += nested.constants()
        return tuple(dict.fromkeys(mine))

    def state_leaves(self) -> tuple[Node, ...]:
        """The states, in the order of their next values; one that is never read has the type of its next value."""
        read = {n.name: n for n in self.nodes if n.op == "state"}
        made = {name: read.get(name) or state(name, value.tensor) for name, value in self.states}
        return tuple({**made, **{name: leaf for name, leaf in read.items() if name not in made}}.values())

    def nested(self) -> tuple[Program, ...]:
        """Programs that stand as arguments of control-flow operations."""
        return tuple(dict.fromkeys(a for n in self.nodes for a in n.args if isinstance(a, Program)))

    def count(self, op: str) -> int:
        """How many nodes have the operation ``op``."""
        return sum(n.op == op for n in self.nodes)

    def with_roots(self, outputs: Iterable[Node], states: Iterable[Node] = ()) -> Program:
        """The same program with other outputs and next states (in the same order)."""
        names = [n for n, _ in self.states]
        return replace(self, outputs=tuple(outputs), states=tuple(zip(names, states, strict=True)))

    def __str__(self) -> str:
        from planish.ir.printer import print_program

        return print_program(self)


@dataclass(frozen=True)
class Module:
    """Programs that share constants and states, such as ``prefill`` and ``decode``; the first is the default."""

    programs: tuple[Program, ...]

    def __getitem__(self, name: str) -> Program:
        for program in self.programs:
            if program.name == name:
                return program
        raise KeyError(name)

    @property
    def default(self) -> Program:
        """The first program."""
        return self.programs[0]

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The symbolic dimensions of all programs, sorted by name."""
        found = {s for program in self.programs for s in program.symbols}
        return tuple(sorted(found, key=lambda s: (s.name, s.low, s.high)))

    def constants(self) -> tuple[Node, ...]:
        """The constant leaves of all programs, each once."""
        return tuple(dict.fromkeys(leaf for program in self.programs for leaf in program.constants()))

    def map(self, change: Callable[[Program], Program]) -> Module:
        """The module with every program replaced by ``change(program)``."""
        return Module(tuple(map(change, self.programs)))

    def __str__(self) -> str:
        from planish.ir.printer import print_module

        return print_module(self)


def topological(roots: Iterable[Node]) -> tuple[Node, ...]:
    """All nodes reached from ``roots``, operands before users; depth first, left to right, without recursion."""
    done: dict[Node, None] = {}
    for root in roots:
        if root in done:
            continue
        stack: list[tuple[Node, int]] = [(root, 0)]
        while stack:
            node, index = stack.pop()
            operands = node.operands
            while index < len(operands) and operands[index] in done:
                index += 1
            if index == len(operands):
                done[node] = None
            else:
                stack.append((node, index + 1))
                stack.append((operands[index], 0))
    return tuple(done)


def users_of(program: Program) -> dict[Node, list[Node]]:
    """For every node of the program the nodes that read it."""
    users: dict[Node, list[Node]] = {n: [] for n in program.nodes}
    for node in program.nodes:
        for operand in dict.fromkeys(node.operands):
            users[operand].append(node)
    return users


__all__ = [
    "Argument", "Module", "Node", "Origin", "Program", "Symbol", "TensorType", "TupleType", "argument_key", "const",
    "input_leaf", "intern", "map_operands", "operands_of", "repr_argument", "state", "topological", "users_of",
]  # fmt: skip
