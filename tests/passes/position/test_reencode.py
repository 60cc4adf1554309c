"""Rows of a cache at other positions: exact in the first layer, refused where positions are part of the rows."""

from __future__ import annotations

import pytest
import torch

from planish.errors import UnsupportedOpError
from planish.ir.rule import RULES, check_example
from planish.ir.run import run
from planish.ir.verify import verify
from planish.ir.weights import Weights
from planish.passes.position.cache import Cached, CacheOptions, insert_cache
from planish.passes.position.reencode import compose_rotations, move_program
from tests.passes.position.test_cache import Steps, error, source, tokens

CONTEXT = 40
EXACT = 1e-5


def made(name: str, batch: int = 1) -> tuple[Cached, Weights]:
    """The steps of a model, without rings."""
    program, weights = source(name)
    return insert_cache(
        program, weights, CacheOptions(context=CONTEXT, batch=batch, chunk=30, rings=False)
    ), weights


def moved(steps: Steps, first: list[int], by: list[int]) -> None:
    """Run ``move``."""
    program = steps.made.module["move"]
    found = run(program, steps.weights, torch.tensor(first), torch.tensor(by), states=steps.states)
    steps._keep(program, found)
    steps.lengths = steps.lengths + torch.tensor(by)


def test_rule_holds() -> None:
    assert compose_rotations.name in RULES
    assert check_example(compose_rotations) <= compose_rotations.tolerance


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "phi3", "gpt_neox", "gemma3_text", "stablelm", "bloom", "qwen3"]
)
def test_first_layer_is_exact(name: str) -> None:
    cached, weights = made(name, 2)
    verify(cached.module["move"], weights)
    ids = tokens(2)
    steps = Steps(cached, weights, 2)
    steps("extend", ids)
    moved(steps, [10, 12], [3, -4])
    longer = torch.cat([ids[:1, :10], tokens(1, 3, 9), ids[:1, 10:]], 1)
    shorter = torch.cat([ids[1:, :8], ids[1:, 12:]], 1)
    for row, (whole, first, last) in enumerate([(longer, 13, 27), (shorter, 8, 20)]):
        fresh = Steps(made(name)[0], weights, 1)
        fresh("extend", whole)
        for kind in ("keys.0", "values.0"):
            have, want = steps.states[kind][row, :, first:last], fresh.states[kind][0, :, first:last]
            assert error(have, want) <= EXACT, (row, kind)
    assert steps.lengths.tolist() == [27, 20]


def test_far_positions_are_as_exact() -> None:
    """Angles of far positions are rounded, and what is moved there has the same ones as what is computed there."""
    program, weights = source("llama")
    cached = insert_cache(program, weights, CacheOptions(context=2304, chunk=2304))
    ids = tokens(1, 2200)
    steps, fresh = Steps(cached, weights, 1), Steps(cached, weights, 1)
    steps("prefill", ids)
    moved(steps, [10], [7])
    moved(steps, [40], [-2])
    fresh("prefill", torch.cat([ids[:, :10], ids[:, 3:31], ids[:, 33:]], 1))
    have, want = steps.states["keys.0"], fresh.states["keys.0"]
    assert error(have[:, :, 38:2205], want[:, :, 38:2205]) <= EXACT / 10


def test_there_and_back() -> None:
    cached, weights = made("llama")
    steps = Steps(cached, weights, 1)
    steps("extend", tokens(1))
    before = {n: v.clone() for n, v in steps.states.items()}
    moved(steps, [5], [7])
    moved(steps, [12], [-7])
    for name, value in before.items():
        assert error(steps.states[name][:, :, 5:24], value[:, :, 5:24]) <= EXACT
        assert torch.equal(steps.states[name][:, :, :5], value[:, :, :5])


def test_appending_after_an_edit_of_the_end_is_exact() -> None:
    """Where nothing stands behind the edited tokens, nothing is approximate."""
    program, weights = source("llama")
    cached, _ = made("llama")
    ids, new = tokens(1), tokens(1, 6, 3)
    steps = Steps(cached, weights, 1)
    steps("extend", ids)
    steps.lengths = torch.tensor([20])
    have = steps("extend", new)
    want = run(program, weights, torch.cat([ids[:, :20], new], 1))[0][:, 20:]
    assert error(have, want) <= EXACT


@pytest.mark.parametrize("name, what", [("gpt2", "reads positions"), ("opt", "reads positions")])
def test_learned_positions_are_refused(name: str, what: str) -> None:
    cached, weights = made(name)
    assert "move" not in {p.name for p in cached.module.programs}
    with pytest.raises(UnsupportedOpError, match=what) as found:
        move_program(cached, weights)
    assert found.value.code == "PL263" and "modeling_" in str(found.value)
    assert "reads positions" in cached.generation["no_edit"]


def test_rings_are_refused() -> None:
    program, weights = source("mistral")
    cached = insert_cache(program, weights, CacheOptions(context=CONTEXT, chunk=4))
    assert "ring" in cached.generation["no_edit"]
