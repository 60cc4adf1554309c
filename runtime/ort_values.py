"""Arrays as values of ONNX Runtime and back, also of element types that numpy does not have."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import numpy as np

from planish.errors import BackendError
from planish.runtime.tensors import Array, element_type

RAW = {
    "tensor(bfloat16)": (16, "BF16"),
    "tensor(float8e4m3fn)": (17, "F8_E4M3"),
    "tensor(float8e5m2)": (19, "F8_E5M2"),
}
"""ONNX Runtime's types without a numpy counterpart: ONNX element type and the safetensors format of the same bits."""


def onnxruntime() -> ModuleType:
    """The package; PL701 if it is not installed."""
    try:
        import onnxruntime as package
    except ImportError as error:
        raise BackendError(
            "PL701", "onnxruntime is not installed", hint="pip install onnxruntime (or onnxruntime-gpu)"
        ) from error
    return package


def ort_value(array: Array, kind: str) -> Any:
    """A value of the type ``kind`` in the memory of an array."""
    made = onnxruntime().OrtValue
    if kind not in RAW:
        return made.ortvalue_from_numpy(array)
    bits = np.asarray(array).view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    return made.ortvalue_from_numpy_with_onnx_type(bits, RAW[kind][0])


def array_of(value: Any) -> Array:
    """The values of one of ONNX Runtime's as an array of its own."""
    kind = value.data_type()
    if kind not in RAW:
        return np.asarray(value.numpy())
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(bytearray(data), element_type(RAW[kind][1])).reshape(value.shape())
