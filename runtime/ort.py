"""Run an ONNX model of an artifact with ONNX Runtime, its weights mapped and never held twice.

The model in an artifact holds no big data: its initializers name a member, an offset and a length. How these
bytes reach ONNX Runtime decides the memory. Given as values or as files in memory they are copied, and kernels
that pack weights for themselves (``MatMulNBits``) copy them again. Given as a range of a file, each is mapped,
packed and unmapped in turn: what stays resident is the packed form alone, or the mapping where nothing is packed.
So references are rewritten to ranges of the artifact itself; ``mmap=False`` pays for the copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from planish.errors import ArtifactError, BackendError, UsageError
from planish.runtime.artifact import Artifact
from planish.runtime.external import Reference, member_range, references, relocate
from planish.runtime.ort_states import Kept, StateRunner, read_in_place, state_array
from planish.runtime.ort_values import RAW, array_of, onnxruntime, ort_value
from planish.runtime.settings import LEVELS, SessionSettings, thread_count
from planish.runtime.tensors import Array

LOADED = "load"
"""The location that an initializer names when it is an output of the load model."""

FOLDER = "code/onnxruntime/"
WEIGHTS = "weights/"

_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("float16", "bool", "int8", "int16", "int32", "int64")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}


@dataclass(frozen=True)
class FileRange:
    """Part of a file; its bytes stand for a member with weights."""

    path: Path
    offset: int
    length: int


Store: TypeAlias = "FileRange | memoryview"


class OrtSession:
    """One ONNX model, ready to run.

    ``stores`` maps each location that initializers may name to its bytes, as ranges of one file (mapped) or as
    memory (copied). ``load_model`` is run once now: its inputs are taken from ``weights`` by name, its outputs
    become the initializers of those names, which the model marks with the location ``load``. ``release`` is
    called when the load model has read the weights.
    """

    def __init__(
        self,
        model: bytes,
        stores: Mapping[str, Store] | None = None,
        *,
        weights: Mapping[str, Array] | None = None,
        load_model: bytes | None = None,
        settings: SessionSettings | None = None,
        device: str = "cpu",
        threads: int | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        ort = onnxruntime()
        self._settings = settings or SessionSettings()
        self._settings.check()
        self._providers = _providers(ort, device)
        self._threads = thread_count(threads)
        stores = stores or {}
        loaded = self._run_load_model(ort, load_model, weights or {}) if load_model is not None else {}
        # ONNX Runtime copies these outputs: what they were made from should be gone by then.
        if release is not None:
            release()
        options = self._options(ort, self._settings)
        model = _supply(model, stores, set(loaded), options)
        if loaded:
            with _ort_errors("PL702", "ONNX Runtime refuses the outputs of the load model"):
                options.add_external_initializers(list(loaded), list(loaded.values()))
        self._session: Any = self._create(ort, model, options)
        # The wrapper keeps its options, and these would keep the load model's outputs.
        self._session._sess_options = None
        self.inputs: dict[str, str] = {v.name: v.type for v in self._session.get_inputs()}
        self.outputs: dict[str, str] = {v.name: v.type for v in self._session.get_outputs()}
        self._states = StateRunner(
            self._session, read_in_place(self._session, self.inputs, self.outputs), device
        )
        self._raw = any(kind in RAW for kind in (*self.inputs.values(), *self.outputs.values()))

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        code: str = FOLDER + "model.onnx",
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> OrtSession:
        """The session for the model in the member ``code``, set up by the files beside it."""
        folder = code.rpartition("/")[0] + "/"
        model = _model_bytes(artifact, code)
        load = _model_bytes(artifact, folder + "load.onnx") if folder + "load.onnx" in artifact else None
        name = folder + "session.json"
        where = f"{artifact.path}: {name}"
        settings = SessionSettings.parse(artifact.read(name), where=where) if name in artifact else None
        _check_unchanged(artifact)
        made = cls(
            model,
            _stores(artifact, model),
            weights=_weights(artifact) if load is not None else {},
            load_model=load,
            settings=settings,
            device=device,
            threads=threads,
            release=artifact.release_pages,
        )
        _check_unchanged(artifact)
        return made

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """Run the model on arrays by input name; gives the named outputs, or all.

        Outputs named in ``keep`` stay where the model runs and can be given as inputs again; :meth:`array` turns one
        into an array. A state that the model writes in place is gone as it was, also an array that can be written:
        its next value has its memory.
        """
        names = list(outputs) if outputs is not None else list(self.outputs)
        if self._session is None:
            raise BackendError("PL704", "the session is closed")
        with _ort_errors("PL704", "the model cannot be run on these inputs"):
            if keep or any(isinstance(value, Kept) for value in feeds.values()):
                return self._states.run(feeds, names, keep)
            if not self._raw:
                return dict(zip(names, self._session.run(names, dict(feeds))))
            values = {name: ort_value(array, self.inputs.get(name, "")) for name, array in feeds.items()}
            found = self._session.run_with_ort_values(names, values)
            return {name: array_of(value) for name, value in zip(names, found)}

    def array(self, value: Any) -> Array:
        """An output that was kept, as an array of its own."""
        return state_array(value)

    def close(self) -> None:
        """Release the model and its memory; a second call does nothing."""
        self._session = None
        self._states.close()

    def _options(self, ort: ModuleType, settings: SessionSettings) -> Any:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel(
            LEVELS[settings.graph_optimization_level]
        )
        options.enable_cpu_mem_arena = settings.arena
        options.enable_mem_pattern = settings.memory_pattern
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        options.add_session_config_entry("session.load_model_format", "ONNX")
        for key, value in settings.config.items():
            options.add_session_config_entry(key, value)
        return options

    def _create(self, ort: ModuleType, model: bytes, options: Any) -> Any:
        with _ort_errors("PL702", "ONNX Runtime refuses the model"):
            return ort.InferenceSession(model, options, providers=self._providers)

    def _run_load_model(self, ort: ModuleType, model: bytes, weights: Mapping[str, Array]) -> dict[str, Any]:
        if references(model):
            raise ArtifactError("PL621", "the load model refers to external data; it takes weights as inputs")
        # Without an arena its memory goes back as soon as it is done.
        session = self._create(ort, model, self._options(ort, SessionSettings("basic", arena=False)))
        binding = session.io_binding()
        for value in session.get_inputs():
            if value.name not in weights:
                raise ArtifactError(
                    "PL612", f"the load model needs the weight {value.name!r}, which is not there"
                )
            binding.bind_ortvalue_input(value.name, ort_value(weights[value.name], value.type))
        made = {}
        for value in session.get_outputs():
            # Initializers must lie in memory that is not ONNX Runtime's own.
            made[value.name] = ort_value(_blank(value), value.type)
            binding.bind_ortvalue_output(value.name, made[value.name])
        with _ort_errors("PL702", "ONNX Runtime cannot run the load model"):
            session.run_with_iobinding(binding)
        return made


def _supply(model: bytes, stores: Mapping[str, Store], loaded: set[str], options: Any) -> bytes:
    """Check all external references, point them at ``stores``, and tell ONNX Runtime where these are."""
    sizes = {name: s.length if isinstance(s, FileRange) else len(s) for name, s in stores.items()}
    files = {s.path for s in stores.values() if isinstance(s, FileRange)}
    if len({path.parent for path in files}) > 1:
        raise BackendError("PL702", "all weights of one model must lie in one folder")
    declared: set[str] = set()

    def move(reference: Reference) -> Reference:
        if reference.location == LOADED:
            declared.add(reference.tensor)
            return reference
        offset, length = member_range(reference, sizes)
        store = stores[reference.location]
        if isinstance(store, FileRange):
            return Reference(reference.tensor, store.path.name, store.offset + offset, length)
        return Reference(reference.tensor, reference.location, offset, length)

    model = relocate(model, move)
    if declared != loaded:
        name = min(declared ^ loaded)
        what = "is not an output of the load model" if name in declared else "is made at load but not used"
        raise ArtifactError("PL621", f"the initializer {name!r} {what}")
    if files:
        folder = str(next(iter(files)).parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    buffers = {
        name: np.frombuffer(s, np.uint8) for name, s in stores.items() if isinstance(s, memoryview) and len(s)
    }
    if buffers:
        sizes_in_order = [b.nbytes for b in buffers.values()]
        options.add_external_initializers_from_files_in_memory(
            list(buffers), list(buffers.values()), sizes_in_order
        )
    return model


def _providers(ort: ModuleType, device: str) -> list[Any]:
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return ["CPUExecutionProvider"]
    if kind == "cuda" and (not index or (index.isascii() and index.isdigit() and len(index) < 4)):
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise BackendError(
                "PL703",
                "this onnxruntime has no CUDA",
                hint="pip install onnxruntime-gpu, or load with device='cpu'",
            )
        return [("CUDAExecutionProvider", {"device_id": index or "0"}), "CPUExecutionProvider"]
    raise UsageError("PL863", f"unknown device {device!r}", hint="known: cpu, cuda, cuda:N")


@contextlib.contextmanager
def _ort_errors(code: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise BackendError(code, f"{what}: {reason[0][:500] if reason else type(error).__name__}") from error


def _stores(artifact: Artifact, model: bytes) -> dict[str, Store]:
    """The members with weights that the model refers to."""
    stores: dict[str, Store] = {}
    for location in {r.location for r in references(model)} & set(artifact.names):
        if not location.startswith(WEIGHTS):
            continue
        member = artifact.member(location)
        if artifact.mapped and _plain(artifact.path):
            stores[location] = FileRange(artifact.path, member.start, member.size)
        else:
            stores[location] = artifact.view(location)
    return stores


def _weights(artifact: Artifact) -> dict[str, Array]:
    weights: dict[str, Array] = {}
    for name in artifact.names:
        if name.startswith(WEIGHTS) and name.endswith(".safetensors"):
            weights |= artifact.tensors(name)
    return weights


def _model_bytes(artifact: Artifact, name: str) -> bytes:
    size, limit = artifact.member(name).size, artifact.limits.model_bytes
    if size > limit:
        raise ArtifactError(
            "PL610", f"{name} is {size} bytes, the limit is {limit}", where=str(artifact.path)
        )
    return artifact.read(name)


def _check_unchanged(artifact: Artifact) -> None:
    # ONNX Runtime opens the file by its path, after it was verified through the descriptor.
    if artifact.mapped and not artifact.unchanged():
        raise ArtifactError(
            "PL620",
            "the file was changed while it was loaded",
            where=str(artifact.path),
            hint="load it again",
        )


def _plain(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _blank(value: Any) -> Array:
    """An array with the type and shape of an output, both of which must be stated in the model."""
    kind = _ELEMENTS.get(value.type) or ("uint16" if value.type == "tensor(bfloat16)" else None)
    if kind is None or not all(type(n) is int and 0 <= n < 2**40 for n in value.shape):
        raise ArtifactError(
            "PL621",
            f"the output {value.name!r} of the load model is {value.type}{value.shape}: a fixed shape is needed",
        )
    try:
        return np.empty(tuple(value.shape), kind)
    except (MemoryError, ValueError) as error:
        raise ArtifactError(
            "PL610", f"the output {value.name!r} of the load model is too large: {error}"
        ) from None
