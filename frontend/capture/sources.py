"""The user's source lines: of a graph node, of a failure, of a guard that fixed a dimension."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_CAPTURE = str(Path(__file__).with_name("torch.py"))
_FOREIGN = ("/torch/", "/planish/", "\\torch\\", "<frozen", "/contextlib.py", "/functools.py")


def is_users(file: str) -> bool:
    """True for a file that is neither torch's nor planish's."""
    own = str(Path(__file__).resolve().parents[2])
    return (
        not any(part in file for part in _FOREIGN)
        and not file.startswith(own + "/frontend")
        and file[:1] != "<"
    )


def short(file: str, line: int | str) -> str:
    """``file:line`` with the part of the path that tells: below site-packages, or relative to the working folder."""
    for root in sorted(sys.path, key=len, reverse=True):
        if root and file.startswith(root.rstrip("/") + "/"):
            return f"{file[len(root.rstrip('/')) + 1 :]}:{line}"
    return f"{file}:{line}"


def node_line(node: Any) -> str | None:
    """The deepest line of the user's model for a node of an exported graph."""
    trace = node.meta.get("stack_trace") or ""
    frames = [(f, n) for f, n in _FRAME.findall(trace) if is_users(f)]
    return short(*frames[-1]) if frames else None


def node_scope(node: Any) -> str:
    """The module path that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [value[0] for value in stack.values()]
    return str(paths[-1]) if paths else ""


def model_line(error: BaseException) -> str | None:
    """The deepest line of the user's model in the traceback of a failure."""
    found = None
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        for frame in traceback.extract_tb(current.__traceback__):
            if is_users(frame.filename):
                found = short(frame.filename, frame.lineno or 0)
        if found:
            return found
        current = current.__cause__ or current.__context__
    frames = [(f, n) for f, n in _FRAME.findall(str(error)) if is_users(f)]
    return short(*frames[-1]) if frames else None


@dataclass(frozen=True)
class Fixed:
    """A dimension that became a number while a model was traced: where it stands in the inputs, and the line."""

    source: str
    value: int
    line: str | None


@contextlib.contextmanager
def watch_fixed_dimensions() -> Iterator[list[Fixed]]:
    """Record every dimension that torch fixes to a number while the context is open, with the model's line."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    found: list[Fixed] = []
    original = ShapeEnv._set_replacement

    def watched(self: Any, symbol: Any, target: Any, message: str) -> None:
        if getattr(target, "is_number", False):
            inside = _inside_capture(traceback.extract_stack()[:-1])
            source = (
                ", ".join(str(s.name) for s in self.var_to_sources.get(symbol, ()))
                if _has_sources(self)
                else ""
            )
            line = short(inside.filename, inside.lineno or 0) if inside is not None else None
            found.append(Fixed(source, int(target), line))
        original(self, symbol, target, message)

    setattr(ShapeEnv, "_set_replacement", watched)  # noqa: B010
    try:
        yield found
    finally:
        setattr(ShapeEnv, "_set_replacement", original)  # noqa: B010


def _has_sources(environment: Any) -> bool:
    return isinstance(getattr(environment, "var_to_sources", None), dict)


def _inside_capture(stack: list[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    """The deepest line of the model: below the call of planish, so not the line that calls planish."""
    begin = max((i for i, f in enumerate(stack) if f.filename == _CAPTURE), default=-1)
    frames = [f for f in stack[begin + 1 :] if is_users(f.filename)]
    return frames[-1] if frames else None


def fixed_line(found: list[Fixed], name: str, axis: int, value: int) -> str | None:
    """The line that fixed one axis of one input."""
    exact = [f.line for f in found if f"'{name}'" in f.source and f.source.endswith(f"[{axis}]") and f.line]
    return next(iter(exact or [f.line for f in found if f.value == value and f.line]), None)
