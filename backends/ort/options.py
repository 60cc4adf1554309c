"""How a program is lowered to ONNX: plain values that are part of what is stored with the result."""

from __future__ import annotations

from dataclasses import dataclass

from planish.errors import UsageError


@dataclass(frozen=True)
class OrtOptions:
    """Options of the ONNX Runtime backend.

    ``activation_bits`` is how activations meet quantized weights: 32 keeps them exact, 8 rounds them to whole
    numbers for each block, which is faster. ``widen`` says when codes of 3, 5, 6 or 7 bits become 4 or 8 bits,
    which is what the kernels read: ``load`` keeps the stored width in the file and widens once when the model is
    loaded, ``store`` widens now and stores more bytes. Constants of more than ``inline_bytes`` bytes are stored
    beside the model.
    """

    activation_bits: int = 32
    widen: str = "load"
    inline_bytes: int = 256

    def __post_init__(self) -> None:
        if self.activation_bits not in (8, 32):
            raise UsageError("PL842", f"activation_bits is {self.activation_bits}", hint="known: 8, 32")
        if self.widen not in ("load", "store"):
            raise UsageError("PL842", f"widen is {self.widen!r}", hint="known: load, store")
