"""Generation: greedy, draws, stops, batches, streams, speculation, text and chat; and what is refused."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import TinyLanguage, byte_tokenizer

from planish.errors import PlanishError
from planish.runtime.generate.context import Context
from planish.runtime.generate.draft import Draft
from planish.runtime.generate.sampling import Sampling
from planish.runtime.generate.sandbox import render
from planish.runtime.generate.stopping import Stopper
from planish.runtime.generate.tokenizer import Detokenizer, load_tokenizer

PROMPT = [5, 9, 2, 33, 60, 1]


def code_of(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(PlanishError) as caught:
        call(*args, **named)
    return caught.value.code


@pytest.fixture(scope="module")
def model() -> TinyLanguage:
    return TinyLanguage(files=byte_tokenizer())


def greedy(model: TinyLanguage, prompt: list[int], count: int) -> list[int]:
    """What must come out, one step at a time, without the loop."""
    context, made = Context(model), []
    logits = context.extend(prompt)[0]
    ends = model.tokenizer.stops if model.tokenizer is not None else ()
    for _ in range(count):
        made.append(int(np.argmax(logits)))
        if made[-1] in ends:
            break
        logits = context.step(made[-1:])[0]
    return made


def test_greedy(model: TinyLanguage) -> None:
    found = model.generate(PROMPT, max_tokens=12)
    assert list(found.token_ids) == greedy(model, PROMPT, 12)
    assert found.prompt_tokens == 6 and found.stopped in ("length", "token")
    figures = found.statistics
    assert figures.prompt_tokens == 6 and figures.tokens == len(found.token_ids)
    assert figures.first > 0 and figures.prefill > 0 and figures.cache_bytes == 2 * 2 * 48 * 8 * 4
    assert json.loads(json.dumps(found.as_json()))["statistics"]["tokens"] == figures.tokens
    assert "tokens/s" in str(figures)
    np.testing.assert_array_equal(model.generate(np.array(PROMPT), max_tokens=12).token_ids, found.token_ids)


def test_stops_when_the_context_is_full() -> None:
    model = TinyLanguage()
    found = model.generate(PROMPT)
    assert found.stopped == "context" and len(found.token_ids) == 48 - 6 + 1 and found.text is None
    assert str(found) == " ".join(map(str, found.token_ids))
    assert model.generate(PROMPT, max_tokens=43).stopped == "length"
    model.calls.clear()
    assert code_of(model.generate, PROMPT, max_tokens=44) == "PL871"
    assert code_of(model.generate, [1] * 49) == "PL871"
    assert model.calls == []
    assert len(model.generate([1] * 48).token_ids) == 1
    endless = TinyLanguage(window=6)
    assert len(endless.generate([1] * 60, max_tokens=80).token_ids) == 80


def test_batch_gives_what_each_prompt_gives_alone(model: TinyLanguage) -> None:
    prompts = [
        PROMPT[:1],
        PROMPT,
        PROMPT[:3],
        [7, 7],
        [1, 2, 3, 4, 5, 6, 7],
    ]  # two groups: four fit side by side
    found = model.generate(prompts, max_tokens=20)
    for prompt, each in zip(prompts, found, strict=True):
        assert list(each.token_ids) == greedy(model, prompt, 20)
    drawn = model.generate(prompts, max_tokens=9, temperature=1.0, seed=3)
    assert [d.token_ids for d in drawn] == [
        d.token_ids for d in model.generate(prompts, max_tokens=9, temperature=1.0, seed=3)
    ]
    fixed = TinyLanguage(batch=3, files=byte_tokenizer())
    for prompt, each in zip(prompts, fixed.generate(prompts, max_tokens=20), strict=True):
        assert list(each.token_ids) == greedy(model, prompt, 20)


def test_stop_tokens_and_texts(model: TinyLanguage) -> None:
    ids = greedy(model, PROMPT, 20)
    place = next(i for i, t in enumerate(ids) if t not in ids[:i] and i)
    found = model.generate(PROMPT, max_tokens=20, stop=ids[place])
    assert list(found.token_ids) == ids[: place + 1] and found.stopped == "token"
    text = model.generate(PROMPT, max_tokens=20).text
    for begin in range(len(text) - 2):
        stop = text[begin : begin + 2]
        cut = model.generate(PROMPT, max_tokens=20, stop=["never seen", stop])
        assert cut.stopped == "text" and cut.text == text[: text.index(stop)]
        stream = model.generate(PROMPT, max_tokens=20, stop=stop, stream=True)
        assert "".join(p.text for p in stream) == cut.text


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stopper_finds_the_first_stop(text: str, stops: list[str]) -> None:
    stopper, shown, found = Stopper(stops), "", False
    for letter in text:
        more, found = stopper.push(letter)
        shown += more
        if found:
            break
    shown += "" if found else stopper.flush()
    ends = [text.index(s) + len(s) for s in stops if s in text]
    assert found == bool(ends)
    if found:
        read = text[: min(ends)]
        assert shown == read[: min(read.index(s) for s in stops if s in read)]
    else:
        assert shown == text


def test_streams(model: TinyLanguage) -> None:
    whole = model.generate("hello", max_tokens=15)
    stream = model.generate("hello", max_tokens=15, stream=True)
    pieces = list(stream)
    assert tuple(p.token for p in pieces) == whole.token_ids
    assert "".join(p.text for p in pieces) == whole.text
    assert [p.stopped for p in pieces[:-1]] == [None] * (len(pieces) - 1) and pieces[
        -1
    ].stopped == whole.stopped
    assert stream.result.token_ids == whole.token_ids
    heard: list[Any] = []
    assert model.generate("hello", max_tokens=15, stream=heard.append).text == whole.text
    assert heard == pieces
    both = model.generate(["hello", "he"], max_tokens=5, stream=True)
    assert {p.index for p in both} == {0, 1} and len(both.result) == 2
    assert next(iter(model.generate("hello", max_tokens=15, stream=True))) == pieces[0]


def test_draws() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32))

    def shares(**options: Any) -> list[float]:
        sampler = Sampling(temperature=options.pop("temperature", 1.0), seed=1, **options).sampler()
        counts = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=5)
        return [round(float(c), 2) for c in counts / counts.sum()]

    np.testing.assert_allclose(shares(), np.exp(logits), atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [2 / 3, 1 / 3, 0, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.75), [2 / 3, 1 / 3, 0, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.76), [4 / 7, 2 / 7, 1 / 7, 0, 0], atol=0.03)
    np.testing.assert_allclose(
        shares(temperature=0.5), np.exp(2 * logits) / np.exp(2 * logits).sum(), atol=0.03
    )
    assert shares(temperature=1e-300) == [1, 0, 0, 0, 0]
    assert shares(top_p=1e-9) == [1, 0, 0, 0, 0] and shares(top_k=1) == [1, 0, 0, 0, 0]
    assert shares(top_k=99, top_p=1.0) == shares()
    ties = np.zeros(9, np.float32)
    sampler = Sampling(1.0, top_k=3, seed=0).sampler()
    assert {sampler.choose(ties) for _ in range(200)} == {0, 1, 2}
    masked = np.array([-np.inf, 1, -np.inf], np.float32)
    assert {sampler.choose(masked) for _ in range(50)} == {1}
    for bad in (
        {"temperature": -1}, {"temperature": np.nan}, {"temperature": True}, {"top_k": 0}, {"top_k": 1.5},
        {"top_p": 0}, {"top_p": 1.1}, {"seed": -1}, {"seed": "a"},
    ):  # fmt: skip
        assert code_of(Sampling, **bad) == "PL824"


def test_draws_are_the_same_for_a_seed(model: TinyLanguage) -> None:
    def draw(seed: int | None) -> Any:
        return model.generate(PROMPT, max_tokens=20, temperature=1.5, seed=seed).token_ids

    assert draw(1) == draw(1) != draw(2)
    assert len({draw(None) for _ in range(3)}) > 1


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers(spoil: float) -> None:
    model = TinyLanguage()
    model.spoil = spoil
    assert code_of(model.generate, PROMPT, max_tokens=3) == "PL790"
    assert code_of(model.generate, PROMPT, max_tokens=3, temperature=1.0) == "PL790"


@pytest.mark.parametrize("window", [None, 6])
def test_speculation_changes_nothing_but_the_calls(window: int | None) -> None:
    for seed in range(4):
        model = TinyLanguage(seed=seed, window=window, chunk=9, rows=14)
        prompts = [PROMPT * 3, PROMPT, [1, 2, 1, 2, 1]]
        plain = model.generate(prompts, max_tokens=25)
        calls = len(model.calls)
        model.calls.clear()
        for most in (True, 1, 3):
            quick = model.generate(prompts, max_tokens=25, speculate=most)
            assert [q.token_ids for q in quick] == [p.token_ids for p in plain]
        model.calls.clear()
        alone = model.generate(prompts[2], max_tokens=25, speculate=True)
        assert alone.token_ids == plain[2].token_ids
        figures = alone.statistics
        assert 0 <= figures.accepted <= figures.drafted and len(model.calls) <= calls
        if figures.drafted:
            assert figures.acceptance == figures.accepted / figures.drafted and "drafts" in str(figures)


def test_speculation_accepts_what_repeats() -> None:
    model = TinyLanguage(context=400, chunk=16)
    found = model.generate(PROMPT, max_tokens=200, speculate=True)
    assert list(found.token_ids) == greedy(model, PROMPT, 200)
    assert found.statistics.accepted > 50
    stopped = model.generate(PROMPT, max_tokens=200, speculate=True, stop=found.token_ids[150])
    assert stopped.token_ids == model.generate(PROMPT, max_tokens=200, stop=found.token_ids[150]).token_ids


def test_draft() -> None:
    draft = Draft(8)
    assert draft.guess(4) == []
    draft.add([1, 2, 3, 9, 1, 2, 4, 1, 2])
    assert draft.guess(3) == [4, 1, 2] and draft.guess(0) == []
    draft.add([3])
    assert draft.guess(2) == [9, 1]
    for _ in range(5):
        draft.learn(4, 0)
    assert len(draft.guess(8)) == 1
    draft.learn(1, 1)
    assert len(draft.guess(8)) == 2


def test_a_context_goes_on(model: TinyLanguage) -> None:
    context = model.context()
    first = model.generate(PROMPT, max_tokens=5, context=context)
    assert context.tokens[0] == (*PROMPT, *first.token_ids) and context.logits[0] is not None
    second = model.generate([], max_tokens=5, context=context)
    assert first.token_ids + second.token_ids == tuple(greedy(model, PROMPT, 10))
    assert code_of(model.generate, PROMPT, max_tokens=33, context=context) == "PL871"
    context.rollback(1)
    assert code_of(model.generate, [], context=context) == "PL872"
    assert code_of(model.generate, [[1], [2]], context=context) == "PL878"
    assert code_of(TinyLanguage().generate, [1], context=context) == "PL878"


def test_what_is_refused(model: TinyLanguage) -> None:
    bare = TinyLanguage(extend=False)
    for prompt in ("", [], [[]], ["a", ""], 3, None):
        assert code_of(model.generate, prompt) == "PL872", prompt
    for prompt in ([64], [-1], [0.5], [[1], [99]], [[1], 2]):
        assert code_of(model.generate, prompt) == "PL873", prompt
    for options in (
        {"max_tokens": 0}, {"max_tokens": 1.5}, {"stop": ""}, {"temperature": -1}, {"speculate": 99},
        {"speculate": "yes"},
    ):  # fmt: skip
        assert code_of(model.generate, PROMPT, **options) == "PL824", options
    assert code_of(model.generate, PROMPT, stop=64) == "PL873"
    assert code_of(bare.generate, "text") == "PL874"
    assert code_of(bare.generate, PROMPT, stop="a") == "PL874"
    assert code_of(bare.generate, PROMPT, speculate=True) == "PL877"
    assert code_of(model.generate, PROMPT, speculate=True, temperature=1.0) == "PL877"
    assert code_of(model.generate, "a\ud800") == "PL874"
    del bare._entries["decode"]
    assert code_of(bare.generate, PROMPT) == "PL870"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 45), max_size=30), st.integers(0, 8))
def test_pieces_make_up_the_text(tokens: list[int], before: int) -> None:
    """Random tokens are mostly no UTF-8: pieces still add up, and none ends within a character."""
    tokenizer = load_tokenizer(TOKENS)
    assert tokenizer is not None
    words = Detokenizer(tokenizer, tokens[:before])
    pieces = [words.push(t) for t in tokens[before:]]
    assert not any(p.endswith("\ufffd") for p in pieces)
    last = words.flush()
    head = tokenizer.decode(tokens[:before])
    if not head.endswith("\ufffd"):
        assert head + "".join(pieces) + last == tokenizer.decode(tokens)


TOKENS = TinyLanguage(files=byte_tokenizer())


def test_characters_of_several_tokens_come_whole() -> None:
    tokenizer = load_tokenizer(TOKENS)
    assert tokenizer is not None
    for text in ("é", "a😀b€", "é" * 5):
        words = Detokenizer(tokenizer)
        pieces = [words.push(t) for t in tokenizer.encode(text)]
        assert "".join(pieces) == text and all(p in ("", *text) for p in pieces) and words.flush() == ""


def test_chat(model: TinyLanguage) -> None:
    told = model.generate("hi", chat=True, max_tokens=4)
    assert told.prompt_tokens == len("u hi\na ")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "b"}]
    assert model.generate(messages, max_tokens=4).prompt_tokens == len("u hi\na b\na ")
    both = model.generate([messages, messages[:1]], max_tokens=4)
    assert both[1].token_ids == told.token_ids
    for bad in ([{"role": "user"}], [{"role": "user", "content": 3}], [{"role": "user", "content": "a"}, 3]):
        assert code_of(model.generate, bad) == "PL876", bad
    plain = byte_tokenizer()
    del plain["chat_template.jinja"]
    assert code_of(TinyLanguage(files=plain).generate, "hi", chat=True) == "PL876"
    refusing = plain | {"chat_template.jinja": b"{{ raise_exception('no') }}"}
    assert code_of(TinyLanguage(files=refusing).generate, "hi", chat=True) == "PL876"
    inside = json.loads(plain["tokenizer_config.json"]) | {"chat_template": "{{ messages[0].content }}"}
    listed = inside | {"chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}]}
    for table in (inside, listed):
        files = plain | {"tokenizer_config.json": json.dumps(table).encode()}
        assert TinyLanguage(files=files).generate("hi", chat=True, max_tokens=2).prompt_tokens == 2


def test_tokenizers_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    good = byte_tokenizer()
    for changes in (
        {"tokenizer.json": b"{}"}, {"tokenizer.json": b"\xff"}, {"tokenizer_config.json": b"[]"},
        {"tokenizer_config.json": b"{"},
    ):  # fmt: skip
        assert code_of(TinyLanguage(files=good | changes).generate, "hi") == "PL642"
    more = good | {"generation_config.json": b'{"eos_token_id": [1, 2]}'}
    found = TinyLanguage(files=more).tokenizer
    assert found is not None and {1, 2} < found.stops
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert code_of(TinyLanguage(files=good).generate, "hi") == "PL791"


HARMFUL = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ range(10**9) }}",
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10 ** (10 ** 9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ 'a' | center(999999999) }}",
    "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "{% set n = namespace(t='aaaa') %}{% for i in range(99) %}{% set n.t %}{{ n.t }}{{ n.t }}{% endset %}{% endfor %}",
    "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set n.t = n.t.replace('a', n.t) %}{% endfor %}",
    "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set n.t = n.t | replace('a', n.t) %}{% endfor %}",
    "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set n.t = n.t | join(n.t) %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ unknown.name }}",
    "{% if %}",
    "{{ 1 / 0 }}",
    "{{ 1 + 'a' }}",
    "{% include 'x' %}",
    "x" * 300_000,
]


@pytest.mark.parametrize("template", HARMFUL, ids=lambda t: t[:40])
def test_templates_of_strangers(template: str) -> None:
    assert code_of(render, template, {"messages": [{"role": "user", "content": "x"}]}) == "PL643"


def test_templates_do_what_models_ask_for() -> None:
    values = {
        "messages": [{"role": "user", "content": " é "}, {"role": "assistant", "content": "b"}],
        "bos_token": "<s>",
    }
    for template, text in (
        ("{{ bos_token ~ messages[0].content | trim }}", "<s>é"),
        ("{%- for m in messages %}\n  {{- m['role'][:1] }}\n{%- endfor %}", "ua"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
            "b",
        ),
        ("{{ messages.__class__ }}", ""),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{{ messages[1] | tojson }}", '{"role": "assistant", "content": "b"}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ messages | map(attribute='role') | join('/') }}", "user/assistant"),
        ("{{ 'a-b'.split('-')[-1].replace('b', 'cc') }}", "cc"),
        ("{% set n = namespace(x=1) %}{% set n.x = n.x + 7 % 4 %}{{ n.x }}", "4"),
    ):
        assert render(template, values) == text, template
