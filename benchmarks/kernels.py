"""Where the time of a call goes: microseconds of every function of a compiled model.

    python -m benchmarks.kernels resnet18-1      one of the models of `benchmarks.cpu`: minilm-1, minilm-32, resnet18-1
    python -m benchmarks.kernels model.planish   an artifact with machine code; --entry prefill --length 512

Every call is timed from outside, which adds a few microseconds to each.
"""

from __future__ import annotations

import argparse
import ast
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import models
from planish.frontend import api

EXAMPLES = {
    "minilm-1": lambda: models.minilm(1),
    "minilm-32": lambda: models.minilm(32),
    "resnet18-1": models.resnet18,
}


def exported(name: str, target: str, folder: Path) -> Path:
    """An artifact of one of the example models."""
    from planish.frontend.capture.source import capture

    example = EXAMPLES[name]()
    captured = capture(example.module, example_inputs=example.inputs)
    return api.compile_captured(captured, api.make_options(target=target)).export(folder / f"{name}.planish")


def arrays(entry: Any, sizes: Mapping[str, int], length: int) -> list[np.ndarray[Any, Any]]:
    """Made-up arguments of an entry point, states included."""
    make = np.random.default_rng(0)
    found = []
    for value in (*entry.inputs, *entry.states):
        texts = [ast.unparse(d) for d in value.type.dims]
        shape = [int(t) if t.isdigit() else sizes.get(t, 1) for t in texts]
        if value.type.dtype == "i64":
            fill = {"start": 0, "count": length}.get(value.name)
            found.append(np.full(shape, fill) if fill is not None else make.integers(1, 1000, shape))
        else:
            found.append(make.standard_normal(shape).astype("float32"))
    return found


def profile(path: Path, name: str | None, length: int, repeats: int = 5) -> dict[str, tuple[int, float]]:
    """Calls and microseconds of every function of an entry point, in one run."""
    import tvm_ffi

    from planish.runtime.tvm_threads import use_threads

    session = api.load(path, verify="off", allow_native_code=True)._opened()
    entry = session.entry_points[name or next(iter(session.entry_points))]
    shared = session._model(entry)._shared
    code = shared.code.entries[entry.name]
    machine = shared._library["vm_load_executable"]()
    machine["vm_initialization"](1, 0, 2)
    tensor = shared.tensors.tensor
    given = [tensor(a) for a in arrays(entry, {"B": 1, "T": length, "S": length}, length)]
    given += [shared._tensors[n] for n in code.weights]
    found: dict[str, list[float]] = {}
    began = [0.0]

    def watch(_: Any, function: Any, before: bool, *__: Any) -> int:
        if before:
            began[0] = perf_counter()
        else:
            found.setdefault(str(function), []).append((perf_counter() - began[0]) * 1e6)
        return 0

    machine["set_instrument"](tvm_ffi.convert(watch))
    use_threads(shared.ffi, shared.threads)
    for _ in range(3):
        machine[code.function](*given)
    found.clear()
    for _ in range(repeats):
        machine[code.function](*given)
    return {n: (len(t) // repeats, sum(t) / repeats) for n, t in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a name of a model, or an artifact")
    parser.add_argument("--entry")
    parser.add_argument("--length", type=int, default=128, help="tokens, or rows")
    parser.add_argument("--target", default="cpu")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        path = (
            exported(given.model, given.target, Path(folder))
            if given.model in EXAMPLES
            else Path(given.model)
        )
        found = profile(path, given.entry, given.length)
    total = sum(us for _, us in found.values())
    print(f"{total / 1e3:.2f} ms in all\n\n| function | calls | us | share |\n| --- | --- | --- | --- |")
    for name, (calls, us) in sorted(found.items(), key=lambda item: -item[1][1]):
        if us / total >= 0.001:
            print(f"| {name} | {calls} | {us:.0f} | {us / total:.1%} |")


if __name__ == "__main__":
    main()
