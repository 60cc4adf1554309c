"""Generation end to end with tiny models: steps give what the whole program gives, whatever the caches held before."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from planish.errors import UnsupportedOpError
from planish.frontend import api
from planish.frontend.capture.base import Captured
from planish.frontend.capture.huggingface import experts_by_token
from planish.frontend.capture.source import capture
from planish.frontend.compiled import Compiled
from planish.frontend.config import GenerateOptions
from planish.ir.run import run
from planish.runtime.generate.context import Context
from planish.runtime.states import States
from tests import parity
from tests.models import GROUPED, hugging_face, settle
from tests.passes.position.test_cache import CASES, LENGTH, MORE, SPLITS, error, source, tokens

FEW = ("llama", "mistral", "gemma2", "gpt2", "bloom", "mixtral")
REST = tuple(n for n in (*CASES, *MORE) if n not in FEW and n != "masked_bert")
TARGETS = ("cpu{activation_bits=32}", "onnxruntime")
CONTEXT, SAID, TOLERANCE = 40, 16, 1e-4
PROMPTS = (3, 17, 8)
"""Lengths of prompts that are continued side by side; the window of mistral is 4."""


@cache
def whole(name: str) -> Captured:
    """A captured model; it has been recognised."""
    program, weights = source(name)
    return Captured(program, weights) if name in MORE else parity.captured(name)


@pytest.fixture(scope="module", params=TARGETS, ids=["cpu", "onnxruntime"])
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def compiled(name: str, target: str) -> Compiled:
    """A model for any number of sequences."""
    options = GenerateOptions(context=CONTEXT, batch=None, chunk=LENGTH, edit=False, validate=False)
    return api.compile_captured(whole(name), api.make_options(target=target, generate=options))


def spoiled(model: Compiled, batch: int, garbage: float) -> Context:
    """A new context whose caches are full of garbage."""
    context = model.generator.context(batch)
    context.extend([[5]] * batch)
    context.rollback(1)
    found = context.states.arrays()
    assert found
    context.states = States({name: np.full_like(array, garbage) for name, array in found.items()})
    return context


def read(context: Context, ids: Tensor, split: tuple[int, ...]) -> Tensor:
    """The logits of all rows of a sequence that is read in pieces; the last row of a piece comes from ``prefill``."""
    found = []
    for piece in ids.split(list(split), 1):
        rows = context.extend(piece.tolist(), every=True)
        found.append(torch.from_numpy(np.stack(rows)))
    return torch.cat(found, 1)


def greedy(name: str, prompt: list[int], count: int) -> list[int]:
    """What the program over whole sequences says, run by the interpreter without any cache."""
    program, weights = source(name)
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(run(program, weights, torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[len(prompt) :]


def check(name: str, target: str) -> None:
    """Every way to cut a sequence, garbage in unused rows, and prompts side by side."""
    program, weights = source(name)
    ids = tokens(2)
    want = run(program, weights, ids)[0]
    with compiled(name, target) as model:
        for garbage in (float("nan"), 1e4):
            for split in SPLITS if np.isnan(garbage) else SPLITS[-2:]:
                have = read(spoiled(model, 2, garbage), ids, split)
                assert error(have, want) <= TOLERANCE, (garbage, split)
                context = spoiled(model, 2, garbage)
                for piece in ids.split(list(split), 1):
                    last = context.extend(piece.tolist())
                assert error(torch.from_numpy(np.stack(last)), want[:, -1]) <= TOLERANCE, (garbage, split)
        prompts = [tokens(1, n, seed=n)[0].tolist() for n in PROMPTS]
        together = model.generate(prompts, max_tokens=SAID)
        for prompt, each in zip(prompts, together, strict=True):
            assert each.token_ids == model.generate(prompt, max_tokens=SAID).token_ids
            assert list(each.token_ids) == greedy(name, prompt, SAID)


@pytest.mark.parametrize("name", FEW)
def test_steps_are_the_whole(name: str, target: str) -> None:
    check(name, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_steps_are_the_whole_of_the_others(name: str, target: str) -> None:
    check(name, target)


@pytest.fixture(scope="module")
def experts() -> Any:
    """A small mixture of experts that does what transformers chooses: it sorts tokens by expert."""
    sizes = {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "use_cache": True}
    return settle(hugging_face("MixtralForCausalLM", "MixtralConfig", **GROUPED | sizes)())


@pytest.fixture(scope="module")
def folder(experts: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("experts")
    experts.save_pretrained(path)
    yield path


def test_experts_generate(experts: Any, folder: Path) -> None:
    prompt = tokens(1, 11)
    options = GenerateOptions(context=CONTEXT)
    with api.compile(folder, target="onnxruntime", generate=options) as model:
        found = model.generate(prompt[0].tolist(), max_tokens=SAID)
    with torch.no_grad():
        want = experts.generate(prompt, max_new_tokens=SAID, do_sample=False)
    assert list(found.token_ids) == want[0, prompt.shape[1] :].tolist()


def test_experts_are_sorted_where_nothing_is_generated(experts: Any) -> None:
    plain, by_token = capture(experts), capture(experts, generate=True)
    assert any("sort" in n.op for n in plain.program.nodes)
    assert not any("sort" in n.op for n in by_token.program.nodes)
    ids = tokens(2, 9)
    with torch.no_grad():
        want = experts(input_ids=ids, use_cache=False).logits
        assert max(error(run(c.program, c.weights, ids)[0], want) for c in (plain, by_token)) <= 1e-5
    with pytest.raises(UnsupportedOpError, match=r"PL260.*mixes rows"):
        api.compile_captured(plain, api.make_options(target="eager", generate=True))
    assert experts.config._experts_implementation == "grouped_mm", "the model is as it was"


def test_models_without_experts_are_left_alone() -> None:
    model = parity.model_of("llama")
    before = model.config._experts_implementation
    with pytest.raises(ZeroDivisionError), experts_by_token(torch.nn.Sequential(model)):
        raise ZeroDivisionError
    assert model.config._experts_implementation == before
