"""ONNX's backend node tests: which operators are captured and computed as ONNX says.

    python -m benchmarks.onnx_nodes            all cases; writes benchmarks/results/onnx_nodes.md
    python -m benchmarks.onnx_nodes Conv Pad   the cases of these operators, each with its outcome

A case *passes* if its model is captured and the interpreter gives the expected outputs, with their types and shapes.
Where a shape is an input of the case (`Reshape`'s target, `Slice`'s bounds), the case passes *fixed*: the input's
value is given at capture, as a user would. It is *refused* if a coded error says why; anything else is *wrong*.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from planish.errors import CaptureError, PlanishError
from planish.frontend.capture.onnx import capture_onnx
from planish.frontend.capture.onnx_ops.initializers import to_torch
from planish.frontend.capture.onnx_ops.registry import NeedsValue
from planish.frontend.capture.onnx_ops.values import FROM_ONNX
from planish.ir.run import run
from planish.ir.weights import type_of

RESULT = Path(__file__).parent / "results" / "onnx_nodes.md"
OUTCOMES = ("pass", "fixed", "refused", "wrong")
# These say that planish is at fault, not that a model asks for too much.
FAULTS = ("PL148", "PL310", "PL360")


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    name: str
    op: str
    kind: str
    reason: str = ""


@lru_cache(maxsize=1)
def cases() -> list[Any]:
    """All node cases of the installed onnx, in a fixed order."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return sorted(collect_testcases(None), key=lambda c: c.name)


def operator_of(case: Any) -> str:
    """The operator that a case tests; of an expanded function its first part is not it, so the name tells."""
    nodes = case.model.graph.node
    if "expanded" in case.name:
        return "(expanded functions)"
    domain = nodes[-1].domain
    return f"{domain}.{nodes[-1].op_type}" if domain not in ("", "ai.onnx") else str(nodes[-1].op_type)


def judge(case: Any) -> Outcome:
    """Capture a case, run it on its inputs and compare."""
    op = operator_of(case)
    try:
        fixed = False
        for inputs, outputs in case.data_sets:
            used = _check(case, inputs, outputs)
            fixed = fixed or used
    except PlanishError as error:
        kind = "wrong" if error.code in FAULTS else "refused"
        return Outcome(case.name, op, kind, f"{error.code}: {error.message}")
    except Exception as error:
        return Outcome(case.name, op, "wrong", f"{type(error).__name__}: {error}".replace("\n", " ")[:300])
    return Outcome(case.name, op, "fixed" if fixed else "pass")


def _check(case: Any, inputs: Any, outputs: Any) -> bool:
    values: dict[str, Any] = {}
    given = dict(zip((i.name for i in case.model.graph.input), inputs, strict=False))
    while True:
        try:
            captured = capture_onnx(case.model, values=values)
            break
        except NeedsValue as error:
            more = {n: _tensor(given[n]) for n in error.inputs if n not in values and _is_small(given.get(n))}
            if not more:
                raise
            values |= more
    initial = {t.name for t in case.model.graph.initializer}
    have = [_tensor(v) for n, v in given.items() if n not in values and n not in initial]
    results = run(captured.program, captured.weights, *have)
    for name, result, expected in zip(captured.program.output_names, results, outputs, strict=True):
        _compare(name, result, expected, case.rtol, case.atol)
    return bool(values)


def _is_small(value: Any) -> bool:
    """What may be fixed: a number or a short list, not the data that an operator works on."""
    if isinstance(value, onnx.TensorProto):
        return len(value.dims) <= 1
    return isinstance(value, (np.ndarray, np.generic)) and value.ndim <= 1 and value.size <= 16


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if not isinstance(value, (np.ndarray, np.generic)):
        raise CaptureError("PL142", f"a value of the case is {type(value).__name__}, not a tensor")
    array = np.asarray(value)
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    if code not in FROM_ONNX:
        raise CaptureError("PL142", f"a value of the case has the element type {array.dtype}")
    return to_torch(array, FROM_ONNX[code])


def _compare(name: str, result: torch.Tensor, expected: Any, rtol: float, atol: float) -> None:
    want = _tensor(expected)
    if type_of(result) != type_of(want):
        raise AssertionError(f"{name} is {type_of(result)}, expected {type_of(want)}")
    if want.dtype.is_floating_point:
        # No closer than two units in the last place of the element type, at the element and at the largest one.
        unit = 2 * torch.finfo(want.dtype).eps
        finite = want[torch.isfinite(want)].abs()
        largest = float(finite.max()) if finite.numel() else 0.0
        rtol, atol = max(rtol, unit), max(atol, unit * largest)
        a, b = result.detach().to(torch.float64).numpy(), want.to(torch.float64).numpy()
    else:
        a, b = result.numpy(), want.numpy()
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


def judged(chosen: Iterable[Any]) -> Iterator[Outcome]:
    """The outcomes of cases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in chosen:
            yield judge(case)


def table(outcomes: list[Outcome]) -> str:
    """The outcomes by operator, as Markdown."""
    by_op: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_op[outcome.op].append(outcome)
    counts = {k: sum(o.kind == k for o in outcomes) for k in OUTCOMES}
    lines = [
        "# ONNX backend node tests",
        "",
        f"onnx {onnx.__version__}, {len(outcomes)} cases: {counts['pass'] + counts['fixed']} passing "
        f"({counts['fixed']} of them with an input fixed), {counts['refused']} refused, {counts['wrong']} wrong.",
        "",
        "*pass*: the outputs agree within the case's tolerance, with their types and shapes. *fixed*: so too, with the",
        "inputs that determine a shape given at capture. *refused*: a coded error says what is not supported. *wrong*:",
        "anything else. `python -m benchmarks.onnx_nodes` writes this table.",
        "",
        "| operator | pass | fixed | refused | wrong | refused because |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for op in sorted(by_op):
        row = [sum(o.kind == k for o in by_op[op]) for k in OUTCOMES]
        why = sorted({_short(o.reason) for o in by_op[op] if o.kind == "refused"})
        shown = "; ".join(why[:3]) + (f"; and {len(why) - 3} more" if len(why) > 3 else "")
        lines.append(f"| {op} | {' | '.join(map(str, row))} | {shown} |")
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    code, _, rest = reason.partition(": ")
    if code == "PL201":
        return "PL201 no such operator"
    plain = re.sub(r" '[^']*'", "", rest.split("; ")[0]).replace("|", "/")
    return f"{code} {plain}"[:90]


def main(arguments: list[str]) -> int:
    """Run all cases, or those of some operators; the status is 1 if one is wrong."""
    everything = cases()
    chosen = [c for c in everything if not arguments or operator_of(c) in arguments or c.name in arguments]
    outcomes = list(judged(chosen))
    for outcome in outcomes:
        if outcome.kind == "wrong" or arguments:
            print(f"{outcome.kind:8} {outcome.op:24} {outcome.name}  {outcome.reason[:300]}")
    print({k: sum(o.kind == k for o in outcomes) for k in OUTCOMES})
    if not arguments:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(table(outcomes))
    return int(any(o.kind == "wrong" for o in outcomes))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
