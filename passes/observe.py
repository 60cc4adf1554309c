"""Observers of a pipeline: what changed, programs after a pass, time spent, statistics."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TextIO

from planish.ir.node import Program
from planish.ir.printer import print_program
from planish.passes.pipeline import Observer, PassRecord, Result

if TYPE_CHECKING:
    from rich.console import Console

Sink = Callable[[str], Any]
"""Where text goes, a line or a block at a time."""


def to_stream(stream: TextIO) -> Sink:
    """Text to a stream, as it is."""
    return lambda text: stream.write(text + "\n")


def to_console(console: Console) -> Sink:
    """Text to a rich console; the lines of a difference are coloured where the console has colours."""
    from rich.text import Text

    styles = {"+": "green", "-": "red", "@": "cyan"}

    def show(text: str) -> None:
        for line in text.splitlines():
            style = "bold" if line[:3] in ("---", "+++") else styles.get(line[:1], "")
            console.print(Text(line, style=style), soft_wrap=True)

    return show


def text_diff(before: Program, after: Program, labels: tuple[str, str], context: int) -> str:
    """The unified difference of two programs' texts; empty if they read the same."""
    old, new = (print_program(p, align=False).splitlines() for p in (before, after))
    return "\n".join(difflib.unified_diff(old, new, *labels, n=context, lineterm=""))


def print_changed(sink: Sink, context: int = 2) -> Observer:
    """Show what each pass changed."""

    def observe(record: PassRecord) -> None:
        changes = text_diff(record.before, record.after, ("before", f"after {record.name}"), context)
        sink(changes or f"{record.name}: no change")

    return observe


def print_after(sink: Sink, pattern: str = "*") -> Observer:
    """Show the whole program after the passes whose name (without options) matches."""

    def observe(record: PassRecord) -> None:
        short = record.name.partition("{")[0]
        if fnmatchcase(short, pattern) or fnmatchcase(record.each.name, pattern):
            sink(f"# after {record.name}\n{record.after}")

    return observe


def timing(sink: Sink) -> Observer:
    """Show how long each pass took."""

    def observe(record: PassRecord) -> None:
        sink(f"{record.seconds * 1e3:9.1f} ms  {record.name}")

    return observe


def statistics(sink: Sink) -> Observer:
    """Show rewrites by rule, the nodes by operation that came and went, and bytes of constants."""

    def observe(record: PassRecord) -> None:
        sink(format_statistics(record))

    return observe


def format_statistics(record: PassRecord) -> str:
    """The statistics of one pass as text."""
    before, after = record.operations()
    old, new = record.bytes()
    lines = [
        f"{record.name}: {len(record.steps)} rewrites, {before.total()} -> {after.total()} operations,"
        f" {old:,} -> {new:,} bytes of constants"
    ]
    lines += [f"  {count:5} x {rule}" for rule, count in sorted(record.rules().items())]
    for op in sorted(before.keys() | after.keys()):
        if before[op] != after[op]:
            lines.append(f"  {op}: {before[op]} -> {after[op]}")
    if record.difference is not None:
        lines.append(f"  results: {record.difference}")
    lines += [f"  {note}" for note in record.notes]
    return "\n".join(lines)


def as_json(result: Result) -> list[Mapping[str, Any]]:
    """The statistics of every pass as plain values."""
    return [
        {
            "pass": record.name,
            "seconds": record.seconds,
            "rewrites": len(record.steps),
            "rules": dict(sorted(record.rules().items())),
            "operations": [dict(sorted(c.items())) for c in record.operations()],
            "bytes": list(record.bytes()),
            "notes": [str(note) for note in record.notes],
        }
        for record in result.records
    ]
