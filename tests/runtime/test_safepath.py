"""External data of ONNX files: only plain files below the folder, and only ranges inside of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from planish.errors import ArtifactError
from planish.runtime.safepath import resolve_external


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "w.bin").write_bytes(bytes(100))
    (root / "sub" / "v.bin").write_bytes(bytes(10))
    (tmp_path / "secret").write_bytes(bytes(100))
    os.link(tmp_path / "secret", root / "hard")
    (root / "soft").symlink_to(tmp_path / "secret")
    (root / "inner").symlink_to(root / "w.bin")
    (root / "way").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    return root


@pytest.mark.parametrize(
    ("location", "offset", "length", "found"),
    [
        ("w.bin", 0, None, "w.bin"),
        ("./w.bin", "10", "90", "w.bin"),
        ("sub/v.bin", 10, 0, "sub/v.bin"),
        ("w.bin", 100, None, "w.bin"),
    ],
)
def test_allowed(folder: Path, location: str, offset: Any, length: Any, found: str) -> None:
    assert resolve_external(folder, location, offset, length) == folder / found


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("../secret", "PL616"),
        ("sub/../../secret", "PL616"),
        ("sub/..", "PL616"),
        ("/etc/passwd", "PL616"),
        ("\\windows", "PL616"),
        ("C:\\x", "PL616"),
        ("c:x", "PL616"),
        ("..\\secret", "PL616"),
        ("sub\\v.bin", "PL616"),
        ("//host/share", "PL616"),
        ("", "PL616"),
        (".", "PL616"),
        ("w.bin\0", "PL616"),
        ("w\n", "PL616"),
        ("x" * 5000, "PL616"),
        ("x" * 300, "PL617"),
        ("soft", "PL617"),
        ("inner", "PL617"),
        ("way/secret", "PL617"),
        ("hard", "PL617"),
        ("fifo", "PL617"),
        ("sub", "PL617"),
        ("w.bin/x", "PL617"),
        ("none", "PL617"),
        ("\ud800", "PL617"),
    ],
)
def test_refused_paths(folder: Path, location: str, code: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        resolve_external(folder, location)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (-1, 1),
        ("-1", 1),
        (0, -1),
        (101, None),
        (0, 101),
        (1, 100),
        (2**63, 1),
        (1, 2**63),
        ("1e2", 1),
        ("", 1),
    ]
    + [(" 1", 1), ("0x1", 1), ("9" * 30, 1), (1.5, 1), (True, 1), ("١", 1)],
)
def test_refused_ranges(folder: Path, offset: Any, length: Any) -> None:
    with pytest.raises(ArtifactError, match="PL618"):
        resolve_external(folder, "w.bin", offset, length)
