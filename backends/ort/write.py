"""Giving the initializers of a lowered model their place in a file, and writing a standalone ONNX model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import onnx

from planish.backends.ort.lower import Lowered
from planish.backends.ort.storage import LOADED, external_location
from planish.errors import BackendError
from planish.runtime.tensors import SafetensorsPayload, TensorInfo, TensorSource

if TYPE_CHECKING:
    from planish.backends.ort.module import LoweredModule

ALIGNMENT = 64
SLACK_SHARE, SLACK_BYTES = 0.01, 64 * 1024


def payload(lowered: Lowered) -> SafetensorsPayload:
    """The tensors of a lowered model as one safetensors member of an artifact."""
    return SafetensorsPayload(lowered.tensors)


def place(lowered: Lowered, location: str, layout: Mapping[str, TensorInfo]) -> onnx.ModelProto:
    """The model with every reference pointing at ``location``, where ``layout`` says at which offset a tensor lies."""
    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL or external_location(tensor) == LOADED:
            continue
        info = layout[lowered.stored[tensor.name]]
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", info.offset), ("length", info.length)):
            tensor.external_data.add(key=key, value=str(value))
    return model


def check_bytes(lowered: Lowered | LoweredModule, written: int) -> None:
    """Raise ``BackendError`` PL741 if more bytes of weights were written than the program has.

    Rounding up to whole blocks and aligning is allowed: 1 % and 64 KiB. A decoded copy of a weight is not.
    """
    allowed = int((lowered.leaf_bytes + lowered.widened_bytes) * (1 + SLACK_SHARE)) + SLACK_BYTES
    if written > allowed:
        raise BackendError(
            "PL741",
            f"the model would take {written} bytes for weights of {lowered.leaf_bytes} bytes",
            hint="a weight was stored decoded or twice; report this",
        )


def save_onnx(
    lowered: Lowered | LoweredModule, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a folder with ``model.onnx`` and ``model.onnx.data``, which any ONNX Runtime loads; gives the model's path.

    Of several programs each has a model of its own name, all over the same data, and the path is that of the first.
    What the load model computes becomes part of the graph. The folder appears whole or not at all; the same
    lowered model gives the same bytes.
    """
    folder = Path(path)
    if folder.exists() and not (overwrite and folder.is_dir()):
        raise BackendError("PL744", f"{folder} exists already", hint="pass overwrite=True to replace it")
    given = {"model": lowered} if isinstance(lowered, Lowered) else lowered.by_program
    names = list(given) if len(given) > 1 else ["model"]
    joined = dict(zip(names, map(_joined, given.values()), strict=True))
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with (scratch / "model.onnx.data").open("wb") as file:
            layout = _write_tensors(file, tuple(joined.values()))
            _flush(file)
        check_bytes(lowered, (scratch / "model.onnx.data").stat().st_size)
        for name, each in joined.items():
            graph = place(each, "model.onnx.data", layout).SerializeToString(deterministic=True)
            with (scratch / f"{name}.onnx").open("wb") as file:
                file.write(graph)
                _flush(file)
        _replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder / f"{names[0]}.onnx"


def _replace(scratch: Path, folder: Path) -> None:
    os.chmod(scratch, 0o755)
    if not folder.exists():
        os.replace(scratch, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.replace(folder, old / "replaced")
    os.replace(scratch, folder)
    shutil.rmtree(old)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_tensors(file: IO[bytes], models: Sequence[Lowered]) -> dict[str, TensorInfo]:
    layout: dict[str, TensorInfo] = {}
    sources: dict[str, TensorSource] = {n: m.tensors[n] for m in models for n in m.stored.values()}
    for name in sorted(sources):
        source = sources[name]
        file.write(bytes(-file.tell() % ALIGNMENT))
        value = np.ascontiguousarray(np.asarray(source.data()))
        start = file.tell()
        file.write(value.reshape(-1).view(np.uint8).data)
        layout[name] = TensorInfo(source.dtype, source.shape, start, file.tell() - start)
    return layout


def _joined(lowered: Lowered) -> Lowered:
    """The same with the nodes of the load model in the model itself."""
    load = lowered.load_model
    if load is None:
        return lowered
    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    graph = model.graph
    imports = model.opset_import[0]
    imports.version = max(imports.version, load.opset_import[0].version)
    rename = _prefixed(load)
    main = list(graph.node)
    del graph.node[:]
    for node in load.graph.node:
        copy = graph.node.add()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            names[:] = [rename(n) for n in names]
        copy.name = f"load/{node.name}"
    graph.node.extend(main)
    kept = [
        t for t in graph.initializer
        if t.data_location != onnx.TensorProto.EXTERNAL or external_location(t) != LOADED
    ]  # fmt: skip
    del graph.initializer[:]
    graph.initializer.extend(kept)
    held = {t.name for t in kept}
    stored = dict(lowered.stored)
    for constant in load.graph.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(constant)
        copy.name = rename(constant.name)
    for value in load.graph.input:
        if value.name in held:
            continue
        copy = graph.initializer.add(name=value.name, data_type=value.type.tensor_type.elem_type)
        copy.dims.extend(d.dim_value for d in value.type.tensor_type.shape.dim)
        copy.data_location = onnx.TensorProto.EXTERNAL
        copy.external_data.add(key="location", value="")
        stored[value.name] = value.name
    return replace(lowered, model=model, stored=stored, load_model=None)


def _prefixed(load: onnx.ModelProto) -> Callable[[str], str]:
    """Names of the load model as they stand in the main graph: inputs and outputs keep theirs."""
    shared = {v.name for v in (*load.graph.input, *load.graph.output)} | {""}
    return lambda name: name if name in shared else f"load/{name}"


__all__ = ["check_bytes", "payload", "place", "save_onnx"]
