"""What a position-only mask means, found by evaluating it at several sizes, not by its spelling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planish.errors import PlanishError
from planish.ir.namespace import aten
from planish.ir.node import Node, Program, topological
from planish.ir.run import run_with
from planish.ir.types import Symbol, bounds, evaluate, symbols_of
from planish.ir.weights import Weights

if TYPE_CHECKING:
    import torch

NEVER = -1e4
"""An additive mask value at or below this hides a key: exp of it underflows for all reasonable scores."""

ABSORBS_ALL = -1e30
"""A number, or minus infinity, that stays what it is when any bias that occurs is added to it in f32."""

LARGEST = 8192
"""A mask in which a larger number occurs is left alone, unless no length reaches it: evaluation would need too much
memory."""

LARGER = (67, 259, 1025)
"""Lengths that are always evaluated too, for windows that are made of several numbers."""


@dataclass(frozen=True)
class Meaning:
    """Which keys a query sees by position: ``causal`` hides later keys, ``window`` those ``window`` or more before."""

    causal: bool
    window: int | None
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def hides_nothing(self) -> bool:
        """True if every query sees every key."""
        return not self.causal and self.window is None

    def __str__(self) -> str:
        kind = (
            "full"
            if self.hides_nothing
            else "causal"
            if self.window is None
            else f"sliding window of {self.window}"
        )
        kind = kind if self.causal or self.window is None else f"not causal, {kind}"
        return f"{kind}, decided at sizes {', '.join(f'{s}x{t}' for s, t in self.sizes)}"


def is_position_only(node: Node) -> bool:
    """True if no input and no constant reaches the node: its values follow from sizes alone."""
    return all(n.op not in ("input", "state", "const") for n in topological([node]))


def understand(mask: Node, queries: Any, keys: Any, weights: Weights) -> Meaning | None:
    """The meaning of a position-only mask over ``queries`` x ``keys``, or None if it has none that we know.

    The mask is evaluated at several sizes, among them sizes around every number that occurs in it, so that a sliding
    window shows itself; a number too large to evaluate at, which a length may reach, leaves the mask as it is.
    """
    symbols = sorted(symbols_of((mask.type, queries, keys)) | _inner_symbols(mask), key=str)
    every = _numbers(mask)
    numbers = tuple(n for n in every if n <= LARGEST)
    longest = max(bounds(queries)[1], bounds(keys)[1])
    if any(LARGEST < n <= longest for n in every):
        return None
    guesses: set[Meaning] | None = None
    seen: list[tuple[int, int]] = []
    for binding in _bindings(symbols, numbers, (queries, keys)):
        rows, columns = evaluate(queries, binding), evaluate(keys, binding)
        try:
            allowed = _allowed(mask, binding, weights, rows, columns)
        except PlanishError:
            return None
        if allowed is None:
            return None
        seen.append((rows, columns))
        candidates = _candidates(rows, columns, numbers) if guesses is None else guesses
        guesses = {c for c in candidates if _fits(c, allowed)}
        if not guesses:
            return None
    if not guesses:
        return None
    best = min(guesses, key=lambda m: (m.window is not None, m.causal, m.window or 0))
    return Meaning(best.causal, best.window, tuple(seen))


def _inner_symbols(mask: Node) -> set[Symbol]:
    return set().union(*(symbols_of(n.args) for n in topological([mask])))


def _numbers(mask: Node) -> tuple[int, ...]:
    """Whole numbers in the mask's expressions that may be windows, in order."""
    found: set[int] = set()

    def visit(args: Any, fills: bool) -> None:
        for arg in args:
            if isinstance(arg, tuple):
                visit(arg, fills)
            elif isinstance(arg, (int, float)) and not isinstance(arg, bool) and math.isfinite(arg):
                # A large negative number among floats is what hides a key, not a place.
                if not (fills and arg <= NEVER):
                    found.add(abs(int(arg)))

    for node in topological([mask]):
        visit(node.args, node.dtype.is_float)
    return tuple(sorted(n for n in found if n >= 1))


def _bindings(
    symbols: list[Symbol], numbers: tuple[int, ...], lengths: tuple[Any, ...]
) -> Iterator[dict[Symbol, int]]:
    """Sizes to evaluate at: small ones, and around each number; other symbols stay small."""
    moving = symbols_of(lengths)
    if not moving:
        yield {s: min(max(s.low, 2 + i), s.high) for i, s in enumerate(symbols)}
        return
    wanted = {2, 3, 7, 19, *LARGER, *(v for n in numbers for v in (n, n + 1, n + 5))}
    done: set[tuple[int, ...]] = set()
    for length in sorted(wanted):
        binding = {s: min(max(length if s in moving else 2, s.low), s.high) for s in symbols}
        key = tuple(binding[s] for s in symbols if s in moving)
        if key not in done:
            done.add(key)
            yield binding


def _allowed(
    mask: Node, binding: dict[Symbol, int], weights: Weights, rows: int, columns: int
) -> torch.Tensor | None:
    """``bool[rows, columns]``; None if batches or heads differ or values are neither 0 nor minus infinity."""
    import torch

    (value,) = run_with(Program("mask", (), (mask,)), weights, binding)
    if value.dtype is not torch.bool:
        hidden = value <= NEVER
        if not bool((hidden | (value == 0)).all()):
            return None
        value = ~hidden
    flat = value.expand(*value.shape[:-2], rows, columns).reshape(-1, rows, columns)
    return flat[0] if all(torch.equal(flat[0], other) for other in flat[1:]) else None


def _candidates(rows: int, columns: int, numbers: tuple[int, ...]) -> set[Meaning]:
    if rows != columns:
        return {Meaning(False, None)}
    windows = {w for n in numbers for w in (n - 1, n, n + 1) if w >= 1}
    return {
        Meaning(False, None),
        Meaning(True, None),
        *(Meaning(c, w) for w in windows for c in (True, False)),
    }


def _fits(meaning: Meaning, allowed: torch.Tensor) -> bool:
    import torch

    from planish.ir.eager import position_mask

    expected = position_mask(allowed.shape[0], allowed.shape[1], meaning.causal, meaning.window)
    return bool(allowed.all()) if expected is None else torch.equal(expected, allowed)


def _hides_all_but(mask: Node) -> bool:
    """True for ``where(seen, bias, fill)`` with a fill in which any bias is lost: the same as ``bias`` plus a mask."""
    _, bias, fill = mask.args
    value = fill.args[1] if isinstance(fill, Node) and fill.op == "aten.full" else fill
    number = isinstance(value, (int, float)) and value <= ABSORBS_ALL
    return number and isinstance(bias, Node) and bias.op != "aten.full" and bias.rank >= 2


def terms(mask: Node) -> list[Node]:
    """The parts that a mask is made of: operands of "and" for bool masks, of "+" for additive ones."""
    joint = "aten.bitwise_and" if mask.dtype.name == "bool" else "aten.add"
    if mask.op == "aten.expand" and mask.args[0].op == joint:
        return terms(mask.args[0])
    if mask.op == "aten.where" and _hides_all_but(mask):
        seen, bias, fill = mask.args
        return [aten.where(seen, aten.full([], 0.0, bias.dtype), fill), *terms(bias)]
    if mask.op != joint or len(mask.operands) != 2 or any(not isinstance(a, Node) for a in mask.args):
        return [mask]
    return [t for operand in mask.operands for t in terms(operand)]
