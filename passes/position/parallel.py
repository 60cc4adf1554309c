"""Entry points over contexts that were encoded side by side: adaptive parallel encoding (APE, arXiv 2502.05431).

Contexts are read one by one behind a common prefix, each of them from the position behind it, by the ordinary entry
points. Their rows are then put behind one another. What is read afterwards sees all of them: it is written to the rows
behind them, while its positions go on behind the longest, so that rows and positions are told apart.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planish.errors import PlanishError, UnsupportedOpError
from planish.ir.namespace import planish
from planish.ir.node import Module, Node, Program, input_leaf
from planish.ir.types import TensorType, f32, i64
from planish.ir.weights import Weights
from planish.passes.position.cache import Cached, CacheOptions, Step
from planish.passes.position.last import last_rows
from planish.passes.position.places import Places

POSITION, FIRST, LAST, TEMPERATURE, SHARE = "position", "first", "last", "temperature", "share"
SUFFIX = "_parallel"


class ParallelStep(Step):
    """A step whose rows stand in the caches from ``start`` on and in the text from ``position`` on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.contexts = tuple(input_leaf(n, TensorType(i64, (self.batch,))) for n in (FIRST, LAST))
        self.scales = tuple(input_leaf(n, TensorType(f32, (self.batch,))) for n in (TEMPERATURE, SHARE))
        position = input_leaf(POSITION, TensorType(i64, (self.batch,)))
        self.places = Places(
            self.sequence, self.weights, self.batch, self.new, self.options.context, position
        )
        self.inputs = (self.start, self.count, position, *self.contexts, *self.scales)

    def _attend(self, node: Node) -> Node:
        q, k, v, mask, _, window, scale, softcap = node.args
        if window is not None and window < self.options.context:
            raise self._refused(
                node, f"sees a window of {window} positions, and its rows are not in their order"
            )
        if mask is not None:
            raise self._refused(
                node, f"has a mask or bias of type {mask.type}, which speaks of rows in their order"
            )
        query = self._query(node, q, k)
        keys, values = (
            self._cache(kind, each, self.options.context, False, None)
            for kind, each in (("keys", k), ("values", v))
        )
        return planish.attend_parallel(
            query, keys, values, self.start, self.count, *self.contexts, *self.scales, scale, softcap
        )

    def _refused(self, node: Node, why: str) -> PlanishError:
        origin = self.sequence.program.origins.get(node)
        return UnsupportedOpError(
            "PL264", f"contexts cannot be read side by side: {node.op} {why}",
            where=origin.source if origin is not None else None,
            hint="leave out parallel; linear biases and windows need contexts that are read one after another",
        )  # fmt: skip


def with_parallel(cached: Cached, weights: Weights, options: CacheOptions, new: Any) -> Cached:
    """The same with ``prefill_parallel``, ``decode_parallel`` and, where there is ``extend``, ``extend_parallel``.

    They take what the ordinary ones take, and ``position i64[B]``, the position of the first new token; ``first`` and
    ``last`` ``i64[B]``, between which rows of the caches are contexts; ``temperature`` and ``share`` ``f32[B]``.
    Raises ``UnsupportedOpError`` PL264 if attention has a window or a bias, which are bound to the order of rows.
    """
    chunk, made = cached.generation["chunk"], []
    for name, rows in (("prefill", new), ("decode", 1)):
        step = ParallelStep(cached.sequence, options, weights, rows, name + SUFFIX, chunk)
        made.append(step.program())
        if name == "prefill":
            whole, made[0] = made[0], last_rows(made[0], rows, step.count)
    if options.extend:
        made.append(replace(whole, name="extend" + SUFFIX))
    return replace(cached, module=Module((*cached.module.programs, *made)))


def is_parallel(program: Program) -> bool:
    """Whether a program is an entry point over contexts that were read side by side."""
    return program.name.endswith(SUFFIX)


__all__ = ["POSITION", "SUFFIX", "is_parallel", "with_parallel"]
