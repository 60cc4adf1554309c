"""Recurrent layers: loops over time, one layer and direction after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.expressions import Call, cast, literal
from planish.backends.tvm.table import computed, lowers, storage
from planish.backends.tvm.table_pointwise import larger

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True)
class _Shape:
    """What the loops run over, and how the input lies in memory."""

    kind: str
    steps: Any
    batch: Any
    hidden: int
    batch_first: bool

    @property
    def gates(self) -> int:
        """Gates of a cell."""
        return GATES[self.kind]


def _sigmoid(x: Any, kind: str) -> Any:
    one = literal(1, kind)
    return one / (one + tirx.exp(literal(0, kind) - x))


@lowers("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu", form="loops")
def _recurrent(
    c: Call, x: Any, initial: Sequence[Any], weights: Sequence[Any], biases: bool, layers: int, bidirectional: bool,
    batch_first: bool, *results: Any,
) -> None:  # fmt: skip
    node, name = c.node, c.node.op.removeprefix("aten.")
    shape = c.shape(node.args[0])
    batch, steps = (shape[0], shape[1]) if batch_first else (shape[1], shape[0])
    hidden = int(node.args[1][0].shape[-1])
    form = _Shape(name, steps, batch, hidden, batch_first)
    directions, per = (2 if bidirectional else 1), (4 if biases else 2)
    wide, kind = directions * hidden, computed(node.args[0].dtype)
    narrow = storage(node.args[0].dtype)
    width: int = int(node.args[0].shape[-1])

    def read_input(t: Any, b: Any, i: Any) -> Any:
        return cast(x[b, t, i] if batch_first else x[t, b, i], kind)

    read: Callable[..., Any] = read_input
    for layer in range(layers):
        last = layer == layers - 1
        made = None if last else T.alloc_buffer((steps, batch, wide), kind)
        for direction in range(directions):
            place = layer * directions + direction
            part = weights[place * per : (place + 1) * per]

            def write(
                t: Any, b: Any, j: Any, value: Any, made: Any = made, offset: int = direction * hidden
            ) -> None:
                if made is not None:
                    T.buffer_store(made, value, [t, b, offset + j])
                else:
                    at = [b, t, offset + j] if batch_first else [t, b, offset + j]
                    T.buffer_store(results[0], cast(value, narrow), at)

            _layer(form, kind, read, width, part, list(initial), place, direction == 1, write, results[1:])
        if made is not None:
            width = wide
            read = lambda t, b, i, made=made: made[t, b, i]  # noqa: E731


def _layer(
    form: _Shape, kind: str, read: Callable[..., Any], width: int, part: Sequence[Any], initial: Sequence[Any],
    place: int, backward: bool, write: Callable[..., None], final: Sequence[Any],
) -> None:  # fmt: skip
    hidden, gates = form.hidden, form.gates
    states = [T.alloc_buffer((form.batch, hidden), kind) for _ in initial]
    # Two sums for each gate: from the input and from the state; a gru multiplies the latter before it is added.
    sums = T.alloc_buffer((2, gates * hidden), kind)
    w_input, w_state = part[0], part[1]
    with T.serial(0, form.batch) as b, T.serial(0, hidden) as j:
        for state, begin in zip(states, initial, strict=True):
            T.buffer_store(state, cast(begin[place, b, j], kind), [b, j])
    with T.serial(0, form.steps) as step:
        t = form.steps - 1 - step if backward else step
        with T.serial(0, form.batch) as b:
            with T.serial(0, gates * hidden) as g:
                for side in (0, 1):
                    start = cast(part[2 + side][g], kind) if len(part) == 4 else literal(0, kind)
                    T.buffer_store(sums, start, [side, g])
                with T.serial(0, width) as i:
                    T.buffer_store(sums, sums[0, g] + cast(w_input[g, i], kind) * read(t, b, i), [0, g])
                with T.serial(0, hidden) as i:
                    T.buffer_store(sums, sums[1, g] + cast(w_state[g, i], kind) * states[0][b, i], [1, g])
            with T.serial(0, hidden) as j:
                for state, value in zip(states, _cell(form, kind, sums, states, b, j), strict=True):
                    T.buffer_store(state, value, [b, j])
                write(t, b, j, states[0][b, j])
    with T.serial(0, form.batch) as b, T.serial(0, hidden) as j:
        for state, out in zip(states, final, strict=True):
            T.buffer_store(out, cast(state[b, j], str(out.dtype)), [place, b, j])


def _cell(form: _Shape, kind: str, sums: Any, states: Sequence[Any], b: Any, j: Any) -> list[Any]:
    """The new states of a unit, the output first. Bound to names: a state is read before it is written."""

    def both(gate: int) -> Any:
        return sums[0, gate * form.hidden + j] + sums[1, gate * form.hidden + j]

    if form.kind == "lstm":
        memory = T.bind(
            _sigmoid(both(1), kind) * states[1][b, j] + _sigmoid(both(0), kind) * tirx.tanh(both(2))
        )
        return [_sigmoid(both(3), kind) * tirx.tanh(memory), memory]
    if form.kind == "gru":
        reset, update = T.bind(_sigmoid(both(0), kind)), T.bind(_sigmoid(both(1), kind))
        new = T.bind(tirx.tanh(sums[0, 2 * form.hidden + j] + reset * sums[1, 2 * form.hidden + j]))
        return [(literal(1, kind) - update) * new + update * states[0][b, j]]
    total = T.bind(both(0))
    return [tirx.tanh(total) if form.kind == "rnn_tanh" else larger(total, literal(0, kind))]
