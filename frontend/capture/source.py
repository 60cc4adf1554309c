"""Capture of a model of any kind: a module, an exported program, an ONNX model, or a path to one of several formats."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import ArtifactError, CaptureError, PlanishError, UsageError
from planish.frontend.capture.base import Captured
from planish.ir.node import Program
from planish.ir.weights import Weights

if TYPE_CHECKING:
    import torch

PICKLES = (".pt", ".pth", ".bin", ".pt2", ".pkl", ".pickle", ".ckpt")
"""Files that can run code when they are opened."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip


def capture(
    model: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None, allow_pickle: bool = False,
    allow_fixed: bool = False, generate: bool = False,
) -> Captured:  # fmt: skip
    """A model as a program with its weights.

    ``model`` is an ``nn.Module``, an ``ExportedProgram``, an ONNX ``ModelProto``, or a path: ``.onnx``, ``.gguf``, a
    Hugging Face folder, or a program file ``NAME.ir.py`` with its weights in ``NAME.safetensors`` beside it. Files
    that can run code when they are opened are refused (``ArtifactError`` PL630) unless ``allow_pickle``.
    ``example_inputs`` are needed for modules, except for models of transformers whose inputs are known.
    ``dynamic_shapes`` names axes of inputs; for ONNX it maps names of dimensions to ranges. ``generate`` says that
    texts are continued token by token: mixtures of experts are captured such that tokens do not meet in them.
    """
    if isinstance(model, (str, os.PathLike)):
        return _capture_path(Path(model), example_inputs, dynamic_shapes, allow_pickle, allow_fixed, generate)
    if _is_onnx(model):
        return _capture_onnx(model, example_inputs, dynamic_shapes)
    if isinstance(model, Program):
        raise UsageError(
            "PL820", "a program alone has no weights", hint="write it to NAME.ir.py, its weights beside it"
        )
    return _capture_torch(model, example_inputs, dynamic_shapes, allow_fixed, generate, digest=None)


def _is_onnx(model: Any) -> bool:
    return type(model).__name__ == "ModelProto" and type(model).__module__.startswith("onnx")


def _capture_path(
    path: Path, examples: Any, dynamic: Any, allow_pickle: bool, allow_fixed: bool, generate: bool
) -> Captured:
    if not path.exists():
        raise CaptureError("PL120", "there is no such file or folder", where=str(path))
    suffix = path.suffix.lower()
    if suffix in PICKLES and path.is_file():
        return _capture_pickle(path, examples, dynamic, allow_pickle, allow_fixed, generate)
    if path.is_dir():
        from planish.frontend.capture.huggingface import load_folder, tokenizer_folder

        loaded = load_folder(path, allow_pickle=allow_pickle)
        return replace(
            _capture_torch(loaded, examples, dynamic, allow_fixed, generate, digest=folder_digest(path)),
            tokenizer=tokenizer_folder(path),
        )
    if suffix == ".gguf":
        from planish.frontend.capture.gguf import load_gguf

        loaded = load_gguf(path)
        captured = _capture_torch(loaded, examples, dynamic, allow_fixed, generate, digest=file_digest(path))
        return replace(captured, tokenizer=path)
    if suffix == ".onnx":
        return _capture_onnx(path, examples, dynamic)
    if path.name.endswith(".ir.py"):
        return read_program(path)
    raise CaptureError(
        "PL128", f"files of the kind {suffix or path.name!r} are not read", where=str(path),
        hint="known: .onnx, .gguf, .ir.py, .planish and Hugging Face folders",
    )  # fmt: skip


def read_program(path: Path, weights_file: Path | None = None) -> Captured:
    """A program file; its weights are in ``NAME.safetensors`` beside it, or in ``weights_file``, or absent."""
    from planish.ir.parser import parse

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CaptureError("PL120", f"cannot be read: {error}", where=str(path)) from None
    program = parse(text, str(path))
    beside = weights_file or path.with_name(path.name.removesuffix(".ir.py") + ".safetensors")
    weights = Weights()
    digest = hashlib.sha256(text.encode())
    if weights_file is not None or beside.exists():
        read_weights(weights, beside)
        digest.update(file_digest(beside).encode())
    return Captured(program, weights, (), digest.hexdigest())


def read_weights(weights: Weights, path: Path) -> None:
    """Add the tensors of a safetensors file; ``ArtifactError`` PL613 if it is damaged."""
    try:
        weights.add_safetensors(path)
    except PlanishError:
        raise
    except OSError as error:
        raise CaptureError("PL120", f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except Exception as error:  # safetensors raises an error of its own, which has no public name
        raise ArtifactError("PL613", f"is not a safetensors file: {error}", where=str(path)) from None


def _capture_onnx(model: Any, examples: Any, dynamic: Any) -> Captured:
    from planish.frontend.capture.onnx import capture_onnx

    if examples is not None:
        raise UsageError("PL822", "an ONNX model needs no example inputs", hint="leave out example_inputs")
    if dynamic is not None and not (isinstance(dynamic, dict) and all(isinstance(k, str) for k in dynamic)):
        raise UsageError("PL822", "for an ONNX model dynamic_shapes maps names of dimensions to ranges")
    captured = capture_onnx(model, dims=dynamic)
    if captured.digest:
        return captured
    data = (
        Path(model).read_bytes()
        if isinstance(model, (str, os.PathLike))
        else model.SerializeToString(deterministic=True)
    )
    return replace(captured, digest=hashlib.sha256(data).hexdigest())


def _capture_torch(
    model: Any, examples: Any, dynamic: Any, allow_fixed: bool, generate: bool, *, digest: str | None
) -> Captured:
    import torch
    from torch.export import ExportedProgram

    from planish.frontend.capture.huggingface import example_inputs, experts_by_token, is_transformers_model
    from planish.frontend.capture.torch import capture_torch

    if not isinstance(model, (torch.nn.Module, ExportedProgram)):
        raise UsageError(
            "PL820", f"{type(model).__name__} is no model",
            hint="a model is an nn.Module, an ExportedProgram, an ONNX ModelProto or a path",
        )  # fmt: skip
    if isinstance(model, ExportedProgram):
        if examples is not None or dynamic is not None:
            raise UsageError("PL822", "an exported program has its inputs and shapes", hint="leave them out")
        captured = capture_torch(model)
    else:
        if examples is None and is_transformers_model(model):
            known = example_inputs(model)
            examples, dynamic = known.inputs, known.dynamic if dynamic is None else dynamic
        by_token = experts_by_token(model) if generate else contextlib.nullcontext()
        with _without_cache(model), by_token:
            captured = capture_torch(model, examples, dynamic_shapes=dynamic, allow_fixed=allow_fixed)
    return replace(captured, digest=digest or tensors_digest(captured))


@contextlib.contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """A model of transformers without its key/value cache as an output; its configuration comes back afterwards."""
    config: Any = getattr(model, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    configs = [config] if text is config else [config, text]
    before = [(each, each.use_cache) for each in configs if getattr(each, "use_cache", None)]
    for each, _ in before:
        each.use_cache = False
    try:
        yield
    finally:
        for each, value in before:
            each.use_cache = value


def _capture_pickle(
    path: Path, examples: Any, dynamic: Any, allow_pickle: bool, allow_fixed: bool, generate: bool
) -> Captured:
    if not allow_pickle:
        raise ArtifactError(
            "PL630", f"a {path.suffix} file can run code when it is opened", where=str(path),
            hint="use safetensors, ONNX or GGUF, or allow pickles if you trust its source",
        )  # fmt: skip
    import torch

    try:
        if path.suffix.lower() == ".pt2":
            model: Any = torch.export.load(path)
        else:
            model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever the pickled code raises
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CaptureError("PL129", f"cannot be opened: {text[:300]}", where=str(path)) from error
    if not isinstance(model, (torch.nn.Module, torch.export.ExportedProgram)):
        raise CaptureError("PL129", f"holds a {type(model).__name__}, not a model", where=str(path))
    return _capture_torch(model, examples, dynamic, allow_fixed, generate, digest=file_digest(path))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the configuration and the weights of a Hugging Face folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".bin")):
        total.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def tensors_digest(captured: Captured) -> str:
    """SHA-256 over the text of a program and the bytes of its weights."""
    total = hashlib.sha256(str(captured.program).encode())
    for leaf in captured.program.constants():
        total.update(f"\0{leaf.name}\0".encode())
        total.update(_bytes(captured.weights.tensor(leaf.name)))
    return total.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def tokenizer_files(source: Path | None) -> dict[str, bytes]:
    """The files of a model's tokenizer by name: copied from its folder, or made from the vocabulary of a GGUF file."""
    if source is None:
        return {}
    if source.is_dir():
        return {n: (source / n).read_bytes() for n in TOKENIZER_FILES if (source / n).is_file()}
    import tempfile

    from planish.frontend.capture.gguf import write_gguf_tokenizer

    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        folder = write_gguf_tokenizer(source, Path(scratch))
        return {} if folder is None else {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
