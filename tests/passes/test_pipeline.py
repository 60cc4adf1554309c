"""Pipelines: one numbering of rewrites, limits, verification, observers, and passes held to their kind."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from planish.errors import GuardError, PlanishError, ShapeError
from planish.ir.namespace import aten
from planish.ir.node import const
from planish.ir.parser import parse
from planish.ir.rewrite import replace_nodes
from planish.ir.weights import Weights
from planish.passes import observe
from planish.passes.base import Pass, leaf_bytes
from planish.passes.canonical.passes import Canonical
from planish.passes.check import Check, difference, hold
from planish.passes.pipeline import run_pipeline

TEXT = """T = dim(2, 512)


def main(x: f32[T, 4]):
    w: f32[4, 4] = const('w')
    a = aten.neg(x)
    b = aten.neg(a)
    c = aten.mul(b, 1.0)
    t = aten.permute(w, [1, 0])
    d = aten.matmul(c, t)
    e = aten.add(d, -0.0)
    return e
"""


@dataclass(frozen=True)
class Double(Pass):
    """Twice the result, whatever it says it does."""

    kind: ClassVar = "exact"
    factor: float = 2.0

    def apply(self, program, weights, log):
        root = program.outputs[0]
        after = aten.mul(root, self.factor)
        log.record("double", root, after)
        log.notes.append("doubled")
        return program.with_roots([after])


@dataclass(frozen=True)
class Lossy(Double):
    """The same, honestly."""

    kind: ClassVar = "lossy"


@dataclass(frozen=True)
class Near(Double):
    """Nearly the same result."""

    kind: ClassVar = "close"
    factor: float = 1.0001


@dataclass(frozen=True)
class Broken(Pass):
    """Uses a constant that is not among the weights."""

    def apply(self, program, weights, log):
        old = program.constants()[0]
        return replace_nodes(program, {old: const("missing", old.tensor)})


@pytest.fixture
def program():
    return parse(TEXT)


@pytest.fixture
def weights():
    made = Weights()
    made.add("w", torch.arange(16.0).reshape(4, 4))
    return made


def test_rewrites_are_numbered_through_all_passes(program, weights):
    result = run_pipeline(program, weights, "canonical,simplify,fold,canonical")
    assert [s.number for s in result.log.steps] == list(range(1, len(result.log.steps) + 1))
    assert [len(r.steps) for r in result.records] == [3, 1, 0, 0]
    assert result.records[1].rules() == {"matmul-linear": 1}
    assert result.records[1].before is result.records[0].after
    assert result.program is result.records[-1].after
    assert set(result.timings) == {"canonical", "simplify", "fold"}


def test_a_limit_stops_at_that_rewrite(program, weights):
    full = run_pipeline(program, weights, "canonical,simplify").log.steps
    for limit in range(len(full) + 2):
        result = run_pipeline(program, weights, "canonical,simplify", limit=limit)
        assert [s.rule for s in result.log.steps] == [s.rule for s in full[:limit]]
        assert len(result.records) == (0 if limit == 0 else 1 if limit <= 3 else 2)
    assert run_pipeline(program, weights, "canonical", limit=0).program == program


def test_every_pass_is_verified(program, weights):
    with pytest.raises(ShapeError, match="constant missing is not among the weights") as caught:
        run_pipeline(program, weights, [Canonical(), Broken()])
    assert caught.value.where == "pass broken"
    assert run_pipeline(program, weights, [Broken()], verify=False).program != program


@pytest.mark.parametrize(
    ("each", "tolerance", "good"),
    [
        (Canonical(), 0.0, True),
        (Double(), 1.0, False),
        (Lossy(), 0.0, True),
        (Near(), 1e-3, True),
        (Near(), 1e-6, False),
    ],
)
def test_passes_are_held_to_their_kind(program, weights, each, tolerance, good):
    check = Check([torch.randn(5, 4)], tolerance)
    if good:
        record = run_pipeline(program, weights, [each], check_each=check).records[0]
        assert record.difference is not None
        assert record.difference.equal == isinstance(each, Canonical)
    else:
        with pytest.raises(
            GuardError, match=f"{each.name} is declared {each.kind}, but changes results"
        ) as caught:
            run_pipeline(program, weights, [each], check_each=check)
        assert caught.value.code == "PL501"


def test_difference():
    a = torch.tensor([1.0, float("nan"), float("inf"), 0.0])
    assert difference([a], [a.clone()]).equal
    assert difference([a], [torch.tensor([1.0, 2.0, float("inf"), 0.0])]).relative == float("inf")
    assert difference([a], [torch.tensor([1.5, float("nan"), float("inf"), 0.0])]).relative == 0.5
    assert difference([a], [a.double()]).relative == float("inf")
    assert difference([torch.tensor([True])], [torch.tensor([False])]).relative == 1.0
    assert difference([torch.zeros(0)], [torch.zeros(0)]).equal
    with pytest.raises(GuardError, match="declared lossy"):
        hold("p", "lossy", difference([a], [a.double()]), Check([], 0.0))


def test_started_is_called_before_each_pass(program, weights):
    seen = []
    run_pipeline(program, weights, "canonical,fold", started=lambda i, p: seen.append((i, str(p))))
    assert seen == [(0, "canonical"), (1, "fold")]


def test_observers(program, weights):
    out = io.StringIO()
    sink = observe.to_stream(out)
    observers = [
        observe.print_changed(sink),
        observe.print_after(sink, "can*"),
        observe.timing(sink),
        observe.statistics(sink),
    ]
    result = run_pipeline(program, weights, [Canonical(), Lossy()], observers=observers)
    text = out.getvalue()
    assert "--- before\n+++ after canonical" in text
    assert "-    neg1: f32[T, 4]     = aten.neg(neg0)" in text or "-    b0: f32[T, 4]" in text
    assert "# after canonical\nT = dim(2, 512)" in text
    assert "# after lossy" not in text
    assert " ms  canonical" in text
    assert "canonical: 3 rewrites, 6 -> 2 operations, 64 -> 64 bytes of constants" in text
    assert "      1 x neg-neg" in text
    assert "  aten.neg: 2 -> 0" in text
    assert "lossy: 1 rewrites" in text and "  doubled" in text
    assert result.notes == ["doubled"]
    table = observe.as_json(result)
    assert table[0]["rewrites"] == 3 and table[0]["bytes"] == [64, 64]
    assert table[1]["notes"] == ["doubled"]


def test_no_change_is_said(program, weights):
    out = io.StringIO()
    settled = run_pipeline(program, weights, "canonical").program
    run_pipeline(settled, weights, "canonical", observers=[observe.print_changed(observe.to_stream(out))])
    assert out.getvalue() == "canonical: no change\n"


def test_changes_are_coloured(program, weights):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    run_pipeline(
        program, weights, "canonical", observers=[observe.print_changed(observe.to_console(console))]
    )
    assert "\x1b[31m-" in console.file.getvalue()
    plain = Console(file=io.StringIO(), width=20)
    observe.to_console(plain)("+ a line that is longer than the console [bold]is[/bold]")
    assert plain.file.getvalue() == "+ a line that is longer than the console [bold]is[/bold]\n"


def test_bytes_of_constants(program):
    assert leaf_bytes(program) == 64


def test_errors_of_a_pass_say_which(program):
    with pytest.raises(PlanishError) as caught:
        run_pipeline(program, Weights(), "canonical")
    assert caught.value.where == "pass canonical"
