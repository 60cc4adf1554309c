"""What is written: the same bytes each time, no more than the weights have, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from planish.backends import eager
from planish.backends.ort.build import build
from planish.backends.ort.lower import Lowered, lower
from planish.backends.ort.target import KERNELS, target
from planish.backends.ort.write import payload, place, save_onnx
from planish.errors import BackendError
from planish.ir.parser import parse
from planish.ir.run import run
from planish.ir.weights import Weights
from planish.runtime.tensors import TensorSource
from tests.backends.coded import coded_program


def small() -> tuple[Lowered, Weights]:
    program, weights = coded_program("tied", 64, 100, 3, 64, "codes")
    return lower(program, weights), weights


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_saved_models_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert save_onnx(small()[0], tmp_path / name) == tmp_path / name / "model.onnx"
    first = contents(tmp_path / "a")
    assert set(first) == {"model.onnx", "model.onnx.data"}
    assert first == contents(tmp_path / "b")


def test_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    save_onnx(small()[0], tmp_path / "a")
    with pytest.raises(BackendError, match="exists already") as error:
        save_onnx(small()[0], tmp_path / "a")
    assert error.value.code == "PL744"
    save_onnx(small()[0], tmp_path / "a", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_too_many_bytes_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    lowered, _ = small()
    decoded = {
        n: TensorSource("f32", (64, 1000), lambda: np.zeros((64, 1000), np.float32)) for n in lowered.tensors
    }
    with pytest.raises(BackendError, match="would take") as error:
        save_onnx(replace(lowered, tensors=decoded), tmp_path / "a")
    assert error.value.code == "PL741"
    assert not list(tmp_path.iterdir())
    with pytest.raises(BackendError, match="would take"):
        build(replace(lowered, tensors=decoded))


def test_a_failing_weight_leaves_nothing(tmp_path: Path) -> None:
    lowered, _ = small()

    def fail() -> bytes:
        raise OSError("the disk is gone")

    broken = {n: replace(t, data=fail) for n, t in lowered.tensors.items()}
    with pytest.raises(OSError, match="gone"):
        save_onnx(replace(lowered, tensors=broken), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_placed_references_are_the_layout() -> None:
    lowered, _ = small()
    layout = payload(lowered).layout()
    for tensor in place(lowered, "weights/here.safetensors", layout).graph.initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        if entries.get("location") != "weights/here.safetensors":
            continue
        info = layout[lowered.stored[tensor.name]]
        assert (int(entries["offset"]), int(entries["length"])) == (info.offset, info.length)


def test_small_constants_are_inline_and_names_may_meet() -> None:
    weights = Weights()
    weights.add("x", torch.arange(3.0))
    weights.add("Add", torch.ones(3, 64))
    weights.add("output0", torch.ones(3))
    program = parse(
        "def main(x: f32[3]):\n    a: f32[3] = const('x')\n    b: f32[3, 64] = const('Add')\n"
        "    o: f32[3] = const('output0')\n    y = aten.add(x, a)\n    z = aten.add(y, o)\n    s = aten.sum(b, [1])\n"
        "    t = aten.add(z, s)\n    return t, x, x\n"
    )
    lowered = lower(program, weights)
    assert set(lowered.tensors) == {"Add"}
    x = torch.randn(3)
    for got, want in zip(build(lowered)(x), run(program, weights, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_two_outputs_of_one_name_are_refused() -> None:
    program = parse("def main(x: f32[3]):\n    y = aten.exp(x)\n    return y\n")
    with pytest.raises(BackendError, match="two inputs or outputs are called 'x'") as error:
        lower(replace(program, output_names=("x",)), Weights())
    assert error.value.code == "PL742"


def test_an_unbound_dimension_is_named() -> None:
    program = parse(
        "T = dim(1, 8)\nU = dim(1, 8)\ndef main(x: f32[T + U]):\n    y = aten.full([T], 1.0, f32)\n    return y\n"
    )
    with pytest.raises(BackendError, match="dimension T is not bound") as error:
        lower(program, Weights())
    assert error.value.code == "PL743"


def test_eager_backend() -> None:
    program = parse("def main(x: f32[3]):\n    y = aten.exp(x)\n    return y, x\n")
    x = torch.randn(3)
    y, same = eager.build(program, Weights())(x)
    assert torch.equal(y, x.exp()) and same is x


def test_target_names_its_kernels() -> None:
    assert [k.name for k in target().kernels] == [k.name for k in KERNELS]
    assert str(target()) == "onnxruntime"
    assert all(k.doc for k in KERNELS)
