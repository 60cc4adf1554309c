"""Artifacts with several entry points: weights stored once, states that go from one to the other, equal bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import planish
from planish.errors import ArtifactError, PlanishError, ShapeError, UnsupportedOpError, UsageError
from planish.frontend.api import compile_captured, make_options
from planish.frontend.capture.base import Captured
from planish.frontend.cli.main import main
from planish.frontend.compilation import Phases, finish
from planish.frontend.compiled import Compiled
from planish.ir.node import Module
from planish.ir.parser import parse_module
from planish.ir.rewrite import Log
from planish.ir.special import is_special_case, with_sizes
from planish.ir.verify_module import verify_module
from planish.ir.weights import Weights
from planish.passes.joint import join, split
from planish.passes.pipeline import Result
from planish.runtime.artifact import open_artifact
from planish.runtime.manifest import parse_manifest

TARGETS = ("cpu{isa=generic}", "onnxruntime", "eager")
TEXT = """
S = dim(1, 8)


def extend(input_ids: i64[1, S], start: i64[1], count: i64[1]):
    table: f32[300, 48]     = const('table')
    matrix: f32[48, 48]     = const('matrix')
    cache: f32[1, 1, 8, 48] = state('keys.0')
    rows: f32[1, S, 48]     = aten.embedding(table, input_ids)
    flat: f32[1, S, 48]     = aten.linear(rows, matrix)
    new: f32[1, 1, S, 48]   = aten.view(flat, [1, 1, S, 48])
    put0: f32[1, 1, 8, 48]  = planish.put(cache, new, start, count)
    logits: f32[1, S, 300]  = aten.linear(flat, table)
    return logits, {'keys.0': put0}


def prefill(input_ids: i64[1, S], start: i64[1], count: i64[1]):
    table: f32[300, 48]     = const('table')
    matrix: f32[48, 48]     = const('matrix')
    cache: f32[1, 1, 8, 48] = state('keys.0')
    rows: f32[1, S, 48]     = aten.embedding(table, input_ids)
    flat: f32[1, S, 48]     = aten.linear(rows, matrix)
    new: f32[1, 1, S, 48]   = aten.view(flat, [1, 1, S, 48])
    put0: f32[1, 1, 8, 48]  = planish.put(cache, new, start, count)
    sum0: f32[1, 1, 48]     = aten.sum(put0, [2])
    logits: f32[1, 1, 300]  = aten.linear(sum0, table)
    return logits, {'keys.0': put0}
"""


def source() -> tuple[Module, Weights]:
    """Entry points over one table and one matrix, which put rows into one cache; two sum all that is there."""
    one = TEXT.split("\n\n\n")[2].replace("def prefill", "def decode").replace("1, S", "1, 1")
    weights = Weights()
    torch.manual_seed(0)
    weights.add("table", torch.randn(300, 48))
    weights.add("matrix", torch.randn(48, 48) / 7)
    made = parse_module(f"{TEXT}\n\n{one}")
    return Module(tuple(made[name] for name in ("prefill", "decode", "extend"))), weights


GENERATION = {
    "context": 8, "chunk": 8, "batch": 1, "token_input": "input_ids", "vocabulary": 300, "rings": {},
}  # fmt: skip


def compiled(target: str) -> Compiled:
    module, weights = source()
    program = module.default
    options = make_options(target=target, passes="none")
    captured = Captured(program, weights)
    made = finish(captured, options, Phases(), Result(program, Log()), weights, module, GENERATION)
    return Compiled(made=made)


def feeds(ids: list[int], start: int) -> dict[str, Any]:
    count = np.array([len(ids)])
    return {"input_ids": np.array([ids]), "start": np.array([start]), "count": count}


def expected(ids: list[int]) -> Any:
    _, weights = source()
    table, matrix = weights.tensor("table"), weights.tensor("matrix")
    return ((table[ids] @ matrix.T).sum(0) @ table.T).numpy().reshape(1, 1, 300)


def steps(model: Any) -> None:
    """Two calls of one entry point and one of the other, twice."""
    for _ in range(2):
        model.reset()
        found = model.run(feeds([5, 299, 7], 0), "prefill")["output0"]
        np.testing.assert_allclose(found, expected([5, 299, 7]), rtol=1e-4, atol=1e-4)
        model.run(feeds([1], 3), "decode")
        found = model.run(feeds([250], 4), "decode")["output0"]
        np.testing.assert_allclose(found, expected([5, 299, 7, 1, 250]), rtol=1e-4, atol=1e-4)
        found = model.run(feeds([9, 8], 5), "extend")["output0"]
        np.testing.assert_allclose(found[:, :1], expected([9]), rtol=1e-4, atol=1e-4)
        found = model.run(feeds([9, 8], 5), "prefill")["output0"]
        np.testing.assert_allclose(found, expected([5, 299, 7, 1, 250, 9, 8]), rtol=1e-4, atol=1e-4)
        assert model.states["keys.0"].shape == (1, 1, 8, 48)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("entries")
    return {name: compiled(name).export(folder / f"{i}.planish") for i, name in enumerate(TARGETS[:2])}


@pytest.mark.parametrize("target", TARGETS)
def test_states_go_from_one_entry_point_to_the_other(target: str) -> None:
    with compiled(target) as model:
        assert model.program.name == "prefill" and list(model.entry_points) == ["prefill", "decode", "extend"]
        assert model.generation == GENERATION
        steps(model)
        model.reset()
        bare = model(torch.tensor([[5, 299, 7]]), torch.tensor([0]), torch.tensor([3]))
        np.testing.assert_allclose(bare.numpy(), expected([5, 299, 7]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS[:2])
def test_weights_are_stored_once_and_bytes_are_equal(
    artifacts: dict[str, Path], tmp_path: Path, target: str
) -> None:
    path = artifacts[target]
    again = compiled(target).export(tmp_path / "again.planish")
    assert again.read_bytes() == path.read_bytes()
    leaves = (300 * 48 + 48 * 48) * 4
    with open_artifact(path) as artifact:
        names = list(artifact.names)
        stored = sum(i.length for n in names if n.startswith("weights/") for i in artifact.table(n).values())
        small = sum(artifact.member(n).size for n in names if n.startswith("selftest/"))
    # Layouts fill rows up to whole tiles.
    assert leaves <= stored <= leaves * 1.08 and small < 16_000
    assert {"ir/prefill.ir.py", "ir/decode.ir.py", "selftest/decode.safetensors"} <= set(names)
    code = {n for n in names if n.startswith("code/")}
    if target == "onnxruntime":
        # A call of decode is one of prefill with one token.
        assert {f"code/onnxruntime/{n}/model.onnx" for n in ("prefill", "extend")} <= code and len(code) == 4
    else:
        assert code == {"code/cpu/code.json", "code/cpu/generic.so"}


@pytest.mark.parametrize("target", TARGETS[:2])
def test_loaded(artifacts: dict[str, Path], target: str) -> None:
    with planish.load(artifacts[target], allow_native_code=True) as model:
        assert model.generation is not None and dict(model.generation) == GENERATION
        assert model.program.name == "prefill" and [p.name for p in model.module.programs][1:] == [
            "decode",
            "extend",
        ]
        steps(model)
        with pytest.raises(UsageError, match="PL861"):
            model.run(feeds([1], 0), "edit")
    with planish.runtime.load(artifacts[target], allow_native_code=True) as session:
        assert session.selftest() == 3 and session.manifest.default == "prefill"
        session.reset()
        steps(session)


def test_compiled_afresh(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLANISH_CONFIG_DIR", str(tmp_path))
    with planish.load(artifacts[TARGETS[0]]) as model:
        assert any("compiled afresh" in note for note in model.report.notes)
        assert model.generation is not None and model.program.name == "prefill"
        steps(model)
        again = model.export(tmp_path / "again.planish")
    with planish.load(again) as model:
        steps(model)


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_of_onnx_models_over_the_same_data(target: str, tmp_path: Path) -> None:
    import onnxruntime

    path = compiled(target).export(tmp_path / "onnx", format="onnx")
    names = ["decode.onnx", "extend.onnx", "model.onnx.data", "prefill.onnx"]
    assert sorted(p.name for p in path.parent.iterdir()) == names
    assert path.name == "prefill.onnx" and (path.parent / "model.onnx.data").stat().st_size < 70_000
    session = onnxruntime.InferenceSession(str(path))
    cache = np.zeros((1, 1, 8, 48), np.float32)
    found = session.run(None, {**feeds([5, 299, 7], 0), "keys.0": cache})
    np.testing.assert_allclose(found[0], expected([5, 299, 7]), rtol=1e-4, atol=1e-4)


def test_a_library_with_both(artifacts: dict[str, Path], tmp_path: Path) -> None:
    from planish.runtime.tvm import TvmCode, TvmSession

    with planish.load(artifacts[TARGETS[0]], allow_native_code=True) as model:
        folder = model.export(tmp_path / "so", format="so")
    assert {"prefill", "decode", "extend"} <= set(json.loads((folder / "model.json").read_text())["entries"])
    shared = TvmCode.from_folder(folder)
    states = {"keys.0": np.zeros((1, 1, 8, 48), np.float32)}
    found = TvmSession(shared, "decode").run({**feeds([5], 0), **states})
    np.testing.assert_allclose(found["output0"], expected([5]), rtol=1e-4, atol=1e-4)


def test_shown(artifacts: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(artifacts["onnxruntime"])]) == 0
    text = capsys.readouterr().out
    for word in (
        "prefill(input_ids",
        "decode(input_ids",
        "keys.0: f32[1, 1, 8, 48], 1,536 bytes",
        "context 8",
    ):
        assert word in text
    assert main(["show", str(artifacts["onnxruntime"]), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert len(table["entry points"]) == 3 and table["generation"]["vocabulary"] == 300


def test_programs_that_disagree_are_refused() -> None:
    module, weights = source()
    assert verify_module(module, weights) is module
    other = Module((module["prefill"], module["prefill"]))
    with pytest.raises(ShapeError, match=r"(?s)PL360.*two programs are called prefill"):
        verify_module(other, weights)
    text = str(module["decode"]).replace("1, 8, 48", "1, 9, 48")
    with pytest.raises(ShapeError, match=r"(?s)PL360.*state keys.0 is f32\[1, 1, 8, 48\] in prefill"):
        verify_module(Module((module["prefill"], planish.parse(text))), weights)
    with pytest.raises(ShapeError, match=r"(?s)PL360.*reads the state keys.0 and gives no next value"):
        verify_module(module.map(lambda program: replace(program, states=())), weights)


def test_special_cases() -> None:
    module, _ = source()
    prefill, decode, extend = module.programs
    (size,) = prefill.symbols
    assert with_sizes(prefill, {size: 1}).roots == decode.roots
    assert is_special_case(decode, prefill) and is_special_case(extend, extend)
    assert not is_special_case(prefill, decode) and not is_special_case(decode, extend)
    assert not is_special_case(with_sizes(prefill, {size: 9}), prefill)
    assert not is_special_case(replace(decode, output_names=("logits",)), prefill)


def test_joined_and_taken_apart() -> None:
    module, _ = source()
    joint = join(module)
    assert len(joint.roots) == 6 and split(joint, module) == module
    assert sum(n.op == "const" for n in joint.nodes) == 2
    single = Module((module["decode"],))
    assert join(single) is module["decode"] and split(module["decode"], single) == single


@pytest.mark.parametrize(
    "change",
    [
        {"context": 0}, {"chunk": 9}, {"batch": 0}, {"vocabulary": "many"}, {"token_input": "x"}, {"rings": []},
        {"rings": {"keys.9": {"capacity": 4, "window": 2}}}, {"rings": {"keys.0": {"capacity": 4}}},
        {"rings": {"keys.0": {"capacity": 4, "window": 5}}},
    ],
)  # fmt: skip
def test_tables_that_make_no_sense_are_refused(artifacts: dict[str, Path], change: dict[str, Any]) -> None:
    with open_artifact(artifacts["onnxruntime"]) as artifact:
        table = dict(json.loads(artifact.read("manifest.json")))
    table["generation"] = {**GENERATION, "rings": {"keys.0": {"capacity": 4, "window": 2}}}
    read = parse_manifest(json.dumps(table).encode()).generation
    assert read is not None and read["rings"]["keys.0"]["window"] == 2
    table["generation"] |= change
    with pytest.raises(ArtifactError, match=r"PL611.*generation"):
        parse_manifest(json.dumps(table).encode())
    for nothing in ("[]", "{}"):
        with pytest.raises(ArtifactError, match="PL611"):
            parse_manifest(json.dumps({**table, "generation": json.loads(nothing)}).encode())
    with pytest.raises(ArtifactError, match=r"PL611.*default"):
        parse_manifest(json.dumps({**table, "generation": GENERATION, "default": "edit"}).encode())


def test_options_of_generation() -> None:
    chosen = planish.GenerateOptions(context=64, extend=False)
    assert make_options(generate=chosen).generate is chosen
    assert make_options(generate=True).generate == planish.GenerateOptions()
    assert make_options().generate is None and make_options(generate=False).generate is None
    wrong: dict[str, Any]
    for wrong in ({"context": 0}, {"batch": 1.5}, {"chunk": -1}, {"extend": 2}):
        with pytest.raises(UsageError, match="PL824"):
            planish.GenerateOptions(**wrong)
    with pytest.raises(PlanishError, match="PL824"):
        make_options(generate=64)  # type: ignore[arg-type]


def test_the_cache_tells_them_apart(tmp_path: Path) -> None:
    from planish.frontend.cache import _key

    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    wanted: list[Any] = [None, True, planish.GenerateOptions(context=64), planish.GenerateOptions(batch=None)]
    keys = [_key(model, make_options(generate=each, cache_dir=tmp_path)) for each in wanted]
    assert None not in keys and len(set(keys)) == 4


def test_an_artifact_without_them_is_no_answer(artifacts: dict[str, Path], tmp_path: Path) -> None:
    assert planish.compile(artifacts["onnxruntime"], generate=True).generation is not None
    text = "def main(x: f32[3, 8]):\n    y = aten.relu(x)\n    return y\n"
    captured = Captured(planish.parse(text), Weights())
    made = compile_captured(captured, make_options(target="onnxruntime"))
    path = made.export(tmp_path / "plain.planish")
    with pytest.raises(UsageError, match="PL824"):
        planish.compile(path, generate=True)
    with pytest.raises(UnsupportedOpError, match="PL26"):
        compile_captured(captured, make_options(target="onnxruntime", generate=True))
