"""Which module builds which kernel."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

Build = Callable[[Node, Isa], Any]

MODULES = {
    "linear_affine": "affine",
    "linear_dense": "dense",
    "linear_sparse": "sparse",
    "attention": "attention",
    "attention_step": "attention",
    "rms_norm": "norm",
    "layer_norm": "norm",
    "softmax": "norm",
    "rope": "rope",
    "embedding_affine": "embedding",
    "conv": "conv",
    "depthwise": "conv_depthwise",
    "pool": "pool",
}
"""Kernels by name, and the module of this package whose ``build`` makes them."""


@cache
def builder(name: str) -> Build | None:
    """What builds the kernel ``kernel.NAME``; None if it is lowered by its meaning."""
    module = MODULES.get(name)
    if module is None:
        return None
    full = f"{__package__}.{module}"
    if importlib.util.find_spec(full) is None:
        return None
    build: Build = importlib.import_module(full).build
    return build
