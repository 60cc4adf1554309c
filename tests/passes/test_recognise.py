"""Recognition: norms, rotary embedding and attention in many spellings, masks by their meaning, groups."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planish.frontend.capture.torch import capture_torch
from planish.ir.node import Program
from planish.ir.rewrite import Log
from planish.ir.run import run
from planish.ir.verify import verify
from planish.passes.recognise.groups import find_groups
from planish.passes.recognise.recognise import Recognise
from tests.models import CASES
from tests.parity import captured, expected, ordered, relative_error

TOLERANCE = 1e-5


def recognised(name: str) -> tuple[Program, Log]:
    log = Log()
    found = captured(name)
    return verify(Recognise().apply(found.program, found.weights, log), found.weights), log


LANGUAGE = {
    # name: (attentions, causal, windows, norms, ropes)
    "llama": (2, 2, [None, None], 5, 4),
    "qwen3": (2, 2, [None, None], 9, 4),
    "mistral": (2, 2, [4, 4], 5, 4),
    "gemma2": (2, 2, [4, None], 9, 4),
    "gpt_neox": (2, 2, [None, None], 5, 4),
    "gpt2": (2, 2, [None, None], 5, 0),
    "bart": (6, 2, [None] * 6, 12, 0),
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_real_architectures(name):
    attentions, causal, windows, norms, ropes = LANGUAGE[name]
    program, log = recognised(name)
    found = [n for n in program.nodes if n.op == "planish.attention"]
    assert len(found) == attentions
    assert sum(n.args[4] for n in found) == causal
    assert [n.args[5] for n in found] == windows
    assert all(n.args[3] is None for n in found), "no mask is left"
    assert program.count("aten.rms_norm") + program.count("aten.layer_norm") == norms
    assert program.count("planish.rope") == ropes
    left = {
        "aten.scaled_dot_product_attention",
        "aten.bitwise_and",
        "aten.le",
        "aten.ge",
        "aten.where",
        "aten.cumsum",
    }
    assert not left & {n.op for n in program.nodes}
    if causal:
        assert any("causal" in str(note) for note in log.notes)
    case = CASES[name]
    for sizes in case.check_sizes:
        got = run(program, captured(name).weights, *ordered(program, case, sizes))
        assert relative_error(got, expected(case, sizes)) <= TOLERANCE


def test_grouped_heads_are_not_repeated():
    program, _ = recognised("llama")
    attention = next(n for n in program.nodes if n.op == "planish.attention")
    q, k, v = attention.args[:3]
    assert q.shape[1] == 2 * k.shape[1] == 2 * v.shape[1]
    assert program.count("aten.expand") == 0


def test_recognition_is_final():
    program, _ = recognised("llama")
    again = Recognise().apply(program, captured("llama").weights, Log())
    assert again.outputs == program.outputs


def test_an_input_mask_stays_beside_the_causal_one():
    program, _ = recognised("llama_padded")
    attention = next(n for n in program.nodes if n.op == "planish.attention")
    assert attention.args[4] is True and attention.args[3] is not None


def test_groups():
    program, _ = recognised("llama")
    names = [g.name for g in find_groups(program)]
    assert "model.layers.0.self_attn.{q_proj,k_proj,v_proj}" in names
    assert "model.layers.1.mlp.{gate_proj,up_proj}" in names
    assert sum(g.numel for g in find_groups(program)) == sum(
        int(c.tensor.numel) for c in program.constants() if c.rank == 2
    )


class Attention(nn.Module):
    """Attention written out by hand, in one of several spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.register_buffer("triangle", torch.ones(64, 64).tril().bool())

    def forward(self, q, k, v):
        length, width = q.shape[-2], q.shape[-1]
        places = torch.arange(length)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width)
        if self.spelling == "where":
            scores = torch.where(places[:, None] >= places[None, :], scores, -1e9)
        elif self.spelling == "masked_fill":
            scores = scores.masked_fill(
                torch.triu(torch.ones(length, length, dtype=torch.bool), 1), float("-inf")
            )
        elif self.spelling == "added":
            scores = scores + torch.full((length, length), float("-inf")).triu(1)
        elif self.spelling == "window":
            distance = places[:, None] - places[None, :]
            scores = scores.masked_fill((distance < 0) | (distance >= 5), -1e9)
        elif self.spelling == "softcap":
            scores = 30.0 * torch.tanh(scores / 30.0)
            scores = scores.masked_fill(places[:, None] < places[None, :], -torch.inf)
        elif self.spelling == "scaled query":
            return F.softmax((q * 0.25) @ k.mT, -1, dtype=torch.float32) @ v
        elif self.spelling == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize(
    ("spelling", "causal", "window", "softcap"),
    [
        ("full", False, None, None),
        ("scaled query", False, None, None),
        ("where", True, None, None),
        ("masked_fill", True, None, None),
        ("added", True, None, None),
        ("window", True, 5, None),
        ("softcap", True, None, 30.0),
        ("sdpa", True, None, None),
    ],
)
def test_spellings_of_attention(spelling, causal, window, softcap):
    model = Attention(spelling)
    inputs = tuple(torch.randn(2, 3, 7, 16) for _ in range(3))
    shapes = {n: {0: "B", 2: "T"} for n in "qkv"}
    found = capture_torch(model, inputs, dynamic_shapes=shapes)
    program = verify(Recognise().apply(found.program, found.weights, Log()), found.weights)
    attention = [n for n in program.nodes if n.op == "planish.attention"]
    assert len(attention) == 1, str(program)
    _, _, _, mask, is_causal, has_window, scale, cap = attention[0].args
    assert (mask, is_causal, has_window, cap) == (None, causal, window, softcap)
    assert scale == pytest.approx(0.25)
    other = tuple(torch.randn(1, 3, 12, 16) for _ in range(3))
    assert relative_error(run(program, found.weights, *other), [model(*other)]) <= TOLERANCE


class Rotary(nn.Module):
    """Rotary embedding in one of several spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.register_buffer("frequencies", 1.0 / 100.0 ** (torch.arange(0, 8) / 8))

    def forward(self, x):
        angles = torch.outer(torch.arange(x.shape[-2]).float(), self.frequencies)
        cos, sin = angles.cos(), angles.sin()
        if self.spelling == "half-split":
            turned = torch.cat((-x[..., 8:], x[..., :8]), -1)
            return x * torch.cat((cos, cos), -1) + turned * torch.cat((sin, sin), -1)
        if self.spelling == "halves":
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        if self.spelling == "interleaved":
            turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
            return x * cos.repeat_interleave(2, -1) + turned * sin.repeat_interleave(2, -1)
        if self.spelling == "pairs":
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        first, rest = x[..., :8], x[..., 8:]
        turned = torch.cat((-first[..., 4:], first[..., :4]), -1)
        wide = torch.cat((cos[:, :4], cos[:, :4]), -1), torch.cat((sin[:, :4], sin[:, :4]), -1)
        return torch.cat((first * wide[0] + turned * wide[1], rest), -1)


@pytest.mark.parametrize("spelling", ["half-split", "halves", "interleaved", "pairs", "partial"])
def test_spellings_of_rotary_embedding(spelling):
    model = Rotary(spelling)
    found = capture_torch(model, (torch.randn(2, 3, 7, 16),), dynamic_shapes={"x": {0: "B", 2: "T"}})
    program = verify(Recognise().apply(found.program, found.weights, Log()), found.weights)
    assert program.count("planish.rope") == 1, str(program)
    rope = next(n for n in program.nodes if n.op == "planish.rope")
    assert rope.args[3] is (spelling in ("interleaved", "pairs"))
    x = torch.randn(1, 3, 11, 16)
    assert relative_error(run(program, found.weights, x), [model(x)]) <= TOLERANCE


class Norm(nn.Module):
    """A norm in one of several spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.weight = nn.Parameter(torch.randn(16))
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x):
        if self.spelling == "rms pow rsqrt":
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        if self.spelling == "rms sqrt":
            return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.weight
        if self.spelling == "rms one plus":
            return x * torch.pow(x.square().mean(-1, keepdim=True) + 1e-6, -0.5) * (1.0 + self.weight)
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5) * self.weight + self.bias


@pytest.mark.parametrize("spelling", ["rms pow rsqrt", "rms sqrt", "rms one plus", "layer"])
def test_spellings_of_norms(spelling):
    model = Norm(spelling)
    found = capture_torch(model, (torch.randn(3, 16),), dynamic_shapes={"x": {0: "N"}})
    program = verify(Recognise().apply(found.program, found.weights, Log()), found.weights)
    op = "aten.layer_norm" if spelling == "layer" else "aten.rms_norm"
    operations = [n.op for n in program.nodes if not n.is_leaf]
    assert operations == [op]
    x = torch.randn(5, 16)
    assert relative_error(run(program, found.weights, x), [model(x)]) <= TOLERANCE


def test_a_mask_of_another_shape_of_window_is_kept():
    class TwoSided(nn.Module):
        def forward(self, q, k, v):
            places = torch.arange(q.shape[-2])
            near = (places[:, None] - places[None, :]).abs() <= 2
            return F.scaled_dot_product_attention(q, k, v, attn_mask=near)

    inputs = tuple(torch.randn(2, 3, 7, 16) for _ in range(3))
    found = capture_torch(TwoSided(), inputs, dynamic_shapes={n: {2: "T"} for n in "qkv"})
    program = Recognise().apply(found.program, found.weights, Log())
    attention = next(n for n in program.nodes if n.op == "planish.attention")
    assert attention.args[3] is not None and attention.args[4] is False
    other = tuple(torch.randn(2, 3, 9, 16) for _ in range(3))
    assert relative_error(run(program, found.weights, *other), [TwoSided()(*other)]) <= TOLERANCE


class Windowed(nn.Module):
    """Attention over a sliding window of the given width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, q, k, v):
        places = torch.arange(q.shape[-2])
        distance = places[:, None] - places[None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < self.width))


@pytest.mark.parametrize(
    ("width", "longest", "window", "kept"),
    [(40, 2**20, 40, False), (32768, 2**20, None, True), (32768, 4096, None, False)],
    ids=["found", "too large to evaluate", "never reached"],
)
def test_a_window_that_cannot_be_evaluated_is_kept(width, longest, window, kept):
    inputs = tuple(torch.randn(1, 2, 7, 8) for _ in range(3))
    shapes = {n: {2: ("T", 1, longest)} for n in "qkv"}
    found = capture_torch(Windowed(width), inputs, dynamic_shapes=shapes)
    program = Recognise().apply(found.program, found.weights, Log())
    attention = next(n for n in program.nodes if n.op == "planish.attention")
    assert (attention.args[3] is not None) is kept
    assert attention.args[4] is True and attention.args[5] == window


def test_columns_of_two_are_no_pairs():
    x = torch.randn(2, 4, 6, 16)

    class Other(nn.Module):
        def forward(self, x, cos, sin):
            a, b = x[..., ::2], x[..., 1::2]
            parts = [(a * cos - b * sin).view(2, 4, 6, 4, 2), (b * cos + a * sin).view(2, 4, 6, 4, 2)]
            return torch.cat(parts, -1).view(2, 4, 6, 16)

    tables = torch.randn(6, 8), torch.randn(6, 8)
    found = capture_torch(Other(), (x, *tables))
    program = Recognise().apply(found.program, found.weights, Log())
    assert program.count("planish.rope") == 0
    assert relative_error(run(program, found.weights, x, *tables), [Other()(x, *tables)]) <= TOLERANCE


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, -1e4])
def test_a_row_that_hides_every_key_stays_uniform(fill):
    class Hidden(nn.Module):
        def forward(self, q, k, v, allowed):
            scores = (q @ k.transpose(-1, -2)).masked_fill(~allowed, fill)
            return torch.softmax(scores, -1) @ v

    inputs = tuple(torch.randn(1, 2, 6, 8) for _ in range(3))
    allowed = torch.ones(6, 6, dtype=torch.bool).tril(-1)
    assert not allowed[0].any()
    found = capture_torch(Hidden(), (*inputs, allowed))
    program = verify(Recognise().apply(found.program, found.weights, Log()), found.weights)
    assert program.count("planish.attention") == (fill <= -1e9)
    got = run(program, found.weights, *inputs, allowed)
    assert relative_error(got, [Hidden()(*inputs, allowed)]) <= TOLERANCE
