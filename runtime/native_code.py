"""``code/<device>/code.json``: which shared libraries an artifact holds, for which machines, and how to call them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from planish.errors import ArtifactError
from planish.runtime.tensors import parse_json

NAME = "code.json"
FORMAT = 1
DEVICES = ("cpu", "cuda", "opencl")

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_VERSION = re.compile(r"[0-9]+\.[0-9]+")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,100}")


@dataclass(frozen=True)
class Abi:
    """What a library was built against: ``MAJOR.MINOR`` of TVM and of its FFI, operating system and processor."""

    tvm: str
    ffi: str
    os: str = "linux"
    machine: str = "x86_64"


@dataclass(frozen=True)
class LibraryFile:
    """One shared library beside ``code.json``, and the processor features it uses, as Linux names them."""

    file: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class EntryCode:
    """How an entry point is called.

    ``function`` takes inputs, states and weights, in this order, and gives an array of outputs and then of next
    states. ``states`` are the names under which states come in, ``next_states`` those under which they go out.
    """

    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: tuple[str, ...] = ()
    next_states: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of what is given at each call."""
        return self.inputs + self.states

    @property
    def results(self) -> tuple[str, ...]:
        """The names of what comes back."""
        return self.outputs + self.next_states


@dataclass(frozen=True)
class NativeCode:
    """The checked content of ``code.json``.

    ``libraries`` are named by instruction set, or by the architectures of GPUs joined by ``+``. ``load`` names an
    entry without inputs that is run once: its outputs are weights for the others, in place of stored tensors of the
    same names.
    ``kernels`` tells people what each function of a GPU needs; nothing is decided by it.
    """

    device: str
    abi: Abi
    libraries: Mapping[str, LibraryFile]
    entries: Mapping[str, EntryCode]
    load: str | None = None
    kernels: tuple[Mapping[str, Any], ...] = ()
    where: str | None = field(default=None, compare=False)

    def dump(self) -> bytes:
        """The JSON form, always the same for the same content; checked by reading it back."""
        table: dict[str, Any] = {
            "format": FORMAT,
            "device": self.device,
            "abi": vars(self.abi),
            "libraries": {n: {"file": f.file, "needs": sorted(f.needs)} for n, f in self.libraries.items()},
            "entries": {name: _entry_table(entry) for name, entry in self.entries.items()},
        }  # fmt: skip
        if self.load is not None:
            table["load"] = self.load
        if self.kernels:
            table["kernels"] = [dict(kernel) for kernel in self.kernels]
        data = json.dumps(table, sort_keys=True, indent=1).encode() + b"\n"
        parse_code(data)
        return data


def parse_code(data: bytes, *, where: str | None = None) -> NativeCode:
    """Read and check ``code.json``. PL604: of a later format; PL611: not understood."""
    table = parse_json(data, code="PL611", where=where)
    if not isinstance(table, dict):
        raise _invalid("it is not a table", where)
    version = table.get("format")
    if type(version) is int and version > FORMAT:
        raise ArtifactError(
            "PL604", f"the code has format {version}; this reader knows {FORMAT}", where=where,
            hint="install a newer planish",
        )  # fmt: skip
    if version != FORMAT or type(version) is not int:
        raise _invalid("format is not 1", where)
    _only(table, {"format", "device", "abi", "libraries", "entries", "load", "kernels"}, "the table", where)
    device, load = table.get("device", "cpu"), table.get("load")
    if device not in DEVICES:
        raise _invalid(f"device is not one of {', '.join(DEVICES)}", where)
    entries = _mapping(table, "entries", where)
    made = {name: _entry(name, value, where) for name, value in entries.items()}
    if load is not None and (load not in made or made[load].arguments or made[load].next_states):
        raise _invalid("load does not name an entry without inputs and states", where)
    if not set(made) - {load}:
        raise _invalid("entries is empty", where)
    return NativeCode(
        device, _abi(table, where), MappingProxyType(_libraries(table, where)), MappingProxyType(made), load,
        _kernels(table, where), where,
    )  # fmt: skip


def _kernels(table: dict[str, Any], where: str | None) -> tuple[Mapping[str, Any], ...]:
    found = table.get("kernels", [])
    plain = isinstance(found, list) and all(
        isinstance(k, dict) and all(isinstance(v, (str, int)) for v in k.values()) for k in found
    )
    if not plain:
        raise _invalid("kernels is not a list of tables of texts and numbers", where)
    return tuple(MappingProxyType(k) for k in found)


def _abi(table: dict[str, Any], where: str | None) -> Abi:
    value = _mapping(table, "abi", where)
    _only(value, {"tvm", "ffi", "os", "machine"}, "abi", where)
    for key in ("tvm", "ffi"):
        if not isinstance(value.get(key), str) or not _VERSION.fullmatch(value[key]):
            raise _invalid(f"abi.{key} is not a version MAJOR.MINOR", where)
    for key in ("os", "machine"):
        if not isinstance(value.get(key, "x"), str) or not _WORD.fullmatch(value.get(key, "x")):
            raise _invalid(f"abi.{key} is not a name", where)
    return Abi(**value)


def _libraries(table: dict[str, Any], where: str | None) -> dict[str, LibraryFile]:
    made: dict[str, LibraryFile] = {}
    for name, item in _mapping(table, "libraries", where).items():
        at = f"libraries.{name[:40]}"
        if not _WORD.fullmatch(name) or not isinstance(item, dict):
            raise _invalid(f"{at} is not a table with the name of an instruction set", where)
        _only(item, {"file", "needs"}, at, where)
        file = item.get("file")
        if not isinstance(file, str) or not _FILE.fullmatch(file) or not file.endswith(".so"):
            raise _invalid(f"{at}: file is not the name of a file ending in .so", where)
        made[name] = LibraryFile(file, _names(item, "needs", at, where, _WORD))
    if not made:
        raise _invalid("libraries is empty", where)
    return made


def _entry(name: str, value: Any, where: str | None) -> EntryCode:
    at = f"entries.{name[:40]}"
    if not name.isidentifier() or not isinstance(value, dict):
        raise _invalid(f"{at} is not a table with the name of a function", where)
    _only(value, {"function", "inputs", "states", "next_states", "weights", "outputs"}, at, where)
    function = value.get("function")
    if not isinstance(function, str) or not 0 < len(function) <= 1000:
        raise _invalid(f"{at}: function is not a name", where)
    inputs, states, weights, outputs = (
        _names(value, key, at, where) for key in ("inputs", "states", "weights", "outputs")
    )
    following = (
        _names(value, "next_states", at, where) if "next_states" in value else tuple(f"{s}.next" for s in states)
    )  # fmt: skip
    if len(following) != len(states):
        raise _invalid(f"{at}: there are {len(states)} states and {len(following)} next states", where)
    for group in (inputs + states, outputs + following):
        if len(set(group)) != len(group):
            raise _invalid(f"{at}: a name occurs twice", where)
    return EntryCode(function, inputs, outputs, states, following, weights)


def _entry_table(entry: EntryCode) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else list(value) for key, value in vars(entry).items()}


def _names(
    table: dict[str, Any], key: str, at: str, where: str | None, form: re.Pattern[str] | None = None
) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(n, str) and 0 < len(n) <= 4096 for n in value):
        raise _invalid(f"{at}: {key} is not a list of names", where)
    if form is not None and not all(form.fullmatch(n) for n in value):
        raise _invalid(f"{at}: {key} holds what is no name", where)
    return tuple(value)


def _mapping(table: dict[str, Any], key: str, where: str | None) -> dict[str, Any]:
    value = table.get(key)
    if not isinstance(value, dict):
        raise _invalid(f"{key} is not a table", where)
    return value


def _only(table: dict[str, Any], known: set[str], what: str, where: str | None) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise _invalid(f"{what} has the unknown field {unknown[0][:60]!r}", where)


def _invalid(what: str, where: str | None) -> ArtifactError:
    return ArtifactError(
        "PL611", what, where=where, hint="the file is damaged or was written by another tool"
    )
