"""``manifest.json``: what an artifact is, needs and holds, as frozen values, checked by hand.

A reader ignores fields that it does not know unless the list ``required`` names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from planish.errors import ArtifactError
from planish.runtime.tensors import parse_json
from planish.runtime.typetext import TensorType, parse_type, symbols
from planish.runtime.zipformat import check_name

NAME = "manifest.json"
FORMAT = "planish"
FORMAT_VERSION = 1
READER_VERSION = 1

_KNOWN = frozenset(
    {
        "format", "format_version", "reader_version", "required", "producer", "targets", "dims", "entry_points",
        "limits", "members", "source", "default", "generation",
    }
)  # fmt: skip
_DIGEST = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


@dataclass(frozen=True)
class Value:
    """A named input or output and its type."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class State:
    """A value that a session carries from call to call: the model reads ``input`` and gives ``output``."""

    name: str
    type: TensorType
    input: str
    output: str


@dataclass(frozen=True)
class EntryPoint:
    """One function of the model; ``code`` maps a target to the member that implements it."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[State, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{v.name}: {v.type}" for v in self.inputs)
        return f"{self.name}({given}) -> {', '.join(f'{v.name}: {v.type}' for v in self.outputs)}"


@dataclass(frozen=True)
class Manifest:
    """The checked content of ``manifest.json``; ``raw`` is all of it, read-only at the top.

    ``default`` is the entry point that a call without a name means, where the file names one. ``generation`` is how
    the entry points of a language model continue a text (see :func:`read_generation`), or None.
    """

    format_version: int
    reader_version: int
    producer: Mapping[str, Any]
    targets: tuple[Mapping[str, Any], ...]
    dims: Mapping[str, tuple[int, int]]
    entry_points: Mapping[str, EntryPoint]
    limits: Mapping[str, Any]
    members: Mapping[str, tuple[int, str]]
    source: Mapping[str, Any]
    default: str | None = None
    generation: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)


def dump_manifest(fields: Mapping[str, Any], members: Mapping[str, tuple[int, str]]) -> bytes:
    """The bytes of a manifest, always the same for the same content; checked by reading it back."""
    reserved = {"format", "format_version", "reader_version", "members"} & set(fields)
    if reserved:
        raise ArtifactError("PL611", f"the writer itself fills in {', '.join(sorted(reserved))}")
    table = {
        "producer": {}, "targets": [], "dims": {}, "limits": {}, "source": {}, "required": ["entry_points", "members"],
        **fields,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "reader_version": READER_VERSION,
        "members": {name: {"size": size, "sha256": digest} for name, (size, digest) in members.items()},
    }  # fmt: skip
    try:
        data = json.dumps(table, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ArtifactError("PL611", f"the manifest cannot be written as JSON: {error}", where=NAME) from None
    parse_manifest(data)
    return data


def parse_manifest(data: bytes, *, where: str = NAME) -> Manifest:
    """Read and check a manifest. PL601: of another format; PL604: from the future; PL605, PL611: not understood."""
    table = parse_json(data, code="PL611", where=where)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise ArtifactError("PL601", "is not the manifest of a planish file", where=where)
    version = _whole(table, "format_version", where)
    needed = _whole(table, "reader_version", where)
    if needed > FORMAT_VERSION:
        raise ArtifactError(
            "PL604",
            f"the file needs a reader of format version {needed}; this one reads up to {FORMAT_VERSION}",
            where=where,
            hint=f"install a planish that reads format {needed} (written by {_producer(table)})",
        )
    _check_required(table, where)
    dims = _table(table, "dims", where, lambda name, v: _range(name, v, where))
    entries = _table(table, "entry_points", where, lambda name, v: _entry(name, v, where))
    if not entries:
        raise _invalid("entry_points is empty", where)
    _check_symbols(entries, dims, where)
    default = table.get("default")
    if default is not None and (not isinstance(default, str) or default not in entries):
        raise _invalid("default does not name an entry point", where)
    generation = table.get("generation")
    return Manifest(
        format_version=version,
        reader_version=needed,
        producer=_table(table, "producer", where, lambda _, v: v),
        targets=tuple(MappingProxyType(t) for t in _items(table, "targets", dict, where)),
        dims=dims,
        entry_points=entries,
        limits=_table(table, "limits", where, lambda _, v: v),
        members=_table(table, "members", where, lambda name, v: _member(name, v, where)),
        source=_table(table, "source", where, lambda _, v: v),
        default=default,
        generation=None if generation is None else read_generation(generation, entries, where),
        raw=MappingProxyType(table),
    )


def _check_required(table: dict[str, Any], where: str) -> None:
    required = _items(table, "required", str, where)
    unknown = [name for name in required if name not in _KNOWN]
    if unknown:
        raise ArtifactError(
            "PL605",
            f"the file requires fields that this reader does not know: {', '.join(unknown)[:200]}",
            where=where,
            hint=f"install the planish that wrote it ({_producer(table)}) or a newer one",
        )
    missing = [name for name in required if name not in table]
    if missing:
        raise _invalid(f"the required fields {', '.join(missing)} are missing", where)


def _producer(table: dict[str, Any]) -> str:
    producer = table.get("producer")
    version = producer.get("planish") if isinstance(producer, dict) else None
    return f"planish {version}"[:60] if isinstance(version, str) else "an unnamed version"


def _entry(name: str, value: Any, where: str) -> EntryPoint:
    if not name.isidentifier() or not isinstance(value, dict):
        raise _invalid(f"the entry point {name[:40]!r} is not a table with the name of a function", where)
    at = f"{where}: entry point {name}"
    inputs = tuple(_value(v, at) for v in _items(value, "inputs", dict, at))
    outputs = tuple(_value(v, at) for v in _items(value, "outputs", dict, at))
    states = tuple(_state(v, at) for v in _items(value, "states", dict, at))
    for names in ([v.name for v in inputs] + [s.input for s in states], [v.name for v in outputs]):
        if len(set(names)) != len(names):
            raise _invalid("a name occurs twice", at)
    code = _table(value, "code", at, lambda target, v: check_name(_string(v, f"code.{target}", at), where=at))
    return EntryPoint(name, inputs, outputs, states, code)


def _value(value: dict[str, Any], at: str) -> Value:
    name = _string(value.get("name"), "name", at)
    return Value(name, parse_type(_string(value.get("type"), f"{name}: type", at), where=at))


def _state(value: dict[str, Any], at: str) -> State:
    base = _value(value, at)
    source = _string(value.get("input", base.name), "input", at)
    return State(
        base.name, base.type, source, _string(value.get("output", f"{base.name}.next"), "output", at)
    )


def read_generation(value: Any, entries: Mapping[str, EntryPoint], where: str) -> Mapping[str, Any]:
    """The table ``generation``, read-only: PL611 if it has not what it needs, or names what is not there.

    ``context`` tokens fit into the caches of a sequence, ``chunk`` is the most that one call takes, ``batch`` the
    number of sequences (None: any), ``token_input`` the input of tokens, ``vocabulary`` the number of logits.
    ``rings`` says for each state that keeps only its last rows its ``capacity`` and the ``window`` that is seen.
    ``no_edit``, where it is there, is why there is no entry point ``move``, which moves rows of caches.
    """
    at = f"{where}: generation"
    if not isinstance(value, dict):
        raise _invalid("it is not a table", at)
    made = dict(value)
    for key in ("context", "chunk", "vocabulary", *(["batch"] if value.get("batch") is not None else [])):
        made[key] = _whole(value, key, at)
    made["batch"] = value.get("batch")
    tokens = made["token_input"] = _string(value.get("token_input"), "token_input", at)
    if "no_edit" in value:
        made["no_edit"] = _string(value["no_edit"], "no_edit", at)
    for name in ("prefill", "decode"):
        if name not in entries or tokens not in {v.name for v in entries[name].inputs}:
            raise _invalid(f"there is no entry point {name} that takes {tokens[:40]!r}", at)
    if made["chunk"] > made["context"]:
        raise _invalid("chunk is larger than context", at)
    states = {state.name for entry in entries.values() for state in entry.states}
    made["rings"] = _table(value, "rings", at, lambda name, ring: _ring(name, ring, states, at))
    return MappingProxyType(made)


def generation_table(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The table ``generation`` as plain values, as it is written."""
    return {**generation, "rings": {name: dict(ring) for name, ring in generation.get("rings", {}).items()}}


def _ring(name: str, value: Any, states: set[str], at: str) -> Mapping[str, int]:
    if name not in states or not isinstance(value, dict):
        raise _invalid(f"rings.{name[:40]} is not a table with the name of a state", at)
    ring = {key: _whole(value, key, f"{at}: rings.{name}") for key in ("capacity", "window")}
    if ring["window"] > ring["capacity"]:
        raise _invalid(f"rings.{name}: window is larger than capacity", at)
    return MappingProxyType(ring)


def _range(name: str, value: Any, where: str) -> tuple[int, int]:
    ok = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    if not name.isidentifier() or not ok or not 0 <= value[0] <= value[1] < 2**63:
        raise _invalid(f"dims.{name[:40]} is not a range [low, high]", where)
    return value[0], value[1]


def _member(name: str, value: Any, where: str) -> tuple[int, str]:
    check_name(name, where=where)
    size, digest = (value.get("size"), value.get("sha256")) if isinstance(value, dict) else (None, None)
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _invalid(f"members.{name} has no valid size and sha256", where)
    return size, digest


def _check_symbols(entries: Mapping[str, EntryPoint], dims: Mapping[str, Any], where: str) -> None:
    for entry in entries.values():
        values = [(v.name, v.type) for v in (*entry.inputs, *entry.outputs)]
        for name, kind in values + [(s.name, s.type) for s in entry.states]:
            unknown = {symbol for dim in kind.dims for symbol in symbols(dim)} - set(dims)
            if unknown:
                missing = ", ".join(sorted(unknown))
                raise _invalid(f"entry point {entry.name}: {name}: {kind}: {missing} is not in dims", where)


def _table(table: dict[str, Any], key: str, where: str, read: Callable[[str, Any], T]) -> Mapping[str, T]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise _invalid(f"{key} is not a table", where)
    return MappingProxyType({name: read(name, item) for name, item in value.items()})


def _items(table: dict[str, Any], key: str, kind: type[T], where: str) -> list[T]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise _invalid(f"{key} is not a list of the right kind", where)
    return value


def _string(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 4096:
        raise _invalid(f"{what} is not a text", where)
    return value


def _whole(table: dict[str, Any], key: str, where: str) -> int:
    value = table.get(key)
    if type(value) is not int or value < 1:
        raise _invalid(f"{key} is not a whole number from 1", where)
    return value


def _invalid(what: str, where: str) -> ArtifactError:
    return ArtifactError(
        "PL611", what, where=where, hint="the file is damaged or was written by another tool"
    )
