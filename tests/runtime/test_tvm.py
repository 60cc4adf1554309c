"""Native code: results, types, states, weights in place, trust, damaged and foreign libraries, threads, isolation."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tvm_build import (
    CODE,
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
    weights,
)

from planish.runtime import tvm_library
from planish.runtime.artifact import open_artifact
from planish.runtime.native_code import EntryCode, LibraryFile
from planish.runtime.processor import usable_cores, usable_processors
from planish.runtime.tensors import SafetensorsPayload
from planish.runtime.tvm import TvmCode, TvmSession
from planish.runtime.tvm_tensors import Tensors, aligned, is_aligned, writable
from planish.runtime.tvm_threads import tvm_threads


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PLANISH_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return tvm_artifact(tmp_path / "a.planish")


@pytest.mark.parametrize("mmap", [True, False])
def test_runs(artifact: Path, mmap: bool) -> None:
    with opened(artifact, mmap=mmap) as session:
        assert session.selftest() == 1
        for count in (1, 5, 64, 0):
            np.testing.assert_array_equal(session(rows(count)), expected(rows(count)))
        assert code_of(session, rows(2).astype(np.float64)) == "PL353"
        assert code_of(session, np.ones((5000, SIZE), np.float32)) == "PL357"
    assert code_of(session, rows(1)) == "PL619"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64", "int8"])
def test_element_types(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(dtype)
    with opened(tvm_artifact(tmp_path / "a.planish", dtype=dtype)) as session:
        for count in (3, 0):
            found = session(rows(count, kind))
            assert found.dtype == kind
            np.testing.assert_array_equal(found, expected(rows(count, kind), kind))


@pytest.mark.parametrize("dtype", ["bool", "float64", "uint8", "float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_arrays_become_tensors_and_come_back(dtype: str) -> None:
    convert = Tensors(tvm_library.load_runtime())
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for shape in ((), (3, 5), (0, 4), (2, 1, 9)):
        array = np.arange(int(np.prod(shape)), dtype=np.float32).astype(kind).reshape(shape)
        tensor = convert.tensor(array)
        assert str(tensor.dtype) == dtype
        assert tensor.data_ptr() % 64 == 0
        np.testing.assert_array_equal(convert.array(tensor), array)


def test_inputs_of_any_layout(artifact: Path) -> None:
    session = opened(artifact)
    base = rows(8)
    frozen = base.copy()
    frozen.flags.writeable = False
    memory = np.zeros(8 * SIZE + 1, np.float32)
    shifted = memory[1:].reshape(8, SIZE)
    shifted[...] = base
    for x in (base[::2], base.T.copy().T, frozen, shifted, base[:, ::1], np.repeat(base[:1], 3, 0)):
        np.testing.assert_array_equal(session(x), expected(x))
    import torch

    result = session(torch.ones(2, SIZE))
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), expected(np.ones((2, SIZE), np.float32)))


def test_results_belong_to_the_caller(artifact: Path) -> None:
    session = opened(artifact)
    first = session(rows(3))
    kept = first.copy()
    for _ in range(5):
        session(rows(3) + 1)
    np.testing.assert_array_equal(first, kept)
    first[...] = 7
    np.testing.assert_array_equal(session(rows(3)), kept)
    session.close()
    assert (first == 7).all()


def test_an_argument_or_weight_as_result_is_copied(tmp_path: Path) -> None:
    entry = {
        "inputs": [{"name": "x", "type": f"f32[T, {SIZE}]"}],
        "outputs": [{"name": "y", "type": f"f32[T, {SIZE}]"}, {"name": "w", "type": f"f32[{SIZE}]"}],
    }
    same = EntryCode("same", ("x",), ("y", "w"), weights=("w0",))
    path = tvm_artifact(
        tmp_path / "a.planish", described=code({"main": same}), entries={"main": entry}, selftest=False
    )
    session = opened(path)
    x = aligned(rows(2))
    y, w = session(x)
    assert not np.shares_memory(y, x)
    w[...] = 0
    np.testing.assert_array_equal(session(x)[1], weights()["w0"])


def test_states(tmp_path: Path) -> None:
    session = opened(tvm_artifact(tmp_path / "a.planish", state=True))
    assert not session.states
    for count in range(1, 4):
        session(rows(2))
        np.testing.assert_array_equal(session.states["s"], np.full(SIZE, count, np.float32))
    session.states["s"][...] = 100
    session(rows(2))
    assert session.states["s"][0] == 4
    session.reset()
    session(rows(2))
    assert session.states["s"][0] == 1


def test_states_go_from_one_kind_of_code_to_another(tmp_path: Path) -> None:
    from onnx import TensorProto, helper
    from runtime_build import model, value

    f32, sizes = TensorProto.FLOAT, [SIZE]
    nodes = [helper.make_node("Identity", ["s"], ["out"]), helper.make_node("Add", ["s", "s"], ["s.next"])]
    onnx = model(nodes, [value("s", f32, sizes)], [value("out", f32, sizes), value("s.next", f32, sizes)])
    state = [{"name": "s", "type": f"f32[{SIZE}]"}]
    both = [{"name": "x", "type": f"f32[T, {SIZE}]"}], [{"name": "y", "type": f"f32[T, {SIZE}]"}]
    entries = {
        "count": {"inputs": both[0], "outputs": both[1], "states": state, "code": {"cpu": CODE}},
        "double": {"inputs": [], "outputs": [{"name": "out", "type": f"f32[{SIZE}]"}], "states": state,
                   "code": {"onnxruntime": "code/onnxruntime/double.onnx", "cpu": "code/cpu/none/code.json"}},
    }  # fmt: skip
    described = code({"count": main_entry(state=True)})
    nothing = code({"other": main_entry()}, abi=abi(tvm="0.1"))
    more = {"code/onnxruntime/double.onnx": onnx, "code/cpu/none/code.json": nothing.dump()}
    path = tvm_artifact(tmp_path / "a.planish", state=True, described=described, entries=entries, more=more)
    session = opened(path)
    for wanted in (1, 3, 7):
        session.entry("count")(rows(1))
        assert session.states["s"][0] == wanted
        session.entry("double")()
        assert session.states["s"][0] == 2 * wanted


def test_weights_lie_where_the_file_is_mapped(artifact: Path, tmp_path: Path) -> None:
    with open_artifact(artifact) as file:
        shared = TvmCode.from_artifact(file, CODE)
        mapped = file.tensors("weights/model.safetensors")
        assert not shared.copied
        assert shared.addresses == {mapped[name].ctypes.data for name in ("w0", "w1")}
        session = TvmSession(shared)
        assert session.inputs == ("x",)
        assert session.outputs == ("y",)
        np.testing.assert_array_equal(session.run({"x": rows(2)})["y"], expected(rows(2)))
        session.close()
        assert code_of(session.run, {"x": rows(2)}) == "PL704"
    # Without padding the second tensor would begin between multiples of 64.
    with open_artifact(artifact, mmap=False) as file:
        assert TvmCode.from_artifact(file, CODE).addresses.isdisjoint(shared.addresses)


def test_read_only_memory_without_a_copy() -> None:
    array = aligned(rows(1))
    array.flags.writeable = False
    view = writable(array)
    assert view.flags.writeable
    assert np.shares_memory(view, array)
    assert is_aligned(view)
    address = array.ctypes.data
    del array
    np.testing.assert_array_equal(view, rows(1))
    assert view.ctypes.data == address


def test_a_load_function_makes_weights(tmp_path: Path) -> None:
    prepare = EntryCode("load", (), ("w1",), weights=("raw",))
    described = code({"main": main_entry(), "load": prepare}, load="load")
    stored = SafetensorsPayload({"w0": weights()["w0"], "raw": weights()["w1"] - 1})
    path = tvm_artifact(
        tmp_path / "a.planish", described=described, more={"weights/model.safetensors": stored}
    )
    np.testing.assert_array_equal(opened(path)(rows(2)), expected(rows(2)))


def test_from_several_threads(artifact: Path) -> None:
    session = opened(artifact, threads=2)
    faults: list[str] = []

    def work(seed: int) -> None:
        x = rows(1 + seed % 4) + seed
        faults.extend("wrong" for _ in range(100) if not np.array_equal(session(x), expected(x)))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults


def test_memory_of_many_sizes_is_given_back(artifact: Path) -> None:
    session = opened(artifact)
    rss = []
    for count in range(1, 4000, 13):
        session(np.ones((count, SIZE), np.float32))
        rss.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert rss[-1] - rss[0] < 60e6


def test_nothing_stays_on_disk_and_nobody_else_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = tvm_library.load_runtime

    class Watching:
        def __init__(self, beside: Path | None = None) -> None:
            pass

        def load_module(self, path: str) -> Any:
            seen.append((os.stat(path).st_mode & 0o777, os.stat(Path(path).parent).st_mode & 0o777, path))
            return object()

    monkeypatch.setattr(tvm_library, "load_runtime", Watching)
    data = library() + b"\0"
    digest = hashlib.sha256(data).hexdigest()
    tvm_library.load_library(data, digest, machine="x86_64")
    tvm_library._modules.pop(digest)
    ((file, folder, path),) = seen
    assert (file, folder) == (0o500, 0o700)
    assert path.startswith(str(tmp_path / "cache" / "native"))
    assert not Path(path).exists()
    assert list((tmp_path / "cache" / "native").iterdir()) == []
    assert code_of(tvm_library.load_library, data, "0" * 64, machine="x86_64") == "PL603"
    # A folder that others can write to is not used, nor one that cannot be.
    (tmp_path / "cache" / "native").chmod(0o777)
    tvm_library.load_library(data, digest, machine="x86_64")
    tvm_library._modules.pop(digest)
    assert not seen[-1][2].startswith(str(tmp_path))
    assert real is not tvm_library.load_runtime


def test_a_change_between_hash_and_load_is_noticed(artifact: Path) -> None:
    whole = artifact.read_bytes()
    at = whole.index(library())
    artifact.write_bytes(whole[: at + 5000] + bytes([whole[at + 5000] ^ 1]) + whole[at + 5001 :])
    assert code_of(opened, artifact) == "PL603"
    tvm_library._modules.clear()
    assert code_of(opened, artifact, verify="off") == "PL603"


CHILD = """
import sys, time
import numpy as np
{before}
from planish.runtime import load
session = load({path!r}, allow_native_code=True, threads={threads})
x = np.ones((2, 64), np.float32)
np.testing.assert_array_equal(session(x), session(x))
{after}
"""


def child(
    path: Path, before: str = "", after: str = "", threads: int | None = None, **environment: str
) -> str:
    text = CHILD.format(path=str(path), before=before, after=after, threads=threads)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TVM_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=kept | environment, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_only_numpy_and_the_runtime_are_loaded(artifact: Path) -> None:
    after = """
heavy = {"torch", "tvm", "onnxruntime", "sympy", "onnx", "scipy"} & set(sys.modules)
assert not heavy, heavy
maps = open("/proc/self/maps").read()
assert "libtvm_compiler" not in maps and "libtvm_runtime" in maps
import torch  # still possible, and later calls take its tensors
assert session(torch.ones(2, 64)).shape == (2, 64)
"""
    child(artifact, after=after)


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_the_compiler_in_one_process(artifact: Path, order: str) -> None:
    use = "import tvm\nassert tvm.cpu().exist\ntvm.runtime.tensor(np.ones(3)).numpy()\n"
    again = "np.testing.assert_array_equal(session(x), session(x))\n"
    child(artifact, **{order: use + (again if order == "after" else "")})


def test_idle_workers_sleep(tmp_path: Path) -> None:
    path = tvm_artifact(tmp_path / "a.planish", parallel=True)
    after = """
import os
assert len(os.listdir("/proc/self/task")) > 1
assert os.environ["TVM_BIND_THREADS"] == "0"
before = os.sched_getaffinity(0)
session(x)
assert os.sched_getaffinity(0) == before
begin = time.process_time()
time.sleep(0.4)
assert time.process_time() - begin < 0.06, time.process_time() - begin
"""
    if len(usable_processors()) > 1:
        child(path, after=after, threads=2)
    child(path, after="import os; print(len(os.listdir('/proc/self/task')))", PLANISH_NUM_THREADS="1")


def test_after_a_fork(tmp_path: Path) -> None:
    path = tvm_artifact(tmp_path / "a.planish", parallel=True)
    after = """
import os
wanted = session(x)
pid = os.fork()
if pid == 0:
    os._exit(0 if np.array_equal(session(x), wanted) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    child(path, after=after, threads=len(usable_processors()))


def test_a_runtime_that_is_missing_or_elsewhere(artifact: Path, tmp_path: Path) -> None:
    from importlib.util import find_spec

    before = f"""
import os
from planish.errors import BackendError
from planish.runtime import load
os.environ["PLANISH_TVM_RUNTIME"] = "/nowhere"
try:
    load({str(artifact)!r}, allow_native_code=True)
except BackendError as error:
    assert error.code == "PL770", error
else:
    raise AssertionError("loaded")
del os.environ["PLANISH_TVM_RUNTIME"]
"""
    child(artifact, before=before)
    spec = find_spec("tvm")
    assert spec is not None
    assert spec.origin is not None
    copy = tmp_path / "elsewhere" / "libtvm_runtime.so"
    copy.parent.mkdir()
    copy.write_bytes((Path(spec.origin).parent / "lib" / copy.name).read_bytes())
    after = f"assert {str(copy)!r} in open('/proc/self/maps').read()"
    child(artifact, after=after, PLANISH_TVM_RUNTIME=str(copy.parent))


def test_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    described = code({"main": main_entry()}, {"sm_80+sm_90": LibraryFile("generic.so")}, device="cuda")
    path = tvm_artifact(
        tmp_path / "a.planish",
        more={"code/cuda/code.json": described.dump(), "code/cuda/generic.so": library()},
    )
    assert code_of(opened, path, device="cuda:x") in ("PL863", "PL775")
    if tvm_library.load_runtime().get_global_func("device_api.cuda", allow_missing=True) is None:
        assert code_of(opened, path, device="cuda") == "PL775"


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANISH_NUM_THREADS", raising=False)
    assert tvm_threads() == usable_cores() <= len(usable_processors())
    assert tvm_threads(1) == 1
    assert tvm_threads(10_000) == len(usable_processors())
    monkeypatch.setenv("PLANISH_NUM_THREADS", "1")
    assert tvm_threads() == 1
    assert code_of(tvm_threads, 0) == "PL862"
