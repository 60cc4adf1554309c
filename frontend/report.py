"""What a compilation did, as plain values: phases, sizes, rewrites and a row for each weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.ir.node import Module, Node, Program
    from planish.passes.pipeline import Result

VERSION = 1


@dataclass(frozen=True)
class Layer:
    """One weight of the model: how it is stored, what that costs, what it loses, and why it is so.

    ``error`` is the weight error ``|W - W'| / |W|``; ``bits`` are the bits stored for each of its elements.
    ``group`` is the fusion group, such as q, k and v of one attention, whose weights runtimes want stored alike.
    """

    name: str
    type: str
    codec: str
    bits: float
    bytes: int
    error: float
    reason: str
    group: str = ""

    def __str__(self) -> str:
        lost = f", error {self.error:.4f}" if self.error else ""
        size = f"{self.bits:.3f} bits, {self.bytes:,} bytes"
        beside = f"; in the group {self.group}" if self.group else ""
        return f"{self.name}: {self.type} as {self.codec}, {size}{lost}; {self.reason}{beside}"


@dataclass(frozen=True)
class Report:
    """The account of a compilation. ``phases`` are seconds; ``bytes`` are those of constants before and after."""

    target: str = ""
    pipeline: str = ""
    source: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    operations_before: int = 0
    operations_after: int = 0
    layers: tuple[Layer, ...] = ()
    rewrites: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def with_phase(self, name: str, seconds: float) -> Report:
        """The report with one more phase; a phase that comes again is counted together."""
        return replace(self, phases={**self.phases, name: self.phases.get(name, 0.0) + seconds})

    @property
    def seconds(self) -> float:
        """Seconds of all phases."""
        return sum(self.phases.values())

    def as_json(self, *, times: bool = True) -> dict[str, Any]:
        """The report as plain values; without ``times`` it is the same for every run of one compilation."""
        table = {"version": VERSION, **asdict(self), "layers": [asdict(layer) for layer in self.layers]}
        table["notes"] = list(self.notes)
        table["rewrites"] = dict(sorted(self.rewrites.items()))
        if not times:
            del table["phases"]
        return table

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Report:
        """The report that :meth:`as_json` wrote; unknown fields are left out."""
        known = {k: table[k] for k in cls.__dataclass_fields__ if k in table}
        known["layers"] = tuple(
            Layer(**{k: row[k] for k in Layer.__dataclass_fields__}) for row in table.get("layers", ())
        )
        known["notes"] = tuple(table.get("notes", ()))
        return cls(**known)

    def __str__(self) -> str:
        ratio = f", {self.bytes_after / self.bytes_before:.3f} of them" if self.bytes_before else ""
        lines = [
            f"target {self.target}, passes {self.pipeline or 'none'}",
            f"bytes of weights: {self.bytes_before:,} -> {self.bytes_after:,}{ratio}",
            f"operations: {self.operations_before:,} -> {self.operations_after:,}",
        ]
        if self.phases:
            steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.phases.items())
            lines.append(f"seconds: {self.seconds:.2f} ({steps})")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def make_report(before: Program, result: Result, module: Module, **facts: Any) -> Report:
    """The report of a pipeline that ran on ``before``, and of the programs that were made of what it left."""
    from planish.passes.base import leaf_bytes

    after = module.default
    return Report(
        bytes_before=leaf_bytes(before),
        bytes_after=sum(int(leaf.tensor.nbytes) for leaf in module.constants()),
        operations_before=_operations(before),
        operations_after=_operations(after),
        layers=_layers(before, result),
        rewrites=Counter(step.rule for step in result.log.steps),
        **facts,
    )


def _operations(program: Program) -> int:
    return sum(not node.is_leaf for node in program.nodes)


def _layers(before: Program, result: Result) -> tuple[Layer, ...]:
    """A row for each weight of the original program that is still in use, in the order of its first use."""
    from planish.passes.compress.encode import EncodedWeight
    from planish.passes.recognise.groups import find_groups

    groups = {w: g.name for g in find_groups(result.program) if len(g.weights) > 1 for w in g.weights}
    notes: dict[str, tuple[EncodedWeight, str]] = {}
    for record in result.records:
        for note in record.notes:
            if isinstance(note, EncodedWeight):
                notes.setdefault(note.name, (note, _reason(note.name, record.each)))
    parts: dict[str, list[Node]] = {}
    for leaf in result.program.constants():
        parts.setdefault(leaf.name.partition("#")[0], []).append(leaf)
    original = {leaf.name: leaf for leaf in before.constants()}
    rows = []
    for name, leaves in parts.items():
        source = original.get(name)
        stored = sum(int(leaf.tensor.nbytes) for leaf in leaves)
        kind = source.tensor if source is not None else leaves[0].tensor
        count = max(int(kind.numel), 1)
        note, reason = notes.get(name, (None, "kept: no pass encodes it"))
        encoded = note is not None and any("#" in leaf.name for leaf in leaves)
        codec = note.spec if note is not None and encoded else str(leaves[0].dtype.name)
        if note is not None and not encoded:
            reason = "kept: the codes would not be smaller"
        error = note.error if note is not None and encoded else 0.0
        rows.append(
            Layer(
                name,
                str(kind),
                codec,
                round(8 * stored / count, 4),
                stored,
                float(f"{error:.6g}"),
                reason,
                groups.get(name, ""),
            )
        )
    return tuple(rows)


def _reason(name: str, each: Any) -> str:
    import json

    from planish.frontend.layers import LayerRules
    from planish.passes.compress.encode import matches

    if isinstance(each, LayerRules):
        for index, rule in enumerate(json.loads(each.rules)):
            if matches(name, rule["match"]):
                return f"layer rule {index + 1}: {rule['match']}"
        return f"pass {each.default}"
    return f"pass {each}"
