"""Safetensors: a strict reader that gives views without copying, and a writer that streams.

The data of every tensor begins on a 64-byte boundary: the header is padded with spaces, and where a tensor's
size is not a multiple of 64 a small ``__pad.N`` entry follows, because the format allows no holes. Other readers
see these entries as tensors; this one leaves them out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from planish.errors import ArtifactError
from planish.runtime.limits import DEFAULT, Limits

Array: TypeAlias = NDArray[Any]
ALIGNMENT = 64
CHUNK = 4 * 2**20

# Width in bytes; the numpy type that shows it; the ml_dtypes type that shows it better where that is installed.
_FORMATS: dict[str, tuple[int, str, str | None]] = {
    "BOOL": (1, "bool", None),
    "U8": (1, "uint8", None),
    "I8": (1, "int8", None),
    "F8_E4M3": (1, "uint8", "float8_e4m3fn"),
    "F8_E5M2": (1, "uint8", "float8_e5m2"),
    "U16": (2, "uint16", None),
    "I16": (2, "int16", None),
    "F16": (2, "float16", None),
    "BF16": (2, "uint16", "bfloat16"),
    "U32": (4, "uint32", None),
    "I32": (4, "int32", None),
    "F32": (4, "float32", None),
    "U64": (8, "uint64", None),
    "I64": (8, "int64", None),
    "F64": (8, "float64", None),
    "C64": (8, "complex64", None),
}
_SHORT = {
    "bool": "BOOL", "u8": "U8", "i8": "I8", "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2", "u16": "U16", "i16": "I16",
    "f16": "F16", "bf16": "BF16", "u32": "U32", "i32": "I32", "f32": "F32", "u64": "U64", "i64": "I64",
    "f64": "F64", "c64": "C64",
}  # fmt: skip
_FROM_NUMPY = {shown: name for name, (_, shown, better) in _FORMATS.items() if better is None}
_FROM_NUMPY |= {better: name for name, (_, _, better) in _FORMATS.items() if better}
_PADDING = re.compile(r"__pad\.[0-9]+")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in its file: format name such as ``F32``, shape, and byte range."""

    format: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written later: its type is known now, its data is made when its turn comes.

    ``dtype`` is planish's short name (``f32``, ``bf16``, ``u8``) or that of safetensors (``F32``). ``data``
    returns a numpy array or bytes of exactly the right size; nothing is kept of it afterwards.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Array | bytes | memoryview]


@dataclass(frozen=True)
class SafetensorsPayload:
    """A member of an artifact made of tensors, in the order of the mapping; written without holding them all."""

    tensors: Mapping[str, Array | TensorSource]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def layout(self) -> dict[str, TensorInfo]:
        """The byte range of each tensor within the member: what an ONNX initializer has to name."""
        infos, _ = self._plan()
        return {name: info for name, info in infos.items() if not _PADDING.fullmatch(name)}

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the member, piece by piece."""
        infos, header = self._plan()
        yield header
        for name, info in infos.items():
            if _PADDING.fullmatch(name):
                yield bytes(info.length)
                continue
            data = _data(self.tensors[name], name, info)
            for start in range(0, info.length, CHUNK):
                yield data[start : start + CHUNK]

    def _plan(self) -> tuple[dict[str, TensorInfo], bytes]:
        relative: dict[str, TensorInfo] = {}
        at = 0
        for name, tensor in self.tensors.items():
            if not name or name == "__metadata__" or _PADDING.fullmatch(name):
                raise ArtifactError("PL613", f"a tensor cannot be called {name!r}")
            if at % ALIGNMENT:
                gap = -at % ALIGNMENT
                relative[f"__pad.{len(relative)}"] = TensorInfo("U8", (gap,), at, gap)
                at += gap
            kind, shape = _kind_of(tensor, name)
            length = math.prod(shape) * _FORMATS[kind][0]
            relative[name] = TensorInfo(kind, shape, at, length)
            at += length
        table: dict[str, Any] = {"__metadata__": dict(sorted(self.metadata.items()))} if self.metadata else {}
        for name, info in relative.items():
            span = [info.offset, info.offset + info.length]
            table[name] = {"dtype": info.format, "shape": list(info.shape), "data_offsets": span}
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        base = 8 + len(text)
        absolute = {n: TensorInfo(i.format, i.shape, i.offset + base, i.length) for n, i in relative.items()}
        return absolute, len(text).to_bytes(8, "little") + text


def _kind_of(tensor: Array | TensorSource, name: str) -> tuple[str, tuple[int, ...]]:
    if isinstance(tensor, TensorSource):
        kind = _SHORT.get(tensor.dtype, tensor.dtype)
        known = kind in _FORMATS
    else:
        kind = _FROM_NUMPY.get(tensor.dtype.name, tensor.dtype.name)
        known = tensor.dtype.name in _FROM_NUMPY
    if not known:
        raise ArtifactError(
            "PL613", f"the tensor {name!r} has the element type {kind}, which cannot be stored"
        )
    return kind, tuple(int(n) for n in tensor.shape)


def _data(tensor: Array | TensorSource, name: str, info: TensorInfo) -> memoryview:
    value = tensor.data() if isinstance(tensor, TensorSource) else tensor
    if isinstance(value, np.ndarray):
        if value.dtype.byteorder == ">":
            value = value.astype(value.dtype.newbyteorder("<"))
        view = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    else:
        view = memoryview(value).cast("B")
    if len(view) != info.length:
        raise ArtifactError(
            "PL613",
            f"the tensor {name!r} is {len(view)} bytes, but {info.format}{list(info.shape)} needs {info.length}",
        )
    return view


def element_type(kind: str) -> np.dtype[Any]:
    """The numpy type that shows a safetensors format; raw bits where numpy and ml_dtypes have none."""
    _, shown, better = _FORMATS[kind]
    if better is not None:
        try:
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, better))
        except (ImportError, AttributeError):
            pass
    return np.dtype(shown)


def read_table(
    read: Callable[[int, int], bytes], size: int, *, where: str | None = None, limits: Limits = DEFAULT
) -> dict[str, TensorInfo]:
    """Parse and check the header of a safetensors file of ``size`` bytes; ``read(offset, length)`` gives its bytes.

    Offsets in the result are absolute within the file. Ranges must cover the data exactly, in order, without
    overlap, and agree with type and shape: PL613 otherwise.
    """
    header = _read_header(read, size, where, limits)
    base = 8 + header.length
    infos: dict[str, TensorInfo] = {}
    for name, entry in header.table.items():
        if name == "__metadata__":
            _check_metadata(entry, where)
            continue
        infos[name] = _read_entry(name, entry, base, size, where, limits)
    at = base
    for name, info in sorted(infos.items(), key=lambda item: (item[1].offset, item[1].length)):
        if info.offset != at:
            what = "overlaps another tensor" if info.offset < at else "leaves a hole before it"
            raise _invalid(f"the tensor {name!r} {what}", where)
        at += info.length
    if at != size:
        raise _invalid(f"{size - at} bytes belong to no tensor", where)
    return {name: info for name, info in infos.items() if not _PADDING.fullmatch(name)}


def read_metadata(
    read: Callable[[int, int], bytes], size: int, *, where: str | None = None, limits: Limits = DEFAULT
) -> dict[str, str]:
    """The texts in the header of a safetensors file of ``size`` bytes; PL613 if it is malformed."""
    found = _read_header(read, size, where, limits).table.get("__metadata__", {})
    _check_metadata(found, where)
    return dict(found)


@dataclass(frozen=True)
class _Header:
    length: int
    table: dict[str, Any]


def _read_header(read: Callable[[int, int], bytes], size: int, where: str | None, limits: Limits) -> _Header:
    if size < 8:
        raise _invalid("it is too short for a safetensors file", where)
    length = int.from_bytes(read(0, 8), "little")
    if length > limits.tensor_header_bytes:
        limit = limits.tensor_header_bytes
        raise ArtifactError(
            "PL610", f"the tensor header is {length} bytes, the limit is {limit}", where=where
        )
    if length > size - 8:
        raise _invalid("the header is longer than the file", where)
    table = parse_json(read(8, length), code="PL613", where=where)
    if not isinstance(table, dict):
        raise _invalid("the header is not a JSON object", where)
    if len(table) > limits.tensors:
        raise ArtifactError("PL610", f"{len(table)} tensors, the limit is {limits.tensors}", where=where)
    return _Header(length, table)


def _check_metadata(entry: Any, where: str | None) -> None:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise _invalid("__metadata__ is not a table of strings", where)


def _read_entry(name: str, entry: Any, base: int, size: int, where: str | None, limits: Limits) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _invalid(f"the entry of {name!r} must have dtype, shape and data_offsets", where)
    kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise _invalid(f"the tensor {name!r} has the unknown element type {kind!r:.40}", where)
    if not _sizes(shape) or len(shape) > limits.dims:
        raise _invalid(f"the tensor {name!r} has an invalid shape", where)
    if not _sizes(span) or len(span) != 2 or not span[0] <= span[1] <= size - base:
        raise _invalid(f"the tensor {name!r} lies outside of the file", where)
    if math.prod(shape) * _FORMATS[kind][0] != span[1] - span[0]:
        raise _invalid(f"the tensor {name!r}: {kind}{shape} does not take {span[1] - span[0]} bytes", where)
    return TensorInfo(kind, tuple(shape), base + span[0], span[1] - span[0])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def parse_json(data: bytes, *, code: str, where: str | None) -> Any:
    """JSON as UTF-8 without repeated keys, NaN or infinities; anything else is an ArtifactError with ``code``."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key occurs twice")
        return made

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number")

    try:
        return json.loads(data.decode(), object_pairs_hook=table, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise ArtifactError(code, f"is not valid JSON: {reason}", where=where) from None


def _invalid(what: str, where: str | None) -> ArtifactError:
    return ArtifactError(
        "PL613", what, where=where, hint="the file is damaged or was written by another tool"
    )


def view_tensors(buffer: memoryview, table: Mapping[str, TensorInfo]) -> dict[str, Array]:
    """Read-only arrays over ``buffer`` (the whole safetensors file), nothing copied."""
    arrays: dict[str, Array] = {}
    for name, info in table.items():
        raw = (
            np.frombuffer(buffer, np.uint8, info.length, info.offset)
            if info.length
            else np.empty(0, np.uint8)
        )
        raw.flags.writeable = False
        arrays[name] = raw.view(element_type(info.format)).reshape(info.shape)
    return arrays
