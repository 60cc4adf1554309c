"""Linear layers on whole weights, with their operands."""

from __future__ import annotations

import torch
from affine_cases import type_of
from gpu_compare import TORCH

import planish.backends.tvm.kernels.dense
from planish.ir.kernel import kernel
from planish.ir.namespace import planish
from planish.ir.node import input_leaf
from planish.ir.types import TensorType, dtype


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
