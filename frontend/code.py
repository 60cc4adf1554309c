"""What backends make, seen alike: programs, tensors that the code reads, members of an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from planish.backends.ort.module import LoweredModule
    from planish.backends.tvm.product import Product
    from planish.ir.node import Module
    from planish.ir.weights import Weights
    from planish.runtime.artifact import Content
    from planish.runtime.tensors import TensorSource

ONNX = "code/onnxruntime/"


class Code(Protocol):
    """Programs in the form of one backend."""

    @property
    def module(self) -> Module:
        """The programs that the code computes, as an artifact holds them."""

    @property
    def weights(self) -> Weights:
        """Every constant of these programs."""

    @property
    def tensors(self) -> Mapping[str, TensorSource]:
        """The constants that the code reads, in the form in which it reads them."""

    @property
    def inline_bytes(self) -> int:
        """Constants of up to this size are part of the code, and stored for the programs' sake alone."""

    @property
    def rounded(self) -> bool:
        """True if activations are rounded, so that other kernels give results that are further off."""

    @property
    def targets(self) -> list[dict[str, Any]]:
        """What the manifest says of the machines that the code is for."""

    def results(self, name: str) -> tuple[str, ...]:
        """The names of outputs, then of next states, of a program."""

    def entry(self, name: str) -> Mapping[str, str]:
        """Where the manifest finds the code of an entry point."""

    def members(self, location: str, layout: Mapping[str, Any]) -> dict[str, Content]:
        """The members of an artifact; the tensors lie in the member ``location`` as ``layout`` says."""


class OnnxCode:
    """Models for ONNX Runtime, in folders of their own if there are several."""

    def __init__(self, lowered: LoweredModule, module: Module, weights: Weights) -> None:
        self.lowered = lowered
        self.module = module
        self.weights = weights
        self.tensors = lowered.tensors
        self.inline_bytes = lowered.options.inline_bytes
        self.rounded = lowered.options.activation_bits < 32
        self.targets = [{"name": "onnxruntime", "device": "cpu"}]

    def results(self, name: str) -> tuple[str, ...]:
        """The names of outputs, then of next states, of a program."""
        return self.lowered.models[self.lowered.uses[name]].output_names

    def entry(self, name: str) -> Mapping[str, str]:
        """Where the manifest finds the code of an entry point."""
        return {"onnxruntime": f"{self._folder(self.lowered.uses[name])}model.onnx"}

    def members(self, location: str, layout: Mapping[str, Any]) -> dict[str, Content]:
        """The models, how to set up their sessions, and models that run at load if there are any."""
        from planish.backends.ort.write import place

        made: dict[str, Content] = {}
        for name, lowered in self.lowered.models.items():
            folder = self._folder(name)
            made[f"{folder}model.onnx"] = place(lowered, location, layout).SerializeToString(
                deterministic=True
            )
            made[f"{folder}session.json"] = as_json({"config": dict(lowered.session_options)})
            if lowered.load_model is not None:
                made[f"{folder}load.onnx"] = lowered.load_model.SerializeToString(deterministic=True)
        return made

    def _folder(self, name: str) -> str:
        return f"{ONNX}{name}/" if len(self.lowered.uses) > 1 else ONNX


class NativeCode:
    """Libraries of machine code; each holds all entry points."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.module = product.module
        self.weights = product.weights
        self.tensors = product.tensors
        self.inline_bytes = 0
        self.rounded = rounds(product.module) or getattr(product.options, "math", "f32") == "bf16"
        self.targets = [
            {"name": product.device, "device": product.device, "libraries": sorted(product.libraries)}
        ]

    def results(self, name: str) -> tuple[str, ...]:
        """The names of outputs, then of next states, of a program."""
        entry = self.product.entries[name]
        return (*entry.outputs, *(f"{state}.next" for state in entry.next_states))

    def entry(self, name: str) -> Mapping[str, str]:
        """Where the manifest finds the code of an entry point: all are in one table."""
        return {self.product.device: f"code/{self.product.device}/code.json"}

    def members(self, location: str, layout: Mapping[str, Any]) -> dict[str, Content]:
        """The libraries, and a table of what they hold."""
        folder = f"code/{self.product.device}/"
        made: dict[str, Content] = {f"{folder}code.json": self.product.code().dump()}
        for name, data in self.product.libraries.items():
            made[f"{folder}{name}.so"] = data
        return made


def rounds(module: Module) -> bool:
    """True if activations are rounded to whole numbers somewhere in programs with kernels."""
    from planish.ir.kernel import expanded

    return any(n.op == "planish.fake_quantize" for p in module.programs for n in expanded(p).nodes)


def code_of(lowered: LoweredModule | Product, module: Module, weights: Weights) -> Code:
    """The code of a compilation, whatever backend made it."""
    from planish.backends.tvm.product import Product

    return NativeCode(lowered) if isinstance(lowered, Product) else OnnxCode(lowered, module, weights)


def as_json(table: Mapping[str, Any]) -> bytes:
    """A table as text that is the same for equal tables."""
    return json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"
