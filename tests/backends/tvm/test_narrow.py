"""Machine code on f16 and bf16: every operation, kernels of images, and what rounding makes of NaN and infinities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from planish.errors import PlanishError
from planish.ir.dialect import load_all
from planish.ir.kernel import KERNELS, kernel
from planish.ir.namespace import planish
from planish.ir.node import Node, Program, input_leaf
from planish.ir.parser import parse_type
from tests.backends.tvm.kernel_check import machine_code
from tests.backends.tvm.test_ops import Library, check, to_torch, to_tvm
from tests.op_examples import BINDINGS, EXAMPLES, expected, inputs_of, program_of

tvm = pytest.importorskip("tvm")

from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.script.ir_builder import tirx as T  # noqa: E402

from planish.backends.tvm.cpu import conv, conv_depthwise, dense, emit, pairs, pool  # noqa: E402
from planish.backends.tvm.isa import Isa, supported  # noqa: E402
from planish.backends.tvm.kernels import conv as kernels  # noqa: E402
from planish.backends.tvm.target import load_kernels  # noqa: E402

load_all()
load_kernels()
KINDS = {"f16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {"f16": 1e-3, "bf16": 8e-3}
"""One step of rounding, relative."""
PARTS = 6
ISAS = [isa for isa in supported() if isa.name != "avx512vnni"]
EACH = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)


def narrow(kind: str) -> Iterator[tuple[str, str, Program]]:
    """Programs in a type that the interpreter can run: an operation, and its result times itself.

    The product is computed in the loop of the operation before it, where that is only a choice of elements.
    """
    for op, sources in EXAMPLES.items():
        for source in sources:
            if kind in source or "f32" not in source:
                continue
            text = source.replace("f32", kind).replace(
                "    return out\n", "    twice = aten.mul(out, out)\n    return twice\n"
            )
            try:
                program = program_of(text)
                expected(program, inputs_of(program, BINDINGS[0]))
            except (PlanishError, RuntimeError):
                continue
            yield op.replace(".", "_"), text, program
            break


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(PARTS))
def test_operations(kind: str, part: int) -> None:
    cases = list(narrow(kind))[part::PARTS]
    library = Library({name: program for name, _, program in cases}, level=0)
    for name, text, program in cases:
        for sizes in BINDINGS[:2]:
            inputs = inputs_of(program, sizes)
            check(program, inputs, library(name, *inputs), text)


def test_most_operations_are_there() -> None:
    for kind in KINDS:
        assert len(list(narrow(kind))) >= 130


def compiled(node: Node, build: Any, isa: Isa) -> Any:
    """The kernel as a function of TVM tensors."""
    return machine_code(build(node, isa), isa)["main"]


def gap(node: Node, function: Any, operands: list[torch.Tensor]) -> float:
    """The largest difference to what the kernel means in f64, relative to the largest value."""
    values = iter(x.double() for x in operands)
    args = [next(values) if isinstance(a, Node) else a for a in node.args]
    want = KERNELS[node.op.removeprefix("kernel.")].meaning(*args)
    out = to_tvm(torch.full(want.shape, math.nan, dtype=operands[0].dtype))
    function(*map(to_tvm, operands), out)
    got = to_torch(out).double()
    return float((got - want).abs().max() / want.abs().max()) if want.numel() else 0.0


def leaf(name: str, kind: str) -> Node:
    """An operand of a kernel."""
    return input_leaf(name, parse_type(kind))


IMAGES = {
    # channels, outputs, kernel, stride, padding, dilation
    "padded": (5, 40, (3, 3), (1, 1), (1, 1), (1, 1)),
    "point": (12, 33, (1, 1), (1, 1), (0, 0), (1, 1)),
    "thinned": (12, 16, (1, 1), (2, 2), (0, 0), (1, 1)),
    "dilated": (8, 64, (3, 3), (1, 1), (0, 2), (2, 2)),
}


@EACH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", IMAGES)
def test_convolution(case: str, kind: str, isa: Isa) -> None:
    """Images, weights, bias and residual of one type; the sum is rounded once."""
    inputs, outputs, size, stride, padding, dilation = IMAGES[case]
    tile, depth = 16 if outputs <= 16 else 32, 2 if kind == "bf16" else 1
    sizes = (2, 7, 11)
    rows, columns = (
        (sizes[1 + i] + 2 * padding[i] - dilation[i] * (size[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    weight = torch.randn(outputs, inputs, *size).to(KINDS[kind])
    tiles = kernels.tiled_weight(weight, dilation, tile, depth)  # type: ignore[arg-type]
    node = kernel.conv(
        leaf("x", f"{kind}[2, 7, 11, {inputs}]"), leaf("t", f"{kind}[{', '.join(map(str, tiles.shape))}]"),
        leaf("b", f"{kind}[{outputs}]"), leaf("r", f"{kind}[2, {rows}, {columns}, {outputs}]"), outputs, size, stride,
        padding, dilation, tile, depth, "relu",
    )  # fmt: skip
    operands = [
        torch.randn(*sizes, inputs).to(KINDS[kind]), tiles, torch.randn(outputs).to(KINDS[kind]),
        torch.randn(2, rows, columns, outputs).to(KINDS[kind]),
    ]  # fmt: skip
    assert gap(node, compiled(node, conv.build, isa), operands) <= ROUNDING[kind]


@EACH
@pytest.mark.parametrize("kind", KINDS)
def test_depthwise_and_pooling(kind: str, isa: Isa) -> None:
    channels = 21
    x = torch.randn(2, 9, 11, channels).to(KINDS[kind])
    taps, bias = (torch.randn(*shape).to(KINDS[kind]) for shape in ((9, channels), (channels,)))
    image, window = leaf("x", f"{kind}[B, H, W, {channels}]"), ((3, 3), (2, 1), (1, 1), (1, 1))
    node = kernel.depthwise(
        image, leaf("t", f"{kind}[9, {channels}]"), leaf("b", f"{kind}[{channels}]"), None, *window, "silu"
    )
    assert gap(node, compiled(node, conv_depthwise.build, isa), [x, taps, bias]) <= ROUNDING[kind]
    for mode in ("max", "mean"):
        node = kernel.pool(image, mode, *window)
        assert gap(node, compiled(node, pool.build, isa), [x]) <= ROUNDING[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_rules_select_kernels_for_images(kind: str) -> None:
    for each in (
        kernels.select_conv,
        kernels.select_depthwise,
        kernels.select_max_pool,
        kernels.select_mean_pool,
    ):
        types = {n: v.replace("f32", kind) if isinstance(v, str) else v for n, v in each.example.items()}
        given = {n: leaf(n, v) if isinstance(v, str) else v for n, v in types.items()}
        made = each.apply(each.left(**given))
        assert made is not None and made.dtype.name == kind


BITS = (
    0x00000000, 0x80000000, 0x3F800000, 0x3F807FFF, 0x3F808000, 0x3F808001, 0x3F818000, 0xBF818000, 0x7F7F0000,
    0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFF800001, 0x7F80FFFF,
    0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x00008000, 0x00018001, 0x00800000,
)  # fmt: skip
"""Ties, the largest numbers, infinities, every kind of NaN, numbers below the normal ones."""


@EACH
def test_rounding_to_bf16_keeps_nan_and_infinities(isa: Isa) -> None:
    lanes, count = isa.lanes, 32
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.Buffer((count,), "float32"))
        out = T.arg("out", T.Buffer((count,), "float32"))
        with T.serial(0, count // lanes - 1) as i:
            emit.store(out, (i * lanes,), pairs.round_bf16(emit.load(x, (i * lanes,), lanes)), lanes)
        with T.serial(count - lanes, count) as i:  # one by one
            T.buffer_store(out, pairs.round_bf16(x[i]), [i])
    function = machine_code(builder.get(), isa)["main"]
    for shift in (0, 13):
        bits = np.roll(np.resize(np.array(BITS, np.uint32), count), shift)
        given = torch.from_numpy(bits.view(np.float32))
        found = tvm.runtime.tensor(np.zeros(count, np.float32))
        function(tvm.runtime.tensor(given.numpy()), found)
        got, want = torch.from_numpy(found.numpy()), given.to(torch.bfloat16).float()
        assert torch.equal(got.isnan(), given.isnan())
        assert not bool((torch.from_numpy(found.numpy().view(np.int32)) & 0xFFFF).any())
        # what cuts off the lower half keeps NaN
        assert torch.equal(got.to(torch.bfloat16).isnan(), given.isnan())
        assert torch.equal(got[~given.isnan()], want[~given.isnan()])


@EACH
def test_casts_to_bf16_keep_nan_and_infinities(isa: Isa) -> None:
    """Those of programs, alone and after a choice of elements."""
    given = torch.from_numpy(np.array(BITS, np.uint32).view(np.float32))
    text = (
        "T = dim(1, 64)\ndef main(x: f32[T]):\n    y = aten.to(x, bf16)\n    w = aten.cat([y, y], 0)\n"
        "    z = aten.neg(w)\n    return y, z\n"
    )
    library = Library({"main": program_of(text)}, isa, 0)
    plain, turned = library("main", given)
    want = given.to(torch.bfloat16)
    for got, wanted in ((plain, want), (turned, -torch.cat([want, want]))):
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got[~got.isnan()], wanted[~got.isnan()])


@EACH
@pytest.mark.parametrize("kind", KINDS)
def test_products_keep_nan_and_infinities(kind: str, isa: Isa) -> None:
    """Through the linear kernel and through operations without kernels."""
    depth = 2 if kind == "bf16" else 1
    weight = torch.eye(32).to(KINDS[kind])
    tiles = planish.tile_rows(weight, 32, depth).contiguous()
    node = kernel.linear_dense(
        leaf("x", f"{kind}[M, 32]"), leaf("t", f"{kind}[{', '.join(map(str, tiles.shape))}]"), None, None, 32, 32,
        depth, "none",
    )  # fmt: skip
    function = compiled(node, dense.build, isa)
    x = torch.zeros(3, 32, dtype=KINDS[kind])
    x[0, 3], x[1, 5], x[2, 7] = math.nan, math.inf, -math.inf
    want = torch.zeros(3, 32)
    want[0] = want[1] = want[2] = math.nan  # infinity times 0
    out = to_tvm(torch.zeros(3, 32, dtype=KINDS[kind]))
    function(to_tvm(x), to_tvm(tiles), out)
    got = to_torch(out).float()
    assert bool(got[0].isnan().all()) and bool(got[1].isnan()[[i for i in range(32) if i != 5]].all())
    assert got[1, 5] == math.inf and got[2, 7] == -math.inf
    program = program_of(
        f"T = dim(1, 64)\ndef main(x: {kind}[T, 32]):\n    y = aten.add(x, x)\n    return y\n"
    )
    (doubled,) = Library({"main": program}, isa, 0)("main", x)
    assert torch.equal(doubled.isnan(), x.isnan()) and torch.equal(doubled.nan_to_num(), (x + x).nan_to_num())
