"""Text of programs: printing and parsing are inverse, and errors point at the place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from strategies import programs

from planish.errors import PlanishError
from planish.ir.parser import parse, parse_module
from planish.ir.printer import print_module
from planish.ir.verify import verify

ERRORS = Path(__file__).resolve().parents[1] / "errors"


@settings(max_examples=150)
@given(programs())
def test_print_then_parse_gives_the_same_nodes(program):
    verify(program)
    text = str(program)
    back = parse(text)
    assert back == program
    assert all(a is b for a, b in zip(back.roots, program.roots, strict=True))
    assert str(back) == text


@settings(max_examples=30)
@given(programs(steps=6))
def test_a_module_of_one_program_reads_back(program):
    text = str(program)
    module = parse_module(text)
    assert print_module(module) == text
    assert module["main"] == program


def test_several_programs_share_leaves():
    text = """T = dim(2, 512)


def prefill(x: f32[T, 4]):
    w: f32[4, 4]       = const('w')
    linear0: f32[T, 4] = aten.linear(x, w)
    return linear0


def decode(x: f32[1, 4]):
    w: f32[4, 4]       = const('w')
    linear0: f32[1, 4] = aten.linear(x, w)
    return linear0
"""
    module = parse_module(text)
    assert print_module(module) == text
    assert module["prefill"].constants() == module["decode"].constants()
    with pytest.raises(PlanishError, match="expected one program, found 2"):
        parse(text)


def test_sources_are_shown_as_comments():
    program = parse("def main(x: f32[2]):\n    y = aten.neg(x)\n    return y\n")
    assert "#" not in str(program)
    assert str(parse(str(program) + "# a comment\n")) == str(program)


def test_special_numbers_read_back():
    text = (
        "def main(x: f32[2]):\n"
        "    full0: f32[2] = aten.full([2], -inf, f32)\n"
        "    full1: f32[2] = aten.full([2], nan, f32)\n"
        "    add0: f32[2]  = aten.add(x, -0.0)\n"
        "    add1: f32[2]  = aten.add(x, 1e-06)\n"
        "    return full0, full1, add0, add1\n"
    )
    assert str(parse(text)) == text


@pytest.mark.parametrize("path", sorted(ERRORS.glob("*.ir.py")), ids=lambda p: p.name.partition(".")[0])
def test_refused(path):
    """A refused program; its first line holds the message, with the place where the file is named."""
    text = path.read_text()
    expected = text.partition("\n")[0].removeprefix("# ")
    with pytest.raises(PlanishError) as caught:
        verify(parse(text, path.name))
    lines = str(caught.value).replace(f"{path.name}:", "file:").splitlines()
    if lines[-1].strip(" ^"):
        assert " ".join(line.strip() for line in lines) == expected
        return
    assert lines[0] == expected
    line, column = map(int, expected.split(":")[2:4])
    assert lines[1].strip() == text.splitlines()[line - 1].strip()
    assert lines[2].index("^") == 6 + column - 1
