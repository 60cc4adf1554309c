"""Products, convolutions, pooling, normalisation, attention and recurrent layers of ATen."""

from __future__ import annotations

import math
from typing import Any

from planish.frontend.capture.torch_ops.base import HANDLERS, cast, handles, refuse, reshaped
from planish.frontend.capture.torch_ops.pointwise import add, mul
from planish.frontend.capture.torch_ops.structure import expand, unsqueeze
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.shapes import broadcast
from planish.ir.types import equal, floor_div, i64, product, size


@handles("linear.default")
def linear(x: Node, weight: Node, bias: Node | None = None) -> Node:
    """x @ weight.T + bias."""
    return aten.linear(x, weight, bias)


@handles("matmul.default", "mm.default", "bmm.default", "mv.default", "dot.default")
def matmul(a: Node, b: Node) -> Node:
    """Matrix product."""
    return aten.matmul(a, b)


@handles("addmm.default", "baddbmm.default", "addmv.default")
def addmm(x: Node, a: Node, b: Node, *, beta: Any = 1, alpha: Any = 1) -> Node:
    """beta * x + alpha * (a @ b)."""
    out = aten.matmul(a, b)
    out = out if alpha == 1 else mul(out, alpha)
    return out if beta == 0 else add(out, x if beta == 1 else mul(x, beta))


@handles("outer.default", "ger.default")
def outer(a: Node, b: Node) -> Node:
    """All products."""
    return aten.mul(aten.view(a, [a.shape[0], 1]), b)


def _numbers(value: Any, count: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * count if len(values) == 1 else values)


def _conv(x: Node, weight: Node, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any,
          groups: int) -> Node:  # fmt: skip
    spatial = weight.rank - 2
    batched = x.rank == spatial + 2
    x = x if batched else unsqueeze(x, 0)
    if isinstance(padding, str):
        x, padding = _named_padding(x, weight, _numbers(dilation, spatial), padding)
    out = aten.convolution(
        x, weight, bias, _numbers(stride, spatial), _numbers(padding, spatial), _numbers(dilation, spatial), transposed,
        _numbers(extra, spatial) if transposed else (), groups,
    )  # fmt: skip
    return out if batched else aten.view(out, out.shape[1:])


def _named_padding(x: Node, weight: Node, dilation: Any, padding: str) -> tuple[Node, Any]:
    totals = [
        d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)
    ]
    if all(t % 2 == 0 for t in totals):
        return x, tuple(t // 2 for t in totals)
    amounts = [a for t in reversed(totals) for a in (t // 2, t - t // 2)]
    return aten.pad(x, amounts), (0,) * len(totals)


@handles("convolution.default")
def convolution(x: Node, w: Node, b: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any,
                groups: int) -> Node:  # fmt: skip
    """Convolution."""
    return _conv(x, w, b, stride, padding, dilation, transposed, extra, groups)


for _n in (1, 2, 3):
    HANDLERS[f"conv{_n}d.default"] = HANDLERS[f"conv{_n}d.padding"] = (
        lambda x, w, b=None, stride=1, padding=0, dilation=1, groups=1: _conv(
            x, w, b, stride, padding, dilation, False, (), groups
        )
    )
    HANDLERS[f"conv_transpose{_n}d.{'input' if _n > 1 else 'default'}"] = (
        lambda x, w, b=None, stride=1, padding=0, extra=0, groups=1, dilation=1: _conv(
            x, w, b, stride, padding, dilation, True, extra, groups
        )
    )
HANDLERS["conv_transpose3d.input"] = HANDLERS["conv_transpose2d.input"]


def _pool(name: str, axes: int) -> Any:
    def maximum(
        x: Node, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> Node:  # fmt: skip
        sizes = _numbers(kernel, axes)
        node: Node = getattr(aten, name)(
            x,
            sizes,
            _numbers(stride, axes) if stride else sizes,
            _numbers(padding, axes),
            _numbers(dilation, axes),
            ceil,
        )
        return node

    def average(
        x: Node, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, count: bool = True,
        divisor: Any = None,
    ) -> Node:  # fmt: skip
        sizes = _numbers(kernel, axes)
        node: Node = getattr(aten, name)(
            x,
            sizes,
            _numbers(stride, axes) if stride else sizes,
            _numbers(padding, axes),
            ceil,
            count or bool(divisor),
        )
        return aten.mul(node, math.prod(sizes) / divisor) if divisor else node

    return maximum if name.startswith("max") else average


for _n in (1, 2, 3):
    HANDLERS[f"max_pool{_n}d.default"] = _pool(f"max_pool{_n}d", _n)
    HANDLERS[f"avg_pool{_n}d.default"] = _pool(f"avg_pool{_n}d", _n)


@handles("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def max_pool_with_indices(x: Node, kernel: Any, *rest: Any) -> tuple[Node, None]:
    """The values of max pooling; its indices are not part of the dialect."""
    axes = 3 if len(kernel) == 3 else 2
    return _pool(f"max_pool{axes}d", axes)(x, kernel, *rest), None


def _adaptive(kind: str, axes: int) -> Any:
    def apply(x: Node, output: Any) -> Node:
        lead = x.rank - axes
        sizes = [x.shape[lead + i] if o is None else o for i, o in enumerate(_numbers(output, axes))]
        if all(o == 1 for o in sizes):
            dims = list(range(lead, x.rank))
            node: Node = (aten.mean if kind == "avg" else aten.amax)(x, dims, True)
            return node
        every: Node = getattr(aten, f"adaptive_{kind}_pool{axes}d")(x, sizes)
        return every

    return apply


for _n in (1, 2, 3):
    HANDLERS[f"adaptive_avg_pool{_n}d.default"] = HANDLERS[f"_adaptive_avg_pool{_n}d.default"] = _adaptive(
        "avg", _n
    )
    HANDLERS[f"adaptive_max_pool{_n}d.default"] = (
        lambda x, output, _n=_n: (_adaptive("max", _n)(x, output), None)
    )  # fmt: skip


def _scaled(x: Node, output: Any, factors: Any) -> list[Any]:
    if output is not None:
        return list(output)
    sizes = x.shape[x.rank - len(factors) :]
    if any(not float(f).is_integer() for f in factors):
        if not all(isinstance(s, int) for s in sizes):
            raise refuse("resampling a dynamic size by a fractional factor")
        return [int(s * f) for s, f in zip(sizes, factors, strict=True)]
    return [product((s, int(f))) for s, f in zip(sizes, factors, strict=True)]


def _resize(name: str, align: bool) -> Any:
    def apply(x: Node, output: Any, *rest: Any) -> Node:
        factors = next((r for r in rest if isinstance(r, (list, tuple))), None)
        sizes = _scaled(x, output, factors)
        corners = (bool(rest and rest[0] is True),) if align else ()
        node: Node = getattr(aten, name)(x, sizes, *corners)
        return node

    return apply


for _kind, _align in (("nearest", False), ("bilinear", True), ("bicubic", True)):
    for _overload in ("vec", "default"):
        HANDLERS[f"upsample_{_kind}2d.{_overload}"] = _resize(f"upsample_{_kind}2d", _align)


def _resize_line(name: str, align: bool) -> Any:
    two = _resize(name, align)

    def apply(x: Node, output: Any, *rest: Any) -> Node:
        wide = unsqueeze(x, -2)
        factors = next((r for r in rest if isinstance(r, (list, tuple))), None)
        sizes = [1, *_scaled(x, output, factors)]
        out: Node = two(wide, sizes, *(r for r in rest if isinstance(r, bool)))
        return aten.view(out, [*x.shape[:-1], sizes[-1]])

    return apply


for _overload in ("vec", "default"):
    HANDLERS[f"upsample_nearest1d.{_overload}"] = _resize_line("upsample_nearest2d", False)
    HANDLERS[f"upsample_linear1d.{_overload}"] = _resize_line("upsample_bilinear2d", True)


@handles("grid_sampler_2d.default", "grid_sampler.default")
def grid_sampler(x: Node, grid: Node, mode: int = 0, padding: int = 0, corners: bool = False) -> Node:
    """Samples of an image."""
    if x.rank != 4:
        raise refuse("grid sampling of volumes")
    return aten.grid_sampler_2d(x, grid, mode, padding, bool(corners))


@handles("layer_norm.default")
def layer_norm(x: Node, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Node:
    """Layer normalisation."""
    return aten.layer_norm(x, list(shape), weight, bias, eps)


HANDLERS["native_layer_norm.default"] = lambda x, shape, w, b, eps: (
    layer_norm(x, shape, w, b, eps),
    None,
    None,
)


@handles("rms_norm.default")
def rms_norm(x: Node, shape: Any, weight: Any = None, eps: float | None = None) -> Node:
    """Root mean square normalisation."""
    smallest = {
        "f32": 1.1920928955078125e-07,
        "f16": 0.0009765625,
        "bf16": 0.0078125,
        "f64": 2.220446049250313e-16,
    }
    return aten.rms_norm(x, list(shape), weight, smallest[x.dtype.name] if eps is None else eps)


@handles("group_norm.default")
def group_norm(
    x: Node, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Node:  # fmt: skip
    """Group normalisation."""
    return aten.group_norm(x, groups, weight, bias, eps)


HANDLERS["native_group_norm.default"] = lambda x, w, b, n, c, hw, groups, eps: (
    group_norm(x, groups, w, b, eps), None, None,
)  # fmt: skip


@handles("instance_norm.default")
def instance_norm(
    x: Node, w: Any, b: Any, mean: Any, var: Any, use_input: bool, momentum: float, eps: float, *_: Any
) -> Node:  # fmt: skip
    """Instance normalisation: groups of one channel."""
    if not use_input:
        return aten.batch_norm(x, w, b, mean, var, eps)
    return aten.group_norm(x, x.shape[1], w, b, eps)


@handles("batch_norm.default")
def batch_norm(
    x: Node, w: Any, b: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *_: Any
) -> Node:  # fmt: skip
    """Batch normalisation with stored statistics."""
    if training or mean is None:
        raise refuse("batch normalisation in training mode: call model.eval() first")
    return aten.batch_norm(x, w, b, mean, var, eps)


HANDLERS["_native_batch_norm_legit_no_training.default"] = lambda x, w, b, mean, var, momentum, eps: (
    aten.batch_norm(x, w, b, mean, var, eps), None, None,
)  # fmt: skip


@handles("_weight_norm.default", "_weight_norm_interface.default")
def weight_norm(v: Node, g: Node, dim: int = 0) -> Node:
    """v * g / norm(v)."""
    axes = [i for i in range(v.rank) if i != dim % v.rank]
    norm = aten.sqrt(aten.sum(aten.mul(v, v), axes, True))
    return aten.mul(v, aten.div(g, norm))


@handles("scaled_dot_product_attention.default")
def attention(
    q: Node, k: Node, v: Node, mask: Any = None, dropout: float = 0.0, causal: bool = False, *, scale: Any = None,
    enable_gqa: bool = False,
) -> Node:  # fmt: skip
    """Attention; grouped heads are kept grouped."""
    if dropout:
        raise refuse("attention with dropout: call model.eval() first")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    batch = broadcast(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    q, k, v = (expand(x, [*batch, *x.shape[-3:]]) if x.rank > 3 else x for x in (q, k, v))
    if q.rank > 2 and not equal(q.shape[-3], k.shape[-3]) and (enable_gqa or equal(k.shape[-3], 1)):
        return planish.attention(q, k, v, mask, causal, None, scale)
    return aten.scaled_dot_product_attention(q, k, v, mask, causal, scale)


for _name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention"):
    HANDLERS[f"{_name}.default"] = lambda q, k, v, dropout=0.0, causal=False, *, attn_mask=None, scale=None: (
        attention(q, k, v, attn_mask, dropout, causal, scale=scale), None,
    )  # fmt: skip


def _recurrent(kind: str) -> Any:
    def apply(
        x: Node, hidden: Any, weights: Any, biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool,
        batch_first: bool,
    ) -> list[Node]:  # fmt: skip
        if not isinstance(biases, bool):
            raise refuse(f"{kind} over packed sequences")
        initial = list(hidden) if isinstance(hidden, (list, tuple)) else [hidden]
        made = getattr(aten, kind)(x, initial, list(weights), biases, layers, bidirectional, batch_first)
        return [planish.item(made, i) for i in range(len(initial) + 1)]

    return apply


for _kind in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
    HANDLERS[f"{_kind}.input"] = _recurrent(_kind)


@handles("cosine_similarity.default")
def cosine_similarity(a: Node, b: Node, dim: int = 1, eps: float = 1e-8) -> Node:
    """Cosine of the angle along one axis."""

    def unit(x: Node) -> Node:
        return aten.div(x, aten.maximum(aten.sqrt(aten.sum(aten.mul(x, x), [dim], True)), eps))

    return aten.sum(aten.mul(unit(a), unit(b)), [dim])


@handles("cdist.default", "_cdist_forward.default")
def cdist(a: Node, b: Node, p: float = 2.0, *_: Any) -> Node:
    """Pairwise distances."""
    gap = aten.abs(aten.sub(unsqueeze(a, -2), unsqueeze(b, -3)))
    if p == 2:
        return aten.sqrt(aten.sum(aten.mul(gap, gap), [-1]))
    return aten.sum(gap, [-1]) if p == 1 else aten.pow(aten.sum(aten.pow(gap, float(p)), [-1]), 1 / p)


@handles("im2col.default")
def im2col(x: Node, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Node:
    """Sliding blocks as columns."""
    n, c = x.shape[:2]
    x = aten.pad(x, [padding[1], padding[1], padding[0], padding[0]]) if any(padding) else x
    rows = size(floor_div(size(x.shape[2] - dilation[0] * (kernel[0] - 1) - 1), stride[0]) + 1)
    columns = size(floor_div(size(x.shape[3] - dilation[1] * (kernel[1] - 1) - 1), stride[1]) + 1)
    parts = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            part = aten.slice(
                x, 2, i * dilation[0], size(i * dilation[0] + (rows - 1) * stride[0] + 1), stride[0]
            )
            part = aten.slice(
                part, 3, j * dilation[1], size(j * dilation[1] + (columns - 1) * stride[1] + 1), stride[1]
            )
            parts.append(reshaped(part, [n, c, 1, product((rows, columns))]))
    return aten.view(aten.cat(parts, 2), [n, product((c, kernel[0] * kernel[1])), product((rows, columns))])


def grouped_matmul(x: Node, weight: Node, ends: Node) -> Node:
    """Rows of ``x`` times the matrix of their group: group g holds rows ``[ends[g-1], ends[g])``."""
    count = weight.shape[0]
    rows = aten.view(aten.arange(0, x.shape[0]), [x.shape[0], 1])
    group = aten.sum(aten.to(aten.ge(rows, cast(ends, i64)), i64), [-1])
    if isinstance(count, int) and count <= 64:
        out = None
        for g in range(count):
            part = aten.matmul(x, aten.view(aten.slice(weight, 0, g, g + 1), weight.shape[1:]))
            chosen = aten.view(aten.eq(group, g), [x.shape[0], 1])
            out = aten.where(chosen, part, 0.0 if out is None else out)
        assert out is not None
        return out
    raise refuse(f"a grouped product over {count} groups")


@handles("transformers::grouped_mm_fallback.default", "_grouped_mm.default")
def grouped_mm(x: Node, weight: Node, offs: Node | None = None, **_: Any) -> Node:
    """Grouped product of a mixture of experts."""
    if offs is None:
        return aten.matmul(x, weight)
    return grouped_matmul(x, weight, offs)
