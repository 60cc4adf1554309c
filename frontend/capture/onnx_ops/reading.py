"""Read an ONNX file safely: without external data, and brought to an opset that the handlers know."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.version_converter
import onnx_ir

from planish.errors import CaptureError

OLDEST = 13


@dataclass(frozen=True)
class Read:
    """A model, the folder of its external data, its name for messages and its digest."""

    model: onnx_ir.Model
    folder: Path | None
    where: str
    digest: str


def read_model(model: onnx.ModelProto | str | os.PathLike[str]) -> Read:
    """Read a model; raises ``CaptureError`` PL140 if it is none, PL146 for an opset without a converter."""
    if isinstance(model, onnx.ModelProto):
        return _read(model, None, model.graph.name or "the model", b"")
    path = Path(model)
    try:
        data = path.read_bytes()
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
    except OSError as error:
        raise CaptureError("PL140", f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except Exception as error:
        raise CaptureError(
            "PL140", f"is not an ONNX model, or is damaged: {str(error)[:200]}", where=str(path)
        ) from None
    return _read(proto, path.parent, str(path), data)


def _read(proto: onnx.ModelProto, folder: Path | None, where: str, data: bytes) -> Read:
    if not proto.HasField("graph") or not proto.opset_import:
        raise CaptureError(
            "PL140", "is not an ONNX model, or is damaged: it has no graph or no opset", where=where
        )
    proto = _converted(proto, where)
    try:
        model = onnx_ir.from_proto(proto)
    except Exception as error:
        raise CaptureError("PL141", f"the model is not valid: {_first_line(error)}", where=where) from None
    _check_names(model, where)
    return Read(model, folder, where, hashlib.sha256(data).hexdigest() if data else "")


def _check_names(model: onnx_ir.Model, where: str) -> None:
    """Refuse names that are not text; protobuf hands them over as bytes."""
    graphs: list[Any] = [model.graph, *model.graph.subgraphs(), *model.functions.values()]
    for graph in graphs:
        values = [*graph.inputs, *graph.outputs]
        names: list[Any] = [d for v in values for d in _dimension_names(v)]
        for node in graph:
            values += [v for v in (*node.inputs, *node.outputs) if v is not None]
            names += [node.name, node.op_type, node.domain, node.overload, *node.attributes]
        for name in (*names, *(v.name for v in values)):
            if isinstance(name, bytes):
                raise CaptureError(
                    "PL141", f"the model is not valid: the name {name[:40]!r} is not UTF-8", where=where
                )


def _dimension_names(value: onnx_ir.Value) -> list[Any]:
    return (
        [d.value for d in value.shape.dims if isinstance(d, onnx_ir.SymbolicDim)]
        if value.shape is not None
        else []
    )


def opset_of(imports: Any) -> int:
    """The opset of the default domain in a list of imports; 0 if there is none."""
    return max((int(o.version) for o in imports if o.domain in ("", "ai.onnx")), default=0)


def _converted(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    version = opset_of(proto.opset_import)
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise CaptureError(
            "PL146", f"the model needs opset {version}; the newest that is known is {newest}", where=where,
            hint="install a newer onnx",
        )  # fmt: skip
    if version == 0 or version >= OLDEST:
        return proto
    reason = "the converter changes the model's inputs"
    try:
        converted = onnx.version_converter.convert_version(proto, OLDEST)
        if _interface(converted) == _interface(proto):
            return converted
    except Exception as error:
        reason = _first_line(error)
    raise CaptureError(
        "PL146", f"opset {version} cannot be converted to {OLDEST}: {reason}", where=where,
        hint="export the model with opset 13 or later",
    )  # fmt: skip


def _interface(proto: onnx.ModelProto) -> list[tuple[str, bytes]]:
    """Names and types of the inputs that are not initializers."""
    known = {t.name for t in proto.graph.initializer}
    return [(v.name, v.type.SerializeToString()) for v in proto.graph.input if v.name not in known]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :300
    ]
