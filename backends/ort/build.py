"""Running a lowered program in this process, without an artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.backends.ort.lower import Lowered
from planish.backends.ort.write import check_bytes, payload, place
from planish.errors import ShapeError
from planish.runtime.inputs import to_array, to_torch
from planish.runtime.ort import FileRange, OrtSession
from planish.runtime.settings import SessionSettings
from planish.runtime.tensors import Array, read_table, view_tensors

LOCATION = "weights/model.safetensors"


class Built:
    """A program in ONNX Runtime: call it with arrays or torch tensors, in the order of the inputs.

    The result is one torch tensor, or a tuple: outputs, then next states. States are passed by name.
    """

    def __init__(self, session: OrtSession, input_names: Sequence[str], output_names: Sequence[str]) -> None:
        self.session = session
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)

    def __call__(self, *inputs: Any, states: Mapping[str, Any] | None = None) -> Any:
        import torch  # noqa: F401  (results are torch tensors)

        given = (*inputs, *(states or {}).values())
        names = [n for n in self.input_names if n not in (states or {})] + list(states or {})
        results = [to_torch(a, "cpu") for a in self.run(dict(zip(names, given))).values()]
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name from inputs by name, as numpy arrays."""
        missing = set(self.input_names) - set(feeds)
        if missing or len(feeds) != len(self.input_names):
            raise ShapeError(
                "PL323", f"the model takes {', '.join(self.input_names)}, got {', '.join(feeds)}"
            )
        arrays = {n: np.ascontiguousarray(to_array(v, n, "ort")) for n, v in feeds.items()}
        arrays = {n: a.reshape(np.shape(feeds[n])) for n, a in arrays.items()}
        return self.session.run(arrays, self.output_names)


def build(lowered: Lowered, *, threads: int | None = None) -> Built:
    """A callable for a lowered program. Weights go through a file that is mapped, so they are held once."""
    tensors = payload(lowered)
    layout = tensors.layout()
    model = place(lowered, LOCATION, layout)
    load = lowered.load_model
    settings = SessionSettings(config=dict(lowered.session_options))
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        path = Path(folder) / "weights.safetensors"
        with path.open("wb") as file:
            for chunk in tensors.chunks():
                file.write(chunk)
            size = file.tell()
        check_bytes(lowered, sum(info.length for info in layout.values()))
        stores = {LOCATION: FileRange(path, 0, size)} if lowered.stored else {}
        session = OrtSession(
            model.SerializeToString(),
            stores,
            weights=_mapped(path) if load is not None else None,
            load_model=load.SerializeToString() if load is not None else None,
            settings=settings,
            threads=threads,
        )
    return Built(session, lowered.input_names, lowered.output_names)


def _mapped(path: Path) -> dict[str, Array]:
    data = np.memmap(path, np.uint8, "r")
    table = read_table(lambda offset, length: data[offset : offset + length].tobytes(), data.nbytes)
    return view_tensors(data.data, table)
