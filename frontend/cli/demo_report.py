"""How the findings of the demo are shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from planish.frontend.cli.common import group, table

if TYPE_CHECKING:
    from planish.frontend.showcase import Findings


def render(found: Findings) -> Any:
    """The findings for people."""
    from planish.frontend.showcase import TARGET
    from planish.frontend.yardstick import WINDOW

    first = found.rows[0]
    rows = [
        [
            row.name, row.bytes, f"{row.bytes / first.bytes:.4f}", f"{row.error:.4f}", f"{row.rescaled:.2f}",
            "-" if row.plain is None else f"{row.plain:.2f}", f"{row.seconds:.1f}",
        ]
        for row in found.rows
    ]  # fmt: skip
    columns = [
        "stored as",
        "bytes of the file",
        "of fp32",
        "weight error",
        "perplexity",
        "plain model",
        "seconds",
    ]
    speed, memory = found.speed, found.memory
    timed = {**found.report.phases, "all": found.report.seconds}
    phases = [[name, f"{seconds:.2f}"] for name, seconds in timed.items()]
    spread = [f"{low:.0f}..{high:.0f}" for low, high in zip(speed.low, speed.high, strict=True)]
    return group(
        f"{found.model}, {found.source_bytes:,} bytes; passes {found.report.pipeline}; target {TARGET}",
        "",
        table("", columns, rows),
        f"Perplexity of the re-scaled model on {found.tokens:,} held-out tokens of pydoc_data.topics, windows of "
        f"{WINDOW}, stride {WINDOW};\n'plain model' is the model as it came, whose weights lie on a 4-bit grid.",
        "",
        f"Prefill of {WINDOW} tokens, {speed.rounds} rounds in turn: fp32 {speed.median[0]:.0f} tokens/s "
        f"({spread[0]}), int4 {speed.median[1]:.0f} tokens/s ({spread[1]}); ratio {speed.ratio[1]:.2f}",
        f"Memory of a fresh process that runs int4: {memory.resident / 1e6:.0f} MB resident, "
        f"{memory.peak / 1e6:.0f} MB at most; the file is {found.artifact_bytes / 1e6:.0f} MB",
        "",
        table("Seconds to compile int4, by phase", ["phase", "seconds"], phases),
        f"Peak memory while compiling: {found.peak / 1e6:.0f} MB. The whole demo took {found.seconds:.0f} s.",
        "",
        *(f"{'ok    ' if check.holds else 'FAILED'}  {check.what}: {check.found}" for check in found.checks),
    )  # fmt: skip


def summary(found: Findings) -> dict[str, Any]:
    """The findings as plain values."""
    made = asdict(found)
    made["report"] = found.report.as_json()
    return made
