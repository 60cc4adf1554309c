"""The way back from kernels: the same results, in operations of the dialect, with codes still packed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from planish.backends.tvm.target import register
from planish.frontend.capture.source import capture
from planish.frontend.config import read_passes
from planish.ir.node import Program
from planish.ir.rewrite import Log
from planish.ir.run import run
from planish.ir.verify import verify
from planish.ir.weights import Weights
from planish.passes.pipeline import run_pipeline
from planish.passes.select import LAYOUTS, Select, filled
from planish.passes.unselect import unselect

WORDS, WIDTH = 37, 72


class Words(nn.Module):
    """A table, layers that share an input, a norm, and a head of odd size."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(WORDS, WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, 96, bias=False), nn.Linear(WIDTH, 96, bias=False)
        self.down, self.norm = nn.Linear(96, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.table(x)
        h = h + self.down(torch.nn.functional.silu(self.gate(h)) * self.up(h))
        return self.head(self.norm(h))


def selected(passes: str, tied: bool = False) -> tuple[Program, Program, Weights]:
    register()
    words = torch.arange(10).reshape(2, 5)
    captured = capture(Words(tied).eval(), example_inputs=(words,), dynamic_shapes={"x": {0: "B", 1: "T"}})
    weights = captured.weights
    before = run_pipeline(captured.program, weights, read_passes(passes)).program
    return before, Select("cpu").apply(before, weights, Log()), weights


def size(program: Program) -> int:
    return sum(int(leaf.tensor.nbytes) for leaf in program.constants())


@pytest.mark.parametrize(
    ("passes", "tied"),
    [
        ("auto", False), ("auto", True), ("auto,int4{group=32}", False), ("auto,int8{group=32}", True),
        ("auto,int6{group=32}", True), ("auto,int3{group=32}", False), ("auto,int5{group=32}", False),
        ("auto,int4{group=8}", False),
    ],
)  # fmt: skip
def test_a_program_without_kernels_computes_the_same(passes: str, tied: bool) -> None:
    before, program, weights = selected(passes, tied)
    assert any(n.op.startswith("kernel.") for n in program.nodes)
    plain = unselect(program, weights)
    verify(plain, weights)
    ops = {n.op for n in plain.nodes}
    assert not any(op.startswith("kernel.") for op in ops)
    assert not ops & LAYOUTS
    assert not ops & {"planish.untile_rows", "planish.unpanel"}
    assert size(plain) <= size(program)
    assert size(plain) <= size(before) * 1.02 + 256
    x = torch.arange(12).reshape(3, 4)
    (wanted,), (found,) = run(program, weights, x), run(plain, weights, x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("passes", ["auto", "auto,int4{group=8}", "auto,int4{group=32}"])
def test_layouts_are_stored_once_and_packed(passes: str, tied: bool) -> None:
    before, program, weights = selected(passes, tied)
    assert size(program) <= sum(filled(leaf.tensor) for leaf in before.constants())
    x = torch.arange(12).reshape(3, 4)
    (wanted,), (found,) = run(before, weights, x), run(program, weights, x)
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error < (1e-5 if passes == "auto" else 0.05)
