"""Contexts at work for long: every exact operation in any order against a model that reads all anew; memory is flat."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from planish.frontend import api
from planish.frontend.config import GenerateOptions
from planish.runtime.generate.context import Context
from tests import parity
from tests.models import VOCABULARY

SLACK = 24 << 20
"""Bytes by which the process may grow: what allocators keep."""


class Walk:
    """Contexts on one model that are extended, edited at their ends, rolled back and forked at random."""

    def __init__(self, context: int, seed: int = 0) -> None:
        options = api.make_options(
            target="onnxruntime", generate=GenerateOptions(context=context, batch=1, chunk=64)
        )
        self.model = api.compile_captured(parity.captured("llama"), options).generator
        self.original = parity.model_of("llama")
        self.random = np.random.default_rng(seed)
        self.capacity = context
        self.contexts: list[Context] = [self.model.context() for _ in range(2)]
        self.read = 0

    def number(self, low: int, high: int) -> int:
        """A random number from ``low`` to ``high``."""
        return int(self.random.integers(low, high + 1))

    def tokens(self, most: int) -> list[int]:
        """Up to ``most`` random tokens, at least one."""
        return [int(t) for t in self.random.integers(3, VOCABULARY, self.number(1, most))]

    def step(self, longest: int) -> None:
        """One operation; contexts grow to ``longest`` tokens, then most is taken back."""
        at = self.number(0, len(self.contexts) - 1)
        context = self.contexts[at]
        length = context.lengths[0]
        what = self.random.random()
        if length and what < 0.25:
            last = self.number(1, min(length, 9))
            new = self.tokens(9) if self.random.random() < 0.8 else []
            # Equal tokens at the end would not be read again, although they are behind what changes.
            new = new if new[-1:] != list(context.tokens[0][-1:]) else []
            if length - last + len(new) <= self.capacity:
                context.edit(length - last, length, new)
        elif length and what < 0.4:
            context.rollback(self.number(0, min(length, 12)))
        elif what < 0.5:
            self.contexts[self.number(0, len(self.contexts) - 1)] = context.fork()
        else:
            more = self.tokens(min(20, self.capacity))
            if length + len(more) > longest:
                context.rollback(length - self.number(0, 5))
            context.extend(more)
            self.read += len(more)

    def check(self) -> None:
        """Every context continues as if it had read its tokens at once."""
        for context in self.contexts:
            if not context.lengths[0]:
                continue
            with torch.no_grad():
                want = self.original(torch.tensor([context.tokens[0]])).logits[0, -1].numpy()
            have: Any = context.logits[0]
            if have is None:
                have = context.fork()
                last = have.tokens[0][-1]
                have.rollback(1)
                have = have.extend([last])[0]
            np.testing.assert_allclose(have, want, rtol=0, atol=1e-4)


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def test_a_short_soak() -> None:
    walk = Walk(96)
    for step in range(300):
        walk.step(96)
        if step % 5 == 0:
            walk.check()
        if step == 100:
            before = resident()
    walk.check()
    assert resident() - before < SLACK


@pytest.mark.slow
def test_a_long_soak() -> None:
    walk, step = Walk(4096, seed=1), 0
    for longest in (256, 4096):
        while max(walk.contexts[0].lengths[0], walk.contexts[1].lengths[0]) < longest - 40:
            walk.step(longest)
            step += 1
            if step % 100 == 0:
                walk.check()
    walk.check()
    before = resident()
    for step in range(1500):
        walk.step(4096)
        if step % 100 == 0:
            walk.check()
    assert walk.read > 4096 and resident() - before < SLACK
