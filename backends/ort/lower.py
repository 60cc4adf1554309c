"""From a program to an ONNX model and the tensors that it refers to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from planish.backends.ort.caches import attention_over_caches, written_in_place
from planish.backends.ort.contrib import Choice, Site, choose
from planish.backends.ort.graph import IR_VERSION, MICROSOFT, ONNX_TYPES, Graph, value_info
from planish.backends.ort.options import OrtOptions
from planish.backends.ort.storage import Storage
from planish.backends.ort.table import Call, main_dtype, substitute, table
from planish.ir.node import Node, Program, topological
from planish.ir.types import DType, TensorType
from planish.ir.unsupported import refuse_unsupported
from planish.runtime.ort_states import IN_PLACE
from planish.runtime.tensors import TensorSource

if TYPE_CHECKING:
    from planish.ir.weights import Weights


@dataclass(frozen=True)
class Lowered:
    """A program as ONNX.

    ``model`` refers to big constants by name: an initializer with a location ``weights/model.safetensors`` takes
    the bytes of the tensor ``stored[name]``, whose values ``tensors`` gives when asked. An initializer with the
    location ``load`` is an output of ``load_model``, which is run once with tensors as its inputs.
    ``leaf_bytes`` is the size of all weights as the program has them, ``widened_bytes`` what was added to them on
    request (``widen="store"``).
    """

    model: onnx.ModelProto
    tensors: Mapping[str, TensorSource]
    stored: Mapping[str, str]
    load_model: onnx.ModelProto | None
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    session_options: Mapping[str, Any]
    leaf_bytes: int
    options: OrtOptions = field(default_factory=OrtOptions)
    widened_bytes: int = 0


def lower(program: Program, weights: Weights, *, options: OrtOptions | None = None) -> Lowered:
    """Write a program as ONNX; raises ``UnsupportedOpError`` PL220 with everything that cannot be written."""
    options = options or OrtOptions()
    check(program)
    graph = Graph()
    for leaf in program.inputs:
        graph.reserve(leaf.name)
    made = _Lowering(Storage(weights, graph, options.inline_bytes), options)
    states = program.state_leaves()
    given = {leaf: leaf.name for leaf in program.inputs} | {n: graph.reserve(n.name) for n in states}
    for leaf, name in given.items():
        graph.bind(name, leaf.shape)
    names = tuple(graph.reserve(name) for name in _output_names(program))
    results = made.program(graph, program, given)
    split = len(program.outputs)
    direct = graph.rename(dict(zip(results[split:], names[split:])))
    outputs = []
    for name, value, node in zip(names, results, program.roots, strict=True):
        if direct.get(value) != name:
            graph.copy(direct.get(value, value), name)
        outputs.append(value_info(name, node.dtype, node.shape))
    inputs = [value_info(name, leaf.dtype, leaf.shape) for leaf, name in given.items()]
    storage = made.storage
    initializers = [*graph.constants.values(), *storage.initializers]
    written = helper.make_graph(graph.nodes, program.name, inputs, outputs, initializers)
    model = make_model(written, graph.opset)
    in_place = {name: f"{name}.next" for name in written_in_place(program)}
    if in_place:
        helper.set_model_props(model, {IN_PLACE: json.dumps(in_place)})
    lowered = Lowered(
        model=model,
        tensors=storage.tensors,
        stored=storage.stored,
        load_model=_load_model(storage),
        input_names=tuple(given.values()),
        output_names=names,
        session_options={},
        leaf_bytes=storage.leaf_bytes(),
        options=options,
    )
    if options.widen == "store" and lowered.load_model is not None:
        from planish.backends.ort.widen import widened

        return widened(lowered)
    return lowered


def make_model(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    """A model of the operator sets in use."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="planish")


def _load_model(storage: Storage) -> onnx.ModelProto | None:
    if not storage.load_outputs:
        return None
    graph = helper.make_graph(
        storage.load.nodes, "load", list(storage.load_inputs.values()), list(storage.load_outputs.values()),
        list(storage.load.constants.values()),
    )  # fmt: skip
    return make_model(graph, storage.load.opset)


def _output_names(program: Program) -> tuple[str, ...]:
    given = program.output_names or tuple(f"output{i}" for i in range(len(program.outputs)))
    return (*given, *(f"{name}.next" for name, _ in program.states))


def check(program: Program) -> None:
    """Raise ``UnsupportedOpError`` PL220 with every operation and element type that has no form in ONNX."""
    refuse_unsupported(program, _unsupported, code="PL220", backend="ONNX Runtime")


def _unsupported(node: Node) -> list[str]:
    found = [] if node.is_leaf or node.op in table() else [node.op]
    kinds = [node.type] if isinstance(node.type, TensorType) else list(node.type.items)
    return found + [f"element type {k.dtype}" for k in kinds if k.dtype.name not in ONNX_TYPES]


class _Lowering:
    def __init__(self, storage: Storage, options: OrtOptions) -> None:
        self.storage = storage
        self.options = options
        self.rows = table()
        self.load_values: dict[Node, Any] = {}

    def program(self, graph: Graph, program: Program, given: Mapping[Node, str]) -> list[str]:
        """Write a program; ``given`` are the values of its inputs and states."""
        choices = {**choose(program), **attention_over_caches(program)}
        values: dict[Node, Any] = dict(given)
        scopes = {node: origin.scope for node, origin in program.origins.items() if origin.scope}
        self.nodes(graph, program.roots, values, choices, scopes, self.storage.constant)
        return [values[root] for root in program.roots]

    def nodes(
        self, graph: Graph, roots: Sequence[Node], values: dict[Node, Any], choices: Mapping[Node, Choice],
        scopes: Mapping[Node, str], constant: Callable[[str], str],
    ) -> None:  # fmt: skip
        """Write what the roots need, and nothing else."""
        for node in _needed(roots, values, choices):
            if node in values:
                continue
            graph.scope = scopes.get(node, "")
            if node.op == "const":
                values[node] = constant(node.name)
                continue
            choice = choices.get(node)
            if choice is None:
                values[node] = self._node(graph, node, values)
                continue
            site = Site(graph, self.storage, self.options, self.in_load)
            values[node] = choice.emit(site, *(values[n] for n in choice.operands))

    def in_load(self, node: Node) -> str:
        """A constant expression in the load model."""
        self.nodes(self.storage.load, (node,), self.load_values, {}, {}, self.storage.load_input)
        return str(self.load_values[node])

    def _node(self, graph: Graph, node: Node, values: Mapping[Node, Any]) -> Any:
        row = self.rows[node.op]
        kind = main_dtype(node)
        computed = kind
        if kind is not None and row.native is not None:
            computed = substitute(kind, row.native)
        call = Call(graph, node, computed or node.dtype, self.options, self._nested)

        def ready(arg: Any, parameter: str) -> Any:
            if isinstance(arg, Node):
                value = values[arg]
                cast = computed is not kind and isinstance(arg.type, TensorType) and arg.dtype is kind
                return graph.cast(value, computed) if cast and computed is not None else value
            if isinstance(arg, tuple) and parameter.startswith("tensors"):
                return tuple(ready(a, "tensor") for a in arg)
            if parameter == "operand" and node.op != "planish.dequant":
                return self._operand(graph, arg, computed or node.dtype)
            return arg

        parameters = _parameters(node.op)
        out = row.emit(call, *(ready(a, p) for a, p in zip(node.args, parameters, strict=True)))
        if computed is kind or computed is None or kind is None:
            return out
        if isinstance(out, tuple):
            return tuple(graph.cast(o, kind) for o in out)
        back = node.dtype is kind
        return graph.cast(out, kind) if back else out

    @staticmethod
    def _operand(graph: Graph, value: Any, kind: DType) -> str:
        if isinstance(value, (int, float)):
            return graph.constant(value, kind)
        return graph.scalar(value, kind.name)

    def _nested(self, graph: Graph, program: Program, operands: Sequence[str]) -> list[str]:
        return self.program(graph, program, dict(zip(program.inputs, operands, strict=True)))


def _parameters(op: str) -> tuple[str, ...]:
    from planish.ir.dialect import operation

    return tuple(p.kind for p in operation(op).parameters)


def _needed(roots: Sequence[Node], values: Mapping[Node, Any], choices: Mapping[Node, Choice]) -> list[Node]:
    """The nodes to write, operands first; a choice reads other operands than its node."""
    if not choices:
        return [n for n in topological(roots) if n not in values]
    done: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in done or node in values:
            continue
        if ready:
            done[node] = None
            continue
        stack.append((node, True))
        operands = choices[node].operands if node in choices else node.operands
        stack.extend((n, False) for n in reversed(operands))
    return list(done)
