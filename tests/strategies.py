"""Random well-typed programs for hypothesis, and values to run them on."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from planish.errors import PlanishError
from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Origin, Program, const, input_leaf, state
from planish.ir.run import example_value
from planish.ir.types import TensorType, bounds, dim, dtype, size, symbols_of, tensor_type
from planish.ir.weights import Weights

B, T = dim("B", 1, 8), dim("T", 2, 512)
SHAPES = ((2, 3), (T, 4), (B, T, 4), (2, 1, 4), (4,), (2, T, 2, 2), (T,))
UNARY = ("neg", "abs", "relu", "sigmoid", "tanh", "exp", "silu", "floor", "cos")
BINARY = ("add", "sub", "mul", "maximum", "minimum", "div")
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 1e-6, 8])
SCOPES = st.sampled_from(["", "", "layers.0.mlp", "layers.1.attention", "head"])


class Builder:
    """A program that grows by random steps; a step that does not fit is left out."""

    def __init__(self, draw: Any, loops: bool) -> None:
        self.draw = draw
        self.loops = loops
        self.count = 0
        self.nodes: list[Node] = []
        self.origins: dict[Node, Origin] = {}

    def pick(self, test: Any = lambda n: True) -> Node:
        fitting = [n for n in self.nodes if test(n)]
        if not fitting:
            raise LookupError
        return self.draw(st.sampled_from(fitting))

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}.{self.count}"

    def axis(self, x: Node) -> int:
        if not x.rank:
            raise LookupError
        return self.draw(st.integers(0, x.rank - 1))

    def float(self) -> Node:
        return self.pick(lambda n: n.dtype.is_float)

    def like(self, x: Node) -> Any:
        """An operand that goes with ``x``: of its type, a number, a constant or one value for all."""
        choice = self.draw(st.integers(0, 5))
        if choice == 0:
            return self.draw(NUMBERS)
        if choice == 1:
            return aten.full(x.shape, self.draw(NUMBERS), x.dtype)
        if choice == 2 and x.rank and isinstance(x.shape[-1], int):
            return const(self.name("bias"), TensorType(x.dtype, x.shape[-1:]))
        if choice == 3 and x.rank:
            return aten.expand(aten.slice(x, 0, 0, 1), x.shape)
        return self.pick(lambda n: n.type == x.type)

    # One method for each kind of step; names begin with `step`.

    def step_unary(self) -> Node:
        return getattr(aten, self.draw(st.sampled_from(UNARY)))(self.float())

    def step_binary(self) -> Node:
        x = self.float()
        operands = [x, self.like(x)]
        if self.draw(st.booleans()):
            operands.reverse()
        return getattr(aten, self.draw(st.sampled_from(BINARY)))(*operands)

    def step_compare(self) -> Node:
        x = self.pick(lambda n: n.dtype.kind != "bool")
        name = self.draw(st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge"]))
        y = self.pick(lambda n: n.type == x.type) if self.draw(st.booleans()) else 1
        return getattr(aten, name)(x, y)

    def step_logic(self) -> Node:
        x = self.pick(lambda n: n.dtype.kind == "bool")
        if self.draw(st.booleans()):
            return aten.logical_not(x)
        name = self.draw(st.sampled_from(["bitwise_and", "bitwise_or", "bitwise_xor"]))
        y = self.draw(st.booleans()) if self.draw(st.booleans()) else self.pick(lambda n: n.type == x.type)
        return getattr(aten, name)(x, y)

    def step_where(self) -> Node:
        condition = self.pick(lambda n: n.dtype.kind == "bool")
        a = self.pick(lambda n: n.dtype.is_float and n.shape == condition.shape)
        return aten.where(condition, a, self.like(a))

    def step_cast(self) -> Node:
        target = self.draw(st.sampled_from(["f32", "f64", "f16", "i64", "bool"]))
        x = self.pick(lambda n: not (n.dtype.is_float and target == "i64"))
        return aten.to(x, dtype(target))

    def step_integers(self) -> Node:
        x = self.pick(lambda n: n.dtype.name == "i64")
        number = self.draw(st.integers(-2, 3))
        return getattr(aten, self.draw(st.sampled_from(["add", "mul", "sub"])))(x, number)

    def step_permute(self) -> Node:
        x = self.pick()
        return aten.permute(x, self.draw(st.permutations(range(x.rank))))

    def step_view(self) -> Node:
        x = self.pick()
        axis = self.draw(st.integers(0, x.rank))
        if self.draw(st.booleans()) or axis + 1 >= x.rank:
            return aten.view(x, [*x.shape[:axis], 1, *x.shape[axis:]])
        joint = size(x.shape[axis] * x.shape[axis + 1])
        return aten.view(x, [*x.shape[:axis], joint, *x.shape[axis + 2 :]])

    def step_expand(self) -> Node:
        x = self.pick()
        return aten.expand(x, [self.draw(st.sampled_from([1, 2, T])), *x.shape])

    def step_slice(self) -> Node:
        x = self.pick()
        axis = self.axis(x)
        low = int(bounds(x.shape[axis])[0])
        start = self.draw(st.integers(0, max(low - 1, 0)))
        end = self.draw(st.sampled_from([x.shape[axis], max(low, start)]))
        return aten.slice(x, axis, start, end, self.draw(st.sampled_from([1, 1, 2])))

    def step_halves(self) -> Node:
        x = self.float()
        axis = self.axis(x)
        parts = [aten.slice(x, axis, 0, 1), aten.slice(x, axis, 1, x.shape[axis])]
        if self.draw(st.booleans()):
            parts[1] = aten.neg(parts[1])
        return aten.cat(parts, axis)

    def step_cat(self) -> Node:
        x = self.pick()
        return aten.cat([x, self.pick(lambda n: n.type == x.type)], self.axis(x))

    def step_flip(self) -> Node:
        x = self.pick()
        return aten.flip(x, [self.axis(x)])

    def step_reduce(self) -> Node:
        x = self.float()
        name = self.draw(st.sampled_from(["sum", "mean", "amax"]))
        return getattr(aten, name)(x, [self.axis(x)], self.draw(st.booleans()))

    def step_softmax(self) -> Node:
        x = self.float()
        return aten.softmax(x, self.axis(x))

    def step_linear(self) -> Node:
        x = self.pick(lambda n: n.dtype.name == "f32" and n.rank and isinstance(n.shape[-1], int))
        weight = const(self.name("weight"), tensor_type("f32", 3, x.shape[-1]))
        if self.draw(st.booleans()):
            return aten.matmul(x, aten.permute(weight, [1, 0])) if x.rank > 1 else aten.linear(x, weight)
        return aten.linear(x, aten.mul(weight, 2.0), const(self.name("bias"), tensor_type("f32", 3)))

    def step_positions(self) -> Node:
        return aten.arange(0, self.draw(st.sampled_from([4, T, size(T + 1)])))

    def step_cond(self) -> Node:
        if not self.loops:
            raise LookupError
        x = self.float()
        leaf = input_leaf("value", x.tensor)
        then = Program(self.name("then").replace(".", ""), (leaf,), (aten.neg(aten.neg(leaf)),))
        other = Program(self.name("other").replace(".", ""), (leaf,), (aten.mul(leaf, self.draw(NUMBERS)),))
        predicate = aten.gt(aten.sum(aten.to(x, dtype("f32"))), 0.0)
        return planish.item(planish.cond(predicate, then, other, [x]), 0)

    def step_scan(self) -> Node:
        if not self.loops:
            raise LookupError
        x = self.pick(lambda n: n.dtype.is_float and n.rank >= 1)
        total = input_leaf("total", TensorType(x.dtype, x.shape[1:]))
        row = input_leaf("row", TensorType(x.dtype, x.shape[1:]))
        after = aten.add(aten.mul(total, 1.0), row)
        body = Program(self.name("body").replace(".", ""), (total, row), (after, aten.neg(after)))
        start = aten.full(x.shape[1:], 0.0, x.dtype)
        return planish.item(planish.scan(body, [start], [x]), self.draw(st.integers(0, 1)))

    def grow(self, steps: int) -> None:
        kinds = sorted(name for name in dir(self) if name.startswith("step_"))
        for _ in range(steps):
            step = getattr(self, self.draw(st.sampled_from(kinds)))
            try:
                made = step()
            except (LookupError, PlanishError):
                continue
            if made.rank <= 5 and int(bounds(made.tensor.numel)[0]) < 10_000:
                self.nodes.append(made)
                self.origins.setdefault(made, Origin(self.draw(SCOPES)))


@st.composite
def programs(draw: Any, steps: int = 12, loops: bool = True) -> Program:
    """A program of about as many steps, with symbolic sizes, constants, maybe a state and nested programs."""
    builder = Builder(draw, loops)
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    inputs = [input_leaf(f"x{i}", tensor_type("f32", *shape)) for i, shape in enumerate(shapes)]
    inputs += [input_leaf("mask", tensor_type("bool", B, T)), input_leaf("ids", tensor_type("i64", B, T))]
    builder.nodes += inputs
    kept = state("total", tensor_type("f32", 2, 3))
    if draw(st.booleans()):
        builder.nodes.append(kept)
    builder.grow(steps)
    made = [n for n in builder.nodes if not n.is_leaf] or [aten.neg(inputs[0])]
    outputs = tuple(made[-2:])
    states = (("total", aten.add(kept, 1.0)),) if kept in builder.nodes else ()
    return Program("main", tuple(inputs), outputs, states, builder.origins)


def values_for(
    program: Program, seed: int = 0
) -> tuple[Weights, list[torch.Tensor], dict[str, torch.Tensor]]:
    """Weights, inputs and states for a program; the sizes depend on the seed."""
    symbols = sorted(symbols_of(tuple(i.type for i in program.inputs)), key=str)
    binding = {s: min(s.high, max(s.low, 3 + seed + i)) for i, s in enumerate(symbols)}
    weights = Weights()
    for i, leaf in enumerate(sorted(program.constants(), key=lambda n: n.name)):
        weights.add(leaf.name, example_value(leaf.tensor, {}, 100 + i))
    inputs = [example_value(n.tensor, binding, seed + i) for i, n in enumerate(program.inputs)]
    states = {n.name: example_value(n.tensor, {}, seed + 50) for n in program.nodes if n.op == "state"}
    return weights, inputs, states
