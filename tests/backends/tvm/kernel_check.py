"""Compiles one kernel node for one instruction set, and compares what it computes with its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from planish.ir.kernel import KERNELS
from planish.ir.namespace import make
from planish.ir.node import Node, input_leaf
from planish.ir.types import Size, Symbol, TensorType, dtype, evaluate

tvm = pytest.importorskip("tvm")

from planish.backends.tvm.cpu.registry import builder  # noqa: E402
from planish.backends.tvm.isa import Isa, supported  # noqa: E402
from planish.backends.tvm.stages import LOOPS, tir_pipeline  # noqa: E402

ISAS = tuple(isa for isa in supported() if isa.name != "avx512vnni")
"""The instruction sets that differ for kernels of f32."""


def symbol(name: str) -> Symbol:
    """A size that may be anything from 0."""
    return Symbol(name, 0, 2**31 - 1)


def leaf(name: str, kind: str, *shape: Size) -> Node:
    """An operand."""
    return input_leaf(name, TensorType(dtype(kind), shape))


def kernel_node(name: str, *args: Any) -> Node:
    """The node of a kernel."""
    return make(f"kernel.{name}", *args)


def machine_code(function: Any, isa: Isa) -> Any:
    """A library of the one function ``main``, lowered as kernels of a program are."""
    function = function.with_attr("global_symbol", "main").with_attr(LOOPS, 1)
    target = tvm.target.Target(isa.target)
    return tvm.compile(tvm.IRModule({"main": function}), target, tir_pipeline=tir_pipeline())


def compiled(node: Node, isa: Isa) -> Any:
    """The kernel as a function of TVM tensors."""
    build = builder(node.op.removeprefix("kernel."))
    assert build is not None
    return machine_code(build(node, isa), isa)["main"]


def values_for(node: Node, binding: Mapping[Symbol, int], seed: int = 0) -> list[torch.Tensor]:
    """Random operands: normal floats, bool masks of which 0.6 are true."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for operand in node.operands:
        shape = [evaluate(s, binding) for s in operand.shape]
        if operand.dtype.name == "bool":
            made.append(torch.rand(shape, generator=generator) > 0.4)
        else:
            made.append(torch.randn(shape, generator=generator))
    return made


def meant(node: Node, values: list[torch.Tensor]) -> torch.Tensor:
    """What the kernel means, floats in f64."""
    rest = iter(values)
    given = [next(rest) if isinstance(a, Node) else a for a in node.args]
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in given]
    made: torch.Tensor = KERNELS[node.op.removeprefix("kernel.")].meaning(*wide)
    return made


def computed(node: Node, function: Any, values: list[torch.Tensor], shape: Any) -> torch.Tensor:
    """What the compiled kernel computes."""
    out = tvm.runtime.tensor(np.full(tuple(shape), np.nan, "float32"))
    function(*(tvm.runtime.tensor(v.contiguous().numpy()) for v in values), out)
    return torch.from_numpy(out.numpy())


def gap(node: Node, function: Any, values: list[torch.Tensor]) -> float:
    """The largest difference to the meaning, relative to the largest value; NaN in one alone is infinite."""
    want = meant(node, values)
    got = computed(node, function, values, want.shape).double()
    if not want.numel():
        return 0.0
    difference = (got - want).abs()
    difference[got.isnan() & want.isnan()] = 0.0
    scale = float(want.nan_to_num(0.0).abs().max())
    return float(difference.nan_to_num(float("inf")).max()) / max(scale, 1e-30)
