"""Capture of Hugging Face folders: the model by transformers, its example inputs by the kind of model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from planish.errors import ArtifactError, CaptureError, PlanishError, UsageError
from planish.frontend.capture.gguf import _first, _quiet, _transformers

BATCH, LENGTH, SOURCE_LENGTH = 3, 37, 29
"""Sizes of example inputs: never 0, 1 or a bound of a range, and all different."""

UNBOUNDED = 2**31 - 1

EXPERTS = "set_experts_implementation"
"""How models of transformers are told what their mixtures of experts do."""


@dataclass(frozen=True)
class Examples:
    """Inputs to capture a model with, and which of their axes are dynamic."""

    inputs: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, Mapping[int, Any]]


def load_folder(folder: Path, *, allow_pickle: bool = False) -> torch.nn.Module:
    """The model in a Hugging Face folder, in fp32; nothing is fetched and no code from the folder is run.

    Raises ``CaptureError`` PL126 (no usable ``config.json``), PL127 (weights missing or not fitting) and
    ``ArtifactError`` PL630 for weights that only a pickle holds.
    """
    config_file = folder / "config.json"
    where = str(folder)
    try:
        table = json.loads(config_file.read_text())
    except OSError:
        raise CaptureError(
            "PL126",
            "the folder has no config.json",
            where=where,
            hint="name the folder of a Hugging Face model",
        ) from None
    except ValueError as error:
        raise CaptureError("PL126", f"config.json is not valid JSON: {error}", where=where) from None
    if not isinstance(table, dict):
        raise CaptureError("PL126", "config.json is not a JSON object", where=where)
    _check_weights(folder, allow_pickle)
    config = _config(folder)
    kind = _class(table, config, where)
    return _load(kind, folder, config, allow_pickle)


def _check_weights(folder: Path, allow_pickle: bool) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if not pickles:
        raise CaptureError("PL127", "the folder has no weights (*.safetensors)", where=str(folder))
    if not allow_pickle:
        raise ArtifactError(
            "PL630", f"the weights are a pickle ({pickles[0]}), which can run code when it is opened",
            where=str(folder), hint="convert them to safetensors, or allow pickles if you trust their source",
        )  # fmt: skip


def _config(folder: Path) -> Any:
    transformers = _transformers()
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # an unknown model type, a missing field, code that would have to be run
        raise CaptureError(
            "PL126", f"config.json is not understood: {_first(error)}", where=str(folder)
        ) from error
    config.use_cache = False
    return config


def _class(table: Mapping[str, Any], config: Any, where: str) -> Any:
    """The class that the configuration names, if transformers has it; else the model without a head."""
    transformers = _transformers()
    names = table.get("architectures") or []
    for name in names if isinstance(names, list) else []:
        found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if type(config) in transformers.AutoModel._model_mapping:
        return transformers.AutoModel
    raise CaptureError("PL126", f"transformers has no model of the type {config.model_type!r}", where=where)


def _load(kind: Any, folder: Path, config: Any, allow_pickle: bool) -> torch.nn.Module:
    where = str(folder)
    try:
        with _quiet():
            model, info = kind.from_pretrained(
                str(folder), config=config, dtype=torch.float32, local_files_only=True,
                use_safetensors=None if allow_pickle else True, trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
    except PlanishError:
        raise
    except Exception as error:  # damaged or unfitting weights, reported by many kinds of errors
        raise CaptureError("PL127", f"the weights cannot be loaded: {_first(error)}", where=where) from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise CaptureError("PL127", f"weights are missing: {', '.join(missing[:5])}", where=where)
    return model.eval().requires_grad_(False)


def is_transformers_model(model: Any) -> bool:
    """True for a model of transformers, whose example inputs are known."""
    import sys

    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


@contextlib.contextmanager
def experts_by_token(model: torch.nn.Module) -> Iterator[None]:
    """Mixtures of experts in a model multiply token by token; what they did before comes back afterwards.

    What they do without this is faster for many tokens, but sorts them by expert, so that tokens meet in an operation.
    """
    parts: list[Any] = [m for m in model.modules() if is_transformers_model(m) and hasattr(m, EXPERTS)]
    before = [(part.config, part.config._experts_implementation) for part in parts]
    try:
        for part in parts:
            getattr(part, EXPERTS)("batched_mm")
        yield
    finally:
        for config, value in before:
            config._experts_implementation = value


def example_inputs(model: Any) -> Examples:
    """Example inputs for a model of transformers, by its kind; UsageError PL821 where they are not known."""
    config = model.config
    main = model.main_input_name
    if main == "input_ids" and getattr(config, "is_encoder_decoder", False):
        return _sequence_to_sequence(config)
    if main == "input_ids":
        length = _length(config)
        ids = _ids(config, (BATCH, min(LENGTH, length[2] - 1)))
        axes = {0: "B", 1: length}
        if _is_generator(model):
            return Examples({"input_ids": ids}, {"input_ids": axes})
        mask = torch.ones_like(ids)
        return Examples(
            {"input_ids": ids, "attention_mask": mask}, {"input_ids": axes, "attention_mask": axes}
        )
    if main == "pixel_values":
        return Examples({"pixel_values": _image(config)}, {"pixel_values": {0: "B"}})
    raise UsageError(
        "PL821",
        f"no example inputs are known for {type(model).__name__}, which reads {main}",
        hint="pass example_inputs",
    )


def _sequence_to_sequence(config: Any) -> Examples:
    limit = _length(config)[2]
    source = _ids(config, (BATCH, min(SOURCE_LENGTH, limit - 1)))
    target = _ids(config, (BATCH, min(LENGTH, limit - 1)))
    return Examples(
        {"input_ids": source, "decoder_input_ids": target},
        {"input_ids": {0: "B", 1: ("S", 1, limit)}, "decoder_input_ids": {0: "B", 1: ("T", 1, limit)}},
    )


def _is_generator(model: Any) -> bool:
    name = type(model).__name__
    return name.endswith(("ForCausalLM", "LMHeadModel")) or bool(getattr(model.config, "is_decoder", False))


def _length(config: Any) -> tuple[str, int, int]:
    """The dimension of positions: models with a table of positions end where it ends."""
    text = config.get_text_config()
    high = next(
        (
            v
            for n in ("max_position_embeddings", "n_positions")
            if isinstance(v := getattr(text, n, None), int)
        ),
        0,
    )
    if (
        high > 4
        and getattr(text, "pad_token_id", None) == 1
        and text.model_type.replace("-", "_") in _SHIFTED
    ):
        high -= 2  # their positions begin behind that of the padding
    return ("T", 1, high if high > 2 else UNBOUNDED)


_SHIFTED = frozenset(
    {"roberta", "xlm_roberta", "camembert", "roberta_prelayernorm", "mpnet", "longformer", "esm"}
)


def _ids(config: Any, shape: tuple[int, int]) -> torch.Tensor:
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 0) or 128)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(3, vocabulary - 1), vocabulary, shape, generator=generator)


def _image(config: Any) -> torch.Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    channels = int(getattr(vision, "num_channels", 3))
    return torch.randn(BATCH, channels, int(height), int(width), generator=torch.Generator().manual_seed(0))


def tokenizer_folder(folder: Path) -> Path | None:
    """The folder itself if a fast tokenizer lies in it."""
    return folder if (folder / "tokenizer.json").is_file() else None
