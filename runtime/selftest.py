"""One stored input and output per entry point: proof that a file computes here what it computed where it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from planish.errors import ArtifactError
from planish.runtime.artifact import Artifact
from planish.runtime.inputs import check_inputs
from planish.runtime.manifest import EntryPoint
from planish.runtime.runner import Runner
from planish.runtime.states import zeros
from planish.runtime.tensors import Array, SafetensorsPayload, parse_json

FOLDER = "selftest/"


def selftest_members(
    entry: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, rtol: float, atol: float
) -> dict[str, bytes | SafetensorsPayload]:
    """The members that hold a self-test of the entry point ``entry``, with the tolerance that it needs.

    Names are those of the code, so the inputs and outputs of states may be among them. States that are not begin as
    zeros.
    """
    tensors = {f"input.{name}": array for name, array in inputs.items()}
    tensors |= {f"output.{name}": array for name, array in outputs.items()}
    tolerance = f'{{"atol": {float(atol)!r}, "rtol": {float(rtol)!r}}}\n'.encode()
    return {
        f"{FOLDER}{entry}.safetensors": SafetensorsPayload(tensors),
        f"{FOLDER}{entry}.json": tolerance,
    }


def run_selftest(artifact: Artifact, entry: EntryPoint, model: Callable[[EntryPoint], Runner]) -> int:
    """Run the self-test of one entry point: 1 if there is one and it passes, 0 if there is none, else PL615."""
    data, facts = f"{FOLDER}{entry.name}.safetensors", f"{FOLDER}{entry.name}.json"
    if data not in artifact:
        return 0
    where = f"{artifact.path}: {data}"
    rtol, atol = _tolerance(artifact, facts)
    tensors = artifact.tensors(data)
    feeds = {name.removeprefix("input."): a for name, a in tensors.items() if name.startswith("input.")}
    expected = {name.removeprefix("output."): a for name, a in tensors.items() if name.startswith("output.")}
    session = model(entry)
    feeds |= _states(artifact, entry, feeds)
    if set(feeds) != set(session.inputs) or not set(expected) <= set(session.outputs) or not expected:
        raise ArtifactError("PL615", "the self-test has other inputs or outputs than the model", where=where)
    found = session.run(feeds, list(expected))
    for name, wanted in expected.items():
        problem = _difference(found[name], wanted, rtol, atol)
        if problem:
            raise ArtifactError(
                "PL615", f"the self-test of {entry.name} fails: {name}: {problem}", where=where,
                hint="this machine computes something else: compile the model afresh here",
            )  # fmt: skip
    return 1


def _states(artifact: Artifact, entry: EntryPoint, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Zeros for the states that are not stored, whose sizes follow from the inputs."""
    missing = [state for state in entry.states if state.input not in feeds]
    if not missing or any(value.name not in feeds for value in entry.inputs):
        return {}
    _, sizes = check_inputs(entry, artifact.manifest.dims, feeds)
    return {state.input: zeros(state.type.sizes(sizes), state.type.dtype) for state in missing}


def _tolerance(artifact: Artifact, name: str) -> tuple[float, float]:
    where = f"{artifact.path}: {name}"
    table = parse_json(artifact.read(name), code="PL615", where=where)
    values = [table.get(key) for key in ("rtol", "atol")] if isinstance(table, dict) else [None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < 1e308 for v in values):
        raise ArtifactError("PL615", "rtol and atol are not both numbers from 0", where=where)
    return float(values[0] or 0), float(values[1] or 0)


def _difference(found: Array, wanted: Array, rtol: float, atol: float) -> str | None:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype}{list(found.shape)} instead of {wanted.dtype}{list(wanted.shape)}"
    if wanted.dtype.kind in "biu":
        return None if np.array_equal(found, wanted) else "integers differ"
    kind: Any = np.complex128 if wanted.dtype.kind == "c" else np.float64
    a, b = found.astype(kind), wanted.astype(kind)
    if np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
        return None
    with np.errstate(all="ignore"):
        worst = float(np.nanmax(np.abs(a - b))) if a.size else 0.0
    return f"differs by up to {worst:.3g}, allowed are rtol {rtol:g} and atol {atol:g}"
