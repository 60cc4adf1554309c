"""One step of generation with a fixed past, as a module: the shape of work that decoding is."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache


class _Past(DynamicCache):
    """A cache that gives the past with the new keys and values, and remembers the new ones."""

    def __init__(self, past: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self._past = past
        self.new: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a layer, past and new, ``[B, heads, past + 1, channels]``."""
        self.new += [key_states, value_states]
        keys, values = self._past[2 * layer_idx], self._past[2 * layer_idx + 1]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions in the past."""
        return int(self._past[0].shape[2])

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        """Keys that a query may see, and where they begin."""
        count = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + count, 0


class Step(torch.nn.Module):
    """A causal language model of transformers on one token: ``(ids, position, *past) -> (logits, *new)``.

    ``ids`` and ``position`` are ``i64[1, 1]``; ``past`` and ``new`` are keys and values of the layers in turn,
    ``[1, heads, past, channels]`` and ``[1, heads, 1, channels]``.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, position: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Logits of the next token, then the new keys and values."""
        cache = _Past(past)
        found = self.model(input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True)
        return (found.logits, *cache.new)


def example(model: Any, past: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Arguments of a step after ``past`` positions, keys and values made up."""
    config = model.config
    heads = config.num_key_value_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    make = torch.Generator().manual_seed(seed)
    ids = torch.full((1, 1), 7, dtype=torch.int64)
    position = torch.full((1, 1), past, dtype=torch.int64)
    state = [
        torch.randn(1, heads, past, channels, generator=make) for _ in range(2 * config.num_hidden_layers)
    ]
    return (ids, position, *state)
