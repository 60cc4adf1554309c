"""Which architectures are captured, and how exactly the interpreter and ONNX Runtime compute them.

    python -m benchmarks.coverage                 all models; writes benchmarks/results/coverage.md
    python -m benchmarks.coverage --only llama    one model (repeatable), nothing is written
    python -m benchmarks.coverage --no-ort        without ONNX Runtime

Every model of `tests/models.py` is captured with dynamic sizes, verified, printed and read back, and run at two sizes
that capture did not see, as captured and after the pass `recognise`. Errors are relative to the largest value of an
output of eager PyTorch in fp32. A cell that fails says why; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

from planish.ir.node import Program
from planish.ir.types import format_size
from planish.ir.verify import verify
from tests import parity
from tests.models import CASES, ModelCase

RESULT = Path(__file__).parent / "results" / "coverage.md"
FOUND = {
    "attentions": ("planish.attention", "aten.scaled_dot_product_attention"),
    "norms": ("aten.rms_norm", "aten.layer_norm", "aten.group_norm", "aten.batch_norm"),
    "ropes": ("planish.rope",),
}
COLUMNS = (
    "model", "dynamic", "nodes", "text", "interpreter", "ORT", "recognised", "recognised, ORT", "left", "found",
    "seconds",
)  # fmt: skip


@dataclass
class Row:
    """What became of one model."""

    case: ModelCase
    dynamic: str = ""
    cells: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def check(self, column: str, work: Callable[[], str]) -> None:
        """Fill a cell, or note why it failed."""
        try:
            self.cells[column] = work()
        except Exception as error:  # whatever a model does wrong belongs into the table
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            self.cells[column] = "**fails**"
            self.problems.append(f"{self.case.name}, {column}: {type(error).__name__}: {first[:400]}")

    def markdown(self, columns: tuple[str, ...]) -> str:
        """The row of the table."""
        known = {"model": self.case.name, "dynamic": self.dynamic, "seconds": f"{self.seconds:.1f}"}
        return "| " + " | ".join((known | self.cells).get(c, "") for c in columns) + " |"


def within(error: float, tolerance: float) -> str:
    """The error as text; raises if it is larger than allowed."""
    if not error <= tolerance:
        raise ValueError(f"the relative error is {error:.1e}, more than {tolerance:.0e}")
    return "exact" if error == 0 else f"{error:.0e}"


def operations(program: Program) -> int:
    """How many operations a program has."""
    return sum(not node.is_leaf for node in program.nodes)


def found_in(program: Program) -> str:
    """How many attentions, norms and rotary operations a program has."""
    counts = {what: sum(program.count(op) for op in ops) for what, ops in FOUND.items()}
    return ", ".join(f"{n} {what if n > 1 else what[:-1]}" for what, n in counts.items() if n)


def survey(case: ModelCase, ort: bool) -> Row:
    """All checks of one model."""
    row = Row(case)
    begin = perf_counter()
    row.check("nodes", lambda: str(operations(parity.captured(case.name).program)))
    if not row.problems:
        captured = parity.captured(case.name)
        program, weights = captured.program, captured.weights
        row.dynamic = " ".join(format_size(s) for s in program.symbols)

        def text() -> str:
            verify(program, weights)
            parity.check_text(program)
            return "same"

        def recognised() -> str:
            after = verify(parity.recognised(case.name), weights)
            parity.check_text(after)
            error = parity.interpreter_error(case, after, weights)
            return within(error, parity.RECOGNISED_TOLERANCE)

        row.check("text", text)
        row.check(
            "interpreter",
            lambda: within(parity.interpreter_error(case, program, weights), parity.INTERPRETER_TOLERANCE),
        )
        row.check("recognised", recognised)
        row.check("found", lambda: found_in(parity.recognised(case.name)))
        row.check("left", lambda: str(operations(parity.recognised(case.name))))
        if ort:
            row.check("ORT", lambda: within(parity.ort_error(case, program, weights), parity.ORT_TOLERANCE))
            row.check(
                "recognised, ORT",
                lambda: within(
                    parity.ort_error(case, parity.recognised(case.name), weights), parity.ORT_TOLERANCE
                ),
            )
    row.seconds = perf_counter() - begin
    return row


def report(rows: list[Row], columns: tuple[str, ...]) -> str:
    """The table as Markdown."""
    passed = sum(not row.problems for row in rows)
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {_version('transformers')}"
    lines = [
        "# Captured architectures",
        "",
        f"{passed} of {len(rows)} tiny random models pass ({versions}, onnxruntime {_version('onnxruntime')})."
        " Made by `make bench-coverage`.",
        "",
        "Numbers are the largest error at two sizes that capture did not see, relative to the largest value of an"
        f" output of eager PyTorch; allowed are {parity.INTERPRETER_TOLERANCE:.0e} for the interpreter and"
        f" {parity.ORT_TOLERANCE:.0e} for ONNX Runtime in fp32. *text*: the printed program reads back as the same"
        " objects. *recognised*: the program after the pass `recognise`, *left* its number of operations, *found* the"
        " larger ones among them.",
        "",
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join("---" for _ in columns) + " |",
        *(row.markdown(columns) for row in rows),
    ]
    problems = [problem for row in rows for problem in row.problems]
    return "\n".join(lines + (["", *(f"- {p}" for p in problems)] if problems else [])) + "\n"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package).split("+")[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the survey; 0 if every model passes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=list(CASES), help="one model (repeatable)"
    )
    parser.add_argument("--no-ort", action="store_true", help="without ONNX Runtime")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    columns = tuple(c for c in COLUMNS if not (options.no_ort and "ORT" in c))
    rows = []
    for name in options.only or CASES:
        row = survey(CASES[name], not options.no_ort)
        rows.append(row)
        print(row.markdown(columns), flush=True)
        for problem in row.problems:
            print(f"  {problem}", file=sys.stderr, flush=True)
    failed = sum(bool(row.problems) for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} pass")
    if not options.only and not options.no_ort:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(report(rows, columns))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
