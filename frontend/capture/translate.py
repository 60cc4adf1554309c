"""An exported ATen graph as a program: every node by the function registered for its overload."""

from __future__ import annotations

import collections
import operator
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from planish.errors import CaptureError, InternalError, PlanishError, UnsupportedOpError
from planish.frontend.capture.base import Captured
from planish.frontend.capture.dims import (
    SizeTranslator,
    Wanted,
    free_symbols,
    named_symbol,
    symbolic_axes,
)
from planish.frontend.capture.guards import required_multiple
from planish.frontend.capture.recurrent import keep_recurrent
from planish.frontend.capture.sources import node_line, node_scope
from planish.frontend.capture.torch_ops import load
from planish.frontend.capture.torch_ops.base import HANDLERS, to_dtype
from planish.frontend.capture.torch_ops.creation import literal
from planish.ir.node import Node, Origin, Program, const, input_leaf
from planish.ir.types import Symbol, TensorType, evaluate, product, size
from planish.ir.weights import Weights, type_of

IGNORED = frozenset({
    "aten.sym_size.int", "aten.sym_numel.default", "aten.sym_stride.int",
    "aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten._assert_scalar.default",
    "aten.sym_constrain_range_for_size.default", "aten.sym_constrain_range.default", "aten._assert_async.default",
})  # fmt: skip


def overload_key(target: Any) -> str:
    """The registry's name of an operator: ``add.Tensor``, or ``library::name.overload`` for others than ATen."""
    text = str(target)
    if text.startswith("aten."):
        return text[5:]
    library, _, rest = text.partition(".")
    return f"{library}::{rest}"


def _is_operator(node: Any) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _known(node: Any) -> bool:
    return str(node.target) in IGNORED or overload_key(node.target) in HANDLERS


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The program without in-place operators, decomposed as far as operators without a function require."""
    operators = [n for n in exported.graph.nodes if _is_operator(n)]
    mutates = any(n.target._schema.is_mutable for n in operators)
    unknown = any(not _known(n) for n in operators) or any(
        n.op == "call_function" and isinstance(n.target, torch._ops.HigherOrderOperator)
        for n in exported.graph.nodes
    )
    if not mutates and not unknown:
        return exported
    with warnings.catch_warnings(), keep_recurrent():
        warnings.simplefilter("ignore")
        plain = exported.run_decompositions({})
        if all(_known(n) for n in plain.graph.nodes if _is_operator(n)):
            return plain
        table = torch.export.default_decompositions()
        for key in list(table.keys()):
            if overload_key(key) in HANDLERS:
                table.pop(key)
        return exported.run_decompositions(table)


def refuse_unknown(exported: ExportedProgram) -> None:
    """One error for all operators without a function, with counts and first source lines."""
    missing: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    for node in exported.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if str(node.target) == "with_effects":
            missing[str(node.args[1])] += 1
            first.setdefault(str(node.args[1]), node_line(node) or "unknown line")
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                "PL106", f"control flow {node.target} cannot be captured yet", where=node_line(node),
                hint="write the choice with torch.where",
            )  # fmt: skip
        elif _is_operator(node) and not _known(node):
            missing[str(node.target)] += 1
            first.setdefault(str(node.target), node_line(node) or "unknown line")
    if missing:
        rows = [f"{name} ({count}x, first at {first[name]})" for name, count in missing.most_common()]
        raise UnsupportedOpError(
            "PL201", f"{len(rows)} operators cannot be captured:\n  " + "\n  ".join(rows)
        )


class Translator:
    """The state of one translation: values of graph nodes, sizes, weights and origins."""

    def __init__(self, exported: ExportedProgram, asked: Mapping[str, Mapping[int, Wanted]]) -> None:
        self.exported = exported
        self.asked = asked
        self.sizes = SizeTranslator()
        self.values: dict[Any, Any] = {}
        self.weights = Weights()
        self.origins: dict[Node, Origin] = {}
        self.inputs: list[Node] = []
        self.hints: dict[Any, int] = {}
        self.leaves: dict[Any, Node] = {}

    def placeholder(self, node: Any, spec: Any) -> Any:
        """The leaf for a placeholder."""
        if spec.kind is InputKind.USER_INPUT:
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                return value
            kind = TensorType(to_dtype(value.dtype), tuple(size(self.sizes(s)) for s in value.shape))
            leaf = input_leaf(node.name, kind)
            self.inputs.append(leaf)
            return leaf
        if spec.kind is InputKind.PARAMETER or spec.kind is InputKind.BUFFER:
            tensor = self.exported.state_dict.get(spec.target, self.exported.constants.get(spec.target))
        else:
            tensor = self.exported.constants.get(spec.target)
        if not isinstance(tensor, torch.Tensor):
            raise CaptureError(
                "PL101", f"the constant {spec.target} is a {type(tensor).__name__}, not a tensor"
            )
        if spec.kind is InputKind.CONSTANT_TENSOR:
            small = literal(tensor)
            if small is not None:
                return small
        return self.weight(spec.target, tensor)

    def weight(self, name: str, tensor: torch.Tensor) -> Node:
        """The constant for a parameter; tied ones are one constant."""
        plain = tensor.detach()
        identity = (
            (plain.data_ptr(), plain.dtype, tuple(plain.shape), plain.stride()) if plain.numel() else name
        )
        if identity not in self.leaves:
            kind = type_of(plain)
            self.weights.add_lazy(name, kind, plain.contiguous)
            self.leaves[identity] = const(name, kind)
        return self.leaves[identity]

    def name_dimensions(self, placeholders: list[Any]) -> None:
        """Give torch's symbols the names and ranges that were asked for."""
        for node in placeholders:
            axes = self.asked.get(node.name, {})
            for axis, have in symbolic_axes(node.meta.get("val")):
                for symbol in free_symbols(have):
                    if symbol not in self.sizes.symbols:
                        multiple = required_multiple(symbol, have.node.shape_env)
                        ours = self._symbol(symbol, have, axes.get(axis), f"{node.name}_{axis}", multiple)
                        self.sizes.symbols[symbol] = product((multiple, ours))
                        self.hints[ours] = int(have.node.shape_env.backed_var_to_val[symbol]) // multiple

    def _symbol(self, symbol: Any, have: Any, asked: Wanted | None, fallback: str, multiple: int) -> Symbol:
        """The symbol for one of torch's, divided by what it must be a multiple of."""
        limits = self.exported.range_constraints.get(symbol)
        low = int(limits.lower) if limits is not None else 1
        high = int(limits.upper) if limits is not None and limits.upper.is_Integer else 2**31 - 1
        low, high, name = low if low > 2 else 1, min(high, 2**31 - 1), fallback
        plain = symbol == have.node.expr
        if asked is not None:
            name, low, high = asked.name, max(low, asked.low if plain else 1), min(high, asked.high)
        name = name if asked is None or (plain and multiple == 1) else f"{name}_part"
        return named_symbol(name, -(-low // multiple), high // multiple)

    def argument(self, arg: Any) -> Any:
        """A graph argument as a node, a size, a number or a list of them."""
        if isinstance(arg, torch.fx.Node):
            if arg in self.values:
                return self.values[arg]
            return self.sizes(arg.meta["val"])
        if isinstance(arg, (list, tuple)):
            return [self.argument(a) for a in arg]
        if isinstance(arg, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self.sizes(arg)
        return arg

    def call(self, node: Any) -> None:
        """Translate one operator."""
        value = node.meta.get("val")
        if node.target is operator.getitem:
            self.values[node] = self.argument(node.args[0])[node.args[1]]
            return
        if isinstance(
            value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)
        ) or not _is_operator(node):
            return
        if str(node.target) in IGNORED:
            return
        for each in value if isinstance(value, (list, tuple)) else [value]:
            self._refuse_data_dependent(node, each)
        args = [self.argument(a) for a in node.args]
        kwargs = {k: self.argument(v) for k, v in node.kwargs.items()}
        line = node_line(node)
        try:
            result = HANDLERS[overload_key(node.target)](*args, **kwargs)
        except PlanishError as error:
            message = f"{node.target}: {error.message}"
            raise CaptureError(
                error.code if error.code.startswith("PL1") else "PL107", message, where=line
            ) from error
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            message = f"{node.target} is not understood with these arguments: {error}"
            raise CaptureError("PL107", message, where=line) from error
        self.values[node] = result
        origin = Origin(node_scope(node), line)
        parts = result if isinstance(result, (list, tuple)) else [result]
        expected = value if isinstance(value, (list, tuple)) else [value]
        for part, want in zip(parts, expected, strict=False):
            if isinstance(part, Node) and isinstance(want, torch.Tensor):
                self._check(node, part, want, line)
                self._note_origin(part, origin)

    def _refuse_data_dependent(self, node: Any, value: Any) -> None:
        for _, have in symbolic_axes(value):
            if any(s not in self.sizes.symbols for s in free_symbols(have)):
                raise CaptureError(
                    "PL102",
                    f"{node.target}: the size of its result depends on the data",
                    where=node_line(node),
                )

    def _note_origin(self, node: Node, origin: Origin) -> None:
        stack = [node]
        while stack:
            each = stack.pop()
            if not each.is_leaf and each not in self.origins:
                self.origins[each] = origin
                stack.extend(each.operands)

    def _check(self, node: Any, part: Node, want: torch.Tensor, line: str | None) -> None:
        """The type that was built must be the type that torch found."""
        have = part.tensor
        sizes = [evaluate(s, self.hints) for s in have.shape]
        hint = [
            int(s) if isinstance(s, int) else evaluate(size(self.sizes(s)), self.hints) for s in want.shape
        ]
        if have.dtype is not to_dtype(want.dtype) or sizes != hint:
            raise InternalError(
                "PL902", f"{node.target}: torch gives {want.dtype}{hint}, planish {have}", where=line
            )


def translate(
    exported: ExportedProgram, name: str, asked: Mapping[str, Mapping[int, Wanted]], notes: tuple[str, ...]
) -> Captured:
    """The program of an exported graph."""
    load()
    exported = functional(exported)
    refuse_unknown(exported)
    signature = exported.graph_signature
    specs = {s.arg.name: s for s in signature.input_specs}
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    state = Translator(exported, asked)
    state.name_dimensions([n for n in placeholders if specs[n.name].kind is InputKind.USER_INPUT])
    for node in placeholders:
        state.values[node] = state.placeholder(node, specs[node.name])
    for node in exported.graph.nodes:
        if node.op == "call_function":
            state.call(node)
    outputs, names = _outputs(exported, state)
    program = Program(name, tuple(state.inputs), tuple(outputs), (), state.origins, tuple(names))
    alive = set(program.nodes)
    origins = {n: o for n, o in state.origins.items() if n in alive}
    return Captured(
        Program(name, program.inputs, program.outputs, (), origins, program.output_names),
        state.weights,
        notes,
    )


def _outputs(exported: ExportedProgram, state: Translator) -> tuple[list[Node], list[str]]:
    output = next(n for n in exported.graph.nodes if n.op == "output")
    outputs: list[Node] = []
    names: list[str] = []
    labels = _labels(exported)
    user = 0
    for spec, arg in zip(exported.graph_signature.output_specs, output.args[0], strict=True):
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
            line = node_line(arg) if isinstance(arg, torch.fx.Node) else None
            what = "buffer" if spec.kind is OutputKind.BUFFER_MUTATION else "input"
            raise CaptureError("PL105", f"the model changes its {what} {spec.target} in place", where=line)
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        value = state.argument(arg) if isinstance(arg, torch.fx.Node) else arg
        label = labels[user] if user < len(labels) else f"output_{user}"
        user += 1
        if isinstance(value, Node):
            outputs.append(value)
            names.append(label)
    if not outputs:
        raise CaptureError("PL108", "the model returns no tensor")
    return outputs, names


def _labels(exported: ExportedProgram) -> list[str]:
    """Names of the outputs: the keys of what the model returns, joined by underscores."""
    from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

    spec = exported.call_spec.out_spec
    paths = tree_flatten_with_path(tree_unflatten(list(range(spec.num_leaves)), spec))[0]
    out = []
    for i, (path, _) in enumerate(paths):
        text = "".join(c if c.isalnum() else "_" for c in keystr(path)).strip("_")
        numbered = "output" if not text and len(paths) == 1 else f"output_{i}"
        out.append(numbered if not text or text[0].isdigit() else text)
    return out
