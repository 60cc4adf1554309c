"""Linear layers on weights that keep ``n`` of each ``m`` inputs: every instruction set against their meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

tvm = pytest.importorskip("tvm")

from planish.backends.tvm.build import executable  # noqa: E402
from planish.backends.tvm.cpu import sparse  # noqa: E402
from planish.backends.tvm.isa import ISAS, supported  # noqa: E402
from planish.backends.tvm.kernels import sparse as declared  # noqa: E402
from planish.backends.tvm.lower import lower  # noqa: E402
from planish.backends.tvm.target import kernels  # noqa: E402
from planish.ir.dialect import load_all  # noqa: E402
from planish.ir.kernel import KERNELS, kernel  # noqa: E402
from planish.ir.namespace import planish  # noqa: E402
from planish.ir.node import Node, input_leaf  # noqa: E402
from planish.ir.ops.sparse import kept  # noqa: E402
from planish.ir.parser import parse  # noqa: E402
from planish.ir.rewrite import Log  # noqa: E402
from planish.ir.rule import check_example  # noqa: E402
from planish.ir.run import run  # noqa: E402
from planish.ir.types import DTYPES, Symbol, TensorType  # noqa: E402
from planish.ir.weights import Weights  # noqa: E402
from planish.passes.compress.nm import Nm, NmCodec  # noqa: E402
from planish.passes.select import select  # noqa: E402
from tests.backends.tvm.kernel_check import machine_code  # noqa: E402

load_all()
NAMES = [isa.name for isa in supported()]
KINDS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {"f32": 2e-6, "f16": 1e-3, "bf16": 8e-3}
COUNTS = (0, 1, 2, 3, 5, 8, 15, 300)


@dataclass(frozen=True)
class Case:
    """One sparse linear layer."""

    n: int
    m: int
    length: int
    rows: int
    x: str = "f32"
    weight: str = "f16"
    bias: bool = True
    residual: bool = False
    activation: str = "none"
    batch: int | None = None

    def operands(self, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
        """Operands by name, the weight in its tiles."""
        source = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=source)

        parts = NmCodec(self.n, self.m, self.weight).encode(normal(self.rows, self.length) / 8)
        made = {
            "x": normal(count, self.length).to(KINDS[self.x]),
            "v": planish.tile_rows(parts["values"], 16, 1).contiguous(),
            "p": planish.tile_rows(parts["positions"], 16, 4).contiguous(),
        }
        if self.bias:
            made["b"] = normal(self.rows).to(KINDS[self.x])
        if self.residual:
            made["r"] = normal(count, self.rows).to(KINDS[self.x])
        return made

    def applied(self, given: dict[str, Any], call: Any) -> Any:
        """The kernel, as a node or as a number."""
        return call(
            given["x"], given["v"], given["p"], given.get("b"), given.get("r"), self.n, self.m, self.rows,
            self.activation,
        )  # fmt: skip

    def node(self) -> Node:
        """The kernel's node, with a symbolic number of rows unless ``batch`` is given."""
        count = Symbol("M", 0, 1 << 20) if self.batch is None else self.batch
        kinds = {torch.uint8: "u8", **{kind: name for name, kind in KINDS.items()}}
        leaves = {
            name: input_leaf(
                name,
                TensorType(
                    DTYPES[kinds[v.dtype]], (count, *v.shape[1:]) if name in ("x", "r") else tuple(v.shape)
                ),
            )
            for name, v in self.operands(1).items()
        }
        made = self.applied(leaves, kernel.linear_sparse)
        assert isinstance(made, Node)
        return made


CASES = (
    Case(2, 4, 64, 96),
    Case(2, 4, 1028, 32, residual=True, activation="gelu"),
    Case(2, 4, 37, 40, residual=True, activation="silu"),
    Case(1, 4, 100, 24, weight="bf16", bias=False),
    Case(3, 4, 90, 17, weight="f32", activation="tanh"),
    Case(1, 2, 130, 48, weight="f32"),
    Case(1, 8, 136, 33),
    Case(4, 8, 200, 16, x="f16", residual=True, activation="relu"),
    Case(7, 8, 75, 9, x="bf16", weight="bf16", activation="sigmoid"),
)
FEW = (CASES[1], CASES[4], CASES[5], CASES[7], CASES[8])


@cache
def built(case: Case, name: str) -> Any:
    """The kernel of a case for an instruction set."""
    return machine_code(sparse.build(case.node(), ISAS[name]), ISAS[name])


def computed(case: Case, name: str, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the kernel computes."""
    out = torch.full((given["x"].shape[0], case.rows), math.nan, dtype=KINDS[case.x])
    built(case, name)["main"](*(tvm.runtime.from_dlpack(v) for v in (*given.values(), out)))
    return out


def meaning(case: Case, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the kernel stands for, computed by torch."""
    made = case.applied(given, KERNELS["linear_sparse"].meaning)
    assert isinstance(made, torch.Tensor)
    return made


# the instructions of the second set are those of the first
CHOSEN = {NAMES[0]: CASES, "avx512vnni": FEW[:1]}
PAIRS = [(case, name) for name in NAMES for case in CHOSEN.get(name, FEW)]


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=lambda v: v if isinstance(v, str) else f"{v.n}of{v.m}")
def test_agrees_with_its_meaning(case: Case, name: str) -> None:
    for count in COUNTS:
        given = case.operands(count, count)
        got, want = computed(case, name, given).double(), meaning(case, given).double()
        assert got.shape == want.shape
        if count:
            assert (got - want).abs().max() <= ROUNDING[case.x] * want.abs().max(), count


@pytest.mark.parametrize("count", [0, 1, 3, 10, 128])
def test_known_number_of_rows(count: int) -> None:
    case = Case(2, 4, 40, 64, batch=count, residual=True, activation="relu")
    given = case.operands(count, 1)
    torch.testing.assert_close(computed(case, NAMES[0], given), meaning(case, given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_equal_positions_add_up(name: str) -> None:
    case = Case(2, 4, 64, 16, weight="f32")
    given = case.operands(3)
    given["p"].zero_()
    torch.testing.assert_close(computed(case, name, given), meaning(case, given), rtol=1e-5, atol=1e-5)


def test_errors_are_those_of_f32() -> None:
    case = Case(2, 4, 1536, 384)
    given = case.operands(130, 5)
    exact = meaning(case, {k: v if k == "p" else v.double() for k, v in given.items()})
    eager = (meaning(case, given).double() - exact).abs().max()
    ours = (computed(case, NAMES[0], given).double() - exact).abs().max()
    assert ours <= 2 * eager + 1e-5 * exact.abs().max()


@pytest.mark.parametrize("value", [0.0, -1.0, 6e-8, -5e-5, 65504.0, math.inf, -math.inf])
def test_half_precision_on_every_machine(value: float) -> None:
    case = Case(1, 2, 8, 16, bias=False)
    for name in NAMES:
        given = case.operands(1)
        given["x"].fill_(1.0)
        given["v"].zero_()[:, 0] = value
        given["p"].zero_()
        got = computed(case, name, given)
        assert torch.equal(got, torch.full((1, 16), value).half().float()), name


def test_no_machine_gets_foreign_instructions() -> None:
    for name in ("avx2", "generic"):
        text = built(CASES[1], name).mod.inspect_source("asm")
        assert "zmm" not in text
        assert name == "avx2" or "ymm" not in text


def test_tiles_take_the_bytes_that_are_stored() -> None:
    for n, m in ((2, 4), (1, 2), (4, 8)):
        given = Case(n, m, 256, 64).operands(1)
        bits = NmCodec(n, m).bits_per_weight((64, 256))
        assert given["v"].numel() * 2 + given["p"].numel() == 64 * 256 * bits / 8
        assert given["v"].numel() == 64 * kept(256, n, m)


@pytest.mark.parametrize("each", declared.RULES, ids=lambda r: r.name)
def test_rules(each: Any) -> None:
    check_example(each)


PROGRAM = (
    "T = dim(0, 64)\ndef main(x: f32[T, 64]):\n    w: f32[96, 64] = const('a.weight')\n"
    "    b: f32[96] = const('a.bias')\n    u: f32[96, 64] = const('b.weight')\n"
    "    y = aten.linear(x, w, b)\n    z = aten.gelu(y)\n"
    "    p = aten.permute(u, [1, 0])\n    s = aten.matmul(x, p)\n    t = aten.add(z, s)\n    return t\n"
)


def test_from_the_pass_to_the_library() -> None:
    program, weights = parse(PROGRAM), Weights()
    source = torch.Generator().manual_seed(0)
    for name, shape in (("a.weight", (96, 64)), ("a.bias", (96,)), ("b.weight", (96, 64))):
        weights.add(name, torch.randn(shape, generator=source) / 8)
    coded = Nm().apply(program, weights, Log())
    chosen = select(coded, weights, kernels(), Log())
    assert chosen.count("kernel.linear_sparse") == 2 and not chosen.count("planish.expand_nm")
    isa = supported()[0]
    for each in (coded, chosen):
        lowered = lower({"main": each}, isa)
        machine = tvm.relax.VirtualMachine(executable(lowered, tvm.target.Target(isa.target)), tvm.cpu())
        for rows in (5, 1, 0):
            x = torch.randn(rows, 64, generator=source)
            order = lowered.entries["main"]
            given = [weights.tensor(name) for name in order.weights]
            made = machine["main"](*(tvm.runtime.from_dlpack(v.contiguous()) for v in (x, *given)))
            got = torch.from_numpy((made if hasattr(made, "numpy") else made[0]).numpy())
            torch.testing.assert_close(got, run(coded, weights, x)[0], rtol=1e-5, atol=1e-5)
