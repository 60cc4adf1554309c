"""Every variant of every kernel that has some computes what the kernel means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

tvm = pytest.importorskip("tvm")

from planish.backends.tvm.cpu.registry import MODULES, variants  # noqa: E402
from planish.backends.tvm.cpu.variant import DEFAULT, Variant, thresholds, variant  # noqa: E402
from planish.backends.tvm.isa import ISAS, Isa, supported  # noqa: E402
from planish.backends.tvm.tune_measure import compiled  # noqa: E402
from planish.ir.node import Node  # noqa: E402
from planish.ir.types import Symbol  # noqa: E402
from tests.backends.tvm import test_affine, test_attention, test_conv, test_dense, test_sparse  # noqa: E402
from tests.backends.tvm.kernel_check import gap, values_for  # noqa: E402

AFFINE = test_affine.Case(
    length=160, outputs=80, group=64, bits=5, activation_bits=8, bias=True, activation="silu"
)
LINEAR: dict[str, Any] = {
    "dense": test_dense.Case(37, 72, residual=True, activation="gelu"),
    "dense-wide": test_dense.Case(40, 96),
    "sparse": test_sparse.Case(2, 4, 1028, 32, residual=True, activation="gelu"),
}
NODES: dict[str, Callable[[], Node]] = {
    **{name: case.node for name, case in LINEAR.items()},
    "affine": AFFINE.node,
    "affine-exact": replace(AFFINE, activation_bits=32).node,
    "affine-few": lambda: AFFINE.node("2"),
    "affine-several": lambda: AFFINE.node("7"),
    "attention": lambda: test_attention._whole(**test_attention.WHOLE["causal"]),
    "attention-mask": lambda: test_attention._whole(**test_attention.WHOLE["window"]),
    "step": lambda: test_attention._step(**test_attention.STEP["few"]),
    "conv-first": lambda: test_conv.conv_node("first", False, (1, 15, 29)),
    "conv-square": lambda: test_conv.conv_node("square", False, (2, 7, 7)),
}
ELSEWHERE = ("dense", "affine-exact", "attention-mask", "conv-square")
"""Kernels whose register blocks are tried on other instruction sets than the best, too."""

BLOCKS = ("rows", "keys", "vectors", "pixels")
"""Numbers that are sizes of register blocks."""


def _cases() -> list[Any]:
    best, *others = supported()
    chosen = [(name, best, each) for name, make in NODES.items() for each in variants(make(), best)[1:]]
    for isa in (isa for isa in others if not isa.vnni):
        for name in ELSEWHERE:
            blocks = (each for each in variants(NODES[name](), isa) if {*dict(each.numbers)} & {*BLOCKS})
            chosen += [(name, isa, each) for each in blocks]
    return [pytest.param(*case, id=f"{case[0]}-{case[1].name}-{case[2]}") for case in chosen]


def _linear(case: Any, function: Any) -> None:
    """A dense or sparse linear layer."""
    for count in (0, 1, 2, 3, 5, 8, 13, 27, 61, 300):
        sparse = isinstance(case, test_sparse.Case)
        given = case.operands(count) if sparse else test_dense.values(case, count, count)
        want = (test_sparse.meaning if sparse else test_dense.meaning)(case, given)
        out = torch.full_like(want, float("nan"))
        function(*(tvm.runtime.from_dlpack(v) for v in (*given.values(), out)))
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


def _attention(node: Node, function: Any) -> None:
    sizes = [(1, 1, 1), (2, 5, 7), (1, 33, 70), (1, 70, 131), (0, 3, 4), (1, 0, 4), (1, 1, 2100)]
    for seed, numbers in enumerate(sizes):
        binding = dict(zip((test_attention.B, test_attention.Q, test_attention.K), numbers, strict=True))
        assert gap(node, function, values_for(node, binding, seed)) < 1e-5, numbers


@pytest.mark.parametrize(("name", "isa", "each"), _cases())
def test_a_variant_is_its_meaning(name: str, isa: Isa, each: Variant) -> None:
    node = NODES[name]()
    function = compiled(node, isa, each)
    if name in LINEAR:
        _linear(LINEAR[name], function)
    elif node.op.startswith("kernel.attention"):
        _attention(node, function)
    elif node.op == "kernel.conv":
        operands = test_conv.conv_operands(name.partition("-")[2], False, node.args[0].shape[:3])
        test_conv.compare(node, function, operands, 1e-5)
    else:
        case = replace(AFFINE, activation_bits=32 if name == "affine-exact" else 8)
        rows = node.args[0].shape[0]
        for count in (rows,) if isinstance(rows, int) else (0, 1, 2, 3, 5, 7, 11, 12, 13, 25, 100):
            test_affine.check(case, function, count)


def test_the_first_variant_is_the_default() -> None:
    for make in NODES.values():
        for isa in ISAS.values():
            first, *rest = variants(make(), isa)
            assert first == DEFAULT and rest
            assert len({v.name for v in (first, *rest)}) == len(rest) + 1
    assert {make().op for make in NODES.values()} <= {f"kernel.{name}" for name in MODULES}


def test_names_and_thresholds() -> None:
    assert str(variant(rows=8, chunk=4)) == "rows=8,chunk=4" and str(DEFAULT) == "default"
    assert variant(rows=8).get("rows", 12) == 8 and DEFAULT.get("rows", 12) == 12
    assert [v.name for v in thresholds(Symbol("T", 1, 9), 100)] == ["parallel=25", "parallel=400"]
    assert thresholds(1, 100) == thresholds(10_000, 100) == ()
    assert thresholds(90, 100) == (variant(threads=1),) and variant(threads=1).least(100) == 0
    assert thresholds(110, 100) == (variant(threads=0),) and variant(threads=0).least(100) > 1 << 40
    assert variant(parallel=5).least(100) == 5 and DEFAULT.least(100) == 100
