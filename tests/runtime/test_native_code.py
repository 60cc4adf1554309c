"""Native code in artifacts: what may run, what is refused before it is loaded, and how it is described."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm_build import (
    LIBRARY,
    SIZE,
    abi,
    code,
    code_of,
    expected,
    library,
    main_entry,
    opened,
    rows,
    tvm_artifact,
)

from planish.errors import PlanishError
from planish.runtime import load, trust, tvm
from planish.runtime.architecture import choose_architecture
from planish.runtime.artifact import open_artifact
from planish.runtime.elf import check_library
from planish.runtime.native_code import LibraryFile, parse_code
from planish.runtime.processor import choose_library, features


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PLANISH_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return tvm_artifact(tmp_path / "a.planish")


def test_native_code_runs_only_when_allowed(artifact: Path) -> None:
    digest = hashlib.sha256(library()).hexdigest()
    assert code_of(load, artifact) == "PL622"
    assert code_of(load, artifact, allow_native_code=False) == "PL622"
    trust.add(digest, "made by a test")
    assert trust.trusted() == {digest: "made by a test"}
    np.testing.assert_array_equal(load(artifact)(rows(1)), expected(rows(1)))
    assert code_of(load, artifact, allow_native_code=False) == "PL622"
    assert trust.remove(digest)
    assert not trust.remove(digest)
    assert code_of(load, artifact) == "PL622"


def test_the_list_of_trusted_code_is_guarded(tmp_path: Path) -> None:
    assert code_of(trust.add, "abc") == "PL628"
    trust.add("0" * 64)
    path = trust.trust_path()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    assert code_of(trust.trusted) == "PL628"
    path.chmod(0o600)
    for text in ("", "[]", '{"format": 1, "trusted": {"x": ""}}', '{"format": 2, "trusted": {}}'):
        path.write_text(text)
        assert code_of(trust.is_trusted, "0" * 64) == "PL628"


def test_other_code_is_used_where_native_code_may_not_run(tmp_path: Path) -> None:
    from onnx import TensorProto, helper
    from runtime_build import MODEL, model, value

    shape: list[Any] = [None, SIZE]
    onnx = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
    )
    path = tvm_artifact(tmp_path / "a.planish", more={MODEL: onnx}, selftest=False)
    np.testing.assert_array_equal(load(path)(rows(2)), rows(2))
    np.testing.assert_array_equal(opened(path)(rows(2)), expected(rows(2)))


def patched(offset: int, data: bytes) -> bytes:
    whole = bytearray(library())
    whole[offset : offset + len(data)] = data
    return bytes(whole)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "PL626"), (b"MZ" + bytes(200), "PL626"), (library()[:40], "PL626"), (library()[:-1], "PL626"),
        (library()[: len(library()) // 2], "PL626"), (patched(16, b"\x02\x00"), "PL626"),
        (patched(4, b"\x01"), "PL772"),
        (patched(18, (183).to_bytes(2, "little")), "PL772"), (patched(7, b"\x09"), "PL772"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_before_they_are_loaded(tmp_path: Path, data: bytes, wanted: str) -> None:
    path = tvm_artifact(tmp_path / "a.planish", more={LIBRARY: data})
    assert code_of(opened, path) == wanted
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_library_without_tvm_code_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    subprocess.run(["gcc", "-shared", "-o", str(tmp_path / "empty.so"), str(source)], check=True)
    path = tvm_artifact(tmp_path / "a.planish", more={LIBRARY: (tmp_path / "empty.so").read_bytes()})
    assert code_of(opened, path) == "PL774"


def test_other_versions_and_systems_are_refused(tmp_path: Path) -> None:
    for change, wanted in (
        ({"tvm": "0.1"}, "PL771"), ({"ffi": "9.9"}, "PL771"),
        ({"os": "windows"}, "PL772"), ({"machine": "arm"}, "PL772"),
    ):  # fmt: skip
        described = code({"main": main_entry()}, abi=abi(**change))
        assert code_of(opened, tvm_artifact(tmp_path / "a.planish", described=described)) == wanted


def test_the_best_library_for_the_processor_is_chosen(tmp_path: Path) -> None:
    files = {
        "generic": LibraryFile("generic.so"), "avx2": LibraryFile("avx2.so", ("avx2", "fma")),
        "best": LibraryFile("best.so", ("avx2", "fma", "avx512f")),
    }  # fmt: skip
    for have, wanted in (
        ("", "generic"),
        ("avx2", "generic"),
        ("avx2 fma", "avx2"),
        ("avx512f fma avx2 x", "best"),
    ):
        assert choose_library(files, frozenset(have.split())) == wanted
    assert code_of(choose_library, {"best": files["best"]}, frozenset({"avx2"})) == "PL773"
    described = code({"main": main_entry()}, {"future": LibraryFile("generic.so", ("avx4096",))})
    with pytest.raises(PlanishError, match="future needs avx4096") as caught:
        opened(tvm_artifact(tmp_path / "a.planish", described=described))
    assert caught.value.code == "PL773"
    assert features()


@pytest.mark.parametrize(
    ("libraries", "device", "wanted"),
    [
        ("sm_80+sm_90", "sm_80", "sm_80+sm_90"), ("sm_80+sm_90", "sm_90", "sm_80+sm_90"),
        ("sm_80+sm_90", "sm_86", "sm_80+sm_90"), ("sm_80+sm_90", "sm_75", None), ("sm_80+sm_90", "sm_100", None),
        ("sm_80 sm_86 sm_90", "sm_89", "sm_86"), ("sm_80 sm_89", "sm_86", "sm_80"),
        ("sm_80+sm_86 sm_86", "sm_86", "sm_86"),
        ("sm_80 sm_75+sm_86", "sm_87", "sm_75+sm_86"), ("sm_90a sm_90", "sm_90", "sm_90a"),
        ("sm_90a", "sm_90", "sm_90a"),
        ("sm_100a", "sm_103", None), ("sm_100", "sm_103", "sm_100"), ("sm_120+sm_90a", "sm_121", "sm_120+sm_90a"),
        ("sm_10", "sm_100", None), ("generic", "sm_80", None), ("sm_80+", "sm_80", "sm_80+"), ("sm_80", "", None),
    ],
)  # fmt: skip
def test_the_library_for_the_architecture_is_chosen(libraries: str, device: str, wanted: str | None) -> None:
    names = libraries.split()
    if wanted is None:
        with pytest.raises(PlanishError, match=f"the device is {device};.*{re.escape(names[0])}") as caught:
            choose_architecture(names, device)
        assert caught.value.code == "PL773"
    else:
        assert choose_architecture(names, device) == choose_architecture(names[::-1], device) == wanted


@pytest.mark.parametrize(("device", "wanted"), [("sm_86", "code/cuda/two.so"), ("sm_70", "PL773")])
def test_a_library_for_several_architectures_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, wanted: str
) -> None:
    files = {"sm_80+sm_90": LibraryFile("two.so"), "sm_75": LibraryFile("one.so")}
    described = code({"main": main_entry()}, files, device="cuda")
    more = {
        "code/cuda/code.json": described.dump(),
        "code/cuda/two.so": library(),
        "code/cuda/one.so": library(),
    }
    monkeypatch.setattr(tvm, "_architecture", lambda index, where: device)
    with open_artifact(tvm_artifact(tmp_path / "a.planish", more=more)) as artifact:
        made = tvm.read_code(artifact, "code/cuda/code.json")
        if wanted == "PL773":
            assert code_of(tvm.library_member, artifact, "code/cuda/code.json", made, "cuda:1") == wanted
        else:
            assert tvm.library_member(artifact, "code/cuda/code.json", made, "cuda:1") == wanted


def test_code_and_entry_points_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.planish"
    other = replace(main_entry(), inputs=("z",))
    assert code_of(opened, tvm_artifact(path, described=code({"main": other}))) == "PL621"
    assert code_of(opened, tvm_artifact(path, described=code({"prefill": main_entry()}))) == "PL621"
    lost = replace(main_entry(), weights=("w0", "w9"))
    assert code_of(opened, tvm_artifact(path, described=code({"main": lost}))) == "PL612"
    nameless = replace(main_entry(), function="nothing")
    assert code_of(opened, tvm_artifact(path, described=code({"main": nameless}))) == "PL774"
    short = replace(main_entry(), weights=("w0",))
    assert (
        code_of(opened(tvm_artifact(path, described=code({"main": short})), verify="off"), rows(1)) == "PL776"
    )
    files = {"generic": LibraryFile("lost.so")}
    assert code_of(opened, tvm_artifact(path, described=code({"main": main_entry()}, files))) == "PL612"
    assert code_of(opened, path, device="tpu") == "PL705"


def test_the_description_of_code_is_checked() -> None:
    made = code({"main": main_entry(state=True)})
    assert parse_code(made.dump()) == made
    table = json.loads(made.dump())

    def refused(**changes: Any) -> str:
        return code_of(parse_code, json.dumps(table | changes).encode())

    assert refused(format=2) == "PL604"
    entry = table["entries"]["main"]
    for changes in (
        {"format": 0}, {"format": True}, {"device": "tpu"}, {"more": 1}, {"load": "main"}, {"load": "no"},
        {"entries": {}}, {"entries": {"a b": entry}}, {"entries": {"main": entry | {"function": ""}}},
        {"entries": {"main": entry | {"inputs": ["x", "x"]}}}, {"entries": {"main": entry | {"inputs": [1]}}},
        {"entries": {"main": entry | {"next_states": []}}}, {"entries": {"main": entry | {"extra": 1}}},
        {"libraries": {}}, {"libraries": {"a": {"file": "../a.so"}}}, {"libraries": {"a": {"file": "a.dll"}}},
        {"libraries": {"a": {"file": "a.so", "needs": ["a b"]}}}, {"libraries": []}, {"abi": {"tvm": "0.27"}},
        {"abi": {"tvm": "new", "ffi": "0.1"}}, {"abi": {"tvm": "0.27", "ffi": "0.1", "os": "a b"}},
    ):  # fmt: skip
        assert refused(**changes) == "PL611", changes


def test_elf_of_this_interpreter() -> None:
    check_library(library(), machine="x86_64")
    assert code_of(check_library, library(), machine="aarch64") == "PL772"
