"""Dynamic sizes that torch.export alone would fix or leave unnamed: recurrence, multiples, broadcast batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.errors import CaptureError
from planish.frontend.capture.recurrent import KINDS, keep_recurrent
from planish.frontend.capture.torch import capture_torch
from planish.ir.run import run
from planish.ir.types import format_size

TOLERANCE = 1e-6
DYNAMIC = {"x": {0: "B", 1: "T"}}


def agree(model: nn.Module, example: Tensor, *others: Tensor, dynamic=DYNAMIC):
    captured = capture_torch(model, (example,), dynamic_shapes=dynamic)
    for x in (example, *others):
        with torch.no_grad():
            want = model(x)
        have = run(captured.program, captured.weights, x)
        for a, b in zip(have, want if isinstance(want, tuple) else (want,), strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= TOLERANCE * max(1, float(b.abs().max()))
    return captured.program


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, last = self.layer(x)
        return out, last[0] if isinstance(last, tuple) else last


LAYERS = {
    "lstm": nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True),
    "lstm without bias": nn.LSTM(5, 4, bias=False, batch_first=True),
    "gru": nn.GRU(5, 4, 2, batch_first=True),
    "tanh": nn.RNN(5, 4, batch_first=True),
    "relu": nn.RNN(5, 4, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers_stay_whole(name):
    model = Recurrent(LAYERS[name]).eval()
    program = agree(model, torch.randn(3, 7, 5), torch.randn(2, 11, 5), torch.randn(4, 1, 5))
    kinds = [n.op.removeprefix("aten.") for n in program.nodes if n.op.removeprefix("aten.") in KINDS]
    assert len(kinds) == 1


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_keeping_recurrent_layers_ends_with_the_context():
    model, x = nn.LSTM(3, 2).eval(), torch.randn(4, 2, 3)
    before = model(x)[0]
    with keep_recurrent():
        pass
    assert torch.equal(model(x)[0], before)
    exported = torch.export.export(model, (x,), strict=False)
    assert torch.allclose(exported.module()(x)[0], before)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 4), scale_factor=4.0) + x


def test_a_size_that_must_be_a_multiple_becomes_one():
    axes = {"x": {0: "B", 2: "H", 3: "W"}}
    program = agree(Halves(), torch.randn(3, 2, 12, 20), torch.randn(2, 2, 8, 36), dynamic=axes)
    assert [format_size(s) for s in program.inputs[0].shape] == ["B", "2", "4*H_part", "4*W_part"]


class Choice(nn.Module):
    """Two ways to go on, chosen by a size."""

    def __init__(self, choose) -> None:
        super().__init__()
        self.choose = choose

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.choose(x.shape[1], y.shape[1]):
            return x.sum(1) + y.sum(1)
        return x.sum(1) - y.sum(1)


PAIR = {"x": {0: "B", 1: "T"}, "y": {0: "B", 1: "U"}}
CHOICES = {
    "T % 2 != 0": lambda t, u: t % 2 == 0,
    "T > U": lambda t, u: t > u,
    "T != 77": lambda t, u: t == 77,
}


@pytest.mark.parametrize("condition", CHOICES)
def test_a_choice_by_a_size_is_named_with_its_line(condition):
    inputs = (torch.randn(3, 7), torch.randn(3, 5))
    with pytest.raises(CaptureError, match="PL104") as refused:
        capture_torch(Choice(CHOICES[condition]), inputs, dynamic_shapes=PAIR)
    assert f"unless {condition};" in str(refused.value)
    assert "test_dynamic_sizes.py:" in str(refused.value)
    captured = capture_torch(Choice(CHOICES[condition]), inputs, dynamic_shapes=PAIR, allow_fixed=True)
    assert any(condition in note for note in captured.notes)


@pytest.mark.parametrize(("choose", "low"), [(lambda t, u: t > 5, 6), (lambda t, u: (t - 1) // 2 > 1, 5)])
def test_a_choice_from_a_size_on_limits_the_range(choose, low):
    inputs = (torch.randn(3, 7), torch.randn(3, 5))
    program = capture_torch(Choice(choose), inputs, dynamic_shapes=PAIR).program
    assert {s.name: s.low for s in program.symbols} == {"B": 1, "T": low, "U": 1}


class Chunks(nn.Module):
    """A sequence padded to whole chunks, worked on by chunk and cut again."""

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, -x.shape[1] % 4))
        chunks = padded.unflatten(1, (-1, 4)).cumsum(2).flatten(1, 2)
        return chunks[:, : x.shape[1]]


def test_padding_to_whole_chunks():
    agree(Chunks(), torch.randn(3, 7, 2), torch.randn(2, 8, 2), torch.randn(2, 1, 2))


class Nested(nn.Module):
    """Strided convolutions and a view that needs their length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 4, 10, 5), nn.Conv1d(4, 6, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x[:, None])).transpose(1, 2)
        return y.reshape(y.shape[0], y.shape[1], -1, 3).transpose(1, 2) + 1


def test_lengths_after_strided_convolutions():
    agree(Nested().eval(), torch.randn(3, 101), torch.randn(2, 77), torch.randn(2, 80))


class SharedKeys(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, 6)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q[:, :1], q[:, :1], is_causal=True)


def test_attention_with_one_head_of_keys():
    program = agree(SharedKeys(), torch.randn(3, 7, 24), torch.randn(2, 5, 24))
    assert program.count("planish.attention") == 1


class SharedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 2, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        k = x.unflatten(-1, (2, 6)).transpose(1, 2)
        return F.scaled_dot_product_attention(self.latents, k, k)


def test_attention_of_queries_shared_by_the_batch():
    agree(SharedBatch().eval(), torch.randn(3, 7, 12), torch.randn(2, 5, 12))
