"""``planish opt``: run a pipeline on a program file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.errors import ArtifactError, ShapeError
from planish.frontend.cli import common

if TYPE_CHECKING:
    from planish.frontend.capture.base import Captured
    from planish.ir.node import Node
    from planish.passes.pipeline import Observer, Result


def opt(
    program: Annotated[Path, typer.Argument(help="A program, NAME.ir.py.")],
    passes: Annotated[
        str, typer.Option("--passes", "-p", help='A pipeline such as "canonical,find-norm".')
    ] = "auto",
    output: common.Output = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="A safetensors file; by default NAME.safetensors beside the program, if there."),
    ] = None,
    print_after: Annotated[str | None, typer.Option(help="Show the program after passes that match.")] = None,
    print_changed: Annotated[
        bool, typer.Option("--print-changed", help="Show what each pass changed.")
    ] = False,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Verify the program after each pass.")
    ] = False,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Show the time of each pass.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show rewrites, operations and bytes of each pass.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=0, help="Stop after this many rewrites.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    seed: common.Seed = 0,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> None:
    """Run a pipeline on a program file; the program goes to stdout or to the output."""
    from planish.frontend.config import read_passes
    from planish.ir.verify import verify
    from planish.passes.observe import as_json
    from planish.passes.pipeline import run_pipeline
    from planish.passes.spec import format_pipeline

    out = common.terminal(json, verbose, quiet, no_progress)
    pipeline = read_passes(passes)
    captured = read(program, weights)
    if output is not None and output.exists() and not overwrite:
        raise ArtifactError(
            "PL614", "the destination exists already", where=str(output), hint="say --overwrite"
        )
    if dry_run:
        out.result(format_pipeline(pipeline), {"passes": format_pipeline(pipeline), "written": False})
        return
    result = run_pipeline(
        captured.program, captured.weights, pipeline, limit=limit, verify=verify_each,
        observers=_observers(print_after, print_changed, time_passes, stats),
    )  # fmt: skip
    verify(result.program, captured.weights)
    text = str(result.program)
    facts: dict[str, Any] = {"passes": as_json(result), "rewrites": len(result.log.steps)}
    if output is None:
        out.result(text, {"program": text, **facts})
        return
    written = _write(output, text, captured, result, has_weights=bool(_weights_file(program, weights)))
    out.log(f"wrote {', '.join(map(str, written))}")
    out.result("", {"output": [str(p) for p in written], **facts})


def read(program: Path, weights: Path | None) -> Captured:
    """A program with its weights; without a file of weights their values are missing, but their types are known."""
    from dataclasses import replace

    from planish.frontend.capture.source import read_program
    from planish.ir.weights import Weights

    captured = read_program(program, weights)
    if _weights_file(program, weights) is not None:
        return captured
    made = Weights()
    for leaf in captured.program.constants():
        made.add_lazy(leaf.name, leaf.tensor, lambda name=leaf.name: _missing(name))  # type: ignore[misc]
    return replace(captured, weights=made)


def _missing(name: str) -> Any:
    raise ShapeError(
        "PL331", f"the values of the weight {name} are not there", hint="give them with --weights FILE"
    )


def _weights_file(program: Path, weights: Path | None) -> Path | None:
    beside = program.with_name(program.name.removesuffix(".ir.py") + ".safetensors")
    return weights if weights is not None else beside if beside.exists() else None


def _observers(after: str | None, changed: bool, time: bool, stats: bool) -> list[Observer]:
    from planish.passes import observe

    sink = (
        observe.to_console(common._console(stderr=True))
        if sys.stderr.isatty()
        else observe.to_stream(sys.stderr)
    )
    found: list[Observer] = []
    if after is not None:
        found.append(observe.print_after(sink, after))
    if changed:
        found.append(observe.print_changed(sink))
    if time:
        found.append(observe.timing(sink))
    if stats:
        found.append(observe.statistics(sink))
    return found


def _write(output: Path, text: str, captured: Captured, result: Result, *, has_weights: bool) -> list[Path]:
    """The program, and beside it the weights that it uses; the program comes last, when all else is there."""
    written = []
    if has_weights:
        from planish.ir.arrays import to_numpy
        from planish.runtime.tensors import SafetensorsPayload, TensorSource
        from planish.runtime.zipwriter import replacing

        def source(leaf: Node) -> TensorSource:
            shape = tuple(int(s) for s in leaf.shape if isinstance(s, int))
            return TensorSource(
                leaf.dtype.name, shape, lambda: to_numpy(captured.weights.tensor(leaf.name), leaf.dtype)
            )

        tensors = {leaf.name: source(leaf) for leaf in result.program.constants()}
        path = output.with_name(output.name.removesuffix(".ir.py") + ".safetensors")
        with replacing(path, overwrite=True) as file:
            for chunk in SafetensorsPayload(tensors).chunks():
                file.write(chunk)
        written.append(path)
    common.write_text(output, text)
    return [*written, output]
