"""Which native code a user trusts: SHA-256 digests of libraries in ``trust.json``, in the user's folder of settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from planish.errors import ArtifactError
from planish.runtime.tensors import parse_json
from planish.runtime.zipwriter import replacing

NAME = "trust.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def trust_path() -> Path:
    """The file: in ``PLANISH_CONFIG_DIR``, else in the platform's place for settings of a user."""
    if folder := os.environ.get("PLANISH_CONFIG_DIR"):
        return Path(folder) / NAME
    from platformdirs import user_config_path

    return user_config_path("planish") / NAME


def trusted(path: Path | None = None) -> Mapping[str, str]:
    """The digests that are trusted, with a note for each; PL628 if the file is unsafe or not understood."""
    file = path or trust_path()
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _invalid(f"cannot be read: {error.strerror}", file) from error
    with os.fdopen(descriptor, "rb") as opened:
        _check_owner(os.fstat(opened.fileno()), file)
        table = parse_json(opened.read(16 * 2**20), code="PL628", where=str(file))
    digests = table.get("trusted") if isinstance(table, dict) and table.get("format") == 1 else None
    if not isinstance(digests, dict) or not all(
        _DIGEST.fullmatch(digest) and isinstance(note, str) for digest, note in digests.items()
    ):
        raise _invalid("is not a table of digests", file)
    return digests


def is_trusted(digest: str, path: Path | None = None) -> bool:
    """Whether a library with this SHA-256 may run without being asked for."""
    return digest in trusted(path)


def add(digest: str, note: str = "", path: Path | None = None) -> None:
    """Trust a digest from now on; ``note`` says what it is."""
    if not _DIGEST.fullmatch(digest):
        raise ArtifactError(
            "PL628", f"{digest[:80]!r} is not a SHA-256 digest in 64 small hexadecimal digits"
        )
    _write({**trusted(path), digest: note}, path or trust_path())


def remove(digest: str, path: Path | None = None) -> bool:
    """Trust a digest no longer; tells whether it was trusted."""
    known = dict(trusted(path))
    if known.pop(digest, None) is None:
        return False
    _write(known, path or trust_path())
    return True


def file_digest(file: Path) -> str:
    """The SHA-256 of a library on disk."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(digests: Mapping[str, str], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    data = json.dumps({"format": 1, "trusted": digests}, sort_keys=True, indent=1).encode() + b"\n"
    with replacing(file, overwrite=True) as opened:
        os.chmod(opened.fileno(), 0o600)
        opened.write(data)


def _check_owner(status: os.stat_result, file: Path) -> None:
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise _invalid("belongs to somebody else, or others may write to it", file)


def _invalid(what: str, file: Path) -> ArtifactError:
    return ArtifactError(
        "PL628", f"the list of trusted code {what}", where=str(file), hint="correct or delete the file"
    )
