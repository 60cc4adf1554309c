from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import planish
from planish.errors import ArtifactError, BackendError, PlanishError, UsageError
from planish.frontend.capture.source import capture
from tests.frontend.small_files import MLP_INPUT, MLP_SHAPES, Mlp, small_llama

INT4 = "auto,int4{group=32}"
CLOSE = 1e-5


def digest(model: torch.nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


def compiled(**changes: Any) -> planish.Compiled:
    given = {"example_inputs": (MLP_INPUT,), "dynamic_shapes": MLP_SHAPES, **changes}
    return planish.compile(Mlp(), **given)


@pytest.mark.parametrize("target", ["cpu", "onnxruntime", "eager"])
def test_called_like_the_original(target: str) -> None:
    model, made = Mlp().eval(), compiled(target=target)
    x = torch.randn(5, 64)
    found, want = made(x), model(x)
    assert isinstance(found.y, torch.Tensor) and found._fields == ("y", "total") == made.output_names
    assert torch.allclose(found.y, want["y"], atol=CLOSE) and torch.allclose(
        made(x=x)[1], want["total"], atol=1e-4
    )
    arrays = made(x.numpy())
    assert isinstance(arrays.y, np.ndarray) and np.allclose(arrays.y, want["y"].detach(), atol=CLOSE)
    assert list(made.run({"x": x})) == ["y", "total"]
    assert str(next(iter(made.entry_points.values()))).startswith("main(x: f32[B, 64]) -> y: f32[B, 64]")
    for wrong in ((), (x, x), (x[:, :5],), (x.double(),), (torch.randn(65, 64),), ("text",)):
        with pytest.raises(PlanishError, match="PL3"):
            made(*wrong)


def test_the_model_is_not_changed() -> None:
    model = Mlp().train()
    model.drop.eval()
    before, modes = digest(model), [m.training for m in model.modules()]
    planish.compile(model, example_inputs=(MLP_INPUT,), passes=INT4)
    assert digest(model) == before
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())


def test_report_and_explanations() -> None:
    seen: list[str] = []
    made = compiled(passes=INT4, progress=lambda name, seconds: seen.append(name))
    report = made.report
    assert seen == ["capture", "recognise", "int4{group=32}", "select", "build"] == list(report.phases)
    assert (
        report.bytes_before == 4 * (64 * 256 * 2 + 256 + 64) and report.bytes_after < report.bytes_before / 6
    )
    assert [layer.name for layer in report.layers] == ["up.weight", "up.bias", "down.weight", "down.bias"]
    row = made.explain("up")
    assert isinstance(row, planish.frontend.api.Layer)
    assert (row.codec, row.reason) == ("int4{group=32}", "pass int4{group=32}") and 0 < row.error < 0.2
    assert made.explain("up.bias").reason.startswith("kept")  # type: ignore[union-attr]
    assert len(made.explain("*.weight")) == 2  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"PL828.*near: up.weight"):
        made.explain("up.weigh")
    assert made.plan is None and "int4" in str(report)
    assert report.rewrites["encode"] == 2
    assert made.bench(repeats=3).repeats == 3 and made.bench(sizes={"B": 4}, repeats=2).median > 0


def test_layer_rules() -> None:
    rules = [{"match": "up", "freeze": True}, {"match": "*", "bits": 8}]
    made = compiled(passes=INT4, layers=rules)
    assert made.explain("up").codec == "f32"  # type: ignore[union-attr]
    assert made.explain("down").codec == "int8{group=32}"  # type: ignore[union-attr]
    assert made.explain("down").reason == "layer rule 2: *"  # type: ignore[union-attr]
    alone = compiled(layers=[{"match": "down", "bits": 4}])
    assert [r.codec[:4] for r in alone.report.layers] == ["f32", "f32", "int4", "f32"]
    with pytest.raises(UsageError, match=r"PL814.*layer rule 1.*'sideways'"):
        compiled(layers=[{"match": "sideways", "bits": 4}])
    with pytest.raises(UsageError, match="PL815"):
        compiled(layers=[{"match": "up", "bitz": 4}])
    with pytest.raises(UsageError, match="PL824"):
        compiled(layers={"match": "up"})
    with pytest.raises(UsageError, match=r"PL824.*rule 1"):
        compiled(layers=["up"])
    with pytest.raises(UsageError, match="PL826"):
        compiled(passes="int4{only=up},int8", layers=rules)


@pytest.mark.parametrize(
    "argument",
    [
        {"budget": "60MB"}, {"plan": "plan.json"}, {"calibration": []}, {"evaluate": "kl"},
        {"guard": "error"}, {"workers": 2}, {"resume": "x"},
    ],
)  # fmt: skip
def test_later_arguments_are_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"PL823: {next(iter(argument))}=.*not supported"):
        compiled(**argument)


@pytest.mark.parametrize(
    ("code", "argument"),
    [
        ("PL801", {"target": "toaster"}), ("PL801", {"target": 3}), ("PL825", {"target": "cpu{speed=9}"}),
        ("PL825", {"target": "cpu{activation_bits=many}"}), ("PL842", {"target": "cpu{activation_bits=7}"}),
        ("PL810", {"passes": "auto,nonesuch"}), ("PL824", {"passes": [1]}), ("PL824", {"passes": 5}),
        ("PL824", {"seed": -1}), ("PL824", {"guard": "maybe"}), ("PL824", {"progress": 1}),
    ],
)  # fmt: skip
def test_wrong_arguments(code: str, argument: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=code):
        compiled(**argument)


def test_missing_and_wrong_example_inputs() -> None:
    with pytest.raises(PlanishError, match="example inputs"):
        planish.compile(Mlp())
    with pytest.raises(PlanishError, match="do not fit"):
        planish.compile(Mlp(), example_inputs=(MLP_INPUT, MLP_INPUT))
    with pytest.raises(PlanishError, match="PL101"):
        planish.compile(Mlp(), example_inputs=(MLP_INPUT[:, :7],))


def test_artifacts_are_equal_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = planish.export(compiled(passes=INT4), tmp_path / "a.planish")
    threads = torch.get_num_threads()
    monkeypatch.setenv("PLANISH_NUM_THREADS", "1")
    torch.set_num_threads(1)
    try:
        second = planish.export(compiled(passes=INT4), tmp_path / "b.planish")
    finally:
        torch.set_num_threads(threads)
    assert first.read_bytes() == second.read_bytes()


def test_loaded_again(tmp_path: Path) -> None:
    made = compiled(passes=INT4, target="onnxruntime")
    path = planish.export(made, tmp_path / "m.planish")
    loaded = planish.load(path)
    x = torch.randn(4, 64)
    assert torch.equal(loaded(x).y, made(x).y)
    assert loaded.program == made.program and str(loaded.program) == str(made.program)
    assert loaded.report.layers == made.report.layers and loaded.report.phases == {}
    assert planish.compile(path).explain("up") == made.explain("up")
    copy = planish.export(loaded, tmp_path / "copy.planish")
    assert copy.read_bytes() == path.read_bytes()
    loaded.close()
    with pytest.raises(PlanishError):
        loaded(x)


def test_weights_are_stored_once(tmp_path: Path) -> None:
    for number, passes in enumerate(("auto", INT4, "auto,int3{group=32}")):
        made = compiled(passes=passes)
        path = planish.export(made, tmp_path / f"{number}.planish")
        with planish.load(path) as loaded:
            session = loaded._opened()
            sizes = {n: session.artifact.member(n).size for n in session.artifact.names}
        assert sizes["weights/model.safetensors"] <= made.report.bytes_after * 1.02 + 4096


def test_a_program_whose_weights_would_grow_is_refused() -> None:
    from planish.frontend.package import check_size

    made = compiled()
    check_size(made.program, made.report.bytes_after)
    with pytest.raises(BackendError, match="PL720"):
        check_size(made.program, 10 * made.report.bytes_after)


def test_export_refuses_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled()
    path = tmp_path / "m.planish"
    for format, code in (("mlir", "PL823"), ("zip", "PL827")):
        with pytest.raises(UsageError, match=code):
            planish.export(made, path, format=format)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="PL625"):
        planish.export(made, tmp_path / "absent" / "m.planish")
    with pytest.raises(BackendError, match="PL721"):
        planish.export(compiled(target="eager"), path)
    from planish.runtime import zipwriter

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(zipwriter.ZipWriter, "finish", fail)
    with pytest.raises((OSError, PlanishError)):
        planish.export(made, path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    path.write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="PL614"):
        planish.export(made, path)
    assert path.read_bytes() == b"mine"
    planish.export(made, path, overwrite=True)
    assert planish.load(path).run({"x": MLP_INPUT})


def test_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    data = planish.export(compiled(passes=INT4), tmp_path / "m.planish").read_bytes()
    bad = tmp_path / "bad.planish"
    for changed in (
        data[:-100],
        data[: len(data) // 2],
        data + b"x",
        b"",
        data.replace(b"f32[B, 64]", b"f32[B, 65]"),
    ):
        bad.write_bytes(changed)
        with pytest.raises(ArtifactError, match="PL6"):
            planish.load(bad)
    for place in range(100, len(data), len(data) // 23):
        bad.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            with planish.load(bad) as found:
                assert found.run({"x": MLP_INPUT})
        except ArtifactError:
            continue


def test_plain_onnx(tmp_path: Path) -> None:
    import onnxruntime

    made = compiled(passes="auto,int3{group=32}", target="cpu{activation_bits=32}")
    path = planish.export(made, tmp_path / "model", format="onnx")
    session = onnxruntime.InferenceSession(str(path))
    x = MLP_INPUT.numpy()
    found = session.run(["y"], {"x": x})[0]
    assert np.allclose(found, made(x).y, atol=1e-4)
    plain = planish.export(compiled(), tmp_path / "plain", format="onnx")
    assert np.allclose(planish.compile(plain, target="eager")(x)[0], compiled()(x).y, atol=CLOSE)
    with pytest.raises(PlanishError, match="PL614"):
        planish.export(compiled(), tmp_path / "plain", format="onnx", overwrite=False)


def test_loading_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    path = planish.export(compiled(passes=INT4), tmp_path / "m.planish")
    code = (
        "import sys, numpy, planish\n"
        f"model = planish.load({str(path)!r})\n"
        "print(model(numpy.ones((2, 64), 'float32')).y.shape, model.explain('up').codec)\n"
        "print(sorted({'torch', 'transformers', 'sympy', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(2, 64) int4{group=32}", "[]"]


def test_a_language_model_goes_through() -> None:
    model = small_llama()
    made = planish.compile(model, passes="auto,int8{group=32}")
    counts = {op: made.program.count(op) for op in ("planish.attention", "aten.rms_norm", "planish.rope")}
    assert counts == {"planish.attention": 2, "aten.rms_norm": 5, "planish.rope": 4}
    ids = torch.randint(0, 96, (2, 11))
    with torch.no_grad():
        want = model(ids).logits
    assert float((made(ids) - want).abs().max() / want.abs().max()) < 0.03


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish.frontend.cache import clear, usage

    source = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Mlp().eval(), (MLP_INPUT,)), source)
    cache = tmp_path / "cache"
    phases: list[str] = []

    def make(**more: Any) -> planish.Compiled:
        phases.clear()
        given = {"passes": INT4, "cache_dir": cache, "allow_pickle": True, **more}
        return planish.compile(source, progress=lambda name, seconds: phases.append(name), **given)

    first = make()
    assert "capture" in phases and usage(cache).files == 1
    second = make()
    assert not phases and np.array_equal(first(MLP_INPUT).y, second(MLP_INPUT).y)
    make(passes="auto")
    assert phases and usage(cache).files == 2
    kept = next((cache / "artifacts").glob("*.planish"))
    kept.write_bytes(kept.read_bytes()[:-9])
    make(), make(passes="auto")
    assert usage(cache).files == 2
    monkeypatch.setenv("PLANISH_CACHE_POLICY", "redo")
    make()
    assert phases
    monkeypatch.setenv("PLANISH_CACHE_POLICY", "perhaps")
    with pytest.raises(UsageError, match="PL824"):
        make()
    assert clear(cache).files == 2 and usage(cache).files == 0


def test_programs_are_compiled_with_the_weights_beside_them(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    captured = capture(Mlp(), example_inputs=(MLP_INPUT,), dynamic_shapes=MLP_SHAPES)
    (tmp_path / "m.ir.py").write_text(str(captured.program))
    tensors = {leaf.name: captured.weights.tensor(leaf.name) for leaf in captured.program.constants()}
    save_file(tensors, tmp_path / "m.safetensors")
    made = planish.compile(tmp_path / "m.ir.py", passes=INT4)
    assert np.array_equal(made(MLP_INPUT.numpy())[0], compiled(passes=INT4)(MLP_INPUT.numpy())[0])


def test_dynamo(caplog: pytest.LogCaptureFixture) -> None:
    from planish.frontend.dynamo import planish_backend

    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()
    fast = torch.compile(model, backend=planish_backend)
    llama = small_llama()
    quick = torch.compile(llama, backend=planish_backend)
    with torch.no_grad():
        for rows in (3, 5, 7):
            x = torch.randn(rows, 8)
            assert torch.allclose(fast(x), model(x), atol=CLOSE)
        for length in (5, 9):
            ids = torch.randint(0, 96, (2, length))
            have, want = (m(input_ids=ids, use_cache=False).logits for m in (quick, llama))
            assert torch.allclose(have, want, atol=1e-4)
    assert not [r for r in caplog.records if r.name == "planish"]
    torch._dynamo.reset()
    left = torch.compile(model, backend=planish_backend)(torch.randn(3, 8))
    assert left.requires_grad and "PL829" in caplog.text
    torch._dynamo.reset()


def test_environment_is_left_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    planish.export(compiled(), tmp_path / "m.planish")
    assert dict(os.environ) == before
    assert (
        json.loads(planish.load(tmp_path / "m.planish")._opened().artifact.read("report.json"))["version"]
        == 1
    )
