"""Caches in ONNX Runtime against the interpreter: both ways of writing them, many calls on states in place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from planish.backends.ort.build import build
from planish.backends.ort.lower import Lowered, lower
from planish.errors import ArtifactError, BackendError
from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program, input_leaf, state
from planish.ir.run import run
from planish.ir.types import dim, tensor_type
from planish.ir.weights import Weights
from planish.runtime.ort import OrtSession
from planish.runtime.ort_states import IN_PLACE, Kept

KERNEL = "GroupQueryAttention"


@dataclass(frozen=True)
class Form:
    """Sizes and options of one attention over caches; ``batch`` and ``rows`` may be names of dimensions."""

    batch: Any = 1
    rows: Any = "S"
    capacity: int = 40
    heads: int = 6
    groups: int = 2
    width: int = 8
    value_width: int = 8
    kind: str = "f32"
    bias: str = ""
    ring: bool = False
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None


def program_of(form: Form) -> Program:
    """attend(q, put(keys, k), put(values, v), start, count, bias)."""
    size = {"B": dim("B", 1, 64), "S": dim("S", 1, 64), "L": dim("L", 1, 4096)}

    def leaf(name: str, *shape: Any, kind: str = form.kind) -> Node:
        return input_leaf(name, tensor_type(kind, *(size.get(n, n) for n in shape)))

    b, s, c = form.batch, form.rows, form.capacity
    q, k = leaf("q", b, form.heads, s, form.width), leaf("k", b, form.groups, s, form.width)
    v, start, count = (
        leaf("v", b, form.groups, s, form.value_width),
        *(leaf(n, b, kind="i64") for n in ("start", "count")),
    )
    kept = [
        state(n, tensor_type(form.kind, size.get(b, b), form.groups, c, w))
        for n, w in (("keys", form.width), ("values", form.value_width))
    ]
    shapes = {"rows": (s, c), "heads": (form.heads, s, c), "keys": (1, c), "all": (b, form.heads, s, c)}
    given = [q, k, v, start, count]
    bias = None
    if form.bias:
        what, _, kind = form.bias.partition(" ")
        bias = leaf("bias", *shapes[what], kind=kind or form.kind)
        given.append(bias)
    keys, values = (
        planish.put(old, new, start, count, form.ring) for old, new in zip(kept, (k, v), strict=True)
    )
    out = planish.attend(
        q, keys, values, start, count, bias, form.window, form.scale, form.softcap, form.ring
    )
    return Program("step", tuple(given), (out,), (("keys", keys), ("values", values)))


def session_of(program: Program, weights: Weights | None = None) -> OrtSession:
    """A program in ONNX Runtime, on one thread."""
    return build(lower(program, weights or Weights()), threads=1).session


def kernels(lowered: Lowered) -> list[str]:
    """The kinds of the operators of a model."""
    return [node.op_type for node in lowered.model.graph.node]


class Steps:
    """Calls one after another, of the interpreter and of ONNX Runtime, on states that begin as garbage."""

    def __init__(self, form: Form, batch: int, seed: int = 0) -> None:
        self.form, self.batch = form, batch
        self.random = torch.Generator().manual_seed(seed)
        self.lengths = [0] * batch
        type_ = {"f32": torch.float32, "f16": torch.float16, "f64": torch.float64, "bf16": torch.bfloat16}
        self.dtype = type_[form.kind]
        widths = {"keys": form.width, "values": form.value_width}
        self.states = {
            n: torch.full((batch, form.groups, form.capacity, w), torch.nan, dtype=self.dtype)
            for n, w in widths.items()
        }
        self.kept: dict[str, Any] = {n: t.numpy().copy() for n, t in self.states.items()}

    def call(
        self, session: OrtSession, program: Program, rows: int, counts: Sequence[int], tolerance: float = 1e-5
    ) -> None:
        """``counts`` of ``rows`` new tokens; what is compared are rows that count and rows of caches in use."""
        feeds = {leaf.name: self.value(leaf, rows) for leaf in program.inputs[:3]}
        for name in ("k", "v"):
            for b, n in enumerate(counts):
                feeds[name][b, :, n:] = torch.nan
        feeds |= {"start": torch.tensor(self.lengths), "count": torch.tensor(list(counts))}
        feeds |= {leaf.name: self.value(leaf, rows) for leaf in program.inputs[5:]}
        want, *states = run(program, Weights(), *feeds.values(), states=self.states)
        self.states = dict(zip(self.states, states, strict=True))
        names = [f"{n}.next" for n in self.kept]
        found = session.run(
            {n: t.numpy() for n, t in feeds.items()} | self.kept, [*session.outputs], keep=names
        )
        self.kept = {n: found[f"{n}.next"] for n in self.kept}
        got = torch.from_numpy(next(v for n, v in found.items() if n not in names))
        self.lengths = [a + n for a, n in zip(self.lengths, counts, strict=True)]
        for b, n in enumerate(counts):
            torch.testing.assert_close(got[b, :, :n], want[b, :, :n], rtol=tolerance, atol=tolerance)
        self.check(session)

    def check(self, session: OrtSession) -> None:
        """The rows of the caches that are in use are those of the interpreter, bit by bit."""
        for name, want in self.states.items():
            got = torch.from_numpy(session.array(self.kept[name]))
            for b, length in enumerate(self.lengths):
                assert torch.equal(got[b, :, :length], want[b, :, :length]), name

    def value(self, leaf: Node, rows: int) -> torch.Tensor:
        """Random numbers; of a boolean bias each query sees its own key."""
        binding = {"B": self.batch, "S": rows}
        shape = [int(n) if isinstance(n, int) else binding[n.name] for n in leaf.shape]
        made = torch.randn(shape, generator=self.random)
        return made > -0.5 if leaf.dtype.name == "bool" else made.to(self.dtype)


FORMS = {
    "plain": Form(),
    "one head": Form(heads=3, groups=3),
    "scale": Form(scale=0.3),
    "softcap": Form(softcap=1.5),
    "window": Form(window=5),
    "bias": Form(bias="heads"),
    "bias of keys": Form(bias="keys"),
    "bias, window and softcap": Form(bias="rows", window=7, softcap=2.0),
    "boolean": Form(bias="all bool"),
    "widths": Form(width=10, value_width=6),
    "widths and window": Form(width=10, value_width=6, window=5),
    "widths and bias": Form(width=10, value_width=10, bias="heads"),
    "several": Form(batch="B"),
    "several, window and bias": Form(batch="B", window=6, bias="heads"),
    "several and boolean": Form(batch="B", bias="rows bool"),
    "f64": Form(kind="f64"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("seed", range(2))
def test_prefill_then_decode(name: str, seed: int) -> None:
    form = FORMS[name]
    prefill = program_of(form)
    decode = program_of(Form(**{**vars(form), "rows": 1}))
    first, second = session_of(prefill), session_of(decode)
    steps = Steps(form, 1, seed)
    steps.call(first, prefill, 9, [9])
    for _ in range(11):
        steps.call(second, decode, 1, [1])
    steps = Steps(form, 1, seed)
    for rows, count in ((4, 4), (4, 4), (4, 2), (4, 4), (1, 1), (4, 0), (7, 5), (20, 20)):
        steps.call(first, prefill, rows, [count])


@pytest.mark.parametrize("name", [n for n in FORMS if FORMS[n].batch == "B"])
def test_sequences_of_other_lengths(name: str) -> None:
    form = FORMS[name]
    prefill = program_of(form)
    decode = program_of(Form(**{**vars(form), "rows": 1}))
    first, second = session_of(prefill), session_of(decode)
    steps = Steps(form, 3)
    steps.call(first, prefill, 11, [1, 5, 11])
    for _ in range(6):
        steps.call(second, decode, 1, [1, 1, 1])
    steps.call(second, decode, 1, [1, 0, 1])
    steps.call(first, prefill, 4, [4, 0, 2])
    steps.call(first, prefill, 20, [3, 8, 20])
    for _ in range(2):
        steps.call(second, decode, 1, [1, 1, 0])
    assert steps.lengths == [17, 21, form.capacity]


def test_a_full_sequence_waits_for_the_others() -> None:
    form = Form(batch=2, rows=1, capacity=6)
    program = program_of(form)
    session, steps = session_of(program), Steps(form, 2)
    for counts in ((1, 1), (1, 0), (1, 1), (1, 0), (1, 1), (1, 1), (0, 1), (0, 1)):
        steps.call(session, program, 1, counts)
    assert steps.lengths == [6, 6]


def test_the_end_of_a_cache_with_padding() -> None:
    form = Form(capacity=12)
    program = program_of(form)
    session, steps = session_of(program), Steps(form, 1)
    for rows, count in ((9, 9), (8, 2), (8, 1)):
        steps.call(session, program, rows, [count])
    with pytest.raises(BackendError, match="PL704"):
        steps.call(session, program, 1, [1])
    steps.check(session)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("bias", ["", "heads"])
def test_rings(batch: int, bias: str) -> None:
    form = Form(batch=batch, capacity=9, window=6, ring=True, bias=bias)
    prefill, decode = program_of(form), program_of(Form(**{**vars(form), "rows": 1}))
    first, second = session_of(prefill), session_of(decode)
    steps = Rings(form, batch)
    for rows, counts in (
        (4, (4, 1, 3)),
        (1, (1, 1, 1)),
        (3, (2, 3, 0)),
        (3, (3, 3, 3)),
        *[(1, (1, 1, 0))] * 10,
    ):
        session, program = (second, decode) if rows == 1 else (first, prefill)
        steps.call(session, program, rows, counts[:batch])
    assert max(steps.lengths) > 3 * 6
    steps = Rings(form, batch)
    steps.call(first, prefill, 4, [2] * batch)
    steps.call(first, prefill, 9, [7] * batch)


class Rings(Steps):
    """The same of rings, in which all rows that hold a position are in use."""

    def check(self, session: OrtSession) -> None:
        for name, want in self.states.items():
            got = torch.from_numpy(session.array(self.kept[name]))
            for b, length in enumerate(self.lengths):
                used = min(length, self.form.capacity)
                assert torch.equal(got[b, :, :used], want[b, :, :used]), name


def test_more_new_rows_than_a_cache_has() -> None:
    rows = dim("S", 1, 64)
    for ring in (False, True):
        old = state("kept", tensor_type("f32", 2, 3, 5, 4))
        new, start, count = (
            input_leaf(n, t)
            for n, t in (
                ("new", tensor_type("f32", 2, 3, rows, 4)),
                ("start", tensor_type("i64", 2)),
                ("count", tensor_type("i64", 2)),
            )
        )
        made = planish.put(old, new, start, count, ring)
        program = Program("write", (new, start, count), (aten.relu(made),), (("kept", made),))
        session = session_of(program)
        for size, starts, counts in (
            (3, (0, 2), (3, 1)),
            (12, (0, 3), (12, 7)),
            (9, (1, 4), (0, 9)),
            (5, (7, 2), (5, 4)),
        ):
            inputs = (torch.randn(2, 3, size, 4), torch.tensor(starts), torch.tensor(counts))
            states = {"kept": torch.randn(2, 3, 5, 4)}
            want = run(program, Weights(), *inputs, states=states)
            feeds = {n: t.numpy() for n, t in zip(("new", "start", "count"), inputs, strict=True)}
            found = session.run(feeds | {"kept": states["kept"].numpy().copy()}, keep=["kept.next"])
            for got, expected in zip(found.values(), want, strict=True):
                np.testing.assert_array_equal(session.array(got), expected.numpy())


@pytest.mark.parametrize("kind, tolerance", [("f16", 4e-3), ("bf16", 3e-2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_short_floats(kind: str, tolerance: float, batch: int) -> None:
    form = Form(batch=batch, rows=1, kind=kind)
    program = program_of(form)
    built = build(lower(program, Weights()), threads=1)
    random = torch.Generator().manual_seed(1)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
    states = {n: torch.zeros(batch, 2, 40, 8, dtype=dtype) for n in ("keys", "values")}
    for start in range(3):
        shapes = ((batch, 6, 1, 8), (batch, 2, 1, 8), (batch, 2, 1, 8))
        given = [torch.randn(s, generator=random).to(dtype) for s in shapes]
        places = (torch.full((batch,), start), torch.ones(batch, dtype=torch.int64))
        want, *following = run(program, Weights(), *given, *places, states=states)
        got, *found = built(*given, *places, states=states)
        torch.testing.assert_close(got.float(), want.float(), rtol=tolerance, atol=tolerance)
        assert all(map(torch.equal, found, following))
        states = dict(zip(states, following, strict=True))


# What is written where


def test_the_kernel_is_used_where_it_can_be() -> None:
    one_row = Form(batch="B", rows=1)
    for form in (
        Form(),
        Form(batch=3, rows=1),
        one_row,
        Form(bias="heads", window=4, softcap=1.0),
        Form(kind="f16"),
    ):
        assert kernels(lower(program_of(form), Weights())).count(KERNEL) == 1, form
    others = (
        Form(batch=2), Form(batch="B"), Form(ring=True), Form(width=12, value_width=12), Form(value_width=16),
        Form(bias="rows bool"), Form(kind="f64"),
    )  # fmt: skip
    for form in others:
        assert KERNEL not in kernels(lower(program_of(form), Weights())), form


def test_a_second_reader_of_the_caches() -> None:
    form = Form()
    program = program_of(form)
    (first,) = program.outputs
    keys, values = (value for _, value in program.states)
    q, _, _, start, count = program.inputs
    second = planish.attend(aten.add(q, first), keys, values, start, count)
    twice = Program("step", program.inputs, (aten.add(first, second),), program.states)
    assert kernels(lower(twice, Weights())).count(KERNEL) == 1
    steps, session = Steps(form, 1), session_of(twice)
    for rows in (5, 1, 4):
        steps.call(session, twice, rows, [rows])


def test_queries_that_wait_for_what_is_written() -> None:
    program = program_of(Form())
    keys, values = (value for _, value in program.states)
    q, _, _, start, count = program.inputs
    late = planish.attend(aten.add(q, aten.sum(aten.slice(keys, 2, 0, 1))), keys, values, start, count)
    waiting = Program("step", program.inputs, (late,), program.states)
    assert KERNEL not in kernels(lower(waiting, Weights()))
    steps, session = Steps(Form(), 1), session_of(waiting)
    for rows in (5, 1, 4):
        steps.call(session, waiting, rows, [rows])


def test_states_keep_their_memory() -> None:
    for form in (Form(), Form(ring=True), Form(width=12, value_width=12)):
        program = program_of(form)
        assert kernels(lower(program, Weights())).count("Identity") == len(program.outputs)
        first, second = session_of(program), session_of(program)
        steps = Rings(form, 1) if form.ring else Steps(form, 1)
        given = {name: array.ctypes.data for name, array in steps.kept.items()}
        for session in (first, second, first):
            steps.call(session, program, 3, [3])
            assert {n: k.value.data_ptr() for n, k in steps.kept.items()} == given
        was = first.array(steps.kept["keys"]).copy()
        snapshot = first.array(steps.kept["keys"])
        steps.call(first, program, 1, [1])
        np.testing.assert_array_equal(snapshot, was)


def test_runs_side_by_side() -> None:
    form = Form()
    program = program_of(form)
    session = session_of(program)
    runs = [Steps(form, 1, seed) for seed in range(3)]
    for rows in (6, 1, 1, 4):
        for each in runs:
            each.call(session, program, rows, [rows])


def test_an_array_that_cannot_be_written_is_copied() -> None:
    form = Form()
    program = program_of(form)
    session, steps = session_of(program), Steps(form, 1)
    fixed = {name: array.copy() for name, array in steps.kept.items()}
    for array in fixed.values():
        array.flags.writeable = False
    steps.kept = dict(fixed)
    steps.call(session, program, 3, [3])
    assert all(np.isnan(array).all() for array in fixed.values())


def test_states_that_are_read_elsewhere_are_not_written_in_place() -> None:
    program = program_of(Form())
    old = program.states[0][1].args[0]
    shown = Program("step", program.inputs, (*program.outputs, aten.sum(old)), program.states)
    lowered = lower(shown, Weights())
    assert _in_place(lowered) == {"values": "values.next"}
    session = session_of(shown)
    feeds = {
        n: np.zeros([2 if not isinstance(s, int) else s for s in t.shape], np.float32)
        for n, t in _leaves(shown)
    }
    feeds |= {"start": np.array([0]), "count": np.array([2])}
    caches = {n: np.ones((1, 2, 40, 8), np.float32) for n in ("keys", "values")}
    for _ in range(2):
        found = session.run(feeds | caches, keep=["keys.next", "values.next"])
        assert float(found["output1"]) == float(np.prod((2, 40, 8)))
        assert isinstance(found["keys.next"], Kept) and session.array(found["keys.next"])[0, 0, 0, 0] == 0
        caches["values"] = found["values.next"]


def test_states_that_stay_and_states_that_are_computed() -> None:
    x = input_leaf("x", tensor_type("f32", 3))
    fixed, total = (state(n, tensor_type("f32", 3)) for n in ("fixed", "total"))
    following = aten.add(total, x)
    program = Program("step", (x,), (aten.add(following, fixed),), (("fixed", fixed), ("total", following)))
    assert _in_place(lower(program, Weights())) == {"fixed": "fixed.next"}
    session = session_of(program)
    kept: dict[str, Any] = {"fixed": np.full(3, 7.0, np.float32), "total": np.zeros(3, np.float32)}
    for i in range(1, 4):
        found = session.run({"x": np.ones(3, np.float32)} | kept, keep=["fixed.next", "total.next"])
        np.testing.assert_array_equal(found["output0"], np.full(3, 7.0 + i, np.float32))
        kept = {n: found[f"{n}.next"] for n in kept}
        assert kept["total"].shape == (3,)
    np.testing.assert_array_equal(session.array(kept["total"]), np.full(3, 3.0, np.float32))


@pytest.mark.parametrize(
    "text", ["nonsense", "[]", '{"keys": "other"}', '{"start": "keys.next"}', '{"keys": 1}']
)
def test_a_model_with_wrong_states_is_refused(text: str) -> None:
    model = lower(program_of(Form()), Weights()).model
    (entry,) = [p for p in model.metadata_props if p.key == IN_PLACE]
    entry.value = text
    with pytest.raises(ArtifactError, match="PL621"):
        OrtSession(model.SerializeToString())


def _in_place(lowered: Lowered) -> Any:
    (text,) = [p.value for p in lowered.model.metadata_props if p.key == IN_PLACE]
    return json.loads(text)


def _leaves(program: Program) -> list[tuple[str, Any]]:
    return [(leaf.name, leaf.tensor) for leaf in program.inputs[:3]]


@pytest.mark.parametrize("batch", [1, 2])
def test_queries_whose_bias_hides_all(batch: int) -> None:
    form = Form(batch=batch, bias="heads")
    program = program_of(form)
    assert (KERNEL in kernels(lower(program, Weights()))) == (batch == 1)
    steps, session = Steps(form, batch), session_of(program)
    bias = torch.zeros(6, 3, 40)
    bias[2, 1], bias[3, :, 1] = -torch.inf, -torch.inf
    steps.value = lambda leaf, rows: bias if leaf.name == "bias" else Steps.value(steps, leaf, rows)  # type: ignore[method-assign]
    steps.call(session, program, 3, [3] * batch)
