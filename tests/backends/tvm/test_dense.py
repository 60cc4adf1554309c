"""Dense linear kernels for processors: every instruction set of this machine against their meaning in eager torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

tvm = pytest.importorskip("tvm")

from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.script.ir_builder import tirx as T  # noqa: E402

from planish.backends.tvm.cpu import dense, emit  # noqa: E402
from planish.backends.tvm.cpu import math as functions  # noqa: E402
from planish.backends.tvm.isa import ISAS, Isa, supported  # noqa: E402
from planish.backends.tvm.kernels import dense as declared  # noqa: E402
from planish.ir.dialect import load_all  # noqa: E402
from planish.ir.kernel import KERNELS, kernel  # noqa: E402
from planish.ir.namespace import aten, planish  # noqa: E402
from planish.ir.node import Node, input_leaf  # noqa: E402
from planish.ir.parser import parse_type  # noqa: E402
from planish.ir.rule import check_example  # noqa: E402
from planish.ir.types import DTYPES, Symbol, TensorType  # noqa: E402
from tests.backends.tvm.kernel_check import machine_code  # noqa: E402

load_all()
NAMES = [isa.name for isa in supported()]
KINDS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {"f32": 2e-6, "f16": 1e-3, "bf16": 8e-3}


@dataclass(frozen=True)
class Case:
    """One dense linear layer."""

    length: int
    rows: int
    x: str = "f32"
    weight: str = "f32"
    depth: int = 1
    bias: bool = True
    residual: bool = False
    activation: str = "none"
    batch: int | None = None

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return 32 if self.rows % 32 == 0 else 16

    def node(self) -> Node:
        """The kernel's node, with a symbolic number of rows unless ``batch`` is given."""
        count = Symbol("M", 0, 1 << 20) if self.batch is None else self.batch

        def leaf(name: str, kind: str, *shape: Any) -> Node:
            return input_leaf(name, TensorType(DTYPES[kind], shape))

        steps = -(-self.length // self.depth)
        tiles = leaf("t", self.weight, -(-self.rows // self.tile), steps, self.tile * self.depth)
        made = kernel.linear_dense(
            leaf("x", self.x, count, self.length),
            tiles,
            leaf("b", self.x, self.rows) if self.bias else None,
            leaf("r", self.x, count, self.rows) if self.residual else None,
            self.rows,
            self.tile,
            self.depth,
            self.activation,
        )
        assert isinstance(made, Node)
        return made


CASES = (
    Case(64, 96),
    Case(37, 40, residual=True, activation="gelu"),
    Case(33, 9, bias=False, activation="tanh"),
    Case(48, 64, weight="f16", activation="relu"),
    Case(50, 48, x="f16", weight="f16", residual=True),
    Case(63, 72, weight="bf16", depth=2, residual=True),
    Case(64, 64, x="bf16", weight="bf16", depth=2, activation="silu"),
    Case(41, 32, x="bf16", weight="bf16", depth=2, activation="sigmoid"),
    Case(50, 64, weight="bf16", activation="gelu_tanh"),
)
COUNTS = (0, 1, 2, 3, 5, 7, 8, 11, 12, 13, 26, 61, 300)


def compiled(function: Any, isa: Isa) -> Any:
    """The function ``main`` of a module of one function."""
    return machine_code(function, isa)


@cache
def built(case: Case, name: str) -> Any:
    """The kernel of a case for an instruction set."""
    return compiled(dense.build(case.node(), ISAS[name]), ISAS[name])


def values(case: Case, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Operands by name, the weight in its tiles."""
    source = torch.Generator().manual_seed(seed)

    def normal(kind: str, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source).to(KINDS[kind])

    weight = normal(case.weight, case.rows, case.length) / 8
    made = {
        "x": normal(case.x, count, case.length),
        "t": planish.tile_rows(weight, case.tile, case.depth).contiguous(),
    }
    if case.bias:
        made["b"] = normal(case.x, case.rows)
    if case.residual:
        made["r"] = normal(case.x, count, case.rows)
    return made


def meaning(case: Case, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the kernel stands for, computed by torch."""
    made = KERNELS["linear_dense"].meaning(
        given["x"],
        given["t"],
        given.get("b"),
        given.get("r"),
        case.rows,
        case.tile,
        case.depth,
        case.activation,
    )
    assert isinstance(made, torch.Tensor)
    return made


def computed(case: Case, name: str, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the kernel computes."""
    out = torch.full((given["x"].shape[0], case.rows), math.nan, dtype=KINDS[case.x])
    built(case, name)["main"](*(tvm.runtime.from_dlpack(v) for v in (*given.values(), out)))
    return out


def _pairs() -> list[Any]:
    """Every case on the best instruction set, the first of each kind of weight on the others."""
    few = (CASES[1], CASES[4], CASES[5], CASES[7])
    made = [(case, NAMES[0]) for case in CASES] + [(case, name) for name in NAMES[1:] for case in few]
    return [
        pytest.param(c, n, id=f"{n}-{c.x}-{c.weight}-{c.length}x{c.rows}-{c.activation}") for c, n in made
    ]


@pytest.mark.parametrize(("case", "name"), _pairs())
def test_agrees_with_its_meaning(case: Case, name: str) -> None:
    for count in COUNTS:
        given = values(case, count, count)
        got, want = computed(case, name, given).double(), meaning(case, given).double()
        assert got.shape == want.shape
        if count:
            assert (got - want).abs().max() <= ROUNDING[case.x] * want.abs().max(), count


@pytest.mark.parametrize("count", [1, 3, 10, 128])
def test_known_number_of_rows(count: int) -> None:
    case = Case(40, 64, batch=count, residual=True, activation="relu")
    given = values(case, count, 1)
    torch.testing.assert_close(computed(case, NAMES[0], given), meaning(case, given), rtol=1e-5, atol=1e-5)


def test_errors_are_those_of_f32() -> None:
    case = Case(1536, 384)
    given = values(case, 130, 5)
    exact = meaning(case, {k: v.double() for k, v in given.items()})
    eager = (meaning(case, given).double() - exact).abs().max()
    ours = (computed(case, NAMES[0], given).double() - exact).abs().max()
    assert ours <= 2 * eager + 1e-5 * exact.abs().max()


def test_leading_axes_are_rows() -> None:
    batch, length = Symbol("B", 0, 64), Symbol("T", 0, 64)
    x = input_leaf("x", TensorType(DTYPES["f32"], (batch, length, 24)))
    node = kernel.linear_dense(
        x, input_leaf("t", parse_type("f32[2, 24, 16]")), None, None, 20, 16, 1, "none"
    )
    made = compiled(dense.build(node, supported()[0]), supported()[0])
    given, weight = torch.randn(3, 5, 24), torch.randn(20, 24)
    out = torch.zeros(3, 5, 20)
    tiles = planish.tile_rows(weight, 16, 1).contiguous()
    made["main"](*(tvm.runtime.from_dlpack(v) for v in (given, tiles, out)))
    torch.testing.assert_close(out, given @ weight.T, rtol=1e-5, atol=1e-5)


def test_no_machine_gets_foreign_instructions() -> None:
    for name in ("avx2", "generic"):
        text = compiled(dense.build(CASES[0].node(), ISAS[name]), ISAS[name]).mod.inspect_source("asm")
        assert "zmm" not in text
        assert ("ymm" in text) == (name == "avx2")


@pytest.mark.parametrize("each", declared.RULES, ids=lambda r: r.name)
def test_rules_hold(each: Any) -> None:
    assert check_example(each) <= max(each.tolerance, 1e-5)


def test_small_and_computed_weights_are_declined() -> None:
    x = input_leaf("x", parse_type("f32[4, 16]"))
    assert declared.dense_linear.apply(aten.linear(x, input_leaf("w", parse_type("f32[4, 16]")))) is None
    computed_weight = aten.neg(input_leaf("w", parse_type("f32[16, 16]")))
    assert declared.dense_linear.apply(aten.linear(x, computed_weight)) is None
    made = declared.dense_linear.apply(aten.linear(x, input_leaf("w", parse_type("f32[16, 16]"))))
    assert made is not None and made.op == "kernel.linear_dense"


def _edges() -> np.ndarray[Any, Any]:
    source = np.random.default_rng(0)
    parts = [
        source.uniform(-12, 12, 4096),
        source.uniform(-120, 120, 2048),
        source.standard_normal(1024) * 1e-3,
    ]
    parts.append(source.standard_normal(1024) * 10.0 ** source.uniform(-30, 30, 1024))
    made: np.ndarray[Any, Any] = np.concatenate(parts).astype("f4")
    made[:7] = [np.inf, -np.inf, np.nan, 0.0, -0.0, 3e38, -3e38]
    return made


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "erf": torch.erf,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
}


@pytest.mark.parametrize("name", NAMES)
def test_functions_of_vectors(name: str) -> None:
    isa, given = ISAS[name], _edges()
    exact = {f: call(torch.tensor(given).double()).numpy() for f, call in FUNCTIONS.items()}
    for lanes in {1, isa.lanes}:
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_name("main")
                x = T.arg("x", T.Buffer((len(given),), "float32"))
                outs = {f: T.arg(f, T.Buffer((len(given),), "float32")) for f in FUNCTIONS}
                with T.serial(0, len(given) // lanes) as i:
                    for f, out in outs.items():
                        emit.store(
                            out, (i * lanes,), getattr(functions, f)(emit.load(x, (i * lanes,), lanes)), lanes
                        )
        results = {f: tvm.runtime.tensor(np.zeros_like(given)) for f in FUNCTIONS}
        compiled(builder.get(), isa)["main"](tvm.runtime.tensor(given), *results.values())
        for f, want in exact.items():
            got = results[f].numpy().astype("f8")
            assert np.isnan(got[2]), f
            fits = np.isfinite(want) & (np.abs(want) < 3e38)
            assert (np.abs(got - want)[fits] <= 1.5e-6 * np.maximum(np.abs(want[fits]), 1)).all(), f
            if f in ("exp", "sigmoid", "tanh", "erf"):
                normal = fits & (np.abs(want) > 1e-37)
                assert (np.abs(got / np.where(normal, want, 1) - 1)[normal] <= 1e-6).all(), f
