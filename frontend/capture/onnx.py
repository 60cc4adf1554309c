"""Capture of ONNX models: each operator becomes tensor code of the dialect, each shape computation an expression.

The model is read without its external data; initializers become constants under their own names and are read when
they are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from planish.errors import CaptureError
from planish.frontend.capture.base import Captured
from planish.frontend.capture.onnx_ops import load
from planish.frontend.capture.onnx_ops.dims import Dimensions
from planish.frontend.capture.onnx_ops.initializers import Initializers
from planish.frontend.capture.onnx_ops.reading import read_model
from planish.frontend.capture.onnx_ops.registry import At
from planish.frontend.capture.onnx_ops.values import Known, Value, dtype_of, known
from planish.frontend.capture.onnx_ops.walk import Walk
from planish.ir.node import Node, Program, const, input_leaf
from planish.ir.printer import identifier
from planish.ir.types import TensorType
from planish.ir.verify import verify
from planish.ir.weights import Weights, type_of

if TYPE_CHECKING:
    import onnx


def capture_onnx(
    model: onnx.ModelProto | str | os.PathLike[str],
    *,
    dims: Mapping[str, tuple[int, int] | int | str] | None = None,
    values: Mapping[str, Any] | None = None,
    name: str = "main",
) -> Captured:
    """The program of an ONNX model and its weights.

    ``dims`` says what is known of the model's dynamic dimensions, by name: a range ``(low, high)``, a number that
    fixes it, or an expression such as ``"2*h"`` or the name of another dimension. ``values`` gives inputs that are
    known at capture, such as a target shape; they are no inputs of the program. Raises ``UnsupportedOpError``
    (PL201) with all operators that are not supported, ``CaptureError`` (PL140 to PL149) or ``ShapeError`` for what
    else cannot be captured, and ``ArtifactError`` for external data that lies outside of the model's folder.
    """
    load()
    read = read_model(model)
    graph = read.model.graph
    weights = Weights()
    initializers = Initializers(weights, read.folder)
    walk = Walk(read.model, weights, initializers)
    walk.check_operators()
    values = values or {}
    names = _input_names([v.name or "" for v in graph.inputs if v.name not in graph.initializers], walk.notes)
    dimensions = Dimensions(dims or {}, set(names.values()))
    inputs: list[Node] = []
    for value in graph.inputs:
        if value.name in graph.initializers:
            continue  # a default; the model's own value is the one that is captured
        if value.name is not None and value.name in values:
            walk.env[value] = _given(value, values[value.name], weights)
            continue
        leaf = input_leaf(names[value.name or ""], _input_type(value, dimensions))
        inputs.append(leaf)
        walk.env[value] = leaf
    dimensions.check_used()
    _check_names("values", values, [i.name or "" for i in graph.inputs])
    for initial in graph.initializers.values():
        walk.env[initial] = initializers.value(initial)
    walk.run(graph)
    outputs = [_output(walk, v) for v in graph.outputs]
    program = Program(
        name, tuple(inputs), tuple(outputs), (), walk.origins, tuple(v.name or "?" for v in graph.outputs)
    )
    if not outputs:
        raise CaptureError("PL141", "the model has no outputs", where=read.where)
    used = Weights()
    for leaf in program.constants():
        used.add_lazy(leaf.name, leaf.tensor, lambda leaf=leaf: weights.tensor(leaf.name))  # type: ignore[misc]
    return Captured(verify(program, used), used, tuple(walk.notes), read.digest)


def _input_names(given: list[str], notes: list[str]) -> dict[str, str]:
    """Names that can stand in the text of a program; a note tells of each that differs from the model's."""
    names: dict[str, str] = {}
    for name in given:
        plain = identifier(name)
        while plain in names.values():
            plain += "_"
        names[name] = plain
        if plain != name:
            notes.append(f"the input {name!r} is called {plain}")
    return names


def _input_type(value: onnx_ir.Value, dimensions: Dimensions) -> TensorType:
    where = f"input {value.name!r}"
    if not isinstance(value.type, onnx_ir.TensorType):
        kind = type(value.type).__name__ if value.type is not None else "missing"
        raise CaptureError("PL142", f"its type ({kind}) is not a tensor", where=where)
    dtype = dtype_of(int(value.type.dtype), where)
    if value.shape is None:
        raise CaptureError(
            "PL142",
            "its number of dimensions is not declared",
            where=where,
            hint="declare the shape in the model",
        )
    return TensorType(dtype, dimensions.shape(value.name or "input", value.shape))


def _given(value: onnx_ir.Value, array: Any, weights: Weights) -> Value:
    import torch

    tensor = (
        array
        if isinstance(array, torch.Tensor)
        else torch.from_numpy(np.ascontiguousarray(array).reshape(np.shape(array)))
    )
    kind = type_of(tensor)
    if isinstance(value.type, onnx_ir.TensorType) and dtype_of(int(value.type.dtype)) is not kind.dtype:
        raise CaptureError(
            "PL149",
            f"the value given for {value.name!r} is {kind}, the model declares {value.type.dtype.name}",
        )
    weights.add(value.name or "?", tensor)
    return (
        known(kind.dtype, tensor.reshape(-1).tolist(), tuple(tensor.shape))
        if tensor.numel() <= 1024
        else const(value.name or "?", kind)
    )


def _check_names(what: str, given: Mapping[str, Any], there: list[str]) -> None:
    unknown = sorted(set(given) - set(there))
    if unknown:
        raise CaptureError(
            "PL149",
            f"{what}: the model has no {', '.join(map(repr, unknown))}",
            hint=f"it has {', '.join(there)}",
        )


def _output(walk: Walk, value: onnx_ir.Value) -> Node:
    found = walk.env.get(value)
    where = f"output {value.name!r}"
    if not isinstance(found, (Node, Known)):
        if found is None:
            raise CaptureError("PL141", "nothing computes it", where=where)
        raise CaptureError("PL142", "it is a sequence or an optional, not a tensor", where=where)
    at = At(onnx_ir.Node("", "output", [value], num_outputs=1, name=value.name), 0, walk.weights)
    return at.node_of(found)
