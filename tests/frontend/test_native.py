"""Machine code from ``planish.compile`` to a loaded artifact: equal bytes, trust, processors, other formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import planish
from planish.backends.tvm import build, isa
from planish.errors import ArtifactError, BackendError, PlanishError, UsageError
from planish.frontend.cli.main import main
from planish.frontend.package import check_layouts, check_size
from planish.frontend.trusting import libraries_in
from planish.runtime import processor, trust
from planish.runtime.artifact import open_artifact

pytest.importorskip("tvm")
ROOT = Path(__file__).resolve().parents[2]
INPUT = torch.linspace(-1, 1, 3 * 2 * 33).reshape(2, 3, 33)
AVX2, GENERIC = isa.ISAS["avx2"].needs, frozenset({"sse2"})


class Small(nn.Module):
    """Two layers, sizes that fill no tile, and two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(33, 50), nn.Linear(50, 7)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.up(x))
        return self.down(hidden), torch.softmax(hidden @ hidden.transpose(1, 2), -1).sum(1)


def made(target: str = "cpu", passes: str = "auto") -> planish.Compiled:
    shapes = {"x": {0: "B", 1: "T"}}
    return planish.compile(
        Small().eval(), example_inputs=(INPUT,), dynamic_shapes=shapes, target=target, passes=passes
    )


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``two.planish`` has libraries for avx2 and for any processor; it is not trusted in the tests."""
    made_in = tmp_path_factory.mktemp("native")
    before = os.environ["PLANISH_CONFIG_DIR"]
    os.environ["PLANISH_CONFIG_DIR"] = str(made_in / "config")
    with made("cpu{isa=avx2+generic}") as compiled:
        planish.export(compiled, made_in / "two.planish")
        found = compiled(INPUT)
    os.environ["PLANISH_CONFIG_DIR"] = before
    for a, b in zip(found, Small().eval()(INPUT), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    yield made_in


@pytest.fixture
def two(folder: Path) -> Path:
    return folder / "two.planish"


def code_of(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(PlanishError) as caught:
        call(*args, **options)
    return caught.value.code


def agree(left: Any, right: Any) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_native
test_native.made(*{options!r}).export(Path({path!r}))
"""


def test_two_compilations_give_equal_bytes(tmp_path: Path) -> None:
    options = ("cpu{isa=generic}", "auto,int4{group=32}")
    script = SCRIPT.format(tests=str(Path(__file__).parent), options=options, path=str(tmp_path / "there"))
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    here = [made(*options).export(tmp_path / name).read_bytes() for name in "ab"]
    assert here[0] == here[1] == (tmp_path / "there").read_bytes()


def test_what_is_exported_is_trusted_by_its_maker(tmp_path: Path) -> None:
    compiled = made("cpu{isa=generic}")
    path = planish.export(compiled, tmp_path / "m.planish")
    assert [x.digest in trust.trusted() for x in libraries_in(path)] == [True]
    loaded = planish.load(path)
    assert loaded._made is None
    agree(loaded(INPUT), compiled(INPUT))
    trust.trust_path().chmod(0o666)  # others may write to it: nothing is added, and the export is no failure
    planish.export(compiled, tmp_path / "n.planish")
    assert any("PL628" in note for note in compiled.report.notes)
    assert (tmp_path / "n.planish").read_bytes() == path.read_bytes()


def test_without_permission_the_program_is_compiled_afresh(two: Path) -> None:
    assert code_of(planish.runtime.load, two) == "PL622"
    allowed = planish.load(two, allow_native_code=True)
    assert allowed._made is None
    afresh = planish.load(two)
    assert afresh._made is not None
    assert any(note.startswith("compiled afresh, because of PL622") for note in afresh.report.notes)
    assert afresh.report.layers == allowed.report.layers
    agree(afresh(INPUT), allowed(INPUT))


def test_the_libraries_fit_the_processor(two: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open_artifact(two) as artifact:
        code = json.loads(artifact.read("code/cpu/code.json"))
        assert sorted(code["libraries"]) == ["avx2", "generic"]
        for name, refused in (("avx2", "%zmm"), ("generic", "%ymm")):
            library = tmp_path / f"{name}.so"
            library.write_bytes(artifact.read(f"code/cpu/{name}.so"))
            text = subprocess.run(["objdump", "-d", str(library)], capture_output=True, text=True).stdout
            assert "%xmm" in text and refused not in text, name
    chosen: list[str] = []
    before = processor.choose_library
    monkeypatch.setattr(
        "planish.runtime.tvm.choose_library", lambda *a, **k: chosen.append(before(*a, **k)) or chosen[-1]
    )
    outputs = []
    real = isa.machine_features()
    for have in (real, real & AVX2, GENERIC):
        monkeypatch.setattr(processor, "features", lambda have=have: have)
        outputs.append(planish.load(two, allow_native_code=True)(INPUT))
    best = "avx2" if real >= AVX2 else "generic"
    assert (chosen[0], chosen[-1]) == (best, "generic") and chosen.count(best) >= 2
    agree(outputs[0], outputs[1])
    agree(outputs[0], outputs[2])


def test_code_for_better_processors_is_compiled_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("cpu{isa=avx512bf16}").export(tmp_path / "m.planish")
    for module, name in ((processor, "features"), (isa, "machine_features")):
        monkeypatch.setattr(module, name, lambda: GENERIC)
    with pytest.raises(BackendError, match=r"avx512bf16 needs .*avx512_bf16") as caught:
        planish.runtime.load(path, allow_native_code=True)
    assert caught.value.code == "PL773"
    afresh = planish.load(path, allow_native_code=True)
    assert afresh._made is not None and list(afresh._made.lowered.libraries) == ["generic"]
    agree(afresh(INPUT), [o.detach() for o in Small().eval()(INPUT)])


@pytest.mark.parametrize("passes", ["auto", "auto,int4{group=32}", "auto,int3{group=32}"])
def test_a_loaded_artifact_becomes_an_onnx_model(tmp_path: Path, passes: str) -> None:
    import onnxruntime

    compiled = made("cpu{isa=generic,activation_bits=32}", passes)
    loaded = planish.load(compiled.export(tmp_path / "m.planish"))
    path = planish.export(loaded, tmp_path / "onnx", format="onnx")
    found = onnxruntime.InferenceSession(str(path)).run(None, {"x": INPUT.numpy()})
    agree(found, compiled(INPUT))


def test_a_library_for_other_programs(two: Path, tmp_path: Path) -> None:
    compiled = made("cpu{isa=generic}")
    one = planish.export(compiled, tmp_path / "one", format="so")
    done = subprocess.run(["make", "-s", f"PYTHON={sys.executable}"], cwd=one, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["./example", "main", "B=1", "T=2"], cwd=one, capture_output=True, text=True)
    shown = [float(n) for n in done.stdout.splitlines()[0].partition("):")[2].split()]
    given = (0.125 * (np.arange(2 * 33) % 17)).astype(np.float32).reshape(1, 2, 33)
    np.testing.assert_allclose(shown, compiled(given)[0].reshape(-1)[:8], rtol=1e-5)
    assert code_of(planish.export, compiled, one, format="so") == "PL614"
    planish.export(compiled, one, format="so", overwrite=True)
    assert not (one / "example").exists()
    again = planish.export(planish.load(two, allow_native_code=True), tmp_path / "again", format="so")
    assert sorted(p.name for p in again.iterdir()) == sorted(p.name for p in one.iterdir())
    other = made("onnxruntime")
    assert code_of(planish.export, other, tmp_path / "no", format="so") == "PL721"
    assert not (tmp_path / "no").exists()


class Tied(nn.Module):
    """A table that is read by rows and multiplied with."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(x)))


@pytest.mark.parametrize(
    ("words", "width", "passes"),
    [
        (5003, 72, "auto"), (5003, 96, "auto,int8{group=32}"), (5003, 96, "auto,int4{group=32}"),
        (5003, 96, "auto,int6{group=32}"), (5003, 40, "auto,int4{group=8}"), (1, 32, "auto"),
    ],
)  # fmt: skip
def test_weights_are_stored_once_and_packed(words: int, width: int, passes: str) -> None:
    compiled = planish.compile(
        Tied(words, width).eval(), example_inputs=(torch.zeros(1, 3, dtype=torch.int64),), passes=passes,
        target="cpu{isa=generic}",
    )  # fmt: skip
    leaves = sum(int(leaf.tensor.nbytes) for leaf in compiled.program.constants())
    layout = compiled._package().members["weights/model.safetensors"].layout()
    stored = sum(info.length for info in layout.values())
    assert stored <= leaves * 1.02 + 4096


def test_coded_convolutions_with_batch_norm() -> None:
    """Factors of a batch norm on coded weights hide no convolution from its kernel, and nothing is decoded for them."""
    from planish.frontend import api
    from tests import parity
    from tests.models import CASES

    captured, sizes = parity.captured("resnet"), {"B": 2, "H": 32, "W": 64}
    inputs = parity.inputs_of(CASES["resnet"], sizes)
    passes = "auto,int4{group=32}"
    options = api.make_options(target="cpu{isa=generic,activation_bits=32}", passes=passes)
    with api.compile_captured(captured, options) as compiled:
        found = compiled.run(inputs)
        product = compiled._made.lowered
    (program,) = product.module.programs
    assert program.count("aten.convolution") == 0
    assert program.count("kernel.conv") == captured.program.count("aten.convolution")
    with api.compile_captured(captured, api.make_options(target="eager", passes=passes)) as interpreted:
        want = interpreted.run(inputs)
        coded = {leaf.name for leaf in interpreted.program.constants() if "#int4" in leaf.name}
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())
    assert coded and coded == {name for name in product.tensors if "#int4" in name}


def test_weights_that_take_more_than_their_program_are_refused() -> None:
    program = made("eager").program
    leaves = sum(int(leaf.tensor.nbytes) for leaf in program.constants())
    for check in (check_size, check_layouts):
        check(program, leaves)
        assert code_of(check, program, 2 * leaves + 300_000) == "PL720"


def test_without_the_compiler(monkeypatch: pytest.MonkeyPatch, two: Path) -> None:
    for name in [n for n in sys.modules if n == "tvm" or n.startswith("tvm.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tvm", None)
    compiled = made("cpu")
    assert any("apache-tvm is not installed" in note for note in compiled.report.notes)
    assert compiled._made is not None and not hasattr(compiled._made.lowered, "libraries")
    with pytest.raises(BackendError, match=r"PL752.*planish\[tvm\]"):
        made("cpu{backend=tvm}")
    with pytest.raises(ArtifactError, match="PL622"):
        planish.load(two)


def test_without_a_linker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = tmp_path / "gcc"
    wrong.write_text("#!/bin/sh\necho no such option\nexit 1\n")
    wrong.chmod(0o700)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match=r"PL753.*g\+\+, gcc.*apt-get install"):
        made("cpu{isa=generic}")
    monkeypatch.setattr(build.shutil, "which", lambda name: str(wrong))
    with pytest.raises(BackendError, match=r"PL753.*cannot link"):
        made("cpu{isa=generic}")


def test_the_list_of_trusted_code(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*words: object) -> Any:
        assert main(["trust", *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    digests = [each.digest for each in libraries_in(two)]
    assert len(call("add", two, "--dry-run")["changed"]) == 2
    assert call("list")["libraries"] == []
    assert [row["trusted"] for row in call("list", two)["libraries"]] == [False, False]
    assert [each["digest"] for each in call("add", two)["changed"]] == digests
    assert call("add", two, two) == {"list": str(trust.trust_path()), "changed": [], "unchanged": 2}
    assert [row["trusted"] for row in call("list", two)["libraries"]] == [True, True]
    assert planish.load(two)._made is None
    assert len(call("remove", digests[0])["changed"]) == 1
    assert len(call("remove", two, "--dry-run")["changed"]) == 1
    assert len(call("remove", two)["changed"]) == 1
    assert main(["trust", "list"]) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "text").write_text("no artifact")
    assert main(["trust", "add", str(tmp_path / "text")]) == 5
    program = tmp_path / "m.planish"
    made("onnxruntime").export(program)
    assert main(["trust", "add", str(program)]) == UsageError.exit_code
    assert "PL833" in capsys.readouterr().err
