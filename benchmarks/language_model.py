"""Bytes, perplexity and prefill speed of the small language model, stored in several ways.

    python -m benchmarks.language_model                all ways, 16,384 tokens; writes results/language_model.md
    python -m benchmarks.language_model --tokens 4096  fewer tokens, nothing is written
    python -m benchmarks.language_model --only int4    one way beside fp32 (repeatable), nothing is written

Perplexity is that of windows of 512 tokens, stride 512, all 511 predictions of a window counted, on the second half of
`pydoc_data.topics` and on a second text of another kind: licence texts of installed packages. The model is re-scaled,
so that its weights are generic (`planish.frontend.yardstick.rescaled`); the model as it came stands beside it.
Prefill speeds are measured in turn in one process and given as ratios to fp32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

from planish.frontend import api, yardstick
from planish.frontend.capture.base import Captured
from planish.frontend.capture.source import capture, tokenizer_files
from planish.frontend.showcase import FP32, HEADS, TABLE, TARGET
from planish.frontend.yardstick import Tokens

RESULTS = Path(__file__).parent / "results" / "language_model.md"
WAYS = {
    FP32: "auto",
    "int8": "auto,int8{group=64}",
    "int6": "auto,int6{group=64}",
    "int4 and a table of 6 bits": f"auto,{TABLE},int4{{group=64}}",
    "int4": "auto,int4{group=64}",
    "int4, search": "auto,int4{group=64,search=mse}",
    "int3 and a table of 6 bits": f"auto,{TABLE},int3{{group=64}}",
    "int3": "auto,int3{group=64}",
    "int3, nearest": "auto,int3{group=64,search=none}",
}
FULL = 16_384


def licences() -> str:
    """Licence texts of installed packages, each once, sorted: they differ with what is installed."""
    found = set()
    for each in distributions():
        for file in each.files or ():
            if "licen" in file.name.lower() or "copying" in file.name.lower():
                path = Path(str(file.locate()))
                if path.is_file() and path.suffix in ("", ".txt", ".md", ".rst"):
                    found.add(path.read_text(errors="replace"))
    return "\n\n".join(sorted(found))


def measure(captured: Captured, pipeline: str, path: Path, texts: list[Tokens]) -> list[float]:
    """Write an artifact and return the perplexity on each text."""
    with api.compile_captured(captured, api.make_options(passes=pipeline, target=TARGET)) as compiled:
        compiled.export(path, overwrite=True)
    with api.load(path, verify="off") as model:
        return [yardstick.perplexity(yardstick.runner(model), windows) for windows in texts]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=FULL)
    parser.add_argument("--only", action="append", choices=[w for w in WAYS if w != FP32])
    options = parser.parse_args()
    ways = {name: p for name, p in WAYS.items() if name == FP32 or not options.only or name in options.only}
    plain = capture(yardstick.model_file())
    rescaled = replace(plain, weights=yardstick.rescaled(plain.weights, HEADS))
    files = tokenizer_files(plain.tokenizer)
    texts = [
        yardstick.held_out(yardstick.tokenize(t, files), options.tokens)
        for t in (yardstick.topics_text(), licences())
    ]
    lines = [
        f"{options.tokens:,} tokens of each text; target `{TARGET}`; speed is prefill of 512 tokens against fp32.", "",
        "| stored as | pipeline | bytes of the file | of fp32 | topics | licences | topics, plain model | speed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        base = Path(scratch) / "base.planish"
        for name, pipeline in ways.items():
            path = base if name == FP32 else Path(scratch) / "model.planish"
            found = measure(rescaled, pipeline, path, texts)
            beside = measure(plain, pipeline, Path(scratch) / "plain.planish", texts[:1])
            with api.load(base, verify="off") as first, api.load(path, verify="off") as second:
                speed = yardstick.prefill([yardstick.runner(m) for m in (first, second)], texts[0][:1])
            size = path.stat().st_size
            figures = " | ".join(f"{value:.2f}" for value in (*found, *beside, speed.ratio[1]))
            lines.append(
                f"| {name} | `{pipeline}` | {size:,} | {size / base.stat().st_size:.4f} | {figures} |"
            )
            print(lines[-1], flush=True)
    if options.tokens == FULL and not options.only:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("# The small language model\n\n" + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
