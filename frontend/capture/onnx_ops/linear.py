"""Matrix products and Einstein sums."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontend.capture.onnx_ops.registry import At, Operand, Result, onnx_op
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import Size, equal, product, size


def transposed(x: Node) -> Node:
    """The last two axes swapped."""
    order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    return aten.permute(x, order)


@onnx_op("MatMul")
def matmul(a: Node, b: Node) -> Result:
    """a @ b"""
    return aten.matmul(a, b)


@onnx_op("Gemm")
def gemm(
    a: Node,
    b: Node,
    c: Operand | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Result:
    """alpha * A @ B + beta * C"""
    a = transposed(a) if transA else a
    plain = alpha == 1.0 and a.dtype.is_float
    if (
        transB
        and plain
        and beta == 1.0
        and isinstance(c, Node)
        and c.rank == 1
        and equal(c.shape[0], b.shape[0])
    ):
        return aten.linear(a, b, c)
    if transB and plain:
        result = aten.linear(a, b)
    else:
        result = aten.matmul(a, transposed(b) if transB else b)
    if alpha != 1.0:
        result = aten.mul(result, alpha if result.dtype.is_float else int(alpha))
    if c is None or beta == 0.0:
        return result
    if beta != 1.0:
        factor = beta if result.dtype.is_float else int(beta)
        c = aten.mul(c, factor) if isinstance(c, Node) else c * factor
    return aten.add(result, c)


@onnx_op("Einsum")
def einsum(*xs: Node, equation: str, at: At) -> Result:
    """Products summed over the labels that the result lacks"""
    terms, out = _labels(equation, [x.rank for x in xs], at)
    operands = [_diagonal(x, list(t), at) for x, t in zip(xs, terms, strict=True)]
    result, labels = operands[0]
    for index, (other, its) in enumerate(operands[1:], 2):
        later = set(out).union(*(t for _, t in operands[index:]))
        result, labels = _contract(result, labels, other, its, later)
    result, labels = _sum_out(result, labels, set(out))
    return aten.permute(result, [labels.index(label) for label in out]) if len(out) > 1 else result


def _labels(equation: str, ranks: list[int], at: At) -> tuple[list[list[str]], list[str]]:
    """The label of every axis; the axes of an ellipsis are labelled ``.0``, ``.1`` from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    at.need(len(terms) == len(ranks), f"the equation {equation!r} has {len(terms)} terms", "PL141")
    found = [_term(t, r, at) for t, r in zip(terms, ranks, strict=True)]
    if arrow:
        dots = max((sum(label[0] == "." for label in t) for t in found), default=0)
        return found, _term(right, len(right.replace("...", "")) + (dots if "..." in right else 0), at)
    flat = [label for t in found for label in t]
    dots_ = sorted({label for label in flat if label[0] == "."}, key=lambda d: -int(d[1:]))
    return found, dots_ + sorted(label for label in set(flat) if label[0] != "." and flat.count(label) == 1)


def _term(text: str, rank: int, at: At) -> list[str]:
    head, dots, tail = text.partition("...")
    names = head + tail
    at.need(all(c.isascii() and c.isalpha() for c in names), f"the term {text!r} is not valid", "PL141")
    many = rank - len(names)
    at.need(many == 0 or (bool(dots) and many >= 0), f"the term {text!r} does not fit rank {rank}", "PL141")
    return [*head, *(f".{i}" for i in reversed(range(many))), *tail]


def _diagonal(x: Node, labels: list[str], at: At) -> tuple[Node, list[str]]:
    """Repeated labels of one operand: only their diagonal counts."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            i = labels.index(label)
            j = labels.index(label, i + 1)
            n = x.shape[i]
            if not isinstance(n, int):
                at.refuse("a diagonal of a dynamic dimension")
            rest = [k for k in range(x.rank) if k not in (i, j)]
            kept = tuple(x.shape[k] for k in rest)
            x = aten.view(aten.permute(x, [*rest, i, j]), (*kept, n * n))
            x = aten.slice(x, len(kept), 0, n * n, n + 1)
            labels = [labels[k] for k in rest] + [label]
    return x, labels


def _sum_out(x: Node, labels: list[str], needed: set[str]) -> tuple[Node, list[str]]:
    gone = [i for i, label in enumerate(labels) if label not in needed]
    if not gone:
        return x, labels
    return aten.sum(x, gone), [label for label in labels if label in needed]


def _contract(a: Node, la: list[str], b: Node, lb: list[str], later: set[str]) -> tuple[Node, list[str]]:
    """One product of two operands, as a batched matrix product."""
    a, la = _sum_out(a, la, later | set(lb))
    b, lb = _sum_out(b, lb, later | set(la))
    sizes: dict[str, Size] = {}
    for x, labels in ((a, la), (b, lb)):
        for label, extent in zip(labels, x.shape, strict=True):
            if label not in sizes or equal(sizes[label], 1):
                sizes[label] = extent
    both = [label for label in la if label in lb]
    a, b = _spread(a, la, both, sizes), _spread(b, lb, both, sizes)
    batch = [label for label in both if label in later]
    inner = [label for label in both if label not in later]
    rows = [label for label in la if label not in lb]
    columns = [label for label in lb if label not in la]

    def arranged(x: Node, labels: list[str], groups: Sequence[Sequence[str]]) -> Node:
        x = aten.permute(x, [labels.index(label) for g in groups for label in g]) if x.rank > 1 else x
        return aten.view(x, [size(product(sizes[label] for label in g)) for g in groups])

    left, right = arranged(a, la, (batch, rows, inner)), arranged(b, lb, (batch, inner, columns))
    labels = [*batch, *rows, *columns]
    return aten.view(aten.matmul(left, right), [sizes[label] for label in labels]), labels


def _spread(x: Node, labels: list[str], both: list[str], sizes: dict[str, Size]) -> Node:
    want = tuple(sizes[label] if label in both else s for label, s in zip(labels, x.shape, strict=True))
    return x if want == x.shape else aten.expand(x, want)
