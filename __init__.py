"""planish makes neural networks smaller and faster by rewriting them as programs.

This module is only a facade: every name is looked up on first use, so `import planish` imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.errors import (
        ArtifactError,
        BackendError,
        BudgetError,
        CaptureError,
        GuardError,
        InternalError,
        PlanishError,
        ShapeError,
        UnsupportedOpError,
        UsageError,
    )
    from planish.frontend.api import Compiled, compile, export, load
    from planish.frontend.config import GenerateOptions
    from planish.ir.namespace import aten, planish
    from planish.ir.node import Module, Node, Program
    from planish.ir.parser import parse
    from planish.ir.run import run
    from planish.ir.target import Kernel, Machine, Target
    from planish.ir.weights import Weights

__all__ = [
    "ArtifactError",
    "BackendError",
    "BudgetError",
    "CaptureError",
    "Compiled",
    "GenerateOptions",
    "GuardError",
    "InternalError",
    "Kernel",
    "Machine",
    "Module",
    "Node",
    "PlanishError",
    "Program",
    "ShapeError",
    "Target",
    "UnsupportedOpError",
    "UsageError",
    "Weights",
    "aten",
    "compile",
    "export",
    "load",
    "parse",
    "planish",
    "run",
]

_HOMES = {
    "planish.errors": (
        "ArtifactError",
        "BackendError",
        "BudgetError",
        "CaptureError",
        "GuardError",
        "InternalError",
        "PlanishError",
        "ShapeError",
        "UnsupportedOpError",
        "UsageError",
    ),
    "planish.frontend.api": ("Compiled", "compile", "export", "load"),
    "planish.frontend.config": ("GenerateOptions",),
    "planish.ir.namespace": ("aten", "planish"),
    "planish.ir.node": ("Module", "Node", "Program"),
    "planish.ir.parser": ("parse",),
    "planish.ir.run": ("run",),
    "planish.ir.target": ("Kernel", "Machine", "Target"),
    "planish.ir.weights": ("Weights",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_FOLDERS = ("backends", "frontend", "ir", "passes", "runtime")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("planish")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _FOLDERS:
        value = import_module(f"planish.{name}")
    else:
        raise AttributeError(f"module 'planish' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FOLDERS, "__version__"})
