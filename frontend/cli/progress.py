"""The progress of a compilation for people: a line for each phase, and a bar while kernels are tuned."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from planish.frontend.cli.common import VERBOSE, Terminal

TUNING = "tune: "
"""How the names of steps begin that are kernels in tuning; the phase that ends them is called ``tune``."""


class Steps:
    """What is called with the name and the seconds of every step; a context in which a bar may be shown.

    ``seconds`` are how long tuning may take: the bar is full when they are over, or when all kernels are tuned.
    """

    def __init__(self, out: Terminal, seconds: float | None) -> None:
        self.out, self.seconds = out, seconds
        self._bar: Any = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, name: str, seconds: float) -> None:
        """A step has ended."""
        if not name.startswith(TUNING):
            self._close()
            self.out.phase(name, seconds)
        elif self.out.level >= VERBOSE:
            self.out.phase(name, seconds)
        elif self.out.progress and self.seconds is not None:
            self._advance(name, seconds)

    def _advance(self, name: str, seconds: float) -> None:
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
            self._bar.add_task("tuning", total=max(self.seconds or 0.0, 1e-9), kernel="")
        self._bar.update(self._bar.task_ids[0], advance=seconds, kernel=name.removeprefix(TUNING)[:60])

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[kernel]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
