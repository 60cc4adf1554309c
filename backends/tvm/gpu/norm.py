"""Norms and softmax over the last axis for GPUs: one block a row."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.device import Gpu
from planish.ir.node import Node


def build(node: Node, gpu: Gpu) -> Any:
    """The PrimFunc of ``kernel.rms_norm``, ``kernel.layer_norm`` or ``kernel.softmax``, scheduled."""
    kind = node.op.removeprefix("kernel.")

    def body(flats: list[W.Flat], out: W.Flat) -> None:
        parts = iter(flats)
        given = [next(parts) if isinstance(a, Node) else None for a in node.args]
        width = out.sizes[-1]
        threads = 64 if isinstance(width, int) and width <= 128 else 256
        with W.launch([W.product(out.sizes[:-1])], threads) as ((row,), thread):
            base = row * width
            {"rms_norm": _rms_norm, "layer_norm": _layer_norm, "softmax": _softmax}[kind](
                gpu, thread, threads, width, base, node.args, given, out
            )

    return W.function(node, gpu, body)


def _sum(gpu: Gpu, thread: Any, threads: int, width: Any, value: Any) -> Any:
    """The sum over a row of ``value(k)``."""
    total = W.local(1)
    W.put(total, 0, W.real(0.0))
    with W.strided(thread, width, threads) as k:
        W.put(total, 0, total[0] + value(k))
    return W.named(W.block_reduce(gpu, thread, threads, total[0], W.add))


def _rms_norm(
    gpu: Gpu, thread: Any, threads: int, width: Any, base: Any, args: Any, given: list[Any], out: W.Flat
) -> None:
    x, weight, residual, _ = given

    def whole(k: Any) -> Any:
        value = x.load(base + k)
        return value if residual is None else residual.load(base + k) + value

    squares = _sum(gpu, thread, threads, width, lambda k: _square(whole(k)))
    factor = W.named(tirx.rsqrt(squares / _float(width) + W.real(args[3])))
    with W.strided(thread, width, threads) as k:
        value = whole(k) * factor
        out.store(base + k, value if weight is None else value * weight.load(k))


def _layer_norm(
    gpu: Gpu, thread: Any, threads: int, width: Any, base: Any, args: Any, given: list[Any], out: W.Flat
) -> None:
    x, weight, bias, residual, _ = given

    def whole(k: Any) -> Any:
        value = x.load(base + k)
        return value if residual is None else residual.load(base + k) + value

    mean = W.named(_sum(gpu, thread, threads, width, whole) / _float(width))
    squares = _sum(gpu, thread, threads, width, lambda k: _square(whole(k) - mean))
    factor = W.named(tirx.rsqrt(squares / _float(width) + W.real(args[4])))
    with W.strided(thread, width, threads) as k:
        value = (whole(k) - mean) * factor
        value = value if weight is None else value * weight.load(k)
        out.store(base + k, value if bias is None else value + bias.load(k))


def _softmax(
    gpu: Gpu, thread: Any, threads: int, width: Any, base: Any, args: Any, given: list[Any], out: W.Flat
) -> None:
    x = given[0]
    top = W.local(1)
    W.put(top, 0, W.exact(0xFF800000))
    with W.strided(thread, width, threads) as k:
        W.put(top, 0, tirx.max(top[0], x.load(base + k)))
    most = W.named(W.block_reduce(gpu, thread, threads, top[0], W.largest))
    total = _sum(gpu, thread, threads, width, lambda k: tirx.exp(x.load(base + k) - most))
    factor = W.named(W.real(1.0) / total)
    with W.strided(thread, width, threads) as k:
        out.store(base + k, tirx.exp(x.load(base + k) - most) * factor)


def _square(value: Any) -> Any:
    held = W.named(value)
    return held * held


def _float(width: Any) -> Any:
    return W.real(float(width)) if isinstance(width, int) else tirx.Cast("float32", width)


__all__ = ["build"]
