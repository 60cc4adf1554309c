"""Models in f16 and bf16 use the kernels that there are for f32."""

from __future__ import annotations

import pytest
import torch

from planish.ir.parser import parse
from planish.ir.rewrite import Log
from planish.ir.weights import Weights
from planish.passes.widen import Widen
from tests import parity
from tests.models import CASES

WIDE = """
def main(x: f32[3, 32], c: u8[4, 32], s: f16[4, 1], q: f32[1, 2, 3, 8]):
    w = planish.dequant(c, s, 8, 32)
    y = aten.linear(x, w)
    a = planish.attention(q, q, q)
    return y, a
"""


def test_programs_in_f32_stay() -> None:
    program = parse(WIDE)
    assert Widen().apply(program, Weights(), Log()) == program


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_coded_weights_meet_their_kernels(kind: torch.dtype) -> None:
    pytest.importorskip("tvm")
    from planish.frontend import api

    case, passes = CASES["llama_padded"], "auto,int4{group=32}"
    captured, sizes = parity.captured(case.name, kind), case.check_sizes[0]
    inputs = parity.inputs_of(case, sizes, kind)
    found = {}
    for target in ("cpu{activation_bits=32}", "eager"):
        with api.compile_captured(captured, api.make_options(target=target, passes=passes)) as compiled:
            (found[target],) = (
                parity.as_tensor(r).double()
                for r in compiled.run(
                    {leaf.name: inputs[leaf.name] for leaf in captured.program.inputs}
                ).values()
            )
            if target != "eager":
                (program,) = compiled._made.lowered.module.programs
    counts = {op: program.count(op) for op in ("kernel.linear_affine", "kernel.attention", "kernel.rope")}
    assert all(counts.values()), counts
    assert program.count("planish.dequant") == program.count("planish.attention") == 0
    got, want = found.values()
    step = 2**-10 if kind is torch.float16 else 2**-7
    assert (got - want).abs().max() <= 8 * step * want.abs().max()
