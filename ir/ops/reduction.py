"""Reductions, scans, normalisations and orderings."""

from planish.ir.dialect import define
from planish.ir.shapes import (
    along_axis,
    arg_reduce,
    indices_like,
    keep_float,
    reduce,
    reduce_bool,
    reduce_extreme,
    reduce_float,
    reduce_one,
    top_k,
    top_k_indices,
)
from planish.ir.shapes_layers import channel_norm, normalize

define("aten.sum", "x, dims:axes?=None, keepdim:bool=False", reduce, torch="custom:total")
define("aten.mean", "x, dims:axes?=None, keepdim:bool=False", reduce_float, torch="mean.dim")
define("aten.amax", "x, dims:axes?=None, keepdim:bool=False", reduce_extreme)
define("aten.amin", "x, dims:axes?=None, keepdim:bool=False", reduce_extreme)
define("aten.logsumexp", "x, dims:axes?=None, keepdim:bool=False", reduce_float)
define(
    "aten.var",
    "x, dims:axes?=None, correction:float=1.0, keepdim:bool=False",
    reduce_float,
    torch="custom:var",
)
define("aten.prod", "x, dim:axis, keepdim:bool=False", reduce_one, torch="custom:prod")
define("aten.any", "x, dims:axes?=None, keepdim:bool=False", reduce_bool, torch="any.dims")
define("aten.all", "x, dims:axes?=None, keepdim:bool=False", reduce_bool, torch="all.dims")
define("aten.argmax", "x, dim:axis, keepdim:bool=False", arg_reduce)
define("aten.argmin", "x, dim:axis, keepdim:bool=False", arg_reduce)
define("aten.cumsum", "x, dim:axis", along_axis, torch="custom:cumsum")
define("aten.cumprod", "x, dim:axis", along_axis, torch="custom:cumprod")
define("aten.softmax", "x, dim:axis", keep_float, torch="softmax.int")
define("aten.log_softmax", "x, dim:axis", keep_float, torch="log_softmax.int")
define("planish.topk_values", "x, k:size, dim:axis, largest:bool=True", top_k, torch="custom:topk_values")
define(
    "planish.topk_indices",
    "x, k:size, dim:axis, largest:bool=True",
    top_k_indices,
    torch="custom:topk_indices",
)
define("planish.sort_values", "x, dim:axis, descending:bool=False", along_axis, torch="custom:sort_values")
define(
    "aten.argsort", "x, dim:axis, descending:bool=False", indices_like, torch="custom:argsort", doc="stable"
)

define("aten.rms_norm", "x, shape:sizes, weight:tensor?=None, eps:float=1e-6", normalize)
define("aten.layer_norm", "x, shape:sizes, weight:tensor?=None, bias:tensor?=None, eps:float=1e-5", normalize)
define(
    "aten.group_norm", "x, groups:int, weight:tensor?=None, bias:tensor?=None, eps:float=1e-5", channel_norm
)
define(
    "aten.batch_norm", "x, weight:tensor?, bias:tensor?, mean, var, eps:float=1e-5", channel_norm,
    torch="custom:batch_norm", doc="inference only",
)  # fmt: skip
