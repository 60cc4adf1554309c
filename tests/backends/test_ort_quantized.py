"""Coded weights in ONNX Runtime: right at every width, stored once, and never decoded in the session."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from planish.backends.ort.build import build
from planish.backends.ort.lower import Lowered, lower
from planish.backends.ort.options import OrtOptions
from planish.backends.ort.write import payload, save_onnx
from planish.errors import UsageError
from planish.ir.run import run
from tests.backends.coded import Use, Zero, coded_program, input_for, relative

ROWS = 32
EXACT = 1e-5
"""Sums in another order: relative error against the interpreter in f32."""

LENGTHS = ((64, 32), (96, 64), (100, 64), (40, 40), (50, 16), (48, 24), (72, 8))


def operators(lowered: Lowered) -> Counter[str]:
    return Counter(node.op_type for node in lowered.model.graph.node)


def stored(lowered: Lowered) -> int:
    return sum(info.length for info in payload(lowered).layout().values())


def held_bytes(tensor: onnx.TensorProto) -> float:
    width = {onnx.TensorProto.UINT4: 0.5}.get(tensor.data_type)
    return math.prod(tensor.dims) * (width or onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def check(lowered: Lowered, use: Use, bits: int, length: int, group: int, zero: Zero) -> None:
    program, weights = coded_program(use, ROWS, length, bits, group, zero)
    session = build(lowered, threads=1)
    for count in (1, 5):
        x = input_for(program, count, ROWS)
        assert relative(session(x), run(program, weights, x)[0]) < EXACT, (length, group, zero)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("use", ["linear", "embedding", "tied", "mul"])
def test_values(use: Use, bits: int) -> None:
    for length, group in LENGTHS:
        for zero in (2 ** (bits - 1), "codes", "float", 1.5):
            program, weights = coded_program(use, ROWS, length, bits, group, zero)
            lowered = lower(program, weights)
            assert stored(lowered) <= lowered.leaf_bytes
            check(lowered, use, bits, length, group, zero)


@pytest.mark.parametrize("bits", [3, 5])
def test_widened_when_stored(bits: int) -> None:
    program, weights = coded_program("linear", ROWS, 100, bits, 64, "codes")
    lowered = lower(program, weights, options=OrtOptions(widen="store"))
    assert lowered.load_model is None
    assert stored(lowered) <= lowered.leaf_bytes + lowered.widened_bytes
    check(lowered, "linear", bits, 100, 64, "codes")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_kernels_read_codes_where_they_lie(bits: int) -> None:
    options = OrtOptions(activation_bits=8)
    program, weights = coded_program("tied", 64, 128, bits, 32, 2 ** (bits - 1))
    lowered = lower(program, weights, options=options)
    found = operators(lowered)
    assert found["MatMulNBits"] == found["GatherBlockQuantized"] == 1
    assert lowered.load_model is None
    by_tensor = Counter(lowered.stored.values())
    assert by_tensor["w#codes"] == 2, "table and head share their bytes"
    assert set(lowered.tensors) == {"w#codes", "w#scale"}
    assert stored(lowered) == lowered.leaf_bytes


@pytest.mark.parametrize("bits", range(2, 9))
def test_whole_number_activations(bits: int) -> None:
    program, weights = coded_program("linear", ROWS, 256, bits, 64, "codes")
    session = build(lower(program, weights, options=OrtOptions(activation_bits=8)), threads=1)
    x = input_for(program, 7, ROWS)
    # Activations are rounded to 8 bits for each block of 64: half a step of 1/127 of the largest of a block.
    assert relative(session(x), run(program, weights, x)[0]) < 0.02


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="activation_bits"):
        OrtOptions(activation_bits=16)
    with pytest.raises(UsageError, match="widen"):
        OrtOptions(widen="never")


@pytest.mark.parametrize(
    "use, bits, zero", [("linear", 4, "codes"), ("tied", 3, 4), ("mul", 4, "codes"), ("linear", 8, "float")]
)
def test_saved_model_is_not_expanded_when_loaded(tmp_path: Path, use: Use, bits: int, zero: Zero) -> None:
    rows, length = 256, 512
    program, weights = coded_program(use, rows, length, bits, 64, zero)
    lowered = lower(program, weights)
    path = save_onnx(lowered, tmp_path / "saved")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(path), options)
    x = input_for(program, 3, rows)
    (found,) = session.run(None, {"x": x.numpy()})
    assert relative(torch.from_numpy(found), run(program, weights, x)[0]) < EXACT
    held = onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False)
    largest = max(held_bytes(t) for t in held.graph.initializer)
    # Codes of 3 bits become 4, those of 8 stay; one decoded matrix would be rows*length*4 bytes.
    assert largest <= rows * length * (1 if bits == 8 else 0.5) + 1024


MEMORY = """
from planish.backends.ort.build import build
from planish.backends.ort.lower import lower
from tests.backends.coded import coded_program, input_for
program, weights = coded_program("linear", 4096, 4096, 4, 64, "codes")
lowered = lower(program, weights)
x = input_for(program, 1, 4096)
import psutil
tiny = coded_program("linear", 16, 64, 4, 64, "codes")
build(lower(*tiny), threads=1)(input_for(tiny[0], 1, 16))
before = psutil.Process().memory_info().rss
session = build(lowered, threads=1)
session(x)
print(psutil.Process().memory_info().rss - before, lowered.leaf_bytes)
"""


def test_memory_of_a_session() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    grown, leaves = map(int, done.stdout.split())
    # The mapped codes, the packed form that the kernel makes of them, and statistics in f32; decoded: 67 MB.
    assert grown < 3 * leaves, f"{grown:,} bytes more for weights of {leaves:,}"
