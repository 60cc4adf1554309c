"""Tuning: what is measured and for how long, what is chosen, what is kept; and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

tvm = pytest.importorskip("tvm")

from planish.backends.tvm import tune_quiet  # noqa: E402
from planish.backends.tvm.cpu.variant import DEFAULT, Variant  # noqa: E402
from planish.backends.tvm.isa import ISAS, supported  # noqa: E402
from planish.backends.tvm.kernel_cost import alone, cases, kernel_text, multiply_adds, touched  # noqa: E402
from planish.backends.tvm.target import load_kernels, machine  # noqa: E402
from planish.backends.tvm.tune import Job, Rounds, Tuned, Tuning, gain, jobs, tune  # noqa: E402
from planish.backends.tvm.tune_measure import Timer  # noqa: E402
from planish.backends.tvm.tune_records import FOLDER, Records, machine_facts, processor  # noqa: E402
from planish.ir.kernel import kernel  # noqa: E402
from planish.ir.namespace import aten  # noqa: E402
from planish.ir.node import Node, Program, const, input_leaf  # noqa: E402
from planish.ir.parser import parse_type  # noqa: E402
from planish.ir.types import dim  # noqa: E402

load_kernels()
HERE = supported()[:1]


def dense(x: Node, name: str, rows: int, activation: str = "none") -> Node:
    """A dense layer on a stored weight."""
    length = int(x.shape[-1])
    tiles = const(f"{name}.weight", parse_type(f"f32[{-(-rows // 32)}, {length}, 32]"))
    made = kernel.linear_dense(x, tiles, None, None, rows, 32, 1, activation)
    assert isinstance(made, Node)
    return made


def program() -> Program:
    """Three layers, of which two are the same kernel, and something that has no variants."""
    x = input_leaf("x", parse_type("f32[T, 64]"))
    first = dense(x, "first", 512, "relu")
    second = dense(dense(first, "second", 512), "third", 512)
    return Program("main", (x,), (aten.softmax(second, 1),))


@dataclass
class Bench:
    """In the place of measuring: each call takes ``cost`` seconds of a made-up clock; ``speed`` names what is fast."""

    speed: dict[str, float] = field(default_factory=dict)
    cost: float = 1.0
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    now: float = 0.0

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def __call__(
        self, job: Job, variants: Sequence[Variant], left: Callable[[], float]
    ) -> Sequence[Rounds] | None:
        self.calls.append((job.text, tuple(v.name for v in variants)))
        self.now += self.cost
        row = [self.speed.get(v.name, 1.0) for v in variants]
        return [[row] * 5] * len(job.sizes) if left() > 0 else None

    def tuning(self, folder: Path | None = None, **options: Any) -> Tuning:
        """Tuning by this bench."""
        return replace(Tuning(100.0, folder, measure=self, clock=self.clock), **options)


def tuned(tuning: Tuning, isas: Any = HERE) -> Tuned:
    """The program, tuned."""
    return tune((program(),), isas, machine(), tuning)


def test_the_costliest_kernel_comes_first() -> None:
    found = jobs((program(),), HERE, machine())
    assert [job.count for job in found] == [2, 1] and found[0].cost > found[1].cost
    assert found[0].text == "linear_dense(f32[T, 512], f32[16, 512, 32], None, None, 512, 32, 1, 'none')"
    assert [{s.name: n for s, n in sizes.items()} for sizes in found[0].sizes] == [{"T": 1}, {"T": 256}]
    assert found[0].variants[0] == DEFAULT and len(found[0].variants) > 3


def test_costs_are_those_of_the_meaning() -> None:
    few, many = jobs((program(),), HERE, machine())[0].sizes
    node = jobs((program(),), HERE, machine())[0].node
    assert multiply_adds(node, many) == 256 * 512 * 512 == 256 * multiply_adds(node, few)
    assert touched(node, few) == 4 * (512 + 512 * 512 + 512)
    q = input_leaf("q", parse_type("f32[2, 6, 40, 16]"))
    twice = kernel.attention(q, q, q)
    assert multiply_adds(twice, {}) == 2 * 6 * 40 * 40 * 32 and cases(twice) == ({},)
    assert kernel_text(twice).startswith("attention(f32[2, 6, 40, 16], operand 0, operand 0, None")
    assert alone(node).op == node.op and alone(node).type == node.type


def test_sizes_stay_within_their_ranges() -> None:
    def sizes(*names: Any) -> list[dict[str, int]]:
        x = input_leaf("x", replace(parse_type("f32[1, 64]"), shape=(*names, 64)))
        return [{s.name: n for s, n in each.items()} for each in cases(dense(x, "w", 512))]

    assert sizes(dim("B", 1, 8), dim("T", 2, 100)) == [{"B": 1, "T": 2}, {"B": 1, "T": 100}]
    assert sizes(dim("B")) == [{"B": 1}, {"B": 256}]
    assert sizes(dim("P"), dim("Q")) == [{"P": 1, "Q": 1}, {"P": 64, "Q": 64}]


def test_a_faster_variant_is_taken_and_kept(tmp_path: Path) -> None:
    bench = Bench({"rows=8": 0.8, "rows=14": 0.9})
    first = tuned(bench.tuning(tmp_path))
    assert first.measured == 2 and first.reused == 0
    assert {v.name for v in first.chosen[HERE[0].name].values()} == {"rows=8"}
    assert len(first.table) == 2 and "rows=8 takes 0.80 of the time" in first.notes[0]
    assert [names for _, names in bench.calls][1::2] == [("default", "rows=8")] * 2
    again = Bench()
    second = tuned(again.tuning(tmp_path))
    assert again.calls == [] and second.measured == 0 and second.reused == 2
    assert (second.chosen, second.notes, second.table) == (first.chosen, first.notes, first.table)
    assert tuned(Bench().tuning(tmp_path, policy="redo")).measured == 2


def test_what_is_measured_depends_on_threads_and_policy(tmp_path: Path) -> None:
    tuned(Bench().tuning(tmp_path, policy="readonly"))
    assert not (tmp_path / FOLDER).exists()
    tuned(Bench().tuning(tmp_path))
    assert len(list((tmp_path / FOLDER).glob("*.json"))) == 2
    assert tuned(Bench().tuning(tmp_path, policy="readonly")).reused == 2
    assert tuned(Bench().tuning(tmp_path, threads=7)).measured == 2
    assert tuned(Bench().tuning(tmp_path, policy="off")).measured == 2


def test_time_is_not_exceeded(tmp_path: Path) -> None:
    bench = Bench(cost=3.0)
    made = tuned(bench.tuning(tmp_path, seconds=4.0))
    assert made.measured == 1 and len(bench.calls) == 2
    assert made.notes == ("not tuned, as 4 s were over or other programs were busy: 1 of the kernels",)
    nothing = Bench()
    assert tuned(nothing.tuning(tmp_path, seconds=0.0)).reused == 1 and nothing.calls == []


def test_damaged_and_foreign_records_are_ignored(tmp_path: Path) -> None:
    tuned(Bench({"rows=8": 0.5}).tuning(tmp_path))
    one, two = sorted((tmp_path / FOLDER).glob("*.json"))
    whole = two.read_bytes()
    for data in (b"", b"{", b"[]", b"\xff\xfe", one.read_bytes(), whole.replace(b'"rows=8"', b'"rows=9"'),
                 whole.replace(b"0.5", b"true"), whole.replace(b'"format": 1', b'"format": 2'), b"[" * 100_000,
                 whole + b" " * (1 << 21) + b"x"):  # fmt: skip
        two.write_bytes(data)
        made = tuned(Bench().tuning(tmp_path, policy="readonly"))
        assert made.measured == 1 and made.reused == 1, data[:20]
        assert any(two.name in note and "ignored" in note for note in made.notes), data[:20]
    two.unlink()
    two.mkdir()
    assert any("ignored" in note for note in tuned(Bench().tuning(tmp_path)).notes)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    made = tuned(Bench().tuning(tmp_path))
    assert made.measured == 2 and any("not kept" in note for note in made.notes)
    assert not Records(None).folder


def test_noise_is_no_gain() -> None:
    quiet = [[1.0, 0.9]] * 8
    assert gain([quiet, quiet], 1) == pytest.approx(0.9)
    assert gain([[[1.0, 0.98]] * 8], 1) is None
    assert gain([quiet, [[1.0, 1.1]] * 8], 1) is None
    assert gain([[[1.0, 0.8], [1.0, 1.1], [1.0, 0.9], [1.0, 1.2]] * 2 + [[1.0, 0.8]]], 1) is None
    twice = iter([{"rows=8": 0.8}, {"rows=8": 1.0}] * 2)

    def measure(job: Job, variants: Sequence[Variant], _: Any) -> Sequence[Rounds]:
        speed = next(twice)
        return [[[speed.get(v.name, 1.0) for v in variants]] * 5]

    assert not tuned(Tuning(measure=measure)).table


def test_instruction_sets_that_are_not_here() -> None:
    foreign = replace(ISAS["generic"], name="other")
    made = tuned(Bench().tuning(), (foreign,))
    assert made.measured == 0 and made.notes == ("other is not tuned: this processor lacks it",)


def test_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 0 5 5 0 0 0 0 0\ncpu0 1 2 3\n")
    watch = tune_quiet.Watch(1, stat)
    assert watch.busy is not None and watch.is_quiet()
    stat.write_text("cpu  100000000 0 0 5 5 0 0 0 0 0\n")
    assert not watch.is_quiet()
    assert tune_quiet.Watch(1, tmp_path / "none").is_quiet()
    monkeypatch.setattr(tune_quiet.Watch, "is_quiet", lambda _: False)
    job = jobs((program(),), HERE, machine())[-1]
    assert Timer(1)(job, job.variants[:2], lambda: 1.0) is None


def test_real_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_quiet.Watch, "is_quiet", lambda _: True)
    job = jobs((program(),), HERE, machine())[-1]
    times = Timer(1)(job, job.variants[:2], lambda: 1.0)
    assert times is not None and len(times) == 2
    assert all(0 < each < 1 for rounds in times for row in rounds for each in row)
    left = iter([1.0] * 3)
    assert Timer(1)(job, job.variants[:2], lambda: next(left, 0.0)) is None
    told: list[str] = []
    tuning = Tuning(30.0, progress=lambda name, _: told.append(name))
    assert tune((program(),), HERE, machine(), tuning).measured == len(told) == 2


def test_descriptions_of_machines() -> None:
    text = "processor\t: 0\nmodel name\t: Some CPU\ncpu family\t: 25\nmodel\t\t: 17\n\nmodel name\t: Other\n"
    assert processor(text) == "Some CPU 25 17" and processor("") == "unknown"
    assert json.loads(json.dumps(dict(machine_facts(2))))["threads"] == 2
