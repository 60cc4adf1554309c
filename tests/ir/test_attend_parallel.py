"""Attention over contexts read side by side: the formula of APE row by row, and where it is plain attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from planish.errors import ShapeError
from planish.ir.namespace import planish
from planish.ir.node import input_leaf
from planish.ir.run import apply
from planish.ir.types import tensor_type

HEADS, GROUPS, CAPACITY, WIDTH, DEEP = 6, 2, 24, 8, 5


class Case:
    """Random queries over caches of three sequences, in which unused rows hold NaN."""

    def __init__(self, rows: int = 4, seed: int = 0) -> None:
        make = torch.Generator().manual_seed(seed)
        self.q = torch.randn(3, HEADS, rows, WIDTH, generator=make)
        self.k = torch.randn(3, GROUPS, CAPACITY, WIDTH, generator=make)
        self.v = torch.randn(3, GROUPS, CAPACITY, DEEP, generator=make)
        self.start, self.count = torch.tensor([15, 9, 20]), torch.tensor([rows, 1, rows])
        self.first, self.last = torch.tensor([3, 1, 6]), torch.tensor([15, 9, 13])
        for b, end in enumerate((self.start + self.count).tolist()):
            self.k[b, :, end:] = math.nan
            self.v[b, :, end:] = math.nan

    def places(self, *given: Any) -> tuple[Tensor, ...]:
        return self.q, self.k, self.v, self.start, self.count, *given

    def parallel(self, temperature: float, share: float, *more: Any) -> Tensor:
        """The operation with the same numbers for all sequences."""
        numbers = (torch.full((3,), temperature), torch.full((3,), share))
        made: Tensor = apply("planish.attend_parallel", *self.places(self.first, self.last, *numbers), *more)
        return made


def formula(case: Case, temperature: float, share: float, scale: float, softcap: float | None) -> Tensor:
    """Two attentions for each row of a query, merged by their log-sum-exps, in double precision."""
    out = torch.zeros(*case.q.shape[:3], DEEP, dtype=torch.float64)
    for b, h, i in ((b, h, i) for b in range(3) for h in range(HEADS) for i in range(case.q.shape[2])):
        q, group = case.q[b, h, i].double(), h // (HEADS // GROUPS)
        first, last, start = (int(x[b]) for x in (case.first, case.last, case.start))
        end = min(start + i + 1, start + int(case.count[b]))
        parts = []
        for rows, t in (([*range(first, last)], temperature), ([*range(first), *range(last, end)], 1.0)):
            s = case.k[b, group, rows].double() @ q * scale
            s = (s if softcap is None else softcap * torch.tanh(s / softcap)) / t
            parts.append((torch.logsumexp(s, 0), torch.softmax(s, 0) @ case.v[b, group, rows].double()))
        (inner, context), (outer, others) = parts
        weights = torch.softmax(torch.stack([inner * temperature * share, outer]), 0)
        out[b, h, i] = weights[0] * context + weights[1] * others
    return out


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("options", [(None, None), (0.2, 30.0)])
@pytest.mark.parametrize("temperature,share", [(1.0, 1.0), (0.9, 0.9), (0.2, 1.7), (3.0, 0.1)])
def test_formula(rows: int, temperature: float, share: float, options: tuple[Any, Any]) -> None:
    case = Case(rows)
    want = formula(case, temperature, share, options[0] or WIDTH**-0.5, options[1])
    torch.testing.assert_close(
        case.parallel(temperature, share, *options).double(), want, rtol=1e-5, atol=1e-5
    )


def test_plain_attention_where_nothing_is_scaled_or_no_context_is_there() -> None:
    case = Case()
    want = apply("planish.attend", *case.places())
    torch.testing.assert_close(case.parallel(1.0, 1.0), want, rtol=1e-5, atol=1e-6)
    case.last = case.first
    torch.testing.assert_close(case.parallel(0.3, 0.4), want, rtol=1e-5, atol=1e-6)


def test_contexts_alone_and_rows_that_see_nothing() -> None:
    case = Case()
    case.first, case.last = torch.zeros(3, dtype=torch.int64), torch.full((3,), CAPACITY)
    sharper = apply("planish.attend", *case.places(None, None, WIDTH**-0.5 / 0.5))
    torch.testing.assert_close(case.parallel(0.5, 0.7), sharper, rtol=1e-5, atol=1e-6)
    case.start, case.count = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(case.parallel(0.5, 0.7), torch.zeros(3, HEADS, 4, DEEP))


def test_half_precision_is_computed_in_single() -> None:
    case = Case()
    want = case.parallel(0.2, 0.5)
    case.q, case.k, case.v = (x.half() for x in (case.q, case.k, case.v))
    have = case.parallel(0.2, 0.5)
    assert have.dtype is torch.float16
    torch.testing.assert_close(have.float(), want, rtol=1e-2, atol=1e-2)


def test_types() -> None:
    kinds = {
        "q": "f32[2, 4, 3, 8]", "k": "f32[2, 2, 9, 8]", "v": "f32[2, 2, 9, 6]", "start": "i64[2]", "count": "i64[2]",
        "first": "i64[2]", "last": "i64[2]", "temperature": "f32[2]", "share": "f32[2]",
    }  # fmt: skip

    def made(**other: str) -> Any:
        types = (kinds | other).items()
        return planish.attend_parallel(*(input_leaf(n, _type(t)) for n, t in types))

    assert str(made().type) == "f32[2, 4, 3, 6]"
    for wrong in (
        {"first": "i32[2]"},
        {"last": "i64[3]"},
        {"temperature": "f16[2]"},
        {"share": "f32[2, 1]"},
        {"q": "f32[2, 3, 3, 8]"},
    ):
        with pytest.raises(ShapeError) as caught:
            made(**wrong)
        assert caught.value.code == "PL310"


def _type(text: str) -> Any:
    kind, _, shape = text.rstrip("]").partition("[")
    return tensor_type(kind, *map(int, shape.split(", ")))
