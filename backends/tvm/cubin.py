"""Which kernels machine code of CUDA holds, and what they use: read from the bytes, without tools.

A library, a fat binary or a cubin is searched for ELF images of CUDA. Their section ``.nv.info`` tells registers and
stack by symbol, ``.nv.shared.NAME`` the static shared memory, ``.text.NAME`` is the code.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"\x7fELF\x02\x01"
MACHINE_CUDA = 190
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
HMMA = 0x23C
"""The operation of products of f16 and bf16 by tensor cores, from sm_75 to sm_90."""
_REGISTERS, _FRAME = 0x2F, 0x11
_WORD = 4
"""Format of an attribute whose size is given; the others fill four bytes."""


@dataclass(frozen=True)
class Resources:
    """What a thread or block of a kernel uses on one architecture.

    ``registers`` are per thread, ``shared_bytes`` static shared memory per block, ``local_bytes`` the stack of a
    thread (spilled registers and arrays with computed indices), ``code_bytes`` the size of its machine code,
    ``matrix`` the number of instructions for tensor cores on floating point (``HMMA``) in it.
    """

    name: str
    sm: str
    registers: int
    shared_bytes: int
    local_bytes: int
    code_bytes: int
    matrix: int


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    data: memoryview
    size: int
    link: int
    info: int


def kernels_of(data: bytes) -> list[Resources]:
    """Every kernel in every ELF image of CUDA within ``data``, in order; none of damaged images."""
    found: list[Resources] = []
    for match in re.finditer(re.escape(MAGIC), data):
        try:
            found += _kernels(memoryview(data)[match.start() :])
        except (struct.error, IndexError, ValueError, UnicodeDecodeError):
            continue
    return found


def _kernels(image: memoryview) -> Iterator[Resources]:
    header = _HEADER.unpack_from(image)
    machine, flags = header[2], header[7]
    if machine != MACHINE_CUDA:
        return
    sections = _sections(image, header)
    names = {s.name: s for s in sections}
    symbols = _symbols(sections)
    attributes: dict[tuple[int, str], int] = {}
    if ".nv.info" in names:
        for kind, index, value in _attributes(names[".nv.info"].data):
            if index < len(symbols):
                attributes[kind, symbols[index]] = value
    for section in sections:
        if not section.name.startswith(".text."):
            continue
        name = section.name.removeprefix(".text.")
        room = names.get(f".nv.shared.{name}")
        yield Resources(
            name,
            _architecture(header[0], flags),
            attributes.get((_REGISTERS, name), section.info >> 24),
            room.size if room is not None else 0,
            attributes.get((_FRAME, name), 0),
            section.size,
            _count(section.data, HMMA),
        )


def _count(code: memoryview, operation: int) -> int:
    """Instructions of an operation: they have 16 bytes, the operation is in the lowest 12 bits."""
    words = struct.unpack_from(f"<{len(code) // 8}Q", code)
    return sum(1 for word in words[::2] if word & 0xFFF == operation)


def _architecture(identity: bytes, flags: int) -> str:
    """From the flags: the lowest byte up to ABI version 7, the second lowest from version 8."""
    return f"sm_{flags >> 8 & 0xFF if identity[8] >= 8 else flags & 0xFF}"


def _sections(image: memoryview, header: tuple[object, ...]) -> list[_Section]:
    offset, size, count, names_at = (int(header[i]) for i in (6, 11, 12, 13))  # type: ignore[call-overload]
    raw = [_SECTION.unpack_from(image, offset + i * size) for i in range(count)]
    begin = raw[names_at][4]
    made = []
    for name, kind, _, _, at, length, link, info, _, _ in raw:
        holds = kind != 8  # NOBITS
        data = image[at : at + length] if holds else image[:0]
        made.append(_Section(_text(image, begin + name), kind, data, length, link, info))
    return made


def _text(image: memoryview, begin: int) -> str:
    end = begin
    while image[end]:
        end += 1
    return bytes(image[begin:end]).decode()


def _symbols(sections: list[_Section]) -> list[str]:
    for section in sections:
        if section.kind == 2:
            names = sections[section.link].data
            return [
                _text(names, _SYMBOL.unpack_from(section.data, at)[0])
                for at in range(0, section.size, _SYMBOL.size)
            ]
    return []


def _attributes(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Kind, symbol and value of the attributes that consist of two words."""
    at = 0
    while at + 4 <= len(data):
        form, kind, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form != _WORD:
            continue
        if size == 8:
            index, value = struct.unpack_from("<II", data, at)
            yield kind, index, value
        at += size
