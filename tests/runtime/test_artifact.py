"""The file format: what is written can be read, equal content gives equal bytes, and every fault has its code."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_build import MODEL, WEIGHTS, Int4, fields, int4_artifact, int4_members

from planish.errors import ArtifactError
from planish.runtime import zipformat
from planish.runtime.artifact import open_artifact, write_artifact
from planish.runtime.limits import Limits
from planish.runtime.manifest import parse_manifest
from planish.runtime.tensors import SafetensorsPayload


def code_of(path: Path, **options: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path, **options)
    return caught.value.code


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return int4_artifact(tmp_path / "a.planish")


def rezip(path: Path, manifest: Any, source: Path) -> Path:
    """The members of ``source`` with another manifest (anything that JSON can hold), laid out as it should be."""
    from planish.runtime.zipwriter import ZipWriter

    with zipfile.ZipFile(source) as old, path.open("w+b") as file:
        writer = ZipWriter(file)
        for name in old.namelist():
            data = old.read(name)
            if name == "manifest.json":
                table = json.loads(data)
                data = json.dumps(manifest(table)).encode()
            writer.add(name, [data])
        writer.finish()
    return path


def test_round_trip(artifact: Path) -> None:
    layer = Int4(64, 128)
    with open_artifact(artifact) as opened:
        assert opened.manifest.dims == {"B": (1, 16)}
        entry = opened.manifest.entry_points["main"]
        assert str(entry) == "main(x: f32[B, 64]) -> y: f32[B, 128]"
        assert opened.read("report.json") == b'{"bytes": 1}' == bytes(opened.view("report.json"))
        tensors = opened.tensors(WEIGHTS)
        assert list(tensors) == ["odd", "codes", "scale"]
        np.testing.assert_array_equal(tensors["codes"], layer.packed)
        np.testing.assert_array_equal(tensors["scale"], layer.scale)
        assert not tensors["codes"].flags.writeable
        assert not tensors["codes"].flags.owndata
        assert all(opened.member(name).start % 64 == 0 for name in opened.names)
        assert all(info.offset % 64 == 0 for info in opened.table(WEIGHTS).values())
    with pytest.raises(ArtifactError, match="PL619"):
        opened.read("report.json")
    np.testing.assert_array_equal(tensors["scale"], layer.scale)  # views outlive the artifact


def test_any_zip_tool_reads_it(artifact: Path) -> None:
    with zipfile.ZipFile(artifact) as archive:
        assert archive.testzip() is None
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        assert sum(i.file_size for i in archive.infolist()) <= artifact.stat().st_size


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first = int4_artifact(tmp_path / "a.planish").read_bytes()
    time.sleep(0.01)
    members = dict(reversed(int4_members(Int4(64, 128)).items()))
    second = write_artifact(tmp_path / "b.planish", manifest_fields=fields(), members=members).read_bytes()
    assert first == second


def test_members_stream_from_files_and_iterables(tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(bytes(range(256)) * 100)
    path = int4_artifact(
        tmp_path / "a.planish", more={"tokenizer/a": source, "tokenizer/b": iter([b"x" * 10] * 10)}
    )
    with open_artifact(path, mmap=False) as opened:
        assert opened.read("tokenizer/a") == source.read_bytes()
        assert bytes(opened.view("tokenizer/b")) == b"x" * 100


def test_existing_file_is_kept(artifact: Path) -> None:
    before = artifact.read_bytes()
    with pytest.raises(ArtifactError, match="PL614"):
        write_artifact(artifact, manifest_fields=fields(), members={})

    def broken() -> Any:
        yield b"x"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        int4_artifact(artifact, more={"tokenizer/x": broken()})
    with pytest.raises(ArtifactError, match="PL611"):
        int4_artifact(artifact, dims={})
    assert artifact.read_bytes() == before
    assert os.listdir(artifact.parent) == [artifact.name]


def test_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.planish"

    def late() -> Any:
        path.write_text("theirs")
        yield b"x"

    with pytest.raises(ArtifactError, match="PL614"):
        write_artifact(
            path, manifest_fields=fields(), members=int4_members(Int4(64, 128)) | {"tokenizer/x": late()}
        )
    assert path.read_text() == "theirs"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="PL625"):
        int4_artifact(tmp_path / "none" / "a.planish")


WRITER = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from runtime_build import int4_artifact
def slow():
    for index in range(10000):
        if index == 20: print("writing", flush=True)
        time.sleep(0.001)
        yield bytes(4096)
int4_artifact(Path({target!r}), more={{"tokenizer/x": slow()}})
"""


@pytest.mark.parametrize("exists", [True, False])
def test_killed_while_writing(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "a.planish"
    before = int4_artifact(path).read_bytes() if exists else None
    script = WRITER.format(path=[p for p in sys.path if p], target=str(path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a\\b", "", "a//b", "a/./b", "c:x", "a/", "a\nb", "ä", "nul.txt", "x."]
)
def test_unsafe_names_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="PL606"):
        int4_artifact(tmp_path / "a.planish", more={name: b""})


def test_names_that_differ_in_case(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="PL606"):
        int4_artifact(tmp_path / "a.planish", more={"Report.json": b""})


def test_not_a_planish_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert code_of(path) == "PL601"
    assert code_of(tmp_path) == "PL601"
    path.write_bytes(b"")
    assert code_of(path) == "PL601"
    path.write_bytes(b"hello" * 100)
    assert code_of(path) == "PL601"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "{}" * 100)
    assert code_of(path) == "PL601"
    os.mkfifo(tmp_path / "fifo")
    assert code_of(tmp_path / "fifo") == "PL601"


def test_truncated_and_extended(artifact: Path) -> None:
    data = artifact.read_bytes()
    artifact.write_bytes(data[:-1])
    assert code_of(artifact) == "PL602"
    artifact.write_bytes(data[: len(data) // 2])
    assert code_of(artifact) == "PL602"
    artifact.write_bytes(data + b"\0")
    assert code_of(artifact) == "PL602"
    artifact.write_bytes(data[:64] + data)
    assert code_of(artifact) == "PL602"


def test_changed_weights_are_found(artifact: Path) -> None:
    data = bytearray(artifact.read_bytes())
    with open_artifact(artifact) as opened:
        at = opened.member(WEIGHTS).end - 1
    data[at] ^= 1
    artifact.write_bytes(data)
    assert code_of(artifact) == "PL603"
    open_artifact(artifact, verify="off").close()


def header_of(artifact: Path, which: str, **changes: Any) -> None:
    """Rewrite the directory entry and the local header of one member."""
    with open_artifact(artifact) as opened:
        member = opened.member(which)
    data = artifact.read_bytes()
    changed = dataclasses.replace(member, **changes)
    data = data.replace(zipformat.central_header(member), zipformat.central_header(changed))
    artifact.write_bytes(data)


def test_layout_faults(artifact: Path) -> None:
    good = artifact.read_bytes()
    header_of(artifact, WEIGHTS, offset=0)
    assert code_of(artifact) == "PL607"
    artifact.write_bytes(good)
    header_of(artifact, WEIGHTS, size=2**63)
    assert code_of(artifact) == "PL607"
    artifact.write_bytes(good)
    header_of(artifact, MODEL, size=1)
    assert code_of(artifact) == "PL609"
    artifact.write_bytes(good)
    header_of(artifact, "report.json", name="../ort.json")
    assert code_of(artifact) == "PL606"
    artifact.write_bytes(good)
    header_of(artifact, "report.json", name="report.jsan")
    assert code_of(artifact) == "PL609"
    artifact.write_bytes(good)
    header_of(artifact, "report.json", crc=5)
    assert code_of(artifact) == "PL609"


@pytest.mark.parametrize(("field", "value"), [(3, 0x801), (4, 8)])
def test_encrypted_or_compressed(artifact: Path, field: int, value: int) -> None:
    data = bytearray(artifact.read_bytes())
    at = data.index(zipformat.CENTRAL_SIGNATURE)
    facts = list(zipformat.CENTRAL.unpack_from(data, at))
    facts[field] = value
    zipformat.CENTRAL.pack_into(data, at, *facts)
    artifact.write_bytes(data)
    assert code_of(artifact) == "PL608"


def test_manifest_faults(artifact: Path, tmp_path: Path) -> None:
    def code(change: Any) -> str:
        return code_of(rezip(tmp_path / "b.planish", change, artifact))

    assert code(lambda t: t | {"reader_version": 7, "producer": {"planish": "9.1"}}) == "PL604"
    assert code(lambda t: t | {"required": ["entry_points", "holograms"]}) == "PL605"
    assert code(lambda t: t | {"required": 3}) == "PL611"
    assert code(lambda t: t | {"format": "zip"}) == "PL601"
    assert code(lambda t: []) == "PL601"
    assert code(lambda t: t | {"format_version": True}) == "PL611"
    assert code(lambda t: t | {"entry_points": {}}) == "PL611"
    assert code(lambda t: t | {"dims": {"B": [5, 1]}}) == "PL611"
    assert code(lambda t: t | {"dims": {}}) == "PL611"
    assert code(lambda t: t | {"members": {}}) == "PL612"
    assert (
        code(lambda t: t | {"members": t["members"] | {"weights/x": {"size": 1, "sha256": "0" * 64}}})
        == "PL612"
    )
    assert (
        code(lambda t: t | {"members": {n: v | {"size": v["size"] + 1} for n, v in t["members"].items()}})
        == "PL603"
    )
    open_artifact(
        rezip(tmp_path / "c.planish", lambda t: t | {"holograms": 1, "format_version": 3}, artifact)
    ).close()


def test_future_version_names_what_is_needed(artifact: Path, tmp_path: Path) -> None:
    future = rezip(
        tmp_path / "b.planish", lambda t: t | {"reader_version": 7, "producer": {"planish": "9.1"}}, artifact
    )
    with pytest.raises(ArtifactError, match=r"format version 7.*planish 9\.1") as caught:
        open_artifact(future)
    assert caught.value.exit_code == 5


def test_limits(artifact: Path) -> None:
    assert code_of(artifact, limits=Limits(members=3)) == "PL610"
    assert code_of(artifact, limits=Limits(directory_bytes=100)) == "PL610"
    assert code_of(artifact, limits=Limits(manifest_bytes=100)) == "PL610"
    assert code_of(artifact, limits=Limits(file_bytes=100)) == "PL610"
    with (
        open_artifact(artifact, limits=Limits(tensors=2)) as opened,
        pytest.raises(ArtifactError, match="PL610"),
    ):
        opened.tensors(WEIGHTS)


def test_any_damage_is_refused(tmp_path: Path) -> None:
    path = int4_artifact(
        tmp_path / "a.planish", Int4(32, 4), more={}, entry_points={"main": {"inputs": [], "outputs": []}}
    )
    data = path.read_bytes()
    rng = random.Random(0)
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        if changed == data:
            continue
        path.write_bytes(changed)
        with pytest.raises(ArtifactError):
            open_artifact(path)
    for _ in range(100):
        path.write_bytes(data[: rng.randrange(len(data))])
        with pytest.raises(ArtifactError):
            open_artifact(path)


def test_payload_needs_only_one_tensor_at_a_time(tmp_path: Path) -> None:
    from planish.runtime.tensors import TensorSource

    alive: list[int] = []

    def make(index: int) -> Any:
        def data() -> Any:
            alive.append(index)
            return np.full(1000, index, np.float32)

        return TensorSource("f32", (1000,), data)

    payload = SafetensorsPayload({f"t{i}": make(i) for i in range(5)})
    assert alive == []
    path = int4_artifact(tmp_path / "a.planish", more={"weights/more.safetensors": payload})
    assert alive == [0, 1, 2, 3, 4]
    with open_artifact(path) as opened:
        assert [int(a[0]) for a in opened.tensors("weights/more.safetensors").values()] == [0, 1, 2, 3, 4]


def test_any_manifest_is_read_or_refused(artifact: Path) -> None:
    with open_artifact(artifact) as opened:
        table = json.loads(opened.read("manifest.json"))
    rng = random.Random(3)
    odd = [
        None,
        True,
        -1,
        2**70,
        1.5,
        "",
        "x" * 9000,
        [],
        {},
        [[]],
        {"": {}},
        "f32[B",
        "\ud800",
        [1, 2, 3],
        {"type": 1},
    ]
    refused = 0
    for _ in range(1500):
        copy = json.loads(json.dumps(table))
        place = copy
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            place[key] = rng.choice(odd)
            break
        try:
            parse_manifest(json.dumps(copy).encode())
        except ArtifactError as error:
            refused += 1
            assert str(error)
    assert refused > 500
