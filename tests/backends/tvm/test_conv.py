"""Kernels of convolutions and pooling on every instruction set of this machine, against their meaning in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from planish.backends.tvm.isa import supported
from planish.backends.tvm.kernels import conv as kernels
from planish.ir.kernel import KERNELS, kernel
from planish.ir.node import Node, input_leaf
from planish.ir.parser import parse_type
from planish.ir.rule import check_example

tvm = pytest.importorskip("tvm")

from planish.backends.tvm.cpu import conv, conv_depthwise, pool  # noqa: E402
from tests.backends.tvm.kernel_check import machine_code  # noqa: E402

ISAS = supported()
DISTINCT = tuple(isa for isa in ISAS if isa.name != "avx512vnni")
"""Sets that differ where there is no bf16."""
BUILD = {"kernel.conv": conv.build, "kernel.depthwise": conv_depthwise.build, "kernel.pool": pool.build}


def leaf(name: str, kind: str) -> Node:
    """An operand of a kernel."""
    return input_leaf(name, parse_type(kind))


def compiled(node: Node, isa: Any) -> Any:
    """The kernel as a function of TVM tensors."""
    return machine_code(BUILD[node.op](node, isa), isa)["main"]


def to_tvm(value: torch.Tensor) -> Any:
    """A tensor of torch as one of TVM."""
    if value.dtype is not torch.bfloat16:
        return tvm.runtime.tensor(value.contiguous().numpy())
    import ml_dtypes

    return tvm.runtime.tensor(value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16))


def compare(node: Node, function: Any, operands: list[torch.Tensor], tolerance: float) -> None:
    """The function gives what the kernel means, computed in f64."""
    values = iter(operands)
    args = [next(values) if isinstance(a, Node) else a for a in node.args]
    wide = [a.double() if isinstance(a, torch.Tensor) and a.dtype is torch.float32 else a for a in args]
    plain = node.op == "kernel.conv" and args[1].dtype is torch.bfloat16
    want = KERNELS[node.op.removeprefix("kernel.")].meaning(*(args if plain else wide))
    out = tvm.runtime.tensor(np.full(want.shape, np.nan, "f4"))
    function(*map(to_tvm, operands), out)
    got = torch.from_numpy(out.numpy())
    if want.numel():
        gap = float((got.double() - want.double()).abs().max())
        assert gap <= tolerance * max(1e-6, float(want.double().abs().max()))


CONVOLUTIONS = {
    # channels, outputs, kernel, stride, padding, dilation, tile, activation, residual, sizes
    "first": (3, 40, (7, 7), (2, 2), (3, 3), (1, 1), 32, "relu", False, (1, 15, 29)),
    "square": (8, 64, (3, 3), (1, 1), (1, 1), (1, 1), 32, "none", True, (2, 7, 7)),
    "dilated": (5, 7, (3, 3), (1, 1), (2, 2), (2, 2), 16, "silu", False, (1, 6, 17)),
    "point": (12, 33, (1, 1), (1, 1), (0, 0), (1, 1), 32, "hardswish", True, (2, 5, 9)),
    "thinned": (12, 16, (1, 1), (2, 2), (0, 0), (1, 1), 16, "relu6", False, (1, 5, 9)),
    "line": (6, 32, (1, 5), (1, 2), (0, 2), (1, 1), 32, "gelu", False, (1, 1, 21)),
}


def conv_node(case: str, half: bool, sizes: tuple[Any, ...]) -> Node:
    """The kernel of a case; ``sizes`` are batch, height and width, which may be symbols."""
    inputs, outputs, size, stride, padding, dilation, tile, activation, residual, _ = CONVOLUTIONS[case]
    depth = 2 if half else 1
    shape = ", ".join(map(str, sizes))
    x = leaf("x", f"f32[{shape}, {inputs}]")
    weight = leaf("w", f"{'bf16' if half else 'f32'}[{outputs}, {inputs}, {size[0]}, {size[1]}]")
    tiles = input_leaf("tiles", kernels.tiled_weight(weight, dilation, tile, depth).tensor)
    fixed = (outputs, size, stride, padding, dilation, tile, depth, activation)
    node = kernel.conv(x, tiles, leaf("b", f"f32[{outputs}]"), None, *fixed)
    if residual:
        node = kernel.conv(x, tiles, leaf("b", f"f32[{outputs}]"), input_leaf("r", node.tensor), *fixed)
    return node


def conv_operands(case: str, half: bool, sizes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    """Random operands at given sizes."""
    inputs, outputs, size, stride, padding, dilation, tile, _, residual, _ = CONVOLUTIONS[case]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*sizes, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, *size, generator=generator) / (inputs * size[0] * size[1]) ** 0.5
    weight = weight.bfloat16() if half else weight
    operands = [x, kernels.tiled_weight(weight, dilation, tile, 2 if half else 1)]  # type: ignore[arg-type]
    operands.append(torch.randn(outputs, generator=generator))
    if residual:
        rows, columns = (
            (sizes[1 + i] + 2 * padding[i] - dilation[i] * (size[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
        )
        operands.append(torch.randn(sizes[0], rows, columns, outputs, generator=generator))
    return operands


@pytest.mark.parametrize("isa", DISTINCT, ids=lambda isa: isa.name)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str, isa: Any) -> None:
    """Every form of a convolution at fixed sizes."""
    sizes = CONVOLUTIONS[case][-1]
    node = conv_node(case, False, sizes)
    compare(node, compiled(node, isa), conv_operands(case, False, sizes), 2e-6)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("case", ["first", "square", "dilated"])
def test_convolution_of_pairs(case: str, isa: Any) -> None:
    """Weights of bf16."""
    sizes = CONVOLUTIONS[case][-1]
    node = conv_node(case, True, sizes)
    compare(node, compiled(node, isa), conv_operands(case, True, sizes), 2e-6)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("case", "half"), [("square", False), ("thinned", True)])
def test_convolution_of_any_size(case: str, half: bool, isa: Any) -> None:
    """One function serves every batch and size of image."""
    node = conv_node(case, half, ("B", "H", "W"))
    function = compiled(node, isa)
    for i, sizes in enumerate([(1, 9, 31), (3, 8, 2), (2, 1, 17), (0, 5, 5)]):
        compare(node, function, conv_operands(case, half, sizes, i), 2e-6)


@pytest.mark.parametrize("isa", DISTINCT, ids=lambda isa: isa.name)
@pytest.mark.parametrize("channels", [3, 80])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [((3, 3), (1, 1), (1, 1), (1, 1)), ((5, 3), (2, 2), (2, 1), (1, 2)), ((5, 5), (1, 1), (4, 4), (2, 2))],
)
def test_depthwise(channels: int, size: Any, stride: Any, padding: Any, dilation: Any, isa: Any) -> None:
    """Each channel by its own window, at any size."""
    taps, bias = leaf("t", f"f32[{size[0] * size[1]}, {channels}]"), leaf("b", f"f32[{channels}]")
    x = leaf("x", f"f32[B, H, W, {channels}]")
    node = kernel.depthwise(x, taps, bias, None, size, stride, padding, dilation, "relu6")
    function = compiled(node, isa)
    for sizes in [(2, 9, 11), (1, 3, 4), (0, 5, 5), (1, 1, 40)]:
        operands = [
            torch.randn(*sizes, channels),
            torch.randn(size[0] * size[1], channels),
            torch.randn(channels),
        ]
        compare(node, function, operands, 2e-6)


POOLS = [
    ("max", (3, 3), (2, 2), (1, 1), (1, 1), False, True),
    ("max", (2, 3), (2, 1), (0, 1), (2, 1), True, True),
    ("mean", (3, 3), (2, 2), (1, 1), (1, 1), False, True),
    ("mean", (2, 3), (1, 2), (1, 1), (1, 1), False, False),
]


@pytest.mark.parametrize("isa", DISTINCT, ids=lambda isa: isa.name)
@pytest.mark.parametrize("channels", [3, 80])
@pytest.mark.parametrize("window", POOLS)
def test_pool(window: Any, channels: int, isa: Any) -> None:
    """Windows that reach over the borders, counted or not."""
    node = kernel.pool(leaf("x", f"f32[2, 9, 11, {channels}]"), *window)
    compare(node, compiled(node, isa), [torch.randn(2, 9, 11, channels)], 1e-6)


def test_largest_of_nan_is_nan() -> None:
    """A window with NaN gives NaN, and one with only negative infinity that."""
    x = torch.full((1, 4, 4, 3), -torch.inf)
    x[0, 0, 0, 1] = torch.nan
    node = kernel.pool(leaf("x", "f32[1, 4, 4, 3]"), "max", (2, 2), (2, 2), (0, 0), (1, 1))
    out = tvm.runtime.tensor(np.zeros((1, 2, 2, 3), "f4"))
    compiled(node, ISAS[0])(to_tvm(x), out)
    assert np.isnan(out.numpy()[0, 0, 0, 1]) and np.isneginf(np.delete(out.numpy().reshape(-1), 1)).all()


@pytest.mark.parametrize("each", kernels.RULES, ids=lambda each: each.name)
def test_rules_hold(each: Any) -> None:
    """Both sides of every rule agree on its example."""
    assert check_example(each) <= each.tolerance
