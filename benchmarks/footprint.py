"""What a compiled language model takes: seconds to compile, bytes of libraries and artifact, memory of a process.

    python -m benchmarks.footprint

The small language model for generation (entry points prefill, decode, extend, move; a context of 2,048) is compiled,
written, and loaded in a fresh process that reads 64 tokens and says 16 more. `over` is what that process holds beyond
the bytes of the file; its caches are part of it. Linux only. Writes results/footprint.md.
"""

from __future__ import annotations

import logging
import tempfile
import zipfile
from pathlib import Path
from time import perf_counter

from benchmarks.interleave import machine
from planish.frontend import api, config, yardstick

RESULTS = Path(__file__).parent / "results" / "footprint.md"
TABLE = "int6{group=64,only=*embed_tokens*}"
FORMATS = {"fp32": "auto", "int8": "auto,int8{group=64}", "int4": f"auto,{TABLE},int4{{group=64}}"}
TARGETS = ("cpu{activation_bits=8}", "onnxruntime{activation_bits=8}")
CONTEXT = 2048


def row(captured: object, name: str, target: str, folder: Path) -> str:
    """One line of the table."""
    begin = perf_counter()
    options = api.make_options(
        passes=FORMATS[name], target=target, generate=config.GenerateOptions(context=CONTEXT)
    )
    made = api.compile_captured(captured, options)
    seconds = perf_counter() - begin
    path = made.export(folder / f"{name}.planish", overwrite=True)
    with zipfile.ZipFile(path) as file:
        library = sum(i.file_size for i in file.infolist() if i.filename.endswith((".so", ".onnx")))
    made.close()
    size, found = path.stat().st_size, yardstick.memory(path)
    path.unlink()
    figures = (size, library, found.resident, found.peak, found.resident - size)
    shown = " | ".join(f"{value / 1e6:.1f}" for value in figures)
    return f"| {name} | {target.partition('{')[0]} | {seconds:.1f} | {shown} |"


def main() -> None:
    """Measure, print and write."""
    from planish.frontend.capture.source import capture

    logging.disable(logging.WARNING)
    captured = capture(yardstick.model_file())
    lines = [
        "# What a compiled language model takes (`python -m benchmarks.footprint`)", "", machine(), "",
        "| weights | target | compile s | artifact MB | libraries MB | resident MB | peak MB | over MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        for target in TARGETS:
            for name in FORMATS:
                lines.append(row(captured, name, target, Path(folder)))
                print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
