"""Where an ONNX file says that its data lies: refuse every path that could reach outside of its folder."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PureWindowsPath

from planish.errors import ArtifactError

_WHOLE = re.compile(r"[0-9]{1,19}")


def resolve_external(
    folder: str | os.PathLike[str], location: str, offset: int | str = 0, length: int | str | None = None
) -> Path:
    """The file below ``folder`` that ``location`` names, once it and the byte range are safe to read.

    Refused: ``..``, absolute paths of POSIX and Windows, control characters (PL616); symbolic links anywhere below
    ``folder``, hard links, folders, devices, FIFOs, missing files (PL617); offsets and lengths that are negative,
    overflow, or reach beyond the end of the file (PL618). ``offset`` and ``length`` may be numbers or the strings
    that ONNX stores; a missing length means up to the end of the file.
    """
    root = Path(folder)
    parts = _parts(location, str(root))
    path = root
    for index, part in enumerate(parts):
        path = path / part
        try:
            status = path.lstat()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "is not a file name"
            raise _refused("PL617", location, f"cannot be read: {reason}", root) from None
        last = index == len(parts) - 1
        if stat.S_ISLNK(status.st_mode):
            raise _refused("PL617", location, f"{part!r} is a symbolic link", root)
        if not last and not stat.S_ISDIR(status.st_mode):
            raise _refused("PL617", location, f"{part!r} is not a folder", root)
        if last:
            _check_file(status, location, root)
            _check_range(status.st_size, location, offset, length, root)
    return path


def _parts(location: str, root: str) -> list[str]:
    def refuse(what: str) -> ArtifactError:
        return _refused("PL616", location, what, Path(root))

    if not location or len(location) > 4096:
        raise refuse("it is empty or too long")
    if any(ord(c) < 32 or ord(c) == 127 for c in location):
        raise refuse("it holds a control character")
    windows = PureWindowsPath(location)
    if location.startswith(("/", "\\")) or windows.drive or windows.root or ":" in location:
        raise refuse("it is absolute")
    # A backslash separates on some systems and is part of a name on others: both readings must be safe.
    if ".." in re.split(r"[/\\]", location):
        raise refuse("it holds '..'")
    if "\\" in location:
        raise refuse("it holds a backslash")
    parts = [part for part in location.split("/") if part not in ("", ".")]
    if not parts:
        raise refuse("it names no file")
    return parts


def _check_file(status: os.stat_result, location: str, root: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refused("PL617", location, "it is not a regular file", root)
    if status.st_nlink > 1:
        raise _refused(
            "PL617", location, "it has other names (hard links) and may belong to someone else", root
        )


def _check_range(size: int, location: str, offset: int | str, length: int | str | None, root: Path) -> None:
    start = _number(offset, "offset", location, root)
    count = None if length is None else _number(length, "length", location, root)
    if start > size or (count is not None and count > size - start):
        what = f"bytes {start} to {start + (count or 0)} are asked for, but the file has {size}"
        raise _refused("PL618", location, what, root)


def _number(value: int | str, what: str, location: str, root: Path) -> int:
    if isinstance(value, str):
        number = int(value) if _WHOLE.fullmatch(value) else -1
    else:
        number = value if type(value) is int else -1
    if not 0 <= number < 2**63:
        raise _refused("PL618", location, f"its {what} is {str(value)[:40]!r}", root)
    return number


def _refused(code: str, location: str, what: str, root: Path) -> ArtifactError:
    return ArtifactError(
        code,
        f"the external data {location[:80]!r} is refused: {what}",
        where=str(root),
        hint="external data must be plain files beside or below the model",
    )
