"""Loading and calling: results, input checks, tied and widened weights, states, memory, isolation."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper
from runtime_build import MODEL, WEIGHTS, Int4, external, fields, int4_artifact, int4_members, model, value

from planish.errors import ArtifactError, BackendError, PlanishError, ShapeError, UsageError
from planish.runtime import load
from planish.runtime.artifact import write_artifact
from planish.runtime.external import references
from planish.runtime.ort import OrtSession
from planish.runtime.selftest import selftest_members
from planish.runtime.settings import SessionSettings
from planish.runtime.tensors import SafetensorsPayload, TensorInfo

F32, U8, I64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return int4_artifact(tmp_path / "a.planish")


def code_of(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(PlanishError) as caught:
        call(*args, **named)
    return caught.value.code


@pytest.mark.parametrize("mmap", [True, False])
def test_int4_runs(artifact: Path, mmap: bool) -> None:
    layer = Int4(64, 128)
    x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    with load(artifact, mmap=mmap) as session:
        assert session.selftest() == 1
        np.testing.assert_allclose(session(x), x @ layer.weight.T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(session.run({"x": x})["y"], session(x=x), rtol=0, atol=0)
        np.testing.assert_allclose(session.entry("main")(x[:, ::1]), session(x), rtol=0, atol=0)
        assert session.report == {"bytes": 1}
        assert session.plan is None
        assert session.manifest.producer == {"planish": "0.1.0"}
    assert code_of(session, x) == "PL619"


def test_loaded_through_a_link_and_from_an_odd_name(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ä b%20 $x"
    folder.mkdir()
    moved = artifact.rename(folder / "m ö.planish")
    (tmp_path / "link.planish").symlink_to(moved)
    assert load(tmp_path / "link.planish")(np.ones((1, 64), np.float32)).shape == (1, 128)


def test_torch_in_torch_out(artifact: Path) -> None:
    import torch

    session = load(artifact)
    result = session(torch.ones(2, 64))
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), session(np.ones((2, 64), np.float32)))


def test_input_checks(artifact: Path) -> None:
    session = load(artifact)
    x = np.ones((2, 64), np.float32)
    assert code_of(session) == "PL351"
    assert code_of(session, x, x) == "PL352"
    assert code_of(session, x, x=x) == "PL352"
    assert code_of(session, z=x) == "PL352"
    assert code_of(session, x.astype(np.float64)) == "PL353"
    assert code_of(session, x[0]) == "PL354"
    assert code_of(session, x[:, :63]) == "PL355"
    assert code_of(session, np.ones((17, 64), np.float32)) == "PL357"
    assert code_of(session, np.ones((0, 64), np.float32)) == "PL357"
    assert code_of(session, [[1.0]]) == "PL358"
    assert code_of(session.entry, "other") == "PL861"
    with pytest.raises(ShapeError) as caught:
        session(x.astype(np.float64))
    assert str(caught.value) == (
        "PL353: main: input x: f32[B, 64] is needed, not f64[2, 64]; convert it: array.astype('float32')"
    )


def test_sizes_must_agree(tmp_path: Path) -> None:
    entry = {
        "inputs": [{"name": "a", "type": "f32[2*T, S]"}, {"name": "b", "type": "f32[S, T//2 + 1]"}],
        "outputs": [{"name": "c", "type": "f32[2*T, T//2 + 1]"}],
    }
    data = model(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        [value("a", F32, [None, None]), value("b", F32, [None, None])],
        [value("c", F32, [None, None])],
    )
    dims = {"T": [2, 8], "S": [1, 100]}
    made = write_artifact(
        tmp_path / "a.planish",
        manifest_fields=fields(entry_points={"f": entry}, dims=dims),
        members={MODEL: data},
    )
    session = load(made)

    def ones(*shape: int) -> Any:
        return np.ones(shape, np.float32)

    assert session(ones(8, 5), ones(5, 3)).shape == (8, 3)
    assert code_of(session, ones(8, 5), ones(4, 3)) == "PL356"
    assert code_of(session, ones(8, 5), ones(5, 4)) == "PL356"
    assert code_of(session, ones(18, 5), ones(5, 5)) == "PL357"
    with pytest.raises(
        ShapeError, match=r"b: axis 1 must be 3: f32\[S, T//2 \+ 1\] is needed.*T is 4 in a \(axis 0\)"
    ):
        session(ones(8, 5), ones(5, 4))


def test_one_weight_under_two_shapes(tmp_path: Path) -> None:
    layer = Int4(64, 96)
    weights = SafetensorsPayload({"codes": layer.packed.reshape(96, 32), "scale": layer.scale})
    at = weights.layout()
    data = model(
        [
            helper.make_node(
                "GatherBlockQuantized", ["table", "ids", "rows"], ["h"], domain="com.microsoft",
                gather_axis=0, quantize_axis=1, block_size=32, bits=4,
            ),
            layer.node("h", "y"),
        ],
        [value("ids", I64, ["T"])],
        [value("y", F32, ["T", 96])],
        [
            external("table", U8, [96, 32], at["codes"]),
            external("rows", F32, [96, 2], at["scale"]),
            external("codes", U8, [96, 2, 16], at["codes"]),
            external("scale", F32, [192], at["scale"]),
        ],
    )  # fmt: skip
    entry = {"inputs": [{"name": "ids", "type": "i64[T]"}], "outputs": [{"name": "y", "type": "f32[T, 96]"}]}
    made = write_artifact(
        tmp_path / "a.planish", manifest_fields=fields(entry_points={"main": entry}, dims={"T": [1, 9]}),
        members={MODEL: data, WEIGHTS: weights},
    )  # fmt: skip
    ids = np.array([3, 0, 95])
    np.testing.assert_allclose(load(made)(ids), layer.weight[ids] @ layer.weight.T, rtol=1e-4, atol=1e-5)


def test_packed_int4_initializers(tmp_path: Path) -> None:
    raw = np.arange(32, dtype=np.uint8)
    weights = SafetensorsPayload({"q": raw, "scale": np.full((1,), 0.5, np.float32)})
    at = weights.layout()
    data = model(
        [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        [value("x", F32, ["B", 64])],
        [value("y", F32, ["B", 1])],
        [external("q", TensorProto.UINT4, [64, 1], at["q"]), external("s", F32, [], at["scale"])],
    )
    entry = {"inputs": [{"name": "x", "type": "f32[B, 64]"}], "outputs": [{"name": "y", "type": "f32[B, 1]"}]}
    made = write_artifact(
        tmp_path / "a.planish",
        manifest_fields=fields(entry_points={"main": entry}),
        members={MODEL: data, WEIGHTS: weights},
    )
    expected = 0.5 * (float((raw & 15).sum()) + float((raw >> 4).sum()))
    assert load(made)(np.ones((1, 64), np.float32)).item() == expected


def widened(layer: Int4) -> dict[str, Any]:
    """The int4 layer, its codes stored inverted and turned round by the load model."""
    weights = SafetensorsPayload({"inverted": ~layer.packed, "scale": layer.scale})
    shape = list(layer.packed.shape)
    load_model = model(
        [helper.make_node("BitwiseNot", ["inverted"], ["codes"])],
        [value("inverted", U8, shape)],
        [value("codes", U8, shape)],
    )
    initializers = [
        external("codes", U8, shape, None),
        external("scale", F32, [layer.scale.size], weights.layout()["scale"]),
    ]
    data = model(
        [layer.node("x", "y")],
        [value("x", F32, ["B", layer.k])],
        [value("y", F32, ["B", layer.n])],
        initializers,
    )
    return int4_members(layer) | {MODEL: data, WEIGHTS: weights, "code/onnxruntime/load.onnx": load_model}


@pytest.mark.parametrize("mmap", [True, False])
def test_load_model(tmp_path: Path, mmap: bool) -> None:
    made = write_artifact(tmp_path / "a.planish", manifest_fields=fields(), members=widened(Int4(64, 128)))
    assert load(made, mmap=mmap).selftest() == 1


def test_load_model_faults(tmp_path: Path) -> None:
    def code(members: dict[str, Any]) -> str:
        return code_of(
            load,
            write_artifact(tmp_path / "a.planish", manifest_fields=fields(), members=members, overwrite=True),
        )

    good = widened(Int4(64, 128))
    assert code({n: m for n, m in good.items() if n != "code/onnxruntime/load.onnx"}) == "PL621"
    assert code(good | {MODEL: int4_members(Int4(64, 128))[MODEL]}) in ("PL618", "PL621")
    assert code(good | {WEIGHTS: SafetensorsPayload({"scale": np.ones(256, np.float32)})}) == "PL612"
    unknown = model(
        [helper.make_node("NonZero", ["inverted"], ["codes"])],
        [value("inverted", U8, [128, 2, 16])],
        [value("codes", I64, [3, None])],
    )
    assert code(good | {"code/onnxruntime/load.onnx": unknown}) == "PL621"


@pytest.mark.parametrize(
    ("location", "offset", "length", "code"),
    [
        ("/etc/passwd", 0, 64, "PL616"),
        ("../x", 0, 64, "PL616"),
        ("*/_ORT_MEM_ADDR_/*", 4096, 64, "PL616"),
        ("manifest.json", 0, 64, "PL616"),
        ("report.json", 0, 12, "PL616"),
        (WEIGHTS, 0, 10**6, "PL618"),
        (WEIGHTS, 10**6, 0, "PL618"),
        (WEIGHTS, -1, 64, "PL618"),
        (WEIGHTS, 2**63, 64, "PL618"),
        (WEIGHTS, 0, 10, "PL702"),
    ],
)
@pytest.mark.parametrize("mmap", [True, False])
def test_references_that_escape(
    tmp_path: Path, location: str, offset: int, length: int, code: str, mmap: bool
) -> None:
    layer = Int4(64, 128)
    initializers = [external("codes", U8, [128, 2, 16], TensorInfo("U8", (), offset, length), location)]
    initializers += [external("scale", F32, [256], TensorInfo("F32", (), 0, 1024))]
    data = model(
        [layer.node("x", "y")], [value("x", F32, ["B", 64])], [value("y", F32, ["B", 128])], initializers
    )
    made = int4_artifact(tmp_path / "a.planish", more={MODEL: data})
    assert code_of(load, made, mmap=mmap) == code


def test_references_hidden_in_subgraphs_are_found() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["o"])], "inner", [], [value("o", F32, [1])],
        [external("w", F32, [1], TensorInfo("F32", (), 0, 4), "secret")],
    )  # fmt: skip
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(
        name="value", type=4, t=external("k", F32, [1], TensorInfo("F32", (), 0, 4), "other")
    )  # AttributeProto.TENSOR
    nodes = [helper.make_node("If", ["p"], ["y"], then_branch=inner, else_branch=inner), constant]
    data = model(nodes, [value("p", TensorProto.BOOL, [])], [value("y", F32, [1])])
    assert [r.location for r in references(data)] == ["secret", "secret", "other"]


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xff" * 20, b"ORTM" * 20, b"\x3a\xff\x01location", b"\x3b\x01location"]
)
def test_models_that_are_none(tmp_path: Path, data: bytes) -> None:
    made = int4_artifact(tmp_path / "a.planish", more={MODEL: data})
    assert code_of(load, made) in ("PL621", "PL702")


def test_damaged_models_are_refused_or_read() -> None:
    members = int4_members(Int4(64, 128))
    data = members[MODEL]
    rng = random.Random(2)
    for _ in range(2000):
        changed = bytearray(data[: rng.choice([len(data), rng.randrange(len(data))])])
        for _ in range(rng.choice([1, 2, 5])):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        with contextlib.suppress(ArtifactError):
            references(bytes(changed))


def test_selftest_finds_other_results(tmp_path: Path) -> None:
    x = np.ones((1, 64), np.float32)
    wrong = selftest_members("main", {"x": x}, {"y": np.zeros((1, 128), np.float32)}, rtol=1e-3, atol=1e-3)
    made = int4_artifact(tmp_path / "a.planish", more=wrong)
    with pytest.raises(ArtifactError, match=r"PL615.*differs by up to"):
        load(made)
    load(made, verify="fast").close()
    unfit = selftest_members("main", {"z": x}, {"y": x}, rtol=1e-3, atol=1e-3)
    assert code_of(load, int4_artifact(made, more=unfit)) == "PL615"
    for text in (
        b"[]",
        b'{"rtol": -1, "atol": 0}',
        b'{"rtol": true, "atol": 0}',
        b"{}",
        b'{"rtol": "a", "atol": 0}',
    ):
        assert code_of(load, int4_artifact(made, more={"selftest/main.json": text})) == "PL615"


def test_settings(tmp_path: Path) -> None:
    good = b'{"graph_optimization_level": "basic", "arena": false, "new": 1,'
    good += b'"config": {"session.disable_prepacking": "1"}}'
    name = "code/onnxruntime/session.json"
    assert load(int4_artifact(tmp_path / "a.planish", more={name: good})).selftest() == 1
    assert SessionSettings.parse(good).config == {"session.disable_prepacking": "1"}
    for text in (
        b"[]",
        b'{"arena": 3}',
        b'{"graph_optimization_level": []}',
        b'{"graph_optimization_level": "most"}',
        b'{"config": []}',
        b'{"config": {"session.save_model": "/x"}}',
        b'{"config": {"session.disable_prepacking": 1}}',
    ):
        assert code_of(load, int4_artifact(tmp_path / "a.planish", more={name: text})) == "PL611"


def test_names_of_model_and_manifest_must_agree(tmp_path: Path) -> None:
    entry = {
        "inputs": [{"name": "z", "type": "f32[B, 64]"}],
        "outputs": [{"name": "y", "type": "f32[B, 128]"}],
    }
    assert code_of(load, int4_artifact(tmp_path / "a.planish", entry_points={"main": entry})) == "PL621"


def test_states_and_several_entries(tmp_path: Path) -> None:
    step = {
        "inputs": [{"name": "x", "type": "f32[B, 2]"}],
        "outputs": [{"name": "y", "type": "f32[B, 2]"}],
        "states": [{"name": "total", "type": "f32[B, 2]"}],
    }
    other = {k: v for k, v in step.items() if k != "states"} | {
        "code": {"onnxruntime": "code/onnxruntime/o.onnx"}
    }
    ends = [value("x", F32, ["B", 2])], [value("y", F32, ["B", 2])]
    members = {
        "code/onnxruntime/step.onnx": model(
            [
                helper.make_node("Add", ["x", "total"], ["total.next"]),
                helper.make_node("Neg", ["total.next"], ["y"]),
            ],
            [*ends[0], value("total", F32, ["B", 2])],
            [*ends[1], value("total.next", F32, ["B", 2])],
        ),
        "code/onnxruntime/o.onnx": model([helper.make_node("Neg", ["x"], ["y"])], *ends),
    }
    path = tmp_path / "a.planish"
    made = write_artifact(
        path, manifest_fields=fields(entry_points={"step": step, "other": other}), members=members
    )
    session = load(made)
    x = np.ones((1, 2), np.float32)
    assert code_of(session, x) == "PL861"
    assert code_of(session.run, {"x": x}) == "PL861"
    forward = session.entry("step")
    assert [float(forward(x)[0, 0]) for _ in range(3)] == [-1, -2, -3]
    assert session.states["total"].tolist() == [[3, 3]]
    assert session.entry("other")(x).tolist() == [[-1, -1]]
    session.reset()
    assert forward(x).tolist() == [[-1, -1]]


def test_bfloat16_and_scalars(tmp_path: Path) -> None:
    import torch

    kinds = [value("x", TensorProto.BFLOAT16, ["B"]), value("n", I64, [])]
    data = model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["n"], ["m"])], kinds,
        [value("y", TensorProto.BFLOAT16, ["B"]), value("m", I64, [])],
    )  # fmt: skip
    entry = {
        "inputs": [{"name": "x", "type": "bf16[B]"}, {"name": "n", "type": "i64[]"}],
        "outputs": [{"name": "y", "type": "bf16[B]"}, {"name": "m", "type": "i64[]"}],
    }
    path = tmp_path / "a.planish"
    session = load(
        write_artifact(path, manifest_fields=fields(entry_points={"main": entry}), members={MODEL: data})
    )
    y, m = session(np.array([1.5, -2], ml_dtypes.bfloat16), np.int64(3))
    assert y.dtype == ml_dtypes.bfloat16 and y.tolist() == [1.5, -2] and m.item() == -3
    y, m = session(torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor(4))
    assert y.dtype == torch.bfloat16 and y.tolist() == [1.5] and m.item() == -4


def test_native_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.planish"
    members = {"code/tvm/lib.so": b"\x7fELF", "ir/main.ir.py": b""}
    write_artifact(path, manifest_fields=fields(), members=members)
    assert code_of(load, path) == "PL622"
    assert code_of(load, path, allow_native_code=True) == "PL705"


def test_devices_and_threads(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(load, artifact, device="abacus") == "PL863"
    assert code_of(load, artifact, threads=0) == "PL862"
    monkeypatch.setenv("PLANISH_NUM_THREADS", "many")
    with pytest.raises(UsageError, match="PL862"):
        load(artifact)
    monkeypatch.setenv("PLANISH_NUM_THREADS", "1")
    assert load(artifact).selftest() == 1


def test_missing_onnxruntime(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"PL701.*pip install"):
        load(artifact)


def test_file_changed_while_loading(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = OrtSession._create

    def swap(self: OrtSession, *args: Any) -> Any:
        artifact.write_bytes(artifact.read_bytes())
        return create(self, *args)

    monkeypatch.setattr(OrtSession, "_create", swap)
    assert code_of(load, artifact) == "PL620"


def test_calls_from_many_threads(artifact: Path) -> None:
    session = load(artifact)
    x = np.ones((2, 64), np.float32)
    expected = session(x)
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(1 for _ in range(20) if not np.array_equal(session(x), expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


ALONE = """
import sys
sys.path[:0] = {path!r}
for name in ("torch", "onnx", "onnx_ir", "sympy", "pydantic", "scipy", "ml_dtypes"):
    sys.modules[name] = None
import numpy as np
from planish.runtime import load
session = load({artifact!r})
print(session(np.ones(({rows}, {k}), np.float32)).shape)
print(max(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


def alone(artifact: Path, rows: int, k: int) -> list[str]:
    script = ALONE.format(path=[p for p in sys.path if p], artifact=str(artifact), rows=rows, k=k)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_alone_and_in_little_memory(tmp_path: Path) -> None:
    """numpy and onnxruntime are enough, and weights are held once: peak memory stays near the file's size."""
    layer = Int4(64, 64)
    layers, size = 4, 4096
    tensors: dict[str, Any] = {}
    codes = np.random.default_rng(0).integers(0, 256, (size, size // 32, 16), dtype=np.uint8)
    for index in range(layers):
        tensors |= {f"c{index}": codes, f"s{index}": np.full(size * size // 32, 1e-3, np.float32)}
    weights = SafetensorsPayload(tensors)
    at = weights.layout()
    layer.k = layer.n = size
    nodes = [layer.node(f"x{i}", f"x{i + 1}", f"c{i}", f"s{i}") for i in range(layers)]
    initializers = [external(f"c{i}", U8, list(codes.shape), at[f"c{i}"]) for i in range(layers)]
    initializers += [external(f"s{i}", F32, [size * size // 32], at[f"s{i}"]) for i in range(layers)]
    data = model(
        nodes, [value("x0", F32, ["B", size])], [value(f"x{layers}", F32, ["B", size])], initializers
    )
    ends = {"inputs": [{"name": "x0", "type": f"f32[B, {size}]"}]}
    ends |= {"outputs": [{"name": f"x{layers}", "type": f"f32[B, {size}]"}]}
    path = tmp_path / "a.planish"
    write_artifact(
        path, manifest_fields=fields(entry_points={"main": ends}), members={MODEL: data, WEIGHTS: weights}
    )
    shape, peak = alone(path, 2, size)
    assert shape == f"(2, {size})"
    assert int(peak) <= path.stat().st_size // 2**20 + 150
