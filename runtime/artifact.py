"""``NAME.planish``: write one atomically, open one strictly, read its members without copying."""

from __future__ import annotations

import contextlib
import mmap as mmap_module
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from planish.errors import ArtifactError
from planish.runtime import manifest as m
from planish.runtime.limits import DEFAULT, Limits
from planish.runtime.tensors import Array, SafetensorsPayload, TensorInfo, read_table, view_tensors
from planish.runtime.zipformat import Member, check_names
from planish.runtime.zipreader import RawFile, read_members
from planish.runtime.zipwriter import ZipWriter, file_chunks, replacing

Content: TypeAlias = "bytes | str | Path | SafetensorsPayload | Iterable[bytes]"
Verify: TypeAlias = Literal["full", "fast", "off"]
SMALL = 2**20


def write_artifact(
    path: str | os.PathLike[str],
    *,
    manifest_fields: Mapping[str, Any],
    members: Mapping[str, Content],
    overwrite: bool = False,
) -> Path:
    """Write an artifact and return its path.

    ``manifest_fields`` are those of ``manifest.json`` except versions and hashes, which are filled in here.
    Members are written in the order of their names; a ``str`` is stored as UTF-8, a ``Path`` is copied from that
    file, a payload or an iterable is streamed. Equal content gives equal bytes. The file appears at ``path`` only
    when it is complete and on disk; an existing one is refused (PL614) unless ``overwrite``.
    """
    target = Path(path)
    check_names([*members, m.NAME], where=str(target))
    if not target.parent.is_dir():
        raise ArtifactError("PL625", f"the folder {target.parent} does not exist", where=str(target))
    with replacing(target, overwrite=overwrite) as file:
        writer = ZipWriter(file)
        facts: dict[str, tuple[int, str]] = {}
        for name in sorted(members):
            member, digest = writer.add(name, _chunks(members[name]))
            facts[name] = (member.size, digest)
        writer.add(m.NAME, [m.dump_manifest(manifest_fields, facts)])
        writer.finish()
    return target


def _chunks(content: Content) -> Iterable[bytes | memoryview]:
    if isinstance(content, bytes | bytearray | memoryview):
        return [bytes(content)]
    if isinstance(content, str):
        return [content.encode()]
    if isinstance(content, Path):
        return file_chunks(content)
    if isinstance(content, SafetensorsPayload):
        return content.chunks()
    return content


class Artifact:
    """An open artifact. Use it as a context manager or call :meth:`close`.

    Views and arrays given out keep the mapping alive; closing only means that no new ones are made.
    """

    def __init__(
        self, file: RawFile, members: Mapping[str, Member], manifest: m.Manifest, *, mapped: bool
    ) -> None:
        self._file = file
        self._members = members
        self._map = mmap_module.mmap(file.descriptor, 0, access=mmap_module.ACCESS_READ) if mapped else None
        self._tables: dict[str, dict[str, TensorInfo]] = {}
        self.manifest = manifest
        self.limits = DEFAULT

    @property
    def path(self) -> Path:
        """The file, with links resolved."""
        return Path(self._file.path)

    @property
    def size(self) -> int:
        """All bytes of the file."""
        return self._file.size

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all members, in file order."""
        return tuple(self._members)

    @property
    def mapped(self) -> bool:
        """Whether members are views of the mapped file."""
        return self._map is not None

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r}, {len(self._members)} members, {self.size} bytes)"

    def member(self, name: str) -> Member:
        """Where a member lies in the file; PL612 if there is none of that name."""
        self._check_open()
        if name not in self._members:
            raise ArtifactError("PL612", f"there is no member {name!r}", where=self._file.path)
        return self._members[name]

    def read(self, name: str) -> bytes:
        """The bytes of a member, copied."""
        member = self.member(name)
        return self._file.read(member.start, member.size)

    def view(self, name: str) -> memoryview:
        """The bytes of a member, read-only: a view of the mapped file, or of a copy where it is not mapped."""
        member = self.member(name)
        if self._map is None:
            return memoryview(self.read(name))
        return memoryview(self._map)[member.start : member.end]

    def table(self, name: str) -> dict[str, TensorInfo]:
        """The tensors of a safetensors member: type, shape, and byte range within the member."""
        member = self.member(name)
        if name not in self._tables:
            where = f"{self._file.path}: {name}"

            def read(offset: int, length: int) -> bytes:
                return self._file.read(member.start + offset, length)

            self._tables[name] = read_table(read, member.size, where=where, limits=self.limits)
        return self._tables[name]

    def tensors(self, name: str) -> dict[str, Array]:
        """The arrays of a safetensors member: read-only views, nothing copied."""
        table = self.table(name)
        return view_tensors(self.view(name), table)

    def unchanged(self) -> bool:
        """Whether the path still names the file that was opened and verified."""
        return self._file.unchanged()

    def release_pages(self) -> None:
        """Give back the memory of pages read through the mapping; they are read again when touched."""
        if self._map is not None and hasattr(mmap_module, "MADV_DONTNEED"):
            with contextlib.suppress(OSError, ValueError):
                self._map.madvise(mmap_module.MADV_DONTNEED)

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Check size and SHA-256 of members (all, or the named ones) against the manifest: PL603."""
        for name in self._members if names is None else names:
            if name == m.NAME:
                continue
            member = self.member(name)
            digest, crc = self._file.digests(member.start, member.size)
            if digest != self.manifest.members[name][1] or crc != member.crc:
                raise ArtifactError(
                    "PL603",
                    f"the member {name!r} has another SHA-256 than the manifest says",
                    where=self._file.path,
                    hint="the file is damaged or was changed: copy it again from its source",
                )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()
        if self._map is not None:
            with contextlib.suppress(BufferError):  # views are alive: the mapping goes with the last of them
                self._map.close()
            self._map = None

    def _check_open(self) -> None:
        if self._file.descriptor < 0:
            raise ArtifactError("PL619", "the artifact is closed", where=self._file.path)


def open_artifact(
    path: str | os.PathLike[str], *, mmap: bool = True, verify: Verify = "full", limits: Limits | None = None
) -> Artifact:
    """Open an artifact for reading; every fault is an ``ArtifactError`` with its own code.

    The structure is always checked byte by byte. ``verify="full"`` also hashes every member, ``"fast"`` those
    up to one megabyte, ``"off"`` none.
    """
    if verify not in ("full", "fast", "off"):
        raise ArtifactError("PL611", f"verify={verify!r} is not one of 'full', 'fast', 'off'")
    limits = limits or DEFAULT
    file = RawFile.open(path)
    with _closing_on_error(file):
        members = read_members(file, limits)
        manifest = _read_manifest(file, members, limits)
        artifact = Artifact(file, members, manifest, mapped=mmap)
        artifact.limits = limits
        if verify != "off":
            artifact.verify(n for n, member in members.items() if verify == "full" or member.size <= SMALL)
    return artifact


@contextlib.contextmanager
def _closing_on_error(file: RawFile) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.close()
        raise


def _read_manifest(file: RawFile, members: Mapping[str, Member], limits: Limits) -> m.Manifest:
    member = members.get(m.NAME)
    if member is None:
        raise ArtifactError(
            "PL601", "is a ZIP file without manifest.json, not a planish file", where=file.path
        )
    if member.size > limits.manifest_bytes:
        limit = limits.manifest_bytes
        raise ArtifactError(
            "PL610", f"manifest.json is {member.size} bytes, the limit is {limit}", where=file.path
        )
    if file.digests(member.start, member.size)[1] != member.crc:
        raise ArtifactError(
            "PL603", "manifest.json does not have its CRC-32", where=file.path, hint="copy it again"
        )
    manifest = m.parse_manifest(file.read(member.start, member.size), where=f"{file.path}: {m.NAME}")
    listed, present = set(manifest.members), set(members) - {m.NAME}
    if listed != present:
        name = min(listed ^ present)
        what = "is listed in the manifest but missing" if name in listed else "is not listed in the manifest"
        raise ArtifactError("PL612", f"the member {name!r} {what}", where=file.path)
    for name, (size, _) in manifest.members.items():
        if size != members[name].size:
            raise ArtifactError(
                "PL603",
                f"the member {name!r} is {members[name].size} bytes, the manifest says {size}",
                where=file.path,
            )
    return manifest
