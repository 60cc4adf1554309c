"""Which module builds which kernel, and in which variants."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

from planish.backends.tvm.cpu.variant import DEFAULT, Variant
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

Build = Callable[..., Any]

MODULES = {
    "linear_affine": "affine",
    "linear_dense": "dense",
    "linear_sparse": "sparse",
    "attention": "attention",
    "attention_step": "attention",
    "attend": "attend",
    "put": "put",
    "rms_norm": "norm",
    "layer_norm": "norm",
    "softmax": "norm",
    "rope": "rope",
    "embedding_affine": "embedding",
    "conv": "conv",
    "depthwise": "conv_depthwise",
    "pool": "pool",
}
"""Kernels by name, and the module of this package whose ``build`` makes them.

Where a module also has ``variants(node, isa)``, its ``build`` takes one of them as a third argument.
"""


@cache
def _module(name: str) -> Any:
    full = f"{__package__}.{MODULES[name]}" if name in MODULES else ""
    return importlib.import_module(full) if full and importlib.util.find_spec(full) is not None else None


def builder(name: str) -> Build | None:
    """What builds the kernel ``kernel.NAME``; None if it is lowered by its meaning."""
    module = _module(name)
    return None if module is None else module.build


def in_place_builder(name: str) -> Build | None:
    """What builds the kernel ``kernel.NAME`` so that it changes its first operand, if anything does."""
    made: Build | None = getattr(_module(name), "build_in_place", None)
    return made


def variants(node: Node, isa: Isa) -> tuple[Variant, ...]:
    """What a kernel can be built as, the default first; the default alone where there is no choice."""
    offered = getattr(_module(node.op.removeprefix("kernel.")), "variants", None)
    return (DEFAULT, *(offered(node, isa) if offered is not None else ()))


def build(node: Node, isa: Isa, variant: Variant = DEFAULT) -> Any:
    """The PrimFunc of a kernel node in one of its variants."""
    make = builder(node.op.removeprefix("kernel."))
    assert make is not None, node.op
    return make(node, isa) if variant == DEFAULT else make(node, isa, variant)
