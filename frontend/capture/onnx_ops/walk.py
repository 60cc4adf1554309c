"""The walk over a graph: every node is evaluated on known arrays, or becomes tensor code, or is expanded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir

from planish.errors import CaptureError, PlanishError, ShapeError, UnsupportedOpError
from planish.frontend.capture.onnx_ops import bodies
from planish.frontend.capture.onnx_ops.initializers import FLOAT_LIMIT, Initializers
from planish.frontend.capture.onnx_ops.registry import HANDLERS, At, Handler, from_tensor
from planish.frontend.capture.onnx_ops.symbolic import evaluate, shape_of, size_of
from planish.frontend.capture.onnx_ops.values import KNOWN_LIMIT, Items, Known, Value
from planish.ir.node import Node, Origin, Program, topological
from planish.ir.shapes import Mismatch
from planish.ir.types import TensorType
from planish.ir.weights import Weights

Attributes = Mapping[str, Any]
ALWAYS = ("Shape", "Size")


class Walk:
    """Evaluates graphs in an environment of values; the graphs of branches and function bodies share it."""

    def __init__(self, model: onnx_ir.Model, weights: Weights, initializers: Initializers) -> None:
        self.model, self.weights, self.initializers = model, weights, initializers
        self.env: dict[onnx_ir.Value, Value | None] = {}
        self.origins: dict[Node, Origin] = {}
        self.notes: list[str] = []
        self._fresh: dict[str, int] = {}

    # -- which operators there are

    def check_operators(self) -> None:
        """Refuse a model with operators that nothing here can express: all of them at once, with counts."""
        missing: Counter[str] = Counter()
        first: dict[str, str] = {}
        opsets = {_domain(d): v for d, v in self.model.opset_imports.items()}
        for node in self._all_nodes():
            if not self._supported(node, opsets):
                name = (
                    f"{_domain(node.domain)}::{node.op_type}"
                    if node.domain not in ("", "ai.onnx")
                    else node.op_type
                )
                missing[name] += 1
                first.setdefault(name, node.name or (node.outputs[0].name if node.outputs else "") or "?")
        if missing:
            shown = "\n".join(f"  {n} ({missing[n]} times, first {first[n]!r})" for n in sorted(missing))
            raise UnsupportedOpError("PL201", f"the model uses operators that are not supported:\n{shown}")

    def _all_nodes(self) -> Iterable[onnx_ir.Node]:
        yield from self.model.graph.all_nodes()
        for function in self.model.functions.values():
            yield from function.all_nodes()

    def _supported(self, node: onnx_ir.Node, opsets: Mapping[str, int]) -> bool:
        if (node.domain, node.op_type, node.overload) in self.model.functions:
            return True
        domain = _domain(node.domain)
        if handler_of(domain, node.op_type) is not None or (not domain and node.op_type in ALWAYS):
            return True
        return bodies.has_body(domain, node.op_type, opsets.get(domain, 0), supported=_known_operator)

    # -- evaluation

    def run(self, graph: onnx_ir.Graph | onnx_ir.Function, scope: Scope | None = None) -> None:
        """Evaluate all nodes of a graph in order."""
        scope = scope or Scope({_domain(d): v for d, v in self.model.opset_imports.items()})
        if isinstance(graph, onnx_ir.Graph) and graph is not self.model.graph:
            for initial in graph.initializers.values():
                self.env[initial] = self.initializers.value(initial)
        for node in graph:
            self._node(node, scope)

    def _node(self, node: onnx_ir.Node, scope: Scope) -> None:
        at = At(
            node,
            scope.opsets.get(_domain(node.domain), 0),
            self.weights,
            scope.prefix,
            self,
            scope,
            self._fresh,
        )
        try:
            inputs = [self._read(v, at) for v in node.inputs]
            results = self._evaluate(at, inputs, attributes_of(at, scope))
        except PlanishError as error:
            raise _explained(error, at) from None
        except Mismatch as problem:
            raise _explained(ShapeError("PL310", str(problem)), at) from None
        except RecursionError:
            raise CaptureError("PL144", "it is nested too deeply", where=at.where) from None
        except Exception as error:
            raise CaptureError(
                "PL148",
                f"the node cannot be captured: {type(error).__name__}: {str(error)[:300]}",
                where=at.where,
            ) from error
        for output, result in zip(node.outputs, results, strict=False):
            self.env[output] = result
        self._note_origins(results, at)

    def _read(self, value: onnx_ir.Value | None, at: At) -> Value | None:
        if value is None or (value.name == "" and value not in self.env):
            return None
        if value not in self.env:
            raise CaptureError(
                "PL141", f"its input {value.name!r} is computed nowhere before it", where=at.where
            )
        return self.env[value]

    def _evaluate(
        self, at: At, inputs: list[Value | None], attributes: Attributes
    ) -> tuple[Value | None, ...]:
        node, domain = at.node, _domain(at.node.domain)
        function = self.model.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            return self.call(function, inputs, at, attributes)
        if not domain:
            early = self._early(at, inputs, attributes)
            if early is not None:
                return early
        handler = handler_of(domain, node.op_type)
        if handler is not None:
            at.need(bool(inputs) or not handler.inputs or handler.inputs[0][2], "it has no inputs", "PL141")
            folded = self._folded(handler, at, inputs, attributes)
            results = folded if folded is not None else _tuple(handler.call(at, inputs, attributes))
            if results[0] is not NotImplemented:
                return results
        body = bodies.body(at, inputs, attributes)
        if body is None:
            raise UnsupportedOpError("PL201", f"the operator {node.op_type} is not supported", where=at.where)
        function, names = body
        results = self.call(function, inputs, at, {**bodies.defaults(at), **attributes})
        found = dict(zip((v.name for v in function.outputs), results, strict=True))
        return tuple(found.get(name) for name in names)

    def _early(
        self, at: At, inputs: list[Value | None], attributes: Attributes
    ) -> tuple[Value | None, ...] | None:
        """The results of shape arithmetic, or None if it is none."""
        name = at.node.op_type
        if name in ("Shape", "Size") and isinstance(inputs[0], (Node, Known)):
            return (shape_of(inputs[0], **attributes) if name == "Shape" else size_of(inputs[0]),)
        if not inputs or not all(v is None or isinstance(v, Known) for v in inputs) or inputs[0] is None:
            return None
        result = evaluate(
            name, [v for v in inputs if v is None or isinstance(v, Known)], attributes, len(at.node.outputs)
        )
        return None if result is None else _tuple(result)

    def _folded(
        self, handler: Handler, at: At, inputs: list[Value | None], attributes: Attributes
    ) -> tuple[Value | None, ...] | None:
        """The results of a node whose inputs are all known numbers, if they are few."""
        if not inputs or not all(v is None or (isinstance(v, Known) and v.numeric) for v in inputs):
            return None
        results = _tuple(handler.call(at, inputs, attributes))
        nodes = [r for r in results if isinstance(r, Node)]
        if len(nodes) != len(results) or not all(
            _few(n.tensor) for n in nodes if isinstance(n.type, TensorType)
        ):
            return results
        if any(n.op == "input" for n in topological(nodes)):  # a branch reads what lies around it
            return results
        from planish.ir.run import run

        return tuple(from_tensor(t) for t in run(Program("fold", (), tuple(nodes)), self.weights))

    def call(
        self, function: onnx_ir.Function, inputs: list[Value | None], at: At, attributes: Attributes
    ) -> tuple[Value | None, ...]:
        """Evaluate a function's body on values."""
        at.need(
            len(inputs) <= len(function.inputs),
            f"takes {len(function.inputs)} inputs, got {len(inputs)}",
            "PL141",
        )
        scope = at.scope.inner(at, {**_defaults(function), **attributes}, function.opset_imports)
        for index, parameter in enumerate(function.inputs):
            self.env[parameter] = inputs[index] if index < len(inputs) else None
        self.run(function, scope)
        return tuple(self.env.get(v) for v in function.outputs)

    def subgraph(
        self, graph: onnx_ir.Graph, inputs: Iterable[Value | None], at: At
    ) -> tuple[Value | None, ...]:
        """Evaluate a branch or a loop's body once; it sees the values around it."""
        for parameter, value in zip(graph.inputs, inputs, strict=True):
            self.env[parameter] = value
        self.run(graph, at.scope.inner(at, at.scope.attributes, None))
        return tuple(self._read(v, at) for v in graph.outputs)

    def _note_origins(self, results: Iterable[Value | None], at: At) -> None:
        stack: list[Node] = []
        for result in results:
            stack += [result] if isinstance(result, Node) else _nodes_of(result)
        origin = Origin(_scope_name(at.name), f"{at.node.op_type} {at.name}")
        while stack:
            node = stack.pop()
            if node in self.origins or node.is_leaf:
                continue
            self.origins[node] = origin
            stack.extend(node.operands)


class Scope:
    """What a body sees: opsets, the attributes of the call, and the prefix of its names."""

    def __init__(
        self,
        opsets: Mapping[str, int],
        attributes: Attributes | None = None,
        prefix: str = "",
        depth: int = 0,
    ) -> None:
        self.opsets, self.attributes, self.prefix, self.depth = opsets, attributes or {}, prefix, depth

    def inner(self, at: At, attributes: Attributes, opsets: Mapping[str, int] | None) -> Scope:
        """The scope of a body that a node calls."""
        if self.depth >= 50:
            raise CaptureError("PL144", "functions or branches are nested too deeply", where=at.where)
        imports = (
            self.opsets if opsets is None else {**self.opsets, **{_domain(d): v for d, v in opsets.items()}}
        )
        return Scope(imports, attributes, f"{at.name}/", self.depth + 1)


def _explained(error: PlanishError, at: At) -> PlanishError:
    """The error with its place, and with what helps where sizes cannot be compared."""
    if error.where is None:
        error.where = at.where
    if error.hint is None and isinstance(error, ShapeError) and "cannot be shown" in error.message:
        error.hint = (
            "say more of the dimensions: dims={'H': (2, 512)} gives a range, dims={'H': 64} a number, "
            "dims={'H': '2*h'} another form"
        )
    return error


def attributes_of(at: At, scope: Scope) -> dict[str, Any]:
    """A node's attributes as plain values; references are looked up in the call that the body serves."""
    out: dict[str, Any] = {}
    for name, attribute in at.node.attributes.items():
        if attribute.is_ref():
            reference = attribute.ref_attr_name
            if reference is not None and reference in scope.attributes:
                out[name] = scope.attributes[reference]
            continue
        out[name] = _plain(attribute)
    return out


def _plain(attribute: onnx_ir.Attr) -> Any:
    value = attribute.value
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _defaults(function: onnx_ir.Function) -> dict[str, Any]:
    return {n: _plain(a) for n, a in function.attributes.items() if a.value is not None}


def handler_of(domain: str, name: str) -> Handler | None:
    """The handler of an operator, if there is one."""
    return HANDLERS.get(f"{domain}::{name}" if domain else name)


def _known_operator(domain: str, name: str) -> bool:
    return handler_of(domain, name) is not None or (not domain and name in ALWAYS)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _tuple(result: Any) -> tuple[Value | None, ...]:
    return result if isinstance(result, tuple) else (result,)


def _few(kind: TensorType) -> bool:
    count = kind.numel
    return isinstance(count, int) and count <= (FLOAT_LIMIT if kind.dtype.is_float else KNOWN_LIMIT // 8)


def _nodes_of(value: Value | None) -> list[Node]:
    if isinstance(value, Items):
        return [n for v in value.items for n in ([v] if isinstance(v, Node) else _nodes_of(v))]
    return []


def _scope_name(name: str) -> str:
    parts = [p for p in name.split("/") if p]
    return ".".join(parts[:-1] if len(parts) > 1 else parts)
