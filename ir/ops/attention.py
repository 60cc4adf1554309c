"""Attention and rotary position embedding."""

from planish.ir import shapes_layers
from planish.ir.dialect import define

define(
    "aten.scaled_dot_product_attention", "q, k, v, mask:tensor?=None, causal:bool=False, scale:float?=None",
    shapes_layers.plain_attention, torch="custom:scaled_dot_product_attention",
)  # fmt: skip
define(
    "planish.attention",
    "q, k, v, mask:tensor?=None, causal:bool=False, window:any=None, scale:float?=None, softcap:float?=None",
    shapes_layers.attention, torch="custom:attention",
    doc="grouped heads; key j is seen by query i if (not causal or j <= i) and (window is None or i - j < window); a"
    " bool mask allows, a float mask is added; scores are softcap*tanh(scores/softcap) before masking",
)  # fmt: skip
define(
    "planish.rope", "x, cos, sin, interleaved:bool=False", shapes_layers.rope, torch="custom:rope",
    doc="rotates the first 2*cos.shape[-1] channels: pairs (i, i+n) half-split, (2i, 2i+1) interleaved",
)  # fmt: skip
