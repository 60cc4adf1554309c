"""Attention kernels against their meaning: grouped heads, masks of all kinds, ragged blocks, rows that see nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planish.backends.tvm.kernels import attention as declarations
from planish.backends.tvm.kernels import rope as rope_declarations
from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program
from planish.ir.rewrite import rewrite
from planish.ir.rule import check_example
from planish.ir.types import size
from tests.backends.tvm.kernel_check import (
    ISAS,
    compiled,
    computed,
    gap,
    kernel_node,
    leaf,
    symbol,
    values_for,
)  # fmt: skip

B, Q, K = symbol("B"), symbol("Q"), symbol("K")
RULES = (
    declarations.select_attention, declarations.select_attention_step, declarations.attention_writes_permuted,
    declarations.attention_step_writes_permuted, rope_declarations.select_rope,
)  # fmt: skip

WHOLE: dict[str, dict[str, Any]] = {
    "causal": {"heads": 6, "key_heads": 2, "width": 64, "value": 64, "causal": True, "order": "bthd"},
    "padding": {
        "heads": 3,
        "key_heads": 3,
        "width": 32,
        "value": 32,
        "mask": ("bool", True, False, False),
        "order": "bthd",
    },
    "window": {
        "heads": 4,
        "key_heads": 2,
        "width": 24,
        "value": 40,
        "mask": ("f32", False, True, True),
        "causal": True,
        "window": 5,
        "softcap": 3.0,
    },
    "odd": {
        "heads": 3,
        "key_heads": 1,
        "width": 7,
        "value": 5,
        "mask": ("bool", True, True, True),
        "window": 4,
    },
}


BY_NAME = {isa.name: isa for isa in ISAS}


def _pairs(cases: Any, few: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every case with the best instruction set, a few with the others."""
    best, *others = BY_NAME
    return [(best, name) for name in cases] + [(isa, name) for isa in others for name in few]


def _mask(kind: Any, heads: int, queries: Any, keys: Any) -> Node | None:
    if kind is None:
        return None
    name, per_batch, per_head, per_query = kind
    return leaf("m", name, B if per_batch else 1, heads if per_head else 1, queries if per_query else 1, keys)


def _heads(name: str, order: str, heads: int, positions: Any, width: int) -> Node:
    return leaf(name, "f32", B, *((positions, heads) if order == "bthd" else (heads, positions)), width)


def _whole(
    heads: int, key_heads: int, width: int, value: int, mask: Any = None, causal: bool = False, window: Any = None,
    softcap: Any = None, order: str = "bhtd",
) -> Node:  # fmt: skip
    return kernel_node(
        "attention", _heads("q", order, heads, Q, width), _heads("k", order, key_heads, K, width),
        _heads("v", order, key_heads, K, value), _mask(mask, heads, Q, K), causal, window, None, softcap,
        order, order, order, order,
    )  # fmt: skip


@pytest.mark.parametrize(("isa", "name"), _pairs(WHOLE, ("window", "odd")), ids=str)
def test_attention_is_its_meaning(isa: str, name: str) -> None:
    node = _whole(**WHOLE[name])
    function = compiled(node, BY_NAME[isa])
    for seed, (batch, queries, keys) in enumerate(
        ((1, 1, 1), (2, 5, 7), (1, 33, 70), (2, 17, 64), (0, 3, 4), (1, 70, 131), (1, 0, 4), (3, 1, 65))
    ):
        values = values_for(node, {B: batch, Q: queries, K: keys}, seed)
        assert gap(node, function, values) < 1e-5, (batch, queries, keys)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_attention_with_nothing_seen_and_with_large_scores(isa: Any) -> None:
    node = _whole(heads=2, key_heads=2, width=16, value=16, mask=("f32", True, False, True), order="bthd")
    function = compiled(node, isa)
    q, k, v, mask = values_for(node, {B: 2, Q: 19, K: 80})
    mask[0, :, 3] = -torch.inf
    mask[1, :, 4] = torch.finfo(torch.float32).min
    mask[1, :, 5, 70:] = -torch.inf
    mask[1, :, 6, :64] = -torch.inf
    out = computed(node, function, [q, k, v, mask], q.shape)
    assert (out[0, 3] == 0).all()
    assert torch.allclose(out[1, 4], v[1].mean(0), atol=1e-5)
    assert gap(node, function, [q * 30, k * 30, v, mask]) < 1e-4


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_long_attention_runs_in_parallel(isa: Any) -> None:
    node = _whole(heads=4, key_heads=2, width=16, value=16, causal=True, order="bthd")
    function = compiled(node, isa)
    assert gap(node, function, values_for(node, {B: 2, Q: 150, K: 151})) < 1e-5


STEP: dict[str, dict[str, Any]] = {
    "one": {"heads": 9, "key_heads": 3, "new": 1, "width": 64, "value": 64, "order": "bthd"},
    "padding": {
        "heads": 4,
        "key_heads": 4,
        "new": 2,
        "width": 32,
        "value": 32,
        "mask": ("bool", True, False, False),
    },
    "few": {
        "heads": 4,
        "key_heads": 2,
        "new": 3,
        "width": 24,
        "value": 40,
        "mask": ("f32", False, True, True),
        "softcap": 3.0,
        "order": "bthd",
    },
    "odd": {"heads": 3, "key_heads": 1, "new": 1, "width": 7, "value": 5, "mask": ("bool", True, True, True)},
}


def _step(
    heads: int, key_heads: int, new: int, width: int, value: int, mask: Any = None, softcap: Any = None,
    order: str = "bhtd",
) -> Node:  # fmt: skip
    return kernel_node(
        "attention_step", _heads("q", order, heads, new, width), leaf("pk", "f32", B, key_heads, K, width),
        leaf("pv", "f32", B, key_heads, K, value), _heads("k", order, key_heads, new, width),
        _heads("v", order, key_heads, new, value), _mask(mask, heads, new, size(K + new)), None, softcap,
        order, order, order, order,
    )  # fmt: skip


@pytest.mark.parametrize(("isa", "name"), _pairs(STEP, ("few",)), ids=str)
def test_attention_step_is_its_meaning(isa: str, name: str) -> None:
    node = _step(**STEP[name])
    function = compiled(node, BY_NAME[isa])
    for seed, (batch, past) in enumerate(
        ((1, 1), (2, 5), (1, 0), (1, 64), (2, 257), (0, 4), (1, 301), (1, 4001))
    ):
        values = values_for(node, {B: batch, K: past}, seed)
        assert gap(node, function, values) < 1e-5, (batch, past)


@pytest.mark.parametrize("each", RULES, ids=lambda r: r.name)
def test_rules(each: Any) -> None:
    assert check_example(each) < 1e-6


def test_permutes_around_attention_and_rope_are_gone() -> None:
    q, k, v = (leaf(n, "f32", B, Q, h, 16) for n, h in (("q", 4), ("k", 2), ("v", 2)))
    cos, sin = leaf("c", "f32", 1, 1, Q, 8), leaf("s", "f32", 1, 1, Q, 8)
    first = [aten.permute(n, [0, 2, 1, 3]) for n in (q, k, v)]
    turned = [planish.rope(n, cos, sin) for n in first[:2]]
    out = aten.permute(planish.attention(*turned, first[2], None, True), [0, 2, 1, 3])
    program = rewrite(Program("main", (q, k, v, cos, sin), (out,)), RULES)
    assert [n.op for n in program.nodes if not n.is_leaf].count("aten.permute") == 0
    assert program.outputs[0].args[8:] == ("bthd",) * 4


def test_a_step_over_a_cache_is_recognised() -> None:
    q, k, v = (leaf(n, "f32", B, h, 1, 16) for n, h in (("q", 4), ("k", 2), ("v", 2)))
    past_k, past_v = (leaf(n, "f32", B, 2, K, 16) for n in ("pk", "pv"))
    out = planish.attention(q, aten.cat([past_k, k], 2), aten.cat([past_v, v], 2))
    program = rewrite(Program("main", (q, k, v, past_k, past_v), (out,)), RULES)
    assert program.outputs[0].op == "kernel.attention_step"


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("order", ("bthd", "bhtd"))
def test_rope_is_its_meaning(isa: Any, order: str) -> None:
    for width, half in ((64, 32), (22, 7)):
        tables = [leaf(n, "f32", 1, Q, half) for n in ("cos", "sin")]
        node = kernel_node("rope", _heads("x", order, 3, Q, width), *tables, order)
        function = compiled(node, isa)
        for batch, positions in ((1, 1), (2, 17), (0, 3), (2, 0), (3, 400)):
            assert gap(node, function, values_for(node, {B: batch, Q: positions})) < 1e-6
