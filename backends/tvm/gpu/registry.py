"""Which module builds which kernel for GPUs; the others are lowered by their meaning."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from planish.backends.tvm.gpu.device import Gpu
from planish.ir.node import Node

Build = Callable[[Node, Gpu], Any]

MODULES = {
    "linear_affine": "affine",
    "linear_dense": "dense",
    "attention": "attention",
    "attention_step": "attention",
    "rms_norm": "norm",
    "layer_norm": "norm",
    "softmax": "norm",
    "rope": "embedding",
    "embedding_affine": "embedding",
}
"""Kernels by name, and the module of this package whose ``build`` makes them."""


@cache
def builder(name: str) -> Build | None:
    """What builds the kernel ``kernel.NAME``; None if it is lowered by its meaning."""
    module = MODULES.get(name)
    if module is None:
        return None
    build: Build = importlib.import_module(f"{__package__}.{module}").build
    return build
