"""Weights: names to lazy tensors. Append-only; a derived weight's name is its recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import ShapeError
from planish.ir.types import TensorType, dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Lazy:
    """A tensor that is made when asked for: its type and how to load it."""

    type: TensorType
    load: Callable[[], Any]


class Weights:
    """A growing map from names to tensors. Adding a name twice with another value is an error; nothing is replaced."""

    def __init__(self) -> None:
        self._entries: dict[str, Lazy] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, tensor: torch.Tensor) -> TensorType:
        """Add a tensor under a new name and return its type; a name that is known already keeps its tensor."""
        kind = type_of(tensor)
        return self.add_lazy(name, kind, lambda: tensor)

    def add_lazy(self, name: str, kind: TensorType, load: Callable[[], torch.Tensor]) -> TensorType:
        """Add a tensor that is loaded at each use; raises ``ShapeError`` PL330 if the name has another type."""
        known = self._entries.get(name)
        if known is not None and known.type != kind:
            raise ShapeError("PL330", f"weight {name} is {known.type}, it cannot become {kind}")
        if known is None:
            self._entries[name] = Lazy(kind, load)
        return kind

    def type(self, name: str) -> TensorType:
        """The type of a weight; raises ``ShapeError`` PL331 for an unknown name."""
        return self._entry(name).type

    def tensor(self, name: str) -> Any:
        """The values of a weight as a torch tensor."""
        return self._entry(name).load()

    def nbytes(self, name: str) -> int:
        """The dense size of a weight in bytes."""
        return int(self.type(name).nbytes)

    def _entry(self, name: str) -> Lazy:
        entry = self._entries.get(name)
        if entry is None:
            import difflib

            near = difflib.get_close_matches(name, self._entries, 3)
            raise ShapeError(
                "PL331", f"there is no weight {name}", hint=f"near: {', '.join(near)}" if near else None
            )
        return entry

    def add_safetensors(self, path: str | Path, rename: Callable[[str], str] = str) -> None:
        """Add every tensor of a safetensors file, loaded slice by slice when used."""
        from safetensors import safe_open

        names = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I16": "i16",
                 "I8": "i8", "U8": "u8", "BOOL": "bool", "U16": "u16", "U32": "u32", "U64": "u64",
                 "F8_E4M3": "f8e4m3", "F8_E5M2": "f8e5m2"}  # fmt: skip
        file = safe_open(str(path), framework="pt")
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            kind = TensorType(dtype(names[part.get_dtype()]), tuple(part.get_shape()))
            self.add_lazy(rename(name), kind, lambda name=name: file.get_tensor(name))  # type: ignore[misc]


def type_of(tensor: Any) -> TensorType:
    """The type of a torch tensor."""
    from planish.ir.eager import TORCH_DTYPES

    names = {v: k for k, v in TORCH_DTYPES.items()}
    if tensor.dtype not in names:
        raise ShapeError("PL301", f"unknown element type {tensor.dtype}")
    return TensorType(dtype(names[tensor.dtype]), tuple(int(s) for s in tensor.shape))
