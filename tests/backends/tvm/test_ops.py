"""Every operation of the dialect in TVM against the interpreter, many programs in one library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from planish.errors import UnsupportedOpError
from planish.ir.dialect import OPERATIONS, load_all
from planish.ir.node import Program
from planish.ir.parser import parse
from planish.ir.run import run
from planish.ir.weights import Weights
from tests.op_examples import BINDINGS, EXAMPLES, expected, inputs_of, program_of

tvm = pytest.importorskip("tvm")

from planish.backends.tvm.build import executable  # noqa: E402
from planish.backends.tvm.isa import ISAS, Isa, supported  # noqa: E402
from planish.backends.tvm.lower import lower  # noqa: E402
from planish.backends.tvm.table import table  # noqa: E402

load_all()
PLAIN = sorted(op for op in OPERATIONS if not op.startswith("kernel."))
PARTS = 12
# Beside twice the error of eager torch: 1e-5 of the largest value; one rounding step where results are rounded more.
FLOOR = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-9}


def to_tvm(value: torch.Tensor) -> Any:
    """A tensor of TVM with the same values."""
    import ml_dtypes

    if value.dtype is torch.bfloat16:
        return tvm.runtime.tensor(value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return tvm.runtime.tensor(value.contiguous().numpy())


def to_torch(value: Any) -> torch.Tensor:
    """A tensor of torch with the same values."""
    import numpy as np

    array = value.numpy()
    if str(value.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


class Library:
    """Programs in one library."""

    def __init__(self, programs: Mapping[str, Program], isa: Isa | None = None, level: int = 3) -> None:
        isa = isa or supported()[0]
        self.lowered = lower(programs, isa)
        made = executable(self.lowered, tvm.target.Target(isa.target | {"opt-level": level}))
        self.machine = tvm.relax.VirtualMachine(made, tvm.cpu())

    def __call__(self, name: str, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [to_torch(v) for v in self.machine[name](*map(to_tvm, inputs))]


def only(program: Program, isa: Isa | None = None) -> Library:
    """A library with one program, ``main``."""
    return Library({"main": program}, isa, 0)


def in_double(program: Program, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
    """The results in double precision, unless the program names its own element types."""
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    try:
        return run(program, Weights(), *wide)
    except (RuntimeError, TypeError):
        return None


def check(
    program: Program, inputs: Sequence[torch.Tensor], found: Sequence[torch.Tensor], source: str
) -> None:
    """Integers and bools are equal; errors are at most twice those of eager torch, beside a floor."""
    eager = expected(program, list(inputs))
    exact = in_double(program, inputs) or eager
    assert len(found) == len(eager), source
    for got, want, true in zip(found, eager, exact, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape), source
        if not got.is_floating_point():
            assert torch.equal(got, want), f"{source}\n{got}\n{want}"
            continue
        special = ~torch.isfinite(want)
        torch.testing.assert_close(got[special], want[special], rtol=0, atol=0, equal_nan=True, msg=source)
        true = torch.where(torch.isfinite(true), true.double(), want.double())
        top = true[~special].abs().max().item() if (~special).any() else 0.0
        error = (got - true)[~special].abs().max().item() if (~special).any() else 0.0
        allowed = (want - true)[~special].abs().max().item() if (~special).any() else 0.0
        assert error <= 2 * allowed + FLOOR[got.dtype] * max(top, 1e-3), f"{source}\n{got}\n{want}"


def test_every_operation_has_a_row() -> None:
    assert set(table()) == set(PLAIN)


@pytest.mark.parametrize("part", range(PARTS))
def test_results_are_those_of_the_interpreter(part: int) -> None:
    sources = {
        f"{op.replace('.', '_')}_{i}": source
        for op in PLAIN[part::PARTS]
        for i, source in enumerate(EXAMPLES[op])
    }
    programs = {name: program_of(source) for name, source in sources.items()}
    library = Library(programs, level=1)
    for name, program in programs.items():
        for sizes in BINDINGS:
            inputs = inputs_of(program, sizes)
            check(program, inputs, library(name, *inputs), sources[name])


FEATURES = ("avx2", "generic")


@pytest.mark.parametrize("isa", FEATURES)
def test_other_instruction_sets(isa: str) -> None:
    if ISAS[isa] not in supported():
        return
    sources = {op.replace(".", "_"): EXAMPLES[op][-1] for op in PLAIN[::3]}
    programs = {name: program_of(source) for name, source in sources.items()}
    library = Library(programs, ISAS[isa], 0)
    for name, program in programs.items():
        inputs = inputs_of(program, BINDINGS[0])
        check(program, inputs, library(name, *inputs), sources[name])


EDGES = (
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
    ("x: f32[T, 3]", "planish.sort_values(x, 0)"),
    ("x: f32[T, 3]", "aten.mean(x, [1])"),
)
SCALARS = (
    "aten.softmax(x, 0)", "aten.argmax(x, 0)", "aten.cumsum(x, 0)", "aten.prod(x, 0)", "aten.sum(x)", "aten.mean(x)",
    "planish.sort_values(x, 0)", "aten.argsort(x, 0)", "aten.view(x, [1, 1])", "aten.expand(x, [2, 3])",
    "aten.add(x, 1.0)", "aten.amax(x)",
)  # fmt: skip
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


def test_empty_and_single_axes() -> None:
    programs = {
        f"edge{i}": parse(f"T = dim(0, 64)\ndef main({given}):\n    out = {call}\n    return out\n")
        for i, (given, call) in enumerate(EDGES)
    }
    library = Library(programs, level=0)
    for name, program in programs.items():
        for rows in (0, 1, 2):
            inputs = inputs_of(program, {"T": rows})
            check(program, inputs, library(name, *inputs), name)


def test_zero_dimensional() -> None:
    programs = {
        f"scalar{i}": parse(f"def main(x: f32[()]):\n    out = {call}\n    return out\n")
        for i, call in enumerate(SCALARS)
    }
    library = Library(programs, level=0)
    for name, program in programs.items():
        inputs = [torch.tensor(1.5)]
        check(program, inputs, library(name, *inputs), str(program))


def test_sizes_are_computed() -> None:
    programs = {}
    for i, (given, call) in enumerate(SIZES):
        dims = "T = dim(1, 64)\n" + ("U = dim(1, 64)\n" if "U" in given else "")
        programs[f"sizes{i}"] = parse(f"{dims}def main({given}):\n    out = {call}\n    return out\n")
    library = Library(programs, level=0)
    for name, program in programs.items():
        for sizes in ({"T": 5, "U": 3}, {"T": 8, "U": 8}, {"T": 4, "U": 9}):
            inputs = inputs_of(program, sizes)
            check(program, inputs, library(name, *inputs), str(program))


def test_all_that_is_missing_is_named_at_once() -> None:
    program = parse(
        "def main(x: c64[3], y: f32[3]):\n    a = aten.exp(x)\n    b = aten.sin(a)\n    c = aten.add(y, y)\n"
        "    return b, c\n"
    )
    with pytest.raises(UnsupportedOpError, match="element type c64, 3 times") as error:
        lower({"main": program}, supported()[0])
    assert error.value.code == "PL251"


def test_parameters_are_inputs_then_states_then_weights() -> None:
    program = parse(
        "def main(x: f32[3]):\n    w: f32[3] = const('w')\n    h: f32[3] = state('h')\n    n = aten.add(x, h)\n"
        "    m = aten.mul(n, w)\n    return m, {'h': n}\n"
    )
    library = only(program)
    entry = library.lowered.entries["main"]
    assert (entry.inputs, entry.states, entry.weights) == (("x",), ("h",), ("w",))
    assert (entry.outputs, entry.next_states) == (("output0",), ("h",))
    out, after = library("main", torch.ones(3), torch.full((3,), 2.0), torch.full((3,), 4.0))
    assert (out.tolist(), after.tolist()) == ([12.0] * 3, [3.0] * 3)


def functions(library: Library) -> list[str]:
    """The names of the functions of TIR."""
    found = library.lowered.module.functions.items()
    return sorted(name.name_hint for name, f in found if isinstance(f, tvm.tirx.PrimFunc))


def test_chains_become_one_function_and_equal_functions_are_shared() -> None:
    lines = "    n0 = aten.rms_norm(x, [8])\n"
    for i in range(4):
        lines += f"    a{i} = aten.exp(n{i})\n    b{i} = aten.mul(a{i}, n{i})\n"
        lines += f"    n{i + 1} = aten.rms_norm(b{i}, [8])\n"
    program = parse(f"T = dim(1, 64)\ndef main(x: f32[T, 8]):\n{lines}    return n4\n")
    assert functions(only(program)) == ["f_mul_fused", "f_rms_norm"]


def test_views_copy_nothing() -> None:
    program = parse(
        "T = dim(1, 64)\ndef main(x: f32[T, 8]):\n    a = aten.view(x, [T, 2, 4])\n    b = aten.view(a, [2*T, 4])\n"
        "    c = aten.neg(b)\n    return c\n"
    )
    library = only(program)
    assert functions(library) == ["f_neg"]
    x = torch.randn(3, 8)
    assert torch.equal(library("main", x)[0], -x.view(6, 4))


def test_large_results_are_written_in_parallel() -> None:
    program = parse(
        "T = dim(1, 4096)\ndef main(x: f32[T, 300], y: f32[300]):\n    a = aten.mul(x, y)\n    b = aten.tanh(a)\n"
        "    c = aten.softmax(b, 1)\n    s = aten.silu(x)\n    return b, c, s\n"
    )
    library = only(program)
    for rows in (1, 3, 1000):
        inputs = [torch.randn(rows, 300), torch.randn(300)]
        check(program, inputs, library("main", *inputs), f"{rows} rows")


def test_places_outside_of_a_table_are_harmless() -> None:
    program = parse("def main(t: f32[4, 3], i: i64[5]):\n    e = aten.embedding(t, i)\n    return e\n")
    (found,) = only(program)("main", torch.randn(4, 3), torch.tensor([0, 3, -1, 10**12, -(10**12)]))
    assert torch.isfinite(found).all()


SPECIAL = (
    "aten.max_pool1d(x, [3], [1], [1], [1])", "aten.max_pool2d(x, [1, 3], [1, 2], [0, 0], [1, 1])",
    "aten.adaptive_max_pool1d(x, [2])", "aten.avg_pool1d(x, [3], [1], [0])", "aten.amax(x, [2])", "aten.amin(x, [2])",
    "aten.maximum(x, y)", "aten.minimum(x, 1.0)", "aten.relu(x)", "aten.clamp(x, -1.0, 1.0)", "aten.ne(x, 0.0)",
    "aten.ne(x, x)", "aten.ne(x, y)", "aten.eq(x, x)", "aten.eq(x, y)", "aten.ge(x, x)", "aten.lt(x, x)",
    "aten.to(x, bool)", "aten.isnan(x)", "aten.any(x, [2])",
    "aten.all(x, [2])", "aten.where(aten_isnan, 0.0, x)", "aten.scatter_reduce(x, 2, i, y, 'amax', True)",
    "aten.scatter_reduce(x, 2, i, y, 'amin', False)", "aten.rnn_relu(t, [s], [w, w], False, 1, False, False)",
)  # fmt: skip


def test_nan_and_infinities() -> None:
    """NaN wins where values are compared, differs from all, and is true."""
    programs = {
        f"special{i}": parse(
            "def main(x: f32[1, 1, 6], y: f32[1, 1, 6], i: i64[1, 1, 6], t: f32[2, 1, 1], s: f32[1, 1, 1],"
            f" w: f32[1, 1]):\n{'    n = aten.isnan(x)' + chr(10) if 'aten_isnan' in call else ''}"
            f"    out = {call.replace('aten_isnan', 'n')}\n"
            + ("    r = planish.item(out, 0)\n    return r\n" if "rnn" in call else "    return out\n")
        )
        for i, call in enumerate(SPECIAL)
    }
    library = Library(programs, level=0)
    nan, inf = float("nan"), float("inf")
    rows = ([nan, 1, 2, 3, nan, 5], [-inf, -inf, -inf, inf, 1, nan], [0, nan, -inf, 2, 3, 4])
    places = torch.tensor([[[0, 0, 1, 2, 2, 5]]])
    for first, second in zip(rows, (*rows[1:], rows[0]), strict=True):
        x, y = torch.tensor([[first]]), torch.tensor([[second]])
        inputs = [x, y, places, x.view(6, 1, 1)[:2], torch.zeros(1, 1, 1), torch.ones(1, 1)]
        for name, program in programs.items():
            for got, want in zip(library(name, *inputs), run(program, Weights(), *inputs), strict=True):
                torch.testing.assert_close(got, want, equal_nan=True, msg=f"{program}\n{got}\n{want}")


def test_two_images_are_enlarged_at_once() -> None:
    program = parse(
        "T = dim(1, 64)\ndef main(x: f32[1, 2, T, 3], y: f32[1, 2, T, 3]):\n"
        "    a = aten.upsample_nearest2d(x, [2*T, 7])\n    b = aten.upsample_nearest2d(y, [2*T, 7])\n"
        "    c = aten.mul(a, b)\n    return c\n"
    )
    inputs = [torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 3)]
    torch.testing.assert_close(only(program)("main", *inputs)[0], run(program, Weights(), *inputs)[0])


def test_division_by_zero_stops_nothing() -> None:
    program = parse(
        "def main(a: i32[4], b: i32[4]):\n    q = aten.floor_divide(a, b)\n    r = aten.remainder(a, b)\n"
        "    f = aten.fmod(a, b)\n    return q, r, f\n"
    )
    low = -(2**31)
    a, b = torch.tensor([7, low, -7, 9], dtype=torch.int32), torch.tensor([0, -1, 2, -4], dtype=torch.int32)
    q, r, f = only(program)("main", a, b)
    assert (q[2:].tolist(), r[2:].tolist(), f[2:].tolist()) == ([-4, -3], [1, -3], [-1, 1])


LOOP = (
    "T = dim(0, 64)\ndef body(h: f32[3], x: f32[3], w: f32[3, 3]):\n    c: f32[3] = const('c')\n"
    "    m = aten.matmul(h, w)\n    n = aten.add(m, x)\n    t = aten.add(n, c)\n    y = aten.mul(t, 0.5)\n"
    "    return y, t\ndef main(h: f32[3], x: f32[T, 3], w: f32[3, 3]):\n    r = planish.scan(body, [h], [x], [w])\n"
    "    last = planish.item(r, 0)\n    all = planish.item(r, 1)\n    return last, all\n"
)


def test_loops_of_any_length() -> None:
    program = program_of(LOOP)
    library = only(program)
    weights = Weights()
    weights.add("c", torch.tensor([0.1, -0.2, 0.3]))
    for steps in (0, 1, 2, 7, 64):
        inputs = [torch.randn(3), torch.randn(steps, 3), torch.randn(3, 3)]
        last, rows = library("main", *inputs, weights.tensor("c"))
        assert rows.shape == (steps, 3)
        if not steps:
            assert torch.equal(last, inputs[0])
            continue
        want = run(program, weights, *inputs)
        torch.testing.assert_close(last, want[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rows, want[1], rtol=1e-4, atol=1e-4)
