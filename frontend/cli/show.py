"""``planish show``: what a file holds, without running it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.errors import CaptureError
from planish.frontend.cli import common
from planish.runtime.manifest import generation_table
from planish.runtime.states import number_type
from planish.runtime.typetext import symbols

if TYPE_CHECKING:
    from planish.ir.node import Program
    from planish.runtime.manifest import Manifest
    from planish.runtime.typetext import TensorType


def show(
    file: Annotated[Path, typer.Argument(help="An artifact, a program .ir.py, an .onnx or a .gguf file.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="Show every weight, not only the sums by codec.")
    ] = False,
    program: Annotated[bool, typer.Option("--program", help="Show the text of the program.")] = False,
    seed: common.Seed = 0,
    config: common.Config = None,
    json: common.Json = False,
    verbose: common.Verbose = 0,
    quiet: common.Quiet = 0,
    no_progress: common.NoProgress = False,
    dry_run: common.DryRun = False,
) -> None:
    """Show metadata, weights with their bits and bytes, dimensions, targets and entry points."""
    out = common.terminal(json, verbose, quiet, no_progress)
    if not file.exists():
        raise CaptureError("PL120", "there is no such file or folder", where=str(file))
    suffix = file.suffix.lower()
    if dry_run:
        out.result(f"would show {file}", {"file": str(file)})
    elif suffix == ".planish":
        _artifact(out, file, layers, program)
    elif suffix == ".gguf":
        _gguf(out, file, layers)
    elif file.name.endswith(".ir.py") or suffix == ".onnx":
        _program(out, file, layers, program)
    else:
        raise CaptureError(
            "PL128", f"files of the kind {suffix or file.name!r} are not shown", where=str(file),
            hint="known: .planish, .ir.py, .onnx, .gguf",
        )  # fmt: skip


def _print(
    out: common.Terminal, facts: dict[str, Any], rows: list[dict[str, Any]], layers: bool, text: str | None,
    kernels: Sequence[dict[str, Any]] = (),
) -> None:  # fmt: skip
    parts: list[Any] = [_fact(key, _shown(value)) for key, value in facts.items()]
    parts += ["", _layer_table(rows) if layers else _codec_table(rows)]
    data = {**facts, "layers": rows}
    if kernels:
        columns = list(dict.fromkeys(key for kernel in kernels for key in kernel))
        parts += ["", common.table("", columns, [[kernel.get(c, "") for c in columns] for kernel in kernels])]
        data["kernels"] = list(kernels)
    if text is not None:
        parts, data = [*parts, "", text], {**data, "program": text}
    out.result(common.group(*parts), data)


def _fact(key: str, shown: str) -> str:
    return f"{key:<13} " + shown.replace("\n", "\n" + " " * 14)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _layer_table(rows: list[dict[str, Any]]) -> Any:
    columns = ["weight", "type", "codec", "bits", "bytes", "error"]
    return common.table("", columns, [[row[c if c != "weight" else "name"] for c in columns] for row in rows])


def _codec_table(rows: list[dict[str, Any]]) -> Any:
    sums: dict[str, list[Any]] = {}
    for row in rows:
        each = sums.setdefault(row["codec"], [row["codec"], 0, 0, 0.0])
        each[1] += 1
        each[2] += row["bytes"]
        each[3] = max(each[3], row["error"])
    return common.table("", ["codec", "weights", "bytes", "largest error"], list(sums.values()))


def _artifact(out: common.Terminal, file: Path, layers: bool, text: bool) -> None:
    from planish.frontend.report import Report
    from planish.runtime.artifact import open_artifact
    from planish.runtime.tensors import parse_json

    with open_artifact(file, verify="fast") as artifact:
        manifest = artifact.manifest
        data = artifact.read("report.json") if "report.json" in artifact else b"{}"
        report = Report.from_json(parse_json(data, code="PL611", where=f"{file}: report.json"))
        members = {n: artifact.member(n).size for n in artifact.names}
        facts: dict[str, Any] = {
            "file": str(file),
            "bytes": artifact.size,
            "entry points": [str(entry) for entry in manifest.entry_points.values()],
            **_states(manifest),
            "dimensions": {n: f"{low}..{high}" for n, (low, high) in manifest.dims.items()},
            "targets": [" ".join(f"{k}={v}" for k, v in sorted(t.items())) for t in manifest.targets],
            "passes": report.pipeline or "none",
            "weights": f"{report.bytes_before:,} -> {report.bytes_after:,} bytes",
            "made by": dict(manifest.producer),
            "source": manifest.source.get("digest", ""),
            "members": [f"{size:>12,}  {name}" for name, size in members.items()],
        }
        kernels = _kernels(artifact)
        programs = [n for n in artifact.names if n.startswith("ir/")]
        shown = "\n".join(artifact.read(n).decode() for n in programs) if text else None
    _print(out, facts, [vars(layer) for layer in report.layers], layers, shown, kernels)


def _states(manifest: Manifest) -> dict[str, Any]:
    """What calls keep, with its bytes, and how texts are continued; empty where there is nothing of the kind."""
    kinds = {s.name: s.type for entry in manifest.entry_points.values() for s in entry.states}
    facts: dict[str, Any] = {}
    if kinds:
        smallest = {name: low for name, (low, _) in manifest.dims.items()}
        sizes = {name: _bytes(kind, smallest) for name, kind in kinds.items()}
        open_sizes = sorted({n for kind in kinds.values() for dim in kind.dims for n in symbols(dim)})
        given = f", where {', '.join(f'{n} is {smallest[n]}' for n in open_sizes)}" if open_sizes else ""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, kind in kinds.items():
            groups.setdefault((name.rpartition(".")[0], str(kind)), []).append(name)
        facts["state bytes"] = f"{sum(sizes.values()):,}{given}"
        facts["states"] = [
            f"{', '.join(names)}: {kind}, {sizes[names[0]]:,} bytes each"
            for (_, kind), names in groups.items()
        ]
    if manifest.generation is not None:
        table = generation_table(manifest.generation)
        facts["generation"] = {name: value for name, value in table.items() if value != {}}
    return facts


def _bytes(kind: TensorType, sizes: Mapping[str, int]) -> int:
    return math.prod(kind.sizes(sizes)) * number_type(kind.dtype).itemsize


def _kernels(artifact: Any) -> list[dict[str, Any]]:
    """The kernels that the code of an artifact lists, with what each needs of a GPU."""
    from planish.runtime.tensors import parse_json

    found: list[dict[str, Any]] = []
    for name in artifact.names:
        if name.startswith("code/") and name.endswith("/code.json"):
            table = parse_json(artifact.read(name), code="PL611", where=f"{artifact.path}: {name}")
            found += table.get("kernels", []) if isinstance(table, dict) else []
    return found


def _program(out: common.Terminal, file: Path, layers: bool, text: bool) -> None:
    from collections import Counter

    from planish.frontend.cli.programs import read_any

    captured = read_any(file)
    program = captured.program
    facts = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "inputs": [f"{leaf.name}: {leaf.tensor}" for leaf in program.inputs],
        "outputs": [f"{name}: {node.type}" for name, node in _outputs(program)],
        "dimensions": {s.name: f"{s.low}..{s.high}" for s in program.symbols},
        "operations": dict(Counter(n.op for n in program.nodes if not n.is_leaf).most_common()),
        "weights": sum(int(leaf.tensor.nbytes) for leaf in program.constants()),
    }
    rows = [
        {
            "name": leaf.name, "type": str(leaf.tensor), "codec": leaf.dtype.name, "bits": float(leaf.dtype.bits),
            "bytes": int(leaf.tensor.nbytes), "error": 0.0,
        }
        for leaf in program.constants()
    ]  # fmt: skip
    _print(out, facts, rows, layers, str(program) if text else None)


def _outputs(program: Program) -> list[tuple[str, Any]]:
    names = program.output_names or tuple(f"output{i}" for i in range(len(program.outputs)))
    return list(zip(names, program.outputs, strict=True))


def _gguf(out: common.Terminal, file: Path, layers: bool) -> None:
    from gguf import GGMLQuantizationType

    from planish.frontend.capture.gguf_file import read_header

    header = read_header(file)
    plain = {k: e.value for k, e in header.entries.items() if isinstance(e.value, (int, float, str, bool))}
    facts = {
        "file": str(file),
        "bytes": header.size,
        "version": header.version,
        "architecture": header.architecture,
        "metadata": [f"{k} = {str(v)[:80]}" for k, v in plain.items() if not k.startswith("tokenizer.")],
        "tensors": len(header.tensors),
    }
    rows = []
    for tensor in header.tensors:
        count = max(math.prod(tensor.shape), 1)
        rows.append(
            {
                "name": tensor.name, "type": str(list(tensor.shape)), "codec": GGMLQuantizationType(tensor.kind).name,
                "bits": round(8 * tensor.length / count, 4), "bytes": tensor.length, "error": 0.0,
            }
        )  # fmt: skip
    _print(out, facts, rows, layers, None)
