"""The content of an artifact: programs, weights, code, report, tokenizer and self-test, each byte stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from planish.errors import BackendError
from planish.frontend.code import Code, as_json
from planish.frontend.report import Report
from planish.ir.node import Module, Node, Program
from planish.ir.types import Symbol, TensorType

if TYPE_CHECKING:
    from planish.runtime.artifact import Content
    from planish.runtime.manifest import EntryPoint
    from planish.runtime.tensors import SafetensorsPayload

WEIGHTS = "weights/model.safetensors"
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
    """What a package is made of; ``generation`` is the table of that name in the manifest."""

    code: Code
    report: Report
    digest: str
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)
    source: Module | None = None
    """The programs before kernels were chosen."""
    generation: Mapping[str, Any] | None = None


def make_package(parts: Parts) -> Package:
    """All members but the self-test; raises ``BackendError`` PL720 if weights would be stored decoded or twice."""
    payload = make_payload(parts.code)
    layout = payload.layout()
    stored = max((info.offset + info.length for info in layout.values()), default=0)
    module = parts.code.module
    check_size(module, stored)
    if parts.source is not None:
        check_layouts(parts.source, stored)
    members: dict[str, Content] = {
        **{f"ir/{program.name}.ir.py": f"{program}" for program in module.programs},
        WEIGHTS: payload,
        **parts.code.members(WEIGHTS, layout),
        "report.json": as_json(parts.report.as_json(times=False)),
        **{f"tokenizer/{name}": data for name, data in parts.tokenizer.items()},
    }
    return Package(members, _fields(parts, set(layout)))


def make_payload(code: Code) -> SafetensorsPayload:
    """The tensors that the code refers to, and the small constants that only the programs name."""
    from planish.ir.arrays import to_numpy
    from planish.runtime.tensors import SafetensorsPayload, TensorSource

    tensors: dict[str, Any] = dict(code.tensors)
    for leaf in code.module.constants():
        if leaf.name not in tensors and int(leaf.tensor.nbytes) <= code.inline_bytes:

            def data(leaf: Node = leaf) -> Any:
                return to_numpy(code.weights.tensor(leaf.name), leaf.dtype)

            shape = tuple(int(s) for s in leaf.shape if isinstance(s, int))
            tensors[leaf.name] = TensorSource(leaf.dtype.name, shape, data)
    return SafetensorsPayload(tensors)


def check_size(source: Program | Module, stored: int) -> None:
    """Raise ``BackendError`` PL720 if the weights take more bytes than the leaves of the programs allow."""
    leaves = sum(int(leaf.tensor.nbytes) for leaf in source.constants())
    _check_size(stored, leaves, leaves, "its program has")


def check_layouts(source: Program | Module, stored: int) -> None:
    """Raise PL720 if kernels want more bytes than the programs before them have, tensors filled up to whole tiles."""
    from planish.passes.select import filled

    leaves = sum(int(leaf.tensor.nbytes) for leaf in source.constants())
    most = sum(filled(leaf.tensor) for leaf in source.constants())
    _check_size(stored, leaves, most, "without kernels it has")


def _check_size(stored: int, leaves: int, most: int, what: str) -> None:
    if stored > int(most * (1 + SLACK_SHARE)) + SLACK_BYTES:
        raise BackendError(
            "PL720", f"the artifact would hold {stored:,} bytes of weights, {what} {leaves:,}",
            hint="a weight would be stored decoded or twice; report this",
        )  # fmt: skip


def _fields(parts: Parts, stored: set[str]) -> dict[str, Any]:
    module, code = parts.code.module, parts.code
    relaid = sorted(leaf.name for leaf in module.constants() if leaf.name not in stored)
    fields = {
        "producer": versions(),
        "targets": code.targets,
        "dims": {s.name: [s.low, s.high] for s in module.symbols if isinstance(s, Symbol)},
        "entry_points": {program.name: entry_point(code, program) for program in module.programs},
        "source": {"digest": parts.digest},
        # Constants of the programs that are stored only in the layout of the code.
        "relaid": relaid,
    }
    if len(module.programs) > 1:
        fields["default"] = module.default.name
    if parts.generation is not None:
        from planish.runtime.manifest import generation_table

        fields["generation"] = generation_table(parts.generation)
    return fields


def entry_point(code: Code, program: Program) -> dict[str, Any]:
    """The typed inputs, outputs and states of a program of the code, as the manifest has them."""
    return {**signature(program, code.results(program.name)), "code": dict(code.entry(program.name))}


def signature(program: Program, results: Sequence[str]) -> dict[str, Any]:
    """The typed inputs, outputs and states of a program; ``results`` names its outputs, then its next states."""
    count = len(program.outputs)
    states = zip(program.states, program.state_leaves(), results[count:], strict=True)
    outputs = zip(results[:count], program.outputs, strict=True)
    return {
        "inputs": [_value(leaf.name, leaf.tensor) for leaf in program.inputs],
        "outputs": [_value(name, node.tensor) for name, node in outputs],
        "states": [
            {"name": name, "type": str(leaf.tensor), "input": name, "output": output}
            for (name, _), leaf, output in states
        ],
    }


def typed(name: str, table: Mapping[str, Any]) -> EntryPoint:
    """An entry point from what :func:`entry_point` or :func:`signature` gives."""
    from planish.runtime.manifest import EntryPoint, State, Value
    from planish.runtime.typetext import parse_type

    inputs, outputs = (
        tuple(Value(v["name"], parse_type(v["type"])) for v in table[key]) for key in ("inputs", "outputs")
    )
    states = tuple(State(s["name"], parse_type(s["type"]), s["input"], s["output"]) for s in table["states"])
    return EntryPoint(name, inputs, outputs, states)


def _value(name: str, kind: TensorType) -> dict[str, str]:
    return {"name": name, "type": str(kind)}


def versions() -> dict[str, str]:
    """The tools that take part in making an artifact."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("planish", "torch", "onnx", "onnxruntime", "apache-tvm", "apache-tvm-ffi"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
