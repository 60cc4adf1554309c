"""``planish why``: where a rule fires on a program, and where it nearly does, with the reason."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from planish.errors import UsageError
from planish.frontend.cli import common


def why(
    rule: Annotated[str, typer.Argument(help="The name of a rule, or 'list' to see all.")],
    program: Annotated[
        Path | None, typer.Argument(help="A program .ir.py, an artifact, or any model file.")
    ] = None,
    passes: Annotated[str, typer.Option("--passes", "-p", help="Passes to run before.")] = "none",
    limit: Annotated[int, typer.Option(min=1, help="How many misses to show.")] = 5,
    seed: common.Seed = 0,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> None:
    """Say where a rule fires on a program, and the nearest misses with their reasons."""
    from planish.ir.rule import RULES

    out = common.terminal(json, verbose, quiet, no_progress)
    load_rules()
    if rule == "list":
        out.result(
            "\n".join(f"{name:32} {each.doc.partition(chr(10))[0]}" for name, each in sorted(RULES.items())),
            {"rules": {name: each.doc for name, each in sorted(RULES.items())}},
        )
        return
    found = RULES.get(rule)
    if found is None:
        near = difflib.get_close_matches(rule, RULES, 3)
        hint = f"did you mean {', '.join(near)}?" if near else "see: planish why list"
        raise UsageError("PL832", f"there is no rule {rule!r}", hint=hint)
    if program is None:
        raise UsageError("PL832", "a program is needed to look at", hint=f"planish why {rule} model.ir.py")
    if dry_run:
        out.result(f"would look for {rule} in {program}", {"rule": rule, "program": str(program)})
        return
    _explain(out, found, program, passes, limit)


def _explain(out: common.Terminal, rule: Any, path: Path, passes: str, limit: int) -> None:
    from planish.frontend.cli.programs import read_any
    from planish.frontend.config import read_passes
    from planish.ir.printer import format_call, names_of
    from planish.passes.pipeline import run_pipeline

    captured = read_any(path)
    program = captured.program
    if pipeline := read_passes(passes):
        program = run_pipeline(program, captured.weights, pipeline).program
    names = names_of(program)
    fires: list[dict[str, Any]] = []
    misses: list[dict[str, Any]] = []
    for node in program.nodes:
        if node.op != rule.root:
            continue
        origin = program.origins.get(node)
        place = {
            "node": f"{names[node]} = {format_call(node, names)}", "source": origin.source if origin else None,
        }  # fmt: skip
        miss = rule.why(node)
        if miss is None:
            (fires if rule.apply(node) is not None else misses).append(
                {**place, "matched": 0, "reason": "changes nothing"}
            )
        else:
            at = names.get(miss.node)
            misses.append({**place, "matched": miss.matched, "at": at, "reason": miss.reason})
    misses.sort(key=lambda m: -m["matched"])
    equation = rule.doc.partition("\n")[0]
    lines = [f"{rule.name}: {equation}", f"fires at {len(fires)} nodes, misses {len(misses)}"]
    for each in fires[:limit]:
        lines += [f"  fires: {each['node']}", *([f"      from {each['source']}"] if each["source"] else [])]
    for each in misses[:limit]:
        lines += [
            f"  misses: {each['node']}", f"      {each['reason']}" + (f" (at {each['at']})" if each.get("at") else ""),
            *([f"      from {each['source']}"] if each["source"] else []),
        ]  # fmt: skip
    if not fires and not misses:
        lines.append(f"  no node is a {rule.root}")
    out.result(
        "\n".join(lines),
        {
            "rule": rule.name,
            "equation": equation,
            "fires": fires,
            "misses": misses[:limit],
            "missed": len(misses),
        },
    )


def load_rules() -> None:
    """Import every module of passes that declares rules."""
    import importlib
    import pkgutil

    import planish.passes.canonical as canonical
    import planish.passes.recognise as recognise

    for package in (canonical, recognise):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
