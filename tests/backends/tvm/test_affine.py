"""Linear layers on affine codes: compiled code against the meaning of the kernel, on every instruction set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from planish.backends.tvm.kernels import affine
from planish.ir.kernel import kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program, input_leaf
from planish.ir.parser import parse_type
from planish.ir.rule import RULES, Decline, check_example
from planish.ir.run import run
from planish.ir.weights import Weights
from planish.passes.compress.codec import pack

tvm = pytest.importorskip("tvm")
tvm_ffi = pytest.importorskip("tvm_ffi")

from planish.backends.tvm.cpu.affine import build  # noqa: E402
from planish.backends.tvm.isa import Isa, supported  # noqa: E402
from planish.runtime.tvm_threads import use_threads  # noqa: E402
from tests.backends.tvm.kernel_check import machine_code  # noqa: E402

NAMES = {torch.float32: "f32", torch.float16: "f16", torch.uint8: "u8"}


@dataclass(frozen=True)
class Case:
    """A layer: sizes, how the weight is stored, and what stands around the product."""

    length: int = 96
    outputs: int = 40
    bits: int = 4
    group: int = 32
    zero: str = "packed"
    scale: torch.dtype = torch.float16
    activation_bits: int = 32
    bias: bool = False
    norm: bool = False
    residual: bool = False
    rank: int = 0
    activation: str = "none"
    gated: bool = False

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.length // self.group)

    def options(self) -> dict[str, Any]:
        """The options of the kernel."""
        return {
            "bits": self.bits, "group": self.group, "rows": self.outputs, "eps": 1e-5,
            "activation_bits": self.activation_bits, "activation": self.activation, "gated": self.gated,
        }  # fmt: skip

    def stored(self) -> dict[str, Any]:
        """The operands that do not depend on the rows of x."""
        g = torch.Generator().manual_seed(self.length * 131 + self.outputs)
        codes = torch.randint(0, 2**self.bits, (self.outputs, self.length), dtype=torch.uint8, generator=g)
        scale = torch.rand(self.outputs, self.groups, generator=g) * 0.02 + 0.001
        made: dict[str, Any] = {
            "panels": planish.panel(codes, self.bits),
            "scale": planish.tile_rows(scale.to(self.scale)),
            "zero": 2 ** (self.bits - 1),
        }
        if self.zero == "packed":
            zeros = torch.randint(
                0, 2**self.bits, (self.outputs, self.groups), dtype=torch.uint8, generator=g
            )
            made["zero"] = planish.tile_rows(zeros if self.bits == 8 else pack(zeros, self.bits))
        elif self.zero == "float":
            zeros = torch.rand(self.outputs, self.groups, generator=g) * 2**self.bits
            made["zero"] = planish.tile_rows(zeros.half())
        if self.bias:
            made["bias"] = torch.randn(self.outputs, generator=g)
        if self.norm:
            made["norm"] = torch.randn(self.length, generator=g)
        if self.rank:
            made["left"] = planish.tile_rows(torch.randn(self.outputs, self.rank, generator=g) * 0.1)
            made["right"] = torch.randn(self.rank, self.length, generator=g) * 0.1
        return made

    def values(self, rows: int) -> dict[str, Any]:
        """All operands for some rows, in the order of the signature."""
        g = torch.Generator().manual_seed(rows)
        stored = self.stored()
        order = ("panels", "scale", "zero", "bias", "norm", "residual", "left", "right")
        if self.residual:
            width = self.outputs // 2 if self.gated else self.outputs
            stored["residual"] = torch.randn(rows, width, generator=g)
        x = torch.randn(rows, self.length, generator=g)
        return {"x": x} | {name: stored[name] for name in order if name in stored}

    def node(self, rows: str = "M") -> Node:
        """The node of the kernel for a (symbolic) number of rows."""
        made = {}
        for name, value in self.values(1).items():
            if isinstance(value, torch.Tensor):
                sizes = [str(s) for s in value.shape]
                sizes[0] = rows if name in ("x", "residual") else sizes[0]
                made[name] = input_leaf(name, parse_type(f"{NAMES[value.dtype]}[{', '.join(sizes)}]"))
            else:
                made[name] = value
        return kernel.linear_affine(**made, **self.options())


def compiled(node: Node, isa: Isa) -> Any:
    return machine_code(build(node, isa), isa)["main"]


def check(case: Case, function: Any, rows: int) -> None:
    values = case.values(rows)
    tensors = [tvm.runtime.tensor(v.numpy()) for v in values.values() if isinstance(v, torch.Tensor)]
    width = case.outputs // 2 if case.gated else case.outputs
    out = tvm.runtime.tensor(np.full((rows, width), np.nan, "float32"))
    function(*tensors, out)
    if not rows:
        return
    exact = kernel.linear_affine(**values, **case.options()).double()
    gap = (torch.from_numpy(out.numpy()).double() - exact).abs().max()
    assert gap <= 1e-5 * exact.abs().max(), (case, rows, float(gap / exact.abs().max()))


BASE = Case()
FULL = Case(bias=True, norm=True, residual=True, rank=5, activation="silu", length=70, outputs=41)
CASES = (
    *(replace(BASE, bits=bits, activation_bits=8 if bits % 2 else 32) for bits in range(2, 9)),
    FULL,
    replace(FULL, activation_bits=8, activation="gelu", zero="number"),
    replace(FULL, outputs=64, gated=True, activation_bits=8),
    replace(FULL, outputs=96, gated=True, rank=0, length=128, group=64),
    replace(BASE, zero="float", scale=torch.float32, bits=3),
    replace(BASE, group=1000, length=200, bits=6, activation_bits=8, activation="relu"),
    replace(BASE, group=256, length=33, bits=8, activation="gelu_tanh", zero="number"),
    replace(BASE, group=64, length=100, outputs=16, bits=5),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_best_instruction_set(case: Case) -> None:
    function = compiled(case.node(), supported()[0])
    for rows in (0, 1, 2, 3, 4, 7, 13):
        check(case, function, rows)


@pytest.mark.parametrize("isa", supported()[1:], ids=lambda isa: str(isa.name))
@pytest.mark.parametrize("case", (CASES[2], CASES[6], CASES[8], CASES[10]), ids=str)
def test_other_instruction_sets(case: Case, isa: Isa) -> None:
    for rows in (1, 5):
        check(case, compiled(case.node(str(rows)), isa), rows)


@pytest.mark.parametrize("activation_bits", (8, 32))
def test_every_thread_prepares_rows(activation_bits: int) -> None:
    case = replace(FULL, length=576, outputs=544, group=64, gated=True, activation_bits=activation_bits)
    function = compiled(case.node(), supported()[0])
    use_threads(tvm_ffi, 2)
    for rows in (0, 1, 3) * 100:  # threads that share what is theirs alone do not collide every time
        check(case, function, rows)


def test_parallel_and_extreme_rows() -> None:
    case = Case(length=576, outputs=1040, group=64, activation_bits=8)
    function = compiled(case.node("1"), supported()[0])
    check(case, function, 1)
    values = case.values(1)
    values["x"] = torch.zeros_like(values["x"])
    out = tvm.runtime.tensor(np.full((1, case.outputs), np.nan, "float32"))
    function(*[tvm.runtime.tensor(v.numpy()) for v in values.values()], out)
    assert not out.numpy().any()


@pytest.mark.parametrize("name", [name for name in RULES if name.startswith("affine-")])
def test_rules_hold(name: str) -> None:
    assert check_example(RULES[name]) <= RULES[name].tolerance


def _parts(bits: int, outputs: int, zero: bool = True) -> tuple[Node, ...]:
    types = (f"u8[{outputs}, {64 * bits // 8}]", f"f16[{outputs}, 2]", f"u8[{outputs}, {-(-2 * bits // 8)}]")
    return tuple(
        input_leaf(f"{part}{outputs}", parse_type(text))
        for part, text in zip("csz", types[: 3 if zero else 2], strict=False)
    )


def test_chain_of_rules() -> None:
    x = input_leaf("x", parse_type("f32[M, 64]"))
    codes, scale, zero = _parts(4, 32)
    weight = planish.dequant(planish.unpack(codes, 4, 64), scale, planish.unpack(zero, 4, 2), 32)
    norm = input_leaf("w", parse_type("f32[64]"))
    read = planish.fake_quantize(aten.rms_norm(x, [64], norm, 1e-5), 8, 32)
    node = RULES["affine-linear-packed"].apply(aten.linear(read, weight))
    assert node is not None
    for name in ("affine-rounded", "affine-norm"):
        node = RULES[name].apply(node)
        assert node is not None, name
    gated = aten.mul(aten.silu(aten.slice(node, 1, 0, 16)), aten.slice(node, 1, 16, 32))
    made = RULES["affine-gate"].apply(gated)
    assert made is not None and made.args[-1] is True and made.args[-3] == 8
    residual = input_leaf("r", parse_type("f32[M, 16]"))
    assert RULES["affine-residual"].apply(aten.add(residual, made)) is not None
    assert RULES["affine-residual"].apply(aten.add(norm, aten.silu(norm))) is None


def test_join() -> None:
    x = input_leaf("x", parse_type("f32[3, 64]"))
    nodes = []
    for outputs, bias in ((32, True), (16, False)):
        codes, scale, zero = _parts(4, outputs)
        weight = planish.dequant(planish.unpack(codes, 4, 64), scale, planish.unpack(zero, 4, 2), 32)
        b = input_leaf(f"b{outputs}", parse_type(f"f32[{outputs}]")) if bias else None
        nodes.append(RULES["affine-linear-packed"].apply(aten.linear(x, weight, b)))
    _, parts = affine.join_affine(nodes)
    inputs = tuple(dict.fromkeys(leaf for node in nodes for leaf in _leaves(node)))
    program = Program("join", inputs, (*nodes, *parts))
    g = torch.Generator().manual_seed(0)
    values = [
        torch.randint(0, 256, n.shape, dtype=torch.uint8, generator=g)
        if n.dtype.name == "u8"
        else torch.randn(n.shape, generator=g).to(torch.float16 if n.dtype.name == "f16" else torch.float32)
        for n in inputs
    ]
    results = run(program, Weights(), *values)
    for one, part in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(one, part, rtol=1e-5, atol=1e-4)
    with pytest.raises(Decline):
        affine.join_affine([nodes[0], kernel.linear_affine(*nodes[1].args[:15], True)])


def _leaves(node: Node) -> list[Node]:
    from planish.ir.node import topological

    return [n for n in topological([node]) if n.op == "input"]
