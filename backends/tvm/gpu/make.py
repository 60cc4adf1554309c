"""The libraries of a program for GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from planish.backends.tvm.gpu.device import OPENCL, Gpu, cuda
from planish.backends.tvm.options import GpuOptions
from planish.ir.node import Program
from planish.ir.target import Target

ARCHITECTURE = "sm_90"
"""What is built for where a target of CUDA names no architecture."""


def gpu_of(target: Target) -> Gpu:
    """The device that a target means; of several architectures joined by ``+`` the first decides how kernels are made.

    Raises ``BackendError`` PL760 for an architecture that is not known.
    """
    return OPENCL if target.kind == "opencl" else cuda(architectures_of(target)[0])


def architectures_of(target: Target) -> tuple[str, ...]:
    """The architectures of a target of CUDA, each once, lowest first, such as ``cuda:sm_80+sm_90``."""
    names = dict.fromkeys((target.arch or ARCHITECTURE).split("+"))
    return tuple(sorted(names, key=lambda name: int("0" + "".join(c for c in name if c.isdigit()))))


def gpu_libraries(
    programs: Mapping[str, Program], target: Target, options: GpuOptions
) -> tuple[dict[str, bytes], Mapping[str, Any], tuple[Mapping[str, Any], ...]]:
    """One library for all architectures, the order of arguments of each function, and what the kernels use.

    Libraries for CUDA hold machine code, those for OpenCL source. Raises ``BackendError`` PL761 without nvcc.
    """
    import tvm
    from tvm import relax

    from planish.backends.tvm.build import pipeline
    from planish.backends.tvm.gpu.library import cuda_library, plain_library
    from planish.backends.tvm.gpu.schedule import schedule_gpu
    from planish.backends.tvm.lower import lower

    gpu = gpu_of(target)
    names = architectures_of(target) if gpu.kind == "cuda" else ()
    for name in names:
        cuda(name)
    lowered = lower(programs, gpu)
    module = schedule_gpu(lowered.module, gpu)
    executable = relax.build(module, tvm.target.Target(gpu.target), relax_pipeline=pipeline())
    if gpu.kind == "opencl":
        return {"opencl": plain_library(executable)}, lowered.entries, ()
    data, resources = cuda_library(executable, names)
    return {"+".join(names): data}, lowered.entries, tuple(asdict(r) for r in resources)
