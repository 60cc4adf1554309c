"""Look at a shared library before the system loads it: kind, processor, and whether all of it is there."""

from __future__ import annotations

import struct

from planish.errors import ArtifactError, BackendError

MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""Processors by their number in the header."""

_HEADER = struct.Struct("<HHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LOADED = 1
_SHARED = 3


def check_library(data: bytes | memoryview, *, machine: str, where: str | None = None) -> None:
    """Raise unless ``data`` is a whole ELF shared library for Linux on ``machine`` (``x86_64``).

    PL626: not a shared library, or cut short; PL772: for another processor or operating system.
    """
    if len(data) < 64 or bytes(data[:4]) != b"\x7fELF":
        raise _damaged("is not an ELF library", where)
    width, order, abi = data[4], data[5], data[7]
    if width != 2 or order != 1:
        raise _foreign("a processor that is not 64-bit little-endian", machine, where)
    kind, number, _, _, segments, sections, _, _, size, count, section_size, section_count, _ = (
        _HEADER.unpack_from(data, 16)
    )
    found = MACHINES.get(number, f"processor {number}")
    if found != machine:
        raise _foreign(found, machine, where)
    if abi not in (0, 3):
        raise _foreign(f"operating system {abi}", "linux", where)
    if kind != _SHARED:
        raise _damaged("is not a shared library", where)
    if size != _SEGMENT.size or segments + size * count > len(data):
        raise _damaged("is cut short", where)
    if sections + section_size * section_count > len(data):
        raise _damaged("is cut short", where)
    for index in range(count):
        form, _, offset, _, _, stored, needed, _ = _SEGMENT.unpack_from(data, segments + index * size)
        if form == _LOADED and (offset + stored > len(data) or stored > needed):
            raise _damaged("is cut short", where)


def _damaged(what: str, where: str | None) -> ArtifactError:
    return ArtifactError(
        "PL626", f"the library {what}", where=where, hint="copy the file again from its source"
    )


def _foreign(found: str, wanted: str, where: str | None) -> BackendError:
    return BackendError(
        "PL772", f"the library is for {found}, this machine is {wanted}", where=where,
        hint="compile the program afresh on this machine",
    )  # fmt: skip
