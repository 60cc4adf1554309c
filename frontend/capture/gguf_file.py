"""The header of a GGUF file, read strictly: every count and offset is checked before it is used."""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from planish.errors import CaptureError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
MAX_COUNT, MAX_DIMS, MAX_DEPTH = 2**24, 8, 2
PLAIN = {0: "<f4", 1: "<f2", 24: "i1", 25: "<i2", 26: "<i4", 27: "<i8", 28: "<f8"}
"""Element types that are stored as they are; all others are blocks of bytes."""


@dataclass(frozen=True)
class Entry:
    """One metadata entry: its value (arrays of texts stay unread: None) and where it lies in the file."""

    key: str
    kind: int
    value: Any
    count: int
    start: int
    end: int


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: its name, shape as torch writes it, element type by number, and byte range in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    length: int


@dataclass(frozen=True)
class Header:
    """All that a file says about itself before its data."""

    path: Path
    version: int
    entries: Mapping[str, Entry]
    tensors: tuple[StoredTensor, ...]
    table_start: int
    table_end: int
    data_start: int
    size: int

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata entry."""
        entry = self.entries.get(key)
        return default if entry is None or entry.value is None else entry.value

    @property
    def architecture(self) -> str:
        """The value of ``general.architecture``."""
        return str(self.get("general.architecture", ""))


class _Cursor:
    """A place in the mapped file; whatever would reach past its end is refused."""

    def __init__(self, data: mmap.mmap | bytes, where: str) -> None:
        self.data, self.size, self.where, self.at = data, len(data), where, 0

    def fail(self, what: str) -> CaptureError:
        return CaptureError(
            "PL122", what, where=self.where, hint="the file is damaged: copy it again from its source"
        )

    def need(self, count: int) -> int:
        start = self.at
        if count < 0 or count > self.size - start:
            raise self.fail(f"the file ends too early, at {self.size} bytes")
        self.at = start + count
        return start

    def number(self, layout: str) -> Any:
        return struct.unpack_from(layout, self.data, self.need(struct.calcsize(layout)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        start = self.need(length)
        try:
            return bytes(self.data[start : start + length]).decode()
        except UnicodeDecodeError:
            raise self.fail(f"the text at byte {start} is not UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> tuple[Any, int]:
        """A metadata value and its number of elements; an array of texts or arrays is passed over."""
        if kind in SCALARS:
            return self.number(SCALARS[kind]), 1
        if kind == STRING:
            return self.text(), 1
        if kind != ARRAY or depth >= MAX_DEPTH:
            raise self.fail(f"metadata has the unknown kind {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if count > self.size:
            raise self.fail(f"an array claims {count} elements")
        if inner in SCALARS:
            width = struct.calcsize(SCALARS[inner])
            start = self.need(count * width)
            return np.frombuffer(self.data, SCALARS[inner], count, start).tolist(), count
        for _ in range(count):
            if inner == STRING:
                self.need(self.number("<Q"))
            else:
                self.value(inner, depth + 1)
        return None, count


def read_header(path: Path) -> Header:
    """Read and check the header; raises ``CaptureError`` PL121 (not GGUF) or PL122 (damaged)."""
    where = str(path)
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise CaptureError("PL121", "is not a GGUF file", where=where)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Cursor(data, where), path)
    except OSError as error:
        raise CaptureError("PL120", f"cannot be read: {error.strerror or error}", where=where) from None
    except struct.error as error:
        raise CaptureError("PL122", f"is damaged: {error}", where=where) from None


def _read(cursor: _Cursor, path: Path) -> Header:
    cursor.need(4)
    version = cursor.number("<I")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise CaptureError("PL121", f"is GGUF version {version}; {known} are read", where=cursor.where)
    tensor_count, entry_count = cursor.number("<Q"), cursor.number("<Q")
    if max(tensor_count, entry_count) > MAX_COUNT:
        raise cursor.fail(f"claims {tensor_count} tensors and {entry_count} metadata entries")
    entries: dict[str, Entry] = {}
    for _ in range(entry_count):
        start = cursor.at
        key = cursor.text()
        kind = cursor.number("<I")
        value, count = cursor.value(kind)
        if key in entries:
            raise cursor.fail(f"the metadata entry {key!r} occurs twice")
        entries[key] = Entry(key, kind, value, count, start, cursor.at)
    table_start = cursor.at
    table = [_tensor_row(cursor) for _ in range(tensor_count)]
    alignment = entries["general.alignment"].value if "general.alignment" in entries else 32
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise cursor.fail(f"the alignment {alignment} is not a power of two")
    data_start = cursor.at + -cursor.at % alignment
    tensors = _tensors(cursor, table, data_start)
    return Header(path, version, entries, tensors, table_start, cursor.at, data_start, cursor.size)


def _tensor_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dims = cursor.text(), cursor.number("<I")
    if dims > MAX_DIMS:
        raise cursor.fail(f"the tensor {name!r} has {dims} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dims))
    return name, tuple(reversed(shape)), cursor.number("<I"), cursor.number("<Q")


def _tensors(cursor: _Cursor, table: list[Any], data_start: int) -> tuple[StoredTensor, ...]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    made: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in table:
        if name in made:
            raise cursor.fail(f"the tensor {name!r} occurs twice")
        try:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise cursor.fail(f"the tensor {name!r} has the unknown element type {kind}") from None
        count = math.prod(shape)
        if shape and shape[-1] % block:
            raise cursor.fail(
                f"the tensor {name!r} has rows of {shape[-1]}, which are not whole blocks of {block}"
            )
        length = count // block * width
        if offset > cursor.size or length > cursor.size - data_start - offset:
            raise cursor.fail(f"the tensor {name!r} reaches past the end of the file")
        made[name] = StoredTensor(name, shape, kind, data_start + offset, length)
    return tuple(made.values())


def read_texts(header: Header, key: str) -> list[str]:
    """The texts of an array entry that was passed over."""
    entry = header.entries[key]
    with header.path.open("rb") as file:
        file.seek(entry.start)
        cursor = _Cursor(file.read(entry.end - entry.start), str(header.path))
    cursor.text()
    cursor.need(4 + 4 + 8)
    return [cursor.text() for _ in range(entry.count)]


def dequantized(header: Header) -> Iterator[tuple[StoredTensor, NDArray[np.float32]]]:
    """Every tensor as fp32, one after another."""
    from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape

    for tensor in header.tensors:
        kind = GGMLQuantizationType(tensor.kind)
        stored = PLAIN.get(tensor.kind)
        shape = tensor.shape if stored else quant_shape_to_byte_shape(tensor.shape, kind)
        data: NDArray[Any] = np.memmap(header.path, stored or np.uint8, "r", tensor.start, tuple(shape))
        try:
            plain = dequantize(np.asarray(data), kind) if tensor.kind > 1 and not stored else data
        except RuntimeError:  # a kind that the reader does not know
            raise CaptureError(
                "PL124", f"the tensor {tensor.name!r} is stored as {kind.name}, which cannot be read",
                where=str(header.path),
            ) from None  # fmt: skip
        yield tensor, np.require(plain, np.float32, ["C", "W"])


def write_outline(header: Header, target: Path, extra: Mapping[str, int]) -> None:
    """A file with the same metadata but for its long arrays, the same tensor table, and a hole for the data.

    ``extra`` are whole numbers added to the metadata. Reading such a file takes no time, where readers that go
    through a vocabulary element by element take seconds.
    """
    short = [e for e in header.entries.values() if e.kind != ARRAY or e.count <= 1024]
    with header.path.open("rb") as source, target.open("wb") as out:
        count = len(short) + len(extra)
        out.write(MAGIC + struct.pack("<IQQ", header.version, len(header.tensors), count))
        for entry in short:
            out.write(_part(source, entry.start, entry.end))
        for key, value in extra.items():
            name = key.encode()
            out.write(struct.pack("<Q", len(name)) + name + struct.pack("<II", 4, value))
        out.write(_part(source, header.table_start, header.table_end))
        alignment = int(header.get("general.alignment", 32))
        place = out.tell() + -out.tell() % alignment
        out.truncate(place + header.size - header.data_start)


def _part(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start, os.SEEK_SET)
    return file.read(end - start)
