"""Results of tuple-typed operations, branches and loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from planish.backends.ort.graph import Graph, value_info
from planish.backends.ort.table import Call, lowers
from planish.ir.node import Program


@lowers("planish.item")
def _item(c: Call, value: Sequence[str], index: int) -> str:
    return value[index]


@lowers("planish.cond")
def _cond(
    c: Call, predicate: str, then: Program, otherwise: Program, operands: Sequence[str]
) -> tuple[str, ...]:
    if c.shape():
        predicate = c.op("Reshape", predicate, c.graph.ints())
    branches: dict[str, Any] = {}
    for name, program in (("then_branch", then), ("else_branch", otherwise)):
        inner = Graph(c.graph)
        for value, leaf in zip(operands, program.inputs, strict=True):
            inner.bind(value, leaf.shape)
        results = c.emit_program(inner, program, operands)
        branches[name] = _finish(inner, name, program, results, [])
    return c.graph.ops("If", len(then.outputs), predicate, **branches)


@lowers("planish.scan")
def _scan(
    c: Call, body: Program, initial: Sequence[str], xs: Sequence[str], extra: Sequence[str]
) -> tuple[str, ...]:
    inner = Graph(c.graph)
    count = len(initial) + len(xs)
    names = [inner.fresh(f"scan/{leaf.name}") for leaf in body.inputs[:count]]
    given = [*names, *extra]
    for value, leaf in zip(given, body.inputs, strict=True):
        inner.bind(value, leaf.shape)
    results = c.emit_program(inner, body, given)
    inputs = [
        value_info(n, leaf.dtype, leaf.shape) for n, leaf in zip(names, body.inputs[:count], strict=True)
    ]
    graph = _finish(inner, "body", body, results, inputs)
    return c.graph.ops("Scan", len(body.outputs), *initial, *xs, body=graph, num_scan_inputs=len(xs))


def _finish(
    inner: Graph, name: str, program: Program, results: Sequence[str], inputs: Sequence[onnx.ValueInfoProto]
) -> onnx.GraphProto:
    """The nested graph, every result under a name of its own."""
    outputs = []
    for value, node in zip(results, program.outputs, strict=True):
        own = inner.fresh(f"{name}/result")
        inner.copy(value, own)
        outputs.append(value_info(own, node.dtype, node.shape))
    return helper.make_graph(inner.nodes, inner.fresh(name), inputs, outputs)
