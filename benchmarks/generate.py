"""Generation side by side with other runtimes in one process: the small language model continues a text.

    python -m benchmarks.generate                  everything; writes results/generate.md
    python -m benchmarks.generate --rounds 3       fewer rounds, nothing is written
    python -m benchmarks.generate --only int4      rows with this in their names, nothing is written (repeatable)

Decode: 128 tokens are read, then 128 more are said, each the most likely one, and no token ends the text. Prefill: a
prompt of 512 tokens. First token: a prompt of 128 until the first token is known. Each round runs every runtime in
turn; times are medians with the 10th and 90th percentile of the rounds, and ratios are those of times to the first
row, round by round: above 1 is slower. Resident memory is that of a fresh process with nothing but the runtime. The
share of the bandwidth is the file's bytes, read once for every token, of what all threads can read.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import peers
from benchmarks.generators import CONTEXT, KINDS, PROMPT, Generator, resident
from benchmarks.interleave import Contestant, Race, Timing, machine, race, read_bandwidth
from planish.frontend import api, config, yardstick

RESULTS = Path(__file__).parent / "results" / "generate.md"
SAID, LONG_PROMPT = 128, 512
ROUNDS = 5
TABLE = "int6{group=64,only=*embed_tokens*}"
FORMATS = {"int4": f"auto,{TABLE},int4{{group=64}}", "int8": "auto,int8{group=64}", "fp32": "auto"}
OURS = {
    "planish {}, 8-bit activations": ("cpu{activation_bits=8}", ("int4", "int8", "fp32")),
    "planish {}, exact activations": ("cpu{activation_bits=32}", ("int4",)),
    "planish {}, through ONNX Runtime": ("onnxruntime{activation_bits=8}", ("int4", "int8", "fp32")),
}
"""Names, targets and formats; weights in fp32 meet exact activations in any case."""


@dataclass(frozen=True)
class Entry:
    """A row: what it is called, which runtime reads which file, and the bytes of that."""

    name: str
    kind: str
    path: Path
    bytes: int


def ours(folder: Path, wanted: Callable[[str], bool]) -> list[Entry]:
    """The model compiled in several ways; one capture serves all of them."""
    from planish.frontend.capture.source import capture

    captured, made = capture(yardstick.model_file()), []
    for pattern, (target, formats) in OURS.items():
        for each in formats:
            name = pattern.format(each) if each != "fp32" else pattern.format(each).partition(", 8-bit")[0]
            if not wanted(name):
                continue
            options = api.make_options(
                passes=FORMATS[each], target=target, generate=config.GenerateOptions(context=CONTEXT, validate=False)
            )  # fmt: skip
            with api.compile_captured(captured, options) as compiled:
                path = compiled.export(folder / f"{len(made)}.planish")
            made.append(Entry(name, "planish", path, path.stat().st_size))
    return made


def others(folder: Path, wanted: Callable[[str], bool]) -> tuple[list[Entry], list[str]]:
    """Other runtimes with the same model, and which are left out for what reason."""
    source, found, missing = yardstick.model_file(), [], []

    def add(
        name: str, kind: str, needs: tuple[str, ...], make: Callable[[], tuple[Path, list[Path]]]
    ) -> None:
        absent = [package for package in needs if not peers.installed(package)]
        if not wanted(name):
            return
        if absent:
            missing.append(f"{name}: {', '.join(absent)} not installed")
            return
        try:
            path, files = make()
        except Exception as error:  # builders of others fail in many ways; the table says that they did
            missing.append(f"{name}: its builder failed ({type(error).__name__})")
            return
        found.append(Entry(name, kind, path, sum(f.stat().st_size for f in files)))

    def llama(kind: str) -> tuple[Path, list[Path]]:
        path = peers.requantized(source, kind, folder)
        return path, [path]

    def genai() -> tuple[Path, list[Path]]:
        path = peers.genai_int4(plain, folder / "genai")
        return path, list(path.glob("*.onnx*"))

    def openvino() -> tuple[Path, list[Path]]:
        from benchmarks.stateful import openvino_stateful
        from planish.frontend.capture.gguf import load_gguf

        path = openvino_stateful(load_gguf(source).eval(), folder)
        return path, [path, path.with_suffix(".bin")]

    plain = peers.hugging_face(source, folder / "plain")
    for kind in ("Q4_0", "Q8_0"):
        add(f"llama.cpp {kind}", "llama.cpp", ("llama_cpp",), lambda kind=kind: llama(kind))  # type: ignore[misc]
    add("onnxruntime-genai int4", "genai", ("onnxruntime_genai",), genai)
    add("OpenVINO int4", "openvino", ("openvino", "nncf"), openvino)
    add("transformers fp32", "transformers", (), lambda: (plain, list(plain.glob("*.safetensors"))))
    return found, missing


def prompt() -> list[int]:
    """Tokens of an English text."""
    from planish.frontend.capture.source import tokenizer_files

    ids = yardstick.tokenize(yardstick.topics_text()[:20_000], tokenizer_files(yardstick.model_file()))
    return [int(i) for i in ids[:LONG_PROMPT]]


def races(entries: list[Entry], tokens: list[int], rounds: int) -> tuple[Race, Race, Race]:
    """The times of decoding, of prefill, and of a first token."""
    running = [(e, KINDS[e.kind](e.path)) for e in entries]

    def decoding(entry: Entry, generator: Generator) -> Contestant:
        state = {"next": 0}

        def begin() -> None:
            state["next"] = generator.read(tokens[:PROMPT])

        return Contestant(entry.name, lambda: generator.say(state["next"], SAID), entry.bytes, "", begin)

    def reading(entry: Entry, generator: Generator, count: int) -> Contestant:
        return Contestant(entry.name, lambda: generator.read(tokens[:count]))

    return (
        race([decoding(*each) for each in running], rounds),
        race([reading(*each, LONG_PROMPT) for each in running], rounds),
        race([reading(*each, PROMPT) for each in running], rounds),
    )


def table(
    entries: list[Entry], found: tuple[Race, Race, Race], memory: dict[str, int], bandwidth: float
) -> str:
    """The rows as Markdown."""
    decode, prefill, first = found
    lines = [
        "| runtime | decode, tokens/s | ratio | of bandwidth | prefill, tokens/s | ratio | first token, ms"
        " | resident MB | file MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in entries:
        name = each.name
        read = each.bytes * SAID / decode.timings[name].median / 1e9
        cells = [
            name, rate(decode.timings[name], SAID), ratio(decode.ratios[name]), f"{read / bandwidth:.0%}",
            rate(prefill.timings[name], LONG_PROMPT), ratio(prefill.ratios[name]),
            f"{first.timings[name].median * 1e3:.0f}", f"{memory[name] / 1e6:.0f}", f"{each.bytes / 1e6:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rate(timing: Timing, tokens: int) -> str:
    """Tokens per second, with the range."""
    return f"{tokens / timing.median:.0f} ({tokens / timing.high:.0f} to {tokens / timing.low:.0f})"


def ratio(timing: Timing) -> str:
    """How many times as long as the first row, with the range."""
    return f"{timing.median:.2f} ({timing.low:.2f} to {timing.high:.2f})"


def note(text: str) -> None:
    """Say on stderr what goes on."""
    print(f"{perf_counter() - BEGIN:5.0f} s  {text}", file=sys.stderr, flush=True)


BEGIN = perf_counter()


def main() -> None:
    """Measure and print; write the results when everything was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    logging.disable(logging.WARNING)

    def wanted(name: str) -> bool:
        return not given.only or any(part in name for part in given.only)

    tokens = prompt()
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        entries = ours(Path(folder), wanted)
        note("compiled")
        more, missing = others(Path(folder), wanted)
        entries += more
        note("other runtimes made")
        memory: dict[str, Any] = {e.name: resident(e.kind, e.path) for e in entries}
        note("memory measured")
        bandwidth = read_bandwidth()
        found = races(entries, tokens, given.rounds)
        note("done")
    head = f"{machine()}; memory read at {bandwidth:.1f} GB/s by all threads; {given.rounds} rounds"
    parts = [head + "\n", table(entries, found, memory, bandwidth)]
    parts += [f"Left out: {'; '.join(missing)}.\n"] if missing else []
    print("\n".join(parts))
    if not given.only and given.rounds >= ROUNDS:
        about = str(__doc__).partition("\n\n")[2].split("\n\n", 1)[1]
        title = "# Generation on a CPU (`python -m benchmarks.generate`)\n"
        RESULTS.write_text("\n".join([title, about, *parts]))


if __name__ == "__main__":
    main()
