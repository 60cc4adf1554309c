"""The ZIP64 subset that artifacts use, as pure functions from facts to bytes.

There is exactly one way to lay out given members: stored, one after another without gaps, data on 64-byte
boundaries (an extra field pads the local header), fixed timestamps, sizes always in ZIP64 fields. The writer
emits these bytes and the reader demands them, so that no header byte is left for anyone to choose.
Any ordinary ZIP tool can list and unpack the result.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from planish.errors import ArtifactError

ALIGNMENT = 64
LOCAL_SIGNATURE = b"PK\x03\x04"
CENTRAL_SIGNATURE = b"PK\x01\x02"
END64_SIGNATURE = b"PK\x06\x06"
LOCATOR_SIGNATURE = b"PK\x06\x07"
END_SIGNATURE = b"PK\x05\x06"

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
CENTRAL_EXTRA = struct.Struct("<2H3Q")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
END = struct.Struct("<4s4H2LH")
TAIL_BYTES = END64.size + LOCATOR.size + END.size

NAME_BYTES = 512
_VERSION = 45
_UTF8 = 0x800
_DATE = 0x21  # 1 January 1980
_IN_ZIP64 = 0xFFFFFFFF
_PADDING_FIELD = 0xD935
_PART = re.compile(r"[A-Za-z0-9_.+=@,#-]+")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Member:
    """One stored file: its name, the offset of its local header, the CRC-32 and size of its data."""

    name: str
    offset: int
    crc: int
    size: int

    @property
    def start(self) -> int:
        """Where the data begins; always a multiple of 64."""
        return data_start(self.name, self.offset)

    @property
    def end(self) -> int:
        """The first byte after the data; the next local header, or the central directory, begins here."""
        return self.start + self.size


def check_name(name: str, *, where: str | None = None) -> str:
    """Return ``name`` if it is safe to unpack anywhere; raise PL606 otherwise."""
    problem = _name_problem(name)
    if problem is None:
        return name
    raise ArtifactError(
        "PL606",
        f"unsafe member name {name[:80]!r}: {problem}",
        where=where,
        hint="names are ASCII letters, digits and _.+=@,#- in parts joined by single slashes",
    )


def _name_problem(name: str) -> str | None:
    if not name:
        return "it is empty"
    if len(name) > NAME_BYTES:
        return f"it is longer than {NAME_BYTES} characters"
    if "\\" in name:
        return "it holds a backslash"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "it is absolute"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return f"it holds the part {part!r}"
        if not _PART.fullmatch(part):
            return "it holds a character that is not allowed"
        if part.endswith(".") or _DEVICES.fullmatch(part):
            return f"{part!r} is not a file name on every system"
    return None


def check_names(names: Iterable[str], *, where: str | None = None) -> None:
    """Check every name, and that no two are equal or differ only in case."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(check_name(name, where=where).lower(), name)
        if seen[name.lower()] is not name:
            what = "twice" if other == name else f"beside {other!r}, from which it differs only in case"
            raise ArtifactError("PL606", f"the member name {name!r} occurs {what}", where=where)


def data_start(name: str, offset: int) -> int:
    """Where data begins if the local header of ``name`` is at ``offset``."""
    least = offset + LOCAL.size + len(name.encode()) + 20 + 4
    return -(-least // ALIGNMENT) * ALIGNMENT


def local_header(member: Member) -> bytes:
    """The local header with its ZIP64 field and the padding up to the data."""
    name = member.name.encode()
    padding = member.start - member.offset - LOCAL.size - len(name) - 20 - 4
    extra = struct.pack("<2H2Q", 1, 16, member.size, member.size)
    extra += struct.pack("<2H", _PADDING_FIELD, padding) + bytes(padding)
    fixed = (_VERSION, _UTF8, 0, 0, _DATE, member.crc, _IN_ZIP64, _IN_ZIP64, len(name), len(extra))
    return LOCAL.pack(LOCAL_SIGNATURE, *fixed) + name + extra


def central_header(member: Member) -> bytes:
    """The entry of the central directory."""
    name = member.name.encode()
    extra = CENTRAL_EXTRA.pack(1, 24, member.size, member.size, member.offset)
    fixed = (3 << 8 | _VERSION, _VERSION, _UTF8, 0, 0, _DATE, member.crc, _IN_ZIP64, _IN_ZIP64)
    rest = (len(name), len(extra), 0, 0, 0, 0o100644 << 16, _IN_ZIP64)
    return CENTRAL.pack(CENTRAL_SIGNATURE, *fixed, *rest) + name + extra


def tail(count: int, directory_offset: int, directory_size: int) -> bytes:
    """The three end records: ZIP64 end, its locator, and the classic end that points to them."""
    body = (
        END64.size - 12,
        3 << 8 | _VERSION,
        _VERSION,
        0,
        0,
        count,
        count,
        directory_size,
        directory_offset,
    )
    end64 = END64.pack(END64_SIGNATURE, *body)
    locator = LOCATOR.pack(LOCATOR_SIGNATURE, 0, directory_offset + directory_size, 1)
    end = END.pack(END_SIGNATURE, 0, 0, 0xFFFF, 0xFFFF, _IN_ZIP64, _IN_ZIP64, 0)
    return end64 + locator + end
