"""Small ONNX models and artifacts for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from planish.runtime.artifact import write_artifact
from planish.runtime.selftest import selftest_members
from planish.runtime.tensors import SafetensorsPayload, TensorInfo

MODEL = "code/onnxruntime/model.onnx"
WEIGHTS = "weights/model.safetensors"


def external(
    name: str, kind: int, dims: list[int], info: TensorInfo | None, location: str = WEIGHTS
) -> TensorProto:
    """An initializer whose bytes lie elsewhere; without ``info`` it is an output of the load model."""
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    facts = {"location": location if info else "load"}
    if info is not None:
        facts |= {"offset": str(info.offset), "length": str(info.length)}
    for key, value in facts.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: Sequence[TensorProto] = ()
) -> bytes:
    """A serialized model."""
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def value(name: str, kind: int, shape: list[Any]) -> Any:
    """A typed input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


class Int4:
    """A linear layer with int4 weights, group 32: its tensors, its ONNX node, and what it computes."""

    def __init__(self, k: int, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.k, self.n, groups = k, n, k // 32
        self.codes = rng.integers(0, 16, (n, groups, 32), dtype=np.uint8)
        self.packed = (self.codes[..., 0::2] | self.codes[..., 1::2] << 4).astype(np.uint8)
        self.scale = rng.uniform(0.5, 1.5, (n, groups)).astype(np.float32) / k
        self.weight = ((self.codes.astype(np.float32) - 8) * self.scale[..., None]).reshape(n, k)

    def node(self, x: str, y: str, codes: str = "codes", scale: str = "scale") -> Any:
        """``MatMulNBits`` with a zero point of 8."""
        facts = {"K": self.k, "N": self.n, "bits": 4, "block_size": 32, "accuracy_level": 0}
        return helper.make_node("MatMulNBits", [x, codes, scale], [y], domain="com.microsoft", **facts)


ENTRY = {
    "inputs": [{"name": "x", "type": "f32[B, 64]"}],
    "outputs": [{"name": "y", "type": "f32[B, 128]"}],
}


def fields(**changes: Any) -> dict[str, Any]:
    """Manifest fields of the int4 artifact."""
    made: dict[str, Any] = {
        "producer": {"planish": "0.1.0"},
        "targets": [{"name": "onnxruntime", "device": "cpu"}],
        "dims": {"B": [1, 16]},
        "entry_points": {"main": ENTRY},
    }
    return made | changes


def int4_members(layer: Int4) -> dict[str, Any]:
    """The members of an artifact that holds one int4 layer, with a self-test."""
    weights = SafetensorsPayload(
        {"odd": np.arange(3, dtype=np.uint8), "codes": layer.packed, "scale": layer.scale}
    )
    at = weights.layout()
    f32, u8 = TensorProto.FLOAT, TensorProto.UINT8
    initializers = [
        external("codes", u8, list(layer.packed.shape), at["codes"]),
        external("scale", f32, [layer.scale.size], at["scale"]),
    ]
    x = np.random.default_rng(1).standard_normal((3, layer.k)).astype(np.float32)
    return {
        MODEL: model(
            [layer.node("x", "y")],
            [value("x", f32, ["B", layer.k])],
            [value("y", f32, ["B", layer.n])],
            initializers,
        ),
        WEIGHTS: weights,
        "ir/main.ir.py": "def main(x: f32[2, 64]):\n    return x\n",
        "report.json": b'{"bytes": 1}',
        **selftest_members("main", {"x": x}, {"y": x @ layer.weight.T}, rtol=1e-4, atol=1e-5),
    }


def int4_artifact(
    path: Path, layer: Int4 | None = None, *, more: Mapping[str, Any] | None = None, **changes: Any
) -> Path:
    """Write the int4 artifact; ``more`` replaces or adds members, ``changes`` manifest fields."""
    members = int4_members(layer or Int4(64, 128)) | dict(more or {})
    return write_artifact(path, manifest_fields=fields(**changes), members=members, overwrite=True)
