"""What a user trusts, in terms of files: the machine code in an artifact, a library, or a digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from planish.errors import ArtifactError
from planish.runtime import trust
from planish.runtime.artifact import open_artifact

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Library:
    """Machine code by its SHA-256, and where it is: ``model.planish: code/cpu/avx2.so``."""

    digest: str
    where: str


def libraries_in(file: Path) -> list[Library]:
    """The machine code of an artifact, of a folder made with ``format="so"``, or of a library.

    Everything in an artifact is compared with its digests first. PL601 and others: it is none of them.
    """
    if file.is_dir():
        return [Library(trust.file_digest(p), str(p.resolve())) for p in sorted(file.glob("*.so"))]
    if file.suffix == ".so" and file.is_file():
        return [Library(trust.file_digest(file), str(file.resolve()))]
    with open_artifact(file, verify="full") as artifact:
        members = artifact.manifest.members
        return [
            Library(members[name][1], f"{artifact.path}: {name}")
            for name in artifact.names
            if name.startswith("code/") and name.endswith(".so")
        ]


def named(text: str) -> list[Library]:
    """What a file holds, or what a digest in 64 hexadecimal digits stands for."""
    path = Path(text)
    if _DIGEST.fullmatch(text) and not path.exists():
        return [Library(text, trust.trusted().get(text, ""))]
    return libraries_in(path)


def add_all(libraries: list[Library]) -> list[Library]:
    """Trust libraries; gives those that were not trusted before. PL628: the list is unsafe or cannot be written."""
    if not libraries:
        return []
    with _changing():
        known = trust.trusted()
        new = [each for each in libraries if each.digest not in known]
        for each in new:
            trust.add(each.digest, each.where)
    return new


def remove_all(libraries: list[Library]) -> list[Library]:
    """Trust libraries no longer; gives those that were trusted."""
    if not libraries:
        return []
    with _changing():
        return [each for each in libraries if trust.remove(each.digest)]


def trust_own(path: Path, libraries: Mapping[str, bytes]) -> str | None:
    """Trust what was compiled here and written to ``path``; gives a note instead of an error where that fails."""
    where = path.resolve()
    made = [Library(hashlib.sha256(data).hexdigest(), f"{where}: {name}") for name, data in libraries.items()]
    try:
        add_all(made)
    except (ArtifactError, OSError) as error:
        return f"its machine code is not in the list of trusted code, {trust.trust_path()}: {error}"
    return None


@contextmanager
def _changing() -> Iterator[None]:
    """One process at a time changes the list."""
    from filelock import FileLock

    file = trust.trust_path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(str(file.with_suffix(".lock"))):
            yield
    except OSError as error:
        raise ArtifactError(
            "PL628", f"the list of trusted code cannot be written: {error.strerror or error}", where=str(file),
            hint="name another folder in PLANISH_CONFIG_DIR",
        ) from error  # fmt: skip
