"""Edits of contexts: exact where the method is, refused where it cannot be, and everything else as recomputed."""

from __future__ import annotations

import threading
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import TinyLanguage, byte_tokenizer

import planish
from planish.errors import PlanishError
from planish.frontend import api
from planish.frontend.capture.torch import capture_torch
from planish.frontend.config import GenerateOptions
from planish.runtime.generate.context import Context
from planish.runtime.generate.edits import Edit, applied, difference, moves_of, planned
from planish.runtime.generate.model import Model
from tests import parity
from tests.models import GROUPED, VOCABULARY, hugging_face

TARGETS = ("eager", "onnxruntime", "cpu")
LAYER0 = 1e-5
LOGITS = 1e-4
CONTEXT = 64
EDITS: dict[str, list[tuple[int, int, list[int]]]] = {
    "insertion": [(10, 10, [7, 8, 9])],
    "deletion": [(10, 14, [])],
    "replacement": [(10, 12, [7, 8, 9, 10, 11])],
    "shorter replacement": [(10, 15, [7, 8])],
    "same length": [(10, 13, [7, 8, 9])],
    "at the beginning": [(0, 0, [7, 8])],
    "at the end": [(35, 40, [7, 8])],
    "near the end": [(24, 30, [7, 8])],
    "several places": [(3, 3, [5] * 20), (9, 12, [6]), (20, 24, [7, 8]), (30, 30, [9])],
    "shorter, then longer": [(3, 12, [5]), (20, 20, [6] * 9)],
}


def code_of(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(PlanishError) as caught:
        call(*args, **named)
    return caught.value.code


@cache
def compiled(name: str, target: str, batch: int | None = None, context: int = CONTEXT) -> planish.Compiled:
    """A tiny random model that generates."""
    options = api.make_options(
        target=target, generate=GenerateOptions(context=context, batch=batch, chunk=16)
    )
    return api.compile_captured(_captured(name), options)


@cache
def _captured(name: str) -> Any:
    if name != "one layer":
        return parity.captured(name)
    model = hugging_face("LlamaForCausalLM", "LlamaConfig", **{**GROUPED, "num_hidden_layers": 1})()
    example = {"input_ids": torch.randint(3, VOCABULARY, (2, 9))}
    return capture_torch(model, example, dynamic_shapes={"input_ids": {0: "B", 1: "T"}})


def model(name: str, target: str = "eager", **options: Any) -> Model:
    return compiled(name, target, **options).generator


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, VOCABULARY, count)]


def read(made: Model, *sequences: list[int]) -> Context:
    """A context that has read sequences."""
    context = made.context(len(sequences))
    context.extend(list(sequences))
    return context


def rows(context: Context, layer: int = 0, sequence: int = 0) -> list[Any]:
    """The keys and values of the tokens of a sequence."""
    states, count = context.states.arrays(), context.lengths[sequence]
    return [states[f"{kind}.{layer}"][sequence, :, :count].copy() for kind in ("keys", "values")]


def check_rows(have: list[Any], want: list[Any]) -> None:
    for a, b in zip(have, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=LAYER0 * np.abs(b).max())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("what", EDITS)
def test_first_layer_is_that_of_reading_anew(what: str, target: str) -> None:
    made, tokens = model("llama", target), random_tokens(40)
    other = random_tokens(11, 3)
    context = read(made, tokens, other)
    beside = [*rows(context, 0, 1), *rows(context, 1, 1)]
    context.edits(EDITS[what])
    wanted = applied(planned(EDITS[what], tokens, VOCABULARY), tokens)
    assert context.tokens == (tuple(wanted), tuple(other)) and context.lengths == (len(wanted), 11)
    fresh = read(made, wanted, other)
    check_rows(rows(context), rows(fresh))
    logits = context.logits
    assert logits[0] is not None and logits[0].shape == (VOCABULARY,)
    for a, b in zip(beside, [*rows(context, 0, 1), *rows(context, 1, 1)], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(logits[1], read(made, tokens, other).logits[1])
    if what.endswith("the end"):
        check_rows(rows(context, 1), rows(fresh, 1))
        np.testing.assert_allclose(logits[0], fresh.logits[0], rtol=0, atol=LOGITS)
    more = context.extend([[4, 5], []])[0]
    assert np.isfinite(more).all()


@pytest.mark.parametrize("what", EDITS)
def test_one_layer_is_exact(what: str) -> None:
    made, tokens = model("one layer", "onnxruntime"), random_tokens(40)
    context = read(made, tokens)
    context.edits(EDITS[what])
    fresh = read(made, list(context.tokens[0]))
    np.testing.assert_allclose(context.logits[0], fresh.logits[0], rtol=0, atol=LOGITS)
    np.testing.assert_allclose(context.extend([4, 5])[0], fresh.extend([4, 5])[0], rtol=0, atol=LOGITS)
    answers = [made.generate([], max_tokens=4, context=c) for c in (context, fresh)]
    assert answers[0].token_ids == answers[1].token_ids


@pytest.mark.parametrize("target", TARGETS)
def test_replacement_of_the_same_length_leaves_what_stands_behind(target: str) -> None:
    context = read(model("llama", target), random_tokens(40))
    before = [*rows(context, 0), *rows(context, 1)]
    context.edit(10, 30, random_tokens(20, 1))
    for a, b in zip([*rows(context, 0), *rows(context, 1)], before, strict=True):
        np.testing.assert_array_equal(a[:, :10], b[:, :10])
        assert not np.array_equal(a[:, 10:30], b[:, 10:30])
        np.testing.assert_array_equal(a[:, 30:], b[:, 30:])


def test_equal_tokens_are_left_alone() -> None:
    made = TinyLanguage()
    context = read(made, [1, 2, 3, 4, 5, 6])
    logits = context.logits[0]
    made.calls.clear()
    assert context.edits([(1, 4, [2, 3, 4]), (5, 5, [])]) == ()
    assert made.calls == [] and context.logits[0] is logits
    assert context.edits([(1, 5, [2, 9, 4, 5])]) == (Edit(2, 3, (9,)),)
    assert made.calls == [("decode", 1)]


@pytest.mark.parametrize("target", TARGETS)
def test_undone(target: str) -> None:
    tokens = random_tokens(40)
    context = read(model("llama", target), tokens)
    before, length = rows(context), context.lengths
    for edit, back in (
        ((5, 5, [9, 9, 9]), (5, 8, [])),
        ((20, 27, []), (20, 20, tokens[20:27])),
        ((30, 31, [1, 2, 3]), (30, 33, tokens[30:31])),
    ):
        context.edit(*edit)
        assert context.lengths != length
        context.edit(*back)
        assert context.tokens == (tuple(tokens),) and context.lengths == length
        check_rows(rows(context), before)


def test_the_last_token_is_read_again_only_for_its_logits() -> None:
    made = TinyLanguage()
    context = read(made, [1, 2, 3, 4, 5, 6])
    made.calls.clear()
    context.edit(1, 3, [8, 9])
    assert made.calls == [("prefill", 2)]
    context.extend([7])
    assert made.calls == [("prefill", 2), ("decode", 1)]
    context.edit(2, 3, [10])
    made.calls.clear()
    assert context.tokens == ((1, 8, 10, 4, 5, 6, 7),)
    logits = context.logits[0]
    assert made.calls == [("decode", 1)] and context.logits[0] is logits and len(made.calls) == 1
    # A layer of its own knows what stood before: a single one is exact.
    np.testing.assert_allclose(logits, read(made, [1, 8, 10, 4, 5, 6, 7]).logits[0], rtol=1e-5, atol=1e-5)
    # Few tokens that would move are read anew.
    made.calls.clear()
    context.edit(1, 2)
    assert made.calls == [("prefill", 5)]
    np.testing.assert_array_equal(context.logits[0], read(made, [1, 10, 4, 5, 6, 7]).logits[0])
    context.extend([7])
    context.edit(6, 7)
    made.calls.clear()
    assert context.lengths == (6,)
    np.testing.assert_array_equal(context.extend([])[0], context.logits[0])
    assert made.calls == [("decode", 1)]
    context.edit(0, 6)
    assert context.lengths == (0,) and context.logits == (None,)


@pytest.mark.parametrize("target", TARGETS)
def test_forks_are_independent(target: str) -> None:
    made, tokens = model("llama", target), random_tokens(30)
    context = read(made, tokens)
    other = context.fork()
    before = [*rows(other, 0), *rows(other, 1)]
    context.edit(4, 6, [1, 2, 3, 4, 5, 6])
    late = context.fork()
    for a, b in zip([*rows(other, 0), *rows(other, 1)], before, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(context.logits[0], late.logits[0])
    late.edit(0, 3)
    assert (context.lengths, other.lengths, late.lengths) == ((34,), (30,), (31,))
    np.testing.assert_array_equal(other.logits[0], read(made, tokens).logits[0])


def test_files_keep_edits(tmp_path: Path) -> None:
    made = model("llama")
    context = read(made, random_tokens(20))
    context.edit(3, 5, [1, 2, 3])
    again = made.restore(context.save(tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(again.logits[0], context.logits[0])
    np.testing.assert_array_equal(again.extend([4])[0], context.extend([4])[0])


def test_what_is_refused_changes_nothing() -> None:
    made, tokens = model("llama"), random_tokens(60)
    context = read(made, tokens)
    before = {n: a.copy() for n, a in context.states.arrays().items()}
    for code, edits in (
        ("PL880", [(3, 61, [])]), ("PL880", [(-1, 3, [])]), ("PL880", [(4, 3, [])]), ("PL880", [(1.0, 2, [])]),
        ("PL880", [(True, 2, [])]), ("PL880", [(1, 3, []), (2, 4, [])]), ("PL880", [(1, 3)]), ("PL880", ["abc", 1]),
        ("PL873", [(1, 3, [VOCABULARY])]), ("PL873", [(1, 3, [-1])]), ("PL873", [(1, 3, "ab")]),
        ("PL873", [(1, 3, [5]), (5, 6, [1.5])]), ("PL871", [(1, 3, [9] * 7)]), ("PL871", [(60, 60, [9] * 5)]),
    ):  # fmt: skip
        assert code_of(context.edits, edits) == code, edits
    for sequence in (1, -1, True, "0"):
        assert code_of(context.edit, 1, 2, [3], sequence) == "PL880"
    assert code_of(context.edit_text, "x") == code_of(context.replace_text, "x", "y") == "PL874"
    assert context.tokens == (tuple(tokens),)
    for name, array in context.states.arrays().items():
        np.testing.assert_array_equal(array, before[name])
    # As long as the whole fits, the order of edits is no obstacle.
    context.edits([(1, 1, [9] * 10), (40, 50, [])])
    assert context.lengths == (60,)
    check_rows(rows(context), rows(read(made, list(context.tokens[0]))))


def test_models_whose_rows_stay() -> None:
    """Learned positions and rings: what changes no places is possible, or what stands at the end."""
    learned = model("gpt2", "onnxruntime")
    context = read(learned, random_tokens(20))
    with pytest.raises(PlanishError, match="reads positions") as caught:
        context.edit(3, 3, [5])
    assert caught.value.code == "PL879" and context.lengths == (20,)
    context.edits([(3, 5, [5, 6]), (17, 20, [8])])
    fresh = read(learned, list(context.tokens[0]))
    check_rows(rows(context), rows(fresh))
    ring = TinyLanguage(window=6, rows=12)
    context = read(ring, list(range(20)))
    assert code_of(context.edit, 3, 4, [9]) == "PL879"
    assert code_of(context.edit, 12, 20, [9]) == "PL879"
    assert code_of(context.edit, 12, 13) == "PL879"
    context.edit(17, 20, [9, 8, 7, 6])
    np.testing.assert_allclose(
        context.logits[0], read(ring, [*range(17), 9, 8, 7, 6]).logits[0], rtol=1e-5, atol=1e-5
    )
    context.edit(18, 21)
    np.testing.assert_allclose(context.logits[0], read(ring, [*range(17), 9]).logits[0], rtol=1e-5, atol=1e-5)
    context.edit(15, 16, [3])
    np.testing.assert_allclose(
        context.logits[0], read(ring, [*range(15), 3, 16, 9]).logits[0], rtol=1e-5, atol=1e-5
    )
    window = model("mistral")
    with pytest.raises(PlanishError, match="window"):
        read(window, random_tokens(20)).edit(1, 2, [5])


def test_a_model_that_fails_leaves_what_stands_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tokens = model("one layer"), random_tokens(30)
    context = read(made, tokens)
    real = made.run

    def run(feeds: Any, entry: str | None = None, **named: Any) -> Any:
        if entry == "prefill":
            raise RuntimeError("out of memory")
        return real(feeds, entry, **named)

    monkeypatch.setattr(made, "run", run)
    with pytest.raises(RuntimeError):
        context.edit(10, 12, [5, 6, 7])
    monkeypatch.undo()
    assert context.tokens == (tuple(tokens[:10]),) and context.logits == (None,)
    fresh = read(made, [*tokens[:10], 4])
    np.testing.assert_allclose(context.extend([4])[0], fresh.logits[0], rtol=0, atol=LOGITS)


def test_text() -> None:
    made = TinyLanguage(files=byte_tokenizer())
    tokenizer = made.tokenizer
    assert tokenizer is not None
    text = "one two three, two one. that is all of it."
    context = read(made, tokenizer.encode(text))
    assert context.text() == text
    with pytest.raises(PlanishError, match="cannot be edited"):
        context.replace_text("two", "four")
    assert code_of(context.replace_text, "six", "four") == code_of(context.replace_text, "", "a") == "PL880"
    assert context.replace_text("two", "ten") == (
        Edit(5, 7, (*tokenizer.encode("en"),)),
        Edit(16, 18, (*tokenizer.encode("en"),)),
    )
    assert context.text() == "one ten three, ten one. that is all of it."
    assert context.edit_text(context.text() + " or") and context.edit_text(context.text()) == ()
    np.testing.assert_allclose(
        context.logits[0],
        read(made, tokenizer.encode("one ten three, ten one. that is all of it. or")).logits[0],
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    other = read(made, [*tokenizer.encode("ab"), *tokenizer._tokens("eos_token"), *tokenizer.encode("cd")])
    assert other.text() == "ab<end>cd"
    other.edit_text("xb<end>cd")
    assert other.lengths == (5,) and other.text() == "xb<end>cd"


def test_text_of_another_length(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("llama")
    monkeypatch.setitem(vars(made), "tokenizer", TinyLanguage(files=byte_tokenizer()).tokenizer)
    assert made.tokenizer is not None
    context = read(made, made.tokenizer.encode("call it x, then print x and x again."))
    found = context.replace_text("x", "name")
    assert [e.start for e in found] == [
        8,
        22,
    ] and context.text() == "call it name, then print name and name again."
    check_rows(rows(context), rows(read(made, made.tokenizer.encode(context.text()))))
    assert context.room == CONTEXT - 45
    assert code_of(context.replace_text, "name", "a long name") == "PL871" and context.lengths == (45,)


LISTS = st.lists(st.integers(0, 3), max_size=12)


@settings(max_examples=300, deadline=None)
@given(LISTS, LISTS, st.integers(0, 3))
def test_differences_lead_from_one_list_to_the_other(old: list[int], new: list[int], gap: int) -> None:
    found = difference(old, new, gap)
    assert applied(found, old) == new
    assert all(a.stop + gap < b.start for a, b in pairwise(found))
    if gap == 0:
        shared = len(old) - sum(e.stop - e.start for e in found)
        assert shared == _longest(old, new)


def _longest(a: list[int], b: list[int]) -> int:
    """The length of the longest common subsequence."""
    table = [0] * (len(b) + 1)
    for x in a:
        above = table
        table = [0]
        for j, y in enumerate(b):
            table.append(above[j] + 1 if x == y else max(above[j + 1], table[j]))
    return table[-1]


def test_differences_of_long_lists() -> None:
    old = random_tokens(30_000)
    new = [*old[:100], 1, 2, *old[100:15_000], *old[15_007:29_000], 5, *old[29_001:]]
    assert [(e.start, e.stop, len(e.tokens)) for e in difference(old, new)] == [
        (100, 100, 2), (15_000, 15_007, 0), (29_000, 29_001, 1),
    ]  # fmt: skip
    strange = random_tokens(5_000, 9)
    assert applied(difference(old, strange), old) == strange


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_moves_put_every_row_in_its_place(data: st.DataObject) -> None:
    old = list(range(100, 100 + data.draw(st.integers(0, 20))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(old)), max_size=8)))
    edits = [
        (a, b, data.draw(st.lists(st.integers(0, 9), max_size=6))) for a, b in zip(cuts[::2], cuts[1::2])
    ]
    todo = planned(edits, old, 1000)
    new, work = applied(todo, old), moves_of(todo, len(old))
    capacity = max(len(old), len(new))
    table = [*old, *[-1] * (capacity - len(old))]
    for first, by in work.moves:
        moved = list(table)
        for row in range(capacity):
            if row >= first + by:
                moved[row] = table[row - by] if 0 <= row - by < capacity else -1
        table = moved
    for place, tokens in work.reads:
        table[place : place + len(tokens)] = tokens
    assert table[: len(new)] == new


@pytest.mark.parametrize("target", ["eager", "onnxruntime"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_and_decoder(name: str, target: str, tmp_path: Path) -> None:
    made = model(name, target)
    texts = np.array([random_tokens(9), random_tokens(9, 1)], np.int64)
    assert made.capacity.given == ("input_ids",)
    context = made.context(inputs={"input_ids": texts})
    assert context.batch == 2
    prompt = random_tokens(7, 2)
    logits = context.extend([prompt, prompt])
    original = parity.model_of(name)
    for text, have in zip(texts, logits, strict=True):
        with torch.no_grad():
            want = original(
                input_ids=torch.tensor(text)[None], decoder_input_ids=torch.tensor([prompt])
            ).logits[0, -1]
        np.testing.assert_allclose(have, want.numpy(), rtol=0, atol=LOGITS)
    found = made.generate([prompt, prompt], max_tokens=5, inputs={"input_ids": texts})
    other = context.fork()
    assert [list(f.token_ids) for f in found] == [
        list(f.token_ids) for f in made.generate([[], []], max_tokens=5, context=context)
    ]
    again = made.restore(other.save(tmp_path / "a.safetensors"))
    for a, b in zip(again.step([4, 5]), other.step([4, 5]), strict=True):
        np.testing.assert_array_equal(a, b)
    begun = made.context(inputs={"input_ids": texts})
    begun = made.restore(begun.save(tmp_path / "b.safetensors"))
    np.testing.assert_array_equal(begun.extend([prompt, prompt])[0], logits[0])
    if name == "t5":
        other.edit(2, 3, [5, 6], 1)
        fresh = made.context(inputs={"input_ids": texts})
        fresh.extend([list(ids) for ids in other.tokens])
        check_rows(rows(other, 0, 1), rows(fresh, 0, 1))
    # Refused, before anything runs.
    one = made.context(1)
    assert code_of(one.extend, prompt) == code_of(made.generate, prompt) == "PL881"
    assert code_of(one.begin, {"input_ids": texts}) == "PL878"
    assert code_of(made.context, 3, inputs={"input_ids": texts}) == "PL878"
    assert code_of(made.context, inputs={}) == "PL351"
    assert code_of(made.context, inputs={"input_ids": texts, "more": texts}) == "PL352"
    assert code_of(made.context, inputs={"input_ids": texts.astype(np.int32)}) == "PL353"
    assert code_of(begun.begin, {"input_ids": texts}) == "PL881"
    assert code_of(made.generate, prompt, inputs={"input_ids": texts}) == "PL878"
    assert code_of(made.generate, [prompt] * 2, inputs={"input_ids": texts}, context=begun) == "PL881"
    one.begin({"input_ids": texts[:1]})
    np.testing.assert_allclose(one.extend(prompt)[0], logits[0], rtol=0, atol=LOGITS)
    assert code_of(model("llama").context, inputs={"input_ids": texts}) == "PL881"


def test_contexts_in_threads_share_no_bindings() -> None:
    """Each thread goes its own way on one session of ONNX Runtime, with edits and forks."""
    made = model("llama", "onnxruntime")
    wanted = [_walk(made, seed) for seed in range(4)]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda s=seed: found.setdefault(s, _walk(made, s))) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(found[seed], wanted[seed])


def _walk(made: Model, seed: int) -> Any:
    context = read(made, random_tokens(20, seed))
    for step in range(12):
        context.extend([step + 3])
        if step % 3 == 0:
            context.edit(step, step + 2, [seed + 3])
            context = context.fork()
    return np.stack(
        [*context.logits, *[r.mean() * np.ones(VOCABULARY, np.float32) for r in rows(context, 1)]]
    )
