"""Load an artifact and call it like the model it was made from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from planish.errors import ArtifactError, BackendError, UsageError
from planish.runtime.artifact import Artifact, Verify, open_artifact
from planish.runtime.generate.capacity import Capacity, read_capacity
from planish.runtime.generate.model import Model
from planish.runtime.inputs import bind_arguments, check_inputs, to_torch, torch_device
from planish.runtime.limits import Limits
from planish.runtime.manifest import EntryPoint, Manifest
from planish.runtime.native_code import NAME
from planish.runtime.ort import FOLDER, OrtSession
from planish.runtime.runner import Runner
from planish.runtime.selftest import run_selftest
from planish.runtime.states import States
from planish.runtime.tensors import Array, parse_json

_CHECKED = 256
log = logging.getLogger("planish")
_NATIVE = (".so", ".dll", ".dylib", ".cubin", ".ptx")


def load(
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    mmap: bool = True,
    verify: Verify = "full",
    allow_native_code: bool | None = None,
    limits: Limits | None = None,
    threads: int | None = None,
) -> Session:
    """Open an artifact and make it ready to run.

    ``verify="full"`` checks the hash of every member and runs the self-tests in the file, ``"fast"`` checks the
    small members, ``"off"`` only the structure. ``mmap=False`` copies the weights into memory, after which the
    file may vanish. Code in machine language is never run unless ``allow_native_code`` is true or the user trusts
    it (see :mod:`planish.runtime.trust`): PL622. ``False`` refuses also what is trusted.
    """
    artifact = open_artifact(path, mmap=mmap, verify=verify, limits=limits)
    try:
        session = Session(
            artifact, device=device or "cpu", allow_native_code=allow_native_code, threads=threads
        )
        if verify == "full":
            session.selftest()
    except BaseException:
        artifact.close()
        raise
    return session


class Session(Model):
    """A loaded model: call it with the inputs of its default entry point, by position or by name.

    Inputs are numpy arrays, torch tensors, or anything that exports DLPack. The result is one array, or a tuple
    of them; torch tensors if any input was one. States are kept from call to call until :meth:`reset`.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str = "cpu",
        allow_native_code: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self.artifact = artifact
        self.device = device
        self._threads = threads
        self._lock = threading.RLock()
        self._models: dict[tuple[str, str], Runner] = {}
        self._native: dict[str, Any] = {}
        self._states = States()
        self._capacity: Capacity | None = None
        self._sizes: dict[tuple[Any, ...], Mapping[str, int]] = {}
        self._code = {
            name: _code_of(artifact, entry, device, allow_native_code)
            for name, entry in artifact.manifest.entry_points.items()
        }
        self._default = _default_entry(artifact.manifest)
        if self._default is not None:
            self._model(self._default)

    @property
    def path(self) -> Path:
        """The file that was loaded."""
        return self.artifact.path

    @property
    def manifest(self) -> Manifest:
        """What the file says about itself."""
        return self.artifact.manifest

    @property
    def entry_points(self) -> Mapping[str, EntryPoint]:
        """The functions of the model by name, with typed inputs, outputs and states."""
        return self.artifact.manifest.entry_points

    @property
    def capacity(self) -> Capacity:
        """How many tokens and sequences the model takes where it generates; PL870 if it was not made for that."""
        if self._capacity is None:
            facts = self.manifest
            self._capacity = read_capacity(facts.generation, facts.entry_points, facts.dims, str(self.path))
        return self._capacity

    @property
    def digest(self) -> str:
        """SHA-256 over the names and digests of the programs and weights in the file."""
        parts = [(n, d) for n, (_, d) in self.manifest.members.items() if n.startswith(("ir/", "weights/"))]
        return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()

    def tokenizer_file(self, name: str) -> bytes | None:
        """A file of the tokenizer, such as ``tokenizer.json``; None if there is none."""
        member = f"tokenizer/{name}"
        return self.artifact.read(member) if member in self.artifact else None

    @property
    def report(self) -> Mapping[str, Any] | None:
        """``report.json``, or None where there is none."""
        return self._json("report.json")

    @property
    def plan(self) -> Mapping[str, Any] | None:
        """``plan.json``, or None where there is none."""
        return self._json("plan.json")

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self._default is None:
            raise UsageError(
                "PL861", "the model has several entry points and none is called main", where=str(self.path),
                hint=f"use session.entry(name); there are {', '.join(self.entry_points)}",
            )  # fmt: skip
        return self._call(self._default, inputs, named)

    def entry(self, name: str) -> BoundEntry:
        """One entry point as a callable; PL861 if there is none of that name."""
        if name not in self.entry_points:
            raise UsageError(
                "PL861", f"there is no entry point {name!r}", where=str(self.path),
                hint=f"there are {', '.join(self.entry_points)}",
            )  # fmt: skip
        return BoundEntry(self, self.entry_points[name])

    def run(
        self, feeds: Mapping[str, Any], entry: str | None = None, *, states: States | None = None
    ) -> dict[str, Array]:
        """Run an entry point on inputs by name; gives its outputs by name, as numpy arrays.

        ``states`` are used and replaced instead of the session's own, so that several runs can go on side by side.
        """
        chosen = (
            self._default
            if entry is None and self._default is not None
            else self.entry(entry or "main").entry
        )
        return self._run(chosen, bind_arguments(chosen, (), feeds), states)

    @property
    def states(self) -> Mapping[str, Array]:
        """The states after the last call, by name; empty before the first."""
        return MappingProxyType(self._states.arrays())

    def reset(self) -> None:
        """Forget the states: the next call begins with zeros."""
        self._states.clear()

    def selftest(self) -> int:
        """Run the self-tests in the file and return their number; PL615 if a result is not as stored."""
        return sum(run_selftest(self.artifact, entry, self._model) for entry in self.entry_points.values())

    def close(self) -> None:
        """Release models and file; calls afterwards are refused."""
        with self._lock:
            for model in self._models.values():
                model.close()
            for native in self._native.values():
                native.close()
            self._models.clear()
            self._native.clear()
            self._states.clear()
            self.artifact.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({str(self.path)!r}, {', '.join(str(e) for e in self.entry_points.values())})"

    def _call(self, entry: EntryPoint, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        given = bind_arguments(entry, inputs, named)
        found = list(self._run(entry, given).values())
        device = torch_device(given)
        if device is not None:
            results = [to_torch(array, device) for array in found]
            return results[0] if len(results) == 1 else tuple(results)
        return found[0] if len(found) == 1 else tuple(found)

    def _run(
        self, entry: EntryPoint, given: Mapping[str, Any], states: States | None = None
    ) -> dict[str, Array]:
        feeds, sizes = self._check(entry, given)
        model = self._model(entry)
        if not entry.states:
            return model.run(feeds, [v.name for v in entry.outputs])
        return (self._states if states is None else states).run(model, entry, feeds, sizes)

    def _check(
        self, entry: EntryPoint, given: Mapping[str, Any]
    ) -> tuple[dict[str, Array], Mapping[str, int]]:
        """The arrays of a call and its sizes; types and shapes that were checked before are not checked again."""
        kinds: list[Any] = [entry.name]
        for name, value in given.items():
            if type(value) is not np.ndarray or not value.flags.c_contiguous or not value.dtype.isnative:
                return check_inputs(entry, self.manifest.dims, given)
            kinds += (name, value.dtype, value.shape)
        key = tuple(kinds)
        if key not in self._sizes:
            arrays, sizes = check_inputs(entry, self.manifest.dims, given)
            if len(self._sizes) >= _CHECKED:
                self._sizes.clear()
            self._sizes[key] = sizes
            return arrays, sizes
        return dict(given), self._sizes[key]

    def _model(self, entry: EntryPoint) -> Runner:
        code = self._code[entry.name]
        native = code.endswith(f"/{NAME}")
        key = (code, entry.name if native else "")
        made = self._models.get(key)
        if made is not None and native:
            return made
        with self._lock:
            if key not in self._models:
                self._models[key] = self._open_native(code, entry) if native else self._open_onnx(code)
            _check_names(made := self._models[key], entry, f"{self.path}: {code}")
            return made

    def _open_onnx(self, code: str) -> Runner:
        return OrtSession.from_artifact(self.artifact, code, device=self.device, threads=self._threads)

    def _open_native(self, code: str, entry: EntryPoint) -> Runner:
        from planish.runtime.tvm import TvmCode, TvmSession

        if code not in self._native:
            self._native[code] = TvmCode.from_artifact(
                self.artifact, code, device=self.device, threads=self._threads
            )
        return TvmSession(self._native[code], entry.name)

    def _json(self, name: str) -> Mapping[str, Any] | None:
        if name not in self.artifact:
            return None
        value = parse_json(self.artifact.read(name), code="PL611", where=f"{self.path}: {name}")
        if not isinstance(value, dict):
            raise ArtifactError("PL611", "is not a JSON object", where=f"{self.path}: {name}")
        return MappingProxyType(value)


class BoundEntry:
    """One entry point of a session, callable."""

    def __init__(self, session: Session, entry: EntryPoint) -> None:
        self._session = session
        self.entry = entry

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._session._call(self.entry, inputs, named)

    def __repr__(self) -> str:
        return f"BoundEntry({self.entry})"


def _default_entry(manifest: Manifest) -> EntryPoint | None:
    entries = manifest.entry_points
    if manifest.default is not None:
        return entries[manifest.default]
    return entries.get("main") or (next(iter(entries.values())) if len(entries) == 1 else None)


def _code_of(artifact: Artifact, entry: EntryPoint, device: str, allow: bool | None) -> str:
    """The member to run an entry point from: native code if it may run and can, else the model of ONNX Runtime."""
    onnx, native, refusal = _onnx_member(artifact, entry), _native_member(artifact, entry, device), None
    if native is not None:
        try:
            _check_native(artifact, native, device, allow)
            return native
        except (ArtifactError, BackendError) as error:
            if isinstance(error, ArtifactError) and error.code != "PL622":
                raise
            refusal = error
    if onnx is not None:
        if refusal is not None:
            log.info("%s: ONNX Runtime is used for %s: %s", artifact.path, entry.name, refusal)
        return onnx
    if refusal is not None:
        raise refusal
    loose = [name for name in artifact.names if name.startswith("code/") and name.endswith(_NATIVE)]
    if loose and not allow:
        raise _untrusted(artifact, loose[0])
    targets = sorted({name.split("/")[1] for name in artifact.names if name.startswith("code/")})
    raise BackendError(
        "PL705", f"no runtime here for the entry point {entry.name}; code is there for: {', '.join(targets) or 'none'}",
        where=str(artifact.path), hint="compile the program with target='onnxruntime'",
    )  # fmt: skip


def _onnx_member(artifact: Artifact, entry: EntryPoint) -> str | None:
    for name in (entry.code.get("onnxruntime"), f"{FOLDER}{entry.name}.onnx", f"{FOLDER}model.onnx"):
        if name is not None and name in artifact:
            return name
        if name is not None and name == entry.code.get("onnxruntime"):
            raise ArtifactError("PL612", f"there is no member {name!r}", where=str(artifact.path))
    return None


def _native_member(artifact: Artifact, entry: EntryPoint, device: str) -> str | None:
    kind = device.partition(":")[0]
    given = entry.code.get(kind)
    if given is not None and (given not in artifact or not given.endswith(f"/{NAME}")):
        raise ArtifactError(
            "PL612", f"there is no member {given!r} that names code", where=str(artifact.path)
        )
    name = given or f"code/{kind}/{NAME}"
    return name if name in artifact else None


def _check_native(artifact: Artifact, member: str, device: str, allow: bool | None) -> None:
    """Raise unless there is a library for this machine and it may run; nothing of it is run."""
    from planish.runtime.trust import is_trusted
    from planish.runtime.tvm import library_member, read_code
    from planish.runtime.tvm_library import load_runtime

    name = library_member(artifact, member, read_code(artifact, member), device)
    if not allow and (allow is False or not is_trusted(artifact.manifest.members[name][1])):
        raise _untrusted(artifact, name)
    load_runtime()


def _untrusted(artifact: Artifact, name: str) -> ArtifactError:
    return ArtifactError(
        "PL622", f"the artifact holds native code that is not trusted ({name})", where=str(artifact.path),
        hint="pass allow_native_code=True if you trust the file, or compile its program afresh",
    )  # fmt: skip


def _check_names(model: Runner, entry: EntryPoint, where: str) -> None:
    wanted = {v.name for v in entry.inputs} | {s.input for s in entry.states}
    given = {v.name for v in entry.outputs} | {s.output for s in entry.states}
    if wanted != set(model.inputs) or not given <= set(model.outputs):
        facts = json.dumps({"inputs": sorted(model.inputs), "outputs": sorted(model.outputs)})[:300]
        raise ArtifactError(
            "PL621", f"the model has other names than the entry point {entry.name}: {facts}", where=where
        )
