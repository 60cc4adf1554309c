"""Edits of a context of 2,048 tokens against reading it anew, with the small language model in fp32.

    python -m benchmarks.edits                    everything; writes results/edits.md
    python -m benchmarks.edits --target onnxruntime
    python -m benchmarks.edits --rounds 1         fewer rounds, nothing is written

Each row edits forks of one context and reads the same tokens into an empty one, in turn; times are up to the logits
after the last token, that of edits the median of the rounds. The keys and values of the first layer must be those of
reading anew to 1e-5 of the largest. What the later layers make of the tokens behind is an approximation; it shows as
the divergence KL(anew, edited) of the distributions of the next token, in nats, and as the tokens of 32 that both
continue with.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.interleave import machine
from planish.frontend import api, yardstick
from planish.frontend.capture.source import capture
from planish.frontend.config import GenerateOptions
from planish.runtime.generate.edits import Edit, applied, planned

RESULTS = Path(__file__).parent / "results" / "edits.md"
LENGTH, ROOM, ANSWER = 2048, 256, 32
EXACT, TARGET, LIMIT = 1e-5, "cpu", 0.15
SIZES, PLACES = (1, 8, 64), (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Case:
    """Edits of the context, as a row of the table."""

    what: str
    size: int
    place: str
    edits: tuple[Edit, ...]


def cases(fresh: list[int]) -> list[Case]:
    """All rows; new tokens come from ``fresh``, which follow the context in the text."""
    found = []
    for size in SIZES:
        new = tuple(fresh[:size])
        for share in PLACES:
            at = int(LENGTH * share)
            for what, edit in (
                ("insertion", Edit(at, at, new)),
                ("replacement", Edit(at, at + size, new)),
                ("deletion", Edit(at, at + size)),
            ):
                found.append(Case(what, size, f"{share:.0%}", (edit,)))
    ats = [int(LENGTH * share) for share in PLACES]
    several = (
        Edit(ats[0], ats[0], tuple(fresh[:8])), Edit(ats[1], ats[1] + 8), Edit(ats[2], ats[2] + 4, tuple(fresh[8:16])),
    )  # fmt: skip
    return [*found, Case("insertion, deletion, replacement", 8, "three places", several)]


@dataclass(frozen=True)
class Row:
    """What was measured: seconds, the largest error of the first layer, nats, and equal tokens."""

    edited: float
    anew: float
    error: float
    divergence: float
    agreed: int

    @property
    def share(self) -> float:
        """The time of the edit relative to that of reading anew."""
        return self.edited / self.anew


def measure(model: Any, base: Any, case: Case, rounds: int) -> Row:
    """One row; raises where the first layer is not exact."""
    before = list(base.tokens[0])
    after = applied(planned(case.edits, before, model.capacity.vocabulary), before)
    other = model.context()
    anew, edited = seconds(lambda: other.extend(after)), []
    for _ in range(rounds):
        context = base.fork()
        edited.append(seconds(lambda context=context: (context.edits(case.edits), context.logits)))
    assert context.tokens[0] == tuple(after)
    error = max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(first_layer(context), first_layer(other), strict=True)
    )
    if error > EXACT:
        raise AssertionError(f"{case}: the first layer differs by {error:.1e}")
    divergence = kl(other.logits[0], context.logits[0])
    said = [model.generate([], max_tokens=ANSWER, context=c).token_ids for c in (other, context)]
    return Row(
        statistics.median(edited), anew, error, divergence,
        sum(a == b for a, b in zip(*said, strict=False)),
    )  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    """The time of one call."""
    begin = perf_counter()
    call()
    return perf_counter() - begin


def first_layer(context: Any) -> list[Any]:
    """Keys and values of the tokens."""
    states, count = context.states.arrays(), context.lengths[0]
    return [states[name][..., :count, :] for name in ("keys.0", "values.0")]


def kl(have: Any, other: Any) -> float:
    """The divergence of two distributions that are given by logits, in nats."""
    p, q = (log_softmax(np.asarray(x, np.float64)) for x in (have, other))
    return float((np.exp(p) * (p - q)).sum())


def log_softmax(x: Any) -> Any:
    """The logarithms of the distribution that logits stand for."""
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--rounds", type=int, default=0)
    options = parser.parse_args()
    wanted = GenerateOptions(context=LENGTH + ROOM, extend=False)
    captured = capture(yardstick.model_file())
    with api.compile_captured(captured, api.make_options(target=options.target, generate=wanted)) as compiled:
        model = compiled.generator
        text = yardstick.topics_text()
        tokens = [int(t) for t in yardstick.tokenize(text[:60_000], compiled.tokenizer)]
        base = model.context()
        base.extend(tokens[:LENGTH])
        base.fork().edit(5, 5, tokens[:1])
        lines = [
            "| edit | tokens | at | edited, ms | anew, ms | of anew | layer 0 | KL, nats | equal of 32 |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        print("\n".join(lines), flush=True)
        found = []
        for case in cases(tokens[LENGTH:]):
            row = measure(model, base, case, options.rounds or 3)
            found.append(row)
            lines.append(
                f"| {case.what} | {case.size} | {case.place} | {row.edited * 1e3:.0f} | {row.anew * 1e3:.0f} "
                f"| {row.share:.1%} | {row.error:.0e} | {row.divergence:.4f} | {row.agreed} |"
            )
            print(lines[-1], flush=True)
    worst = max(row.share for row in found)
    summary = (
        f"An edit takes {statistics.median(r.share for r in found):.1%} (median; at most {worst:.1%}) of the time of "
        f"reading anew. The next token's KL is {statistics.median(r.divergence for r in found):.4f} nats (median; at "
        f"most {max(r.divergence for r in found):.4f}); of {ANSWER} greedy tokens "
        f"{statistics.mean(r.agreed for r in found):.1f} are the same."
    )
    print(f"\n{summary}")
    if not options.rounds:
        head = f"{machine()}; target `{options.target}`, fp32, {LENGTH:,} tokens of `pydoc_data.topics`."
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join(["# Edits of a context", "", head, "", summary, "", *lines, ""]))
    if worst > LIMIT:
        print(f"slower than {LIMIT:.0%} of reading anew", file=sys.stderr)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
