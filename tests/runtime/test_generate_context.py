"""Contexts: chunks, batches, rollback, fork, files, rings, refusals that leave all as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_language import TinyLanguage

from planish.errors import PlanishError
from planish.runtime.generate.context import Context

TOKENS = [5, 9, 2, 33, 60, 1, 7, 7, 12, 40, 3, 21]


def code_of(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(PlanishError) as caught:
        call(*args, **named)
    return caught.value.code


@pytest.fixture
def model() -> TinyLanguage:
    return TinyLanguage()


def after(model: TinyLanguage, tokens: list[int]) -> Any:
    """The logits after tokens that a fresh context reads one by one."""
    context, found = Context(model), None
    for token in tokens:
        found = context.step([token])[0]
    return found


def test_chunks_agree_with_single_steps(model: TinyLanguage) -> None:
    for split in range(len(TOKENS)):
        context = Context(model)
        context.extend(TOKENS[:split])
        found = context.extend(TOKENS[split:])[0]
        np.testing.assert_allclose(found, after(model, TOKENS), rtol=1e-5, atol=1e-5)
        assert context.tokens == (tuple(TOKENS),) and context.lengths == (12,) and context.room == 36
    model.calls.clear()
    Context(model).extend(TOKENS[:11])
    assert model.calls == [("prefill", 5), ("prefill", 5), ("decode", 1)]


def test_every_row(model: TinyLanguage) -> None:
    rows = Context(model).extend(TOKENS, every=True)[0]
    assert rows.shape == (12, 64)
    for n in range(1, 13):
        np.testing.assert_allclose(rows[n - 1], after(model, TOKENS[:n]), rtol=1e-5, atol=1e-5)
    lacking = TinyLanguage(extend=False)
    assert code_of(Context(lacking).extend, TOKENS, every=True) == "PL877"


def test_batch_of_unequal_lengths(model: TinyLanguage) -> None:
    context = Context(model, 4)
    parts = [TOKENS[:1], TOKENS[:7], [], TOKENS]
    found = context.extend(parts)
    assert context.lengths == (1, 7, 0, 12) and found[2] is None
    for ids, logits in zip(parts, found):
        if ids:
            np.testing.assert_allclose(logits, after(model, ids), rtol=1e-5, atol=1e-5)
    before = context.logits[1]
    found = context.step([8, None, 4, None])
    assert found[1] is before
    np.testing.assert_allclose(found[0], after(model, [TOKENS[0], 8]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[2], after(model, [4]), rtol=1e-5, atol=1e-5)
    context.rollback([1, 3, 0, 11])
    assert context.lengths == (1, 4, 1, 1) and context.logits[1] is None and context.logits[2] is not None
    np.testing.assert_allclose(
        context.extend([[], [9], [], []])[1], after(model, [*TOKENS[:4], 9]), rtol=1e-5, atol=1e-5
    )


def test_rollback_and_fork_continue_bit_for_bit(model: TinyLanguage) -> None:
    context = Context(model)
    context.extend(TOKENS[:4])
    first = context.extend(TOKENS[4:])[0].copy()
    other = context.fork()
    context.rollback(8)
    context.extend([1, 2, 3])
    context.rollback(3)
    np.testing.assert_array_equal(context.extend(TOKENS[4:])[0], first)
    # The fork saw none of it, and neither sees what the other does next.
    np.testing.assert_array_equal(other.logits[0], first)
    here, there = context.step([3])[0], other.step([3])[0]
    np.testing.assert_array_equal(here, there)
    other.extend([1, 1, 1])
    np.testing.assert_array_equal(context.fork().step([4])[0], context.step([4])[0])
    assert code_of(context.rollback, 99) == "PL875"
    assert code_of(context.rollback, -1) == "PL875"
    assert code_of(context.rollback, [1, 1]) == "PL878"


def test_overflow_is_refused_before_anything_runs(model: TinyLanguage) -> None:
    context = Context(model)
    context.extend(TOKENS)
    model.calls.clear()
    assert code_of(context.extend, [1] * 37) == "PL871"
    assert code_of(context.extend, [64]) == "PL873"
    assert code_of(context.extend, [-1]) == "PL873"
    assert code_of(context.extend, [1.0]) == "PL873"
    assert code_of(context.extend, [True]) == "PL873"
    assert code_of(context.extend, [[1], [2]]) == "PL878"
    assert model.calls == [] and context.lengths == (12,)
    context.extend([1] * 36)
    assert context.room == 0
    assert code_of(context.step, [1]) == "PL871"
    assert code_of(Context, model, 5) == "PL878"
    assert code_of(Context, TinyLanguage(batch=2), 1) == "PL878"


def test_rings_go_on_for_ever_and_remember_a_window() -> None:
    model = TinyLanguage(window=6, rows=10, context=16)
    plain = TinyLanguage(context=64)
    plain.window = 6
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 64, 40)]
    context = Context(model)
    assert context.room is None
    context.extend(tokens)
    np.testing.assert_allclose(context.logits[0], after(plain, tokens), rtol=1e-5, atol=1e-5)
    assert context.capacity.slack() == 5
    context.rollback(5)
    found = context.extend([1, 2, 3])[0]
    np.testing.assert_allclose(found, after(plain, [*tokens[:35], 1, 2, 3]), rtol=1e-5, atol=1e-5)
    # Rows up to position 40 were written, whatever was taken back since.
    assert code_of(context.rollback, 4) == "PL875"
    context.rollback(3)
    context.rollback([38 - 3])
    assert context.lengths == (0,)
    np.testing.assert_allclose(context.extend(tokens[:9])[0], after(plain, tokens[:9]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 6])
def test_files(tmp_path: Path, window: int | None) -> None:
    model = TinyLanguage(window=window)
    context = Context(model, 2)
    context.extend([TOKENS, TOKENS[:3]])
    path = context.save(tmp_path / "a.safetensors")
    assert code_of(context.save, path) == "PL614"
    again = Context.restore(model, context.save(path, overwrite=True))
    assert again.tokens == context.tokens and again.nbytes == context.nbytes
    for a, b in zip(again.step([4, 5]), context.step([4, 5]), strict=True):
        np.testing.assert_array_equal(a, b)
    again.rollback(1)
    np.testing.assert_array_equal(again.step([4, 5])[1], context.logits[1])
    if window is None:
        assert path.stat().st_size < context.nbytes
    assert code_of(Context.restore, TinyLanguage(seed=1, window=window), path) == "PL641"
    empty = Context(model).save(tmp_path / "empty.safetensors")
    assert Context.restore(model, empty).extend(TOKENS)[0].shape == (64,)


def test_damaged_files(tmp_path: Path, model: TinyLanguage) -> None:
    context = Context(model)
    context.extend(TOKENS)
    data = context.save(tmp_path / "a.safetensors").read_bytes()
    path = tmp_path / "b.safetensors"
    random = np.random.default_rng(0)
    broken = [b"", b"{}", data[:-1], data + b"x", data[: len(data) // 2]]
    for place in random.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(8))
        broken.append(bytes(changed))
    for each in broken:
        path.write_bytes(each)
        assert code_of(Context.restore, model, path) in ("PL640", "PL641")
    assert code_of(Context.restore, model, tmp_path / "absent") == "PL640"
    assert code_of(Context.restore, model, tmp_path) == "PL640"


def test_files_that_lie(tmp_path: Path, model: TinyLanguage) -> None:
    from planish.runtime.generate import contextfile
    from planish.runtime.tensors import SafetensorsPayload

    context = Context(model)
    context.extend(TOKENS)
    caches = {n: np.ascontiguousarray(a[:, :, :12]) for n, a in context.states.arrays().items()}
    facts = {
        "format": "planish-context", "version": "1", "model": model.digest, "tokens": json.dumps([TOKENS]),
        "reach": "[12]",
    }  # fmt: skip

    def code(changes: dict[str, str], tensors: dict[str, Any]) -> str:
        table = {**facts, **changes}
        table["sha256"] = contextfile._digest(table, tensors)
        path = tmp_path / "lie.safetensors"
        path.write_bytes(b"".join(bytes(c) for c in SafetensorsPayload(tensors, table).chunks()))
        return code_of(Context.restore, model, path)

    for changes in (
        {"tokens": "[[64]]"}, {"tokens": "[]"}, {"tokens": "{}"}, {"tokens": "[" * 9999}, {"reach": "[1]"},
        {"reach": "[]"}, {"tokens": json.dumps([[1] * 49]), "reach": "[49]"}, {"version": "2"}, {"format": "x"},
        {"tokens": "[[1]]", "reach": "[true]"}, {"tokens": json.dumps([[1]] * 9), "reach": str([1] * 9)},
    ):  # fmt: skip
        assert code(changes, caches) == "PL640", changes
    assert code({}, {}) == "PL640"
    assert code({}, {"keys.0": caches["keys.0"]}) == "PL640"
    assert code({}, {**caches, "keys.0": caches["keys.0"][..., :4].copy()}) == "PL640"
    assert code({}, {**caches, "keys.0": caches["keys.0"].astype(np.float64)}) == "PL640"
    assert code({}, {**caches, "logits/0": np.zeros(3, np.float32)}) == "PL640"


CONTINUE = """
import sys
sys.path[:0] = {path!r}
import numpy as np
from tiny_language import TinyLanguage
context = TinyLanguage().restore({file!r})
for token in (3, 4, 5):
    found = context.step([token])[0]
sys.stdout.write(found.tobytes().hex())
"""


def test_another_process_goes_on_bit_for_bit(tmp_path: Path, model: TinyLanguage) -> None:
    context = Context(model)
    context.extend(TOKENS)
    file = context.save(tmp_path / "a.safetensors")
    for token in (3, 4, 5):
        found = context.step([token])[0]
    path = [p for p in sys.path if p] + [os.path.dirname(__file__)]
    script = CONTINUE.format(path=path, file=str(file))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == found.tobytes().hex()


def test_contexts_side_by_side_in_threads(model: TinyLanguage) -> None:
    wanted = [after(model, [seed, *TOKENS]) for seed in range(4)]
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        context = Context(model)
        for token in (seed, *TOKENS):
            found[seed] = context.step([token])[0]

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in range(4):
        np.testing.assert_array_equal(found[seed], wanted[seed])


def test_random_walk_against_recomputing(model: TinyLanguage) -> None:
    """Edits, forks and rollbacks in any order never leave what a fresh context computes."""
    random = np.random.default_rng(5)
    contexts = [Context(model)]
    for _ in range(120):
        at = int(random.integers(len(contexts)))
        context = contexts[at]
        what = random.integers(4)
        room = context.room or 0
        if what == 0 and len(contexts) < 4:
            contexts.append(context.fork())
        elif what == 1 and context.lengths[0]:
            context.rollback(int(random.integers(context.lengths[0])) + 1)
        elif room:
            more = [int(t) for t in random.integers(0, 64, min(int(random.integers(1, 9)), room))]
            context.extend(more)
            np.testing.assert_allclose(
                context.logits[0], after(model, list(context.tokens[0])), rtol=1e-4, atol=1e-4
            )
