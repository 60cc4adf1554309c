"""Values that no kernel decodes: computed once when a model is loaded, or in each call, whichever costs less.

A constant expression that would grow is never evaluated when a model is compiled, so it is still in the program. Each
is given to a second program, ``load``, which runs once; the first program reads its results as constants.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.ir.node import Module, Node, Program, const, topological, users_of
from planish.ir.target import Machine
from planish.ir.types import TensorType
from planish.passes.canonical.fold import recipe
from planish.passes.joint import join, split
from planish.passes.select import constant_values, replaced

LOAD = "load"
"""The name of the program that runs once."""

SMALL = 256
"""Values of fewer elements are computed in each call: they cost less than an argument of the function."""


@dataclass(frozen=True)
class Materialised:
    """A constant expression, what it costs in each call and once loaded (seconds), and what was chosen."""

    name: str
    type: str
    bytes: int
    each_call: float
    loaded: float
    at_load: bool


@dataclass(frozen=True)
class Split:
    """A program, and what it reads from a program that runs once (None: nothing)."""

    main: Program
    load: Program | None
    choices: tuple[Materialised, ...] = ()


@dataclass(frozen=True)
class SplitModule:
    """The programs of a module, and what they read from one program that runs once (None: nothing)."""

    main: Module
    load: Program | None
    choices: tuple[Materialised, ...] = ()


def materialise_module(module: Module, machine: Machine, *, limit: int | None = None) -> SplitModule:
    """As :func:`materialise`, for several programs: what they have in common is computed once for all of them."""
    made = materialise(join(module), machine, limit=limit)
    return SplitModule(split(made.main, module), made.load, made.choices)


def materialise(program: Program, machine: Machine, *, limit: int | None = None) -> Split:
    """Move constant expressions into a program that runs at load, where reading the result costs less.

    ``limit`` are the bytes that results may take in memory together; the costliest expressions come first.
    """
    choices = sorted(_choices(program, machine), key=lambda c: c[1].loaded - c[1].each_call)
    moved: dict[Node, Node] = {}
    made: list[Materialised] = []
    used = 0
    for node, choice in choices:
        fits = limit is None or used + choice.bytes <= limit
        at_load = fits and choice.loaded < choice.each_call
        if at_load:
            used += choice.bytes
            moved[node] = const(choice.name, node.tensor)
        made.append(Materialised(**{**choice.__dict__, "at_load": at_load}))
    if not moved:
        return Split(program, None, tuple(made))
    main = replaced(program, moved)
    names = tuple(leaf.name for leaf in moved.values())
    return Split(main, Program(LOAD, (), tuple(moved), output_names=names), tuple(made))


def _choices(program: Program, machine: Machine) -> list[tuple[Node, Materialised]]:
    users = users_of(program)
    roots = set(program.roots)
    constant = constant_values(program.nodes)
    work = {n for n in constant if not n.is_leaf and isinstance(n.type, TensorType)}
    found = []
    for node in program.nodes:
        outermost = node in roots or any(u not in work for u in users[node])
        if node not in work or not outermost or not _is_work(node):
            continue
        leaves = [n for n in topological([node]) if n.op == "const"]
        size = int(node.tensor.nbytes)
        read = sum(int(leaf.tensor.nbytes) for leaf in leaves)
        rate = machine.bandwidth * 1e9
        name = f"{leaves[0].name if leaves else program.name}#load-{recipe(node)}"
        # Decoding writes the value, and the operation reads it again.
        found.append(
            (node, Materialised(name, str(node.tensor), size, (read + 2 * size) / rate, size / rate, False))
        )
    return found


def _is_work(node: Node) -> bool:
    return int(node.tensor.numel) >= SMALL and node.op not in ("aten.full", "aten.view", "aten.expand")
