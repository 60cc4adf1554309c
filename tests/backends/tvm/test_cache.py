"""Kernels of caches against their meaning, writes in place, and whole programs with states over many calls."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from planish.backends.tvm.kernels import cache as declarations
from planish.ir.kernel import KERNELS
from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program, const, state
from planish.ir.parser import parse
from planish.ir.rewrite import Log
from planish.ir.rule import check_example
from planish.ir.run import run
from planish.ir.types import TensorType, dtype, evaluate
from planish.ir.weights import Weights
from planish.passes.select import Select
from planish.runtime.native_code import EntryCode, LibraryFile, NativeCode
from planish.runtime.tvm import Stored, TvmCode, TvmSession
from planish.runtime.tvm_library import current_abi, load_library
from planish.runtime.tvm_tensors import aligned
from tests.backends.tvm.kernel_check import ISAS, compiled, kernel_node, leaf, machine_code, symbol

tvm = pytest.importorskip("tvm")

from planish.backends.tvm.build import compile_library, executable  # noqa: E402
from planish.backends.tvm.cpu.put import build_in_place  # noqa: E402
from planish.backends.tvm.gpu.device import OPENCL  # noqa: E402
from planish.backends.tvm.gpu.schedule import has_threads, schedule_gpu  # noqa: E402
from planish.backends.tvm.in_place import written_in_place  # noqa: E402
from planish.backends.tvm.lower import lower  # noqa: E402
from planish.backends.tvm.target import register  # noqa: E402

B, S = symbol("B"), symbol("S")
RULES = (
    declarations.select_put, declarations.select_attend_narrow, declarations.select_attend,
    declarations.attend_writes_permuted,
)  # fmt: skip
BY_NAME = {isa.name: isa for isa in ISAS}
TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """Sizes and options of one attention over caches."""

    heads: int = 4
    key_heads: int = 2
    width: int = 24
    value: int = 40
    capacity: int = 77
    queries: Any = S
    bias: tuple[str, Any, Any] | None = None  # element type, then sizes of the axes of sequences and heads
    window: int | None = None
    softcap: float | None = None
    ring: bool = False
    order: str = "bhtd"
    stored: str = "f32"

    @property
    def node(self) -> Node:
        """The kernel."""
        q = (B, self.queries, self.heads) if self.order == "bthd" else (B, self.heads, self.queries)
        bias = None
        if self.bias is not None:
            kind, batch, heads = self.bias
            bias = leaf("m", kind, batch, heads, self.queries, self.capacity)
        keys, values = (
            leaf(name, self.stored, B, self.key_heads, self.capacity, n)
            for name, n in (("k", self.width), ("v", self.value))
        )
        return kernel_node(
            "attend", leaf("q", "f32", *q, self.width), keys, values, leaf("s", "i64", B), leaf("n", "i64", B), bias,
            self.window, None, self.softcap, self.ring, self.order, self.order,
        )  # fmt: skip


CASES = {
    "plain": Case(9, 3, 64, 64, 300, order="bthd"),
    "one": Case(9, 3, 64, 64, 300, 1, order="bthd"),
    "ring": Case(4, 2, 16, 16, 90, window=30, ring=True),
    "ring of one": Case(4, 2, 32, 16, 45, 1, window=30, ring=True),
    "window": Case(bias=("f32", 1, 4), window=9, softcap=3.0),
    "bool": Case(3, 3, 32, 32, 80, bias=("bool", B, 1)),
    "odd": Case(3, 1, 7, 5, 91, bias=("bool", B, 3), window=12, ring=True),
    "f16": Case(4, 2, 32, 32, 70, stored="f16"),
    "bf16": Case(4, 2, 32, 48, 70, 1, stored="bf16"),
    "seventeen": Case(6, 2, 32, 32, 66, 17),
}
FEW = ("plain", "odd")
PAIRS = (
    [(next(iter(BY_NAME)), name) for name in CASES]
    + [(isa, name) for isa in list(BY_NAME)[1:] for name in FEW]
    + [(list(BY_NAME)[-1], "f16")]
)


def to_tvm(value: torch.Tensor) -> Any:
    """A tensor of TVM with the same values."""
    import ml_dtypes

    if value.dtype is torch.bfloat16:
        return tvm.runtime.tensor(value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return tvm.runtime.tensor(value.contiguous().numpy())


def operands(case: Case, batch: int, queries: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Random operands; rows of caches that nothing was put to hold NaN."""
    node, binding = case.node, {B: batch, S: queries}
    made = []
    for operand in node.operands:
        shape = [evaluate(s, binding) for s in operand.shape]
        if operand.dtype.name == "bool":
            made.append(torch.rand(shape, generator=generator) > 0.3)
        elif operand.dtype.name == "i64":
            made.append(torch.zeros(shape, dtype=torch.int64))
        else:
            made.append(torch.randn(shape, generator=generator).to(TORCH[operand.dtype.name]))
    for b in range(batch):
        count = int(torch.randint(0, queries + 1, (), generator=generator)) if b % 3 else queries
        room = 3 * case.capacity if case.ring else case.capacity - count
        start = int(torch.randint(0, room + 1, (), generator=generator))
        if case.ring and case.window is not None and queries > case.capacity - case.window:
            start = 0
        made[3][b], made[4][b] = start, count
        made[1][b, :, start + count :] = torch.nan
        made[2][b, :, start + count :] = torch.inf
    return made


def error(case: Case, function: Any, values: list[torch.Tensor]) -> float:
    """The largest difference to the meaning in f64, relative to the largest value."""
    node = case.node
    rest = iter([v.double() if v.is_floating_point() else v for v in values])
    want = KERNELS["attend"].meaning(*(next(rest) if isinstance(a, Node) else a for a in node.args))
    out = tvm.runtime.tensor(np.full(tuple(want.shape), np.nan, "float32"))
    function(*map(to_tvm, values), out)
    got = torch.from_numpy(out.numpy()).double()
    if not want.numel():
        return 0.0
    assert want.isfinite().all()
    return float((got - want).abs().nan_to_num(torch.inf).max()) / max(float(want.abs().max()), 1e-30)


@pytest.mark.parametrize(("isa", "name"), PAIRS, ids=str)
def test_attend_is_its_meaning(isa: str, name: str) -> None:
    case = CASES[name]
    function = compiled(case.node, BY_NAME[isa])
    generator = torch.Generator().manual_seed(3)
    sizes = (1, 3, 8, 17, 64) if case.queries is S else (case.queries,)
    for queries in sizes:
        if queries > case.capacity:
            continue
        for batch in (1, 3, 1, 3) if case.queries is S else (1, 3) * 5:
            values = operands(case, batch, queries, generator)
            assert error(case, function, values) < 1e-5, (batch, queries, values[3], values[4])
    for batch, queries in ((0, 3), (1, 0)):
        if case.queries is S:
            assert error(case, function, operands(case, batch, queries, generator)) == 0


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_long_caches_are_read_by_several_threads(isa: Any) -> None:
    for queries in (1, 40) if isa is ISAS[0] else (1,):
        case = Case(4, 2, 16, 16, 3001, queries)
        function = compiled(case.node, isa)
        values = operands(case, 2, queries, torch.Generator().manual_seed(queries))
        for start in ((2900, 5), (700, 2961), (0, 0)):
            values[3][:] = torch.tensor(start)
            values[4][:] = queries
            values[1:3] = [v.nan_to_num(0.5, 0.5) for v in values[1:3]]
            assert error(case, function, values) < 1e-5, (queries, start)


def test_places_outside_of_caches_are_not_read() -> None:
    for ring in (False, True):
        case = Case(2, 1, 8, 8, 20, window=6, ring=ring)
        function = compiled(case.node, ISAS[0])
        values = operands(case, 2, 9, torch.Generator())
        for start, count in ((-5, 9), (10**15, 9), (-(10**18), 3), (0, 10**18), (18, -4), (2**62, 2**62)):
            values[3][:], values[4][:] = start, count
            out = tvm.runtime.tensor(np.zeros((2, 2, 9, 8), "float32"))
            function(*map(to_tvm, values), out)


# Writing


def put_node(ring: bool, order: str = "bhtd", kind: str = "f32", capacity: int = 21, width: int = 24) -> Node:
    """The kernel that writes."""
    new = (B, S, 3) if order == "bthd" else (B, 3, S)
    return kernel_node(
        "put", leaf("c", kind, B, 3, capacity, width), leaf("x", kind, *new, width), leaf("s", "i64", B),
        leaf("n", "i64", B), ring, order,
    )  # fmt: skip


WRITES = (
    (False, "bhtd", "f32", 21, 24), (True, "bthd", "f32", 21, 24), (True, "bhtd", "bf16", 21, 7),
    (False, "bthd", "f16", 40, 64), (True, "bhtd", "bool", 5, 3),
)  # fmt: skip


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("options", WRITES, ids=str)
def test_put_is_its_meaning_and_writes_in_place(isa: Any, options: Any) -> None:
    node = put_node(*options)
    ring, order, kind, capacity, width = options
    function, in_place = compiled(node, isa), machine_code(build_in_place(node, isa), isa)["main"]
    generator = torch.Generator().manual_seed(1)
    for batch, rows in ((1, 1), (3, 4), (2, 17), (2, 64), (0, 2), (1, 0)):
        new = (batch, rows, 3) if order == "bthd" else (batch, 3, rows)
        drawn = (torch.randn(s, generator=generator) for s in ((batch, 3, capacity, width), (*new, width)))
        cache, x = (t > 0 if kind == "bool" else t.to(TORCH[kind]) for t in drawn)
        for low, high in ((0, capacity), (0, 3 * capacity), (-5, 3), (10**15, 10**15 + 9)):
            start = torch.randint(low, high, (batch,), generator=generator)
            count = torch.randint(0, rows + 1, (batch,), generator=generator)
            want = KERNELS["put"].meaning(cache, x, start, count, ring, order)
            given, out = [to_tvm(t) for t in (cache, x, start, count)], to_tvm(torch.zeros_like(cache))
            function(*given, out)
            assert out.numpy().tobytes() == to_tvm(want).numpy().tobytes()
            assert given[0].numpy().tobytes() == to_tvm(cache).numpy().tobytes()
            in_place(*given)
            assert given[0].numpy().tobytes() == to_tvm(want).numpy().tobytes()


@pytest.mark.parametrize("each", RULES, ids=lambda r: r.name)
def test_rules(each: Any) -> None:
    assert check_example(each) < 1e-6


# Programs


def cache_leaf(name: str, capacity: int = 23) -> Node:
    """The state of one layer, two sequences."""
    return state(name, TensorType(dtype("f32"), (2, 2, capacity, 16)))


def layer(name: str, queries: Any, ring: bool) -> Program:
    """A layer of attention over caches, from rows of 32 numbers."""
    x, start, count = leaf("x", "f32", 2, queries, 32), leaf("start", "i64", 2), leaf("count", "i64", 2)

    def heads(weight: str, number: int) -> Node:
        rows = const(weight, TensorType(dtype("f32"), (number * 16, 32)))
        return aten.permute(aten.view(aten.linear(x, rows), [2, queries, number, 16]), [0, 2, 1, 3])

    room = 14 if ring else 23
    keys = planish.put(cache_leaf("keys", room), heads("k", 2), start, count, ring)
    values = planish.put(cache_leaf("values", room), heads("v", 2), start, count, ring)
    window = 8 if ring else None
    out = planish.attend(heads("q", 4), keys, values, start, count, None, window, None, None, ring)
    out = aten.view(aten.permute(out, [0, 2, 1, 3]), [2, queries, 64])
    return Program(
        name, (x, start, count), (out,), (("keys", keys), ("values", values)), output_names=("out",)
    )


def code_of(programs: list[Program], weights: Weights) -> TvmCode:
    """Programs with kernels, in machine code that the runtime has loaded."""
    register()
    chosen = {p.name: Select("cpu").apply(p, weights, Log()) for p in programs}
    assert not any(n.op in ("planish.put", "planish.attend") for p in chosen.values() for n in p.nodes)
    lowered = lower(chosen, ISAS[0])
    data = compile_library(lowered, tvm.target.Target(ISAS[0].target))
    entries = {
        e.name: EntryCode(
            e.name, e.inputs, e.outputs, e.states, tuple(f"{s}.next" for s in e.next_states), e.weights
        )
        for e in lowered.entries.values()
    }
    code = NativeCode("cpu", current_abi(), {"main": LibraryFile("main.so")}, entries)
    library = load_library(data, hashlib.sha256(data).hexdigest(), machine=code.abi.machine, where="test")
    stored = {
        n: Stored(aligned(weights.tensor(n).numpy()), "F32") for e in entries.values() for n in e.weights
    }
    return TvmCode(code, library, stored)


@pytest.mark.parametrize("ring", (False, True))
def test_a_program_with_states_writes_them_in_place(ring: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    weights = Weights()
    for name, rows in (("q", 64), ("k", 32), ("v", 32)):
        weights.add(name, torch.randn(rows, 32, generator=generator) / 4)
    programs = {p.name: p for p in (layer("prefill", S, ring), layer("decode", 1, ring))}
    shared = code_of(list(programs.values()), weights)
    sessions = {name: TvmSession(shared, name) for name in programs}
    room = 14 if ring else 23
    expected = {name: torch.full((2, 2, room, 16), torch.nan) for name in ("keys", "values")}
    held: dict[str, Any] = {name: aligned(t.numpy()) for name, t in expected.items()}
    places = {name: array.ctypes.data for name, array in held.items()}
    lengths = torch.tensor([0, 0])
    for step in range(20):
        name, rows = ("prefill", 9) if step == 0 else ("decode", 1)
        count = torch.tensor([rows, 5 if step == 0 else 1])
        x = torch.randn(2, rows, 32, generator=generator)
        out, *following = run(programs[name], weights, x, lengths, count, states=expected)
        expected = dict(zip(("keys", "values"), following, strict=True))
        feeds = {"x": x.numpy(), "start": lengths.numpy(), "count": count.numpy()}
        before = {
            n: np.array(sessions[name].array(t) if hasattr(t, "data_ptr") else t) for n, t in held.items()
        }
        nexts = tuple(f"{n}.next" for n in held)
        found = sessions[name].run(feeds | held, ("out", *nexts), keep=nexts)
        held = {n: found[f"{n}.next"] for n in held}
        for b in range(2):
            valid = out[b, : int(count[b])]
            torch.testing.assert_close(
                torch.from_numpy(found["out"])[b, : len(valid)], valid, rtol=1e-4, atol=1e-5
            )
        for n, tensor in held.items():
            assert tensor.data_ptr() == places[n]
            array = sessions[name].array(tensor)
            np.testing.assert_allclose(array, expected[n].numpy(), rtol=1e-4, atol=1e-5)
            for b in range(2):
                rows_written = {int(lengths[b] + i) % room for i in range(int(count[b]))}
                others = [r for r in range(room) if r not in rows_written]
                assert array[b][:, others].tobytes() == before[n][b][:, others].tobytes()
        lengths = lengths + count


def test_a_state_that_is_read_before_it_is_written_is_copied() -> None:
    cache, start, count = cache_leaf("keys"), leaf("start", "i64", 2), leaf("count", "i64", 2)
    new = leaf("x", "f32", 2, 2, S, 16)
    written = kernel_node("put", cache, new, start, count)
    again = kernel_node("put", written, new, count, count)
    other = cache_leaf("values")
    for states, outputs, wanted in (
        ((("keys", written),), (), {written}),
        ((("keys", written),), (written,), {written}),
        ((("keys", again),), (), {written, again}),
        ((("keys", again),), (written,), set()),
        ((("keys", written),), (cache,), set()),
        ((("keys", written),), (aten.sum(cache),), set()),
        ((("keys", written), ("values", written)), (), set()),
        ((("values", written), ("keys", other)), (), set()),
        ((("keys", cache),), (written,), set()),
        ((("keys", kernel_node("put", cache, aten.slice(cache, 2, 0, 4), start, count)),), (), set()),
    ):
        roots = (*outputs, *(n for _, n in states))
        assert written_in_place(states, roots) == wanted


def test_a_copied_state_keeps_the_old_values() -> None:
    cache, start, count = cache_leaf("keys"), leaf("start", "i64", 2), leaf("count", "i64", 2)
    x = leaf("x", "f32", 2, 2, S, 16)
    put = planish.put(cache, x, start, count)
    program = Program("main", (x, start, count), (aten.neg(cache),), (("keys", put),), output_names=("out",))
    session = TvmSession(code_of([program], Weights()), "main")
    held = aligned(torch.randn(2, 2, 23, 16).numpy())
    before = held.copy()
    feeds = {"x": np.ones((2, 2, 3, 16), "float32"), "start": np.array([0, 4]), "count": np.array([3, 1])}
    found = session.run(feeds | {"keys": held}, ("out", "keys.next"), keep=("keys.next",))
    np.testing.assert_array_equal(found["out"], -before)
    np.testing.assert_array_equal(held, before)
    after = session.array(found["keys.next"])
    assert (after[0, :, :3] == 1).all() and (after[1, :, 4] == 1).all()
    np.testing.assert_array_equal(after[:, :, 5:], before[:, :, 5:])


# Without kernels

PLAIN = {
    "put": "f32, False", "put_ring": "bf16, True", "attend": "f32, f32[B, 4, T, 12], None, 9.0, False",
    "attend_ring": "f32, bool[1, 1, T, 12], 5, None, True", "attend_half": "f16, None, 4, None, False",
}  # fmt: skip


def plain_program(name: str) -> Program:
    """A program of one operation on caches of twelve rows."""
    kind, *options = PLAIN[name].split(", ", 1)
    sizes = "T = dim(0, 64)\nB = dim(0, 8)\n"
    given = "start: i64[B], count: i64[B]"
    if name.startswith("put"):
        given = f"c: {kind}[B, 2, 12, 8], x: {kind}[B, 2, T, 8], {given}"
        call = f"planish.put(c, x, start, count, {options[0]})"
    else:
        bias, window, softcap, ring = options[0].rsplit(", ", 3)
        given = f"q: {kind}[B, 4, T, 8], k: {kind}[B, 2, 12, 8], v: {kind}[B, 2, 12, 6], {given}"
        given += "" if bias == "None" else f", bias: {bias}"
        name = "None" if bias == "None" else "bias"
        call = f"planish.attend(q, k, v, start, count, {name}, {window}, None, {softcap}, {ring})"
    return parse(f"{sizes}def main({given}):\n    out = {call}\n    return out\n")


def plain_inputs(program: Program, batch: int, rows: int, ring: bool) -> list[torch.Tensor]:
    """Random inputs; rows of caches that nothing was put to hold NaN."""
    generator = torch.Generator().manual_seed(batch + rows)
    made = {}
    for each in program.inputs:
        shape = [
            evaluate(s, {n: {"T": rows, "B": batch}[n.name] for n in program.symbols}) for s in each.shape
        ]
        drawn = torch.randn(shape, generator=generator)
        made[each.name] = (
            drawn > -0.3 if each.dtype.name == "bool" else drawn.to(TORCH.get(each.dtype.name, torch.int64))
        )
    most = 20 if ring else max(12 - rows, 0)
    made["start"] = torch.randint(0, most + 1, (batch,), generator=generator)
    made["count"] = torch.randint(0, rows + 1, (batch,), generator=generator)
    for b in range(batch):
        for cache in ("k", "v"):
            if cache in made:
                made[cache][b, :, int(made["start"][b] + made["count"][b]) :] = torch.nan
    return list(made.values())


def test_operations_without_kernels() -> None:
    programs = {name: plain_program(name) for name in PLAIN}
    made = executable(lower(programs, ISAS[0]), tvm.target.Target(ISAS[0].target))
    machine = tvm.relax.VirtualMachine(made, tvm.cpu())
    for name, program in programs.items():
        for batch, rows in ((1, 1), (3, 4), (2, 10), (0, 2), (1, 0)):
            inputs = plain_inputs(program, batch, rows, "ring" in name)
            (want,) = run(program, Weights(), *inputs)
            (found,) = machine[name](*map(to_tvm, inputs))
            got = torch.from_numpy(found.numpy().astype("float32"))
            near = 0 if name.startswith("put") else 2e-3 if want.dtype is torch.float16 else 1e-5
            torch.testing.assert_close(got, want.float(), rtol=near, atol=near, equal_nan=near == 0, msg=name)


@pytest.mark.parametrize("name", PLAIN)
def test_operations_can_be_scheduled_for_gpus(name: str) -> None:
    module = schedule_gpu(lower({"main": plain_program(name)}, OPENCL).module, OPENCL)
    functions = [f for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert functions and all(has_threads(f) for f in functions)
