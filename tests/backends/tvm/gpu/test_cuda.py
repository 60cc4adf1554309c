"""Machine code of CUDA made without a GPU: what the library holds and what its kernels use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import tvm
from tvm import relax

from planish.errors import BackendError

sys.path.insert(0, str(Path(__file__).parent))

from affine_cases import affine_case
from dense_cases import dense_case
from opencl import Compiled

from planish.backends.tvm.cubin import kernels_of
from planish.backends.tvm.gpu import affine, dense
from planish.backends.tvm.gpu.device import ARCHITECTURES, OPENCL, cuda
from planish.backends.tvm.gpu.library import cuda_library, with_machine_code
from planish.backends.tvm.gpu.nvcc import compile_cuda, find_nvcc

BOTH = ("sm_80", "sm_90")


def built():
    """A product with a vector, and products by tensor cores in f16, bf16 and whole numbers."""
    gpu = cuda("sm_80")
    cases = {
        "vector": affine.build(affine_case(1, 256, 64, bias=True)[0], gpu),
        "whole": affine.build(affine_case(64, 128, 64, activation_bits=8)[0], gpu),
        "half": dense.build(dense_case(64, 64, 64, x="f16", w="f16")[0], gpu),
        "brain": dense.build(dense_case(64, 64, 64, x="f32", w="bf16", depth=2)[0], gpu),
        "single": dense.build(dense_case(64, 64, 64)[0], gpu),
    }
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in cases.items()})
    return tvm.compile(module, tvm.target.Target(gpu.target))


@cache
def library():
    return cuda_library(built(), BOTH)


def needs_nvcc(action):
    """Runs an action; without nvcc it must be refused by PL761."""
    if find_nvcc() is not None:
        return action()
    with pytest.raises(BackendError) as caught:
        action()
    assert caught.value.code == "PL761"
    return None


def test_a_library_holds_machine_code_for_every_architecture():
    made = needs_nvcc(library)
    if made is None:
        return
    data, kernels = made
    names = {(k.name, k.sm) for k in kernels}
    for sm in BOTH:
        assert {(n, sm) for n in ("vector_kernel", "half_kernel", "brain_kernel", "single_kernel")} <= names
    assert b"__CUDACC_RTC__" not in data
    assert all(16 <= k.registers <= 255 and k.local_bytes == 0 and k.code_bytes > 0 for k in kernels)
    assert all(0 < k.shared_bytes <= 49152 for k in kernels if k.name == "vector_kernel")


def test_tensor_cores_where_both_factors_are_narrow():
    made = needs_nvcc(library)
    if made is None:
        return
    _, kernels = made
    for sm in BOTH:
        count = {k.name: k.matrix for k in kernels if k.sm == sm}
        # 2 steps of 16 along K, 2 tiles of 16 rows, 8 tiles of 8 columns
        assert count["half_kernel"] == count["brain_kernel"] == 32
        assert max(n for name, n in count.items() if name.startswith("whole")) == 32
        assert count["single_kernel"] == count["vector_kernel"] == 0
    source = built().mod.imports[0].inspect_source()
    text = compile_cuda(source, ("sm_90",), form="ptx")
    assert b"mma.sync.aligned.m16n8k16.row.col.f32.bf16" in text and b"f32.f16.f16.f32" in text
    assert b"shfl.sync" in text


def test_the_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("planish.backends.tvm.gpu.nvcc.find_nvcc", lambda: None)
    with pytest.raises(BackendError) as caught:
        compile_cuda("", BOTH)
    assert caught.value.code == "PL761"


def test_refused_source_and_unknown_architectures_are_named():
    with pytest.raises(BackendError) as caught:
        cuda("sm_12")
    assert caught.value.code == "PL760" and "sm_90" in str(caught.value) and "sm_90" in ARCHITECTURES
    refused = find_nvcc() is not None
    with pytest.raises(BackendError) as caught:
        compile_cuda("not C", ("sm_80",))
    assert caught.value.code == ("PL762" if refused else "PL761")


def test_other_packings_are_refused():
    with pytest.raises(BackendError) as caught:
        with_machine_code(bytes(64), BOTH)
    assert caught.value.code == "PL763"


def test_damaged_images_hold_no_kernels():
    made = needs_nvcc(library)
    data = made[0] if made is not None else b"\x7fELF\x02\x01" + bytes(58)
    for cut in range(0, 4000, 97):
        kernels_of(data[:cut])
    at = data.find(b"\x7fELF\x02\x01", 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        broken = bytearray(data[max(at, 0) :][:20000])
        for place in torch.randint(6, len(broken), (30,), generator=generator).tolist():
            broken[place] = 255
        kernels_of(bytes(broken))


def test_whole_programs_for_cuda():
    from planish.backends.tvm.build import pipeline
    from planish.backends.tvm.gpu.schedule import schedule_gpu
    from planish.backends.tvm.lower import lower
    from planish.ir.parser import parse

    program = parse(
        "def main(x: f32[2, 5, 64], w: f32[32, 64]):\n    a = aten.rms_norm(x, [64])\n    b = aten.linear(a, w)\n"
        "    return b\n"
    )
    gpu = cuda("sm_80")
    module = schedule_gpu(lower({"main": program}, gpu).module, gpu)
    executable = relax.build(module, tvm.target.Target(gpu.target), relax_pipeline=pipeline())
    made = needs_nvcc(lambda: cuda_library(executable, BOTH))
    if made is not None:
        assert {k.sm for k in made[1]} == set(BOTH) and len(made[1]) >= 4


def test_one_row_of_a_long_weight_is_read_from_device_memory():
    """Rows too long for shared memory are prepared by a launch of their own."""
    from gpu_compare import compare

    node, operands = affine_case(1, 8192, 16, bits=2, group=8192, norm=True)
    compiled = Compiled(affine.build(node, OPENCL))
    compare(compiled, node, operands(1), 3e-6)
    assert len(compiled.launches) == 2


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.ReLU(), torch.nn.Linear(40, 7)).eval()


def artifact(path):
    import planish

    given = torch.zeros(3, 24)
    target = "cuda:sm_90+sm_80+sm_90"
    with planish.compile(small_model(), example_inputs=(given,), target=target) as compiled:
        return planish.export(compiled, path)


def test_an_artifact_for_several_architectures(tmp_path, capsys, monkeypatch):
    from planish.frontend.cli.main import main
    from planish.runtime import tvm as loader
    from planish.runtime.artifact import open_artifact

    path = needs_nvcc(lambda: artifact(tmp_path / "m.planish"))
    if path is None:
        return
    assert main(["show", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {kernel["sm"] for kernel in shown["kernels"]} == set(BOTH)
    assert "sm_80+sm_90" in shown["targets"][0]
    assert main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    assert "sm_80+sm_90" in text and {"sm_80", "sm_90"} <= set(text.split())
    member = "code/cuda/code.json"
    with open_artifact(path) as opened:
        code = loader.read_code(opened, member)
        for device in ("sm_80", "sm_89", "sm_90"):
            monkeypatch.setattr(loader, "_architecture", lambda index, where, device=device: device)
            assert loader.library_member(opened, member, code, "cuda") == "code/cuda/sm_80+sm_90.so"
        monkeypatch.setattr(loader, "_architecture", lambda index, where: "sm_75")
        with pytest.raises(BackendError, match="the device is sm_75; code is there for sm_80") as caught:
            loader.library_member(opened, member, code, "cuda")
        assert caught.value.code == "PL773"


def test_two_builds_give_equal_bytes(tmp_path):
    made = [needs_nvcc(lambda name=name: artifact(tmp_path / name)) for name in ("a.planish", "b.planish")]
    if made[0] is None:
        return
    folder = Path(__file__).parent
    script = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from pathlib import Path; import test_cuda;"
        f" test_cuda.artifact(Path({str(tmp_path / 'c.planish')!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert made[0].read_bytes() == made[1].read_bytes() == (tmp_path / "c.planish").read_bytes()
