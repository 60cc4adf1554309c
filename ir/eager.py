"""Eager torch implementations of the operations that are not one ATen overload."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from planish.ir.eager_cache import attend, attend_parallel, put  # noqa: F401
from planish.ir.eager_layout import fake_quantize, panel, tile_rows, unpanel, untile_rows  # noqa: F401
from planish.ir.eager_sparse import expand_nm  # noqa: F401

Tensor = torch.Tensor
TORCH_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
    "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "u16": torch.uint16,
    "u32": torch.uint32, "u64": torch.uint64, "bool": torch.bool, "c64": torch.complex64,
    "f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2,
}  # fmt: skip


def gelu(x: Tensor, approximate: str) -> Tensor:
    """Gaussian error linear unit."""
    return F.gelu(x, approximate=approximate)


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, include_self: bool
) -> Tensor:
    """Values combined along one axis."""
    return torch.scatter_reduce(x, dim, index, source, reduce, include_self=include_self)


def total(x: Tensor, dims: Any, keepdim: bool) -> Tensor:
    """Sum over axes in the element type of the tensor (ATen widens integers)."""
    return torch.sum(x, dims, keepdim, dtype=x.dtype) if dims else x


def prod(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    """Product over one axis in the element type of the tensor."""
    return torch.prod(x, dim, keepdim, dtype=x.dtype)


def cumsum(x: Tensor, dim: int) -> Tensor:
    """Running sum in the element type of the tensor."""
    return torch.cumsum(x, dim, dtype=x.dtype)


def cumprod(x: Tensor, dim: int) -> Tensor:
    """Running product in the element type of the tensor."""
    return torch.cumprod(x, dim, dtype=x.dtype)


def var(x: Tensor, dims: Any, correction: float, keepdim: bool) -> Tensor:
    """Variance over axes."""
    return torch.var(x, dims, correction=correction, keepdim=keepdim)


def topk_values(x: Tensor, k: int, dim: int, largest: bool) -> Tensor:
    """The k extreme values, in order."""
    return torch.topk(x, k, dim, largest)[0]


def topk_indices(x: Tensor, k: int, dim: int, largest: bool) -> Tensor:
    """Where the k extreme values are."""
    return torch.topk(x, k, dim, largest)[1]


def sort_values(x: Tensor, dim: int, descending: bool) -> Tensor:
    """Values in order."""
    return torch.sort(x, dim=dim, descending=descending, stable=True)[0]


def argsort(x: Tensor, dim: int, descending: bool) -> Tensor:
    """The stable order of values."""
    return torch.sort(x, dim=dim, descending=descending, stable=True)[1]


def batch_norm(x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Batch normalisation with stored statistics."""
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


def full(shape: Any, value: Any, dtype: torch.dtype) -> Tensor:
    """A tensor filled with one number."""
    return torch.full(tuple(shape), value, dtype=dtype)


def arange(start: Any, end: Any, step: Any, dtype: torch.dtype) -> Tensor:
    """An arithmetic progression; empty where the end lies before the start."""
    if (end - start) * step < 0:
        return torch.empty(0, dtype=dtype)
    return torch.arange(start, end, step, dtype=dtype)


def convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    """Convolution over one to three axes."""
    extra = output_padding or (0,) * (x.dim() - 2)
    return torch.convolution(x, weight, bias, stride, padding, dilation, transposed, extra, groups)


def _adaptive(name: str) -> Any:
    return lambda x, output: getattr(F, name)(x, tuple(output))


adaptive_avg_pool1d, adaptive_avg_pool2d = _adaptive("adaptive_avg_pool1d"), _adaptive("adaptive_avg_pool2d")
adaptive_avg_pool3d, adaptive_max_pool1d = _adaptive("adaptive_avg_pool3d"), _adaptive("adaptive_max_pool1d")
adaptive_max_pool2d, adaptive_max_pool3d = _adaptive("adaptive_max_pool2d"), _adaptive("adaptive_max_pool3d")


def upsample_nearest2d(x: Tensor, output: Any) -> Tensor:
    """Nearest neighbour resampling (ratio from the sizes)."""
    return F.interpolate(x, size=tuple(output), mode="nearest")


def upsample_bilinear2d(x: Tensor, output: Any, align_corners: bool) -> Tensor:
    """Bilinear resampling (ratio from the sizes)."""
    return F.interpolate(x, size=tuple(output), mode="bilinear", align_corners=align_corners)


def upsample_bicubic2d(x: Tensor, output: Any, align_corners: bool) -> Tensor:
    """Bicubic resampling (ratio from the sizes)."""
    return F.interpolate(x, size=tuple(output), mode="bicubic", align_corners=align_corners)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool, scale: Any
) -> Tensor:
    """ATen's attention; the causal mask is aligned top-left."""
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool, window: Any, scale: Any, softcap: Any
) -> Tensor:  # fmt: skip
    """Grouped attention with position masks; rows that see nothing yield zeros."""
    heads, key_heads = (q.shape[-3], k.shape[-3]) if q.dim() > 2 else (1, 1)
    if heads != key_heads:
        k, v = k.repeat_interleave(heads // key_heads, -3), v.repeat_interleave(heads // key_heads, -3)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    allowed = position_mask(q.shape[-2], k.shape[-2], causal, window)
    if softcap is None:
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, allowed, scale=scale)
        joint = (
            mask
            if allowed is None
            else mask & allowed
            if mask.dtype is torch.bool
            else mask.masked_fill(~allowed, -math.inf)
        )
        return F.scaled_dot_product_attention(q, k, v, joint, scale=scale)
    scores = softcap * torch.tanh((q @ k.transpose(-1, -2)) * (scale / softcap))
    for each in (mask, allowed):
        if each is not None:
            scores = scores.masked_fill(~each, -math.inf) if each.dtype is torch.bool else scores + each
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v


def position_mask(rows: int, columns: int, causal: bool, window: int | None) -> Tensor | None:
    """Which keys a query may see by position alone, ``bool[rows, columns]``; None if all."""
    if not causal and window is None:
        return None
    distance = torch.arange(rows)[:, None] - torch.arange(columns)[None, :]
    allowed = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return allowed if window is None else allowed & (distance < window)


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary position embedding of the first ``2*cos.shape[-1]`` channels."""
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((out, rest), -1) if rest.shape[-1] else out


def unpack(codes: Tensor, bits: int, length: int) -> Tensor:
    """Codes of ``bits`` bits, little end first, one per byte."""
    if bits == 8:
        return codes[..., :length]
    step, per = bits // math.gcd(bits, 8), 8 // math.gcd(bits, 8)
    parts = F.pad(codes, (0, -codes.shape[-1] % step))
    parts = parts.unflatten(-1, (parts.shape[-1] // step, step))
    made = []
    for low, shift in (divmod(index * bits, 8) for index in range(per)):
        code = parts[..., low] >> shift
        if shift + bits > 8:
            code = code | (parts[..., low + 1] << (8 - shift))
        made.append(code & (2**bits - 1))
    return torch.stack(made, -1).flatten(-2)[..., :length]


def dequant(codes: Tensor, scale: Tensor, zero: Any, group: int, dtype: torch.dtype) -> Tensor:
    """``scale * (codes - zero)`` with one scale and zero per group of the last axis."""
    length = codes.shape[-1]

    def spread(part: Tensor) -> Tensor:
        return part.to(dtype).repeat_interleave(group, -1)[..., :length]

    return (codes.to(dtype) - (spread(zero) if isinstance(zero, Tensor) else zero)) * spread(scale)


def item(value: Any, index: int) -> Any:
    """One result of several."""
    return value[index]


def _recurrent(kind: str) -> Any:
    def apply(
        x: Tensor,
        initial: Any,
        weights: Any,
        biases: bool,
        layers: int,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        hidden = list(initial) if kind == "lstm" else initial[0]
        return getattr(torch, kind)(
            x, hidden, list(weights), biases, layers, 0.0, False, bidirectional, batch_first
        )

    return apply


lstm, gru, rnn_tanh, rnn_relu = (_recurrent(k) for k in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
