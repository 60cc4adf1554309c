"""Resident memory of a fresh process that loads an artifact and runs it, against the bytes of the artifact.

    python -m benchmarks.memory                      the small language model as fp32, int8, int4 and int3
    python -m benchmarks.memory a.planish b.planish  artifacts of language models

The process reads a prompt of 64 tokens twice. `over` is what it holds beyond the bytes of the file; `start` is what
Python and numpy hold before anything is loaded. Linux only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from planish.frontend import api, yardstick
from planish.frontend.showcase import FP32, INT4, PIPELINES, ROOM, TARGET


def row(path: Path, name: str) -> tuple[str, bool]:
    """One line of the table, and whether the process stayed within the limit."""
    found, size = yardstick.memory(path), path.stat().st_size
    figures = (size, found.resident, found.peak, found.before, found.resident - size)
    holds = found.resident - size <= ROOM
    return f"{name:12}" + "".join(f"{value / 1e6:10.1f}" for value in figures), holds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="*", type=Path)
    options = parser.parse_args()
    print(
        "megabytes   " + "".join(f"{name:>10}" for name in ("file", "resident", "peak", "start", "over")),
        flush=True,
    )
    if options.artifacts:
        for path in options.artifacts:
            print(row(path, path.stem[:12])[0], flush=True)
        return 0
    from planish.frontend.capture.source import capture

    captured = capture(yardstick.model_file())
    good = True
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        for name, pipeline in PIPELINES.items():
            path = Path(scratch) / f"{name}.planish"
            with api.compile_captured(captured, api.make_options(passes=pipeline, target=TARGET)) as compiled:
                compiled.export(path)
            line, holds = row(path, name)
            good = good and (holds or name == FP32)
            print(line, flush=True)
            path.unlink()
    print(
        f"limit: {ROOM / 1e6:.0f} MB over the file, for {INT4} and the like: {'held' if good else 'EXCEEDED'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
