"""Small ONNX models made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Shape = Sequence[int | str | None]


def value(name: str, shape: Shape, kind: int = FLOAT) -> onnx.ValueInfoProto:
    """A typed name."""
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    """A node, named after its first output."""
    return helper.make_node(op, inputs, outputs, name=f"n_{outputs[0]}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str | onnx.ValueInfoProto], constants: dict[str, Any] | None = None, opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (), domains: Sequence[str] = (),
) -> onnx.ModelProto:  # fmt: skip
    """A model from its parts; outputs are names or typed names."""
    made = [helper.make_empty_tensor_value_info(o) if isinstance(o, str) else o for o in outputs]
    initial = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "model", list(inputs), made, initial)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)


def external(folder: Path, location: str, array: np.ndarray, **entries: str) -> Path:
    """A model ``x @ w`` whose ``w`` lies in another file, saved in a folder."""
    made = model([node("MatMul", ["x", "w"], ["y"])], [value("x", ["N", array.shape[0]])], ["y"])
    tensor = made.graph.initializer.add()
    tensor.name, tensor.data_type = "w", helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, "offset": "0", "length": str(array.nbytes), **entries}.items():
        tensor.external_data.add(key=key, value=text)
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path
