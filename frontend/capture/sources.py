"""The user's source lines: of a graph node, of a failure, of a guard that fixed a dimension."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import Any

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_FOREIGN = ("/torch/", "/planish/", "\\torch\\", "<frozen", "/contextlib.py", "/functools.py")


def _is_users(file: str) -> bool:
    own = str(Path(__file__).resolve().parents[2])
    return not any(part in file for part in _FOREIGN) and not file.startswith(own + "/frontend") and file[:1] != "<"


def short(file: str, line: int | str) -> str:
    """``file:line`` with the part of the path that tells: below site-packages, or relative to the working folder."""
    for root in sorted(sys.path, key=len, reverse=True):
        if root and file.startswith(root.rstrip("/") + "/"):
            return f"{file[len(root.rstrip('/')) + 1 :]}:{line}"
    return f"{file}:{line}"


def node_line(node: Any) -> str | None:
    """The deepest line of the user's model for a node of an exported graph."""
    trace = node.meta.get("stack_trace") or ""
    frames = [(f, n) for f, n in _FRAME.findall(trace) if _is_users(f)]
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
            if _is_users(frame.filename):
                found = short(frame.filename, frame.lineno or 0)
        if found:
            return found
        current = current.__cause__ or current.__context__
    frames = [(f, n) for f, n in _FRAME.findall(str(error)) if _is_users(f)]
    return short(*frames[-1]) if frames else None


def fixed_dimension_reason(exported: Any, value: int) -> tuple[str | None, str]:
    """Where and why a dimension became the number ``value``: the line of the guard, as far as torch recorded it."""
    environment = None
    for node in exported.graph.nodes:
        fake = node.meta.get("val")
        mode = getattr(fake, "fake_mode", None)
        if mode is not None:
            environment = mode.shape_env
            break
    if environment is None:
        return None, ""
    for symbol, replaced in environment.replacements.items():
        if not getattr(replaced, "is_number", False) or int(replaced) != value:
            continue
        location = environment.replacements_slocs.get(symbol)
        user = getattr(location, "maybe_user_loc", None)
        frames = _FRAME.findall(str(user or ""))
        if frames and _is_users(frames[-1][0]):
            return short(*frames[-1]), f"{symbol} == {value}"
        if user is not None and hasattr(user, "filename"):
            return short(user.filename, user.lineno), f"{symbol} == {value}"
    for guard in environment.guards:
        if str(value) in str(guard.expr):
            user = guard.sloc.maybe_user_loc
            frames = _FRAME.findall(str(user or ""))
            if frames:
                return short(*frames[-1]), str(guard.expr)
            if user is not None and hasattr(user, "filename"):
                return short(user.filename, user.lineno), str(guard.expr)
    return None, ""
