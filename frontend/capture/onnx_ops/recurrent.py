"""Recurrent layers: as one operation where ATen has the same cell, else written out step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from planish.frontend.capture.onnx_ops.control import UNROLL_LIMIT
from planish.frontend.capture.onnx_ops.pointwise import cast
from planish.frontend.capture.onnx_ops.registry import At, Result, onnx_op
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.types import i64, size

Activation = Callable[[Node], Node]
_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# The order of the gates in ATen's weights, as places in ONNX's: LSTM i o f c -> i f c o, GRU z r h -> r z h.
_ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}


@dataclass(frozen=True)
class Layer:
    """What a recurrent node says, with the batch on the second axis."""

    kind: str
    x: Node
    w: Node
    r: Node
    b: Node | None
    lengths: Node | None
    h: Node
    c: Node | None
    peepholes: Node | None
    activations: tuple[str, ...]
    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    clip: float | None
    direction: str
    linear_before_reset: bool
    input_forget: bool

    @property
    def hidden(self) -> Any:
        """The size of the state."""
        return self.r.shape[2]


def part(x: Node, index: int) -> Node:
    """One slice of the first axis, without it."""
    return aten.view(aten.slice(x, 0, index, index + 1), x.shape[1:])


def _layer(
    at: At, kind: str, x: Node, w: Node, r: Node, b: Node | None, lengths: Node | None, h: Node | None, c: Node | None,
    peepholes: Node | None, attributes: dict[str, Any],
) -> Result:  # fmt: skip
    batch_first = bool(attributes["layout"])
    if batch_first:
        x = aten.permute(x, (1, 0, 2))
        h, c = (None if s is None else aten.permute(s, (1, 0, 2)) for s in (h, c))
    count, hidden = w.shape[0], r.shape[2]
    at.need(isinstance(count, int) and count in (1, 2), "the number of directions is not 1 or 2", "PL141")
    empty = aten.full((count, x.shape[1], hidden), 0.0, x.dtype)
    names = tuple(attributes["activations"]) or _DEFAULTS[kind] * int(count)
    layer = Layer(
        kind, x, w, r, b, lengths, empty if h is None else h, (empty if c is None else c) if kind == "LSTM" else None,
        peepholes, names, tuple(attributes["activation_alpha"]), tuple(attributes["activation_beta"]),
        attributes["clip"], attributes["direction"], bool(attributes.get("linear_before_reset", 0)),
        bool(attributes.get("input_forget", 0)),
    )  # fmt: skip
    y, *states = _whole(layer) if _is_standard(layer) else _written_out(layer, at)
    if batch_first:
        y = aten.permute(y, (2, 0, 1, 3))
        states = [aten.permute(s, (1, 0, 2)) for s in states]
    return (y, *states)


def _is_standard(layer: Layer) -> bool:
    """True if ATen has this cell."""
    count = len(layer.activations) // len(_DEFAULTS[layer.kind])
    usual = layer.activations == _DEFAULTS[layer.kind] * count
    if layer.kind == "RNN":
        usual = len(set(layer.activations)) == 1 and layer.activations[0] in ("Tanh", "Relu")
    plain = (
        layer.lengths is None and layer.peepholes is None and layer.clip is None and not layer.input_forget
    )
    return usual and plain and (layer.kind != "GRU" or layer.linear_before_reset)


def _reordered(weight: Node, layer: Layer) -> Node:
    order = _ORDER[layer.kind]
    if len(order) == 1:
        return weight
    h = layer.hidden
    return aten.cat([aten.slice(weight, 0, size(g * h), size((g + 1) * h)) for g in order], 0)


def _whole(layer: Layer) -> list[Node]:
    """One ATen operation."""
    count, half = layer.w.shape[0], size(_GATES[layer.kind] * layer.hidden)
    backwards = layer.direction == "reverse"
    weights: list[Node] = []
    for i in range(count):
        weights += [_reordered(part(layer.w, i), layer), _reordered(part(layer.r, i), layer)]
        if layer.b is not None:
            both = part(layer.b, i)
            weights += [_reordered(aten.slice(both, 0, a, size(a + half)), layer) for a in (0, half)]
    x = aten.flip(layer.x, (0,)) if backwards else layer.x
    initial = [layer.h] if layer.c is None else [layer.h, layer.c]
    name = {"RNN": f"rnn_{layer.activations[0].lower()}", "GRU": "gru", "LSTM": "lstm"}[layer.kind]
    result = getattr(aten, name)(x, initial, weights, layer.b is not None, 1, count == 2, False)
    y = planish.item(result, 0)
    y = aten.flip(y, (0,)) if backwards else y
    steps, batch = layer.x.shape[:2]
    y = aten.permute(aten.view(y, (steps, batch, count, layer.hidden)), (0, 2, 1, 3))
    return [y, *(planish.item(result, i + 1) for i in range(len(initial)))]


def _activation(name: str, alphas: list[float], betas: list[float], at: At) -> Activation:
    """An activation by name; the ones with parameters take theirs from the front of the lists."""

    def alpha(default: float) -> float:
        return alphas.pop(0) if alphas else default

    def beta(default: float) -> float:
        return betas.pop(0) if betas else default

    plain = {
        "relu": aten.relu, "tanh": aten.tanh, "sigmoid": aten.sigmoid, "softplus": aten.softplus,
        "softsign": lambda v: aten.div(v, aten.add(aten.abs(v), 1.0)),
    }  # fmt: skip
    key = name.lower()
    if key in plain:
        return plain[key]
    if key == "affine":
        a, b = alpha(1.0), beta(0.0)
        return lambda v: aten.add(aten.mul(v, a), b)
    if key == "leakyrelu":
        a = alpha(0.01)
        return lambda v: aten.leaky_relu(v, a)
    if key == "thresholdedrelu":
        a = alpha(1.0)
        return lambda v: aten.where(aten.gt(v, a), v, 0.0)
    if key == "scaledtanh":
        a, b = alpha(1.0), beta(1.0)
        return lambda v: aten.mul(aten.tanh(aten.mul(v, b)), a)
    if key == "hardsigmoid":
        a, b = alpha(0.2), beta(0.5)
        return lambda v: aten.clamp(aten.add(aten.mul(v, a), b), 0.0, 1.0)
    if key == "elu":
        a = alpha(1.0)
        return lambda v: aten.elu(v, a)
    return at.refuse(f"the activation {name!r} is not supported")


def _written_out(layer: Layer, at: At) -> list[Node]:
    """One cell per step and direction."""
    steps, batch = layer.x.shape[:2]
    if not isinstance(steps, int):
        at.refuse(f"this variant of {layer.kind} is written out, and its length {steps} is dynamic")
    at.need(
        1 <= steps <= UNROLL_LIMIT, f"{steps} steps of a variant that is written out; at most {UNROLL_LIMIT}"
    )
    per, alphas, betas = len(_DEFAULTS[layer.kind]), list(layer.alphas), list(layer.betas)
    outputs, states = [], []
    for i in range(layer.w.shape[0]):
        functions = [_activation(n, alphas, betas, at) for n in layer.activations[i * per : (i + 1) * per]]
        at.need(len(functions) == per, f"{per} activations are needed", "PL141")
        backwards = layer.direction == "reverse" or i == 1
        rows, last = _direction(layer, i, functions, backwards, steps)
        outputs.append(rows)
        states.append(last)
    stacked = [
        aten.cat([aten.view(o[t], (1, 1, batch, layer.hidden)) for o in outputs], 1) for t in range(steps)
    ]
    finals = [
        aten.cat([aten.view(s[k], (1, batch, layer.hidden)) for s in states], 0)
        for k in range(len(states[0]))
    ]
    return [aten.cat(stacked, 0), *finals]


def _direction(
    layer: Layer, index: int, functions: Sequence[Activation], backwards: bool, steps: int
) -> tuple[list[Node], list[Node]]:
    w, r = part(layer.w, index), part(layer.r, index)
    bias = None if layer.b is None else part(layer.b, index)
    state = [part(layer.h, index)] + ([] if layer.c is None else [part(layer.c, index)])
    rows: list[Node] = [state[0]] * steps
    x, lengths = layer.x, None
    if layer.lengths is not None:
        lengths = aten.view(cast(layer.lengths, i64), (layer.x.shape[1], 1))
    for t in reversed(range(steps)) if backwards else range(steps):
        new = _cell(layer, part(x, t), state, w, r, bias, index, functions)
        if lengths is not None:
            inside = aten.lt(aten.full((), t, i64), lengths)
            rows[t] = aten.where(inside, new[0], 0.0)
            new = [aten.where(inside, a, b) for a, b in zip(new, state, strict=True)]
        else:
            rows[t] = new[0]
        state = new
    return rows, state


def _cell(
    layer: Layer, x: Node, state: list[Node], w: Node, r: Node, bias: Node | None, index: int,
    functions: Sequence[Activation],
) -> list[Node]:  # fmt: skip
    hidden, gates = layer.hidden, _GATES[layer.kind]

    def cut(v: Node, gate: int, axis: int) -> Node:
        return aten.slice(v, axis, size(gate * hidden), size((gate + 1) * hidden))

    def clipped(v: Node) -> Node:
        return v if layer.clip is None else aten.clamp(v, -layer.clip, layer.clip)

    wide = size(gates * hidden)
    given = aten.linear(x, w, None if bias is None else aten.slice(bias, 0, 0, wide))
    back = None if bias is None else aten.slice(bias, 0, wide, size(2 * wide))
    h = state[0]
    if layer.kind == "RNN":
        return [functions[0](clipped(aten.add(given, aten.linear(h, r, back))))]
    if layer.kind == "GRU":
        f, g = functions
        two = size(2 * hidden)
        both = aten.add(
            aten.slice(given, 1, 0, two),
            aten.linear(h, aten.slice(r, 0, 0, two), None if back is None else aten.slice(back, 0, 0, two)),
        )
        z, reset = f(clipped(cut(both, 0, 1))), f(clipped(cut(both, 1, 1)))
        r_h, b_h = cut(r, 2, 0), None if back is None else cut(back, 2, 0)
        if layer.linear_before_reset:
            from_h = aten.mul(reset, aten.linear(h, r_h, b_h))
        else:
            from_h = aten.linear(aten.mul(reset, h), r_h, b_h)
        new = g(clipped(aten.add(cut(given, 2, 1), from_h)))
        return [aten.add(aten.mul(aten.sub(1.0, z), new), aten.mul(z, h))]
    c, (f, g, last) = state[1], functions
    total = aten.add(given, aten.linear(h, r, back))
    i, o, forget, cell = (cut(total, k, 1) for k in range(4))
    p = None if layer.peepholes is None else part(layer.peepholes, index)

    def peep(v: Node, place: int, memory: Node) -> Node:
        return v if p is None else aten.add(v, aten.mul(cut(p, place, 0), memory))

    i = f(clipped(peep(i, 0, c)))
    forget = aten.sub(1.0, i) if layer.input_forget else f(clipped(peep(forget, 2, c)))
    memory = aten.add(aten.mul(forget, c), aten.mul(i, g(clipped(cell))))
    o = f(clipped(peep(o, 1, memory)))
    return [aten.mul(o, last(memory)), memory]


@onnx_op("RNN")
def rnn(
    x: Node, w: Node, r: Node, b: Node | None = None, lengths: Node | None = None, h: Node | None = None, *,
    activation_alpha: Any = (), activation_beta: Any = (), activations: Any = (), clip: float | None = None,
    direction: str = "forward", hidden_size: int = 0, layout: int = 0, at: At,
) -> Result:  # fmt: skip
    """h' = f(W x + R h + b)"""
    given = {"activation_alpha": activation_alpha, "activation_beta": activation_beta, "activations": activations,
             "clip": clip, "direction": direction, "layout": layout}  # fmt: skip
    return _layer(at, "RNN", x, w, r, b, lengths, h, None, None, given)


@onnx_op("GRU")
def gru(
    x: Node, w: Node, r: Node, b: Node | None = None, lengths: Node | None = None, h: Node | None = None, *,
    activation_alpha: Any = (), activation_beta: Any = (), activations: Any = (), clip: float | None = None,
    direction: str = "forward", hidden_size: int = 0, layout: int = 0, linear_before_reset: int = 0, at: At,
) -> Result:  # fmt: skip
    """Gated recurrent unit"""
    given = {"activation_alpha": activation_alpha, "activation_beta": activation_beta, "activations": activations,
             "clip": clip, "direction": direction, "layout": layout,
             "linear_before_reset": linear_before_reset}  # fmt: skip
    return _layer(at, "GRU", x, w, r, b, lengths, h, None, None, given)


@onnx_op("LSTM")
def lstm(
    x: Node, w: Node, r: Node, b: Node | None = None, lengths: Node | None = None, h: Node | None = None,
    c: Node | None = None, peepholes: Node | None = None, *, activation_alpha: Any = (), activation_beta: Any = (),
    activations: Any = (), clip: float | None = None, direction: str = "forward", hidden_size: int = 0,
    input_forget: int = 0, layout: int = 0, at: At,
) -> Result:  # fmt: skip
    """Long short-term memory"""
    given = {"activation_alpha": activation_alpha, "activation_beta": activation_beta, "activations": activations,
             "clip": clip, "direction": direction, "layout": layout, "input_forget": input_forget}  # fmt: skip
    return _layer(at, "LSTM", x, w, r, b, lengths, h, c, peepholes, given)
