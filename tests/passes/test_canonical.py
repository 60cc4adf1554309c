"""Canonical form and folding on random programs: equal results, no more bytes, nothing left to do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from strategies import programs, values_for

from planish.ir.node import Program
from planish.ir.parser import parse
from planish.ir.rewrite import Log
from planish.ir.verify import verify
from planish.passes.base import leaf_bytes
from planish.passes.canonical.fold import Fold
from planish.passes.canonical.passes import Canonical, Simplify
from planish.passes.check import Check, compare
from planish.passes.pipeline import run_pipeline


def rewritten(program: Program, each, weights) -> Program:
    after = each.apply(program, weights, Log())
    verify(after, weights)
    assert leaf_bytes(after) <= leaf_bytes(program)
    assert [n.type for n in after.roots] == [n.type for n in program.roots]
    return after


# Eager torch rounds some functions by where a value lies in memory; an exact pass may move values.
ROUNDING = 1e-6


@settings(max_examples=120)
@given(programs())
def test_canonical_is_exact_and_settles(program):
    weights, inputs, states = values_for(program, 1)
    after = rewritten(program, Canonical(), weights)
    found = compare(program, after, weights, Check(inputs, 0.0, states=states))
    assert found.equal or found.relative <= widest(program)
    assert Canonical().apply(after, weights, Log()) == after


@settings(max_examples=60)
@given(programs())
def test_fold_is_exact_and_settles(program):
    weights, inputs, states = values_for(program, 2)
    after = rewritten(program, Fold(), weights)
    found = compare(program, after, weights, Check(inputs, 0.0, states=states))
    assert found.equal or found.relative <= widest(program)
    assert Fold().apply(after, weights, Log()) == after


@settings(max_examples=60)
@given(programs(loops=False))
def test_simplify_settles(program):
    weights, _, _ = values_for(program, 3)
    after = rewritten(program, Simplify(), weights)
    assert Simplify().apply(after, weights, Log()) == after


def widest(program: Program) -> float:
    """What rounding may do: more where a program computes in half precision."""
    return 2e-3 if any(n.dtype.name == "f16" for n in program.nodes if hasattr(n.type, "dtype")) else ROUNDING


CHAIN = """T = dim(2, 512)


def main(x: f32[T, 8]):
    w: f32[8, 8] = const('w')
    t = aten.permute(w, [1, 0])
    m = aten.matmul(x, t)
    a = aten.mul(m, 0.5)
    b = aten.mul(a, 0.25)
    c = aten.add(b, 0.0)
    return c
"""


def test_simplify_keeps_within_the_tolerance_of_its_rules():
    program = parse(CHAIN)
    weights, inputs, states = values_for(program)
    result = run_pipeline(program, weights, "simplify", check_each=Check(inputs, 1e-5, 0.0, states))
    assert {n.op for n in result.program.nodes} == {"input", "const", "aten.linear", "aten.mul"}


def test_nested_programs_are_rewritten_too():
    program = parse(
        """def then(v: f32[3]):
    a = aten.neg(v)
    b = aten.neg(a)
    return b


def other(v: f32[3]):
    c = aten.mul(v, 1.0)
    d = aten.abs(c)
    return d


def main(x: f32[3], p: bool[1]):
    r = planish.cond(p, then, other, [x])
    y = planish.item(r, 0)
    return y
"""
    )
    weights, inputs, _ = values_for(program)
    log = Log()
    after = Canonical().apply(program, weights, log)
    assert [s.rule for s in log.steps] == ["neg-neg", "mul-one"]
    then, other = after.nested()
    assert [n.op for n in then.nodes] == ["input"]
    assert [n.op for n in other.nodes] == ["input", "aten.abs"]
    assert compare(program, after, weights, Check(inputs, 0.0)).equal


@pytest.mark.parametrize(
    "body",
    [
        # codes, decoded by the operations of the dialect
        """    codes: u8[64, 32] = const('w#int4{group=32}/codes')
    scale: f16[64, 2] = const('w#int4{group=32}/scale')
    u = planish.unpack(codes, 4, 64)
    d = planish.dequant(u, scale, 8, 32)
    y = aten.linear(x, d)""",
        # the same table twice: every use reads it, so nothing is freed
        """    w: f32[64, 64] = const('w')
    t = aten.permute(w, [1, 0])
    a = aten.linear(x, w)
    y = aten.matmul(a, t)""",
        # a sum of parts of one recipe is a decoding, even where it would be no larger
        """    rest: f32[64, 64] = const('w#rank8/rest')
    left: f32[64, 8]  = const('w#rank8/left')
    right: f32[8, 64] = const('w#rank8/right')
    m = aten.matmul(left, right)
    d = aten.add(rest, m)
    y = aten.linear(x, d)""",
        # an outer product is larger than its factors
        """    left: f32[64, 1]  = const('left')
    right: f32[1, 64] = const('right')
    d = aten.mul(left, right)
    y = aten.linear(x, d)""",
        # positions cost nothing, a table of them does
        """    p = aten.arange(0, 64, dtype=f32)
    q = aten.mul(p, 0.5)
    y = aten.add(x, q)""",
        # a wider copy is larger
        """    h: f16[64, 64] = const('h')
    d = aten.to(h, f32)
    y = aten.linear(x, d)""",
    ],
)
def test_nothing_is_folded_uphill(body):
    program = parse(f"def main(x: f32[2, 64]):\n{body}\n    return y\n")
    weights, _, _ = values_for(program)
    assert Fold().apply(program, weights, Log()) == program


def test_shared_constants_are_folded_together():
    program = parse(
        """def main(x: f32[2, 4]):
    w: f32[8, 4] = const('qk')
    q = aten.slice(w, 0, 0, 4)
    k = aten.slice(w, 0, 4, 8)
    a = aten.linear(x, q)
    b = aten.linear(a, k)
    return b
"""
    )
    weights, inputs, _ = values_for(program)
    log = Log()
    after = Fold().apply(program, weights, log)
    assert [s.rule for s in log.steps] == ["fold", "fold"]
    assert leaf_bytes(after) == leaf_bytes(program)
    assert all(n.name.startswith("qk#fold-") for n in after.constants())
    assert len(weights) == 3
    assert compare(program, after, weights, Check(inputs, 0.0)).equal


def test_single_values_become_numbers():
    program = parse(
        """def main(x: f32[2, 4]):
    w: f32[4] = const('w')
    s = aten.sum(w)
    e = aten.exp(s)
    y = aten.mul(x, e)
    return y
"""
    )
    weights, inputs, _ = values_for(program)
    result = run_pipeline(program, weights, "fold,canonical")
    assert [n.op for n in result.program.nodes] == ["input", "aten.mul"]
    assert compare(program, result.program, weights, Check(inputs, 0.0)).equal


def test_a_recipe_names_what_was_folded():
    texts = ["aten.neg(w)", "aten.abs(w)"]
    names = set()
    for text in texts:
        program = parse(
            f"def main(x: f32[4]):\n    w: f32[4] = const('w')\n    a = {text}\n    y = aten.add(x, a)\n    return y\n"
        )
        weights, _, _ = values_for(program)
        again = [Fold().apply(program, weights, Log()).constants()[0].name for _ in range(2)]
        assert again[0] == again[1] and again[0].startswith("w#fold-")
        names.add(again[0])
    assert len(names) == 2
