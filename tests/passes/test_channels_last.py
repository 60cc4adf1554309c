"""Batch normalisation joins convolutions, permutations of images vanish, additions and activations join kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.backends.tvm.kernels import conv as kernels
from planish.frontend.capture.torch import capture_torch
from planish.ir.node import Program
from planish.ir.rewrite import Log
from planish.ir.rule import check_example
from planish.ir.run import run
from planish.ir.verify import verify
from planish.ir.weights import Weights
from planish.passes.activations import RoundOperands
from planish.passes.base import rewrite_all
from planish.passes.batch_norm import FoldBatchNorm, fold_batch_norm
from planish.passes.canonical.fold import Fold
from planish.passes.channels_last import ChannelsLast


class Residual(nn.Module):
    """Two convolutions with normalisation around a shortcut, pooling before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.one, self.two, self.down = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norms[0](self.stem(x)).relu(), 3, 2, 1)
        y = self.norms[2](self.two(self.norms[1](self.one(x)).relu()))
        y = (y + self.norms[3](self.down(x))).relu()
        return F.adaptive_avg_pool2d(y, 1).flatten(1)


class Mobile(nn.Module):
    """A bottleneck over single channels with a gate for each channel, joined with its input and padded."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.each = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 12, 3, 1, 1, groups=12)
        self.gate, self.thin = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 6, 1)
        self.norm = nn.BatchNorm2d(12)
        self.scale = nn.Parameter(torch.randn(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.each(F.hardswish(self.wide(x))))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        y = torch.cat([self.thin(y * self.scale), self.thin(self.norm(y))], 1)
        return F.avg_pool2d(F.pad(y[:, 1:9], (1, 0, 2, 1)), 2)


class Shared(nn.Module):
    """A convolution whose result is read twice: what follows must not join it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.relu() * torch.tanh(y) + y


def lowered(model: nn.Module, x: Tensor, half: bool = False) -> tuple[Program, Weights]:
    """The program with kernels for images, channels last."""
    captured = capture_torch(model, (x,))
    program, weights = captured.program, captured.weights
    program = Fold().apply(FoldBatchNorm().apply(program, weights, Log()), weights, Log())
    if half:
        program = Fold().apply(RoundOperands().apply(program, weights, Log()), weights, Log())
    program = ChannelsLast().apply(rewrite_all(program, kernels.RULES, Log()), weights, Log())
    verify(program)
    return program, weights


def settled(model: nn.Module) -> nn.Module:
    """The model in eval mode with statistics other than zero and one."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model.eval().requires_grad_(False)


def counted(program: Program) -> Counter[str]:
    """How often each operation stands in a program, layouts of weights left out."""
    return Counter(n.op for n in program.nodes if n.op.startswith(("kernel.", "aten.")))


@pytest.mark.parametrize("model", [Residual, Mobile, Shared])
def test_values_stay(model: Any) -> None:
    """The program means what the model computes."""
    torch.manual_seed(0)
    made = settled(model())
    x = torch.randn(2, {"Residual": 3, "Mobile": 6, "Shared": 4}[model.__name__], 18, 14)
    program, weights = lowered(made, x)
    torch.testing.assert_close(run(program, weights, x)[0], made(x), rtol=1e-5, atol=1e-5)


def test_residual_block_is_kernels() -> None:
    """Of a residual block remain four convolutions, one pooling and one permutation of the input."""
    made = settled(Residual())
    x = torch.randn(2, 3, 16, 16)
    program, _ = lowered(made, x)
    found = counted(program)
    assert found["kernel.conv"] == 4 and found["kernel.pool"] == 1
    images = [n for n in program.nodes if n.op == "aten.permute" and n.operands[0].op == "input"]
    assert len(images) == 1
    assert not any(found[op] for op in ("aten.batch_norm", "aten.relu", "aten.add", "aten.convolution"))
    assert sorted(n.args[-1] for n in program.nodes if n.op == "kernel.conv") == [
        "none",
        "relu",
        "relu",
        "relu",
    ]


def test_mobile_block_has_two_permutations() -> None:
    """Gates, joins, slices and padding let permutations through: one remains at each end."""
    made = settled(Mobile())
    program, _ = lowered(made, torch.randn(2, 6, 8, 8))
    assert counted(program)["kernel.depthwise"] == 1
    moved = [n for n in program.nodes if n.op == "aten.permute" and n.rank == 4 and n.shape[0] == 2]
    assert len(moved) == 2


def test_shared_results_are_not_computed_twice() -> None:
    """A convolution with several readers stays one kernel without activation."""
    program, _ = lowered(settled(Shared()), torch.randn(1, 4, 6, 6))
    kernels_left = [n for n in program.nodes if n.op == "kernel.conv"]
    assert len(kernels_left) == 1 and kernels_left[0].args[-1] == "none"


def test_rounded_convolutions_use_pairs() -> None:
    """After rounding both factors to bf16, kernels read tiles of bf16."""
    made = settled(Residual())
    x = torch.randn(1, 3, 16, 16)
    program, weights = lowered(made, x, half=True)
    tiles = [n.operands[1] for n in program.nodes if n.op == "kernel.conv"]
    assert {t.dtype.name for t in tiles} == {"bf16"}
    want = made(x)
    assert float((run(program, weights, x)[0] - want).abs().max()) < 0.02 * float(want.abs().max())


def test_batch_norm_rule_holds() -> None:
    """Both sides of the rule agree on its example."""
    assert check_example(fold_batch_norm) <= fold_batch_norm.tolerance


def test_another_run_changes_nothing() -> None:
    """The pass settles."""
    program, weights = lowered(settled(Residual()), torch.randn(1, 3, 16, 16))
    assert ChannelsLast().apply(program, weights, Log()) == program
