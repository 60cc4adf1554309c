"""Arrays to TVM's tensors and back, without copies where memory allows it.

Code made by TVM takes for granted that arrays begin at multiples of 64 bytes: one that does not is copied first.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from planish.runtime.tensors import Array, element_type

ALIGNMENT = 64
CPU, CUDA = 1, 2

# Element types that numpy exports only as raw bits: TVM's name, that of safetensors, and numpy's type for the bits.
_RAW = {
    "bfloat16": ("BF16", "uint16"),
    "float8_e4m3fn": ("F8_E4M3", "uint8"),
    "float8_e5m2": ("F8_E5M2", "uint8"),
}
_FORMATS = {stored: name for name, (stored, _) in _RAW.items()}
_BUILT_IN = 256
"""Numbers from here on belong to element types that numpy does not have itself."""


class Tensors:
    """Conversions for one device: ``kind`` 1 is the CPU, 2 is CUDA; ``index`` counts devices of a kind."""

    def __init__(self, tvm_ffi: Any, kind: int = CPU, index: int = 0) -> None:
        self._ffi = tvm_ffi
        self._host = kind == CPU
        self._device = tvm_ffi.device("cpu" if kind == CPU else "cuda", index)
        function = tvm_ffi.get_global_func
        self._view = function("runtime.TVMTensorCreateView")
        self._allocate = function("runtime.TVMTensorAllocWithScope")
        self._upload = function("runtime.TVMTensorCopyFromBytes")
        self._download = function("runtime.TVMTensorCopyToBytes")

    def tensor(self, array: Array) -> Any:
        """The tensor of an argument. It shares memory with the array if that is aligned, writable and on the CPU."""
        if array.dtype.num >= _BUILT_IN and array.dtype.name in _RAW:
            return self._raw(array, array.dtype.name)
        if not self._host or not array.size:
            return self._copied(array, array.dtype.name)
        if not (array.flags.writeable and array.flags.c_contiguous):
            array = aligned(array)
        made = self._ffi.from_dlpack(array)
        return self._ffi.from_dlpack(aligned(array)) if made.data_ptr() % ALIGNMENT else made

    def weight(self, array: Array, format: str) -> Any:
        """The tensor of a weight, of the safetensors type ``format``. On the CPU nothing is copied if it is aligned.

        The array may be read-only: what writes to the tensor then ends the process.
        """
        name = _FORMATS.get(format)
        if self._host and array.size:
            array = writable(array) if is_aligned(array) else aligned(array)
        return self._raw(array, name) if name else self.tensor(array)

    def array(self, tensor: Any, *, copy: bool = False) -> Array:
        """The array of a result: it shares memory with a tensor on the CPU unless ``copy``."""
        name = str(tensor.dtype)
        raw = _RAW.get(name)
        if not self._host:
            found = np.empty(tensor.shape, element_type(raw[0]) if raw else name)
            self._download(tensor, ctypes.c_void_p(found.ctypes.data), found.nbytes)
            return found
        if raw is not None:
            bits = self._view(tensor, self._ffi.Shape(tensor.shape), self._ffi.dtype(raw[1]), 0)
            found = np.from_dlpack(bits).view(element_type(raw[0]))
        else:
            found = np.from_dlpack(tensor)
        return found.copy() if copy else found

    def _raw(self, array: Array, name: str) -> Any:
        if not self._host or not array.size:
            return self._copied(array, name)
        bits = self.tensor(array.view(_RAW[name][1]))
        return self._view(bits, self._ffi.Shape(array.shape), self._ffi.dtype(name), 0)

    def _copied(self, array: Array, name: str) -> Any:
        made = self._allocate(self._ffi.Shape(array.shape), self._ffi.dtype(name), self._device, None)
        if array.size:
            array = np.ascontiguousarray(array)
            self._upload(made, ctypes.c_void_p(array.ctypes.data), array.nbytes)
        return made


def is_aligned(array: Array) -> bool:
    """Whether an array begins at a multiple of 64 bytes."""
    return array.ctypes.data % ALIGNMENT == 0


def aligned(array: Array) -> Array:
    """A copy in C order that begins at a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    made = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


def writable(array: Array) -> Array:
    """The same memory as an array that says it can be written, which DLPack asks for; it keeps ``array`` alive."""
    if array.flags.writeable:
        return array

    class Memory(ctypes.c_char * array.nbytes):  # type: ignore[misc]
        """A range of memory and what owns it."""

    memory = Memory.from_address(array.ctypes.data)
    memory.owner = array
    return np.frombuffer(memory, np.uint8).view(array.dtype).reshape(array.shape)
