"""Bring TVM's runtime and a compiled library into this process, without importing TVM's compiler or torch."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from planish.errors import ArtifactError, BackendError
from planish.runtime.elf import check_library
from planish.runtime.native_code import Abi
from planish.runtime.processor import system

RUNTIME = "PLANISH_TVM_RUNTIME"
"""The environment variable that names ``libtvm_runtime.so`` or its folder, before any other place is searched."""

_LIBRARY, _CUDA = "libtvm_runtime.so", "libtvm_runtime_cuda.so"
_MARK = "runtime.config_threadpool"
_STALE_SECONDS = 3600
_SPIN = "4000"
_lock = threading.RLock()
_modules: dict[str, Any] = {}


class _NoTorch:
    """Lets ``import torch`` fail in one thread, so that tvm_ffi, which imports it where it can, stays light."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Refuse torch; leave other modules to other finders."""
        if name == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("torch is not needed here", name=name)


def ffi() -> Any:
    """The module ``tvm_ffi``; PL770 if it is not installed. Torch is imported only if it was before."""
    found = sys.modules.get("tvm_ffi")
    if found is not None:
        return found
    with _lock, _without_torch():
        try:
            import tvm_ffi
        except ImportError as error:
            raise BackendError(
                "PL770",
                "apache-tvm-ffi is not installed, which runs native code",
                hint="pip install planish[tvm]",
            ) from error
        return tvm_ffi


def load_runtime(beside: Path | None = None) -> Any:
    """Load ``libtvm_runtime.so`` once per process and return ``tvm_ffi``; PL770 if it cannot be found or loaded.

    It is looked for in ``PLANISH_TVM_RUNTIME``, in the package ``tvm`` (which is not imported), and in the folder
    ``beside``. Where TVM itself is imported, its runtime is used.
    """
    made = ffi()
    with _lock:
        # TVM would bind threads to processors that this process may not use, and spin for 150 ms after each call.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", _SPIN)
        if made.get_global_func(_MARK, allow_missing=True) is not None:
            return made
        _open(_runtime_file(beside), "PL770")
        if made.get_global_func(_MARK, allow_missing=True) is None:
            raise BackendError("PL770", "the library is not a TVM runtime", where=str(_runtime_file(beside)))
        return made


def load_cuda(beside: Path | None = None) -> None:
    """Load the part of the runtime that drives CUDA devices; PL775 if it or the driver is missing."""
    made = load_runtime(beside)
    with _lock:
        if made.get_global_func("device_api.cuda", allow_missing=True) is None:
            _open(_runtime_file(beside).with_name(_CUDA), "PL775")


def runtime_versions() -> dict[str, str | None]:
    """``MAJOR.MINOR`` of the TVM runtime and of its FFI in this environment; None where it cannot be told."""
    found: dict[str, str | None] = {"tvm": None, "ffi": None}
    packages = (
        {"ffi": "apache-tvm-ffi"}
        if os.environ.get(RUNTIME)
        else {"ffi": "apache-tvm-ffi", "tvm": "apache-tvm"}
    )
    for key, package in packages.items():
        with contextlib.suppress(PackageNotFoundError):
            found[key] = ".".join(version(package).split(".")[:2])
    return found


def current_abi() -> Abi:
    """What a library that is built now in this environment is built against; PL770 without TVM."""
    try:
        tvm, own = (".".join(version(p).split(".")[:2]) for p in ("apache-tvm", "apache-tvm-ffi"))
    except PackageNotFoundError as error:
        raise BackendError(
            "PL770", f"{error.name} is not installed", hint="pip install planish[tvm]"
        ) from None
    return Abi(tvm, own, *system())


def check_abi(abi: Abi, where: str | None = None) -> None:
    """Raise PL772 if a library is for another system or processor, PL771 if for another version of TVM."""
    if (abi.os, abi.machine) != system():
        raise BackendError(
            "PL772", f"the library is for {abi.os} on {abi.machine}, this machine is {' on '.join(system())}",
            where=where, hint="compile the program afresh on this machine",
        )  # fmt: skip
    have = runtime_versions()
    for key, package in (("tvm", "apache-tvm"), ("ffi", "apache-tvm-ffi")):
        if have[key] is not None and have[key] != getattr(abi, key):
            raise BackendError(
                "PL771", f"the library was built for {package} {getattr(abi, key)}, installed is {have[key]}",
                where=where, hint=f"pip install '{package}=={getattr(abi, key)}.*', or compile the program afresh",
            )  # fmt: skip


def load_library(
    data: bytes, digest: str, *, machine: str, where: str | None = None, beside: Path | None = None
) -> Any:
    """The module in a shared library given as bytes with their SHA-256; loaded once per process.

    The bytes go through a file that nobody else can write, are compared with the digest as they lie there (PL603)
    and the file is removed once it is loaded. PL626, PL772: not a library for this machine; PL774: refused.
    """
    with _lock:
        if digest in _modules:
            return _modules[digest]
        if hashlib.sha256(data).hexdigest() != digest:
            raise _changed(where)
        check_library(data, machine=machine, where=where)
        made = load_runtime(beside)
        with _private_file(data, digest, where) as file:
            try:
                _modules[digest] = made.load_module(str(file))
            except Exception as error:
                raise BackendError(
                    "PL774", f"TVM cannot load the library: {_reason(error)}", where=where,
                    hint="compile the program afresh",
                ) from error  # fmt: skip
        return _modules[digest]


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    if "torch" in sys.modules:
        yield
        return
    finder = _NoTorch()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _runtime_file(beside: Path | None) -> Path:
    if given := os.environ.get(RUNTIME):
        path = Path(given)
        path = path / _LIBRARY if path.is_dir() else path
        if not path.is_file():
            raise BackendError("PL770", f"{RUNTIME} names {given!r}, which is not there")
        return path
    places = [folder / "lib" / _LIBRARY for folder in _package_folders("tvm")]
    places += [beside / _LIBRARY] if beside is not None else []
    for path in places:
        if path.is_file():
            return path
    raise BackendError(
        "PL770", "libtvm_runtime.so, which runs native code, was not found",
        hint=f"pip install planish[tvm], or name the file in {RUNTIME}",
    )  # fmt: skip


def _package_folders(name: str) -> list[Path]:
    found = sys.modules.get(name)
    spec: ModuleSpec | None = found.__spec__ if found is not None else None
    with contextlib.suppress(ImportError, ValueError):
        spec = spec or importlib.util.find_spec(name)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []


def _open(path: Path, code: str) -> None:
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BackendError(code, f"cannot be loaded: {_reason(error)}", where=str(path)) from error


@contextlib.contextmanager
def _private_file(data: bytes, digest: str, where: str | None) -> Iterator[Path]:
    """A file with ``data`` in a new folder of mode 0700, checked after writing and removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="lib-", dir=_place()))
    try:
        _check_private(folder, where)
        path = folder / "code.so"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o500)
        with os.fdopen(descriptor, "w+b") as file:
            file.write(data)
            file.flush()
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise _changed(where)
        yield path
    except OSError as error:
        raise BackendError(
            "PL774", f"the library cannot be unpacked: {error.strerror}", where=str(folder),
            hint="set PLANISH_CACHE_DIR to a folder that can be written",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> Path | None:
    """The folder for unpacked libraries in the cache; None, the system's place for temporary files, if it cannot be."""
    try:
        if value := os.environ.get("PLANISH_CACHE_DIR"):
            folder = Path(value) / "native"
        else:
            from platformdirs import user_cache_path

            folder = user_cache_path("planish") / "native"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_private(folder, None)
        _remove_stale(folder)
    except (OSError, ImportError, ArtifactError):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _check_private(folder: Path, where: str | None) -> None:
    status = folder.lstat()
    mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    if not stat.S_ISDIR(status.st_mode) or not mine or status.st_mode & 0o022:
        raise ArtifactError("PL627", f"others can write to {folder}: nothing is run from it", where=where)


def _remove_stale(folder: Path) -> None:
    """Remove what a process left behind that was killed while it loaded a library."""
    limit = time.time() - _STALE_SECONDS
    for entry in folder.glob("lib-*"):
        with contextlib.suppress(OSError):
            if entry.lstat().st_mtime < limit:
                shutil.rmtree(entry, ignore_errors=True)


def _changed(where: str | None) -> ArtifactError:
    return ArtifactError(
        "PL603", "the library has another SHA-256 than the manifest says", where=where,
        hint="the file is damaged or was changed: copy it again from its source",
    )  # fmt: skip
