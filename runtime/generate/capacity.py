"""What a model that generates can hold: the table ``generation`` of a manifest, as checked values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planish.errors import ArtifactError, UsageError
from planish.runtime.manifest import EntryPoint
from planish.runtime.typetext import evaluate, symbols

PREFILL, DECODE, EXTEND, MOVE, BEGIN = "prefill", "decode", "extend", "move", "begin"
START, COUNT, LOGITS = "start", "count", "logits"
FIRST, BY = "first", "by"
PARALLEL = "_parallel"
"""What the names of entry points end in that continue behind contexts which were read side by side."""

POSITION, LAST, TEMPERATURE, SHARE = "position", "last", "temperature", "share"
_MORE = {POSITION: "i64", FIRST: "i64", LAST: "i64", TEMPERATURE: "f32", SHARE: "f32"}


@dataclass(frozen=True)
class Ring:
    """A cache that keeps the last ``capacity`` rows, of which attention sees the last ``window``."""

    capacity: int
    window: int

    def keeps(self, length: int, reach: int) -> bool:
        """Whether all that is seen after ``length`` tokens is still there, once ``reach`` positions were written."""
        return not length or max(0, length - self.window + 1) + self.capacity >= reach


@dataclass(frozen=True)
class Capacity:
    """How much a model takes: ``context`` tokens in its caches (None: any number), ``chunk`` tokens in one call.

    ``batch`` and ``widths`` are the smallest and the largest number of sequences, and of tokens by entry point.
    ``no_move`` is why rows of the caches cannot be moved, or None if they can; ``given`` names what the model reads
    before any token, such as the text of an encoder. ``parallel`` says whether contexts can be read side by side.
    """

    context: int | None
    chunk: int
    batch: tuple[int, int]
    token_input: str
    vocabulary: int
    rings: Mapping[str, Ring] = field(default_factory=dict)
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    no_move: str | None = "the model was compiled without it"
    given: tuple[str, ...] = ()
    parallel: bool = False

    def slack(self) -> int | None:
        """How many tokens can always be taken back; None if all of them can."""
        return min((r.capacity - r.window + 1 for r in self.rings.values()), default=None)


def read_capacity(
    table: Mapping[str, Any] | None,
    entries: Mapping[str, EntryPoint],
    dims: Mapping[str, tuple[int, int]],
    where: str,
) -> Capacity:
    """The capacity of a model with these entry points and ranges of dimensions; ``table`` was checked before.

    PL870 if the model was not made for generation, PL611 if its entry points do not fit together.
    """
    if table is None or PREFILL not in entries or DECODE not in entries:
        raise UsageError(
            "PL870", "the model has no entry points that generate text", where=where,
            hint="compile it with generate=True, or: planish compile MODEL --generate",
        )  # fmt: skip
    tokens = table["token_input"]
    rings = {name: Ring(r["capacity"], r["window"]) for name, r in table.get("rings", {}).items()}
    layers = {_layer(s.name) for s in entries[PREFILL].states}
    endless = bool(layers) and layers <= {_layer(name) for name in rings}
    ranges = {name: _ranges(entries[name], tokens, dims, where) for name in _known(entries)}
    if MOVE in entries:
        _check_move(entries, where)
    parallel = all(name + PARALLEL in entries for name in (PREFILL, DECODE))
    if parallel and (
        rings or any(_states(entries[n]) != _states(entries[PREFILL]) for n in entries if _apart(n))
    ):
        raise _invalid("entry points over contexts side by side have other states than the others", where)
    begin = entries.get(BEGIN)
    return Capacity(
        context=None if endless else table["context"],
        chunk=min(
            table["chunk"], *(widths[1] for n, (_, widths) in ranges.items() if not n.startswith(DECODE))
        ),
        batch=_batch(table.get("batch"), [batch for batch, _ in ranges.values()], where),
        token_input=tokens,
        vocabulary=table["vocabulary"],
        rings=rings,
        widths={name: widths for name, (_, widths) in ranges.items()},
        no_move=None if MOVE in entries else str(table.get("no_edit") or Capacity.no_move),
        given=() if begin is None else tuple(v.name for v in begin.inputs),
        parallel=parallel,
    )


def _known(entries: Mapping[str, EntryPoint]) -> list[str]:
    plain = (PREFILL, DECODE, EXTEND)
    return [name for name in (*plain, *(n + PARALLEL for n in plain)) if name in entries]


def _apart(name: str) -> bool:
    return name.endswith(PARALLEL)


def _states(entry: EntryPoint) -> set[str]:
    return {s.name for s in entry.states}


def _check_move(entries: Mapping[str, EntryPoint], where: str) -> None:
    """The entry point that moves rows takes two numbers for each sequence, and has caches of the model."""
    entry = entries[MOVE]
    kinds = {v.name: v.type for v in entry.inputs}
    if set(kinds) != {FIRST, BY} or any(k.rank != 1 or k.dtype != "i64" for k in kinds.values()):
        raise _invalid(f"{entry} does not take {FIRST} and {BY}, numbers for each sequence", where)
    if not {s.name for s in entry.states} <= {s.name for s in entries[PREFILL].states}:
        raise _invalid(f"{entry} has other states than {PREFILL}", where)


def _batch(fixed: int | None, ranges: list[tuple[int, int]], where: str) -> tuple[int, int]:
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    if fixed is not None:
        low = high = fixed
    if high < 1 or low > high:
        raise _invalid("the entry points take different numbers of sequences", where)
    return max(low, 1), high


def _ranges(
    entry: EntryPoint, token_input: str, dims: Mapping[str, tuple[int, int]], where: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The ranges of both axes of the tokens."""
    types = {v.name: v.type for v in entry.inputs}
    more = _MORE if _apart(entry.name) else {}
    if set(types) != {token_input, START, COUNT, *more}:
        raise _invalid(f"{entry} does not take {', '.join((token_input, START, COUNT, *more))}", where)
    if any(types[n].rank != 1 or types[n].dtype != kind for n, kind in more.items()):
        raise _invalid(f"{entry} does not take {', '.join(more)} for each sequence", where)
    kind = types[token_input]
    if kind.rank != 2 or kind.dtype not in ("i64", "i32"):
        raise _invalid(f"{token_input}: {kind} holds no tokens", where)
    first, second = (_range(dim, dims) for dim in kind.dims)
    return first, second


def _range(dim: Any, dims: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    names = sorted(symbols(dim))
    if not names:
        size = evaluate(dim, {})
        return size, size
    ends = sorted(evaluate(dim, {n: dims[n][end] for n in names}) for end in (0, 1))
    return ends[0], ends[1]


def _layer(name: str) -> str:
    return name.partition(".")[2].partition("#")[0]


def _invalid(what: str, where: str) -> ArtifactError:
    return ArtifactError("PL611", f"the table generation of the manifest: {what}", where=where)
