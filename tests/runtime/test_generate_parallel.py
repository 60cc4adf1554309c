"""Contexts read side by side against the original model with positions, masks and the formula written out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_language import TinyLanguage, byte_tokenizer
from torch import Tensor

import planish
from planish.errors import ArtifactError, PlanishError, UnsupportedOpError
from planish.frontend import api
from planish.frontend.config import GenerateOptions
from planish.ir.weights import Weights
from planish.passes.position.cache import CacheOptions, insert_cache
from planish.runtime.generate.model import Model
from planish.runtime.manifest import EntryPoint, Value
from planish.runtime.typetext import parse_type
from tests import parity
from tests.models import VOCABULARY

TARGETS = ("eager", "onnxruntime", "cpu")
TOLERANCE = 1e-5
PREFIX, QUERY = [5, 9, 33], [7, 8, 9, 10]
DOCUMENTS = ([11, 12, 40, 41, 42, 43, 44], [21, 22, 23], [60, 31, 32, 33, 61])


def code_of(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(PlanishError) as caught:
        call(*args, **named)
    return caught.value.code


@cache
def compiled(name: str, target: str) -> planish.Compiled:
    """A tiny random model; machine code without what is not tried with it, as it takes longest."""
    less = target == "cpu"
    options = GenerateOptions(
        context=64, batch=1 if less else None, chunk=6, extend=not less, edit=not less, parallel=True, validate=not less
    )  # fmt: skip
    return api.compile_captured(parity.captured(name), api.make_options(target=target, generate=options))


def model(name: str = "llama", target: str = "eager") -> Model:
    return compiled(name, target).generator


def close(have: Any, want: Any) -> None:
    np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE * float(np.abs(want).max()))


class Formula:
    """Attention in place of torch's: the last rows of queries see contexts by the formula of the paper."""

    def __init__(self, temperature: float, share: float) -> None:
        self.temperature, self.share = temperature, share
        self.first, self.last = len(PREFIX), len(PREFIX) + sum(map(len, DOCUMENTS[:2]))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **named: Any) -> Tensor:
        share = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(share, 1) for x in (k, v))
        scale = named.get("scale") or q.shape[-1] ** -0.5
        scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~attn_mask, -torch.inf)
        out = torch.softmax(scores, -1) @ v
        of, rest = slice(self.first, self.last), [*range(self.first), *range(self.last, k.shape[2])]
        parts = []
        for rows, t in ((of, self.temperature), (rest, 1.0)):
            s = scores[:, :, self.last :, rows] / t
            parts.append((torch.logsumexp(s, -1, keepdim=True), torch.softmax(s, -1) @ v[:, :, rows]))
        (inner, context), (outer, others) = parts
        weights = torch.softmax(torch.cat([inner * self.temperature * self.share, outer], -1), -1)
        out[:, :, self.last :] = weights[..., :1] * context + weights[..., 1:] * others
        return out


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The logits of the model itself for a query behind two contexts."""

    def run(name: str, temperature: float, share: float) -> Any:
        attention = Formula(temperature, share)
        length, longest = attention.last + len(QUERY), max(map(len, DOCUMENTS[:2]))
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        second = len(PREFIX) + len(DOCUMENTS[0])
        seen[second : attention.last, len(PREFIX) : second] = False
        places = [*range(len(PREFIX))]
        for document in DOCUMENTS[:2]:
            places += range(len(PREFIX), len(PREFIX) + len(document))
        places += range(len(PREFIX) + longest, len(PREFIX) + longest + len(QUERY))
        ids = [*PREFIX, *DOCUMENTS[0], *DOCUMENTS[1], *QUERY]
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
            made = parity.model_of(name)(
                input_ids=torch.tensor([ids]), position_ids=torch.tensor([places]), attention_mask=seen[None, None]
            )  # fmt: skip
        return made.logits[0, -len(QUERY) :].numpy()

    yield run


@pytest.mark.parametrize("name,target", [*(("llama", t) for t in TARGETS), ("gpt2", "eager")])
@pytest.mark.parametrize("temperature,share", [(1.0, 1.0), (0.9, 0.9), (0.3, 1.5)])
def test_the_original_model_with_the_formula(
    name: str, target: str, temperature: float, share: float, original: Any
) -> None:
    want = original(name, temperature, share)
    made = model(name, target)
    context = made.parallel(PREFIX, DOCUMENTS[:2], temperature=temperature, share=share)
    close(context.fork().extend(QUERY)[0], want[-1])
    close(context.fork().step([QUERY[0]])[0], want[0])
    if target != "cpu":
        close(context.extend(QUERY, every=True)[0], want)


@pytest.mark.parametrize("target", TARGETS)
def test_one_context_is_read_as_in_sequence(target: str) -> None:
    made = model("llama", target)
    context = made.parallel(PREFIX, DOCUMENTS[:1], temperature=1, share=1)
    whole = made.context(1)
    close(context.extend(QUERY)[0], whole.extend([*PREFIX, *DOCUMENTS[0], *QUERY])[0])
    assert context.tokens == whole.tokens and context.room == whole.room
    for token in (3, 4):
        close(context.step([token])[0], whole.step([token])[0])


@pytest.mark.parametrize("target", TARGETS)
def test_order_of_contexts_and_empty_ones_change_nothing(target: str) -> None:
    made = model("llama", target)
    want = made.parallel(PREFIX, DOCUMENTS).extend(QUERY)[0]
    for order in ((2, 0, 1), (1, 2, 0)):
        close(made.parallel(PREFIX, [DOCUMENTS[i] for i in order]).extend(QUERY)[0], want)
    np.testing.assert_array_equal(made.parallel(PREFIX, [*DOCUMENTS, []]).extend(QUERY)[0], want)
    assert np.abs(made.parallel(PREFIX, DOCUMENTS[:2]).extend(QUERY)[0] - want).max() > 1e-3
    alone = made.context(1).extend([*PREFIX, *QUERY])[0]
    nothing: list[list[list[int]]] = [[], [[]]]
    for none in nothing:
        close(made.parallel(PREFIX, none).extend(QUERY)[0], alone)


def test_a_context_goes_on_like_any_other(tmp_path: Path) -> None:
    made = model("llama", "onnxruntime")
    context = made.parallel(PREFIX, DOCUMENTS)
    last = context.lengths[0]
    found = made.generate(QUERY, max_tokens=8, context=context.fork())
    guessed = made.generate(QUERY, max_tokens=8, context=context.fork(), speculate=True)
    assert found.token_ids == guessed.token_ids and len(found.token_ids) == 8
    first = context.extend(QUERY)[0]
    other = made.restore(context.save(tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(other.step([3])[0], context.fork().step([3])[0])
    context.rollback(len(QUERY))
    assert context.logits == (None,) and context.lengths == (last,)
    np.testing.assert_array_equal(context.extend(QUERY)[0], first)
    assert code_of(context.rollback, len(QUERY) + 1) == "PL875"
    assert code_of(context.edit, last - 1, last, [3]) == "PL879"
    context.edit(last + 1, last + 2, [3, 4])
    fresh = made.parallel(PREFIX, DOCUMENTS)
    close(context.logits[0], fresh.extend([QUERY[0], 3, 4, *QUERY[2:]])[0])
    context.edit(last, last + 5)
    assert context.logits == (None,) and code_of(made.generate, [], context=context) == "PL872"
    close(context.extend(QUERY)[0], first)


def test_files_of_other_places_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    made = model()
    context = made.parallel(PREFIX, DOCUMENTS)
    context.parallel = replace(context.parallel, last=60, longest=50)
    with pytest.raises(ArtifactError) as caught:
        made.restore(context.save(tmp_path / "a.safetensors"))
    assert caught.value.code == "PL640"


def test_an_artifact_keeps_it(tmp_path: Path) -> None:
    whole = compiled("llama", "onnxruntime")
    loaded = planish.load(whole.export(tmp_path / "a.planish"))
    want = whole.generator.parallel(PREFIX, DOCUMENTS).extend(QUERY)[0]
    close(loaded.generator.parallel(PREFIX, DOCUMENTS).extend(QUERY)[0], want)


def test_refusals_before_anything_runs() -> None:
    made = model()
    assert code_of(made.parallel, [], DOCUMENTS) == code_of(made.parallel, PREFIX, "text") == "PL872"
    assert code_of(made.parallel, PREFIX, [[VOCABULARY]]) == "PL873"
    assert code_of(made.parallel, "text", DOCUMENTS) == code_of(made.parallel, PREFIX, ["text"]) == "PL874"
    assert code_of(made.parallel, PREFIX, [[5] * 40, [6] * 21]) == "PL871"
    full = made.parallel(PREFIX, [[5] * 40, [6] * 20])
    assert full.room == 1 and code_of(full.extend, QUERY) == "PL871"
    for wrong in (0, -1, float("nan"), float("inf"), "1", True, None):
        assert code_of(made.parallel, PREFIX, DOCUMENTS, temperature=wrong) == "PL824"
        assert code_of(made.parallel, PREFIX, DOCUMENTS, share=wrong) == "PL824"
    assert code_of(made.parallel, PREFIX, DOCUMENTS, inputs={"input_ids": np.zeros((1, 4))}) == "PL881"
    assert code_of(TinyLanguage().parallel, PREFIX, DOCUMENTS) == "PL882"
    assert code_of(GenerateOptions, parallel=1) == "PL824"


def test_text_is_split_apart() -> None:
    """Tokens that begin texts stand before the prefix alone."""
    made = TinyLanguage(files=byte_tokenizer())
    assert code_of(made.parallel, "a", ["b"]) == "PL882"
    from planish.runtime.generate.parallel import _tokens

    apart = [*_tokens(made, "a", special=True), *_tokens(made, "b", special=False)]
    assert _tokens(made, "ab", special=True) == apart
    assert _tokens(made, "", special=True) == []


@pytest.mark.parametrize("name,why", [("mistral", "window of 4"), ("bloom", "bias")])
def test_models_that_cannot(name: str, why: str) -> None:
    if name == "bloom":
        program, weights = _bloom()
    else:
        program, weights = parity.recognised(name), parity.captured(name).weights
    with pytest.raises(UnsupportedOpError) as caught:
        insert_cache(program, weights, CacheOptions(context=40, parallel=True))
    assert caught.value.code == "PL264" and why in caught.value.message
    if name == "mistral":  # no longer than the window, it is none
        insert_cache(program, weights, CacheOptions(context=4, parallel=True))


def _bloom() -> tuple[Any, Weights]:
    from planish.frontend.capture.torch import capture_torch
    from planish.passes.pipeline import run_pipeline
    from tests.models import hugging_face

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 4, "use_cache": False}
    ids = torch.randint(3, VOCABULARY, (2, 9))
    whole = hugging_face("BloomForCausalLM", "BloomConfig", **sizes)()
    found = capture_torch(whole, {"input_ids": ids}, dynamic_shapes={"input_ids": {0: "B", 1: "T"}})
    return run_pipeline(found.program, found.weights, "recognise").program, found.weights


@pytest.mark.parametrize(
    "change", [{"position": None}, {"share": "f16[B]"}, {"last": "i64[B, 1]"}, {"more": "i64[B]"}]
)
def test_entry_points_that_do_not_fit_are_refused(change: dict[str, str | None]) -> None:
    made = TinyLanguage()
    more = {n: "f32[B]" if n in ("temperature", "share") else "i64[B]" for n in
            ("position", "first", "last", "temperature", "share")}  # fmt: skip
    inputs = tuple(Value(n, parse_type(t)) for n, t in (more | change).items() if t is not None)
    for name in ("prefill", "decode"):
        entry = made._entries[name]
        made._entries[f"{name}_parallel"] = EntryPoint(
            f"{name}_parallel", (*entry.inputs, *inputs), entry.outputs, entry.states
        )
    assert code_of(lambda: made.capacity) == "PL611"
