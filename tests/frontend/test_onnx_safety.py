"""ONNX files that are damaged, hostile or ask for too much: a coded error, and nothing outside is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from planish.errors import ArtifactError, CaptureError, PlanishError
from planish.frontend.capture.onnx import capture_onnx
from planish.ir.run import run
from tests.frontend import onnx_models as m

W = np.arange(32, dtype=np.float32).reshape(8, 4)


def test_external_data_is_mapped_when_used(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"12345678" + W.tobytes())
    captured = capture_onnx(m.external(tmp_path, "data/w.bin", W, offset="8"))
    x = torch.ones(2, 8)
    assert torch.equal(run(captured.program, captured.weights, x)[0], x @ torch.from_numpy(W))
    assert len(captured.digest) == 64
    (tmp_path / "data" / "w.bin").write_bytes(b"12345678" + (2 * W).tobytes())
    assert torch.equal(run(captured.program, captured.weights, x)[0], x @ torch.from_numpy(2 * W))


@pytest.mark.parametrize(
    "location", ["../secret.bin", "a/../../secret.bin", "/etc/hostname", "C:\\w.bin", "..\\secret.bin", ""]
)
def test_external_data_must_stay_inside(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    with pytest.raises(ArtifactError) as refused:
        capture_onnx(m.external(folder, location, W))
    assert refused.value.code == "PL616"


@pytest.mark.parametrize("kind", ["symlink", "folder link", "hard link", "fifo", "missing"])
def test_external_data_must_be_a_plain_file(tmp_path: Path, kind: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "model"
    outside.mkdir()
    folder.mkdir()
    (outside / "w.bin").write_bytes(W.tobytes())
    location = "w.bin"
    if kind == "symlink":
        (folder / "w.bin").symlink_to(outside / "w.bin")
    elif kind == "folder link":
        (folder / "sub").symlink_to(outside)
        location = "sub/w.bin"
    elif kind == "hard link":
        os.link(outside / "w.bin", folder / "w.bin")
    elif kind == "fifo":
        os.mkfifo(folder / "w.bin")
    with pytest.raises(ArtifactError) as refused:
        capture_onnx(m.external(folder, location, W))
    assert refused.value.code == "PL617"


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "-4"},
        {"offset": "99999999999999999999"},
        {"offset": "64"},
        {"length": "-1"},
        {"length": "4"},
        {"length": "x"},
    ],
)
def test_external_ranges_are_checked(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    with pytest.raises((ArtifactError, CaptureError)) as refused:
        capture_onnx(m.external(tmp_path, "w.bin", W, **entries))
    assert refused.value.code in ("PL618", "PL141")


def test_external_data_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    proto = onnx.load(str(m.external(tmp_path, "w.bin", W)), load_external_data=False)
    with pytest.raises(CaptureError, match="has no folder") as refused:
        capture_onnx(proto)
    assert refused.value.code == "PL140"


def small() -> onnx.ModelProto:
    """A model with some of everything."""
    return m.model(  # type: ignore[no-any-return]
        [
            m.node("MatMul", ["x", "w"], ["a"]),
            m.node("Shape", ["a"], ["s"]),
            m.node("Reshape", ["a", "s"], ["b"]),
            m.node("Softmax", ["b"], ["y"], axis=1),
        ],
        [m.value("x", ["N", 8])], ["y"], {"w": W},
    )  # fmt: skip


def test_truncated_files(tmp_path: Path) -> None:
    """Cut at every eighth byte: captured (the rest was not needed) or refused, never a foreign error."""
    data = small().SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    for length in range(0, len(data), 8):
        path.write_bytes(data[:length])
        try:
            capture_onnx(path)
        except PlanishError as error:
            assert error.code != "PL148", error
            refused += 1
    assert refused > len(data) // 8 - 3


def test_flipped_bytes(tmp_path: Path) -> None:
    data = small().SerializeToString()
    rng = np.random.default_rng(1)
    path = tmp_path / "model.onnx"
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), 2):
            changed[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(changed))
        try:
            captured = capture_onnx(path)
            for leaf in captured.program.constants():
                captured.weights.tensor(leaf.name)
        except PlanishError:
            continue


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64, b"PK\x03\x04"])
def test_not_a_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(CaptureError) as refused:
        capture_onnx(path)
    assert refused.value.code == "PL140" and str(path) in str(refused.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="No such file"):
        capture_onnx(tmp_path / "none.onnx")


def test_new_opsets_are_refused() -> None:
    made = small()
    made.opset_import[0].version = 9999
    with pytest.raises(CaptureError, match="needs opset 9999") as refused:
        capture_onnx(made)
    assert refused.value.code == "PL146"


def edited(change: Any) -> onnx.ModelProto:
    """The small model, changed."""
    made = small()
    change(made.graph)
    return made


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda g: g.node.reverse(), "PL141"),
        (lambda g: g.output[0].__setattr__("name", "nowhere"), "PL141"),
        (lambda g: g.node[3].attribute[0].__setattr__("name", "axle"), "PL145"),
        (lambda g: g.node[0].input.pop(), "PL141"),
        (lambda g: g.initializer[0].__setattr__("raw_data", b"1234"), "PL141"),
        (lambda g: g.initializer[0].dims.__setitem__(0, -8), "PL141"),
        (lambda g: g.initializer[0].dims.__setitem__(0, 2**62), "PL141"),
        (lambda g: g.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.STRING), "PL142"),
        (lambda g: g.input[0].type.tensor_type.ClearField("shape"), "PL142"),
        (lambda g: g.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 9), "PL310"),
        (lambda g: g.input[0].type.Clear(), "PL142"),
        (lambda g: g.node[1].__setattr__("op_type", "NonZero"), "PL143"),
    ],
)
def test_invalid_models_are_refused(change: Any, code: str) -> None:
    with pytest.raises(PlanishError) as refused:
        capture_onnx(edited(change))
    assert refused.value.code == code, refused.value


def test_sequences_and_strings_are_refused() -> None:
    listed = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    with pytest.raises(CaptureError) as refused:
        capture_onnx(m.model([m.node("SequenceLength", ["x"], ["y"])], [listed], ["y"]))
    assert refused.value.code == "PL142"
    words = helper.make_tensor("v", TensorProto.STRING, [1], [b"word"])
    with pytest.raises(CaptureError) as refused:
        capture_onnx(m.model([m.node("Constant", [], ["y"], value=words)], [], ["y"]))
    assert refused.value.code == "PL142"


def test_training_mode_is_refused() -> None:
    made = m.model(
        [m.node("Dropout", ["x", "ratio", "on"], ["y"])], [m.value("x", [4])], ["y"],
        {"ratio": np.float32(0.5), "on": np.bool_(True)},
    )  # fmt: skip
    with pytest.raises(CaptureError, match="training mode") as refused:
        capture_onnx(made)
    assert refused.value.code == "PL145"
