"""The content of an artifact: program, weights, ONNX code, report, tokenizer and self-test, each byte stored once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from planish.errors import BackendError
from planish.frontend.report import Report
from planish.ir.node import Node, Program
from planish.ir.types import Symbol, TensorType

if TYPE_CHECKING:
    from planish.backends.ort.lower import Lowered
    from planish.ir.weights import Weights
    from planish.runtime.artifact import Content
    from planish.runtime.tensors import SafetensorsPayload

WEIGHTS = "weights/model.safetensors"
CODE = "code/onnxruntime/"
SLACK_SHARE, SLACK_BYTES = 0.02, 256 * 1024
"""What the weights of an artifact may take beyond the leaves of its program: padding, alignment and a header."""


@dataclass(frozen=True)
class Package:
    """Members and manifest fields of an artifact in the making; equal packages give equal bytes."""

    members: Mapping[str, Content]
    fields: Mapping[str, Any]

    def with_members(self, more: Mapping[str, Content]) -> Package:
        """The package with more members."""
        return Package({**self.members, **more}, self.fields)


@dataclass(frozen=True)
class Parts:
    """What a package is made of."""

    program: Program
    weights: Weights
    lowered: Lowered
    report: Report
    digest: str
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)


def make_package(parts: Parts) -> Package:
    """All members but the self-test; raises ``BackendError`` PL720 if weights would be stored decoded or twice."""
    from planish.backends.ort.write import place

    payload = make_payload(parts)
    layout = payload.layout()
    stored = max((info.offset + info.length for info in layout.values()), default=0)
    check_size(parts.program, stored)
    lowered = parts.lowered
    members: dict[str, Content] = {
        f"ir/{parts.program.name}.ir.py": f"{parts.program}",
        WEIGHTS: payload,
        f"{CODE}model.onnx": place(lowered, WEIGHTS, layout).SerializeToString(deterministic=True),
        f"{CODE}session.json": _json({"config": dict(lowered.session_options)}),
        "report.json": _json(parts.report.as_json(times=False)),
        **{f"tokenizer/{name}": data for name, data in parts.tokenizer.items()},
    }
    if lowered.load_model is not None:
        members[f"{CODE}load.onnx"] = lowered.load_model.SerializeToString(deterministic=True)
    return Package(members, _fields(parts, set(layout)))


def make_payload(parts: Parts) -> SafetensorsPayload:
    """The tensors that the code refers to, and the small constants that only the program names."""
    from planish.backends.ort.storage import to_numpy
    from planish.runtime.tensors import SafetensorsPayload, TensorSource

    tensors: dict[str, Any] = dict(parts.lowered.tensors)
    for leaf in parts.program.constants():
        if leaf.name not in tensors and int(leaf.tensor.nbytes) <= parts.lowered.options.inline_bytes:

            def data(leaf: Node = leaf) -> Any:
                return to_numpy(parts.weights.tensor(leaf.name), leaf.dtype)

            shape = tuple(int(s) for s in leaf.shape if isinstance(s, int))
            tensors[leaf.name] = TensorSource(leaf.dtype.name, shape, data)
    return SafetensorsPayload(tensors)


def check_size(program: Program, stored: int) -> None:
    """Raise ``BackendError`` PL720 if the weights take more bytes than the leaves of the program allow."""
    leaves = sum(int(leaf.tensor.nbytes) for leaf in program.constants())
    allowed = int(leaves * (1 + SLACK_SHARE)) + SLACK_BYTES
    if stored > allowed:
        raise BackendError(
            "PL720", f"the artifact would hold {stored:,} bytes of weights, its program has {leaves:,}",
            hint="a weight would be stored decoded or twice; report this",
        )  # fmt: skip


def _json(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"


def _fields(parts: Parts, stored: set[str]) -> dict[str, Any]:
    program = parts.program
    relaid = sorted(leaf.name for leaf in program.constants() if leaf.name not in stored)
    return {
        "producer": versions(),
        "targets": [{"name": "onnxruntime", "device": "cpu"}],
        "dims": {s.name: [s.low, s.high] for s in program.symbols if isinstance(s, Symbol)},
        "entry_points": {program.name: entry_point(program, parts.lowered)},
        "source": {"digest": parts.digest},
        # Constants of the program that are stored only in the layout of the code.
        "relaid": relaid,
    }


def entry_point(program: Program, lowered: Lowered) -> dict[str, Any]:
    """The typed inputs, outputs and states of a program, as the manifest has them."""
    count = len(program.outputs)
    states: list[dict[str, Any]] = []
    types = {n.name: str(n.tensor) for n in program.nodes if n.op == "state"}
    for (name, _), output in zip(program.states, lowered.output_names[count:], strict=True):
        states.append({"name": name, "type": types[name], "input": name, "output": output})
    outputs = zip(lowered.output_names[:count], program.outputs, strict=True)
    return {
        "inputs": [_value(leaf.name, leaf.tensor) for leaf in program.inputs],
        "outputs": [_value(name, node.tensor) for name, node in outputs],
        "states": states,
        "code": {"onnxruntime": f"{CODE}model.onnx"},
    }


def _value(name: str, kind: TensorType) -> dict[str, str]:
    return {"name": name, "type": str(kind)}


def versions() -> dict[str, str]:
    """The tools that take part in making an artifact."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("planish", "torch", "onnx", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
