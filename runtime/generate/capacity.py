"""What a model that generates can hold: the table ``generation`` of a manifest, as checked values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planish.errors import ArtifactError, UsageError
from planish.runtime.manifest import EntryPoint
from planish.runtime.typetext import evaluate, symbols

PREFILL, DECODE, EXTEND = "prefill", "decode", "extend"
START, COUNT, LOGITS = "start", "count", "logits"


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
    """

    context: int | None
    chunk: int
    batch: tuple[int, int]
    token_input: str
    vocabulary: int
    rings: Mapping[str, Ring] = field(default_factory=dict)
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)

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
    return Capacity(
        context=None if endless else table["context"],
        chunk=min(table["chunk"], *(widths[1] for name, (_, widths) in ranges.items() if name != DECODE)),
        batch=_batch(table.get("batch"), [batch for batch, _ in ranges.values()], where),
        token_input=tokens,
        vocabulary=table["vocabulary"],
        rings=rings,
        widths={name: widths for name, (_, widths) in ranges.items()},
    )


def _known(entries: Mapping[str, EntryPoint]) -> list[str]:
    return [name for name in (PREFILL, DECODE, EXTEND) if name in entries]


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
    if set(types) != {token_input, START, COUNT}:
        raise _invalid(f"{entry} does not take {token_input}, {START} and {COUNT}", where)
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
