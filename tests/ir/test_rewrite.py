"""The sweep driver: numbering, limits, order, origins, termination; and the matcher under it."""

from __future__ import annotations

import pytest

from planish.errors import InternalError, ShapeError
from planish.ir.namespace import aten
from planish.ir.node import Origin, Program, input_leaf, state
from planish.ir.parser import parse, parse_type
from planish.ir.pattern import Hole, build, explain, match, matches
from planish.ir.rewrite import Log, replace_nodes, rewrite, sweep
from planish.ir.rule import RULES, Decline, rule


def leaf(name: str, kind: str = "f32[4]"):
    return input_leaf(name, parse_type(kind))


@pytest.fixture
def rules():
    """Rules of this file only; they are not in the table that other tests loop over."""
    known = set(RULES)

    @rule(lambda x: aten.neg(aten.neg(x)), example={"x": "f32[4]"})
    def test_twice(x):
        """--x = x"""
        return x

    @rule(lambda x, c: aten.mul(x, c), example={"x": "f32[4]", "c": 1.0})
    def test_one(x, c):
        """x * 1 = x"""
        if not isinstance(c, float):
            raise Decline("not a number")
        if c != 1.0:
            raise Decline("not one")
        return x

    yield test_twice, test_one
    for name in set(RULES) - known:
        del RULES[name]


TEXT = """def main(x: f32[4]):
    a = aten.neg(x)
    b = aten.neg(a)
    c = aten.mul(1.0, b)
    d = aten.neg(c)
    e = aten.neg(d)
    return e
"""


def test_steps_are_numbered_and_logged(rules):
    log = Log()
    after = rewrite(parse(TEXT), rules, log)
    assert after.nodes == (leaf("x"),)
    assert [(s.number, s.rule) for s in log.steps] == [(1, "test-twice"), (2, "test-one"), (3, "test-twice")]
    assert log.steps[0].after is leaf("x")


@pytest.mark.parametrize("limit", range(5))
def test_a_limit_is_kept(rules, limit):
    log = Log(limit)
    after = rewrite(parse(TEXT), rules, log)
    assert len(log.steps) == min(limit, 3)
    assert len(after.nodes) == [6, 4, 3, 1, 1][limit]


def test_nothing_to_do_gives_the_same_object(rules):
    program = parse("def main(x: f32[4]):\n    a = aten.neg(x)\n    return a\n")
    assert sweep(program, rules, Log()) is program
    assert rewrite(program, rules) is program


def test_rules_that_undo_each_other_are_named():
    def flip(node):
        return aten.abs(node.args[0]) if node.op == "aten.neg" else None

    def flop(node):
        return aten.neg(node.args[0]) if node.op == "aten.abs" else None

    program = parse("def main(x: f32[4]):\n    a = aten.neg(x)\n    b = aten.exp(a)\n    return b\n")
    grown = [("grow", lambda n: aten.neg(aten.neg(n)) if n.op == "input" else None)]
    with pytest.raises(InternalError, match="does not end") as caught:
        rewrite(program, [("flip", flip), ("flop", flop)], Log())
    assert caught.value.code == "PL901"
    assert "flip" in str(caught.value) and "flop" in str(caught.value)
    with pytest.raises(InternalError, match="still firing: grow"):
        rewrite(program, grown, Log())


def test_a_rule_may_not_change_a_type():
    known = set(RULES)

    @rule(lambda x: aten.abs(x), example={"x": "f32[4]"})
    def test_wrong(x):
        """abs(x) = sum(x), wrongly"""
        return aten.sum(x)

    try:
        with pytest.raises(ShapeError, match=r"rule test-wrong changes f32\[4\] into f32\[\(\)\]") as caught:
            sweep(Program("main", (leaf("x"),), (aten.abs(leaf("x")),)), [test_wrong], Log())
        assert caught.value.code == "PL350"
    finally:
        for name in set(RULES) - known:
            del RULES[name]


def test_malformed_rules_are_refused(rules):
    with pytest.raises(ShapeError, match="need the same holes"):
        rule(lambda x: aten.neg(x), example={"y": "f32[4]"})(lambda x: x)
    with pytest.raises(ShapeError, match="the left side is not an operation"):
        rule(lambda x: x, example={"x": "f32[4]"})(lambda x: x)
    with pytest.raises(ShapeError, match="there are two rules called test-twice"):
        made = lambda x: x  # noqa: E731
        made.__name__ = "test_twice"
        rule(lambda x: aten.neg(x), example={"x": "f32[4]"})(made)


def test_new_nodes_come_from_where_the_old_came_from():
    x = leaf("x")
    old = aten.neg(x)
    program = Program("main", (x,), (old,), origins={old: Origin("layers.0", "model.py:7")})
    after = replace_nodes(program, {old: aten.abs(aten.exp(x))})
    assert [after.origins[n] for n in after.nodes[1:]] == [Origin("layers.0", "model.py:7")] * 2
    assert "layers_0_0" in str(after) and "layers_0_1" in str(after)
    assert old not in after.origins


def test_replacement_reaches_states():
    program = parse(
        """def main(x: f32[4]):
    s: f32[4] = state('s')
    a = aten.neg(x)
    b = aten.add(s, a)
    return a, {'s': b}
"""
    )
    after = replace_nodes(program, {program.outputs[0]: leaf("x")})
    assert after.outputs == (leaf("x"),)
    assert after.states == (("s", aten.add(state("s", leaf("x").tensor), leaf("x"))),)


def test_commutative_matching_tries_both_orders(rules):
    _, one = rules
    x = leaf("x")
    assert one.apply(aten.mul(x, 1.0)) is x
    assert one.apply(aten.mul(1.0, x)) is x
    assert one.apply(aten.mul(x, 2.0)) is None
    assert one.apply(aten.mul(x, x)) is None
    pattern = build("aten.mul", (Hole("a"), Hole("b")), {})
    assert len(list(matches(pattern, aten.mul(x, 2.0)))) == 2


def test_repeated_holes_and_lists():
    x, y = leaf("x"), leaf("y")
    same = build("aten.sub", (Hole("a"), Hole("a")), {})
    assert match(same, aten.sub(x, x)) == {"a": x}
    assert match(same, aten.sub(x, y)) is None
    two = build("aten.cat", ([Hole("a"), build("aten.neg", (Hole("b"),), {})], Hole("d")), {})
    assert match(two, aten.cat([x, aten.neg(y)], 0)) == {"a": x, "b": y, "d": 0}
    assert match(two, aten.cat([x, y], 0)) is None
    assert match(two, aten.cat([x, aten.neg(y), y], 0)) is None


def test_numbers_match_by_value():
    half = build("aten.mul", (Hole("a"), 2), {})
    assert match(half, aten.mul(leaf("x"), 2.0)) is not None
    assert match(half, aten.mul(leaf("x"), 3.0)) is None


def test_the_nearest_miss_is_told(rules):
    twice, one = rules
    x = leaf("x")
    miss = explain(twice.pattern, aten.neg(aten.abs(x)))
    assert miss is not None and miss.reason == "expected aten.neg, found aten.abs" and miss.matched == 1
    assert twice.why(aten.neg(aten.abs(x))).reason == miss.reason
    assert twice.why(aten.abs(x)) is None
    assert twice.why(aten.neg(aten.neg(x))) is None
    assert one.why(aten.mul(x, 2.0)).reason.startswith("declined: not")
