"""Other runtimes on the same models, each as one call; those that are not installed are left out and named."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

THREADS = len(os.sched_getaffinity(0))
Feeds = Mapping[str, np.ndarray[Any, Any]]


def installed(package: str) -> bool:
    """True if a package can be imported."""
    return find_spec(package) is not None


def eager(model: Any, inputs: Sequence[Any], compile: bool = False) -> Callable[[], object]:
    """The module in eager torch, or through ``torch.compile``."""
    import torch

    torch.set_num_threads(THREADS)
    run = torch.compile(model) if compile else model

    def call() -> object:
        with torch.inference_mode():
            return run(*inputs)

    return call


def onnxruntime(path: Path, feeds: Feeds) -> Callable[[], object]:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {v.name for v in session.get_inputs()}
    given = {n: a for n, a in feeds.items() if n in known}
    return lambda: session.run(None, given)


def openvino(path: Path, feeds: Feeds, precision: str = "f32") -> Callable[[], object]:
    """An ONNX file in OpenVINO; ``precision`` is what it may compute in (its default is bf16 where there is one)."""
    from openvino import Core

    core = Core()
    config = {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1,
    }  # fmt: skip
    model = core.read_model(str(path))
    model.reshape({n: list(a.shape) for n, a in feeds.items()})
    request = core.compile_model(model, "CPU", config).create_infer_request()
    return lambda: request.infer(dict(feeds))


def openvino_int4(
    module: Any, inputs: Sequence[Any], folder: Path, group: int = 64
) -> tuple[Callable[[], object], int]:
    """A module in OpenVINO with weights in 4 bits by NNCF (the head in 8), and the bytes of them.

    What is computed in between is left to OpenVINO, which takes bf16 where the processor has it.
    """
    import logging

    import nncf
    import torch
    from openvino import convert_model, save_model

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with torch.no_grad():
        model = convert_model(torch.export.export(module, tuple(inputs), strict=False))
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=group)
    path = folder / "openvino.xml"
    save_model(model, path)
    config = {"INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1}
    from openvino import Core

    request = Core().compile_model(path, "CPU", config).create_infer_request()
    given = [t.numpy() for t in inputs]
    return (lambda: request.infer(given)), path.with_suffix(".bin").stat().st_size


class Llama:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, context: int = 1024) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(
            str(path), n_ctx=context, n_threads=THREADS, n_threads_batch=THREADS, n_batch=512, n_ubatch=512,
            verbose=False,
        )  # fmt: skip

    def decoding(self, past: int) -> Callable[[], object]:
        """One token after ``past`` others, again and again at the same place."""
        self.llama.reset()
        self.llama._ctx.kv_cache_clear()
        self.llama.eval(list(range(100, 100 + past)))

        def call() -> object:
            self.llama._ctx.kv_cache_seq_rm(-1, past, -1)
            self.llama.n_tokens = past
            return self.llama.eval([500])

        return call

    def prefill(self, length: int) -> Callable[[], object]:
        """A prompt of ``length`` tokens."""
        tokens = list(range(100, 100 + length))

        def call() -> object:
            self.llama.reset()
            self.llama._ctx.kv_cache_clear()
            return self.llama.eval(tokens)

        return call


def requantized(source: Path, kind: str, folder: Path) -> Path:
    """A GGUF file in another type of llama.cpp, such as ``Q4_0``."""
    import llama_cpp

    made = folder / f"{kind}.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.allow_requantize, options.nthread = True, THREADS
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(made).encode(), ctypes.byref(options))
    if code:
        raise RuntimeError(f"llama.cpp cannot make {kind}: {code}")
    return made


def hugging_face(source: Path, folder: Path) -> Path:
    """The model of a GGUF file as a Hugging Face folder, in fp32, with its tokenizer."""
    from planish.frontend.capture.gguf import load_gguf, write_gguf_tokenizer

    model: Any = load_gguf(source)
    model.config.use_cache = True
    model.save_pretrained(folder)
    write_gguf_tokenizer(source, folder)
    return folder


def genai_int4(model: Path, folder: Path) -> Path:
    """A Hugging Face folder as a model of onnxruntime-genai in 4 bits, made by its own builder for fast processors."""
    subprocess.run(
        [
            sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(model), "-o", str(folder), "-p", "int4",
            "-e", "cpu", "-c", str(folder / "cache"), "--extra_options", "int4_accuracy_level=4", "int4_block_size=32",
        ],
        check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return folder
