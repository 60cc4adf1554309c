"""``planish demo``: a small language model is rewritten, compressed and run; with what that cost and gained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planish.frontend.cli import common

if TYPE_CHECKING:
    from planish.frontend.showcase import Showcase


def demo(
    output: common.Output = None,
    tokens: Annotated[int, typer.Option(min=512, help="How many tokens perplexity is measured on.")] = 4096,
    plain: Annotated[
        bool, typer.Option("--plain/--no-plain", help="Measure the model as it is beside the re-scaled one.")
    ] = True,
    seed: common.Seed = 0,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> int:
    """Compress and run SmolLM2-135M-Instruct end to end, and report bytes, perplexity, speed, memory and time."""
    import tempfile

    from planish.frontend.cli.demo_report import render, summary
    from planish.frontend.showcase import Showcase
    from planish.frontend.yardstick import model_file

    out = common.Terminal(
        json, common.terminal(json, verbose, quiet, no_progress).level, progress=not no_progress
    )
    if dry_run:
        path = model_file()
        out.result(
            f"would compress {path.name} and measure {tokens} tokens", {"model": str(path), "tokens": tokens}
        )
        return 0
    with tempfile.TemporaryDirectory(prefix="planish-demo-") as scratch:
        folder = output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        show = Showcase(folder, tokens, seed, plain, out.phase)
        found = show.run()
        out.result(render(found), summary(found))
        if not json:
            _answer(show)
    return 0 if all(check.holds for check in found.checks) else 1


def _answer(show: Showcase) -> None:
    """The model in 4 bits answers, token by token; figures follow."""
    import sys

    from planish.frontend.showcase import ANSWER, INT4, PROMPT

    with show.load(INT4) as model:
        pieces = model.generate(PROMPT, chat=True, max_tokens=ANSWER, stream=True)
        sys.stdout.write(f"\nThe model in 4 bits is asked: {PROMPT}\n\n")
        for piece in pieces:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        sys.stdout.write(f"\n\n{pieces.result.statistics}\n")
