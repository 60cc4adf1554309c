"""Functions that no kernel builder made, scheduled for GPUs and run on OpenCL."""

from __future__ import annotations

import re
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


IMAGES = {
    "convolution": "aten.convolution(x, w, b, [1, 1], [1, 1], [1, 1], False, [], 1)",
    "strided": "aten.convolution(x, w, None, [2, 1], [0, 2], [1, 2], False, [], 1)",
    "transposed": "aten.convolution(x, t, b, [2, 2], [1, 1], [1, 1], True, [0, 0], 1)",
    "depthwise": "aten.convolution(x, g, None, [1, 1], [1, 1], [1, 1], False, [], 4)",
    "max_pool": "aten.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1], True)",
    "avg_pool": "aten.avg_pool2d(x, [3, 2], [2, 2], [1, 0], False, False)",
    "adaptive": "aten.adaptive_avg_pool2d(x, [1, 1])",
}
WEIGHTS = {"w": (6, 4, 3, 3), "t": (4, 6, 3, 3), "g": (4, 1, 3, 3), "b": (6,)}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name):
    """Convolutions and pooling, which have no kernels for GPUs."""
    used = [w for w in WEIGHTS if re.search(rf"\b{w}\b", IMAGES[name])]
    given = ", ".join(f"{w}: f32[{', '.join(map(str, WEIGHTS[w]))}]" for w in used)
    program = parse(
        f"B = dim(1, 64)\nH = dim(5, 64)\n\ndef main(x: f32[B, 4, H, 9]{', ' * bool(used)}{given}):\n"
        f"    out = {IMAGES[name]}\n    return out\n"
    )
    module = schedule_gpu(lower({"main": program}, OPENCL).module, OPENCL)
    functions = [f for f in module.functions.values() if isinstance(f, tirx.PrimFunc)]
    assert len(functions) == 1 and has_threads(functions[0])
    compiled = Compiled(functions[0])
    weights = [torch.randn(WEIGHTS[w]) for w in used]
    for batch, height in ((1, 5), (3, 12)):
        x = torch.randn(batch, 4, height, 9)
        (want,) = run(program, {}, x, *weights)
        have = torch.full(want.shape, float("nan"))
        compiled(x, *weights, have)
        torch.testing.assert_close(have, want, rtol=2e-5, atol=1e-5)
