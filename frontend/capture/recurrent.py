"""Keep recurrent layers whole while torch exports: it would unroll them over time and fix the length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_SCHEMA = (
    "(Tensor input, Tensor[] initial, Tensor[] weights, bool has_biases, int num_layers, float dropout, bool train,"
    " bool bidirectional, bool batch_first) -> "
)
_library: list[torch.library.Library] = []


def _fake(states: int) -> Callable[..., tuple[Tensor, ...]]:
    def shapes(
        x: Tensor,
        initial: Sequence[Tensor],
        weights: Any,
        biases: Any,
        layers: Any,
        dropout: Any,
        train: Any,
        bidirectional: bool,
        batch_first: Any,
    ) -> tuple[Tensor, ...]:
        width = initial[0].shape[-1] * (2 if bidirectional else 1)
        return (x.new_empty(*x.shape[:-1], width), *(torch.empty_like(h) for h in initial[:states]))

    return shapes


def _register() -> None:
    """Define ``planish_capture::lstm`` and its kin, once: opaque operations with the arguments of ATen's."""
    if _library:
        return
    library = torch.library.Library("planish_capture", "DEF")
    _library.append(library)
    for kind in KINDS:
        states = 2 if kind == "lstm" else 1
        library.define(kind + _SCHEMA + f"({', '.join(['Tensor'] * (states + 1))})")
        library.impl(kind, _fake(states), "Meta")


def _opaque(kind: str) -> Callable[..., Any]:
    operation = getattr(torch.ops.planish_capture, kind).default

    def keep(x: Tensor, initial: Any, *rest: Any, **named: Any) -> Any:
        return operation(x, [initial] if isinstance(initial, Tensor) else initial, *rest, **named)

    return keep


@contextlib.contextmanager
def keep_recurrent() -> Iterator[None]:
    """Within this context `torch.export` writes LSTM, GRU and RNN layers as one ``planish_capture::<kind>`` call."""
    _register()
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    saved: list[tuple[Any, Any]] = []
    try:
        for kind in KINDS:
            overload = getattr(torch.ops.aten, kind).input
            saved.append((overload, overload.py_kernels.get(key)))
            overload.py_kernels[key] = _opaque(kind)
            overload._dispatch_cache.clear()
        yield
    finally:
        for overload, kernel in saved:
            overload.py_kernels.pop(key, None)
            if kernel is not None:
                overload.py_kernels[key] = kernel
            overload._dispatch_cache.clear()
