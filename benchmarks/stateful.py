"""A causal language model of transformers as an OpenVINO model whose caches are states, with weights in 4 bits.

The form is the one that OpenVINO's plugin for processors fuses: past keys and values go through a choice of beams, and
begin empty. (`optimum-intel` makes the same, for models that it has a configuration of.)
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

GROUP = 64


class _Past(DynamicCache):
    """A cache that puts new keys and values behind those given, and remembers the whole."""

    def __init__(self, past: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self._past = past
        self.whole: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a layer, past and new, ``[B, heads, past + new, channels]``."""
        keys = torch.cat([self._past[2 * layer_idx], key_states], 2)
        values = torch.cat([self._past[2 * layer_idx + 1], value_states], 2)
        self.whole += [keys, values]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions in the past; a number that is traced."""
        return self._past[0].shape[2]


class _Model(torch.nn.Module):
    """``(ids, positions, beams, *past) -> (logits of the last token, *past and new)``."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, beams: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """One call of the model on new tokens."""
        cache = _Past(tuple(p.index_select(0, beams) for p in past))
        keys = torch.arange(past[0].shape[2] + ids.shape[1])
        mask = (keys[None, :] <= positions[0][:, None])[None, None]
        found = self.model(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return (found.logits, *cache.whole)


def openvino_stateful(model: Any, folder: Path) -> Path:
    """Write the model with weights in 4 bits by NNCF (the head in 8); gives the path of its ``.xml``."""
    import nncf
    from openvino import PartialShape, convert_model, save_model
    from openvino._offline_transformations import apply_make_stateful_transformation

    logging.getLogger("nncf").setLevel(logging.ERROR)
    config = model.config
    heads = config.num_key_value_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    past = [torch.zeros(1, heads, 9, channels) for _ in range(2 * config.num_hidden_layers)]
    inputs = (torch.full((1, 5), 7), torch.arange(9, 14)[None], torch.zeros(1, dtype=torch.int32), *past)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = convert_model(_Model(model), example_input=inputs)
    pairs = {}
    shapes = {made.inputs[0]: PartialShape([1, -1]), made.inputs[1]: PartialShape([1, -1])}
    shapes[made.inputs[2]] = PartialShape([1])
    for index, (before, after) in enumerate(zip(made.inputs[3:], made.outputs[1:], strict=True)):
        before.get_tensor().set_names({f"past.{index}"})
        after.get_tensor().set_names({f"present.{index}"})
        pairs[f"past.{index}"] = f"present.{index}"
        shapes[before] = PartialShape([1, heads, -1, channels])
    made.reshape(shapes)
    apply_make_stateful_transformation(made, pairs)
    _begin_empty(made, heads, channels)
    made = nncf.compress_weights(made, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=GROUP)
    path = folder / "stateful.xml"
    save_model(made, path)
    return path


def _begin_empty(made: Any, heads: int, channels: int) -> None:
    """States begin as keys and values of no token."""
    from openvino import opset13 as ops

    sizes = ops.constant(np.array([heads, 0, channels], np.int64))
    shape = ops.concat([ops.shape_of(made.inputs[2], output_type="i64"), sizes], 0)
    for node in made.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), shape)])
    made.validate_nodes_and_infer_types()
