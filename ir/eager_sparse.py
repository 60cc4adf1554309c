"""Eager torch implementations of the decoding of sparse weights."""

from __future__ import annotations

import torch

from planish.ir.ops.sparse import position_bits

Tensor = torch.Tensor


def expand_nm(values: Tensor, positions: Tensor, n: int, m: int, length: int) -> Tensor:
    """``[..., ceil(length/m)*n]`` to ``[..., length]``: ``n`` values at their positions in each block of ``m``."""
    from planish.ir.eager import unpack

    lead, blocks = values.shape[:-1], -(-length // m)
    places = unpack(positions, position_bits(m), blocks * n).long().reshape(*lead, blocks, n)
    dense = torch.zeros(*lead, blocks, m, dtype=values.dtype, device=values.device)
    dense = dense.scatter_add(-1, places, values.reshape(*lead, blocks, n))
    return dense.reshape(*lead, blocks * m)[..., :length].contiguous()
