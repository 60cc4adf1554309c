"""Tiny random models: the architectures that planish captures, each with inputs at any size.

A case builds its model on demand (seeded, in eval mode, every parameter away from zeros and ones) and makes inputs
for named sizes. `dynamic` says which dimensions follow which name; all others are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.small_models import (
    DecomposedLinear,
    FrameDecoder,
    HashGridField,
    SequenceTagger,
    UNet,
)

Sizes = Mapping[str, int]
Inputs = dict[str, Tensor]
VOCABULARY = 97


@dataclass(frozen=True)
class ModelCase:
    """One architecture: how to build it, its inputs at given sizes, and the sizes to capture and to check with."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Sizes], Inputs]
    dynamic: Mapping[str, Mapping[int, str]]
    capture_size: Sizes
    check_sizes: tuple[Sizes, Sizes]
    kind: str = field(default="language")

    @property
    def chooses(self) -> bool:
        """True if the model sends each token to the experts that score best."""
        return self.name.startswith(("mixtral", "qwen3_moe"))


CASES: dict[str, ModelCase] = {}


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with seeded noise on every parameter and running statistic."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif name.endswith("running_mean") or isinstance(value, nn.Parameter):
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return model.eval().requires_grad_(False)


def built(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A builder that is seeded and leaves torch's own random state alone."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return settle(make())

    return build


def seeded(sizes: Sizes) -> torch.Generator:
    """A generator that depends on the sizes alone."""
    return torch.Generator().manual_seed(sum(v * 31**i for i, v in enumerate(sizes.values())))


def tokens(sizes: Sizes, length: str = "T", low: int = 3) -> Tensor:
    """Token numbers, ``i64[B, T]``, none of them a special token."""
    shape = (sizes["B"], sizes[length])
    return torch.randint(low, VOCABULARY, shape, generator=seeded(sizes))


def padding(sizes: Sizes, length: str = "T") -> Tensor:
    """An attention mask whose rows end in 0, 1, 2, ... places of padding."""
    last = sizes[length] - torch.arange(sizes["B"]) % (sizes[length] - 2)
    return (torch.arange(sizes[length]) < last[:, None]).long()


def normal(sizes: Sizes, *shape: int) -> Tensor:
    """Normal floats."""
    return torch.randn(shape, generator=seeded(sizes))


def add(
    name: str,
    make: Callable[[], nn.Module],
    inputs: Callable[[Sizes], Inputs],
    dynamic: Mapping[str, Mapping[int, str]],
    capture: Sizes,
    *check: Sizes,
    kind: str = "language",
) -> None:
    """Add a case to the table."""
    CASES[name] = ModelCase(name, built(make), inputs, dynamic, capture, (check[0], check[1]), kind)


def hugging_face(
    architecture: str, configuration: str, experts: str | None = None, **options: Any
) -> Callable[[], nn.Module]:
    """A builder of a transformers model from the names of its class and configuration class.

    ``experts`` chooses how a mixture of experts multiplies: ``batched_mm`` is plain arithmetic, the default sorts the
    tokens by expert and calls a custom operator.
    """

    def make() -> nn.Module:
        import transformers

        part, _, inner = architecture.partition(".")
        config = getattr(transformers, configuration)(**options)
        model: nn.Module = getattr(transformers, part)(config)
        if experts is not None:
            model.set_experts_implementation(experts)  # type: ignore[operator]
        return model.get_submodule(inner) if inner else model

    return make


DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = dict(DECODER, num_key_value_heads=2)
BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TEXT = ({"B": 3, "T": 9}, {"B": 2, "T": 13}, {"B": 5, "T": 17})
TWO_TEXTS = ({"B": 3, "T": 9, "U": 7}, {"B": 2, "T": 13, "U": 5}, {"B": 5, "T": 11, "U": 17})
BATCH = ({"B": 3}, {"B": 2}, {"B": 5})


def decoder(name: str, architecture: str, configuration: str, mask: bool = False, **options: Any) -> None:
    """Add a causal language model; with a mask, its batch is padded."""
    dynamic = {"input_ids": {0: "B", 1: "T"}} | ({"attention_mask": {0: "B", 1: "T"}} if mask else {})

    def inputs(sizes: Sizes) -> Inputs:
        return {"input_ids": tokens(sizes)} | ({"attention_mask": padding(sizes)} if mask else {})

    add(name, hugging_face(architecture, configuration, **options), inputs, dynamic, *TEXT)


def encoder(name: str, architecture: str, configuration: str, **options: Any) -> None:
    """Add a bidirectional language model with a padded batch."""
    decoder(name, architecture, configuration, mask=True, **options)


def vision(name: str, architecture: str, configuration: str, side: int, **options: Any) -> None:
    """Add a vision model over square images of a fixed side."""
    add(
        name, hugging_face(architecture, configuration, **options),
        lambda s: {"pixel_values": normal(s, s["B"], 3, side, side)}, {"pixel_values": {0: "B"}}, *BATCH, kind="vision",
    )  # fmt: skip


def any_image(name: str, make: Callable[[], nn.Module], argument: str) -> None:
    """Add a vision model over images of any size."""
    add(
        name, make, lambda s: {argument: normal(s, s["B"], 3, s["H"], s["W"])}, {argument: {0: "B", 2: "H", 3: "W"}},
        {"B": 3, "H": 48, "W": 40}, {"B": 2, "H": 32, "W": 64}, {"B": 5, "H": 80, "W": 56}, kind="vision",
    )  # fmt: skip


decoder("llama", "LlamaForCausalLM", "LlamaConfig", **GROUPED)
decoder("llama_padded", "LlamaForCausalLM", "LlamaConfig", mask=True, **GROUPED)
decoder("qwen2", "Qwen2ForCausalLM", "Qwen2Config", **GROUPED)
decoder("qwen3", "Qwen3ForCausalLM", "Qwen3Config", **GROUPED, head_dim=16)
decoder("mistral", "MistralForCausalLM", "MistralConfig", **GROUPED, sliding_window=4)
LAYERS = ["sliding_attention", "full_attention"]
decoder(
    "gemma2", "Gemma2ForCausalLM", "Gemma2Config", **GROUPED, head_dim=16, sliding_window=4, layer_types=LAYERS,
    query_pre_attn_scalar=16,
)  # fmt: skip
decoder(
    "gemma3_text", "Gemma3ForCausalLM", "Gemma3TextConfig", **GROUPED, head_dim=16, sliding_window=4,
    layer_types=LAYERS, query_pre_attn_scalar=16,
)  # fmt: skip
decoder("phi3", "Phi3ForCausalLM", "Phi3Config", **GROUPED)
decoder(
    "gpt2", "GPT2LMHeadModel", "GPT2Config", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
    use_cache=False, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
decoder("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", **DECODER)
decoder(
    "opt", "OPTForCausalLM", "OPTConfig", vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32, use_cache=False, pad_token_id=1,
)  # fmt: skip
FALCON = {k: v for k, v in DECODER.items() if k != "intermediate_size"}
decoder("falcon", "FalconForCausalLM", "FalconConfig", **FALCON, alibi=False, bias=True)
decoder(
    "mixtral", "MixtralForCausalLM", "MixtralConfig", **GROUPED, num_local_experts=4, num_experts_per_tok=2,
    experts="batched_mm",
)  # fmt: skip
QWEN3_MOE = dict(GROUPED, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
decoder("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", **QWEN3_MOE, experts="batched_mm")
decoder("qwen3_moe_grouped", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", **QWEN3_MOE)
encoder("bert", "BertModel", "BertConfig", **BERT)
encoder("roberta", "RobertaForMaskedLM", "RobertaConfig", **BERT, pad_token_id=1)
encoder(
    "distilbert", "DistilBertModel", "DistilBertConfig", vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2,
    n_heads=4, max_position_embeddings=64,
)  # fmt: skip
encoder("electra", "ElectraForPreTraining", "ElectraConfig", **BERT, embedding_size=16)
encoder(
    "modernbert", "ModernBertForMaskedLM", "ModernBertConfig", **BERT, local_attention=8,
    layer_types=LAYERS, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
)  # fmt: skip

T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "use_cache": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
TWO_INPUTS = {"input_ids": {0: "B", 1: "T"}, "decoder_input_ids": {0: "B", 1: "U"}}


def two_texts(sizes: Sizes) -> Inputs:
    """Tokens of a source and of a target."""
    return {"input_ids": tokens(sizes), "decoder_input_ids": tokens(sizes, "U")}


encoder("t5_encoder", "T5EncoderModel", "T5Config", **T5)
add("t5", hugging_face("T5ForConditionalGeneration", "T5Config", **T5), two_texts, TWO_INPUTS, *TWO_TEXTS)
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "use_cache": False,
}
add(
    "bart",
    hugging_face("BartForConditionalGeneration", "BartConfig", **BART),
    two_texts,
    TWO_INPUTS,
    *TWO_TEXTS,
)

vision(
    "vit", "ViTForImageClassification", "ViTConfig", 16, image_size=16, patch_size=4, hidden_size=32,
    intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
)  # fmt: skip
vision(
    "swin", "SwinForImageClassification", "SwinConfig", 32, image_size=32, patch_size=2, embed_dim=16, depths=[2, 2],
    num_heads=[2, 4], window_size=4,
)  # fmt: skip
any_image(
    "convnext",
    hugging_face(
        "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16], depths=[1, 2], num_stages=2
    ),
    "pixel_values",
)
any_image(
    "resnet",
    hugging_face(
        "ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16, 24],
        depths=[1, 1, 2], layer_type="bottleneck",
    ),
    "pixel_values",
)  # fmt: skip
vision(
    "mobilenet_v2", "MobileNetV2ForImageClassification", "MobileNetV2Config", 32, image_size=32,
    depth_multiplier=0.25, output_stride=32,
)  # fmt: skip
add(
    "whisper_encoder",
    hugging_face(
        "WhisperModel.encoder", "WhisperConfig", vocab_size=VOCABULARY, num_mel_bins=16, d_model=32, encoder_layers=2,
        encoder_attention_heads=4, encoder_ffn_dim=48, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=48,
        max_source_positions=12, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    ),
    lambda s: {"input_features": normal(s, s["B"], 16, 24)}, {"input_features": {0: "B"}}, *BATCH, kind="audio",
)  # fmt: skip
add(
    "wav2vec2",
    hugging_face(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 2),
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    ),
    lambda s: {"input_values": normal(s, s["B"], s["L"])}, {"input_values": {0: "B", 1: "L"}},
    {"B": 3, "L": 407}, {"B": 2, "L": 501}, {"B": 5, "L": 333}, kind="audio",
)  # fmt: skip


def clip_inputs(sizes: Sizes) -> Inputs:
    """Texts and images."""
    ids = tokens(sizes).clamp(max=VOCABULARY - 2)
    ids[:, -1] = VOCABULARY - 1
    return {
        "input_ids": ids,
        "pixel_values": normal(sizes, sizes["I"], 3, 16, 16),
        "attention_mask": torch.ones_like(ids),
    }


TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 24,
}
add(
    "clip",
    hugging_face(
        "CLIPModel", "CLIPConfig", projection_dim=24,
        text_config=dict(
            TOWER, vocab_size=VOCABULARY, max_position_embeddings=32, bos_token_id=1, eos_token_id=VOCABULARY - 1
        ),
        vision_config=dict(TOWER, image_size=16, patch_size=4),
    ),
    clip_inputs,
    {"input_ids": {0: "B", 1: "T"}, "pixel_values": {0: "I"}, "attention_mask": {0: "B", 1: "T"}},
    {"B": 3, "T": 9, "I": 5}, {"B": 2, "T": 13, "I": 4}, {"B": 5, "T": 11, "I": 3}, kind="multimodal",
)  # fmt: skip

add(
    "frame_decoder", FrameDecoder, lambda s: {"frame": torch.arange(s["B"]) * 3 + 1}, {"frame": {0: "B"}}, *BATCH,
    kind="field",
)  # fmt: skip
add(
    "hash_grid", HashGridField, lambda s: {"points": torch.rand(s["N"], 3, generator=seeded(s))}, {"points": {0: "N"}},
    {"N": 11}, {"N": 7}, {"N": 29}, kind="field",
)  # fmt: skip
add(
    "decomposed_linear", DecomposedLinear, lambda s: {"series": normal(s, s["B"], 24, s["C"])},
    {"series": {0: "B", 2: "C"}}, {"B": 3, "C": 5}, {"B": 2, "C": 7}, {"B": 5, "C": 4}, kind="forecast",
)  # fmt: skip
add("lstm_tagger", SequenceTagger, lambda s: {"words": tokens(s)}, {"words": {0: "B", 1: "T"}}, *TEXT)
any_image("unet", UNet, "image")
