"""``kernel.linear_dense`` on OpenCL, with plain arithmetic and with tensor cores emulated."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import planish.backends.tvm.kernels.dense
from planish.ir.kernel import kernel
from planish.ir.namespace import planish
from planish.ir.node import input_leaf
from planish.ir.types import TensorType, dim, dtype

sys.path.insert(0, str(Path(__file__).parent))

from affine_cases import type_of
from gpu_compare import TORCH, compare
from opencl import OPENCL, Compiled

from planish.backends.tvm.gpu.dense import build

M = dim("M", 0, 4096)
EMULATED = replace(OPENCL, matrix="emulate")


def dense_case(
    rows, length, outputs, x="f32", w="f32", tile=32, depth=1, bias=False, residual=False, activation="none"
):
    g = torch.Generator().manual_seed(length)
    weight = (torch.randn(outputs, length, generator=g) / length**0.5).to(TORCH[w])
    tiles = planish.tile_rows(weight, tile, depth)
    bias = torch.randn(outputs, generator=g).to(TORCH[x]) if bias else None
    kind = dtype(x)
    node = kernel.linear_dense(
        input_leaf("x", TensorType(kind, (rows, length))), input_leaf("tiles", type_of(tiles)),
        None if bias is None else input_leaf("bias", type_of(bias)),
        input_leaf("residual", TensorType(kind, (rows, outputs))) if residual else None,
        outputs, tile, depth, activation,
    )  # fmt: skip

    def operands(count):
        made = [torch.randn(count, length, generator=g).to(TORCH[x]), tiles]
        made += [] if bias is None else [bias]
        return made + ([torch.randn(count, outputs, generator=g).to(TORCH[x])] if residual else [])

    return node, operands


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
