"""Schedules for GPUs of the functions that no kernel builder made."""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.tirx.compilation_pipeline import get_tir_pipeline

from planish.backends.tvm.gpu.device import Gpu
from planish.errors import BackendError

SCHEDULED = "tirx.is_scheduled"
"""Attribute of functions that are not scheduled again."""
SMALL = 4096
"""Elements up to which a buffer belongs to a thread."""


def schedule_gpu(module: Any, gpu: Gpu) -> Any:
    """The module with thread bindings in every function of TIR.

    Functions of kernel builders stay; those in loops without any binding run in one thread (correct, slow); all others
    are scheduled by the rules of dlight: products, products with a vector, reductions, and a fallback.
    """
    module = module.clone()
    for name, function in list(module.functions.items()):
        if isinstance(function, tirx.PrimFunc) and not has_threads(function):
            module.update_func(name, _bound(function, gpu))
    return module


def _bound(function: Any, gpu: Gpu) -> Any:
    if _is_scheduled(function):
        return _in_one_thread(function)
    if str(function.attrs.get("planish.form")) == "elements":
        made = element_by_element(function, min(gpu.threads, 256))
        if made is not None:
            return made
    rules = (
        dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    )  # fmt: skip
    target = tvm.target.Target(gpu.target)
    for rule in rules:
        try:
            with target:
                found = rule.apply(function, target, False)
        except Exception:  # rules raise errors of any kind where they meet what they do not know
            continue
        found = found[0] if isinstance(found, list) else found
        if found is not None and _is_lowered(found.mod, target):
            return found.mod["main"].with_attr(SCHEDULED, 1)
    made = element_by_element(function, min(gpu.threads, 256))
    if made is not None:
        return made
    raise BackendError("PL764", f"no schedule for GPUs fits the function\n{function.script()}")


def _is_lowered(module: Any, target: Any) -> bool:
    """True if what a rule made can be lowered: rules do not check their results."""
    lower, _, _ = get_tir_pipeline("s_tir")
    named = tvm.IRModule({"main": module["main"].with_attr("global_symbol", "main")})
    try:
        lower(tirx.transform.BindTarget(target)(named))
    except Exception:  # as above
        return False
    return True


def localized(body: Any) -> Any:
    """A statement with the small buffers that it allocates kept by the thread."""
    found: dict[Any, Any] = {}

    def visit(statement: Any) -> None:
        buffer = statement.buffer
        sizes = list(buffer.shape)
        is_small = (
            all(isinstance(n, tirx.IntImm) for n in sizes) and math.prod(int(n) for n in sizes) <= SMALL
        )
        if is_small and buffer.scope() == "global":
            found[buffer] = tirx.decl_buffer(sizes, buffer.dtype, buffer.name, scope="local")

    tvm_ffi.structural_walk(body, (tirx.AllocBuffer, visit))
    if not found:
        return body
    return tvm_ffi.structural_map(body, (tirx.Var, lambda v: found.get(v, v)))


def _is_scheduled(function: Any) -> bool:
    return function.attrs is not None and SCHEDULED in function.attrs


def has_threads(function: Any) -> bool:
    """True if a function binds threads somewhere."""
    pending = [function.body]
    while pending:
        node = pending.pop()
        if isinstance(node, tirx.AttrStmt) and node.attr_key == "thread_extent":
            return True
        if isinstance(node, tirx.For) and node.kind == tirx.ForKind.THREAD_BINDING:
            return True
        if isinstance(node, tirx.SeqStmt):
            pending.extend(node.seq)
        for name in ("body", "then_case", "else_case", "block"):
            inner = getattr(node, name, None)
            if inner is not None:
                pending.append(inner)
    return False


def element_by_element(function: Any, threads: int) -> Any:
    """A launch for each nest of loops around one block, with a thread for each element and reductions within it.

    None if an axis of a block is anything else than one loop.
    """
    root = function.body
    if not isinstance(root, s_tir.SBlockRealize):
        return None
    old = root.block
    nests = list(old.body.seq) if isinstance(old.body, tirx.SeqStmt) else [old.body]
    launches = [_launch(nest, threads) for nest in nests]
    if any(made is None for made in launches):
        return None
    outer = s_tir.SBlock(
        old.iter_vars, old.reads, old.writes, old.name_hint,
        launches[0] if len(launches) == 1 else tirx.SeqStmt(launches), old.init, old.alloc_buffers,
        old.match_buffers, old.annotations,
    )  # fmt: skip
    return _plain(function.with_body(s_tir.SBlockRealize([], True, outer))).with_attr(SCHEDULED, 1)


def _plain(function: Any) -> Any:
    """The function with its blocks lowered to loops, and buffers between launches that keep their sizes.

    TVM makes buffers as small as the places that it sees written; where it cannot tell these, the sizes name threads,
    outside of any launch. What is reached under another name it leaves alone.
    """
    passes = s_tir.transform
    steps = (
        passes.LowerInitBlock(), passes.PlanAndUpdateBufferAllocationLocation(), passes.ConvertBlocksToOpaque(),
        passes.LowerMatchBuffer(), passes.LowerOpaqueBlock(),
    )  # fmt: skip
    made = tvm.transform.Sequential(steps)(tvm.IRModule({"main": function}))["main"]
    first: list[Any] = []
    rest = list(made.body.seq) if isinstance(made.body, tirx.SeqStmt) else [made.body]
    names: dict[Any, Any] = {}
    while isinstance(rest[0], tirx.AllocBuffer):
        first.append(rest.pop(0))
        buffer = first[-1].buffer
        names[buffer] = tirx.decl_buffer(list(buffer.shape), buffer.dtype, f"{buffer.name}_named")
        first.append(tirx.DeclBuffer(names[buffer], data=buffer.data))
    if not names:
        return made
    body = tvm_ffi.structural_map(tirx.SeqStmt(rest), (tirx.Var, lambda v: names.get(v, v)))
    return made.with_body(tirx.SeqStmt([*first, *body.seq]))


def _launch(nest: Any, threads: int) -> Any:
    loops, inner = [], nest
    while isinstance(inner, tirx.For):
        loops.append(inner)
        inner = inner.body
    if not isinstance(inner, s_tir.SBlockRealize) or len(loops) != len(inner.iter_values):
        return None
    by_variable = {loop.loop_var: loop for loop in loops}
    spatial: list[Any] = []
    reduced: list[Any] = []
    for value, axis in zip(inner.iter_values, inner.block.iter_vars, strict=True):
        if value not in by_variable:
            return None
        (spatial if axis.iter_type == tirx.IterVar.DataPar else reduced).append(by_variable[value])
    block, thread = tirx.Var("block", "int64"), tirx.Var("thread", "int64")
    flat = block * threads + thread
    total: Any = tirx.IntImm("int64", 1)
    values: dict[Any, Any] = {loop.loop_var: loop.loop_var for loop in reduced}
    for loop in reversed(spatial):
        extent = _wide(loop.extent)
        value = tirx.floormod(tirx.floordiv(flat, total), extent)
        values[loop.loop_var] = (
            tirx.Cast(str(loop.loop_var.ty), value) if str(loop.loop_var.ty) != "int64" else value
        )
        total = total * extent
    given = [values[value] for value in inner.iter_values]
    body: Any = s_tir.SBlockRealize(given, flat < total, localized(inner.block))
    for loop in reversed(reduced):
        body = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, body)
    for variable, count, tag in (
        (thread, tirx.IntImm("int64", threads), "threadIdx.x"),
        (block, tirx.floordiv(total + (threads - 1), threads), "blockIdx.x"),
    ):
        axis = tirx.IterVar(None, tirx.Var(variable.name, "int64"), tirx.IterVar.ThreadIndex, tag)
        body = tirx.For(variable, tirx.IntImm("int64", 0), count, tirx.ForKind.THREAD_BINDING, body, axis)
    return body


def _wide(value: Any) -> Any:
    if isinstance(value, tirx.IntImm):
        return tirx.IntImm("int64", int(value.value))
    return value if str(value.ty) == "int64" else tirx.Cast("int64", value)


def _in_one_thread(function: Any) -> Any:
    """The function with its whole body in a launch of one thread."""
    body = localized(function.body)
    outside = []
    if isinstance(body, tirx.SeqStmt):  # large buffers stay in device memory
        parts = list(body.seq)
        while isinstance(parts[0], tirx.AllocBuffer) and parts[0].buffer.scope() == "global":
            outside.append(parts.pop(0))
        body = tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]
    for tag in ("threadIdx.x", "blockIdx.x"):
        axis = tirx.IterVar(tvm.ir.Range(0, 1), tirx.Var(tag.replace(".", "_"), "int32"), 1, tag)
        body = tirx.AttrStmt(axis, "thread_extent", tirx.IntImm("int32", 1), body)
    return function.with_body(tirx.SeqStmt([*outside, body]) if outside else body)
