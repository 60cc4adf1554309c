"""``tune=`` from Python and ``--tune`` on the command line: what becomes of it in reports and artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import planish
from planish.errors import UsageError
from planish.frontend import config
from planish.frontend.cache import clear, usage
from planish.frontend.cli import common
from planish.frontend.cli.compile import read_tune
from planish.frontend.cli.main import main
from planish.frontend.cli.progress import Steps
from planish.runtime.artifact import open_artifact

pytest.importorskip("tvm")

from planish.backends.tvm import tune as tuning

MEASURED: list[str] = []


@pytest.fixture
def fast_block(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Nothing is timed: the first variant with other rows is said to be twice as fast. Gives the kernels asked for."""

    def measure(job: tuning.Job, variants: Sequence[Any], _: Any) -> Any:
        MEASURED.append(job.text)
        return [[[0.5 if "rows=" in v.name else 1.0 for v in variants]] * 5] * len(job.sizes)

    MEASURED.clear()
    monkeypatch.setattr(tuning, "_timer", lambda threads: measure)
    yield MEASURED


def model() -> torch.nn.Module:
    """Two layers."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)).eval()


def compiled(cache: Path | None, **options: Any) -> planish.Compiled:
    """The model for any number of rows."""
    given = {"example_inputs": (torch.randn(3, 64),), "dynamic_shapes": {"input": {0: "T"}}}
    return planish.compile(model(), **given, cache_dir=cache, **options)


def test_the_winner_is_in_the_artifact(tmp_path: Path, fast_block: list[str]) -> None:
    plain = compiled(None).export(tmp_path / "plain.planish").read_bytes()
    made = compiled(tmp_path / "cache", tune=True)
    assert len(fast_block) == 4 and "tune" in made.report.phases
    assert sum("tuned for" in note and "rows=" in note for note in made.report.notes) == 2
    path = made.export(tmp_path / "tuned.planish")
    with open_artifact(path) as artifact:
        code = json.loads(artifact.read("code/cpu/code.json"))
    assert [k["variant"].startswith("rows=") for k in code["kernels"]] == [True, True]
    x = torch.randn(29, 64)
    torch.testing.assert_close(made(x), model()(x), rtol=1e-4, atol=1e-5)
    again = compiled(tmp_path / "cache", tune=5)
    assert len(fast_block) == 4, "measured a second time"
    assert again.export(tmp_path / "again.planish").read_bytes() == path.read_bytes() != plain
    assert compiled(None).export(tmp_path / "same.planish").read_bytes() == plain
    assert usage(tmp_path / "cache").records == 2 and clear(tmp_path / "cache").records == 2
    assert usage(tmp_path / "cache").records == 0


def test_progress_tells_of_every_kernel(fast_block: list[str]) -> None:
    told: list[str] = []
    compiled(None, tune=1.5, progress=lambda name, _: told.append(name))
    assert sum(name.startswith("tune: linear_dense(") for name in told) == 2 and "tune" in told


@pytest.mark.parametrize("tune", ("yes", -1, float("nan"), float("inf"), [1]))
def test_bad_times_are_refused(tune: Any) -> None:
    with pytest.raises(UsageError) as error:
        compiled(None, tune=tune)
    assert error.value.code == "PL824"


@pytest.mark.parametrize("target", ("eager", "onnxruntime", "cpu{backend=ort}", "opencl"))
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(UsageError) as error:
        compiled(None, target=target, tune=1)
    assert error.value.code == "PL843"


def test_arguments() -> None:
    target, options = config.read_target("cpu")
    assert (
        config.read_tune(False, target, options) is None and config.read_tune(None, target, options) is None
    )
    assert config.read_tune(True, target, options) == 60.0 and config.read_tune(0, target, options) == 0.0
    assert [read_tune(t) for t in (None, "true", "False", "2.5")] == [False, True, False, 2.5]
    with pytest.raises(UsageError):
        read_tune("soon")


def test_command_line(tmp_path: Path, fast_block: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    program = compiled(None).program
    (tmp_path / "model.ir.py").write_text(str(program))
    weights = {leaf.name: torch.randn(leaf.shape) for leaf in program.constants()}
    save_file(weights, tmp_path / "model.safetensors")
    for more in (["--tune"], ["--tune=3"]):
        given = ["compile", tmp_path / "model.ir.py", "-o", tmp_path / "a.planish", "--overwrite", *more]
        assert main([*map(str, given), "--cache-dir", str(tmp_path / "cache"), "--json"]) == 0
        assert sum("tuned for" in n for n in json.loads(capsys.readouterr().out)["report"]["notes"]) == 2
    assert len(fast_block) == 4
    assert main(["compile", str(tmp_path / "model.ir.py"), "--tune=soon"]) == 2
    assert "PL824" in capsys.readouterr().err
    assert main(["cache", "info", "--cache-dir", str(tmp_path / "cache")]) == 0
    assert "2 records of tuning" in capsys.readouterr().out


def test_a_bar_is_shown_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps(common.Terminal(progress=True), 60.0) as steps:
        steps("select", 0.5)
        steps("tune: linear_dense(f32[T, 64]): default", 1.0)
        assert steps._bar is not None
        steps("tune", 1.0)
        assert steps._bar is None
        steps("tune: more", 1.0)
    assert steps._bar is None and "select" in capsys.readouterr().err
    with Steps(common.Terminal(progress=False, level=common.VERBOSE), 60.0) as steps:
        steps("tune: linear_dense(f32[T, 64]): default", 1.0)
        assert steps._bar is None
    assert "linear_dense" in capsys.readouterr().err
