"""Every rule that selects kernels for GPUs makes only kernels that are built for GPUs."""

from __future__ import annotations

import pytest

from planish.backends.tvm.gpu.device import OPENCL, cuda
from planish.backends.tvm.gpu.registry import MODULES, builder
from planish.backends.tvm.gpu.schedule import has_threads
from planish.backends.tvm.stand_in import stand_in
from planish.backends.tvm.target import FUSE, LATE, SELECT, gpu_kernels, kernels
from planish.ir.node import Node, topological
from planish.ir.rule import Rule

GPUS = gpu_kernels()
ALL = (*GPUS.rules, *GPUS.fusions, *GPUS.late)


def made_by(each: Rule) -> list[Node]:
    """The kernels in what a rule makes of its example."""
    _, right = each.example_sides()
    assert right is not None
    return [n for n in topological([right]) if n.op.startswith("kernel.")]


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_kernels_are_built(each: Rule) -> None:
    found = made_by(each)
    assert found
    for node in found:
        build = builder(node.op.removeprefix("kernel."))
        assert build is not None, f"{each.name} makes {node.op}, which nothing builds for GPUs"
        for gpu in (OPENCL, cuda("sm_75"), cuda("sm_90")):
            assert has_threads(build(stand_in(node), gpu))


def test_every_kernel_of_gpus_is_selected() -> None:
    assert {n.op.removeprefix("kernel.") for each in ALL for n in made_by(each)} == set(MODULES)


def test_rules_that_gpus_lack_make_kernels_that_they_lack() -> None:
    """Nothing is left out that could be built."""
    cpu = kernels()
    assert [r.name for r in (*cpu.rules, *cpu.fusions, *cpu.late)] == [*SELECT, *FUSE, *LATE]
    for each in set(cpu.rules) | set(cpu.fusions) | set(cpu.late):
        if each not in ALL:
            assert all(builder(n.op.removeprefix("kernel.")) is None for n in made_by(each)), each.name
    assert [j.name for j in GPUS.joiners] == [j.name for j in cpu.joiners]
