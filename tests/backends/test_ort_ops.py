"""Every operation of the dialect in ONNX Runtime against the interpreter, at two sizes, for one built model each."""

from __future__ import annotations

import pytest
import torch

from planish.backends.ort.build import build
from planish.backends.ort.graph import ONNX_TYPES
from planish.backends.ort.lower import lower
from planish.backends.ort.table import table
from planish.errors import UnsupportedOpError
from planish.ir.parser import parse
from planish.ir.types import DTYPES
from planish.ir.weights import Weights
from tests.op_examples import BINDINGS, EXAMPLES, expected, inputs_of, program_of

# Absolute and relative: one rounding step of the type for f16 and bf16, a few for sums in f32.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 2e-5, torch.float64: 1e-5}


def test_every_operation_has_a_row() -> None:
    assert set(table()) == set(EXAMPLES)


def test_every_native_type_exists() -> None:
    assert {kind for row in table().values() for kind in row.native or ()} <= set(DTYPES) & set(ONNX_TYPES)


@pytest.mark.parametrize("op", EXAMPLES)
def test_results_are_those_of_the_interpreter(op: str) -> None:
    for source in EXAMPLES[op]:
        program = program_of(source)
        session = build(lower(program, Weights()), threads=1)
        for sizes in BINDINGS[:2]:
            inputs = inputs_of(program, sizes)
            found = session(*inputs)
            found = found if isinstance(found, tuple) else (found,)
            for got, want in zip(found, expected(program, inputs), strict=True):
                assert (got.dtype, got.shape) == (want.dtype, want.shape), source
                tolerance = TOLERANCE.get(want.dtype, 0.0)
                torch.testing.assert_close(
                    got,
                    want,
                    rtol=tolerance,
                    atol=tolerance,
                    equal_nan=True,
                    msg=lambda m, s=source: f"{m}\n{s}",
                )


EDGES = (
    # no rows at all
    ("x: f32[T, 4], w: f32[3, 4]", "aten.linear(x, w)"),
    ("x: f32[T, 4]", "aten.sum(x, [0])"),
    ("x: f32[T, 4]", "aten.prod(x, 0)"),
    ("x: bool[T, 4]", "aten.any(x, [0])"),
    ("x: bool[T, 4]", "aten.all(x)"),
    ("x: f32[T, 4]", "aten.cumsum(x, 0)"),
    ("x: f32[T, 4]", "aten.softmax(x, 1)"),
    ("x: f32[T, 4]", "aten.rms_norm(x, [4])"),
    ("x: f32[T, 4]", "aten.view(x, [T, 2, 2])"),
    ("x: f32[2, T]", "aten.view(x, [T, 2])"),
    ("x: f32[T, 4], y: f32[2, 4]", "aten.cat([x, y], 0)"),
    ("x: f32[T, 4]", "aten.pad(x, [0, 0, 1, 1])"),
    ("x: f32[4, 3], i: i64[T]", "aten.embedding(x, i)"),
    ("x: f32[T, 1]", "aten.expand(x, [T, 5])"),
    ("x: f32[T]", "aten.arange(0, T)"),
)


@pytest.mark.parametrize("given, call", EDGES)
def test_empty_and_single_axes(given: str, call: str) -> None:
    program = parse(f"T = dim(0, 64)\ndef main({given}):\n    out = {call}\n    return out\n")
    session = build(lower(program, Weights()), threads=1)
    for rows in (0, 1, 2):
        inputs = inputs_of(program, {"T": rows})
        (want,) = expected(program, inputs)
        torch.testing.assert_close(session(*inputs), want, rtol=1e-5, atol=1e-6)


SCALARS = (
    "aten.softmax(x, 0)",
    "aten.argmax(x, 0)",
    "aten.cumsum(x, 0)",
    "aten.prod(x, 0)",
    "aten.sum(x)",
    "aten.mean(x)",
    "planish.sort_values(x, 0)",
    "aten.argsort(x, 0)",
    "aten.view(x, [1, 1])",
    "aten.expand(x, [2, 3])",
    "aten.add(x, 1.0)",
)


@pytest.mark.parametrize("call", SCALARS)
def test_zero_dimensional(call: str) -> None:
    program = parse(f"def main(x: f32[()]):\n    out = {call}\n    return out\n")
    (want,) = expected(program, [torch.tensor(1.5)])
    found = build(lower(program, Weights()), threads=1)(torch.tensor(1.5))
    torch.testing.assert_close(found, want, rtol=1e-6, atol=0.0)


SIZES = (
    ("x: f32[T, 2]", "aten.view(x, [2, T])"),
    ("x: f32[T, 2], y: f32[U, 3]", "aten.full([T*U, T + U], 1.0, f32)"),
    ("x: f32[T], y: f32[U]", "aten.full([T // 2, max(T, U), min(T, U), T % 3 + 1, T**2], 1.0, f32)"),
    ("x: f32[2*T + 1]", "aten.arange(0, T)"),
    ("x: f32[T], y: f32[U]", "aten.arange(T, U, 3)"),
    ("x: f32[T], y: f32[U]", "aten.arange(U, T, -3)"),
    ("x: f32[T, U]", "aten.slice(x, 0, T - U, T)"),
    ("x: f32[4*T]", "aten.add(x, (4*T - 2) // 2)"),
)


@pytest.mark.parametrize("given, call", SIZES)
def test_sizes_are_computed(given: str, call: str) -> None:
    dims = "T = dim(1, 64)\n" + ("U = dim(1, 64)\n" if "U" in given else "")
    program = parse(f"{dims}def main({given}):\n    out = {call}\n    return out\n")
    session = build(lower(program, Weights()), threads=1)
    for sizes in ({"T": 5, "U": 3}, {"T": 8, "U": 8}, {"T": 4, "U": 9}):
        inputs = inputs_of(program, sizes)
        (want,) = expected(program, inputs)
        torch.testing.assert_close(session(*inputs), want, rtol=0.0, atol=0.0)


def test_all_that_is_missing_is_named_at_once() -> None:
    program = parse(
        "def main(x: c64[3], y: f32[3]):\n    a = aten.exp(x)\n    b = aten.sin(a)\n    c = aten.add(y, y)\n"
        "    return b, c\n"
    )
    with pytest.raises(UnsupportedOpError, match="element type c64, 3 times") as error:
        lower(program, Weights())
    assert error.value.code == "PL220"


def test_states_are_inputs_and_outputs() -> None:
    program = parse(
        "def main(x: f32[3]):\n    h: f32[3] = state('h')\n    n = aten.add(x, h)\n    return n, {'h': n}\n"
    )
    lowered = lower(program, Weights())
    assert (lowered.input_names, lowered.output_names) == (("x", "h"), ("output0", "h.next"))
    out, after = build(lowered)(torch.ones(3), states={"h": torch.full((3,), 2.0)})
    assert out.tolist() == after.tolist() == [3.0, 3.0, 3.0]
