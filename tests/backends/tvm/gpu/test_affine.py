"""``kernel.linear_affine`` on OpenCL."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from affine_cases import M, affine_case
from gpu_compare import compare
from opencl import OPENCL, Compiled

from planish.backends.tvm.gpu.affine import build

CASES = [
    {"length": 192, "outputs": 40, "bits": 4, "group": 64, "bias": True, "activation": "silu"},
    {
        "length": 100,
        "outputs": 33,
        "bits": 2,
        "group": 32,
        "zero": "number",
        "scale": "f32",
        "norm": True,
        "residual": True,
    },
    {
        "length": 256,
        "outputs": 96,
        "bits": 3,
        "group": 64,
        "gated": True,
        "activation": "silu",
        "zero": "packed",
        "norm": True,
    },
    {
        "length": 160,
        "outputs": 48,
        "bits": 8,
        "group": 160,
        "zero": "float",
        "activation": "gelu_tanh",
        "rank": 5,
    },
    {
        "length": 96,
        "outputs": 32,
        "bits": 6,
        "group": 32,
        "activation": "gelu",
        "bias": True,
        "residual": True,
    },
    {
        "length": 352,
        "outputs": 64,
        "bits": 5,
        "group": 128,
        "activation": "relu",
        "gated": True,
        "bias": True,
    },
    {"length": 192, "outputs": 48, "bits": 4, "group": 64, "activation_bits": 8, "zero": "number"},
    {"length": 320, "outputs": 24, "bits": 8, "group": 320, "activation_bits": 8, "residual": True},
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o['bits']}bits-{o['length']}")
def test_every_number_of_rows(options):
    node, operands = affine_case(M, **options)
    compiled = Compiled(build(node, OPENCL))
    for rows in (1, 3, 70, 0):
        compare(compiled, node, operands(rows), 3e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_whole_numbers_by_tensor_cores(gated):
    gpu = replace(OPENCL, matrix="emulate")
    node, operands = affine_case(
        M, length=192, outputs=64, group=64, activation_bits=8, gated=gated, bias=True, activation="relu"
    )
    compiled = Compiled(build(node, gpu), gpu)
    for rows in (20, 140):
        compare(compiled, node, operands(rows), 3e-6)
