"""What the load model would make at load, made when the model is written instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from planish.backends.ort.graph import Array
from planish.backends.ort.lower import Lowered, make_model
from planish.backends.ort.storage import LOADED, PLACEHOLDER, external_location
from planish.runtime.ort import OrtSession
from planish.runtime.tensors import TensorSource

_NAMES = {onnx.TensorProto.UINT8: "u8", onnx.TensorProto.FLOAT: "f32"}


def widened(lowered: Lowered) -> Lowered:
    """The same without a load model: its outputs are stored tensors, computed when they are written."""
    load = lowered.load_model
    if load is None:
        return lowered
    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    stored = dict(lowered.stored)
    tensors = {n: t for n, t in lowered.tensors.items() if n in set(stored.values())}
    added = 0
    for initializer in model.graph.initializer:
        external = initializer.data_location == onnx.TensorProto.EXTERNAL
        if not external or external_location(initializer) != LOADED:
            continue
        initializer.external_data[0].value = PLACEHOLDER
        stored[initializer.name] = initializer.name
        kind, shape = _NAMES[initializer.data_type], tuple(initializer.dims)
        part = _part(load, initializer.name)
        tensors[initializer.name] = TensorSource(kind, shape, _evaluation(part, lowered))
        added += int(np.prod(shape)) * (4 if kind == "f32" else 1)
    return replace(lowered, model=model, tensors=tensors, stored=stored, load_model=None, widened_bytes=added)


def _evaluation(model: onnx.ModelProto, lowered: Lowered) -> Callable[[], Array]:
    def data() -> Array:
        session = OrtSession(model.SerializeToString())
        feeds = {v.name: np.asarray(lowered.tensors[v.name].data()) for v in model.graph.input}
        (value,) = session.run(feeds).values()
        return value

    return data


def _part(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The part of a model that computes one output."""
    graph = model.graph
    wanted, kept = {output}, []
    for node in reversed(graph.node):
        if any(o in wanted for o in node.output):
            kept.append(node)
            wanted.update(node.input)
    return make_model(
        helper.make_graph(
            kept[::-1], graph.name, [v for v in graph.input if v.name in wanted],
            [v for v in graph.output if v.name == output], [t for t in graph.initializer if t.name in wanted],
        ),
        model.opset_import[0].version,
    )  # fmt: skip
