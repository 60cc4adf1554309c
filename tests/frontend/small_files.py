"""Small models and files for tests of the front end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, KEYS, INNER, VOCABULARY = 64, 2, 4, 2, 128, 96


class Mlp(nn.Module):
    """Two linear layers; gives a table of two results."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.down(self.drop(torch.nn.functional.gelu(self.up(x))))
        return {"y": y, "total": y.sum(-1)}


MLP_INPUT = torch.linspace(-2, 2, 3 * 64).reshape(3, 64)
MLP_SHAPES = {"x": {0: ("B", 1, 64)}}


def small_llama() -> Any:
    """A llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, vocab_size=VOCABULARY, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, attention_dropout=0.0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_gguf(path: Path, architecture: str = "llama", *, words: bool = True) -> Path:
    """A small llama as a GGUF file, its matrices in Q8_0, with a vocabulary of made-up words."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    rng = np.random.default_rng(0)
    writer = GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    if words:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(
            [chr(0x21 + i) if i < 94 else f"!{chr(0x21 + i - 94)}" for i in range(VOCABULARY)]
        )
        writer.add_token_types([1] * VOCABULARY)
        writer.add_token_merges(["! !", '! "'])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    head = WIDTH // HEADS
    shapes = {"token_embd": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_q": (WIDTH, WIDTH), f"blk.{i}.attn_k": (KEYS * head, WIDTH),
            f"blk.{i}.attn_v": (KEYS * head, WIDTH), f"blk.{i}.attn_output": (WIDTH, WIDTH),
            f"blk.{i}.ffn_gate": (INNER, WIDTH), f"blk.{i}.ffn_up": (INNER, WIDTH), f"blk.{i}.ffn_down": (WIDTH, INNER),
        }  # fmt: skip
    for name, shape in shapes.items():
        value = (rng.standard_normal(shape) / 8).astype(np.float32)
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", quantize(value, kind), raw_dtype=kind)
    for name in ["output_norm", *(f"blk.{i}.{n}" for i in range(LAYERS) for n in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
