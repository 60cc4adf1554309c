"""Types as text: what is read, what is refused, and sizes from shapes."""

from __future__ import annotations

import pytest

from planish.errors import ArtifactError
from planish.runtime.typetext import evaluate, parse_type, solve


def test_types() -> None:
    kind = parse_type("u8[4096, T//2, max(B, 2) * -(1 - T) + T % 3, min(B, T, 7)]")
    assert (kind.dtype, kind.rank, kind.static()) == ("u8", 4, None)
    assert kind.sizes({"T": 9, "B": 1}) == (4096, 4, 16, 1)
    assert parse_type("f32[]").static() == ()
    assert parse_type("f32[2, 3*4]").static() == (2, 12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f32",
        "f33[2]",
        "f32[T",
        "f32[2.0]",
        "f32['a']",
        "f32[__import__('os')]",
        "f32[T.x]",
        "f32[T**9]",
        "f32[True]",
    ]
    + [
        "f32[[1]]",
        "f32[*T]",
        "f32[T/2]",
        "f32[max()]",
        "f32[max(*T)]",
        "f32[abs(T)]",
        "f32[1 if T else 2]",
        "f32[x:=1]",
    ]
    + [
        "f32[" + "(" * 300 + "T" + ")" * 300 + "]",
        "f32[" + "-" * 200 + "T]",
        "f32[" + "T+" * 3000 + "T]",
        "f32[2]; 1",
    ]
    + ["f32[99999999999999999999]", "f32[1] + f32[2]", "f32[T]]"],
)
def test_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="PL611"):
        parse_type(text)


def test_evaluation_faults() -> None:
    for text in ("f32[T//0]", "f32[S]", "f32[T*T*T*T]"):
        with pytest.raises(ArtifactError, match="PL611"):
            parse_type(text).sizes({"T": 2**20})


def test_solve() -> None:
    (dim,) = parse_type("f32[2*T + 6]").dims
    assert solve(dim, 10, {}) == {"T": 2}
    assert solve(dim, 11, {}) == {}
    assert evaluate(dim, {"T": 2}) == 10
    (dim,) = parse_type("f32[T//2]").dims
    assert solve(dim, 10, {}) == {}
    (dim,) = parse_type("f32[S + T]").dims
    assert solve(dim, 10, {}) == {}
    assert solve(dim, 10, {"S": 4}) == {"T": 6}
