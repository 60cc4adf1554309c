"""Functions that no kernel builder made, scheduled for GPUs and run on OpenCL."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tvm import tirx

from planish.backends.tvm.lower import lower
from planish.ir.parser import parse
from planish.ir.run import run

sys.path.insert(0, str(Path(__file__).parent))

from opencl import OPENCL, Compiled

from planish.backends.tvm.gpu.schedule import has_threads, schedule_gpu

CASES = {
    "permute": "aten.permute(x, [1, 2, 0])",
    "silu": "aten.silu(x)",
    "softmax": "aten.softmax(x, 1)",
    "mean": "aten.mean(x, [0, 2])",
    "sum": "aten.sum(x, [2], True)",
    "cumsum": "aten.cumsum(x, 1)",
    "layer_norm": "aten.layer_norm(x, [24], None, None)",
    "matmul": "aten.matmul(x, y)",
}


@pytest.mark.parametrize("name", CASES)
def test_one_operation(name):
    program = parse(
        f"T = dim(2, 512)\n\ndef main(x: f32[3, T, 24], y: f32[24, 9]):\n    out = {CASES[name]}\n    return out\n"
    )
    module = schedule_gpu(lower({"main": program}, OPENCL).module, OPENCL)
    functions = [f for f in module.functions.values() if isinstance(f, tirx.PrimFunc)]
    assert all(has_threads(f) for f in functions)
    (function,) = functions
    compiled = Compiled(function)
    for rows in (2, 37):
        x, y = torch.randn(3, rows, 24), torch.randn(24, 9)
        (want,) = run(program, {}, x, y)
        have = torch.full(want.shape, float("nan"))
        compiled(*[x, y][: 2 if name == "matmul" else 1], have)
        torch.testing.assert_close(have, want, rtol=2e-5, atol=1e-5)
