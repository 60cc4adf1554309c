"""Rows of coded tables against their meaning: every width, all kinds of zeros, and numbers outside of the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planish.backends.tvm.kernels import embedding as declarations
from planish.ir.namespace import planish
from planish.ir.node import Node
from planish.ir.ops.layout import panel_bytes
from planish.ir.rule import check_example
from tests.backends.tvm.kernel_check import ISAS, compiled, computed, gap, kernel_node, leaf, symbol

T = symbol("T")
ROWS = 37


def _table(bits: int, length: int, group: int, zero: str, scale: str) -> tuple[Node, list[torch.Tensor]]:
    groups, tiles = -(-length // group), -(-ROWS // 16)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (ROWS, length), generator=generator, dtype=torch.uint8)
    scales = torch.rand((ROWS, groups), generator=generator).to(
        torch.float16 if scale == "f16" else torch.float32
    )
    operands = [
        leaf("ids", "i64", T), leaf("p", "u8", tiles, panel_bytes(length, bits)),
        leaf("s", scale, tiles, groups, 16),
    ]  # fmt: skip
    values = [planish.panel(codes, bits), planish.tile_rows(scales)]
    zeros: Any = 3.5
    if zero == "codes":
        packed = torch.randint(0, 256, (ROWS, -(-groups * bits // 8)), generator=generator, dtype=torch.uint8)
        zeros = leaf("z", "u8", tiles, packed.shape[1], 16)
        values.append(planish.tile_rows(packed))
    elif zero != "number":
        zeros = leaf("z", zero, tiles, groups, 16)
        kind = torch.float16 if zero == "f16" else torch.float32
        values.append(planish.tile_rows((torch.rand((ROWS, groups), generator=generator) * 8).to(kind)))
    node = kernel_node("embedding_affine", *operands, zeros, bits, group, ROWS, length)
    return node, values


CASES = (
    (4, 576, 64, "codes", "f16"), (8, 96, 32, "codes", "f32"), (3, 100, 32, "f16", "f16"),
    (6, 64, 4096, "number", "f32"), (5, 70, 70, "f32", "f16"), (7, 160, 32, "codes", "f16"),
    (2, 288, 96, "codes", "f16"), (1, 33, 32, "number", "f32"),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_rows_are_their_meaning(isa: Any, case: Any) -> None:
    node, table = _table(*case)
    function = compiled(node, isa)
    for count in (1, 5, 0, 900):
        ids = torch.randint(0, ROWS, (count,), generator=torch.Generator().manual_seed(count))
        assert gap(node, function, [ids, *table]) < 1e-6


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_numbers_outside_of_the_table_read_its_ends(isa: Any) -> None:
    node, table = _table(4, 64, 32, "codes", "f16")
    function = compiled(node, isa)
    wild = torch.tensor([-1, -(2**40), ROWS, 2**40, 0, ROWS - 1])
    got = computed(node, function, [wild, *table], (6, 64))
    near = computed(node, function, [wild.clamp(0, ROWS - 1), *table], (6, 64))
    assert torch.equal(got, near)


@pytest.mark.parametrize(
    "each", (declarations.select_embedding_affine, declarations.select_embedding_bytes), ids=lambda r: r.name
)
def test_rules(each: Any) -> None:
    assert check_example(each) < 1e-6
