"""Schedules for CPUs of functions that are made of blocks, and their lowering to plain loops.

A sum runs along its last result axis innermost where operands lie so in memory, for LLVM to make vectors of; what is
set before a sum is set apart, so that sums of nothing are right. Large loops run in parallel.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx

from planish.backends.tvm.cpu.loops import PARALLEL_WORK
from planish.backends.tvm.stages import PLAIN

TYPICAL = 64
"""What a size that is not known counts for when work is estimated."""

SPATIAL, REDUCE = 0, 2


def scheduled(module: Any, target: Any) -> Any:
    """The module with every function of blocks scheduled and lowered to plain loops."""
    changed: dict[Any, Any] = {}
    for name, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not _has(function, "tirx.is_scheduled"):
            changed[name] = arranged(function).with_attr("tirx.is_scheduled", 1).with_attr(PLAIN, 1)
    if not changed:
        return module
    plain = _plain()(tvm.IRModule(changed))
    return tvm.IRModule({**module.functions, **plain.functions}, attrs=module.attrs)


def _plain() -> Any:
    """The passes that turn blocks into loops."""
    passes = s_tir.transform
    return tvm.transform.Sequential(
        [
            passes.LowerInitBlock(),
            passes.PlanAndUpdateBufferAllocationLocation(),
            passes.ConvertBlocksToOpaque(),
            passes.CompactBufferAllocation(),
            passes.LowerMatchBuffer(),
            passes.StmtSimplify(),
            passes.LowerOpaqueBlock(),
        ]
    )


def _has(function: Any, attribute: str) -> bool:
    return function.attrs is not None and attribute in function.attrs


def arranged(function: Any) -> Any:
    """The function with its loops in a good order; as it is where a step is refused."""
    try:
        schedule = s_tir.Schedule(function)
        for block in schedule.get_child_blocks(schedule.get_sblock("root")):
            _arrange(schedule, block)
        return schedule.mod["main"].with_attrs(dict(function.attrs.items()))
    except (tvm.error.InternalError, s_tir.schedule.ScheduleError):
        return function


def _arrange(schedule: Any, block: Any) -> None:
    loops = schedule.get_loops(block)
    axes = schedule.get(block).iter_vars
    if len(loops) != len(axes) or not loops:
        return
    spatial = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == SPATIAL]
    reduce = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == REDUCE]
    work = 1
    for loop in loops:
        extent = schedule.get(loop).extent
        work *= int(extent) if isinstance(extent, tirx.IntImm) else TYPICAL
    across = bool(reduce) and len(spatial) > 0 and _along_last(schedule.get(block))
    outer = spatial[:-1] if across else spatial
    if across:
        schedule.reorder(*outer, *reduce, spatial[-1])
    if work >= PARALLEL_WORK:
        lead = outer if reduce else spatial[:-1] or spatial
        if lead:
            schedule.parallel(schedule.fuse(*lead) if len(lead) > 1 else lead[0])
    if reduce:
        schedule.decompose_reduction(block, reduce[0])


def _along_last(block: Any) -> bool:
    """True if an operand's neighbours in memory belong to neighbours of the result's last axis."""
    last = [axis.var for axis in block.iter_vars if axis.iter_type == SPATIAL][-1]
    written = block.writes[0].buffer if hasattr(block.writes[0], "buffer") else block.writes[0].source
    for region in block.reads:
        buffer = region.buffer if hasattr(region, "buffer") else region.source
        if buffer.same_as(written) or not region.region:
            continue
        if _uses(region.region[-1].min, last):
            return True
    return False


def _uses(expression: Any, variable: Any) -> bool:
    return any(variable.same_as(found) for found in tirx.analysis.undefined_vars(expression, []))
