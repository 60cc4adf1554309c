"""Check the arrays of a call against the types of an entry point, and tell what is wrong in its terms."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planish.errors import ShapeError
from planish.runtime.manifest import EntryPoint, Value
from planish.runtime.tensors import Array
from planish.runtime.typetext import evaluate, solve, symbols

_NAMES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "f8e4m3",
    "float8_e5m2": "f8e5m2", "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8", "uint64": "u64",
    "uint32": "u32", "uint16": "u16", "uint8": "u8", "bool": "bool", "complex64": "c64",
}  # fmt: skip
_NUMPY = {short: name for name, short in _NAMES.items()}


def bind_arguments(entry: EntryPoint, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a call by input name; PL351 for a missing one, PL352 for one too many or unknown."""
    names = [v.name for v in entry.inputs]
    if len(positional) > len(names):
        raise ShapeError(
            "PL352",
            f"{len(positional)} inputs were given, there are {len(names)}",
            where=entry.name,
            hint=_takes(entry),
        )
    given = dict(zip(names, positional))
    for name, value in named.items():
        if name not in names:
            raise ShapeError("PL352", f"there is no input {name!r}", where=entry.name, hint=_takes(entry))
        if name in given:
            raise ShapeError(
                "PL352", f"the input {name!r} was given twice", where=entry.name, hint=_takes(entry)
            )
        given[name] = value
    missing = [name for name in names if name not in given]
    if missing:
        raise ShapeError(
            "PL351", f"the inputs {', '.join(missing)} are missing", where=entry.name, hint=_takes(entry)
        )
    return given


def to_array(value: Any, name: str, where: str) -> Array:
    """``value`` as a numpy array: one already, a torch tensor, or anything that exports DLPack (PL358 otherwise)."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("=")) if not array.dtype.isnative else array
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(torch, value)
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            what = f"cannot be read as an array: {error}"[:200]
            raise ShapeError("PL358", what, where=f"{where}: input {name}") from None
    raise ShapeError(
        "PL358", f"an array is needed, not {type(value).__name__}", where=f"{where}: input {name}",
        hint="pass a numpy array or a torch tensor",
    )  # fmt: skip


def _from_torch(torch: Any, tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        array: Array = tensor.numpy()
        return array
    import ml_dtypes

    bits: Array = tensor.contiguous().view(torch.int16).numpy()
    return bits.view(ml_dtypes.bfloat16)


def to_torch(array: Array, device: Any) -> Any:
    """A torch tensor with the content of ``array``; torch must be imported already."""
    torch = sys.modules["torch"]
    array = np.array(array, order="C", copy=not array.flags.writeable)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def torch_device(values: Mapping[str, Any]) -> Any | None:
    """The device of the first torch tensor among ``values``, or None if there is none."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return next((v.device for v in values.values() if isinstance(v, torch.Tensor)), None)


def check_inputs(
    entry: EntryPoint, dims: Mapping[str, tuple[int, int]], given: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, int]]:
    """The arrays of a call in C order, and the value of every symbol that they determine.

    PL353 element type, PL354 rank, PL355 a fixed size, PL356 sizes that contradict each other, PL357 a size
    outside of its range.
    """
    arrays = {
        v.name: np.asarray(to_array(given[v.name], v.name, entry.name), order="C") for v in entry.inputs
    }
    values: dict[str, int] = {}
    origins: dict[str, str] = {}
    for value in entry.inputs:
        _check_type(entry, value, arrays[value.name])
    for value in entry.inputs:
        for axis, dim in enumerate(value.type.dims):
            for name, size in solve(dim, arrays[value.name].shape[axis], values).items():
                values[name] = size
                origins[name] = f"{value.name} (axis {axis})"
    for name, size in values.items():
        low, high = dims.get(name, (0, 2**63 - 1))
        if not low <= size <= high:
            raise ShapeError(
                "PL357", f"{name} is {size} in {origins[name]}, outside of its range {low} to {high}",
                where=entry.name, hint=_takes(entry),
            )  # fmt: skip
    for value in entry.inputs:
        _check_sizes(entry, value, arrays[value.name], values, origins)
    return arrays, values


def _check_type(entry: EntryPoint, value: Value, array: Array) -> None:
    where = f"{entry.name}: input {value.name}"
    found = _NAMES.get(array.dtype.name, array.dtype.name)
    if found != value.type.dtype:
        raise ShapeError(
            "PL353", f"{value.type} is needed, not {found}{list(array.shape)}", where=where,
            hint=f"convert it: array.astype({_NUMPY[value.type.dtype]!r})",
        )  # fmt: skip
    if array.ndim != value.type.rank:
        raise ShapeError(
            "PL354", f"{value.type} has {value.type.rank} dimensions, {found}{list(array.shape)} has {array.ndim}",
            where=where,
        )  # fmt: skip


def _check_sizes(
    entry: EntryPoint, value: Value, array: Array, values: Mapping[str, int], origins: Mapping[str, str]
) -> None:
    for axis, dim in enumerate(value.type.dims):
        used = symbols(dim)
        if not used <= set(values):
            continue
        needed = evaluate(dim, values)
        if needed == array.shape[axis]:
            continue
        where = f"{entry.name}: input {value.name}"
        shape = f"{value.type.dtype}{list(array.shape)}"
        if not used:
            raise ShapeError(
                "PL355", f"axis {axis} must be {needed}: {value.type} is needed, not {shape}", where=where
            )
        facts = ", ".join(f"{name} is {values[name]} in {origins[name]}" for name in sorted(used))
        raise ShapeError(
            "PL356",
            f"axis {axis} must be {needed}: {value.type} is needed, not {shape}, because {facts}",
            where=where,
        )


def _takes(entry: EntryPoint) -> str:
    return f"it takes {', '.join(f'{v.name}: {v.type}' for v in entry.inputs) or 'nothing'}"
