"""``planish compile``: capture a model, rewrite it, lower it, and write what runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.errors import UsageError
from planish.frontend.cli import common

if TYPE_CHECKING:
    from planish.frontend.config import GenerateOptions

_LAYER = re.compile(r"(?P<match>[^{}]+)\{(?P<rest>[^{}]*)\}")
_DIM = re.compile(r"(?P<name>\w+)=(?P<low>\d+)(?::(?P<high>\d+))?")


def compile_model(
    model: Annotated[Path, typer.Argument(help="An .onnx, .gguf or .ir.py file, or a Hugging Face folder.")],
    output: common.Output = None,
    target: Annotated[str, typer.Option(help="cpu, onnxruntime or eager; options in braces.")] = "cpu",
    passes: Annotated[
        str, typer.Option("--passes", "-p", help='A pipeline such as "auto,int4{group=64}".')
    ] = "auto",
    layer: Annotated[
        list[str] | None, typer.Option(help='A rule for weights: "*.down_proj{bits=8}" or "lm_head{freeze}".')
    ] = None,
    dim: Annotated[
        list[str] | None, typer.Option(help="A dimension of an ONNX model: T=1:512, or B=4.")
    ] = None,
    format: Annotated[str, typer.Option(help="planish, onnx or so.")] = "planish",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read files that can run code.")
    ] = False,
    allow_fixed: Annotated[
        bool, typer.Option("--allow-fixed", help="Accept dimensions that the model fixes.")
    ] = False,
    generate: Annotated[
        bool, typer.Option("--generate", help="Make entry points that continue texts, with caches.")
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="With --generate: tokens of a sequence that fit into its caches."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=0, help="With --generate: sequences side by side; 0 for any number.")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Keep finished artifacts in this folder.")] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="[=SECONDS]", help="Measure variants of kernels here, for 60 s or as many as said."
        ),
    ] = None,
    seed: common.Seed = 0,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> None:
    """Capture a model, rewrite and compress it, and write an artifact with a report."""
    from planish.errors import ArtifactError, CaptureError
    from planish.frontend import api
    from planish.frontend.cli.progress import Steps

    out = common.terminal(json, verbose, quiet, no_progress)
    destination = output or _default_output(model, format)
    rules = [read_rule(text) for text in layer or []]
    wanted, measured = read_generate(generate, context, batch), read_tune(tune)
    options = api.make_options(
        target=target, passes=passes, layers=rules, seed=seed, cache_dir=cache_dir, generate=wanted, tune=measured
    )  # fmt: skip
    if format not in ("planish", "onnx", "so"):
        raise UsageError("PL827", f"unknown format {format!r}", hint="known: planish, onnx, so")
    if not model.exists():
        raise CaptureError("PL120", "there is no such file or folder", where=str(model))
    if destination.exists() and not overwrite:
        raise ArtifactError(
            "PL614", "the destination exists already", where=str(destination), hint="say --overwrite"
        )
    facts: dict[str, Any] = {
        "model": str(model),
        "target": str(options.target),
        "passes": options.pipeline,
        "output": str(destination),
    }
    if dry_run:
        out.result("\n".join(f"{key}: {value}" for key, value in facts.items()), {**facts, "written": False})
        return
    with Steps(out, options.tune) as steps:
        compiled = api.compile(
            model, target=target, passes=passes, layers=rules or None, seed=seed, cache_dir=cache_dir, progress=steps,
            allow_pickle=allow_pickle, allow_fixed=allow_fixed, dynamic_shapes=read_dims(dim or []) or None,
            generate=wanted, tune=measured,
        )  # fmt: skip
    path = compiled.export(destination, format=format, overwrite=overwrite)
    folder = path.parent if format == "onnx" else path
    size = sum(p.stat().st_size for p in (folder.iterdir() if folder.is_dir() else [folder]))
    report = compiled.report
    out.result(
        f"{report}\nwrote {path}, {size:,} bytes",
        {**facts, "written": True, "bytes": size, "report": report.as_json()},
    )


def _default_output(model: Path, format: str) -> Path:
    stem = model.name.removesuffix(".ir.py")
    stem = stem if model.is_dir() or stem != model.name else model.stem
    return Path(f"{stem}.planish" if format == "planish" else f"{stem}-{format}")


def read_generate(generate: bool, context: int | None, batch: int | None) -> GenerateOptions | None:
    """The options that ``--generate`` asks for; PL824 if the others stand without it."""
    from planish.frontend.config import GenerateOptions

    if not generate:
        if context is not None or batch is not None:
            name = "--context" if context is not None else "--batch"
            raise UsageError("PL824", f"{name} stands without --generate", hint="say --generate too")
        return None
    return GenerateOptions(context=context, batch=None if batch == 0 else batch or 1)


def read_rule(text: str) -> dict[str, Any]:
    """A rule for weights from ``GLOB{bits=8,group=32}`` or ``GLOB{freeze}``."""
    found = _LAYER.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            "PL824", f"layer rule {text!r}", hint='write "*.down_proj{bits=8}" or "lm_head{freeze}"'
        )
    rule: dict[str, Any] = {"match": found["match"].strip()}
    for part in filter(None, (piece.strip() for piece in found["rest"].split(","))):
        key, equals, value = part.partition("=")
        rule[key] = _value(value) if equals else True
    return rule


def _value(text: str) -> Any:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return {"true": True, "false": False}.get(text, text)


def read_tune(text: str | None) -> bool | float:
    """What ``--tune`` asks for: nothing, ``true`` (which is what it means alone), or seconds."""
    if text is None or text.lower() in ("true", "false"):
        return text is not None and text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        raise UsageError("PL824", f"--tune={text}", hint="write --tune or --tune=SECONDS") from None


def read_dims(texts: list[str]) -> dict[str, Any]:
    """Dimensions from ``T=1:512`` or ``B=4``."""
    made: dict[str, Any] = {}
    for text in texts:
        found = _DIM.fullmatch(text.strip())
        if found is None:
            raise UsageError("PL824", f"dimension {text!r}", hint="write T=1:512, or B=4 to fix it")
        low = int(found["low"])
        made[found["name"]] = (low, int(found["high"])) if found["high"] else low
    return made
