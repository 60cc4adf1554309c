"""``kernel.linear_dense`` on OpenCL, with plain arithmetic and with tensor cores emulated."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planish.ir.types import dim

sys.path.insert(0, str(Path(__file__).parent))

from dense_cases import dense_case
from gpu_compare import compare
from opencl import OPENCL, Compiled

from planish.backends.tvm.gpu.dense import build

M = dim("M", 0, 4096)
EMULATED = replace(OPENCL, matrix="emulate")


@pytest.mark.parametrize(
    "options, gpu, tolerance",
    [
        ({"length": 100, "outputs": 70, "bias": True, "residual": True, "activation": "gelu"}, OPENCL, 2e-6),
        ({"length": 96, "outputs": 48, "w": "f16", "tile": 16, "activation": "sigmoid"}, OPENCL, 2e-6),
        ({"length": 65, "outputs": 64, "w": "bf16", "depth": 2, "activation": "tanh"}, OPENCL, 2e-6),
        ({"length": 96, "outputs": 80, "w": "bf16", "depth": 2, "tile": 16, "bias": True}, EMULATED, 2e-6),
        (
            {"length": 72, "outputs": 64, "x": "bf16", "w": "bf16", "depth": 2, "residual": True},
            EMULATED,
            1e-2,
        ),
        (
            {"length": 64, "outputs": 40, "x": "f16", "w": "f16", "tile": 16, "activation": "silu"},
            EMULATED,
            1e-3,
        ),
    ],
    ids=lambda o: "-".join(f"{v}" for v in o.values()) if isinstance(o, dict) else "",
)
def test_every_number_of_rows(options, gpu, tolerance):
    node, operands = dense_case(M, **options)
    compiled = Compiled(build(node, gpu), gpu)
    for rows in (1, 3, 70, 0):
        compare(compiled, node, operands(rows), tolerance)
