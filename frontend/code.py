"""What backends make, seen alike: program, tensors that the code reads, members of an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from planish.backends.ort.lower import Lowered
    from planish.backends.tvm.product import Product
    from planish.ir.node import Program
    from planish.ir.weights import Weights
    from planish.runtime.artifact import Content
    from planish.runtime.tensors import TensorSource

ONNX = "code/onnxruntime/"


class Code(Protocol):
    """A program in the form of one backend."""

    @property
    def program(self) -> Program:
        """The program that the code computes, as an artifact holds it."""

    @property
    def weights(self) -> Weights:
        """Every constant of that program."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of outputs, then of next states."""

    @property
    def tensors(self) -> Mapping[str, TensorSource]:
        """The constants that the code reads, in the form in which it reads them."""

    @property
    def inline_bytes(self) -> int:
        """Constants of up to this size are part of the code, and stored for the program's sake alone."""

    @property
    def rounded(self) -> bool:
        """True if activations are rounded, so that other kernels give results that are further off."""

    @property
    def targets(self) -> list[dict[str, Any]]:
        """What the manifest says of the machines that the code is for."""

    @property
    def entry(self) -> Mapping[str, str]:
        """Where the manifest finds the code of an entry point."""

    def members(self, location: str, layout: Mapping[str, Any]) -> dict[str, Content]:
        """The members of an artifact; the tensors lie in the member ``location`` as ``layout`` says."""


class OnnxCode:
    """A model for ONNX Runtime."""

    def __init__(self, lowered: Lowered, program: Program, weights: Weights) -> None:
        self.lowered = lowered
        self.program = program
        self.weights = weights
        self.output_names = lowered.output_names
        self.tensors = lowered.tensors
        self.inline_bytes = lowered.options.inline_bytes
        self.rounded = lowered.options.activation_bits < 32
        self.targets = [{"name": "onnxruntime", "device": "cpu"}]
        self.entry = {"onnxruntime": f"{ONNX}model.onnx"}

    def members(self, location: str, layout: Mapping[str, Any]) -> dict[str, Content]:
        """The model, how to set up its session, and the model that runs at load if there is one."""
        from planish.backends.ort.write import place

        lowered = self.lowered
        made: dict[str, Content] = {
            f"{ONNX}model.onnx": place(lowered, location, layout).SerializeToString(deterministic=True),
            f"{ONNX}session.json": as_json({"config": dict(lowered.session_options)}),
        }
        if lowered.load_model is not None:
            made[f"{ONNX}load.onnx"] = lowered.load_model.SerializeToString(deterministic=True)
        return made


class NativeCode:
    """Libraries of machine code."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.program = product.program
        self.weights = product.weights
        entry = product.entries[product.main.name]
        self.output_names = (*entry.outputs, *(f"{state}.next" for state in entry.next_states))
        self.tensors = product.tensors
        self.inline_bytes = 0
        self.rounded = rounds(product.program) or getattr(product.options, "math", "f32") == "bf16"
        self.targets = [
            {"name": product.device, "device": product.device, "libraries": sorted(product.libraries)}
        ]
        self.entry = {product.device: f"code/{product.device}/code.json"}

    def members(self, location: str, layout: Mapping[str, Any]) -> dict[str, Content]:
        """The libraries, and a table of what they hold."""
        folder = f"code/{self.product.device}/"
        made: dict[str, Content] = {f"{folder}code.json": self.product.code().dump()}
        for name, data in self.product.libraries.items():
            made[f"{folder}{name}.so"] = data
        return made


def rounds(program: Program) -> bool:
    """True if activations are rounded to whole numbers somewhere in a program with kernels."""
    from planish.ir.kernel import expanded

    return any(n.op == "planish.fake_quantize" for n in expanded(program).nodes)


def code_of(lowered: Any, program: Program, weights: Weights) -> Code:
    """The code of a compilation, whatever backend made it."""
    from planish.backends.tvm.product import Product

    return NativeCode(lowered) if isinstance(lowered, Product) else OnnxCode(lowered, program, weights)


def as_json(table: Mapping[str, Any]) -> bytes:
    """A table as text that is the same for equal tables."""
    return json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"
