"""Initializers as constants: small ones known at once, large ones mapped from their file when used."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from planish.errors import CaptureError
from planish.frontend.capture.onnx_ops.values import KNOWN_LIMIT, Known, Value, dtype_of, known
from planish.ir.eager import TORCH_DTYPES
from planish.ir.node import const
from planish.ir.types import DTYPES, DType, TensorType
from planish.ir.weights import Weights
from planish.runtime.safepath import resolve_external

if TYPE_CHECKING:
    import torch

FLOAT_LIMIT = 16
"""Most elements of a floating-point array that is known at capture."""

_PACKED = {"INT4": DTYPES["i8"], "UINT4": DTYPES["u8"]}


class Initializers:
    """Reads the tensors of a model into ``weights``."""

    def __init__(self, weights: Weights, folder: Path | None) -> None:
        self._weights = weights
        self.folder = folder
        self._read: dict[onnx_ir.Value, Value] = {}

    def value(self, initial: onnx_ir.Value) -> Value:
        """An initializer as a constant under its own name, or as a known array if it is small."""
        tensor, name = initial.const_value, initial.name or "?"
        if tensor is None:
            raise CaptureError("PL141", "an initializer has no data", where=name)
        if initial not in self._read:
            while name in self._weights:
                name += "'"  # of a branch, which may reuse a name
            self._read[initial] = read_tensor(tensor, name, self._weights, self.folder)
        return self._read[initial]


def read_tensor(tensor: Any, name: str, weights: Weights, folder: Path | None = None) -> Value:
    """A tensor of the file as a constant called ``name``; small ones are known arrays."""
    dtype = _PACKED.get(tensor.dtype.name) or dtype_of(int(tensor.dtype), f"tensor {name!r}")
    shape = tuple(_whole(s, name) for s in tensor.shape.dims)
    kind = TensorType(dtype, shape)
    count = int(kind.numel)
    if isinstance(tensor, onnx_ir.ExternalTensor):
        load = _external(tensor, name, kind, folder)
    else:
        if tensor.dtype.name not in _PACKED:
            _check_size(tensor, name, kind)
        load = partial(_inline, tensor, name, kind)
    if count > (FLOAT_LIMIT if dtype.is_float else KNOWN_LIMIT):
        weights.add_lazy(name, kind, load)
        return const(name, kind)
    value = load()
    weights.add(name, value)
    return Known(dtype, known(dtype, value.reshape(-1).tolist(), shape).array, name)


def _whole(size: Any, name: str) -> int:
    if not isinstance(size, int) or size < 0:
        raise CaptureError("PL141", f"its shape holds {size!r}", where=f"tensor {name!r}")
    return size


def _check_size(tensor: Any, name: str, kind: TensorType) -> None:
    """Compare the bytes that are there with the bytes that the shape needs, before anything is made."""
    proto = getattr(tensor, "raw", None)
    raw = getattr(proto, "raw_data", b"") if proto is not None else b""
    if raw and len(raw) != kind.nbytes:
        raise CaptureError(
            "PL141", f"it has {len(raw)} bytes, {kind} needs {kind.nbytes}", where=f"tensor {name!r}"
        )


def _inline(tensor: Any, name: str, kind: TensorType) -> torch.Tensor:
    try:
        array = tensor.numpy()
    except Exception as error:
        raise CaptureError("PL141", f"its data cannot be read: {error}", where=f"tensor {name!r}") from None
    if array.size != int(kind.numel):
        raise CaptureError(
            "PL141", f"it has {array.size} elements, {kind} needs {kind.numel}", where=f"tensor {name!r}"
        )
    return to_torch(array, kind.dtype)


def to_torch(array: np.ndarray[Any, Any], dtype: DType) -> torch.Tensor:
    """A numpy array (also of ml_dtypes) as a torch tensor of its own."""
    import torch

    plain = np.array(array, order="C", copy=True)
    if dtype.name == "bf16":
        return torch.from_numpy(plain.view(np.int16)).view(torch.bfloat16).reshape(array.shape)
    if plain.dtype.kind not in "biuf":
        plain = plain.astype(np.int8 if dtype.name == "i8" else np.uint8)
    return torch.from_numpy(plain).reshape(array.shape)


def _external(tensor: onnx_ir.ExternalTensor, name: str, kind: TensorType, folder: Path | None) -> Any:
    if folder is None:
        raise CaptureError(
            "PL140", "its data lies in another file, but a model given as an object has no folder",
            where=f"tensor {name!r}", hint="give the path of the model",
        )  # fmt: skip
    offset = int(tensor.offset or 0)
    packed = tensor.dtype.name in _PACKED
    needed = (int(kind.numel) + 1) // 2 if packed else int(kind.nbytes)
    length = needed if tensor.length is None else int(tensor.length)
    path = resolve_external(folder, str(tensor.location), offset, length)
    if length != needed:
        raise CaptureError("PL141", f"it has {length} bytes, {kind} needs {needed}", where=f"tensor {name!r}")
    return partial(_mapped, path, offset, kind, packed)


def _mapped(path: Path, offset: int, kind: TensorType, packed: bool) -> torch.Tensor:
    import torch

    shape = tuple(int(s) for s in kind.shape)
    count = int(np.prod(shape))
    if count == 0:
        return torch.empty(shape, dtype=TORCH_DTYPES[kind.dtype.name])
    length = (count + 1) // 2 if packed else count * kind.dtype.bits // 8
    data = np.memmap(path, np.uint8, "r", offset, (length,))
    if packed:
        pairs = np.stack((data & 15, data >> 4), -1).reshape(-1)[:count]
        if kind.dtype.name == "i8":
            pairs = ((pairs.astype(np.int8) ^ 8) - 8).astype(np.int8)
        return torch.from_numpy(pairs.reshape(shape))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # the mapping is read-only, and nothing writes to weights
        return torch.frombuffer(data, dtype=TORCH_DTYPES[kind.dtype.name], count=count).reshape(shape)
