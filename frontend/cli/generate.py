"""``planish generate``: text from a model, streamed as it comes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.errors import CaptureError, UsageError
from planish.frontend.cli import common

if TYPE_CHECKING:
    from planish.frontend.compiled import Compiled

INTERRUPTED = 130
_LARGEST_PROMPT = 2**26


def generate(
    model: Annotated[
        Path, typer.Argument(help="An artifact compiled with --generate, or a model: .gguf, a folder.")
    ],
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to continue; without it, stdin is read.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A file with the prompt, as UTF-8.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is what a user says to the model.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="With --chat: what the model is told before the prompt.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to generate; what fits, at most 512, if left out.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the best token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the fewest tokens of this probability.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text to stop at; may be repeated.")] = None,
    speculate: Annotated[
        bool, typer.Option("--speculate", help="Guess tokens from what was said, and check several at once.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and memory to stderr.")] = False,
    target: Annotated[
        str, typer.Option(help="For a model that is no artifact: what to compile it for.")
    ] = "cpu",
    passes: Annotated[
        str, typer.Option("--passes", "-p", help="For a model that is no artifact: a pipeline.")
    ] = "auto",
    context: Annotated[
        int | None, typer.Option(min=1, help="For a model that is no artifact: tokens that fit.")
    ] = None,
    seed: common.Seed = 0,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> int:
    """Continue a text with a model: tokens stream to stdout, figures go to stderr."""
    from planish.runtime.generate.sampling import Sampling

    out = common.terminal(json, verbose, quiet, no_progress)
    Sampling(temperature, top_k, top_p, seed)  # refused before a model is read
    if system is not None and not chat:
        raise UsageError("PL824", "--system stands without --chat", hint="say --chat too")
    if not model.exists():
        raise CaptureError("PL120", "there is no such file or folder", where=str(model))
    text = read_prompt(prompt, prompt_file)
    if dry_run:
        out.result(f"would continue {len(text)} characters", {"model": str(model), "characters": len(text)})
        return 0
    said: Any = text
    if chat:
        said = [{"role": "system", "content": system}] if system is not None else []
        said.append({"role": "user", "content": text})
    with _opened(model, target, passes, context, out) as compiled:
        pieces = compiled.generate(
            said, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop or (), seed=seed,
            speculate=speculate, stream=True,
        )  # fmt: skip
        try:
            for piece in pieces:
                if not json:
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            if not json:
                sys.stdout.write("\n")
            return INTERRUPTED
        found = pieces.result
    if json:
        out.result("", found.as_json())
    elif not found.text.endswith("\n"):
        sys.stdout.write("\n")
    if stats:
        sys.stderr.write(f"{found.statistics}\nended    {ENDS[found.stopped]}\n")
    return 0


ENDS = {
    "token": "by a token that ends texts", "text": "by a text to stop at", "length": "at the most tokens asked for",
    "context": "because the context is full",
}  # fmt: skip


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from the command line, a file or stdin. PL824: two of them; PL872: empty; PL120: not readable."""
    if prompt is not None and file is not None:
        raise UsageError("PL824", "--prompt and --prompt-file are given", hint="give one of them")
    if prompt is not None:
        text = prompt
    else:
        where = str(file) if file is not None else "stdin"
        try:
            data = file.read_bytes() if file is not None else sys.stdin.buffer.read(_LARGEST_PROMPT + 1)
            text = data.decode()
        except OSError as error:
            raise CaptureError("PL120", f"cannot be read: {error.strerror or error}", where=where) from None
        except UnicodeDecodeError as error:
            raise CaptureError("PL120", f"is not UTF-8 at byte {error.start}", where=where) from None
        if len(data) > _LARGEST_PROMPT:
            raise UsageError("PL824", f"the prompt has more than {_LARGEST_PROMPT} bytes", where=where)
        text = text.removesuffix("\n")
    if not text.strip():
        raise UsageError("PL872", "the prompt is empty", hint="say --prompt TEXT, or write it to stdin")
    return text


def _opened(model: Path, target: str, passes: str, context: int | None, out: common.Terminal) -> Compiled:
    """The model, loaded or compiled; one that needs a tokenizer and has none is refused."""
    from planish.frontend import api
    from planish.frontend.config import GenerateOptions

    if model.suffix.lower() == ".planish":
        compiled = api.load(model)
    else:
        wanted = GenerateOptions(context=context)
        compiled = api.compile(model, target=target, passes=passes, generate=wanted, progress=out.phase)
    try:
        _ = compiled.generator.capacity
        if compiled.generator.tokenizer is None:
            raise UsageError(
                "PL874", "the model has no tokenizer, so that text cannot become tokens", where=str(model),
                hint="compile it from a folder or file with its tokenizer, or call generate() from Python with tokens",
            )  # fmt: skip
    except BaseException:
        compiled.close()
        raise
    return compiled
