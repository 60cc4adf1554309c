"""Dynamic sizes that torch.export alone would fix or leave unnamed: recurrence, multiples, broadcast batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
