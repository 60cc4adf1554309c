"""Export as a library for C++: the folder, its header, and an example that computes what the session computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.errors import ArtifactError
from planish.frontend.export_library import LibraryModel, export_library
from planish.frontend.library_text import c_expression
from planish.runtime import load
from planish.runtime.manifest import EntryPoint, State, Value
from planish.runtime.native_code import EntryCode
from planish.runtime.tvm import TvmCode, TvmSession
from planish.runtime.typetext import evaluate, parse_type

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from tvm_build import code, library, main_entry, tvm_artifact, weights

SIZES = {"T": (0, 4096)}


def typed(state: bool = True) -> EntryPoint:
    states = (State("s", parse_type("f32[64]"), "s", "s.next"),) if state else ()
    x, y = Value("x", parse_type("f32[T, 64]")), Value("y", parse_type("f32[T, 64]"))
    return EntryPoint("main", (x,), (y,), states)


def model(**changes: Any) -> LibraryModel:
    described = code({"main": main_entry(state=True)})
    made: dict[str, Any] = {
        "code": described, "variant": "generic", "library": library(state=True), "entries": {"main": typed()},
        "dims": SIZES, "weights": weights(),
    }  # fmt: skip
    return LibraryModel(**made | changes)


def built(folder: Path, *words: str) -> list[list[float]]:
    """Build the example, run it, and give the numbers it prints for each result."""
    done = subprocess.run(
        ["make", "-s", f"PYTHON={sys.executable}"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["./example", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [[float(n) for n in line.partition("):")[2].split()] for line in done.stdout.splitlines()]


def example_input(rows: int) -> Any:
    return (0.125 * (np.arange(rows * 64) % 17)).astype(np.float32).reshape(rows, 64)


def test_the_example_computes_what_the_session_computes(tmp_path: Path) -> None:
    folder = export_library(model(), tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "Makefile", "example.cc", "libmodel.so", "model.json", "planish_model.h", "weights.safetensors",
    ]  # fmt: skip
    y, following = built(folder, "main", "T=3")
    with load(tvm_artifact(tmp_path / "m.planish", state=True), allow_native_code=True) as session:
        np.testing.assert_allclose(y, session(example_input(3)).reshape(-1)[:8], rtol=1e-6)
        np.testing.assert_array_equal(following, session.states["s"][:8])
    shared = TvmCode.from_folder(folder)
    assert shared.code.entries == model().code.entries
    assert not shared.copied
    found = TvmSession(shared).run({"x": example_input(3), "s": np.zeros(64, np.float32)}, ["y"])
    np.testing.assert_allclose(y, found["y"].reshape(-1)[:8], rtol=1e-6)
    warnings = ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-const-variable"]
    command = ["gcc", "-std=c11", *warnings, "-fsyntax-only", "-x", "c", "planish_model.h"]
    plain = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert plain.returncode == 0, plain.stderr


def test_weights_made_by_a_load_function(tmp_path: Path) -> None:
    prepare = EntryCode("load", (), ("w1",), weights=('raw w1 "ä\\',))
    described = code({"main": main_entry(), "load": prepare}, load="load")
    stored = {"w0": weights()["w0"], 'raw w1 "ä\\': np.zeros(64, np.float32)}
    made = model(code=described, library=library(), entries={"main": typed(False)}, weights=stored)
    (y,) = built(export_library(made, tmp_path / "m"))
    np.testing.assert_allclose(y, (example_input(1)[0] * stored["w0"])[:8], rtol=1e-6)


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    def refused(made: LibraryModel, path: Path, **options: Any) -> str:
        with pytest.raises(ArtifactError) as caught:
            export_library(made, path, **options)
        return caught.value.code

    here = tmp_path / "m"
    assert refused(model(weights={"w0": weights()["w0"]}), here) == "PL612"
    assert refused(model(library=library(state=True)[:2000]), here) == "PL626"
    assert refused(model(entries={"main": typed(False)}), here) == "PL621"
    assert refused(model(entries={}), here) == "PL621"
    assert refused(model(), tmp_path / "no" / "m") == "PL625"
    assert list(tmp_path.iterdir()) == []
    export_library(model(), here)
    assert refused(model(), here) == "PL614"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    assert refused(model(), tmp_path / "mine", overwrite=True) == "PL614"
    before = (here / "libmodel.so").stat().st_ino
    export_library(model(), here, overwrite=True)
    assert (here / "libmodel.so").stat().st_ino != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "mine"]


def test_two_exports_are_equal(tmp_path: Path) -> None:
    first, second = (export_library(model(), tmp_path / name) for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_sizes_as_expressions_of_c(tmp_path: Path) -> None:
    texts = ["2*T + S", "(T - 5)//3", "(3 - T) % 4", "min(T, S, 7)", "max(-T, 0)", "T*(S + 1)//2"]
    dims = [parse_type(f"f32[{text}]").dims[0] for text in texts]
    folder = export_library(model(), tmp_path / "m")
    shown = " ".join(f'printf("%lld ", (long long){c_expression(d, ["T", "S"])});' for d in dims)
    source = f'#include <stdio.h>\n#include "planish_model.h"\nint main() {{ int64_t sizes[] = {{3, 10}}; {shown} }}\n'
    (folder / "try.c").write_text(source)
    done = subprocess.run(["gcc", "try.c", "-o", "try"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = subprocess.run(["./try"], cwd=folder, capture_output=True, text=True).stdout.split()
    assert [int(n) for n in found] == [evaluate(d, {"T": 3, "S": 10}) for d in dims]
