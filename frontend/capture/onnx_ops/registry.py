"""The table of ONNX operators. A handler is a function of tensor code; its signature is its schema.

Positional parameters are the operator's inputs and say by annotation what they need:

- ``Node``: a tensor
- ``Operand``: a tensor, or a number where the file has a constant with one element
- ``Sizes``: a list of whole numbers or sizes that must be known at capture; ``Size``: one of them
- ``Value``: whatever there is

``| None`` marks an optional input, ``*xs`` takes all that remain. Keyword parameters are attributes with their
defaults; ``at: At`` is the place in the model. A handler returns one value or a tuple of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import numpy as np
import onnx_ir
import torch

from planish.errors import CaptureError
from planish.frontend.capture.onnx_ops.initializers import read_tensor
from planish.frontend.capture.onnx_ops.values import (
    Empty,
    Items,
    Known,
    Value,
    dtype_of,
    full_like_items,
    known,
    symbolic_node,
)
from planish.ir import types
from planish.ir.eager import TORCH_DTYPES
from planish.ir.node import Node, const, topological
from planish.ir.types import DType
from planish.ir.weights import Weights, type_of

Operand: TypeAlias = "Node | int | float | types.Size"
Sizes: TypeAlias = "tuple[types.Size, ...]"
Size = types.Size
Result: TypeAlias = "Value | tuple[Value | None, ...]"


class NeedsValue(CaptureError):
    """What must be known at capture is computed from data; ``inputs`` names the graph's inputs that it comes from."""

    def __init__(
        self, code: str, message: str, *, inputs: tuple[str, ...] = (), where: str | None = None
    ) -> None:
        hint = None
        if inputs and len(inputs) <= 5:
            hint = "give the value to the capture: values={" + ", ".join(f"{n!r}: ..." for n in inputs) + "}"
        super().__init__(code, message, hint=hint, where=where)
        self.inputs = inputs


@dataclass
class At:
    """The place in the model that a handler works for: its node, opset and what it may create."""

    node: onnx_ir.Node
    opset: int
    weights: Weights
    prefix: str = ""
    walk: Any = None
    scope: Any = None
    fresh: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The node's name, or the name of its first output."""
        return self.prefix + (
            self.node.name or next((o.name for o in self.node.outputs if o.name), "") or "?"
        )

    @property
    def where(self) -> str:
        """The node for a message."""
        return f"{self.node.op_type} {self.name!r}"

    @property
    def outputs(self) -> int:
        """How many results the model names."""
        return sum(1 for o in self.node.outputs if o.name)

    def wants(self, index: int) -> bool:
        """True if the result with this index has a name."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def refuse(self, message: str, code: str = "PL145", hint: str | None = None) -> NoReturn:
        """Refuse this node."""
        raise CaptureError(code, message, where=self.where, hint=hint)

    def need(self, condition: bool, message: str, code: str = "PL145") -> None:
        """Refuse this node unless the condition holds."""
        if not condition:
            self.refuse(message, code)

    def node_of(self, value: Value | None) -> Node:
        """A value as a tensor."""
        if isinstance(value, Node):
            return value
        if not isinstance(value, Known):
            self.refuse("a tensor is needed, but the value is a sequence, an optional or missing", "PL142")
        return self._of_known(value)

    def _of_known(self, value: Known) -> Node:
        if value.leaf is not None and value.leaf in self.weights:
            return const(value.leaf, self.weights.type(value.leaf))
        short = full_like_items(value)
        if short is not None:
            return short
        if not value.numeric:
            return symbolic_node(value)
        return self.constant(
            torch.tensor(value.items, dtype=TORCH_DTYPES[value.dtype.name]).reshape(value.shape)
        )

    def constant(self, tensor: torch.Tensor | np.ndarray[Any, Any], hint: str = "") -> Node:
        """A constant that this node brings along, named after it."""
        if isinstance(tensor, np.ndarray):
            tensor = torch.from_numpy(np.ascontiguousarray(tensor).reshape(tensor.shape))
        name = self.fresh_name(f"{self.name}#{hint or 'value'}")
        return const(name, self.weights.add(name, tensor))

    def fresh_name(self, base: str) -> str:
        """A name that no weight has."""
        while True:
            count = self.fresh[base] = self.fresh.get(base, 0) + 1
            name = base if count == 1 else f"{base}.{count}"
            if name not in self.weights:
                return name

    def read(self, tensor: Any) -> Value:
        """A tensor of the file that is no initializer, named after this node's output."""
        first = next((o.name for o in self.node.outputs if o.name), None)
        name = self.prefix + first if first else self.name
        return read_tensor(tensor, self.fresh_name(name), self.weights, self.walk.initializers.folder)

    def sizes(self, value: Value | None, what: str) -> Sizes:
        """A value as a list of sizes; refuses what is computed from data."""
        if not isinstance(value, Known):
            self.unknown(value, what)
        return tuple(
            int(v) if isinstance(v, bool) or (isinstance(v, float) and v.is_integer()) else v
            for v in value.items
        )

    def unknown(self, value: Any, what: str, code: str = "PL143") -> NoReturn:
        """Refuse because ``what`` is computed from data."""
        leaves = [n.name for n in topological([value]) if n.op == "input"] if isinstance(value, Node) else []
        shown = ", ".join(map(repr, leaves[:5])) + (" and others" if len(leaves) > 5 else "")
        if isinstance(value, Node) and value.op == "input":
            source = f"comes from the input {shown}"
        else:
            source = f"is computed from the values of {shown}" if leaves else "is computed from data"
        reason = "because the shape of a result depends on it" if code == "PL143" else "to follow its course"
        raise NeedsValue(
            code,
            f"{what} {source}; it must be known at capture {reason}",
            inputs=tuple(leaves),
            where=self.where,
        )

    def dtype(self, code: int) -> DType:
        """The element type of an ONNX code."""
        return dtype_of(code, self.where)


@dataclass(frozen=True)
class Handler:
    """An operator's function and what its signature says."""

    name: str
    function: Callable[..., Result]
    inputs: tuple[tuple[str, str, bool], ...]
    variadic: str | None
    attributes: Mapping[str, Any]
    takes_place: bool
    any_attribute: bool = False

    def call(self, at: At, inputs: list[Value | None], attributes: Mapping[str, Any]) -> Result:
        """Run the handler on values; refuses inputs and attributes that it does not take."""
        given: list[Any] = []
        rank = max((v.rank for v in inputs if isinstance(v, Node)), default=0)
        for index, (name, kind, optional) in enumerate(self.inputs):
            value = inputs[index] if index < len(inputs) else None
            if value is None:
                at.need(optional, f"the input {name!r} is missing", "PL141")
                given.append(None)
                continue
            given.append(convert(at, value, kind, name, rank))
        operands = [i for i, (_, kind, _) in enumerate(self.inputs) if kind == "Operand"]
        if operands and not any(isinstance(g, Node) for g in given):
            given[operands[0]] = at.node_of(inputs[operands[0]])
        rest = inputs[len(self.inputs) :]
        if self.variadic:
            for value in rest:
                at.need(value is not None, "an input is missing", "PL141")
                given.append(convert(at, value, self.variadic, "an input"))
        else:
            at.need(
                all(v is None for v in rest), f"takes {len(self.inputs)} inputs, got {len(inputs)}", "PL141"
            )
        for name, value in attributes.items():
            at.need(
                name in self.attributes or self.any_attribute,
                f"the attribute {name}={value!r} is not supported",
            )
        for name, default in self.attributes.items():
            at.need(
                name in attributes or default is not _REQUIRED, f"the attribute {name!r} is missing", "PL141"
            )
        extra = {"at": at} if self.takes_place else {}
        return self.function(*given, **attributes, **extra)


_REQUIRED = object()
HANDLERS: dict[str, Handler] = {}


def convert(at: At, value: Value | None, kind: str, what: str, rank: int = 0) -> Any:
    """A value in the form that a parameter asks for; ``rank`` is that of the tensors which it meets."""
    if kind == "Value":
        return value
    if kind == "Operand":
        if isinstance(value, Known) and len(value.items) == 1 and value.rank <= rank and value.whole:
            return value.items[0]
        return at.node_of(value)
    if kind == "Sizes":
        return at.sizes(value, f"the input {what!r}")
    if kind == "Size":
        sizes = at.sizes(value, f"the input {what!r}")
        at.need(len(sizes) == 1, f"the input {what!r} must hold one element", "PL141")
        return sizes[0]
    return at.node_of(value)


def onnx_op(*names: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Register a handler for operators (``domain::name``, or just the name in the default domain)."""

    def register(function: Callable[..., Result]) -> Callable[..., Result]:
        inputs: list[tuple[str, str, bool]] = []
        variadic: str | None = None
        attributes: dict[str, Any] = {}
        takes_place = any_attribute = False
        for parameter in inspect.signature(function).parameters.values():
            note = str(parameter.annotation)
            kind, _, optional = note.partition(" | ")
            if parameter.kind is parameter.VAR_POSITIONAL:
                variadic = kind
            elif parameter.kind is parameter.VAR_KEYWORD:
                any_attribute = True
            elif parameter.kind is not parameter.KEYWORD_ONLY:
                inputs.append((parameter.name, kind, optional == "None"))
            elif parameter.name == "at":
                takes_place = True
            else:
                attributes[parameter.name] = (
                    _REQUIRED if parameter.default is parameter.empty else parameter.default
                )
        for name in names:
            if name in HANDLERS:
                raise ValueError(f"two handlers for {name}")
            HANDLERS[name] = Handler(
                name, function, tuple(inputs), variadic, attributes, takes_place, any_attribute
            )
        return function

    return register


def from_tensor(tensor: torch.Tensor) -> Known:
    """A known array with the values of a tensor."""
    return known(type_of(tensor).dtype, tensor.reshape(-1).tolist(), tuple(tensor.shape))


def truthy(value: Value | None) -> bool | None:
    """A known condition; None if it depends on data."""
    if isinstance(value, Known) and len(value.items) == 1 and value.numeric:
        return bool(value.items[0])
    return None


__all__ = [
    "HANDLERS", "At", "Empty", "Handler", "Items", "Known", "NeedsValue", "Operand", "Result", "Size", "Sizes", "Value",
    "convert", "from_tensor", "known", "onnx_op", "truthy",
]  # fmt: skip
