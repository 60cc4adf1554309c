"""How fast programs are rewritten, printed and read, and weights encoded.

    python -m benchmarks.ir_speed

Each figure is the best of several runs in this process; the program has some 2,000 nodes of a transformer's kind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from planish.ir.namespace import aten
from planish.ir.node import Node, Program, const, input_leaf
from planish.ir.parser import parse, parse_type
from planish.ir.rewrite import Log, rewrite, sweep
from planish.ir.verify import verify
from planish.passes.canonical.fold import foldable
from planish.passes.canonical.passes import close_rules, exact_rules
from planish.passes.compress.affine import AffineCodec

NODES = 2_060
ELEMENTS = 8_388_608


def block(x: Node, index: int) -> Node:
    """One layer: norm, attention with its views, gated feed-forward."""

    def weight(name: str, kind: str) -> Node:
        return const(f"layers.{index}.{name}.weight", parse_type(kind))

    tokens = x.shape[1]
    norm = aten.rms_norm(x, [64], weight("norm", "f32[64]"))
    heads = [
        aten.permute(aten.view(aten.linear(norm, weight(n, "f32[64, 64]")), [2, tokens, 4, 16]), [0, 2, 1, 3])
        for n in ("q", "k", "v")
    ]
    scores = aten.mul(aten.matmul(heads[0], aten.permute(heads[1], [0, 1, 3, 2])), 0.25)
    mixed = aten.permute(aten.matmul(aten.softmax(scores, -1), heads[2]), [0, 2, 1, 3])
    x = aten.add(x, aten.linear(aten.view(mixed, [2, tokens, 64]), weight("o", "f32[64, 64]")))
    gate = aten.silu(aten.linear(x, weight("gate", "f32[128, 64]")))
    up = aten.linear(x, weight("up", "f32[128, 64]"))
    return aten.add(x, aten.linear(aten.mul(gate, up), weight("down", "f32[64, 128]")))


def program_of(nodes: int) -> Program:
    """Layers until there are so many nodes."""
    x = input_leaf("x", parse_type("f32[2, T, 64]"))
    out, index = x, 0
    while len(Program("main", (x,), (out,)).nodes) < nodes:
        out, index = block(out, index), index + 1
    return Program("main", (x,), (out,))


def best(call: Callable[[], Any], runs: int) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(runs):
        begin = perf_counter()
        call()
        times.append(perf_counter() - begin)
    return min(times)


def main() -> None:
    """Print the figures."""
    program = program_of(NODES)
    rules = (*exact_rules(), *close_rules())
    settled = rewrite(program, rules)
    text = str(settled)
    rows = [
        (
            f"sweep that changes nothing, {len(exact_rules())} exact rules",
            best(lambda: sweep(settled, exact_rules(), Log()), 7),
        ),
        (f"sweep that changes nothing, {len(rules)} rules", best(lambda: sweep(settled, rules, Log()), 7)),
        ("look for constants to fold", best(lambda: foldable(settled), 5)),
        ("verify", best(lambda: verify(settled), 5)),
        ("print", best(lambda: str(settled), 5)),
        ("parse", best(lambda: parse(text), 3)),
    ]
    print(f"{len(settled.nodes)} nodes, {len(text):,} characters")
    for name, seconds in rows:
        print(f"{seconds * 1e3:9.1f} ms  {name}")
    value = torch.randn(ELEMENTS // 1024, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    print(f"{torch.get_num_threads()} threads; affine codes of {ELEMENTS:,} weights in groups of 64")
    for bits in (2, 3, 4, 5, 6, 7, 8):
        for search in ("none", "mse"):
            codec = AffineCodec(bits, 64, search=search)  # type: ignore[arg-type]
            speed = ELEMENTS / best(lambda: codec.encode(value), 2)  # noqa: B023
            print(f"{speed / 1e6:9.1f} million weights/s  {codec.spec}")


if __name__ == "__main__":
    sys.exit(main())
