"""``torch.compile(model, backend="planish")``: every graph that TorchDynamo captures is compiled, or left to eager."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from planish.errors import PlanishError

log = logging.getLogger("planish")

DEFAULTS = {"target": "cpu", "passes": "auto"}
"""What ``torch.compile(..., options=...)`` may change."""


def planish_backend(
    graph: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any
) -> Callable[..., Any]:
    """Compile one graph of TorchDynamo.

    Parameters arrive as inputs of the graph or as its attributes; both become weights, with the values that they
    have when the graph is compiled. A graph that cannot be compiled runs in eager PyTorch, and a warning with the
    code of the error says why. Sizes that TorchDynamo holds to be dynamic are dynamic in the program.
    """
    given = {**DEFAULTS, **(options.get("options") or {})}
    try:
        return _compile(graph, list(example_inputs), given)
    except PlanishError as error:
        log.warning("planish leaves a graph to eager PyTorch: %s", error)
        return graph.forward


def _compile(graph: torch.fx.GraphModule, inputs: list[Any], options: dict[str, Any]) -> Callable[..., Any]:
    from planish.errors import UsageError
    from planish.frontend.api import compile as compile_model

    if torch.is_grad_enabled() and any(isinstance(i, torch.Tensor) and i.requires_grad for i in inputs):
        raise UsageError(
            "PL829",
            "inputs or weights need gradients, which a compiled graph has not",
            hint="call the model under torch.no_grad()",
        )
    unknown = set(options) - {"target", "passes", "layers", "seed"}
    if unknown:
        raise UsageError(
            "PL824",
            f"unknown options {', '.join(sorted(unknown))}",
            hint="known: target, passes, layers, seed",
        )
    frozen = _Frozen(graph, inputs)
    if not frozen.places:
        raise UsageError("PL829", "the graph reads no tensor but its weights")
    example = tuple(inputs[i] for i in frozen.places)
    with torch._guards.tracing(None):
        compiled = compile_model(frozen, example_inputs=example, dynamic_shapes=frozen.dynamic(), **options)
    read = {leaf.name for leaf in compiled.program.inputs}
    used = [p for n, p in enumerate(frozen.places) if f"inputs_{n}" in read]
    outputs = len(compiled.output_names)

    def call(*arguments: Any) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            found = compiled(*(arguments[p] for p in used))
        return (found,) if outputs == 1 else tuple(found)

    return call


class _Frozen(torch.nn.Module):
    """A graph of tensors alone: parameters among its inputs keep their present values, sizes are read off tensors."""

    def __init__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> None:
        super().__init__()
        self.graph_module = graph
        self.places: list[int] = []
        self.fixed: dict[int, Any] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        declared = [n.meta.get("example_value") for n in graph.graph.nodes if n.op == "placeholder"]
        self.shapes: list[tuple[Any, ...]] = []
        for index, value in enumerate(inputs):
            if isinstance(value, torch.nn.Parameter):
                self.register_parameter(f"weight_{index}", value)
            elif isinstance(value, torch.Tensor):
                self.shapes.append(tuple(getattr(declared[index], "shape", value.shape)))
                self.places.append(index)
        for index, value in enumerate(inputs):
            if not isinstance(value, torch.Tensor):
                self._number(index, value, declared[index])
        self.count = len(inputs)

    def _number(self, index: int, value: Any, declared: Any) -> None:
        from planish.errors import UsageError

        if not isinstance(declared, torch.SymInt):
            self.fixed[index] = value
            return
        for place, shape in zip(self.places, self.shapes, strict=True):
            for axis, size in enumerate(shape):
                if isinstance(size, torch.SymInt) and size.node.expr == declared.node.expr:
                    self.sizes[index] = (place, axis)
                    return
        raise UsageError("PL829", f"the graph reads the number {declared}, which is the size of no input")

    def dynamic(self) -> dict[str, dict[int, str]]:
        """Names for the sizes that TorchDynamo holds to be dynamic."""
        names: dict[str, str] = {}
        found: dict[str, dict[int, str]] = {}
        for number, shape in enumerate(self.shapes):
            for axis, size in enumerate(shape):
                if isinstance(size, torch.SymInt) and not size.node.expr.is_number:
                    name = names.setdefault(str(size.node.expr), f"S{len(names)}")
                    found.setdefault(f"inputs_{number}", {})[axis] = name
        return found

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The graph on its tensors, with everything else in place."""
        given: dict[int, Any] = dict(zip(self.places, inputs, strict=True)) | self.fixed
        given |= {i: given[place].shape[axis] for i, (place, axis) in self.sizes.items()}
        return self.graph_module(
            *(given[i] if i in given else getattr(self, f"weight_{i}") for i in range(self.count))
        )
