"""ONNX's own node tests: none is wrong, and as many pass as the committed table says."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from benchmarks import onnx_nodes as nodes
from planish.frontend.capture.onnx_ops import load
from planish.frontend.capture.onnx_ops.registry import HANDLERS
from planish.ir.parser import parse


@pytest.fixture(scope="module")
def outcomes() -> list[Any]:
    return list(nodes.judged(nodes.cases()))


def test_none_is_wrong(outcomes: list[Any]) -> None:
    wrong = [f"{o.name}: {o.reason}" for o in outcomes if o.kind == "wrong"]
    assert not wrong, "\n".join(wrong)


def test_table_is_true(outcomes: list[Any]) -> None:
    import onnx

    text = nodes.RESULT.read_text()
    said = re.search(r"^onnx (\S+), (\d+) cases: (\d+) passing", text, re.M)
    assert said is not None
    passing = sum(o.kind in ("pass", "fixed") for o in outcomes)
    assert passing >= int(said[3]) or onnx.__version__ != said[1]
    assert passing >= 900
    if onnx.__version__ == said[1]:
        assert nodes.table(outcomes) == text, "run python -m benchmarks.onnx_nodes"


def test_what_cannot_be_known_is_refused(outcomes: list[Any]) -> None:
    kinds = {o.name: o for o in outcomes}
    for name in (
        "test_nonzero_example",
        "test_unique_not_sorted_without_axis",
        "test_nonmaxsuppression_two_classes",
    ):
        assert kinds[name].kind == "refused" and kinds[name].reason.startswith("PL143"), kinds[name]
    for name in ("test_bernoulli", "test_string_concat", "test_adam"):
        assert kinds[name].kind == "refused" and kinds[name].reason.startswith(("PL201", "PL142")), kinds[
            name
        ]


def test_every_handler_is_tested(outcomes: list[Any]) -> None:
    """Each operator with a handler passes in at least one case, alone or within an expanded function."""
    load()
    used: Counter[str] = Counter()
    passed = {o.name for o in outcomes if o.kind in ("pass", "fixed")}
    for case in nodes.cases():
        if case.name in passed:
            used.update(n.op_type for n in case.model.graph.node)
    refused = {"NonZero", "Unique", "NonMaxSuppression"}
    elsewhere = {  # in test_onnx_capture.py
        "GlobalLpPool", "Optional", "SequenceErase", "SequenceAt", "ConcatFromSequence", "SequenceConstruct",
        "SequenceEmpty", "SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence",
    }  # fmt: skip
    assert set(HANDLERS) - set(used) - refused == elsewhere


def test_programs_print_and_parse() -> None:
    """The text of a captured program reads back as the same nodes (every seventh case)."""
    from planish.errors import PlanishError
    from planish.frontend.capture.onnx import capture_onnx

    count = 0
    for case in nodes.cases()[::7]:
        try:
            program = capture_onnx(case.model).program
        except PlanishError:
            continue
        again = parse(str(program))
        assert again.outputs == program.outputs, case.name
        count += 1
    assert count > 150
