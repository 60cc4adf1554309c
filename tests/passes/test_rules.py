"""Every registered rule: it fires on its example, keeps the type and agrees with eager torch within its kind."""

from __future__ import annotations

import math

import pytest
import torch

from planish.ir.node import Program, topological
from planish.ir.rule import RULES, Rule, check_example
from planish.ir.run import run
from planish.ir.types import symbols_of
from planish.ir.weights import Weights
from planish.passes.canonical.passes import close_rules, exact_rules
from planish.passes.registry import BUILT_IN, find_pass

for name in BUILT_IN:
    find_pass(name)  # rules are registered when the module of their pass is imported
exact_rules()
close_rules()
ALL = sorted(RULES.values(), key=lambda each: each.name)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.75, math.inf, -math.inf, math.nan, 1e-30, 6e4]


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_rule(each: Rule) -> None:
    equation = each.doc.splitlines()[0]
    assert "=" in equation, "the docstring begins with the equation"
    left, right = each.example_sides()
    assert right is not None and right.type == left.type
    assert each.why(left) is None
    worst = max(check_example(each, seed) for seed in range(4))
    assert worst == 0.0 if each.kind == "exact" else worst <= each.tolerance
    assert each.kind == "exact" or each.tolerance >= 0.0


@pytest.mark.parametrize("each", [r for r in ALL if r.kind == "exact"], ids=lambda each: each.name)
def test_exact_rule_keeps_every_bit(each: Rule) -> None:
    """Also for zeros of both signs, infinities and NaN (whose payload is not looked at)."""
    left, right = each.example_sides()
    assert right is not None
    inputs = tuple(n for n in topological([left]) if n.op == "input")
    binding = dict.fromkeys(symbols_of(tuple(n.type for n in inputs)), 5)
    for seed in range(4):
        values = [special(n.tensor, binding, seed + i) for i, n in enumerate(inputs)]
        a, b = run(Program("sides", inputs, (left, right)), Weights(), *values)
        assert a.dtype == b.dtype and a.shape == b.shape
        if not a.is_floating_point():
            assert torch.equal(a, b)
            continue
        nan = a.isnan()
        assert torch.equal(nan, b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
        assert torch.equal(a.signbit() & ~nan, b.signbit() & ~nan)


def special(kind, binding, seed):
    """Values at which floating point is easily treated wrongly."""
    from planish.ir.run import example_value

    value = example_value(kind, binding, seed)
    if not kind.dtype.is_float:
        return value
    places = torch.randint(0, len(SPECIAL), value.shape, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(SPECIAL)[places].to(value.dtype)


def test_rule_names_are_their_own():
    assert len({each.name for each in ALL}) == len(ALL)
    assert all(each.name == name for name, each in RULES.items())
