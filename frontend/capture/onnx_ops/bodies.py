"""Operators that ONNX defines by a function of other operators: their bodies, for those without a handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir

from planish.frontend.capture.onnx_ops.values import TO_ONNX, Known, Value
from planish.ir.node import Node

if TYPE_CHECKING:
    from planish.frontend.capture.onnx_ops.registry import At


def _schema(domain: str, name: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(name, opset, domain)
    except Exception:  # onnx raises its own SchemaError for an operator that it does not know
        return None


def has_body(
    domain: str, name: str, opset: int, supported: Callable[[str, str], bool], depth: int = 0
) -> bool:
    """True if the operator can be expanded into supported ones (a body that depends on types is believed)."""
    schema = _schema(domain, name, opset)
    if schema is None or depth > 8:
        return False
    if schema.has_function:
        body = _fixed(schema, opset)
        if body is not None:
            return all(
                supported(_plain(n.domain), n.op_type)
                or has_body(_plain(n.domain), n.op_type, opset, supported, depth + 1)
                for n in body.node
            )
    return bool(schema.has_context_dependent_function)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _fixed(schema: Any, opset: int) -> onnx.FunctionProto | None:
    versions = [v for v in schema.function_opset_versions if v <= opset] or list(
        schema.function_opset_versions
    )[:1]
    for version in reversed(versions):
        data = schema.get_function_with_opset_version(version)
        if data:
            return onnx.FunctionProto.FromString(data)
    return None


def body(
    at: At, inputs: list[Value | None], attributes: Mapping[str, Any]
) -> tuple[onnx_ir.Function, list[str]] | None:
    """The function that defines a node's operator, made for its input types, and the names of its results."""
    schema = _schema(_plain(at.node.domain), at.node.op_type, at.opset)
    if schema is None:
        return None
    proto = _fixed(schema, at.opset) if schema.has_function else None
    if proto is None and schema.has_context_dependent_function:
        proto = _for_types(schema, at, inputs, attributes)
    return None if proto is None else _function(proto)


def _function(proto: onnx.FunctionProto) -> tuple[onnx_ir.Function, list[str]]:
    """The function, without results that its body does not compute, and the names of all results."""
    names = list(proto.output)
    made = {*proto.input, *(o for n in proto.node for o in n.output)}
    del proto.output[:]
    proto.output.extend(n for n in names if n in made)
    return onnx_ir.serde.deserialize_function(proto), names


def defaults(at: At) -> dict[str, Any]:
    """The attributes that a node leaves out, with the values that the operator's definition gives them."""
    schema = _schema(_plain(at.node.domain), at.node.op_type, at.opset)
    found: dict[str, Any] = {}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            value = onnx_ir.from_proto(attribute.default_value).value
            found[name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return found


def _for_types(
    schema: Any, at: At, inputs: list[Value | None], attributes: Mapping[str, Any]
) -> onnx.FunctionProto | None:
    node = onnx_ir.to_proto(at.node)
    referring = [a.name for a in node.attribute if a.ref_attr_name]
    if referring:
        kept = [a for a in node.attribute if not a.ref_attr_name]
        for name in referring:
            if name in attributes:
                value = attributes[name]
                kept.append(
                    onnx.helper.make_attribute(name, list(value) if isinstance(value, tuple) else value)
                )
        del node.attribute[:]
        node.attribute.extend(kept)
    types = [_type(v).SerializeToString() for v in inputs]
    versions = list(schema.context_dependent_function_opset_versions)
    fitting = [v for v in versions if v <= at.opset] or versions[:1]
    for version in reversed(fitting):
        data = schema.get_context_dependent_function_with_opset_version(
            version, node.SerializeToString(), types
        )
        if data:
            proto = onnx.FunctionProto.FromString(data)
            if proto.node:
                return proto
    return None


def _type(value: Value | None) -> onnx.TypeProto:
    if not isinstance(value, (Node, Known)):
        return onnx.TypeProto()
    shape = [s if isinstance(s, int) else None for s in value.shape]
    return onnx.helper.make_tensor_type_proto(TO_ONNX[value.dtype.name], shape)
