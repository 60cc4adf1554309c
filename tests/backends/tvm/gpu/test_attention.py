"""``kernel.attention`` and ``kernel.attention_step`` on OpenCL."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import planish.backends.tvm.kernels.attention  # noqa: F401
from planish.ir.kernel import kernel
from planish.ir.node import input_leaf
from planish.ir.types import TensorType, dim, dtype

sys.path.insert(0, str(Path(__file__).parent))

from gpu_compare import compare
from opencl import OPENCL, Compiled

from planish.backends.tvm.gpu.attention import build

T, S, P = dim("T", 0, 512), dim("S", 1, 512), dim("P", 0, 512)


def leaf(name, shape, kind="f32"):
    return input_leaf(name, TensorType(dtype(kind), tuple(shape)))


def heads(b, h, t, d, order):
    return (b, h, t, d) if order == "bhtd" else (b, t, h, d)


def random(shape, kind, g):
    if kind == "bool":
        return torch.rand(shape, generator=g) < 0.7
    if kind == "fill":  # rows of only the smallest number stay uniform, rows of minus infinity become zeros
        return torch.where(torch.rand(shape, generator=g) < 0.5, torch.finfo(torch.float32).min, 0.0)
    return torch.randn(shape, generator=g)


WHOLE = [
    {"causal": True, "scale": 0.3, "orders": ("bthd", "bhtd", "bthd", "bthd")},
    {"window": 5, "causal": True, "softcap": 8.0, "orders": ("bhtd", "bthd", "bhtd", "bhtd")},
    {"mask": ("bool", lambda t, s: (2, 1, t, s))},
    {"mask": ("f32", lambda t, s: (1, 6, 1, s)), "wide": 40},
    {"mask": ("fill", lambda t, s: (2, 1, t, s))},
]


@pytest.mark.parametrize("options", WHOLE, ids=range(len(WHOLE)))
def test_whole_sequences(options):
    g = torch.Generator().manual_seed(1)
    orders = options.get("orders", ("bhtd",) * 4)
    wide = options.get("wide", 24)

    def shapes(t, s):
        made = [heads(2, 6, t, 24, orders[0]), heads(2, 2, s, 24, orders[1]), heads(2, 2, s, wide, orders[2])]
        return made + ([options["mask"][1](t, s)] if "mask" in options else [])

    kinds = ["f32"] * 3 + ([options["mask"][0]] if "mask" in options else [])
    leaves = [
        leaf(f"a{i}", shape, kind.replace("fill", "f32"))
        for i, (shape, kind) in enumerate(zip(shapes(T, S), kinds))
    ]
    leaves += [None] * (4 - len(leaves))
    node = kernel.attention(
        *leaves, options.get("causal", False), options.get("window"), options.get("scale"), options.get("softcap"),
        *orders,
    )  # fmt: skip
    compiled = Compiled(build(node, OPENCL))
    for t, s in ((1, 1), (7, 7), (40, 70), (0, 3)):
        compare(compiled, node, [random(x, k, g) for x, k in zip(shapes(t, s), kinds)], 3e-6)


@pytest.mark.parametrize("queries, mask, key_heads", [(1, None, 3), (3, "bool", 1), (8, "f32", 6)])
def test_steps_over_a_cache(queries, mask, key_heads):
    g = torch.Generator().manual_seed(2)
    orders = ("bthd", "bhtd", "bthd", "bthd")

    def shapes(past):
        made = [
            heads(1, 6, queries, 16, orders[0]), (1, key_heads, past, 16), (1, key_heads, past, 16),
            heads(1, key_heads, queries, 16, orders[1]), heads(1, key_heads, queries, 16, orders[2]),
        ]  # fmt: skip
        return made + ([(1, 1, queries, past + queries)] if mask else [])

    kinds = ["f32"] * 5 + ([mask] if mask else [])
    leaves = [leaf(f"a{i}", shape, kind) for i, (shape, kind) in enumerate(zip(shapes(P), kinds))]
    leaves += [None] * (6 - len(leaves))
    node = kernel.attention_step(*leaves, None, None, *orders)
    compiled = Compiled(build(node, OPENCL))
    for past in (0, 1, 100, 300):
        compare(compiled, node, [random(x, k, g) for x, k in zip(shapes(past), kinds)], 3e-6)
    assert len(compiled.launches) == 2
