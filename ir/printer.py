"""Text of programs: a subset of Python that the parser reads back to the same node objects."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping
from typing import Any

import sympy

from planish.ir.dialect import Parameter, operation
from planish.ir.node import Module, Node, Origin, Program
from planish.ir.types import DTYPES, DType, Symbol, format_size

RESERVED = frozenset(
    {"aten", "planish", "kernel", "const", "state", "dim", "inf", "nan", "max", "min", *DTYPES}
)


def identifier(text: str) -> str:
    """``text`` as a Python name: dots become underscores."""
    name = re.sub(r"\W+", "_", text).strip("_") or "value"
    return f"v_{name}" if name[0].isdigit() or keyword.iskeyword(name) or name in RESERVED else name


def numbered(base: str, count: int) -> str:
    """The ``count``-th name of an origin; a digit at the end of the origin is set apart."""
    return f"{base}_{count}" if base[-1].isdigit() or base.endswith("_") else f"{base}{count}"


def base_of(name: str) -> str:
    """The origin that a numbered name was made from (the inverse of :func:`numbered`)."""
    stripped = name.rstrip("0123456789")
    if (
        stripped != name
        and stripped.endswith("_")
        and len(stripped) > 1
        and (stripped[-2].isdigit() or stripped[-2] == "_")
    ):
        return stripped[:-1]
    return stripped or name


def names_of(program: Program, taken: set[str] | None = None) -> dict[Node, str]:
    """A distinct name for every node: leaves by their own names, others counted within their origin."""
    used = set(RESERVED) | {s.name for s in program.symbols} | (taken or set())
    names: dict[Node, str] = {}
    for leaf in program.inputs:
        names[leaf] = _fresh(identifier(leaf.name), used)
    counts: dict[str, int] = {}
    for node in program.nodes:
        if node in names:
            continue
        if node.is_leaf:
            short = identifier(node.name.removesuffix(".weight").replace("#", "_"))
            names[node] = _fresh(short, used)
            continue
        origin = program.origins.get(node)
        base = identifier(origin.scope) if origin is not None and origin.scope else node.op.partition(".")[2]
        while True:
            name = numbered(base, counts.get(base, 0))
            counts[base] = counts.get(base, 0) + 1
            if name not in used:
                break
        used.add(name)
        names[node] = name
    return names


def _fresh(name: str, used: set[str]) -> str:
    fresh = name
    while fresh in used:
        fresh += "_"
    used.add(fresh)
    return fresh


def format_argument(arg: Any, names: Mapping[Node, str]) -> str:
    """Text of an argument."""
    if isinstance(arg, Node):
        return names[arg]
    if isinstance(arg, tuple):
        return "[" + ", ".join([format_argument(a, names) for a in arg]) + "]"
    if isinstance(arg, Program):
        return arg.name
    if isinstance(arg, sympy.Expr):
        return format_size(arg)
    if isinstance(arg, float):
        return (
            repr(arg) if math.isfinite(arg) else ("nan" if math.isnan(arg) else "-inf" if arg < 0 else "inf")
        )
    return arg.name if isinstance(arg, DType) else repr(arg)


def _is_default(parameter: Parameter, arg: Any, node: Node) -> bool:
    if parameter.required:
        return False
    if parameter.kind == "axes?":
        first = node.args[0]
        return isinstance(first, Node) and arg == tuple(range(first.rank))
    return type(arg) is type(parameter.default) and repr(arg) == repr(parameter.default)


def format_call(node: Node, names: Mapping[Node, str]) -> str:
    """The right-hand side of a statement, defaults omitted."""
    if node.is_leaf:
        return f"{node.op}({node.name!r})"
    parts: list[str] = []
    skipped = False
    for parameter, arg in zip(operation(node.op).parameters, node.args, strict=True):
        if _is_default(parameter, arg, node):
            skipped = True
            continue
        text = format_argument(arg, names)
        parts.append(f"{parameter.name}={text}" if skipped else text)
    return f"{node.op}({', '.join(parts)})"


def format_dims(symbols: tuple[Symbol, ...]) -> str:
    """The declarations of symbolic dimensions."""
    return "".join(f"{s.name} = dim({s.low}, {s.high})\n" for s in symbols)


def print_program(program: Program, *, dims: bool = True, sources: bool = False, align: bool = True) -> str:
    """Text of a program, its nested programs first; ``sources`` adds the user's lines as comments, ``align``
    puts the right-hand sides into one column."""
    every = (*all_nested(program), program)
    symbols = sorted({s for p in every for s in p.symbols}, key=lambda s: s.name)
    head = format_dims(tuple(symbols)) if dims else ""
    return (head + "\n\n" if head else "") + "\n\n".join(_print_one(p, sources, align) for p in every)


def _print_one(program: Program, sources: bool, align: bool = True) -> str:
    """Text of a program without its dimensions and nested programs."""
    names = names_of(program, {p.name for p in program.nested()})
    arguments = ", ".join(f"{names[i]}: {i.type}" for i in program.inputs)
    lines = [f"def {program.name}({arguments}):"]
    body = [n for n in program.nodes if n.op != "input"]
    width = (
        max((len(names[n]) + len(str(n.type)) + 2 for n in body if len(str(n.type)) < 40), default=0)
        if align
        else 0
    )
    for node in body:
        line = f"    {f'{names[node]}: {node.type}':<{width}} = {format_call(node, names)}"
        origin = program.origins.get(node)
        if sources and origin is not None and origin.source:
            line += f"  # {origin.source}"
        lines.append(line)
    results = [names[o] for o in program.outputs]
    if program.states:
        results.append("{" + ", ".join(f"{k!r}: {names[n]}" for k, n in program.states) + "}")
    lines.append(f"    return {', '.join(results)}")
    return "\n".join(lines) + "\n"


def all_nested(program: Program) -> tuple[Program, ...]:
    """Nested programs, innermost first, each once."""
    found: dict[Program, None] = {}
    for child in program.nested():
        found.update(dict.fromkeys(all_nested(child)))
        found[child] = None
    return tuple(found)


def print_module(module: Module) -> str:
    """Text of several programs with their dimensions declared once."""
    every = [p for q in module.programs for p in (*all_nested(q), q)]
    symbols = sorted({s for p in every for s in p.symbols}, key=lambda s: s.name)
    head = format_dims(tuple(symbols))
    return (head + "\n\n" if head else "") + "\n\n".join(_print_one(p, False) for p in dict.fromkeys(every))


__all__ = [
    "Origin", "base_of", "format_argument", "format_call", "format_dims", "identifier", "names_of", "numbered",
    "print_module", "print_program",
]  # fmt: skip
