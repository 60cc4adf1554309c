"""The entry point of the command line: verbs, and what becomes of errors."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from planish.errors import InternalError, PlanishError
from planish.frontend.cli.cache import cache_app
from planish.frontend.cli.compile import compile_model
from planish.frontend.cli.demo import demo
from planish.frontend.cli.generate import generate
from planish.frontend.cli.opt import opt
from planish.frontend.cli.show import show
from planish.frontend.cli.trust import trust_app
from planish.frontend.cli.why import why

INTERRUPTED, USAGE = 130, 2

app = typer.Typer(
    name="planish", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make neural networks smaller and faster by rewriting them as programs.",
)  # fmt: skip
app.command("demo")(demo)
app.command("compile")(compile_model)
app.command("generate")(generate)
app.command("opt")(opt)
app.command("show")(show)
app.command("why")(why)
app.add_typer(cache_app, name="cache")
app.add_typer(trust_app, name="trust")


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        sys.stdout.write(f"planish {version('planish')}\n")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
]


@app.callback()
def planish(version: Version = False) -> None:
    """Make neural networks smaller and faster by rewriting them as programs."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every error ends in a message, never in a traceback."""
    given = [
        "--tune=true" if a == "--tune" else a for a in (sys.argv[1:] if arguments is None else arguments)
    ]
    try:
        code = typer.main.get_command(app).main(given, prog_name="planish", standalone_mode=False)
        if code == INTERRUPTED:  # the option parser catches the interrupt itself
            return _interrupted()
        return code if isinstance(code, int) else 0
    except PlanishError as error:
        return _report(error, given)
    except KeyboardInterrupt:
        return _interrupted()
    except typer.Abort:
        return _interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:  # the last resort: a fault of planish, or a usage error of the option parser
        if hasattr(error, "format_message"):
            return _usage(error, given)
        return _report(_internal(error, given), given)


def _interrupted() -> int:
    sys.stderr.write("interrupted; nothing was written\n")
    return INTERRUPTED


def _report(error: PlanishError, given: list[str]) -> int:
    if "--json" in given:
        facts = {"code": error.code, "message": error.message, "where": error.where, "hint": error.hint}
        sys.stdout.write(json.dumps({"error": facts}, indent=1) + "\n")
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code


def _usage(error: Any, given: list[str]) -> int:
    if not error.format_message() and not given:
        return 0
    context = getattr(error, "ctx", None)
    if context is not None:
        sys.stderr.write(context.get_usage() + "\n")
    message = error.format_message()
    if message:
        sys.stderr.write(f"error: {message}\n")
    if "--json" in given:
        facts = {"code": "PL831", "message": message, "where": None, "hint": None}
        sys.stdout.write(json.dumps({"error": facts}, indent=1) + "\n")
    return USAGE


def _internal(error: Exception, given: list[str]) -> InternalError:
    """A fault of planish as a coded error, with a folder that reproduces it."""
    folder = Path(tempfile.mkdtemp(prefix="planish-fault-"))
    (folder / "command.txt").write_text(" ".join(["planish", *given]) + "\n")
    (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
    for name, text in _programs(error).items():
        (folder / name).write_text(text)
    return InternalError(
        "PL900",
        f"{type(error).__name__}: {error}",
        hint=f"a folder that reproduces the fault is at {folder}; report it",
    )


def _programs(error: Exception) -> dict[str, str]:
    """The program and the pipeline that were at work, from the frames of the traceback."""
    from planish.ir.node import Program

    found: dict[str, str] = {}
    frame = error.__traceback__
    while frame is not None:
        values = frame.tb_frame.f_locals
        if isinstance(values.get("program"), Program):
            found["program.ir.py"] = str(values["program"])
        for name in ("passes", "pipeline", "each"):
            if name in values and type(values[name]).__module__.startswith(("planish", "builtins")):
                found["pipeline.txt"] = f"{values[name]}\n"
        frame = frame.tb_next
    return found


if __name__ == "__main__":
    raise SystemExit(main())
