"""CUDA source to machine code by ``nvcc``, for one architecture or several; no GPU is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from planish.errors import BackendError

PLACES = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
"""Where the compiler is looked for after ``CUDA_HOME`` and the search path."""


def find_nvcc() -> str | None:
    """The path of ``nvcc``; None without one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    own = (str(Path(home) / "bin" / "nvcc"),) if home else ()
    found = [p for p in (*own, shutil.which("nvcc") or "", *PLACES) if p and os.access(p, os.X_OK)]
    return found[0] if found else None


def need_nvcc() -> str:
    """The path of ``nvcc``, or ``BackendError`` PL761."""
    found = find_nvcc()
    if found is None:
        raise BackendError(
            "PL761", "nvcc is missing, so kernels of CUDA cannot be compiled",
            hint="install the CUDA toolkit, set CUDA_HOME, or build for opencl",
        )  # fmt: skip
    return found


def compile_cuda(source: str, architectures: Sequence[str], *, form: str = "fatbin") -> bytes:
    """CUDA C++ in machine code.

    ``form`` is ``fatbin`` (machine code for every architecture, not compressed, so that it can be read back),
    ``cubin`` or ``ptx`` (both of the first architecture). Raises ``BackendError`` PL761 without nvcc and PL762 with the
    compiler's words where it refuses.
    """
    nvcc = need_nvcc()
    if not architectures:
        raise BackendError("PL760", "no architecture is given", hint="name one, such as sm_80")
    first = architectures[0]
    chosen = [f"-arch={first}"]
    if form == "fatbin":
        numbers = [a.removeprefix("sm_") for a in architectures]
        chosen = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers] + ["--no-compress"]
    with tempfile.TemporaryDirectory() as folder:
        text, made = Path(folder) / "kernels.cu", Path(folder) / f"kernels.{form}"
        text.write_text(source)
        command = [nvcc, f"-{form}", "-O3", "-std=c++17", *chosen, "-o", str(made), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise BackendError("PL762", "nvcc refuses the kernels: " + "\n".join(lines[:8]))
        return made.read_bytes()
