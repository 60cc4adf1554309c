"""Speed on this machine's CPU, side by side with other runtimes in one process.

    python -m benchmarks.cpu                       everything; writes results/cpu.md
    python -m benchmarks.cpu --only decode         one table (decode, prefill, minilm-1, minilm-32, resnet18-1)
    python -m benchmarks.cpu --rounds 5            fewer rounds

Each round runs every contestant in turn. Times are medians with the 10th and 90th percentile of the rounds; the ratio
is that of the first row's time, round by round: below 1 is faster. Runtimes that are not installed are named and left
out (`pip install 'planish[bench]'`; llama-cpp-python builds from source).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models, peers
from benchmarks.interleave import Contestant, Race, machine, race, read_bandwidth
from planish.frontend import api, yardstick

RESULTS = Path(__file__).parent / "results" / "cpu.md"
PAST, PROMPT = 128, 512
TABLE = "int6{group=64,only=*embed_tokens*}"
FORMATS = {
    "int4": f"auto,{TABLE},int4{{group=64}}",
    "int4 all": "auto,int4{group=64}",
    "int8": "auto,int8{group=64}",
}


def planish(
    captured: Any, pipeline: str, target: str, folder: Path, feeds: Any
) -> tuple[Callable[[], object], int]:
    """A call of a compiled model, loaded from its artifact, and the bytes of that."""
    made = api.compile_captured(captured, api.make_options(passes=pipeline, target=target))
    path = made.export(folder / f"{abs(hash((pipeline, target)))}.planish", overwrite=True)
    session = api.load(path, verify="off", allow_native_code=True)._opened()
    return (lambda: session.run(feeds)), path.stat().st_size


def decode(folder: Path) -> list[Contestant]:
    """One token of the small language model after a fixed past of 128."""
    from benchmarks.step import Step, example
    from planish.frontend.capture.gguf import load_gguf
    from planish.frontend.capture.source import capture

    model = load_gguf(yardstick.model_file()).eval()
    inputs = example(model, PAST)
    captured = capture(Step(model), example_inputs=inputs)
    feeds = {leaf.name: t.numpy() for leaf, t in zip(captured.program.inputs, inputs, strict=True)}
    rows = _language_rows(captured, feeds, folder, lambda llama: llama.decoding(PAST))
    return rows + _openvino(Step(model), inputs, folder)


def prefill(folder: Path) -> list[Contestant]:
    """A prompt of 512 tokens, logits of all of them."""
    import torch

    from planish.frontend.capture.gguf import load_gguf
    from planish.frontend.capture.source import capture

    captured = capture(yardstick.model_file())
    feeds = {"input_ids": np.arange(PROMPT, dtype=np.int64)[None]}
    rows = _language_rows(captured, feeds, folder, lambda llama: llama.prefill(PROMPT))
    model = models.Logits(load_gguf(yardstick.model_file()).eval())
    return rows + _openvino(model, (torch.arange(PROMPT)[None],), folder)


def _openvino(module: Any, inputs: Any, folder: Path) -> list[Contestant]:
    if not (peers.installed("openvino") and peers.installed("nncf")):
        return []
    call, size = peers.openvino_int4(module, inputs, folder)
    return [Contestant("OpenVINO int4", call, size, "group 64, head in 8 bits, by NNCF")]


def _language_rows(
    captured: Any, feeds: Any, folder: Path, task: Callable[[peers.Llama], Callable[[], object]]
) -> list[Contestant]:
    rows = []
    for name, pipeline in FORMATS.items():
        call, size = planish(captured, pipeline, "cpu", folder, feeds)
        rows.append(Contestant(f"planish {name}", call, size, "8-bit activations"))
    call, size = planish(captured, FORMATS["int4"], "cpu{activation_bits=32}", folder, feeds)
    rows.append(Contestant("planish int4, exact activations", call, size))
    for name in ("int4", "int8"):
        call, size = planish(captured, FORMATS[name], "onnxruntime{activation_bits=8}", folder, feeds)
        rows.append(Contestant(f"ONNX Runtime {name}", call, size, "MatMulNBits, 8-bit activations"))
    if peers.installed("llama_cpp"):
        for kind in ("Q4_0", "Q8_0"):
            path = peers.requantized(yardstick.model_file(), kind, folder)
            rows.append(Contestant(f"llama.cpp {kind}", task(peers.Llama(path)), path.stat().st_size))
    return rows


def encoder(example: models.Example, folder: Path) -> list[Contestant]:
    """A model in fp32, and where a runtime can, in bf16."""
    from planish.frontend.capture.source import capture

    captured = capture(example.module, example_inputs=example.inputs)
    feeds = {leaf.name: a for leaf, a in zip(captured.program.inputs, example.feeds.values(), strict=True)}
    rows = []
    for name, target in (("fp32", "cpu"), ("bf16", "cpu{math=bf16}")):
        call, size = planish(captured, "auto", target, folder, feeds)
        rows.append(Contestant(f"planish {name}", call, size))
    rows.append(Contestant("torch eager", peers.eager(example.module, example.inputs)))
    rows.append(Contestant("torch.compile", peers.eager(example.module, example.inputs, compile=True)))
    path = example.onnx(folder)
    rows.append(Contestant("ONNX Runtime fp32", peers.onnxruntime(path, example.feeds)))
    if peers.installed("openvino"):
        rows.append(Contestant("OpenVINO fp32", peers.openvino(path, example.feeds)))
        rows.append(Contestant("OpenVINO bf16", peers.openvino(path, example.feeds, "bf16")))
    return rows


TABLES: dict[str, Callable[[Path], list[Contestant]]] = {
    "decode": decode,
    "prefill": prefill,
    "minilm-1": lambda folder: encoder(models.minilm(1), folder),
    "minilm-32": lambda folder: encoder(models.minilm(32), folder),
    "resnet18-1": lambda folder: encoder(models.resnet18(), folder),
}
TOKENS = {"decode": 1, "prefill": PROMPT}


def table(name: str, rows: list[Contestant], found: Race, bandwidth: float) -> str:
    """The rows as Markdown."""
    lines = [
        f"## {name}",
        "",
        "| runtime | time | ratio | MB | tokens/s | GB/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        timing, ratio = found.timings[row.name], found.ratios[row.name]
        rate = f"{TOKENS[name] / timing.median:.0f}" if name in TOKENS else ""
        read = row.bytes / timing.median / 1e9 if name == "decode" and row.bytes else 0.0
        share = f"{read:.1f} ({read / bandwidth:.0%})" if read else ""
        size = f"{row.bytes / 1e6:.1f}" if row.bytes else ""
        label = f"{row.name} ({row.note})" if row.note else row.name
        spread = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        lines.append(f"| {label} | {timing} | {spread} | {size} | {rate} | {share} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print; write the results when everything was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(TABLES))
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    bandwidth = read_bandwidth()
    missing = [p for p in ("openvino", "nncf", "llama_cpp") if not peers.installed(p)]
    head = f"{machine()}; memory read at {bandwidth:.1f} GB/s by all threads"
    parts = [head + (f"; not installed: {', '.join(missing)}" if missing else "") + "\n"]
    print(parts[0])
    for name in given.only or TABLES:
        with tempfile.TemporaryDirectory(prefix="planish-") as folder:
            rows = TABLES[name](Path(folder))
            parts.append(table(name, rows, race(rows, given.rounds), bandwidth))
            print(parts[-1], flush=True)
    if not given.only:
        RESULTS.write_text("# Speed on a CPU (`python -m benchmarks.cpu`)\n\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
