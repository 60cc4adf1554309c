"""What all verbs share: their common options, and how they print results, logs and progress."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from planish.errors import UsageError

QUIET, NORMAL, VERBOSE = -1, 0, 1
LEVELS = {"error": QUIET, "warning": QUIET, "info": NORMAL, "debug": VERBOSE}


def _load_config(context: typer.Context, value: Path | None) -> Path | None:
    """Values of a configuration file become the defaults of the command."""
    if value is not None:
        from planish.frontend.config import read_config

        known = [p.name for p in context.command.params if p.name and p.name != "config"]
        context.default_map = read_config(value, known)
    return value


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; may be repeated.")]
Quiet = Annotated[int, typer.Option("--quiet", "-q", count=True, help="Say less; may be repeated.")]
NoProgress = Annotated[
    bool, typer.Option("--no-progress", envvar="PLANISH_NO_PROGRESS", help="Show no progress.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the arguments and say what would be done.")]
Seed = Annotated[int, typer.Option(min=0, help="Where random numbers begin.")]
Config = Annotated[
    Path | None,
    typer.Option(help="A TOML file with values for options.", is_eager=True, callback=_load_config),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where the result goes.")]


@dataclass(frozen=True)
class Terminal:
    """Results go to stdout, logs and progress to stderr; with ``json`` the result is one JSON value."""

    json: bool = False
    level: int = NORMAL
    progress: bool = True

    def result(self, text: Any, table: Mapping[str, Any]) -> None:
        """The result of a verb: text or something that rich can print, and the same as plain values."""
        if self.json:
            sys.stdout.write(json_module.dumps(table, indent=1, default=str) + "\n")
        elif isinstance(text, str):
            sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")
        else:
            _console(stderr=False).print(text)

    def log(self, text: str, level: int = NORMAL) -> None:
        """A line for people."""
        if self.level >= level:
            sys.stderr.write(text + "\n")

    def phase(self, name: str, seconds: float) -> None:
        """A phase of the work has ended."""
        if self.progress or self.level >= VERBOSE:
            self.log(f"{seconds:8.2f} s  {name}")


def _console(*, stderr: bool) -> Any:
    from rich.console import Console

    wide = None if (sys.stderr if stderr else sys.stdout).isatty() else 140
    return Console(stderr=stderr, width=wide, soft_wrap=True)


def terminal(json: bool, verbose: int, quiet: int, no_progress: bool) -> Terminal:
    """The terminal of one call: how much it prints, and whether progress is shown (only to people)."""
    level = verbose - quiet
    name = os.environ.get("PLANISH_LOG", "")
    if name and name not in LEVELS:
        raise UsageError("PL824", f"PLANISH_LOG={name!r}", hint=f"known: {', '.join(LEVELS)}")
    if name and not level:
        level = LEVELS[name]
    return Terminal(json, level, progress=not no_progress and sys.stderr.isatty())


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Any:
    """A table for people: texts to the left, numbers to the right."""
    from rich.table import Table

    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        made.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        made.add_row(
            *(f"{v:,}" if isinstance(v, int) else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        )
    return made


def group(*parts: Any) -> Any:
    """Several things to print, one below the other."""
    from rich.console import Group

    return Group(*parts)


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a file that appears when it is complete."""
    from planish.runtime.zipwriter import replacing

    with replacing(path, overwrite=overwrite) as file:
        file.write(text.encode())
