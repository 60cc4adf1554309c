"""Read the member table of an archive strictly: anything that the writer would not have written is refused."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass, field

from planish.errors import ArtifactError
from planish.runtime import zipformat as z
from planish.runtime.limits import Limits

CHUNK = 2**20


@dataclass
class RawFile:
    """A file opened for reading at positions: no shared cursor, no page of it mapped."""

    path: str
    descriptor: int = -1
    size: int = 0
    identity: tuple[int, ...] = field(default=())

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RawFile:
        """Open a regular file; anything else (a folder, a FIFO, nothing) is PL601."""
        real = os.path.realpath(path)
        if not os.path.isfile(real):
            what = "is not a regular file" if os.path.exists(real) else "does not exist"
            raise ArtifactError("PL601", what, where=os.fspath(path), hint="give the path of a .planish file")
        try:
            descriptor = os.open(real, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise ArtifactError(
                "PL601", f"cannot be read: {error.strerror}", where=os.fspath(path)
            ) from error
        status = os.fstat(descriptor)
        return cls(real, descriptor, status.st_size, _identity(status))

    def unchanged(self) -> bool:
        """Whether the path still names the very file that was opened, with the same content."""
        try:
            return _identity(os.stat(self.path)) == self.identity == _identity(os.fstat(self.descriptor))
        except OSError:
            return False

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset``, or PL602."""
        parts, remaining = [], length
        while remaining > 0:
            try:
                part = os.pread(self.descriptor, min(remaining, 2**30), offset)
            except OSError as error:
                raise ArtifactError("PL602", f"cannot be read: {error.strerror}", where=self.path) from error
            if not part:
                raise ArtifactError("PL602", "the file ends too early", where=self.path, hint="copy it again")
            parts.append(part)
            offset += len(part)
            remaining -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def digests(self, offset: int, length: int) -> tuple[str, int]:
        """SHA-256 and CRC-32 of a range."""
        digest, crc = hashlib.sha256(), 0
        while length > 0:
            part = self.read(offset, min(length, CHUNK))
            digest.update(part)
            crc = zlib.crc32(part, crc)
            offset += len(part)
            length -= len(part)
        return digest.hexdigest(), crc

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def read_members(file: RawFile, limits: Limits) -> dict[str, z.Member]:
    """The members of an archive by name, in file order, every header byte checked."""
    where = file.path
    if file.size > limits.file_bytes:
        raise _too_much("the file", file.size, limits.file_bytes, where)
    count, directory_offset, directory_size = _read_tail(file, limits)
    directory = file.read(directory_offset, directory_size)
    members = _read_directory(directory, count, where)
    z.check_names((m.name for m in members), where=where)
    _check_layout(members, directory_offset, where)
    if b"".join(z.central_header(m) for m in members) != directory:
        raise _disagree("the central directory is not one that planish writes", where)
    for member in members:
        expected = z.local_header(member)
        if file.read(member.offset, len(expected)) != expected:
            raise _disagree(f"the local header of {member.name!r} does not agree with the directory", where)
    return {m.name: m for m in members}


def _read_tail(file: RawFile, limits: Limits) -> tuple[int, int, int]:
    where = file.path
    begins_like_zip = file.size >= 4 and file.read(0, 4) == z.LOCAL_SIGNATURE
    if not begins_like_zip:
        raise ArtifactError(
            "PL601", "is not a planish file", where=where, hint="give the path of a .planish file"
        )
    if file.size < z.TAIL_BYTES:
        raise ArtifactError("PL602", "the file ends too early", where=where, hint="copy it again")
    found = file.read(file.size - z.TAIL_BYTES, z.TAIL_BYTES)
    end = found[-z.END.size :]
    if not end.startswith(z.END_SIGNATURE):
        raise ArtifactError(
            "PL602", "the end of the archive is missing: the file is truncated or has bytes appended", where=where,
            hint="copy it again",
        )  # fmt: skip
    if not found.startswith(z.END64_SIGNATURE):
        raise ArtifactError("PL601", "is a ZIP file, but not a planish file", where=where)
    fields = z.END64.unpack(found[: z.END64.size])
    count, size, offset = fields[7], fields[8], fields[9]
    if count > limits.members:
        raise _too_much("the number of members", count, limits.members, where)
    if size > limits.directory_bytes:
        raise _too_much("the central directory", size, limits.directory_bytes, where)
    if offset + size + z.TAIL_BYTES != file.size:
        raise ArtifactError(
            "PL602", f"the archive should be {offset + size + z.TAIL_BYTES} bytes, but is {file.size}", where=where,
            hint="copy it again",
        )  # fmt: skip
    if found != z.tail(count, offset, size):
        raise _disagree("the end records are not those that planish writes", where)
    return count, offset, size


def _read_directory(directory: bytes, count: int, where: str) -> list[z.Member]:
    members, at = [], 0
    for index in range(count):
        if len(directory) - at < z.CENTRAL.size:
            raise _disagree(f"the central directory ends before member {index + 1} of {count}", where)
        fields = z.CENTRAL.unpack_from(directory, at)
        flags, method, crc, name_bytes = fields[3], fields[4], fields[7], fields[10]
        name = directory[at + z.CENTRAL.size : at + z.CENTRAL.size + name_bytes]
        shown = name[:80].decode("ascii", "backslashreplace")
        if fields[0] != z.CENTRAL_SIGNATURE:
            raise _disagree(f"member {index + 1} of {count} has no directory entry", where)
        if flags & 0x2041:
            raise ArtifactError("PL608", f"the member {shown!r} is encrypted", where=where)
        if method != 0:
            raise ArtifactError(
                "PL608", f"the member {shown!r} is compressed (method {method})", where=where,
                hint="members of an artifact are stored",
            )  # fmt: skip
        extra_at = at + z.CENTRAL.size + name_bytes
        if len(directory) - extra_at < z.CENTRAL_EXTRA.size:
            raise _disagree(f"the central directory ends inside the entry of {shown!r}", where)
        _, _, size, _, offset = z.CENTRAL_EXTRA.unpack_from(directory, extra_at)
        try:
            text = name.decode("ascii")
        except UnicodeDecodeError:
            raise ArtifactError(
                "PL606", f"unsafe member name {shown!r}: it is not ASCII", where=where
            ) from None
        members.append(z.Member(text, offset, crc, size))
        at = extra_at + z.CENTRAL_EXTRA.size
    if at != len(directory):
        raise _disagree("the central directory holds more than its members", where)
    return members


def _check_layout(members: list[z.Member], directory_offset: int, where: str) -> None:
    expected = 0
    for member in members:
        if member.offset < expected:
            raise ArtifactError(
                "PL607", f"the member {member.name!r} overlaps the one before it", where=where
            )
        if member.offset > expected:
            raise _disagree(f"there is a gap before the member {member.name!r}", where)
        if member.end > directory_offset:
            raise ArtifactError(
                "PL607", f"the member {member.name!r} reaches into the directory", where=where
            )
        expected = member.end
    if expected != directory_offset:
        raise _disagree("there is a gap before the central directory", where)


def _too_much(what: str, value: int, limit: int, where: str) -> ArtifactError:
    return ArtifactError(
        "PL610", f"{what} is {value}, the limit is {limit}", where=where, hint="raise it in limits"
    )


def _disagree(what: str, where: str) -> ArtifactError:
    return ArtifactError(
        "PL609", what, where=where, hint="the file is damaged or was written by another tool"
    )
