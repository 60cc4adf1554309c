"""How much a reader is willing to take from a file: counts and sizes checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds for one artifact; a file beyond them is refused with PL610.

    The defaults leave room for any real model; a service that opens files from strangers sets smaller ones.
    """

    file_bytes: int = 2**48
    members: int = 65_536
    directory_bytes: int = 64 * 2**20
    manifest_bytes: int = 64 * 2**20
    tensors: int = 1_000_000
    tensor_header_bytes: int = 100 * 2**20
    model_bytes: int = 2**31 - 1
    dims: int = 64


DEFAULT = Limits()
