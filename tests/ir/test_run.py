"""The interpreter: hooks, overrides, gradients, states, nested programs, and inputs that do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from strategies import programs, values_for

from planish.errors import ShapeError
from planish.ir.namespace import aten, planish
from planish.ir.node import Module, input_leaf
from planish.ir.parser import parse
from planish.ir.run import bind_inputs, run
from planish.ir.types import evaluate, tensor_type
from planish.ir.verify import verify
from planish.ir.weights import Weights

LINEAR = """T = dim(2, 512)


def main(x: f32[T, 4]):
    w: f32[3, 4] = const('w')
    b: f32[3]    = const('b')
    y = aten.linear(x, w, b)
    z = aten.tanh(y)
    return z
"""


@pytest.fixture
def weights():
    made = Weights()
    made.add("w", torch.arange(12.0).reshape(3, 4) / 10)
    made.add("b", torch.tensor([0.1, 0.2, 0.3]))
    return made


@settings(max_examples=80)
@given(programs())
def test_results_have_the_types_that_inference_says(program):
    weights, inputs, states = values_for(program, 2)
    results = run(program, weights, *inputs, states=states)
    binding = bind_inputs(program, inputs)
    for node, value in zip(program.roots, results, strict=True):
        assert [evaluate(s, binding) for s in node.shape] == list(value.shape)
        assert (
            str(value.dtype).removeprefix("torch.")
            in (
                {"f32": "float32", "f64": "float64", "f16": "float16", "i64": "int64", "bool": "bool"}[
                    node.dtype.name
                ]
            )
        )


def test_against_torch(weights):
    x = torch.randn(5, 4)
    expected = torch.tanh(x @ weights.tensor("w").T + weights.tensor("b"))
    torch.testing.assert_close(run(parse(LINEAR), weights, x)[0], expected, rtol=1e-6, atol=1e-6)


def test_hooks_see_and_change(weights):
    seen = []

    def hook(node, args, result):
        seen.append((node.op, tuple(args[0].shape)))
        return torch.zeros_like(result) if node.op == "aten.linear" else None

    (result,) = run(parse(LINEAR), weights, torch.randn(5, 4), hook=hook)
    assert seen == [("aten.linear", (5, 4)), ("aten.tanh", (5, 3))]
    assert torch.equal(result, torch.zeros(5, 3))


def test_overrides_replace_nodes(weights):
    program = parse(LINEAR)
    linear = next(n for n in program.nodes if n.op == "aten.linear")
    (result,) = run(
        program,
        Weights(),
        torch.randn(5, 4),
        override={linear: torch.zeros(5, 3)} | dict.fromkeys(program.constants()),
    )
    assert torch.equal(result, torch.zeros(5, 3))


def test_gradients(weights):
    program = parse(LINEAR)
    x = torch.randn(5, 4, dtype=torch.float64)
    given = {n: weights.tensor(n.name).double().requires_grad_() for n in program.constants()}
    run(program, weights, x, override=given)[0].square().sum().backward()
    w, b = (
        given[n].detach().clone().requires_grad_() for n in sorted(given, key=lambda n: n.name, reverse=True)
    )
    torch.tanh(x @ w.T + b).square().sum().backward()
    for node, leaf in zip(sorted(given, key=lambda n: n.name, reverse=True), (w, b), strict=True):
        torch.testing.assert_close(given[node].grad, leaf.grad)


LOOP = """T = dim(2, 512)


def then(v: f32[3], w: f32[3]):
    a0: f32[3] = aten.add(v, w)
    return a0


def other(v: f32[3], w: f32[3]):
    a0: f32[3] = aten.sub(v, w)
    return a0


def step(total: f32[3], row: f32[3], scale: f32[3]):
    mul0: f32[3]   = aten.mul(row, scale)
    sum0: f32[()]  = aten.sum(row)
    gt0: bool[()]  = aten.gt(sum0, 0.0)
    cond0: (f32[3],) = planish.cond(gt0, then, other, [total, mul0])
    item0: f32[3]  = planish.item(cond0, 0)
    return item0, mul0


def main(x: f32[T, 3], start: f32[3], scale: f32[3]):
    scan0: (f32[3], f32[T, 3]) = planish.scan(step, [start], [x], [scale])
    item0: f32[3]    = planish.item(scan0, 0)
    item1: f32[T, 3] = planish.item(scan0, 1)
    return item0, item1
"""


def test_nested_programs():
    program = verify(parse(LOOP))
    assert parse(str(program)) == program and str(parse(str(program))) == str(program)
    assert [p.name for p in program.nested()] == ["step"]
    x, start, scale = torch.randn(7, 3), torch.randn(3), torch.randn(3)
    total, rows = run(program, Weights(), x, start, scale)
    expected = start
    for row in x:
        expected = expected + row * scale if row.sum() > 0 else expected - row * scale
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(rows, x * scale)


def test_gradients_through_loops():
    program = parse(LOOP)
    x, start = torch.randn(7, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    scale = torch.ones(3, dtype=torch.float64, requires_grad=True)
    run(program, Weights(), x, start, scale)[0].sum().backward()
    signs = torch.where(x.sum(1) > 0, 1.0, -1.0)[:, None]
    torch.testing.assert_close(scale.grad, (signs * x).sum(0))


def test_hooks_see_nested_operations():
    seen = []
    run(
        parse(LOOP),
        Weights(),
        torch.ones(4, 3),
        torch.ones(3),
        torch.ones(3),
        hook=lambda n, a, r: seen.append(n.op),
    )
    assert seen.count("aten.add") == 4 and seen.count("planish.cond") == 4 and seen.count("planish.scan") == 1


def test_states():
    program = parse(
        "def main(x: f32[4]):\n    s: f32[4] = state('total')\n    a = aten.add(s, x)\n    return a, {'total': a}\n"
    )
    out, kept = run(program, Weights(), torch.ones(4), states={"total": torch.ones(4)})
    assert torch.equal(out, torch.full((4,), 2.0)) and out is kept


@pytest.mark.parametrize(
    ("inputs", "code", "message"),
    [
        ([], "PL323", "main takes 2 inputs (x, y), got 0"),
        ([torch.zeros(4), torch.zeros(4, 2)], "PL320", "x: expected f32[T, 4], got [4]"),
        ([torch.zeros(1, 4), torch.zeros(2)], "PL321", "x: T = 1 is outside of [2, 512]"),
        ([torch.zeros(3, 5), torch.zeros(6)], "PL322", "x: 4 = 4 here, got 5"),
        ([torch.zeros(3, 4), torch.zeros(5)], "PL322", "y: 2*T = 6 here, got 5"),
    ],
)
def test_inputs_that_do_not_fit(inputs, code, message):
    program = parse(
        "T = dim(2, 512)\n\n\ndef main(x: f32[T, 4], y: f32[2*T]):\n    z = aten.neg(x)\n    return z\n"
    )
    with pytest.raises(ShapeError) as caught:
        run(program, Weights(), *inputs)
    assert caught.value.code == code and message in str(caught.value)


def test_a_size_is_solved_from_an_expression():
    program = parse(
        "T = dim(2, 512)\n\n\ndef main(x: f32[2*T + 1]):\n    z = aten.full([T], 1.0, f32)\n    return z\n"
    )
    assert run(program, Weights(), torch.zeros(9))[0].shape == (4,)
    with pytest.raises(ShapeError):
        run(program, Weights(), torch.zeros(8))


def test_three_readings():
    x = torch.randn(2, 3)
    leaf = input_leaf("x", tensor_type("f32", 2, 3))
    assert torch.equal(aten.neg(x), -x)
    assert aten.neg(leaf).op == "aten.neg"
    assert torch.equal(aten.sum(x, keepdim=True), x.sum().reshape(1, 1))
    codes = torch.tensor([[0x21, 0x43]], dtype=torch.uint8)
    assert planish.unpack(codes, 4, 4).tolist() == [[1, 2, 3, 4]]


def test_modules_hold_programs_by_name():
    module = Module((parse(LINEAR),))
    assert module["main"] == parse(LINEAR)
    with pytest.raises(KeyError):
        module["decode"]
