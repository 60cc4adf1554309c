"""Safetensors: our writer against the official reader and the other way round, and headers that lie."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from planish.errors import ArtifactError
from planish.runtime.limits import Limits
from planish.runtime.tensors import SafetensorsPayload, TensorSource, read_table, view_tensors

ALL = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "float16",
    "uint32",
    "int32",
    "float32",
    "uint64",
    "int64",
    "float64",
]


def arrays(data: bytes, **options: Any) -> dict[str, Any]:
    table = read_table(lambda at, n: data[at : at + n], len(data), **options)
    return view_tensors(memoryview(data), table)


def file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "U8", shape: Any = (4,), span: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


@pytest.mark.parametrize("name", [*ALL, "complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_round_trip(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    given = {
        "a": np.arange(15).reshape(3, 5).astype(dtype),
        "none": np.zeros((0, 3), dtype),
        "one": np.ones((), dtype),
    }
    data = b"".join(SafetensorsPayload(given, {"k": "v"}).chunks())
    found = arrays(data)
    assert list(found) == list(given)
    for key, array in given.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape
        assert found[key].tobytes() == array.tobytes()
    if name in ALL:
        official = safetensors.numpy.load(data)
        np.testing.assert_array_equal(official["a"], given["a"])
        np.testing.assert_array_equal(arrays(safetensors.numpy.save({"a": given["a"]}))["a"], given["a"])


def test_layout_is_where_the_bytes_are() -> None:
    given = {"a": np.arange(7, dtype=np.uint8), "b": np.arange(9, dtype=np.float32)}
    payload = SafetensorsPayload(given)
    data = b"".join(payload.chunks())
    for name, info in payload.layout().items():
        assert info.offset % 64 == 0
        assert data[info.offset : info.offset + info.length] == given[name].tobytes()


def test_bfloat16_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(SafetensorsPayload({"a": np.ones(2, ml_dtypes.bfloat16)}).chunks())
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert arrays(data)["a"].tolist() == [0x3F80, 0x3F80]


def test_sources_and_strange_arrays() -> None:
    given = {
        "swapped": np.arange(4, dtype=">i4"),
        "strided": np.arange(12).reshape(3, 4).T,
        "bytes": TensorSource("bf16", (2,), lambda: b"\x80\x3f\x00\x00"),
    }
    found = arrays(b"".join(SafetensorsPayload(given).chunks()))
    np.testing.assert_array_equal(found["swapped"], [0, 1, 2, 3])
    np.testing.assert_array_equal(found["strided"], given["strided"])
    assert found["bytes"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": np.array(["text"])},
        {"": np.ones(1)},
        {"__metadata__": np.ones(1)},
        {"__pad.3": np.ones(1)},
        {"a": TensorSource("u4", (2,), lambda: b"x")},
        {"a": TensorSource("u8", (2,), lambda: b"x")},
    ],
)
def test_unwritable(tensors: Any) -> None:
    with pytest.raises(ArtifactError, match="PL613"):
        list(SafetensorsPayload(tensors).chunks())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 7,
        (2**20).to_bytes(8, "little") + b"{}",
        file(b"{}")[:-1],
        file(b"[]"),
        file(b"not json"),
        file(b'{"a": NaN}'),
        file(b"[" * 100_000),
        file(b'{"a": ' + b"9" * 5000 + b"}"),
        file({"a": 1}, b"1234"),
        file({"a": entry("X")}, b"1234"),
        file({"a": entry(shape=(5,))}, b"1234"),
        file({"a": entry(shape=(-4,))}, b"1234"),
        file({"a": entry(shape=(2.0, 2))}, b"1234"),
        file({"a": entry(shape=(2**62, 2**62, 0), span=(0, 0))}, b"1234"),
        file({"a": entry(span=(0, 5))}, b"1234"),
        file({"a": entry(span=(4, 0))}, b"1234"),
        file({"a": entry(span=(-4, 0))}, b"1234"),
        file({"a": entry(span=(0, 4, 4))}, b"1234"),
        file({"a": entry(), "b": entry()}, b"1234"),
        file({"a": entry(), "b": entry(span=(2, 6))}, b"123456"),
        file({"a": entry(), "b": entry(span=(5, 9))}, b"123456789"),
        file({"a": entry()}, b"12345"),
        file({"a": entry() | {"more": 1}}, b"1234"),
        file({"__metadata__": {"a": 1}}),
        file(b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": 1}'),
    ],
)
def test_headers_that_lie(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="PL613"):
        arrays(data)


def test_limits() -> None:
    data = file({"a": entry()}, b"1234")
    for limits in (Limits(tensor_header_bytes=8), Limits(tensors=0)):
        with pytest.raises(ArtifactError, match="PL610"):
            arrays(data, limits=limits)
    with pytest.raises(ArtifactError, match="PL610"):
        arrays((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(ArtifactError, match="PL613"):
        arrays(data, limits=Limits(dims=0))


def test_random_damage() -> None:
    payload = SafetensorsPayload(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.int64)}
    )
    data = b"".join(payload.chunks())
    rng = random.Random(1)
    for _ in range(500):
        changed = bytearray(data[: rng.choice([len(data), rng.randrange(len(data))])])
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            found = arrays(bytes(changed))
        except ArtifactError:
            continue
        assert sum(a.nbytes for a in found.values()) <= len(changed)
