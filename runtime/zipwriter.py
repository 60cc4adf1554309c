"""Write one file atomically, and the members of a ZIP64 archive into it, streaming."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from planish.errors import ArtifactError
from planish.runtime.zipformat import Member, central_header, check_name, local_header, tail

CHUNK = 4 * 2**20


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Give a temporary file beside ``path`` that takes its place when the block ends well.

    The data is on disk before the name appears, and without ``overwrite`` an existing file is never lost, even
    if it appears meanwhile. Whatever goes wrong, ``path`` holds what it held before.
    """
    if not overwrite:
        _refuse_existing(path)
    scratch = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(scratch, path, overwrite)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


def _publish(scratch: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        scratch.replace(path)
    else:
        try:
            os.link(scratch, path)
        except FileExistsError:
            _refuse_existing(path)
        except OSError:  # a file system without hard links
            _refuse_existing(path)
            scratch.replace(path)
    with contextlib.suppress(OSError):  # a directory cannot be opened everywhere
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise ArtifactError(
            "PL614", "the file exists already", where=str(path), hint="pass overwrite=True, or another path"
        )


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    reason = error.strerror or str(error)
    return ArtifactError(
        "PL625",
        f"cannot be written: {reason}",
        where=str(path),
        hint="check the folder, its rights and free space",
    )


class ZipWriter:
    """Append members to an open file; every call returns what the manifest has to know."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: list[Member] = []
        self._taken: set[str] = set()
        self._offset = 0

    def add(self, name: str, chunks: Iterable[bytes | bytearray | memoryview]) -> tuple[Member, str]:
        """Write one member piece by piece; returns it with the SHA-256 of its data."""
        if check_name(name).lower() in self._taken:
            raise ArtifactError("PL606", f"the member name {name!r} occurs twice, perhaps in another case")
        self._taken.add(name.lower())
        blank = Member(name, self._offset, 0, 0)
        self._file.write(local_header(blank))
        digest, crc, size = hashlib.sha256(), 0, 0
        for chunk in chunks:
            view = memoryview(chunk).cast("B") if not isinstance(chunk, bytes) else chunk
            self._file.write(view)
            digest.update(view)
            crc = zlib.crc32(view, crc)
            size += len(view)
        member = Member(name, self._offset, crc, size)
        self._file.seek(member.offset)
        self._file.write(local_header(member))
        self._file.seek(member.end)
        self._members.append(member)
        self._offset = member.end
        return member, digest.hexdigest()

    def finish(self) -> None:
        """Write the central directory and the end records."""
        directory = b"".join(central_header(m) for m in self._members)
        self._file.write(directory)
        self._file.write(tail(len(self._members), self._offset, len(directory)))


def file_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, a few megabytes at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
