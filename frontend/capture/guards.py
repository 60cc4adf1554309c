"""Conditions on sizes that a model's Python met while it was traced: for other sizes it would do something else."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from planish.frontend.capture.sources import is_users, short

SAMPLES = 48
SPAN = 90


@dataclass(frozen=True)
class Condition:
    """A condition, such as ``T % 2 != 0``, and the line of the model that asked for it.

    If it holds from some size of one dimension on, ``dimension`` and ``low`` say from which.
    """

    text: str
    line: str
    dimension: str | None = None
    low: int = 0


def environment_of(exported: ExportedProgram) -> Any:
    """What torch knows about sizes, or None if all are fixed."""
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        mode = getattr(value, "fake_mode", None) if isinstance(value, torch.Tensor) else None
        if mode is not None and mode.shape_env is not None:
            return mode.shape_env
    return None


def required_multiple(symbol: Any, environment: Any) -> int:
    """What a dimension must be a multiple of by the conditions that torch noted while it traced; 1 for nothing."""
    whole = 1
    for guard in environment.guards:
        e = guard.expr
        if not isinstance(e, sympy.Eq) or e.free_symbols != {symbol}:
            continue
        for one, other in (e.args, e.args[::-1]):
            if one == symbol:  # s == k*(s//k)
                factor, quotient = other.as_coeff_Mul()
                if type(quotient).__name__ == "FloorDiv" and quotient.args == (symbol, factor):
                    whole = math.lcm(whole, int(factor))
            elif type(one).__name__ in ("Mod", "PythonMod") and other == 0 and one.args[0] == symbol:
                if one.args[1].is_Integer:
                    whole = math.lcm(whole, int(one.args[1]))
    return whole


def conditions(exported: ExportedProgram, names: Mapping[Any, str]) -> list[Condition]:
    """Conditions in the model's own Python that ranges and multiples of the dimensions do not imply.

    Those that torch's code asks for decide on memory layouts, which a program does not have.
    """
    environment = environment_of(exported)
    if environment is None:
        return []
    found: dict[Condition, None] = {}
    for guard in environment.guards:
        frame = guard.sloc.framework_loc
        if frame is None or not hasattr(frame, "filename") or not is_users(frame.filename):
            continue
        condition = _replaced(guard.expr, environment.replacements)
        if all(_holds(condition, sizes) for sizes in _samples(condition, exported, environment)):
            continue
        line, text = short(frame.filename, frame.lineno or 0), _text(condition, names)
        found[Condition(text, line, *_from_which_size(condition, exported, environment, names))] = None
    return list(found)


def _from_which_size(
    condition: Any, exported: ExportedProgram, environment: Any, names: Mapping[Any, str]
) -> tuple[str | None, int]:
    """The dimension and the size from which on the condition holds, if it depends on one dimension and there is one."""
    if len(condition.free_symbols) != 1:
        return None, 0
    (symbol,) = condition.free_symbols
    low, high, _ = _limits(symbol, exported, environment)
    seen = int(environment.backed_var_to_val[symbol])
    failing = [n for n in range(low, seen) if not _holds(condition, {symbol: sympy.Integer(n)})]
    begin = max(failing, default=low - 1) + 1
    later = [*range(begin, begin + SPAN), *(begin + SPAN * k for k in range(2, SAMPLES))]
    if symbol in names and all(_holds(condition, {symbol: sympy.Integer(n)}) for n in later if n <= high):
        return names[symbol], begin
    return None, 0


def _limits(symbol: Any, exported: ExportedProgram, environment: Any) -> tuple[int, int, int]:
    """Lowest and highest size of a dimension, and what it is a multiple of."""
    known = exported.range_constraints.get(symbol)
    low = max(2, int(known.lower)) if known is not None else 2
    high = int(known.upper) if known is not None and known.upper.is_Integer else low + 2**31
    return low, high, required_multiple(symbol, environment)


def _replaced(e: Any, replacements: Mapping[Any, Any]) -> Any:
    for _ in range(len(replacements) + 1):
        after = e.xreplace(replacements)
        if after == e:
            break
        e = after
    return e


def _samples(condition: Any, exported: ExportedProgram, environment: Any) -> Iterator[dict[Any, Any]]:
    """Sizes in range: some by chance, and those around the numbers in the condition."""
    symbols = sorted(condition.free_symbols, key=str)
    if not symbols:
        return
    marks = [int(n) + d for n in condition.atoms(sympy.Integer) for d in (-1, 0, 1)]
    generator = random.Random(0)
    limits = {symbol: _limits(symbol, exported, environment) for symbol in symbols}
    for _ in range(SAMPLES):
        sizes = {}
        for symbol, (low, high, step) in limits.items():
            near = [m for m in marks if low <= m <= high]
            value = (
                generator.choice(near)
                if near and generator.random() < 0.5
                else generator.randint(low, min(high, low + SPAN))
            )
            sizes[symbol] = sympy.Integer(max(-(-low // step) * step, value // step * step))
        yield sizes


def _holds(condition: Any, sizes: Mapping[Any, Any]) -> bool:
    return condition.xreplace(sizes) is not sympy.false


def _text(condition: Any, names: Mapping[Any, str]) -> str:
    shown = condition.xreplace({s: sympy.Symbol(names.get(s, str(s))) for s in condition.free_symbols})
    if isinstance(shown, sympy.core.relational.Relational):
        return f"{_side(shown.lhs)} {shown.rel_op} {_side(shown.rhs)}"
    return str(shown)


def _side(e: Any) -> str:
    if type(e).__name__ in ("Mod", "PythonMod"):
        return f"{e.args[0]} % {e.args[1]}"
    return str(e)
