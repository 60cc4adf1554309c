"""Shared libraries that hold machine code of CUDA.

TVM 0.27 stores CUDA source and compiles it when a library is loaded. Here the source is compiled when the library is
written: the modules that TVM packs into a library are listed, the source in them is replaced by a fat binary, and the
library is linked with that list. It then loads without a compiler on the machine with the GPU.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.backends.tvm.cubin import Resources, kernels_of
from planish.backends.tvm.gpu.nvcc import compile_cuda, need_nvcc
from planish.errors import BackendError

SYMBOL = "__tvm_ffi__library_bin"
"""The name under which a library holds its modules."""


def cuda_library(executable: Any, architectures: Sequence[str]) -> tuple[bytes, list[Resources]]:
    """A built module (of TIR or Relax) as a shared library, and what its kernels use on each architecture.

    Raises ``BackendError`` PL761 without nvcc, PL762 if it refuses the source, PL763 if TVM packs modules otherwise.
    """
    need_nvcc()

    def pack(module: Any, is_system_lib: bool, prefix: str, folder: str) -> str:
        import tvm

        packed = tvm.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
        blob, text = Path(folder) / "modules.bin", Path(folder) / "modules.c"
        blob.write_bytes(with_machine_code(packed, architectures))
        text.write_text(_assembly(blob))
        return str(text)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        executable.export_library(str(path), fpack_imports=pack)
        data = path.read_bytes()
    return data, kernels_of(data)


def _assembly(blob: Path) -> str:
    lines = (
        ".pushsection .rodata", f".global {SYMBOL}", ".balign 16", f"{SYMBOL}:", f'.incbin \\"{blob}\\"',
        ".popsection",
    )  # fmt: skip
    return "__asm__(" + " ".join(f'"{line}\\n"' for line in lines) + ");\n"


def with_machine_code(packed: bytes, architectures: Sequence[str]) -> bytes:
    """The packed modules with the source of every CUDA module replaced by a fat binary."""
    made = _Writer()
    reader = _Reader(packed)
    if reader.number() != len(packed) - 8:
        raise BackendError("PL763", "TVM packs modules in a way that is not known here")
    rows = reader.numbers()
    made.numbers(rows)
    made.numbers(reader.numbers())
    for _ in range(len(rows) - 1):
        kind = reader.text()
        made.text(kind)
        if kind == b"_lib":
            continue
        content = reader.text()
        made.text(_compiled(content, architectures) if kind == b"cuda" else content)
    return struct.pack("<Q", len(made.data)) + bytes(made.data)


def _compiled(content: bytes, architectures: Sequence[str]) -> bytes:
    """A CUDA module as TVM stores it, its form and its functions before the source, with machine code instead."""
    reader = _Reader(content)
    form = reader.text()
    at = content.rfind(b"\n#ifdef __CUDACC_RTC__")
    begin = content.find(b"\n#ifdef __CUDACC_RTC__")
    if form != b"cuda" or begin < 16 or at < begin:
        raise BackendError("PL763", "TVM stores CUDA source in a way that is not known here")
    (length,) = struct.unpack_from("<Q", content, begin - 8)
    if begin + length != len(content):
        raise BackendError("PL763", "TVM stores CUDA source in a way that is not known here")
    functions, source = content[reader.at : begin - 8], content[begin:].decode()
    made = _Writer()
    made.text(b"cubin")
    made.data += functions
    made.text(compile_cuda(source, architectures))
    return bytes(made.data)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self) -> int:
        (value,) = struct.unpack_from("<Q", self.data, self.at)
        self.at += 8
        return int(value)

    def numbers(self) -> list[int]:
        return [self.number() for _ in range(self.number())]

    def text(self) -> bytes:
        size = self.number()
        self.at += size
        return self.data[self.at - size : self.at]


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def numbers(self, values: list[int]) -> None:
        self.data += struct.pack(f"<Q{len(values)}Q", len(values), *values)

    def text(self, value: bytes) -> None:
        self.data += struct.pack("<Q", len(value)) + value


def plain_library(executable: Any) -> bytes:
    """A built module as a shared library that holds what TVM puts there, such as the source of OpenCL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        executable.export_library(str(path))
        return path.read_bytes()
