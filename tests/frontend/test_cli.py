from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.frontend.cli.main import main
from tests.frontend.small_files import MLP_INPUT, MLP_SHAPES, Mlp, write_gguf

Output = tuple[int, str, str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with its weights, the same without, a GGUF file and an ONNX model."""
    from safetensors.torch import save_file

    import planish
    from planish.frontend.capture.source import capture

    folder = tmp_path_factory.mktemp("files")
    captured = capture(Mlp(), example_inputs=(MLP_INPUT,), dynamic_shapes=MLP_SHAPES)
    (folder / "mlp.ir.py").write_text(str(captured.program))
    (folder / "alone.ir.py").write_text(str(captured.program))
    tensors = {leaf.name: captured.weights.tensor(leaf.name) for leaf in captured.program.constants()}
    save_file(tensors, folder / "mlp.safetensors")
    write_gguf(folder / "small.gguf")
    onnx = planish.compile(folder / "mlp.ir.py").export(folder / "onnx", format="onnx")
    onnx.rename(folder / "mlp.onnx")
    (folder / "onnx" / "model.onnx.data").rename(folder / "model.onnx.data")
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Output:
        code = main([str(a) for a in arguments])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def test_help_is_quick() -> None:
    start = "from planish.frontend.cli.main import main; raise SystemExit(main())"
    best = 9.0
    for _ in range(3):
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", start, "--help"], capture_output=True, text=True)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Seconds of the processor, so that a busy machine is no failure.
        best = min(best, end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
        assert done.returncode == 0
        assert all(verb in done.stdout for verb in ("demo", "compile", "opt", "show", "why", "cache"))
    assert best < 0.5


def test_compile_then_show(call: Any, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.planish"
    code, out, err = call(
        "compile", files / "mlp.ir.py", "-p", "auto,int4{group=32}", "-o", path, "--layer", "up{bits=8}"
    )
    assert code == 0 and path.exists() and "wrote" in out and f"{path.stat().st_size:,}" in out
    code, out, err = call("show", path, "--json")
    table = json.loads(out)
    assert table["bytes"] == path.stat().st_size
    assert [(r["name"], r["codec"]) for r in table["layers"] if "#" not in r["name"] and r["codec"] != "f32"] == [
        ("up.weight", "int8{group=32}"), ("down.weight", "int4{group=32}"),
    ]  # fmt: skip
    code, out, err = call("show", path, "--layers", "--program")
    assert code == 0 and "main(x: f32[B, 64])" in out and "down.weight" in out and "def main" in out
    code, out, err = call("compile", files / "mlp.ir.py", "-o", path)
    assert code == 5 and "PL614" in err
    code, out, err = call("compile", files / "mlp.ir.py", "-o", path, "--overwrite", "--json")
    assert code == 0 and json.loads(out)["report"]["bytes_after"] == json.loads(out)["report"]["bytes_before"]


def test_dry_runs_write_nothing(
    call: Any, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("compile", files / "small.gguf"), ("opt", files / "mlp.ir.py", "-o", "x.ir.py"),
        ("show", files / "small.gguf"),
        ("why", "mul-one", files / "mlp.ir.py"), ("cache", "clear", "--cache-dir", tmp_path),
    ):  # fmt: skip
        code, out, err = call(*arguments, "--dry-run")
        assert (code, err) == (0, "") and out
        code, out, err = call(*arguments, "--dry-run", "--json")
        assert code == 0 and json.loads(out)
    assert list(tmp_path.iterdir()) == []


def test_compile_gguf_and_onnx(call: Any, files: Path, tmp_path: Path) -> None:
    code, out, _ = call(
        "compile", files / "small.gguf", "-o", tmp_path / "g.planish", "-p", "auto,int4{group=32}", "--json"
    )
    assert code == 0
    code, out, _err = call("show", tmp_path / "g.planish", "--json")
    assert any("tokenizer/tokenizer.json" in line for line in json.loads(out)["members"])
    code, out, _err = call(
        "compile", files / "mlp.onnx", "-o", tmp_path / "o", "--format", "onnx", "--dim", "B=1:8"
    )
    assert code == 0 and (tmp_path / "o" / "model.onnx").exists()


def test_show_other_files(call: Any, files: Path) -> None:
    for name, word in (("small.gguf", "llama"), ("mlp.ir.py", "aten.linear"), ("mlp.onnx", "aten.linear")):
        code, out, _ = call("show", files / name, "--layers")
        assert code == 0 and word in out
        code, out, _err = call("show", files / name, "--json")
        assert json.loads(out)["layers"]


def test_opt(call: Any, files: Path, tmp_path: Path) -> None:
    code, out, err = call(
        "opt",
        files / "mlp.ir.py",
        "-p",
        "canonical,int4{group=32}",
        "--stats",
        "--time-passes",
        "--print-changed",
        "--verify-each",
    )
    assert code == 0 and out.startswith("B = dim(1, 64)") and "planish.dequant" in out
    assert "2 x encode" in err and " ms  canonical" in err and "+++ after int4{group=32}" in err
    code, out, err = call(
        "opt", files / "mlp.ir.py", "-p", "int4{group=32}", "--limit", "1", "--print-after", "int4", "--json"
    )
    assert code == 0 and json.loads(out)["rewrites"] == 1 and "# after int4" in err
    path = tmp_path / "out.ir.py"
    code, out, err = call("opt", files / "mlp.ir.py", "-p", "int4{group=32}", "-o", path)
    assert code == 0 and (out, path.exists(), (tmp_path / "out.safetensors").exists()) == ("", True, True)
    code, out, err = call("compile", path, "-p", "none", "-o", tmp_path / "m.planish")
    assert code == 0
    code, out, err = call("opt", path, "-o", path)
    assert code == 5 and "PL614" in err


def test_opt_without_weights(call: Any, files: Path) -> None:
    code, out, err = call("opt", files / "alone.ir.py")
    assert code == 0 and "aten.linear" in out
    code, out, err = call("opt", files / "alone.ir.py", "-p", "int4")
    assert code == 1 and "PL331" in err and "--weights" in err
    code, out, err = call("opt", files / "alone.ir.py", "-p", "int4", "--weights", files / "mlp.safetensors")
    assert code == 0 and "planish.dequant" in out


def test_why(call: Any, files: Path) -> None:
    code, out, err = call("why", "list")
    assert code == 0 and "mul-one" in out
    code, out, err = call("why", "find-rms-norm", files / "mlp.ir.py", "--json")
    assert code == 0 and json.loads(out)["fires"] == []
    code, out, err = call("why", "find-rms-nrom", files / "mlp.ir.py")
    assert code == 2 and "PL832" in err and "find-rms-norm" in err


def test_why_shows_the_nearest_miss(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "near.ir.py"
    path.write_text("def main(x: f32[4, 8]):\n    y = aten.mul(x, 2.0)\n    return y\n")
    code, out, _err = call("why", "mul-one", path)
    assert code == 0 and "misses 1" in out and " = aten.mul(x, 2.0)" in out


def test_cache(call: Any, files: Path, tmp_path: Path) -> None:
    call("compile", files / "small.gguf", "-o", tmp_path / "a.planish", "--cache-dir", tmp_path / "cache")
    code, out, _ = call("cache", "info", "--cache-dir", tmp_path / "cache", "--json")
    assert json.loads(out)["artifacts"] == 1
    begin = time.perf_counter()
    code, out, _ = call(
        "compile", files / "small.gguf", "-o", tmp_path / "b.planish", "--cache-dir", tmp_path / "cache"
    )
    assert code == 0 and time.perf_counter() - begin < 5
    assert (tmp_path / "a.planish").read_bytes() == (tmp_path / "b.planish").read_bytes()
    code, out, _err = call("cache", "clear", "--cache-dir", tmp_path / "cache")
    assert code == 0 and out.startswith("removed 1 artifacts")


def test_configuration(call: Any, files: Path, tmp_path: Path) -> None:
    config = tmp_path / "planish.toml"
    config.write_text('passes = "auto,int8"\nseed = 3\nallow-fixed = true\nlayer = ["up{freeze}"]\n')
    code, out, err = call("compile", files / "mlp.ir.py", "--config", config, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["passes"].endswith("int8{group=64}")
    code, out, _ = call(
        "compile", files / "mlp.ir.py", "--config", config, "-p", "none", "--dry-run", "--json"
    )
    assert json.loads(out)["passes"] == ""
    for text, word in (("speed = 3", "unknown key 'speed'"), ("seed =", "not valid TOML")):
        config.write_text(text)
        code, out, err = call("compile", files / "mlp.ir.py", "--config", config)
        assert code == 2 and "PL830" in err and word in err
    code, out, err = call("compile", files / "mlp.ir.py", "--config", tmp_path / "absent.toml")
    assert code == 2 and "PL830" in err


@pytest.mark.parametrize(
    ("code", "word", "arguments"),
    [
        (2, "No such command", ["nonesuch"]),
        (2, "No such option", ["show", "x", "--nonesuch"]),
        (2, "Missing argument", ["compile"]),
        (2, "Invalid value for '--seed'", ["compile", "mlp.ir.py", "--seed", "-1"]),
        (2, "PL801", ["compile", "mlp.ir.py", "--target", "toaster"]),
        (2, "PL810", ["opt", "mlp.ir.py", "-p", "nonesuch"]),
        (2, "PL812", ["opt", "mlp.ir.py", "-p", "int4{grupp=3}"]),
        (2, "PL814", ["compile", "mlp.ir.py", "--layer", "sideways{bits=4}", "-o", "no.planish"]),
        (2, "PL824", ["compile", "mlp.ir.py", "--layer", "sideways"]),
        (2, "PL824", ["compile", "mlp.onnx", "--dim", "B"]),
        (2, "PL827", ["compile", "mlp.ir.py", "--format", "zip"]),
        (3, "PL120", ["compile", "absent.gguf"]),
        (3, "PL121", ["compile", "mlp.safetensors.gguf"]),
        (3, "PL128", ["show", "mlp.safetensors"]),
        (1, "PL340", ["opt", "broken.ir.py"]),
        (5, "PL601", ["show", "broken.planish"]),
        (5, "PL630", ["compile", "model.pt"]),
        (5, "PL625", ["compile", "mlp.ir.py", "-o", "absent/x.planish"]),
        (6, "PL721", ["compile", "mlp.ir.py", "--target", "eager", "-o", "no.planish"]),
    ],
)  # fmt: skip
def test_exit_codes(
    call: Any, files: Path, monkeypatch: pytest.MonkeyPatch, code: int, word: str, arguments: list[str]
) -> None:
    monkeypatch.chdir(files)
    (files / "broken.ir.py").write_text("def main(:")
    (files / "broken.planish").write_bytes(b"no ZIP file at all")
    (files / "mlp.safetensors.gguf").write_bytes((files / "mlp.safetensors").read_bytes())
    torch.save({}, files / "model.pt")
    found, out, err = call(*arguments)
    assert found == code and word in err and "Traceback" not in err
    assert not (files / "no.planish").exists()
    if "--json" not in arguments:
        found, out, err = call(*arguments, "--json")
        assert found == code and json.loads(out)["error"]["code"].startswith("PL")


def test_interrupted(call: Any, files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planish.passes.pipeline.run_pipeline", stop)
    code, _out, err = call("compile", files / "mlp.ir.py", "-o", tmp_path / "x.planish")
    assert code == 130 and "interrupted" in err and list(tmp_path.iterdir()) == []


def test_faults_leave_a_reproducer(
    call: Any, files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from planish.passes.canonical.passes import Canonical

    def fail(*_: object) -> None:
        raise RuntimeError("something inside")

    monkeypatch.setattr(Canonical, "apply", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, _out, err = call("opt", files / "mlp.ir.py", "-p", "canonical")
    assert code == 70 and "PL900" in err and "something inside" in err and "Traceback" not in err
    folder = next(tmp_path.glob("planish-fault-*"))
    assert str(folder) in err
    assert (folder / "program.ir.py").read_text().startswith("B = dim(1, 64)")
    assert "canonical" in (folder / "pipeline.txt").read_text()
    assert "something inside" in (folder / "traceback.txt").read_text()
