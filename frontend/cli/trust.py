"""``planish trust``: which machine code runs without being asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planish.errors import UsageError
from planish.frontend.cli import common

if TYPE_CHECKING:
    from planish.frontend.trusting import Library

trust_app = typer.Typer(no_args_is_help=True, help="See or change the list of machine code that is trusted.")
Files = Annotated[
    list[str], typer.Argument(help="Artifacts, folders made with --format so, libraries, or digests.")
]
SomeFiles = Annotated[
    list[str] | None, typer.Argument(help="Only what these files hold; without, everything.")
]


@trust_app.command("add")
def add(
    files: Files,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> None:
    """Trust the machine code in files from now on: it runs when they are loaded."""
    from planish.frontend.trusting import add_all
    from planish.runtime.trust import trusted

    out = common.terminal(json, verbose, quiet, no_progress)
    found = _libraries(files)
    if dry_run:
        known = trusted()
        _changed(out, "would trust", [each for each in found if each.digest not in known], found)
    else:
        _changed(out, "trusts", add_all(found), found)


@trust_app.command("remove")
def remove(
    files: Files,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> None:
    """Trust the machine code in files no longer."""
    from planish.frontend.trusting import remove_all
    from planish.runtime.trust import trusted

    out = common.terminal(json, verbose, quiet, no_progress)
    found = _libraries(files)
    if dry_run:
        known = trusted()
        _changed(out, "would remove", [each for each in found if each.digest in known], found)
    else:
        _changed(out, "removed", remove_all(found), found)


@trust_app.command("list")
def list_trusted(
    files: SomeFiles = None,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
) -> None:
    """Show what is trusted, or whether the machine code in files is."""
    from planish.frontend.trusting import Library
    from planish.runtime.trust import trust_path, trusted

    out = common.terminal(json, verbose, quiet, no_progress)
    known = trusted()
    shown = (
        [Library(digest, note) for digest, note in sorted(known.items())] if not files else _libraries(files)
    )
    rows = [{"digest": x.digest, "where": x.where, "trusted": x.digest in known} for x in shown]
    lines = [f"{r['digest']}  {'trusted' if r['trusted'] else 'not trusted':11}  {r['where']}" for r in rows]
    out.log(f"{len(rows)} libraries; the list is {trust_path()}")
    out.result("\n".join(lines), {"list": str(trust_path()), "libraries": rows})


def _libraries(files: list[str]) -> list[Library]:
    from planish.frontend.trusting import named

    found: list[Library] = []
    for file in files:
        inside = named(file)
        if not inside:
            raise UsageError("PL833", "holds no machine code", where=file, hint="it can be loaded as it is")
        found += [each for each in inside if each not in found]
    return found


def _changed(out: common.Terminal, verb: str, changed: list[Library], given: list[Library]) -> None:
    from planish.runtime.trust import trust_path

    lines = [f"{verb} {each.digest}  {each.where}" for each in changed]
    rest = len(given) - len(changed)
    lines += [f"{rest} of {len(given)} libraries: nothing to change"] if rest else []
    table = {
        "list": str(trust_path()),
        "changed": [{"digest": each.digest, "where": each.where} for each in changed],
        "unchanged": rest,
    }
    out.result("\n".join(lines), table)
