"""What runs a finished model: artifacts, their tensors and sessions, with numpy and onnxruntime alone.

This floor knows neither torch nor the compiler. ``load`` opens a ``NAME.planish`` file and gives a callable
:class:`~planish.runtime.session.Session`; ``write_artifact`` and ``open_artifact`` are the file format.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.runtime.artifact import Artifact, open_artifact, write_artifact
    from planish.runtime.limits import Limits
    from planish.runtime.session import Session, load
    from planish.runtime.tensors import SafetensorsPayload, TensorSource

__all__ = [
    "Artifact",
    "Limits",
    "SafetensorsPayload",
    "Session",
    "TensorSource",
    "load",
    "open_artifact",
    "write_artifact",
]

_HOMES = {
    "Artifact": "artifact",
    "Limits": "limits",
    "SafetensorsPayload": "tensors",
    "Session": "session",
    "TensorSource": "tensors",
    "load": "session",
    "open_artifact": "artifact",
    "write_artifact": "artifact",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
