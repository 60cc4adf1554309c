"""The small language model says what transformers says; compressed ones say what a language model would say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from planish.frontend import api, yardstick
from planish.frontend.capture.gguf import load_gguf
from planish.frontend.capture.source import capture, tokenizer_files
from planish.frontend.compiled import Compiled
from planish.frontend.config import GenerateOptions

pytestmark = pytest.mark.slow

PROMPT, SAID, COUNT = 32, 200, 10
TIE = 1e-3
"""Logits are about equal if they differ by less than this share of the largest."""

TABLE = "int6{group=64,only=*embed_tokens*}"
FORMATS = {"int8": "auto,int8{group=64}", "int4": f"auto,{TABLE},int4{{group=64}}"}
DRAWN, TEMPERATURE = 100, 0.7
DISTINCT, LIKELY = 0.4, -3.0
"""What texts have to exceed: the share of distinct groups of four tokens, and the mean logarithm of the probability
that a token has in the model in fp32. That model's own texts have about 0.7 and -1.5; loops have a small share, noise
has -14."""


@cache
def model() -> Any:
    """The model of transformers."""
    return load_gguf(yardstick.model_file()).eval()


@cache
def captured() -> Any:
    return capture(yardstick.model_file())


@cache
def prompts() -> list[list[int]]:
    """Pieces of a text, all of the same length, so that transformers needs no padding."""
    ids = yardstick.tokenize(yardstick.topics_text(), tokenizer_files(yardstick.model_file()))
    step = len(ids) // COUNT
    return [[int(i) for i in ids[k * step : k * step + PROMPT]] for k in range(COUNT)]


class Answers(NamedTuple):
    """What transformers says, ``i64[prompts, tokens]``, and for each token its logits, ``f32[prompts, tokens, V]``."""

    tokens: Tensor
    logits: Tensor


def said(source: Any, count: int) -> Answers:
    """Greedy generation by transformers, with its cache; no token ends a text."""
    ids = torch.tensor(prompts())
    config = source.generation_config
    config.eos_token_id, config.pad_token_id = None, 0
    with torch.inference_mode():
        found = source.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, use_cache=True,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return Answers(found.sequences[:, PROMPT:], torch.stack(found.logits, 1))


@pytest.fixture(scope="module")
def answers() -> Answers:
    return said(model(), SAID)


def compiled(pipeline: str, target: str, batch: int = 1) -> Compiled:
    options = GenerateOptions(context=PROMPT + SAID, batch=batch, validate=False)
    return api.compile_captured(
        captured(), api.make_options(passes=pipeline, target=target, generate=options)
    )


def ends(model: Compiled) -> frozenset[int]:
    """The tokens that end a text."""
    tokenizer = model.generator.tokenizer
    assert tokenizer is not None
    return tokenizer.stops


def agree(have: list[int], want: Tensor, logits: Tensor, stops: frozenset[int]) -> int:
    """Compare up to the end of a text or a tie, which the reference's logits prove; gives how many tokens are equal."""
    for place, (a, b) in enumerate(zip(have, want.tolist(), strict=False)):
        if a != b:
            row = logits[place]
            gap, scale = float(row.max() - row[a]), float(row.abs().max())
            assert gap <= TIE * scale, f"token {place} is {a} and not {b}, whose logit is larger by {gap:.4f}"
            print(f"token {place}: {a} and {b} differ by {gap:.1e} of {scale:.1f}")
            return place
    shorter = len(have) < len(want)
    assert not shorter or have[-1] in stops, f"it ends after {len(have)} tokens"
    return len(have)


@pytest.mark.parametrize("target", ["cpu{activation_bits=32}", "onnxruntime"])
def test_says_what_transformers_says(target: str, answers: Answers) -> None:
    with compiled("auto", target) as session:
        equal = [
            agree(list(session.generate(p, max_tokens=SAID).token_ids), t, l, ends(session))
            for p, t, l in zip(prompts(), answers.tokens, answers.logits, strict=True)
        ]
    print(equal)
    assert sum(equal) >= 0.9 * SAID * COUNT, equal


@pytest.mark.parametrize("target", ["cpu{activation_bits=32}", "onnxruntime"])
def test_prompts_side_by_side(target: str, answers: Answers) -> None:
    mixed = [prompts()[0][:11], prompts()[1], prompts()[2][:20]]
    with compiled("auto", target, batch=len(mixed)) as session:
        together = session.generate(mixed, max_tokens=60)
        for prompt, each in zip(mixed, together, strict=True):
            assert each.token_ids == session.generate([prompt], max_tokens=60)[0].token_ids
        assert (
            agree(list(together[1].token_ids), answers.tokens[1, :60], answers.logits[1], ends(session)) > 50
        )


def distinct(text: Sequence[int]) -> float:
    """The share of groups of four tokens that are unlike all others."""
    groups = [tuple(text[i : i + 4]) for i in range(len(text) - 3)]
    return len(set(groups)) / len(groups)


def likely(prompt: Sequence[int], text: Sequence[int]) -> float:
    """The mean logarithm of the probability of a token, by the model in fp32."""
    with torch.inference_mode():
        logits = model()(torch.tensor([[*prompt, *text]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None]).mean())


def sane(texts: Sequence[Sequence[int]]) -> tuple[bool, float, float]:
    """Whether texts that follow the prompts are what a language model says, and both figures."""
    shares = [distinct(text) for text in texts]
    logs = [likely(prompt, text) for prompt, text in zip(prompts(), texts, strict=True)]
    share, log = sum(shares) / len(shares), sum(logs) / len(logs)
    return share > DISTINCT and log > LIKELY, share, log


@pytest.mark.parametrize("name", FORMATS)
def test_compressed_models_speak(name: str) -> None:
    with compiled(FORMATS[name], "cpu{activation_bits=8}") as session:
        texts = [
            session.generate(p, max_tokens=DRAWN, temperature=TEMPERATURE, seed=1).token_ids
            for p in prompts()
        ]
    found = sane(texts)
    print(name, found)
    assert found[0], found


def test_broken_models_do_not() -> None:
    broken = copy.deepcopy(model())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in broken.model.layers.parameters():
            if weight.dim() == 2:
                order = torch.randperm(weight.numel(), generator=generator)
                weight.copy_(weight.flatten()[order].view_as(weight))
    noise = sane(said(broken, 20).tokens.tolist())
    loops = sane([prompt[-3:] * 30 for prompt in prompts()])
    print(noise, loops)
    assert not noise[0] and noise[2] < 2 * LIKELY, noise
    assert not loops[0] and loops[1] < DISTINCT / 2, loops
