"""Linear layers on affine codes for many rows of x: the blocked product against the meaning of the kernel."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from planish.ir.kernel import kernel
from tests.backends.tvm.kernel_check import machine_code
from tests.backends.tvm.test_affine import Case

tvm = pytest.importorskip("tvm")

from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.script.ir_builder import tirx as T  # noqa: E402

from planish.backends.tvm.cpu.affine_gemm import emit_gemm  # noqa: E402
from planish.backends.tvm.cpu.affine_spec import affine_spec  # noqa: E402
from planish.backends.tvm.cpu.affine_stages import declare_operands  # noqa: E402
from planish.backends.tvm.isa import Isa, supported  # noqa: E402

BYTES = Case(length=160, outputs=96, group=64, activation_bits=8)
FLOATS = replace(BYTES, activation_bits=32)
ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 29, 100)


def compiled(case: Case, isa: Isa, rows: str = "M") -> Any:
    """The blocked product alone, for any number of rows."""
    node = case.node(rows)
    spec = affine_spec(node)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        emit_gemm(isa, spec, declare_operands(node, spec))
    return machine_code(builder.get(), isa)


def check(case: Case, function: Any, rows: int) -> None:
    """The result is that of the meaning; nothing is written behind the last row."""
    values = case.values(rows)
    tensors = [tvm.runtime.tensor(v.numpy()) for v in values.values() if isinstance(v, torch.Tensor)]
    width = case.outputs // 2 if case.gated else case.outputs
    out = tvm.runtime.tensor(np.full((rows, width), np.nan, "float32"))
    function(*tensors, out)
    if not rows:
        return
    exact = kernel.linear_affine(**values, **case.options()).double()
    gap = float((torch.from_numpy(out.numpy()).double() - exact).abs().max() / exact.abs().max().clamp(1e-6))
    # after a norm, an activation between two codes may be rounded to the other one
    assert gap <= (1e-5 if not case.norm or case.activation_bits == 32 else 4e-3), (case, rows, gap)


CASES = (
    BYTES,
    FLOATS,
    replace(BYTES, outputs=1040, bias=True, residual=True, activation="relu", bits=5),
    replace(BYTES, outputs=77, group=1000, bits=7, rank=3, zero="number"),
    replace(BYTES, outputs=128, length=100, gated=True, norm=True, activation="silu", bits=6),
    replace(BYTES, outputs=15, length=70, group=32, zero="float", bits=8),
    replace(FLOATS, outputs=49, length=70, group=32, norm=True, bias=True, bits=3),
    replace(FLOATS, outputs=96, gated=True, residual=True, rank=2, zero="float", activation="gelu", bits=2),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_best_instruction_set(case: Case) -> None:
    function = compiled(case, supported()[0])["main"]
    for rows in ROWS:
        check(case, function, rows)


@pytest.mark.parametrize("isa", supported()[1:], ids=lambda isa: str(isa.name))
@pytest.mark.parametrize("case", (CASES[2], CASES[4], CASES[6]), ids=str)
def test_other_instruction_sets(case: Case, isa: Isa) -> None:
    function = compiled(case, isa)["main"]
    for rows in (1, 5, 13):
        check(case, function, rows)


@pytest.mark.parametrize("rows", (1, 9, 200))
def test_known_rows(rows: int) -> None:
    case = replace(BYTES, outputs=48, bias=True)
    check(case, compiled(case, supported()[0], str(rows))["main"], rows)


@pytest.mark.parametrize("seed", range(6))
def test_any_sizes(seed: int) -> None:
    draw = random.Random(seed)
    case = Case(
        length=draw.randint(1, 300), outputs=draw.randint(1, 90), bits=draw.randint(2, 8),
        group=draw.choice((32, 64, 96, 512)), activation_bits=draw.choice((8, 32)),
    )  # fmt: skip
    function = compiled(case, supported()[0])["main"]
    for rows in draw.sample(range(1, 60), 4):
        check(case, function, rows)


def test_code_is_small() -> None:
    case = Case(
        length=576, outputs=3072, group=64, activation_bits=8, norm=True, gated=True, activation="silu"
    )
    for isa in supported():
        lines = compiled(case, isa).mod.inspect_source("asm").splitlines()
        assert sum(line.startswith("\t") and not line.startswith("\t.") for line in lines) < 8000, isa.name
        if isa.lanes < 16:
            assert not any("zmm" in line for line in lines), isa.name
