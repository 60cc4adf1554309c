"""Capture of GGUF files: the architecture and the names of tensors come from transformers, the values from the file.

transformers alone takes many times as long: it reads the whole vocabulary twice, element by element, and makes the
table of tensor names anew for every module.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from planish.errors import CaptureError
from planish.frontend.capture.gguf_file import Header, dequantized, read_header, read_texts, write_outline

TOKENS = "tokenizer.ggml.tokens"


def load_gguf(path: Path) -> torch.nn.Module:
    """The model in a GGUF file, in fp32.

    Raises ``CaptureError``: PL120 (unreadable), PL121 (not GGUF), PL122 (damaged), PL123 (unknown architecture),
    PL124 (a tensor is missing, left over, of another shape, or stored in an unknown way).
    """
    header = read_header(path)
    _check_architecture(header)
    config = _config(header)
    return _fast(header, config) if _has_table(header) else _slow(header, config)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CaptureError(
            "PL125", "transformers is needed to read this model", hint="pip install 'planish[hf]'"
        ) from error
    return transformers


def _names() -> tuple[set[str], set[str]]:
    """Architectures by how transformers reads them: through tables of names, or through conversions of its own."""
    _transformers()
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as LISTED

    converted = set(GGUF_CONFIG_ARCHS)
    tables = {name for name in LISTED if name not in ("general", "tokenizer")}
    alias = {
        "qwen2_moe": "qwen2moe",
        "qwen3_moe": "qwen3moe",
        "gpt_oss": "gpt-oss",
        "minimax_m2": "minimax-m2",
    }
    return tables | {alias[n] for n in tables if n in alias} | {"t5encoder"}, converted


def _check_architecture(header: Header) -> None:
    tables, converted = _names()
    name = header.architecture
    if name not in tables | converted:
        known = ", ".join(sorted(tables | converted))
        raise CaptureError(
            "PL123", f"the architecture {name!r} is not known" if name else "the file names no architecture",
            where=str(header.path), hint=f"known architectures: {known}",
        )  # fmt: skip


def _has_table(header: Header) -> bool:
    return header.architecture not in _names()[1]


def _config(header: Header) -> Any:
    """The configuration, read by transformers from an outline of the file."""
    key = f"{header.architecture}.vocab_size"
    tokens = header.entries.get(TOKENS)
    extra = {key: tokens.count} if tokens is not None and key not in header.entries else {}
    transformers = _transformers()
    with tempfile.TemporaryDirectory(prefix="planish-") as folder, _quiet():
        write_outline(header, Path(folder) / "outline.gguf", extra)
        try:
            config = transformers.AutoConfig.from_pretrained(
                folder, gguf_file="outline.gguf", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers reports what it does not know by many kinds of errors
            raise CaptureError(
                "PL123", f"the architecture {header.architecture!r} is not understood: {_first(error)}",
                where=str(header.path),
            ) from error  # fmt: skip
    if extra and getattr(config, "vocab_size", None) != tokens.count:  # type: ignore[union-attr]
        config.vocab_size = extra[key]
    config.use_cache = False
    return config


def _fast(header: Header, config: Any) -> torch.nn.Module:
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    model = _empty(config, header)
    kind = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    processor = kind(config=config.to_dict())
    outer = _Names(
        model, [(n, _Names(c, [])) for n, c in model.named_children() if n == model.base_model_prefix]
    )
    mapping = get_gguf_hf_weights_map(outer, processor)
    parsed: dict[str, Any] = {"tensors": {}}
    state: dict[str, torch.Tensor] = {}
    for tensor, values in dequantized(header):
        result = processor.process(
            weights=values, name=tensor.name, tensor_key_mapping=mapping, parsed_parameters=parsed
        )
        if result.name in mapping:
            # torch keeps the memory of the array, so nothing is copied where the processor changed nothing
            state[mapping[result.name]] = torch.from_numpy(_contiguous(result.weights))
    return _filled(model, {**parsed["tensors"], **state}, header)


class _Names:
    """What the table of names is made from: parameter names of a module and of the base model inside it.

    Deeper modules would be asked too, a table for each of them, and add nothing.
    """

    def __init__(self, module: Any, children: list[tuple[str, Any]]) -> None:
        self.config = SimpleNamespace(
            model_type=module.config.model_type, num_hidden_layers=module.config.num_hidden_layers
        )
        self._module, self._children = module, children

    def state_dict(self) -> Mapping[str, Any]:
        """Parameters and buffers by name."""
        return self._module.state_dict()

    def named_children(self) -> list[tuple[str, Any]]:
        """The base model, where there is one."""
        return self._children


def _contiguous(values: Any) -> Any:
    return values if values.flags.c_contiguous and values.flags.writeable else values.copy()


def _empty(config: Any, header: Header) -> Any:
    """The model without memory for its parameters."""
    transformers = _transformers()
    with torch.device("meta"), _quiet():
        for auto in (
            transformers.AutoModelForCausalLM,
            transformers.AutoModelForSeq2SeqLM,
            transformers.AutoModel,
        ):
            if type(config) in auto._model_mapping:
                return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    raise CaptureError(
        "PL123", f"transformers has no model for {header.architecture!r}", where=str(header.path)
    )


def _filled(model: Any, state: dict[str, torch.Tensor], header: Header) -> torch.nn.Module:
    """The model with its parameters; buffers that are computed, such as rotary frequencies, are made by it."""
    where = str(header.path)
    wanted = dict(model.named_parameters())
    for name, value in state.items():
        have = model.state_dict().get(name) if name not in wanted else wanted[name]
        if have is not None and have.shape != value.shape:
            raise CaptureError(
                "PL124",
                f"the tensor of {name} is {list(value.shape)}, the model needs {list(have.shape)}",
                where=where,
            )
    _, unused = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    absent = [n for n, p in model.named_parameters() if p.is_meta]
    if absent or unused:
        rows = [f"missing: {', '.join(absent[:5])}"] * bool(absent) + [
            f"left over: {', '.join(unused[:5])}"
        ] * bool(unused)
        raise CaptureError("PL124", f"the tensors do not fit the model; {'; '.join(rows)}", where=where)
    _make_buffers(model)
    return model.eval().requires_grad_(False)


def _make_buffers(model: Any) -> None:
    """Compute the buffers that are no part of the file, as ``from_pretrained`` does."""
    for module in model.modules():
        absent = {name: b for name, b in module.named_buffers(recurse=False) if b is not None and b.is_meta}
        for name, buffer in absent.items():
            kept = name not in module._non_persistent_buffers_set
            module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype), persistent=kept)
        if absent:
            with torch.no_grad():
                model._init_weights(module)


def _slow(header: Header, config: Any) -> torch.nn.Module:
    """The way of transformers, for architectures whose tensors it converts itself."""
    transformers = _transformers()
    with _quiet():
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(header.path.parent), config=config, gguf_file=header.path.name, dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True), local_files_only=True,
            )  # fmt: skip
        except Exception as error:
            raise CaptureError(
                "PL124", f"cannot be loaded: {_first(error)}", where=str(header.path)
            ) from error
    return model.eval().requires_grad_(False)


def _first(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers without warnings and progress bars."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def write_gguf_tokenizer(path: Path, folder: Path) -> Path | None:
    """Make ``tokenizer.json`` and its configuration from the vocabulary in a GGUF file; None where that fails."""
    header = read_header(path)
    if TOKENS not in header.entries:
        return None
    read_texts(header, TOKENS)  # damaged vocabularies are refused here
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    with _quiet():
        try:
            architecture, vocabulary, config = get_gguf_tokenizer(str(path))
            backend, more = convert_gguf_tokenizer(architecture, vocabulary)
        except Exception:  # a vocabulary of an unknown kind: the model still runs, without a tokenizer
            return None
        special = {k: v for k, v in {**config, **more}.items() if v is not None}
        PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(str(folder))
    return folder
