"""One function, three readings: ``aten.linear(x, w)`` builds a pattern, a node or a number by what it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planish.ir import pattern
from planish.ir.dialect import OPERATIONS, bind, operation
from planish.ir.infer import infer, mismatch
from planish.ir.node import Node, intern
from planish.ir.pattern import Hole, Pattern
from planish.ir.shapes import Mismatch


def make(name: str, *args: Any, **kwargs: Any) -> Node:
    """The node for a call; raises ``ShapeError`` if the arguments do not fit the operation."""
    row = operation(name)
    try:
        bound = bind(row, args, kwargs)
    except Mismatch as problem:
        raise mismatch(name, args, problem) from None
    return intern(name, bound, infer(row, bound))


def _reading(args: Any) -> str:
    for arg in args:
        if isinstance(arg, (Hole, Pattern)):
            return "pattern"
        if isinstance(arg, Node):
            found = "node"
        elif isinstance(arg, (tuple, list)):
            found = _reading(arg)
        elif type(arg).__module__.startswith("torch") and hasattr(arg, "dtype"):
            return "number"
        else:
            continue
        if found:
            return found
    return ""


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    """The operation read as pattern, number or node, by its arguments (a call without tensors is a node)."""
    reading = _reading([*args, *kwargs.values()])
    if reading == "pattern":
        return pattern.build(name, args, kwargs)
    if reading == "number":
        from planish.ir.run import apply

        return apply(name, *args, **kwargs)
    return make(name, *args, **kwargs)


class Namespace:
    """The operations whose names begin with a prefix, as attributes."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __getattr__(self, name: str) -> Callable[..., Any]:
        full = f"{self._prefix}.{name}"
        if full not in OPERATIONS and name.startswith("__"):
            raise AttributeError(name)
        operation(full)

        def read(*args: Any, **kwargs: Any) -> Any:
            return call(full, *args, **kwargs)

        read.__name__, read.__doc__ = name, operation(full).signature()
        self.__dict__[name] = read
        return read

    def __dir__(self) -> list[str]:
        return [n.partition(".")[2] for n in OPERATIONS if n.startswith(self._prefix + ".")]


aten = Namespace("aten")
planish = Namespace("planish")
