"""Find the external data that a serialized ONNX model refers to, check it, and point it elsewhere.

A model in an artifact names its big initializers by member, offset and length. Before ONNX Runtime sees the
model, each such reference is checked against the artifact and rewritten to the file that is really there. The
protobuf wire format is walked directly: this floor has no ONNX library, and needs six message types of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from planish.errors import ArtifactError

# Message type -> field number -> type of the message in that field. Other fields are kept as they are.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_TENSOR_NAME, _EXTERNAL_DATA = 8, 13
_MARK = b"location"
_DEEPEST = 60


@dataclass(frozen=True)
class Reference:
    """What one tensor says about its data: the tensor's name, location, offset, and length if given."""

    tensor: str
    location: str
    offset: int
    length: int | None


Relocate = Callable[[Reference], Reference]


def relocate(model: bytes, move: Relocate) -> bytes:
    """The model with every external reference replaced by what ``move`` returns for it; PL621 if it is not ONNX."""
    return _message(memoryview(model), "Model", move, 0)


def references(model: bytes) -> list[Reference]:
    """All external references of a model, in order."""
    found: list[Reference] = []

    def note(reference: Reference) -> Reference:
        found.append(reference)
        return reference

    relocate(model, note)
    return found


def member_range(reference: Reference, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Offset and length of a reference within its member; PL616 for another place, PL618 outside of the member."""
    if reference.location not in sizes:
        raise ArtifactError(
            "PL616",
            f"the initializer {reference.tensor!r} refers to {reference.location[:80]!r}, not a member with weights",
        )
    size = sizes[reference.location]
    length = size - reference.offset if reference.length is None else reference.length
    if length < 0 or reference.offset > size or length > size - reference.offset:
        raise ArtifactError(
            "PL618",
            f"the initializer {reference.tensor!r} takes {length} bytes from {reference.offset} of "
            f"{reference.location!r}, which has {size}",
        )
    return reference.offset, length


def _message(data: memoryview, kind: str, move: Relocate, depth: int) -> bytes:
    if depth > _DEEPEST:
        raise _invalid("its graphs are nested too deeply")
    if kind == "Tensor":
        return _tensor(data, move)
    inside = _FIELDS[kind]
    parts: list[bytes | memoryview] = []
    for number, wire, start, body, end in _walk(data):
        # A reference cannot be without this word: most of a model is passed over unread.
        if number in inside and wire == 2 and _MARK in bytes(data[body:end]):
            parts.append(_field(number, _message(data[body:end], inside[number], move, depth + 1)))
        else:
            parts.append(data[start:end])
    return b"".join(parts)


def _tensor(data: memoryview, move: Relocate) -> bytes:
    parts: list[bytes | memoryview] = []
    entries: dict[str, str] = {}
    name = ""
    for number, wire, start, body, end in _walk(data):
        if number == _EXTERNAL_DATA and wire == 2:
            key, value = _entry(data[body:end])
            if key in entries:
                raise _invalid(f"a tensor gives {key[:40]!r} twice")
            entries[key] = value
            continue
        if number == _TENSOR_NAME and wire == 2:
            name = _text(data[body:end])
        parts.append(data[start:end])
    if not entries:
        return bytes(data)
    unknown = set(entries) - {"location", "offset", "length", "checksum"}
    if unknown or "location" not in entries:
        raise _invalid(f"the external data of {name[:80]!r} has the keys {sorted(entries)}"[:200])
    length = _whole(entries["length"], name) if "length" in entries else None
    moved = move(Reference(name, entries["location"], _whole(entries.get("offset", "0"), name), length))
    texts = {"location": moved.location, "offset": str(moved.offset)}
    if moved.length is not None:
        texts["length"] = str(moved.length)
    for key, value in texts.items():
        parts.append(_field(_EXTERNAL_DATA, _field(1, key.encode()) + _field(2, value.encode())))
    return b"".join(parts)


def _entry(data: memoryview) -> tuple[str, str]:
    pair = {1: "", 2: ""}
    for number, wire, _, body, end in _walk(data):
        if number in pair and wire == 2:
            pair[number] = _text(data[body:end])
    return pair[1], pair[2]


def _walk(data: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field: its number, wire type, first byte, first byte of its body, and the byte after it."""
    at, size = 0, len(data)
    while at < size:
        start = at
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        body = at
        if wire == 0:
            _, at = _varint(data, at)
        elif wire == 1:
            at += 8
        elif wire == 2:
            length, body = _varint(data, at)
            at = body + length
        elif wire == 5:
            at += 4
        else:
            raise _invalid(f"a field has the wire type {wire}")
        if at > size or number == 0:
            raise _invalid("a field reaches beyond its message")
        yield number, wire, start, body, at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _invalid("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _invalid("a number is too long")


def _field(number: int, body: bytes) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(len(body)) + body


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        raise _invalid("a name is not UTF-8") from None


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19) or int(text) >= 2**63:
        raise ArtifactError(
            "PL618", f"the external data of {name[:80]!r} has the offset or length {text[:40]!r}"
        )
    return int(text)


def _invalid(what: str) -> ArtifactError:
    return ArtifactError("PL621", f"the ONNX model cannot be read: {what}")
