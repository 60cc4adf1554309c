"""``planish cache``: what the cache of finished artifacts and tuned kernels holds, and how to empty it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planish.frontend.cli import common

if TYPE_CHECKING:
    from planish.frontend.cache import Usage

cache_app = typer.Typer(no_args_is_help=True, help="See or empty the cache of finished artifacts.")
CacheDir = Annotated[Path | None, typer.Option(help="The folder of the cache.")]


@cache_app.command("info")
def info(
    cache_dir: CacheDir = None,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
) -> None:
    """Say where the cache is and what it holds."""
    from planish.frontend.cache import usage
    from planish.frontend.config import cache_directory, cache_policy

    out = common.terminal(json, verbose, quiet, no_progress)
    found = usage(cache_directory(cache_dir))
    policy = cache_policy(cache_dir)
    out.result(
        f"{found.folder}: {_counts(found)}; policy {policy}",
        {"folder": str(found.folder), **_table(found), "policy": policy},
    )


@cache_app.command("clear")
def clear_cache(
    cache_dir: CacheDir = None,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> None:
    """Remove all artifacts and records of tuning from the cache."""
    from planish.frontend.cache import clear, usage
    from planish.frontend.config import cache_directory

    out = common.terminal(json, verbose, quiet, no_progress)
    folder = cache_directory(cache_dir)
    found = usage(folder) if dry_run else clear(folder)
    verb = "would remove" if dry_run else "removed"
    out.result(f"{verb} {_counts(found)}", {"folder": str(folder), **_table(found), "removed": not dry_run})


def _counts(found: Usage) -> str:
    return f"{found.files:,} artifacts, {found.records:,} records of tuning, {found.bytes:,} bytes"


def _table(found: Usage) -> dict[str, int]:
    return {"artifacts": found.files, "records": found.records, "bytes": found.bytes}
