"""Programs for verbs that look at one: from a program file, an artifact, or any model that can be captured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planish.frontend.capture.base import Captured


def read_any(path: Path) -> Captured:
    """A program with its weights from any kind of file."""
    if path.name.endswith(".ir.py"):
        from planish.frontend.cli.opt import read

        return read(path, None)
    if path.suffix == ".planish":
        from planish.frontend.api import load
        from planish.frontend.capture.base import Captured

        compiled = load(path, verify="fast")
        return Captured(compiled.program, compiled.weights)
    from planish.frontend.capture.source import capture

    return capture(path)
