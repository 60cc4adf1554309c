"""Operators of the library ``planish`` that a model calls itself."""

from __future__ import annotations

from typing import Any

from planish.frontend.capture.torch_ops.base import HANDLERS
from planish.ir.namespace import make
from planish.ir.node import Node
from planish.ir.torch_library import argument, register


def _same(name: str) -> Any:
    def build(*args: Any, **kwargs: Any) -> Node:
        return make(f"planish.{name}", *map(argument, args), **{k: argument(v) for k, v in kwargs.items()})

    return build


for _name in register():
    HANDLERS[f"planish::{_name}.default"] = _same(_name)
