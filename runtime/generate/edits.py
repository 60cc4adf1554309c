"""Edits of tokens that were read already: what is asked for, what is left to do, and how two lists differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from planish.errors import UsageError
from planish.runtime.generate.checks import check_tokens

GAP = 8
"""Changes that stand no further apart are made one by :func:`difference`: reading so few tokens costs nothing."""

TAIL = 16
"""So few tokens behind the last edit are read anew instead of moved: that is exact, and gives the last logits."""

_MOST = 1000


@dataclass(frozen=True)
class Edit:
    """The tokens from ``start`` to before ``stop`` make way for others; counted as before all edits."""

    start: int
    stop: int
    tokens: tuple[int, ...] = ()

    @property
    def growth(self) -> int:
        """By how many places what stands behind moves."""
        return len(self.tokens) - (self.stop - self.start)


@dataclass(frozen=True)
class Moves:
    """What edits are for caches: rows ``(first, by)`` that move in turn, then tokens to read at places."""

    moves: tuple[tuple[int, int], ...]
    reads: tuple[tuple[int, tuple[int, ...]], ...]


def planned(edits: Iterable[Any], old: Sequence[int], vocabulary: int) -> list[Edit]:
    """Edits from left to right, without what they leave as it is; those that touch become one.

    ``edits`` are of :class:`Edit` or ``(start, stop, tokens)``. PL873: no such token; PL880: a place that is not
    there, or edits that overlap.
    """
    given: list[Edit] = []
    for each in edits:
        start, stop, tokens = _parts(each)
        if type(start) is not int or type(stop) is not int or not 0 <= start <= stop <= len(old):
            raise UsageError(
                "PL880", f"there are no tokens {start!r} to {stop!r} to edit", hint=f"the sequence has {len(old)}"
            )  # fmt: skip
        given.append(Edit(start, stop, tuple(check_tokens(tokens, vocabulary))))
    made: list[Edit] = []
    for edit in sorted(given, key=lambda e: (e.start, e.stop)):
        if made and edit.start < made[-1].stop:
            raise UsageError(
                "PL880", f"two edits overlap at the tokens {edit.start} to {made[-1].stop}",
                hint="places of all edits are counted before the first",
            )  # fmt: skip
        if made and edit.start == made[-1].stop:
            last = made.pop()
            edit = Edit(last.start, edit.stop, (*last.tokens, *edit.tokens))
        made.append(edit)
    return [e for e in (trimmed(edit, old) for edit in made) if e.tokens or e.start < e.stop]


def trimmed(edit: Edit, old: Sequence[int]) -> Edit:
    """An edit without the tokens at both ends that stay the same."""
    before, after = list(old[edit.start : edit.stop]), list(edit.tokens)
    head, tail = _common(before, after)
    return Edit(edit.start + head, edit.stop - tail, tuple(after[head : len(after) - tail]))


def applied(edits: Sequence[Edit], old: Sequence[int]) -> list[int]:
    """The tokens after edits that stand from left to right."""
    made: list[int] = []
    at = 0
    for edit in edits:
        made += [*old[at : edit.start], *edit.tokens]
        at = edit.stop
    return [*made, *old[at:]]


def with_tail(edits: list[Edit], old: Sequence[int], rings: bool = False) -> list[Edit]:
    """The same edits; the last one reaches to the end if only few tokens behind it would move, or are in ``rings``."""
    if len(old) - edits[-1].stop > TAIL or not (edits[-1].growth or rings):
        return edits
    last = edits[-1]
    return [*edits[:-1], Edit(last.start, len(old), (*last.tokens, *old[last.stop :]))]


def moves_of(edits: Sequence[Edit], length: int) -> Moves:
    """How edits of a sequence of ``length`` tokens, from left to right, are done.

    What makes the sequence shorter comes first, so that it is never longer than before or after.
    """
    moving = [e for e in edits if e.growth and e.stop < length]
    ordered = sorted(moving, key=lambda e: e.growth > 0)
    moves: list[tuple[int, int]] = []
    for index, edit in enumerate(ordered):
        shift = sum(e.growth for e in ordered[:index] if e.start < edit.start)
        moves.append((edit.stop + shift, edit.growth))
    reads: list[tuple[int, tuple[int, ...]]] = []
    shift = 0
    for edit in edits:
        if edit.tokens:
            reads.append((edit.start + shift, edit.tokens))
        shift += edit.growth
    return Moves(tuple(moves), tuple(reads))


def difference(old: Sequence[int], new: Sequence[int], gap: int = GAP) -> list[Edit]:
    """Few edits that make the list ``new`` of ``old``, from left to right.

    Edits with up to ``gap`` equal tokens between them become one. Lists that have little in common give one edit.
    """
    head, tail = _common(old, new)
    before, after = list(old[head : len(old) - tail]), list(new[head : len(new) - tail])
    made: list[Edit] = []
    for start, stop, first, last in _changes(before, after):
        if made and start - (made[-1].stop - head) <= gap:
            previous = made.pop()
            kept = before[previous.stop - head : start]
            made.append(Edit(previous.start, head + stop, (*previous.tokens, *kept, *after[first:last])))
        else:
            made.append(Edit(head + start, head + stop, tuple(after[first:last])))
    return made


def _common(a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
    """How many tokens are the same at the beginning, and of the rest at the end."""
    most = min(len(a), len(b))
    head = next((i for i in range(most) if a[i] != b[i]), most)
    most -= head
    tail = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
    return head, tail


def _changes(a: list[int], b: list[int]) -> list[tuple[int, int, int, int]]:
    """The ranges ``a[start:stop]`` that became ``b[first:last]``, by the greedy method of Myers (1986)."""
    ends = {1: 0}
    trace: list[dict[int, int]] = []
    for count in range(min(len(a) + len(b), _MOST) + 1):
        trace.append(dict(ends))
        for k in range(-count, count + 1, 2):
            down = k == -count or (k != count and ends[k - 1] < ends[k + 1])
            x = ends[k + 1] if down else ends[k - 1] + 1
            while x < len(a) and x - k < len(b) and a[x] == b[x - k]:
                x += 1
            ends[k] = x
            if x >= len(a) and x - k >= len(b):
                return _joined(_steps(trace, len(a), len(b)))
    return [(0, len(a), 0, len(b))]


def _steps(trace: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int, int, int]]:
    """The single removals and additions on the way to the end of both lists, from left to right."""
    found: list[tuple[int, int, int, int]] = []
    for count in range(len(trace) - 1, 0, -1):
        ends, k = trace[count], x - y
        down = k == -count or (k != count and ends[k - 1] < ends[k + 1])
        before = ends[k + 1] if down else ends[k - 1]
        y_before = before - (k + 1 if down else k - 1)
        found.append(
            (before, before, y_before, y_before + 1) if down else (before, before + 1, y_before, y_before)
        )
        x, y = before, y_before
    return found[::-1]


def _joined(steps: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    made: list[tuple[int, int, int, int]] = []
    for start, stop, first, last in steps:
        if made and (start, first) == (made[-1][1], made[-1][3]):
            made[-1] = (made[-1][0], stop, made[-1][2], last)
        else:
            made.append((start, stop, first, last))
    return made


def _parts(edit: Any) -> tuple[Any, Any, Any]:
    if isinstance(edit, Edit):
        return edit.start, edit.stop, edit.tokens
    if not isinstance(edit, (tuple, list)) or len(edit) != 3:
        raise UsageError("PL880", f"{str(edit)[:80]} is no edit", hint="give (start, stop, tokens)")
    return edit[0], edit[1], edit[2]
