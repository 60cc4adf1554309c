"""Tensors as numpy arrays, also in element types that numpy lacks."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from planish.ir.types import DType

_OTHER = {
    "bf16": ml_dtypes.bfloat16, "f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2, "bool": np.bool_,
    "c64": np.complex64,
}  # fmt: skip
_KINDS = {"f": "float", "i": "int", "u": "uint"}


def numpy_type(kind: DType) -> np.dtype[Any]:
    """The numpy type of an element type, through ml_dtypes where numpy has none."""
    if kind.name in _OTHER:
        return np.dtype(_OTHER[kind.name])
    return np.dtype(f"{_KINDS[kind.name[0]]}{kind.name[1:]}")


def to_numpy(tensor: Any, kind: DType) -> np.ndarray[Any, np.dtype[Any]]:
    """The values of a torch tensor of an element type."""
    import torch

    value = tensor.detach().cpu().contiguous()
    wanted = numpy_type(kind)
    if wanted.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        bits = torch.uint16 if wanted.itemsize == 2 else torch.uint8
        return np.asarray(value.view(bits).numpy().view(wanted))
    return np.asarray(value.numpy())
