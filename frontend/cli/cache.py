"""``planish cache``: what the cache of finished artifacts holds, and how to empty it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planish.frontend.cli import common

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
        f"{found.folder}: {found.files:,} artifacts, {found.bytes:,} bytes; policy {policy}",
        {"folder": str(found.folder), "artifacts": found.files, "bytes": found.bytes, "policy": policy},
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
    """Remove all artifacts from the cache."""
    from planish.frontend.cache import clear, usage
    from planish.frontend.config import cache_directory

    out = common.terminal(json, verbose, quiet, no_progress)
    folder = cache_directory(cache_dir)
    found = usage(folder) if dry_run else clear(folder)
    verb = "would remove" if dry_run else "removed"
    out.result(
        f"{verb} {found.files:,} artifacts, {found.bytes:,} bytes",
        {"folder": str(folder), "artifacts": found.files, "bytes": found.bytes, "removed": not dry_run},
    )
