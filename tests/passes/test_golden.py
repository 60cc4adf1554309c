"""Golden programs: what passes make of `tests/golden/<pass>/<case>.ir.py`.

A file holds a program, the line `# becomes`, and the program that the pass makes of it. The pass is named by the
folder, or by a first line `# passes: PIPELINE`. `pytest --regenerate-golden` writes the second part.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from strategies import values_for

from planish.ir.parser import parse
from planish.passes.base import leaf_bytes
from planish.passes.check import Check
from planish.passes.pipeline import run_pipeline

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = sorted(GOLDEN.glob("*/*.ir.py"))
MARKER = "# becomes\n"


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.name.partition('.')[0]}")
def test_golden(path: Path, request: pytest.FixtureRequest) -> None:
    source, marker, expected = path.read_text().partition(MARKER)
    first = source.partition("\n")[0]
    pipeline = first.removeprefix("# passes: ") if first.startswith("# passes: ") else path.parent.name
    program = parse(source, path.name)
    weights, inputs, states = values_for(program)
    check = Check(inputs, tolerance=1e-5, rounding=1e-6, states=states)
    after = run_pipeline(program, weights, pipeline, check_each=check).program
    assert leaf_bytes(after) <= leaf_bytes(program)
    if request.config.getoption("--regenerate-golden"):
        path.write_text(f"{source.rstrip()}\n\n\n{MARKER}{after}")
        return
    assert marker, "the second part is missing: run pytest --regenerate-golden"
    assert str(after) == expected
    assert parse(expected) == after


def test_every_pass_of_this_kind_has_a_golden_program():
    assert {path.parent.name for path in CASES} >= {"affine", "canonical", "fold", "simplify"}
