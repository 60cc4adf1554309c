"""Run a shared library that TVM made: its weights mapped and bound once, inputs and outputs shared, not copied.

A call costs a few microseconds here. Functions of the library are not made for several callers at once, so every
call takes one that is free, or makes another; the weights belong to all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import ArtifactError, BackendError, UsageError
from planish.runtime.architecture import choose_architecture
from planish.runtime.artifact import Artifact
from planish.runtime.native_code import EntryCode, NativeCode, parse_code
from planish.runtime.processor import choose_library
from planish.runtime.tensors import Array, read_table, view_tensors
from planish.runtime.tvm_library import check_abi, load_cuda, load_library, load_runtime
from planish.runtime.tvm_tensors import CPU, CUDA, Tensors, is_aligned
from planish.runtime.tvm_threads import tvm_threads, use_threads

WEIGHTS = "weights/"
_POOLED = 2
_SHAPES_KEPT = 16
"""After so many different sizes of inputs, memory that TVM keeps for each of them is given back."""

_EXISTS, _COMPUTE_VERSION = 0, 4
log = logging.getLogger("planish")


@dataclass(frozen=True)
class Stored:
    """A weight as it lies in a file: an array, and its element type in safetensors' words."""

    array: Array
    format: str


class TvmCode:
    """A loaded library with its weights, which all its entry points share.

    ``copied`` names the weights that could not be used where they lie. PL612: a weight is missing.
    """

    def __init__(
        self,
        code: NativeCode,
        library: Any,
        weights: Mapping[str, Stored],
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.code = code
        self.copied: list[str] = []
        self.ffi = load_runtime()
        self.threads = tvm_threads(threads)
        self._library = library
        self._kind, self._index = parse_device(device)
        self.tensors = Tensors(self.ffi, self._kind, self._index)
        self._tensors: dict[str, Any] = {}
        self._stored: Mapping[str, Stored] = weights
        self._run_load()
        for name in sorted({n for key, e in code.entries.items() if key != code.load for n in e.weights}):
            self._take(name)
        self._stored = {}
        self.addresses = {t.data_ptr() for t in self._tensors.values()}
        if self.copied:
            log.info("%s: %d weights are not aligned and were copied", code.where or "code", len(self.copied))

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, member: str, *, device: str = "cpu", threads: int | None = None
    ) -> TvmCode:
        """The code that ``member``, a ``code.json``, describes; its library is chosen for this machine and loaded."""
        code = read_code(artifact, member)
        name = library_member(artifact, member, code, device)
        where = f"{artifact.path}: {name}"
        size, limit = artifact.member(name).size, artifact.limits.model_bytes
        if size > limit:
            raise ArtifactError("PL610", f"the library is {size} bytes, the limit is {limit}", where=where)
        if code.device == "cuda":
            load_cuda()
        digest = artifact.manifest.members[name][1]
        library = load_library(artifact.read(name), digest, machine=code.abi.machine, where=where)
        return cls(code, library, _stored(artifact, code), device=device, threads=threads)

    @classmethod
    def from_folder(cls, folder: Path, *, threads: int | None = None) -> TvmCode:
        """The code in a folder that was exported with ``format="so"``. It runs: give only folders that you trust."""
        where = str(folder / "model.json")
        data, described = (folder / "libmodel.so").read_bytes(), (folder / "model.json").read_bytes()
        code = parse_code(described, where=where)
        check_abi(code.abi, where)
        choose_library(code.libraries, where=where)
        digest = hashlib.sha256(data).hexdigest()
        library = load_library(data, digest, machine=code.abi.machine, where=where, beside=folder)
        return cls(code, library, _stored_in(folder / "weights.safetensors"), threads=threads)

    def function(self, entry: EntryCode) -> Any:
        """A new function for an entry point, with its weights bound; for one caller at a time."""
        with _tvm_errors("PL774", "the library cannot be set up", self.code.where):
            machine = self._library["vm_load_executable"]()
            devices = [self._kind, self._index, _POOLED]
            machine["vm_initialization"](*devices, *([] if self._kind == CPU else [CPU, 0, _POOLED]))
            weights = [self._tensors[name] for name in entry.weights]
            machine["save_function"](entry.function, "planish.bound", True, *weights)
            return machine["planish.bound"]

    def close(self) -> None:
        """Let go of the weights; functions that were made keep what they use."""
        self._tensors.clear()

    def _run_load(self) -> None:
        """Run the entry that makes weights from stored ones, whose memory is then given back."""
        if self.code.load is None:
            return
        entry = self.code.entries[self.code.load]
        for name in entry.weights:
            self._take(name)
        use_threads(self.ffi, self.threads)
        with _tvm_errors("PL776", "the code that prepares weights fails", self.code.where):
            made = dict(zip(entry.outputs, self.function(entry)(), strict=True))
        self._tensors = made

    def _take(self, name: str) -> None:
        if name in self._tensors:
            return
        stored = self._stored.get(name)
        if stored is None:
            raise ArtifactError(
                "PL612", f"the code needs the weight {name!r}, which is not there", where=self.code.where
            )
        if self._kind == CPU and stored.array.size and not is_aligned(stored.array):
            self.copied.append(name)
        self._tensors[name] = self.tensors.weight(stored.array, stored.format)


class TvmSession:
    """One entry point of a library, ready to run; it may be called from several threads."""

    def __init__(self, shared: TvmCode, entry: str = "main") -> None:
        if entry not in shared.code.entries or entry == shared.code.load:
            raise ArtifactError("PL621", f"the code has no entry point {entry}", where=shared.code.where)
        self._shared = shared
        self._entry = shared.code.entries[entry]
        self._free: list[Any] | None = [shared.function(self._entry)]
        self._shapes: set[tuple[Any, ...]] = set()
        self._lock = threading.Lock()
        self.inputs: tuple[str, ...] = self._entry.arguments
        self.outputs: tuple[str, ...] = self._entry.results
        self._given = len(self._entry.inputs)
        self._item = shared.ffi.get_global_func("ffi.ArrayGetItem")
        self._clear = shared.ffi.get_global_func("vm.builtin.memory_manager.clear")

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, code: str, *, entry: str = "main", device: str = "cpu", threads: int | None = None
    ) -> TvmSession:  # fmt: skip
        """The session for one entry point of the ``code.json`` in the member ``code``."""
        return cls(TvmCode.from_artifact(artifact, code, device=device, threads=threads), entry)

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """Run on arrays by input name; gives the named outputs, or all, as arrays that later calls leave alone.

        Outputs named in ``keep`` come back as they are on the device and can be given as inputs again, which costs
        nothing; :meth:`array` turns one into an array. What is given as a state may be written where it is: its values
        are gone then, also those of an array that is writable and aligned. PL704: closed; PL776: the code fails.
        """
        shared, tensor = self._shared, self._shared.tensors.tensor
        use_threads(shared.ffi, shared.threads)
        arguments = [
            value if _is_tensor(value) else tensor(value) for value in map(feeds.__getitem__, self.inputs)
        ]
        function = self._acquire()
        try:
            array = function(*arguments)
            found = [self._item(array, index) for index in range(len(self.outputs))]
        except Exception as error:
            raise _failed(
                "PL776", "the code cannot be run on these inputs", shared.code.where, error
            ) from error
        self._release(function)
        self._limit_memory(tuple([a.shape for a in arguments[: self._given]]))
        # A result may be an argument or a weight itself: then it is copied, so that nothing is shared with it.
        addresses = [a.data_ptr() for a in arguments]
        fixed, moving = addresses[: self._given], addresses
        if keep:
            moving = [*addresses, *(v.data_ptr() for n, v in zip(self.outputs, found) if n in keep)]
        results: dict[str, Any] = {}
        kept: set[int] = set()
        for name, value in zip(self.outputs, found, strict=True):
            if outputs is not None and name not in outputs:
                continue
            address = value.data_ptr()
            if name not in keep:
                same = address in moving or address in shared.addresses
                results[name] = shared.tensors.array(value, copy=same)
            elif address in fixed or address in shared.addresses or address in kept:
                results[name] = tensor(shared.tensors.array(value, copy=True))
            else:
                results[name] = value
                kept.add(address)
        return results

    def array(self, value: Any) -> Array:
        """An output that was kept, as an array of its own."""
        return self._shared.tensors.array(value, copy=True)

    def close(self) -> None:
        """Release the functions; a second call does nothing."""
        with self._lock:
            self._free = None

    def _acquire(self) -> Any:
        with self._lock:
            if self._free is None:
                raise BackendError("PL704", "the session is closed")
            if self._free:
                return self._free.pop()
        return self._shared.function(self._entry)

    def _release(self, function: Any) -> None:
        with self._lock:
            if self._free is not None:
                self._free.append(function)

    def _limit_memory(self, shapes: tuple[Any, ...]) -> None:
        if shapes in self._shapes:
            return
        self._shapes.add(shapes)
        if len(self._shapes) > _SHAPES_KEPT:
            self._shapes = {shapes}
            self._clear()


def parse_device(device: str) -> tuple[int, int]:
    """Kind and index of ``cpu``, ``cuda`` or ``cuda:N``; PL863 for anything else."""
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return CPU, 0
    if kind == "cuda" and (not index or (index.isascii() and index.isdigit() and len(index) < 4)):
        return CUDA, int(index or 0)
    raise UsageError("PL863", f"unknown device {device!r}", hint="known: cpu, cuda, cuda:N")


def read_code(artifact: Artifact, member: str) -> NativeCode:
    """The checked ``code.json`` of an artifact."""
    return parse_code(artifact.read(member), where=f"{artifact.path}: {member}")


def library_member(artifact: Artifact, member: str, code: NativeCode, device: str = "cpu") -> str:
    """The member with the library that fits this machine; PL771 to PL773, PL775: there is none; PL612: missing.

    Nothing of the library is read or run for it.
    """
    kind, index = parse_device(device)
    where = f"{artifact.path}: {member}"
    if code.device != ("cpu" if kind == CPU else "cuda"):
        raise BackendError("PL775", f"the code is for {code.device}, not for {device}", where=where)
    check_abi(code.abi, where)
    chosen = choose_library(code.libraries, where=where) if kind == CPU else _for_gpu(code, index, where)
    name = f"{member.rpartition('/')[0]}/{code.libraries[chosen].file}"
    artifact.member(name)
    return name


def _for_gpu(code: NativeCode, index: int, where: str) -> str:
    """The library for the architecture of a CUDA device; PL773, PL775: there is none."""
    return choose_architecture(code.libraries, _architecture(index, where), where=where)


def _architecture(index: int, where: str) -> str:
    """The architecture of a CUDA device, such as ``sm_90``; PL775: there is no such device."""
    load_cuda()
    attribute = load_runtime().get_global_func("runtime.GetDeviceAttr")
    with _tvm_errors("PL775", "CUDA cannot be used", where):
        if not attribute(CUDA, index, _EXISTS):
            raise BackendError(
                "PL775", f"there is no CUDA device {index}", where=where, hint="load with device='cpu'"
            )
        major, _, minor = str(attribute(CUDA, index, _COMPUTE_VERSION)).partition(".")
    return f"sm_{major}{minor}"


def _stored(artifact: Artifact, code: NativeCode) -> dict[str, Stored]:
    """The stored weights that any entry point names; those made at load need not be there."""
    wanted = {name for entry in code.entries.values() for name in entry.weights}
    found: dict[str, Stored] = {}
    for member in artifact.names:
        if member.startswith(WEIGHTS) and member.endswith(".safetensors"):
            table = artifact.table(member)
            if wanted.isdisjoint(table):
                continue
            arrays = artifact.tensors(member)
            found |= {n: Stored(arrays[n], info.format) for n, info in table.items() if n in wanted}
    return found


def _stored_in(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, which is mapped."""
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    table = read_table(
        lambda offset, length: bytes(view[offset : offset + length]), len(view), where=str(path)
    )
    return {n: Stored(a, table[n].format) for n, a in view_tensors(view, table).items()}


@contextlib.contextmanager
def _tvm_errors(code: str, what: str, where: str | None) -> Iterator[None]:
    try:
        yield
    except (BackendError, ArtifactError):
        raise
    except Exception as error:
        raise _failed(code, what, where, error) from error


def _failed(code: str, what: str, where: str | None, error: Exception) -> BackendError:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[0].strip()[:500] if lines else type(error).__name__
    return BackendError(code, f"{what}: {reason}", where=where)


def _is_tensor(value: Any) -> bool:
    return not isinstance(value, np.ndarray)
