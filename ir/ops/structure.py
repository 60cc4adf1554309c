"""Views, joins, indexing, creation, products, convolutions, pooling, resampling and recurrent layers."""

from __future__ import annotations

from typing import Any

from planish.ir import shapes, shapes_layers
from planish.ir.dialect import define
from planish.ir.node import Node
from planish.ir.types import Size

define("aten.view", "x, shape:sizes", shapes.view, torch="reshape.default")
define("aten.permute", "x, dims:axes", shapes.permute)
define("aten.expand", "x, shape:sizes", shapes.expand)


def _slice(x: Node, dim: int, start: Size, end: Size, step: int) -> tuple[Any, ...]:
    length = x.shape[dim]
    return x, dim, shapes.clamp_index(start, length), shapes.clamp_index(end, length), step


def _slice_scatter(x: Node, source: Node, *rest: Any) -> tuple[Any, ...]:
    return x, source, *_slice(x, *rest)[1:]


define(
    "aten.slice",
    "x, dim:axis, start:size, end:size, step:int=1",
    shapes.slice_axis,
    torch="slice.Tensor",
    canonical=_slice,
)
define(
    "aten.slice_scatter", "x, source, dim:axis, start:size, end:size, step:int=1", shapes.slice_scatter,
    canonical=_slice_scatter,
)  # fmt: skip
define("aten.cat", "xs:tensors, dim:axis", shapes.cat)
define("aten.flip", "x, dims:axes", shapes.keep)
define("aten.pad", "x, amounts:sizes, mode:str='constant', value:number=0.0", shapes.pad)
define("aten.tril", "x, diagonal:size=0", shapes.triangle)
define("aten.triu", "x, diagonal:size=0", shapes.triangle)

define("aten.embedding", "table, ids", shapes.embedding)
define("aten.gather", "x, dim:axis, index", shapes.gather)
define("aten.index_select", "x, dim:axis, index", shapes.index_select)
define("aten.index", "x, indices:tensors?", shapes.index, torch="index.Tensor")
define("aten.index_put", "x, indices:tensors?, values, accumulate:bool=False", shapes.index_put)
define("aten.scatter", "x, dim:axis, index, source", shapes.scatter, torch="scatter.src")
define("aten.scatter_add", "x, dim:axis, index, source", shapes.scatter)
define(
    "aten.scatter_reduce", "x, dim:axis, index, source, reduce:str, include_self:bool=True", shapes.scatter,
    torch="custom:scatter_reduce",
)  # fmt: skip

define("aten.full", "shape:sizes, value:number, dtype:dtype", shapes.full, torch="custom:full")
define(
    "aten.arange",
    "start:number, end:number, step:number=1, dtype:dtype=i64",
    shapes.arange,
    torch="custom:arange",
)

define("aten.linear", "x, weight, bias:tensor?=None", shapes_layers.linear)
define("aten.matmul", "a, b", shapes_layers.matmul)
define(
    "aten.convolution",
    "x, weight, bias:tensor?, stride:ints, padding:ints, dilation:ints, transposed:bool=False, output_padding:ints=(),"
    " groups:int=1",
    shapes_layers.convolution, torch="custom:convolution",
)  # fmt: skip
for axes in (1, 2, 3):
    define(
        f"aten.max_pool{axes}d",
        "x, kernel:ints, stride:ints, padding:ints, dilation:ints, ceil:bool=False",
        shapes_layers.pool,
    )
    define(
        f"aten.avg_pool{axes}d",
        "x, kernel:ints, stride:ints, padding:ints, ceil:bool=False, count_include_pad:bool=True",
        shapes_layers.pool,
    )  # fmt: skip
    define(
        f"aten.adaptive_avg_pool{axes}d",
        "x, output:sizes",
        shapes_layers.resize,
        torch=f"custom:adaptive_avg_pool{axes}d",
    )
    define(
        f"aten.adaptive_max_pool{axes}d",
        "x, output:sizes",
        shapes_layers.resize,
        torch=f"custom:adaptive_max_pool{axes}d",
    )
define("aten.upsample_nearest2d", "x, output:sizes", shapes_layers.resize, torch="custom:upsample_nearest2d")
define("aten.upsample_bilinear2d", "x, output:sizes, align_corners:bool=False", shapes_layers.resize, torch="custom:upsample_bilinear2d")  # fmt: skip  # noqa: E501
define("aten.upsample_bicubic2d", "x, output:sizes, align_corners:bool=False", shapes_layers.resize, torch="custom:upsample_bicubic2d")  # fmt: skip  # noqa: E501
define(
    "aten.grid_sampler_2d",
    "x, grid, interpolation:int=0, padding:int=0, align_corners:bool=False",
    shapes_layers.grid_sample,
)

for kind, results in (("lstm", 3), ("gru", 2), ("rnn_tanh", 2), ("rnn_relu", 2)):
    define(
        f"aten.{kind}",
        "x, initial:tensors, weights:tensors, biases:bool, layers:int, bidirectional:bool, batch_first:bool",
        shapes_layers.recurrent(results), torch=f"custom:{kind}",
    )  # fmt: skip
