"""Norms, softmax, rotary positions and rows of coded tables on OpenCL."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import planish.backends.tvm.kernels.embedding
import planish.backends.tvm.kernels.norm
import planish.backends.tvm.kernels.rope  # noqa: F401
from planish.ir.kernel import kernel
from planish.ir.node import input_leaf
from planish.ir.types import TensorType, dim, dtype

sys.path.insert(0, str(Path(__file__).parent))

from affine_cases import affine_case, type_of
from gpu_compare import compare
from opencl import OPENCL, Compiled

from planish.backends.tvm.gpu import embedding
from planish.backends.tvm.gpu.norm import build

M, N = dim("M", 0, 512), dim("N", 1, 4096)


def leaf(name, *shape, kind="f32"):
    return input_leaf(name, TensorType(dtype(kind), shape))


@pytest.mark.parametrize("width", [70, 300])
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_norms(kind, width):
    g = torch.Generator().manual_seed(width)
    x, w, r = leaf("x", 2, M, width), leaf("w", width), leaf("r", 2, M, width)
    extra = (leaf("b", width),) if kind == "layer_norm" else ()
    node = getattr(kernel, kind)(x, w, *extra, r, 1e-5)
    compiled = Compiled(build(node, OPENCL))
    for rows in (1, 5, 0):
        shapes = [(2, rows, width), (width,), *[(width,) for _ in extra], (2, rows, width)]
        compare(compiled, node, [torch.randn(s, generator=g) for s in shapes], 3e-6)


def test_softmax_of_any_width():
    node = kernel.softmax(leaf("x", M, N))
    compiled = Compiled(build(node, OPENCL))
    for shape in ((1, 1), (3, 700), (5, 33)):
        compare(compiled, node, [torch.randn(shape) * 5], 3e-6)


@pytest.mark.parametrize("order", ["bhtd", "bthd"])
def test_rotary_positions(order):
    def shape(t):
        return (2, 3, t, 20) if order == "bhtd" else (2, t, 3, 20)

    node = kernel.rope(leaf("x", *shape(M)), leaf("c", 2, 1, M, 8), leaf("s", 2, 1, M, 8), order)
    compiled = Compiled(embedding.build(node, OPENCL))
    for t in (1, 9, 0):
        compare(
            compiled, node, [torch.randn(shape(t)), torch.randn(2, 1, t, 8), torch.randn(2, 1, t, 8)], 1e-6
        )


@pytest.mark.parametrize("bits, group, zero", [(4, 64, "packed"), (3, 32, "float"), (8, 100, "packed")])
def test_rows_of_a_coded_table(bits, group, zero):
    _, operands = affine_case(1, 100, 40, bits=bits, group=group, zero=zero)
    _, *table = operands(1)
    leaves = [input_leaf(f"t{i}", type_of(t)) for i, t in enumerate(table)]
    node = kernel.embedding_affine(leaf("ids", M, 2, kind="i64"), *leaves, bits, group, 40, 100)
    compiled = Compiled(embedding.build(node, OPENCL))
    for count in (1, 5, 0):
        compare(compiled, node, [torch.randint(0, 40, (count, 2)), *table], 1e-6)
