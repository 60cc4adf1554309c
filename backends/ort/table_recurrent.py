"""Recurrent layers: torch's gate orders and layouts to ONNX's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planish.backends.ort.table import Call, lowers

# Where ONNX's gates stand in torch's order: LSTM i,f,g,o -> i,o,f,g; GRU r,z,n -> z,r,n.
_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def _gates(c: Call, kind: str, value: str) -> str:
    """Rows of a weight or bias with the gates in ONNX's order."""
    order = _ORDER[kind]
    if len(order) == 1:
        return value
    parts = c.graph.ops("Split", len(order), value, axis=0, num_outputs=len(order))
    return c.op("Concat", *(parts[i] for i in order), axis=0)


def _stacked(c: Call, values: Sequence[str]) -> str:
    """One value per direction, along a new first axis."""
    rows = [c.op("Unsqueeze", v, c.graph.ints(0)) for v in values]
    return c.op("Concat", *rows, axis=0) if len(rows) > 1 else rows[0]


def _recurrent(kind: str, results: int, **attributes: Any) -> Any:
    def emit(
        c: Call, x: str, initial: Sequence[str], weights: Sequence[str], biases: bool, layers: int, bidirectional: bool,
        batch_first: bool,
    ) -> tuple[str, ...]:  # fmt: skip
        directions = 2 if bidirectional else 1
        first_state = c.node.args[1][0]
        hidden = int(first_state.shape[-1])
        each = 4 if biases else 2
        value = c.op("Transpose", x, perm=[1, 0, 2]) if batch_first else x
        last: list[list[str]] = [[] for _ in initial]
        extra = dict(attributes)
        if kind == "RNN":
            extra["activations"] = attributes["activations"] * directions
        for layer in range(layers):
            packs = [
                weights[(layer * directions + d) * each : (layer * directions + d + 1) * each]
                for d in range(directions)
            ]
            w, r = (_stacked(c, [_gates(c, kind, p[i]) for p in packs]) for i in (0, 1))
            b = None
            if biases:
                joined = [c.op("Concat", _gates(c, kind, p[2]), _gates(c, kind, p[3]), axis=0) for p in packs]
                b = _stacked(c, joined)
            at = layer * directions
            start, end = c.graph.ints(at), c.graph.ints(at + directions)
            states = [c.op("Slice", s, start, end, c.graph.ints(0)) for s in initial]
            direction = "bidirectional" if bidirectional else "forward"
            found = c.graph.ops(
                kind, results, value, w, r, b, None, *states, hidden_size=hidden, direction=direction, **extra
            )
            value = c.op("Transpose", found[0], perm=[0, 2, 1, 3])
            value = c.op("Reshape", value, c.graph.ints(0, 0, directions * hidden))
            for i, each_state in enumerate(found[1:]):
                last[i].append(each_state)
        value = c.op("Transpose", value, perm=[1, 0, 2]) if batch_first else value
        return (value, *(c.op("Concat", *s, axis=0) if len(s) > 1 else s[0] for s in last))

    return emit


lowers("aten.lstm", native="f32 f64")(_recurrent("LSTM", 3))
lowers("aten.gru", native="f32 f64")(_recurrent("GRU", 2, linear_before_reset=1))
lowers("aten.rnn_tanh", native="f32")(_recurrent("RNN", 2, activations=["Tanh"]))
lowers("aten.rnn_relu", native="f32")(_recurrent("RNN", 2, activations=["Relu"]))
