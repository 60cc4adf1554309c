"""What this backend can do, as plain values: the kernels of each kind of target and the machine it is judged by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from planish.ir.node import Node
from planish.ir.rule import RULES, Decline, Rule
from planish.ir.target import KERNEL_SETS, Joiner, KernelSet, Machine

FAMILIES = ("affine", "sparse", "dense", "attention", "cache", "rope", "embedding", "norm", "conv")
"""Modules of :mod:`planish.backends.tvm.kernels`."""

CPU_ONLY = frozenset({"sparse", "conv", "cache"})
"""Those whose kernels nothing builds for GPUs: what they would compute stays plain operations there."""

SELECT = (
    "affine-linear-packed", "affine-linear", "affine-linear-bytes", "affine-rounded",
    "sparse-linear", "sparse-linear-narrow", "sparse-matmul", "sparse-matmul-narrow",
    "dense-linear-pairs", "dense-linear-narrow", "dense-linear", "dense-matmul-bias", "dense-matmul",
    "select-embedding-affine", "select-embedding-bytes", "select-rope", "select-attention-step", "select-attention",
    "select-put", "select-attend-narrow", "select-attend",
    "select-depthwise", "select-conv-half", "select-conv", "select-max-pool", "select-mean-pool",
)  # fmt: skip
"""Rules that put kernels in the place of operations; the first that fires wins."""

FUSE = (
    "affine-norm", "affine-bias", "affine-low-rank", "affine-gate", "affine-relu", "affine-silu", "affine-gelu",
    "affine-gelu-tanh", "affine-residual",
    "sparse-bias", "sparse-relu", "sparse-silu", "sparse-gelu", "sparse-gelu-tanh", "sparse-tanh", "sparse-sigmoid",
    "sparse-residual",
    "dense-relu", "dense-silu", "dense-gelu", "dense-gelu-tanh", "dense-tanh", "dense-sigmoid", "dense-residual",
    "attention-writes-permuted", "attention-step-writes-permuted", "attend-writes-permuted", "layer-norm-of-sum",
)  # fmt: skip
"""Rules by which kernels take in their neighbours; they may not repeat work that others need."""

LATE = ("select-rms-norm", "select-layer-norm", "select-softmax")
"""Rules for what no other kernel took in."""


def load_kernels() -> None:
    """Declare every kernel (idempotent), so that programs with kernels can be read and run."""
    for family in FAMILIES:
        import_module(f"planish.backends.tvm.kernels.{family}")


def kernels() -> KernelSet:
    """The kernels of CPUs."""
    return _kernels(frozenset())


def gpu_kernels() -> KernelSet:
    """The kernels of GPUs: those of CPUs without the families that only these have."""
    return _kernels(CPU_ONLY)


def _kernels(without: frozenset[str]) -> KernelSet:
    load_kernels()

    def rules(names: Sequence[str]) -> tuple[Rule, ...]:
        return tuple(RULES[name] for name in names if _family(RULES[name]) not in without)

    joiners = (Joiner("join-affine", _affine_key, _join_affine),)
    return KernelSet(rules(SELECT), joiners, rules(FUSE), rules(LATE))


def _family(rule: Rule) -> str:
    """The module of :mod:`planish.backends.tvm.kernels` that declares a rule."""
    return rule.right.__module__.rpartition(".")[2]


def _affine_key(node: Node) -> Any:
    """What linear layers on codes must have in common to become one kernel."""
    if node.op != "kernel.linear_affine":
        return None
    from planish.ir.dialect import operation

    given = dict(zip((p.name for p in operation(node.op).parameters), node.args, strict=True))
    if any(given[name] is not None for name in ("norm", "left", "right", "residual")) or given["rows"] % 16:
        return None
    zero = given["zero"]
    kind = zero.dtype if isinstance(zero, Node) else zero
    return given["x"], given["bits"], given["group"], given["activation_bits"], given["scale"].dtype, kind


def _join_affine(nodes: Sequence[Node]) -> Sequence[Node] | None:
    from planish.backends.tvm.kernels.affine import join_affine

    try:
        return join_affine(nodes)[1]
    except Decline:
        return None


def register() -> None:
    """Make the kernels known to the pass ``select`` (idempotent)."""
    for kind, made in (("cpu", kernels), ("cuda", gpu_kernels), ("opencl", gpu_kernels)):
        KERNEL_SETS.setdefault(kind, made)


def machine() -> Machine:
    """The CPU of this machine; its speed is assumed until it is measured."""
    cores = os.cpu_count() or 1
    return Machine("cpu", cores, 14.0 * cores, {"f32": 90.0 * cores, "i8": 350.0 * cores}, "assumed")
