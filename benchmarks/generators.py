"""Runtimes that continue a text with the most likely token, all used in the same two steps.

    python -m benchmarks.generators KIND PATH      memory of a process that reads 128 tokens and says 16 more, in bytes

Nothing is imported before it is needed, so that a process which measures memory holds one runtime only. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

THREADS = len(os.sched_getaffinity(0))
CONTEXT = 1024
PROMPT, MORE = 128, 16


class Generator(ABC):
    """A language model in some runtime, with caches for up to 1,024 tokens."""

    @abstractmethod
    def __init__(self, path: Path) -> None: ...

    @abstractmethod
    def read(self, tokens: Sequence[int]) -> int:
        """Forget everything, read a prompt, and give the best next token."""

    @abstractmethod
    def step(self, token: int) -> int:
        """Read one more token and give the best next one."""

    def say(self, token: int, count: int) -> int:
        """Go on for ``count`` tokens, whatever they are; gives the last one."""
        for _ in range(count):
            token = self.step(token)
        return token


class Planish(Generator):
    """An artifact of planish; the prompts' tokens go through a context."""

    def __init__(self, path: Path) -> None:
        from planish.runtime.session import load

        self.session = load(path, verify="off", allow_native_code=True)
        self.context = self.session.context()

    def read(self, tokens: Sequence[int]) -> int:
        self.context.rollback(self.context.lengths[0])
        return int(self.context.extend(tokens)[0].argmax())

    def step(self, token: int) -> int:
        return int(self.context.step([token])[0].argmax())


class LlamaCpp(Generator):
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(
            str(path), n_ctx=CONTEXT, n_threads=THREADS, n_threads_batch=THREADS, n_batch=512, n_ubatch=512,
            verbose=False,
        )  # fmt: skip

    def read(self, tokens: Sequence[int]) -> int:
        self.llama.reset()
        self.llama._ctx.kv_cache_clear()
        return self._best(tokens)

    def step(self, token: int) -> int:
        return self._best([token])

    def _best(self, tokens: Sequence[int]) -> int:
        self.llama.eval(tokens)
        logits = self.llama._ctx.get_logits_ith(-1)
        return int(np.ctypeslib.as_array(logits, (self.llama.n_vocab(),)).argmax())


class Genai(Generator):
    """A folder of onnxruntime-genai, which chooses tokens itself."""

    def __init__(self, path: Path) -> None:
        import onnxruntime_genai

        self.model = onnxruntime_genai.Model(str(path))
        options = onnxruntime_genai.GeneratorParams(self.model)
        # min_length keeps it from ending; the caches are as long as max_length.
        options.set_search_options(max_length=CONTEXT, min_length=CONTEXT, do_sample=False)
        self.generator = onnxruntime_genai.Generator(self.model, options)

    def read(self, tokens: Sequence[int]) -> int:
        self.generator.rewind_to(0)
        self.generator.append_tokens(np.array(tokens, np.int32))
        return self.step(0)

    def step(self, token: int) -> int:
        self.generator.generate_next_token()
        return int(self.generator.get_next_tokens()[0])


class OpenVino(Generator):
    """A model of OpenVINO with caches as states; what it computes in, and how it keeps caches, is left to it."""

    def __init__(self, path: Path) -> None:
        from openvino import Core

        config = {"INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1}
        self.request = Core().compile_model(path, "CPU", config).create_infer_request()
        self.length = 0

    def read(self, tokens: Sequence[int]) -> int:
        self.request.reset_state()
        self.length = 0
        return self._best(tokens)

    def step(self, token: int) -> int:
        return self._best([token])

    def _best(self, tokens: Sequence[int]) -> int:
        places = np.arange(self.length, self.length + len(tokens))[None]
        self.length += len(tokens)
        found = self.request.infer([np.array([tokens]), places, np.zeros(1, np.int32)])
        return int(found[0].argmax())


class Transformers(Generator):
    """A Hugging Face folder in eager PyTorch, in fp32."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.cache: Any = None

    def read(self, tokens: Sequence[int]) -> int:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        return self._best(tokens)

    def step(self, token: int) -> int:
        return self._best([token])

    def _best(self, tokens: Sequence[int]) -> int:
        with self.torch.inference_mode():
            ids = self.torch.tensor([tokens])
            found = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            return int(found.logits[0, -1].argmax())


KINDS: dict[str, type[Generator]] = {
    "planish": Planish, "llama.cpp": LlamaCpp, "genai": Genai, "openvino": OpenVino, "transformers": Transformers,
}  # fmt: skip


def resident(kind: str, path: Path) -> int:
    """The bytes that a fresh process holds after it has loaded a model, read a prompt, and said a little."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.generators", kind, str(path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    return int(done.stdout.split()[-1])


def main() -> None:
    """Load, read, say, and print what the process holds."""
    generator = KINDS[sys.argv[1]](Path(sys.argv[2]))
    generator.say(generator.read(range(1000, 1000 + PROMPT)), MORE)
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:")))


if __name__ == "__main__":
    main()
