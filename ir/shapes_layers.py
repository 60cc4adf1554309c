"""Shape rules of layers: products, convolutions, pooling, normalisation, attention and recurrence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from planish.ir.shapes import broadcast, keep_float, need, one_dtype, same, tensors
from planish.ir.types import (
    Size,
    TensorType,
    TupleType,
    at_least,
    boolean,
    equal,
    floor_div,
    format_size,
    size,
)


def linear(x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:
    """``x @ weight.T + bias`` over the last axis."""
    need(weight.rank == 2 and x.rank >= 1, "the weight must have two axes")
    same(x.shape[-1], weight.shape[1], "inner sizes")
    kind = one_dtype(x, weight, *tensors(bias))
    if bias is not None:
        need(bias.rank == 1, "the bias must have one axis")
        same(bias.shape[0], weight.shape[0], "bias and output sizes")
    return TensorType(kind, (*x.shape[:-1], weight.shape[0]))


def matmul(a: TensorType, b: TensorType) -> TensorType:
    """Batched matrix product (numpy rules)."""
    need(a.rank >= 1 and b.rank >= 1, "needs at least one axis on each side")
    same(a.shape[-1], b.shape[-2] if b.rank > 1 else b.shape[0], "inner sizes")
    kind = one_dtype(a, b)
    batch = broadcast(a.shape[:-2], b.shape[:-2]) if max(a.rank, b.rank) > 2 else ()
    rows = a.shape[-2:-1] if a.rank > 1 else ()
    columns = b.shape[-1:] if b.rank > 1 else ()
    return TensorType(kind, (*batch, *rows, *columns))


def window_count(
    length: Size, kernel: int, stride: int, padding: Size, dilation: int, ceil: bool = False
) -> Size:
    """How many windows of a convolution or pooling fit (``padding`` is the sum of both sides)."""
    span = size(length + padding - dilation * (kernel - 1) - 1)
    need(
        at_least(span, 0) or not isinstance(span, int),
        f"a window of {kernel} does not fit into {format_size(length)}",
    )
    if ceil:
        count = size(floor_div(size(span + stride - 1), stride) + 1)
        if (
            isinstance(count, int)
            and isinstance(length, int)
            and (count - 1) * stride >= length + int(padding) // 2
        ):
            return count - 1
        return count
    return size(floor_div(span, stride) + 1)


def convolution(
    x: TensorType, weight: TensorType, bias: TensorType | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool = False, output_padding: Sequence[int] = (), groups: int = 1,
) -> TensorType:  # fmt: skip
    """Convolution over one to three spatial axes, ``x`` is ``[N, C, ...]``."""
    spatial = x.rank - 2
    need(spatial in (1, 2, 3) and weight.rank == x.rank, f"ranks {x.rank} and {weight.rank} do not fit")
    for what, given in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        need(len(given) == spatial, f"{what} needs {spatial} numbers")
    kind = one_dtype(x, weight, *tensors(bias))
    kernel = weight.shape[2:]
    sizes: list[Size] = []
    if transposed:
        same(x.shape[1], weight.shape[0], "channels")
        extra = output_padding or (0,) * spatial
        for i in range(spatial):
            sizes.append(
                size(
                    (x.shape[2 + i] - 1) * stride[i]
                    - 2 * padding[i]
                    + dilation[i] * (kernel[i] - 1)
                    + extra[i]
                    + 1
                )
            )
        return TensorType(kind, (x.shape[0], size(weight.shape[1] * groups), *sizes))
    same(x.shape[1], size(weight.shape[1] * groups), "channels")
    for i in range(spatial):
        sizes.append(window_count(x.shape[2 + i], kernel[i], stride[i], 2 * padding[i], dilation[i]))
    return TensorType(kind, (x.shape[0], weight.shape[0], *sizes))


def pool(
    x: TensorType, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> TensorType:
    """Pooling over the last axes; ``rest`` is ``(ceil, count_include_pad)`` or ``(dilation, ceil)``."""
    spatial = len(kernel)
    dilation = rest[0] if rest and isinstance(rest[0], tuple) else (1,) * spatial
    ceil = rest[1] if rest and isinstance(rest[0], tuple) else bool(rest and rest[0])
    need(x.rank in (spatial + 1, spatial + 2), f"rank {x.rank} does not fit {spatial} spatial axes")
    out = list(x.shape)
    for i in range(spatial):
        axis = x.rank - spatial + i
        out[axis] = window_count(x.shape[axis], kernel[i], stride[i], 2 * padding[i], dilation[i], ceil)
    return TensorType(x.dtype, tuple(out))


def resize(x: TensorType, output: Sequence[Size], *_: Any) -> TensorType:
    """Last axes resized to ``output``."""
    return TensorType(x.dtype, (*x.shape[: x.rank - len(output)], *output))


def grid_sample(x: TensorType, grid: TensorType, *_: Any) -> TensorType:
    """Samples of an image at the places of a grid."""
    same(x.shape[0], grid.shape[0], "batch sizes")
    return TensorType(one_dtype(x, grid), (*x.shape[:2], *grid.shape[1:-1]))


def normalize(x: TensorType, shape: Sequence[Size], *weights: Any) -> TensorType:
    """Normalisation over the last axes."""
    need(0 < len(shape) <= x.rank, "the normalised shape does not fit")
    for have, want in zip(x.shape[x.rank - len(shape) :], shape, strict=True):
        same(have, want, "normalised sizes")
    for weight in tensors(*weights):
        broadcast(weight.shape, x.shape[x.rank - len(shape) :])
    one_dtype(x, *tensors(*weights))
    return keep_float(x)


def channel_norm(x: TensorType, *rest: Any) -> TensorType:
    """Normalisation with one weight per channel (axis 1)."""
    need(x.rank >= 2, "needs a channel axis")
    for weight in tensors(*rest):
        same(weight.shape[0], x.shape[1], "weight and channel sizes")
    return keep_float(x)


def attention(
    q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None = None, *_: Any
) -> TensorType:
    """Attention of ``q [..., H, S, D]`` over ``k [..., Hk, T, D]`` and ``v [..., Hk, T, Dv]``, H = n*Hk."""
    need(q.rank >= 2 and k.rank == q.rank and v.rank == q.rank, "q, k and v need one rank")
    same(q.shape[-1], k.shape[-1], "head sizes of q and k")
    same(k.shape[-2], v.shape[-2], "lengths of k and v")
    if q.rank > 2:
        same(k.shape[-3], v.shape[-3], "heads of k and v")
        grouped = (
            isinstance(q.shape[-3], int) and isinstance(k.shape[-3], int) and q.shape[-3] % k.shape[-3] == 0
        )
        need(
            grouped or equal(q.shape[-3], k.shape[-3]),
            f"{q.shape[-3]} query heads do not group over {k.shape[-3]}",
        )
        broadcast(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    if mask is not None:
        need(
            mask.dtype is boolean or mask.dtype is q.dtype,
            f"the mask must be bool or {q.dtype}, got {mask.dtype}",
        )
        broadcast(mask.shape, (*q.shape[:-1], k.shape[-2]))
    return TensorType(one_dtype(q, k, v), (*q.shape[:-1], v.shape[-1]))


def plain_attention(
    q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None = None, *_: Any
) -> TensorType:
    """Attention with as many key heads as query heads."""
    result = attention(q, k, v, mask)
    if q.rank > 2:
        same(q.shape[-3], k.shape[-3], "heads of q and k")
    return result


def rope(x: TensorType, cos: TensorType, sin: TensorType, interleaved: bool = False) -> TensorType:
    """Rotation of pairs of channels; ``cos`` and ``sin`` hold half as many columns as channels are rotated."""
    one_dtype(x, cos, sin)
    need(cos.rank >= 1 and cos.shape == sin.shape, "cos and sin need one shape")
    need(at_least(x.shape[-1], size(2 * cos.shape[-1])), "more channels would be rotated than there are")
    broadcast(x.shape[:-1], cos.shape[:-1])
    return x


def recurrent(results: int) -> Callable[..., TupleType]:
    """Rule for recurrent layers with ``results`` outputs (sequence, then last states)."""

    def rule(
        x: TensorType, initial: Sequence[TensorType], weights: Sequence[TensorType], biases: bool, layers: int,
        bidirectional: bool, batch_first: bool,
    ) -> TupleType:  # fmt: skip
        need(len(initial) == results - 1, f"needs {results - 1} initial states")
        width = initial[0].shape[-1]
        out = TensorType(
            one_dtype(x, *initial, *weights), (*x.shape[:-1], size(width * (2 if bidirectional else 1)))
        )
        return TupleType((out, *initial))

    return rule
