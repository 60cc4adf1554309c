"""Architectures: each is computed by the interpreter, ONNX Runtime and machine code at sizes capture did not see."""

from __future__ import annotations

import math

import pytest
import torch

from planish.backends.ort.build import build
from planish.backends.ort.lower import lower
from planish.backends.ort.write import payload
from planish.ir.node import Program
from planish.ir.run import run
from planish.ir.verify import verify
from planish.ir.weights import Weights
from planish.passes.pipeline import run_pipeline
from tests import parity
from tests.models import CASES, ModelCase

# Varied enough to meet most of what capture does; the others are slow together, not one by one.
FAST = (
    "llama_padded", "gemma2", "mixtral", "modernbert", "bart", "vit", "wav2vec2", "hash_grid", "decomposed_linear",
    "frame_decoder", "lstm_tagger",
)  # fmt: skip
HALF = (
    "llama", "llama_padded", "gemma2", "gpt2", "bert", "mixtral", "qwen3_moe", "t5", "vit", "resnet", "mobilenet_v2",
    "convnext", "unet", "whisper_encoder", "lstm_tagger",
)  # fmt: skip
"""Architectures that are also compiled with weights and activations of f16 and of bf16."""
ALIGNMENT = 64
TABLES = 64  # bytes of constants that a model's Python makes while it runs
cases = pytest.mark.parametrize(
    "case", [pytest.param(c, id=n, marks=() if n in FAST else pytest.mark.slow) for n, c in CASES.items()]
)


def stored_bytes(program: Program, weights: Weights) -> int:
    """Bytes of the tensors that ONNX Runtime reads for a program."""
    lowered = lower(program, weights)
    return sum(info.length for info in payload(lowered).layout().values()) if lowered.tensors else 0


def constant_bytes(program: Program) -> int:
    """Bytes of the constants of a program."""
    return sum(int(leaf.tensor.nbytes) for leaf in program.constants())


@cases
def test_captured(case: ModelCase) -> None:
    captured = parity.captured(case.name)
    verify(captured.program, captured.weights)
    parity.check_text(captured.program)
    asked = {name for axes in case.dynamic.values() for name in axes.values()}
    dynamic = {symbol.name.removesuffix("_part") for symbol in captured.program.symbols}
    assert dynamic == asked, "a dimension that was asked to be dynamic is not, or has lost its name"
    error = parity.interpreter_error(case, captured.program, captured.weights)
    assert error <= parity.INTERPRETER_TOLERANCE


@cases
def test_recognised(case: ModelCase) -> None:
    captured, program = parity.captured(case.name), parity.recognised(case.name)
    verify(program, captured.weights)
    parity.check_text(program)
    assert parity.interpreter_error(case, program, captured.weights) <= parity.RECOGNISED_TOLERANCE


@cases
@pytest.mark.parametrize("passes", ["none", "recognise"])
def test_onnx_runtime(case: ModelCase, passes: str) -> None:
    captured = parity.captured(case.name)
    program = captured.program if passes == "none" else parity.recognised(case.name)
    assert parity.ort_error(case, program, captured.weights) <= parity.ORT_TOLERANCE


@cases
def test_machine_code(case: ModelCase) -> None:
    assert parity.native_excess(case, "cpu") <= 0


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in HALF]
)  # fmt: skip
def test_machine_code_of_half_precision(name: str, kind: torch.dtype) -> None:
    """Models whose weights and activations are f16 or bf16 are no further off than twice PyTorch in that type."""
    assert parity.native_excess(CASES[name], "cpu", kind) <= 0


@cases
def test_weights_are_stored_once(case: ModelCase) -> None:
    """No weight is stored twice or decoded: neither tied ones nor those that ONNX wants in another layout."""
    captured, model = parity.captured(case.name), parity.model_of(case.name)
    kept = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers()) if t.numel()}
    assert constant_bytes(captured.program) <= sum(kept.values()) + TABLES
    slack = ALIGNMENT * len(captured.program.constants())
    assert stored_bytes(captured.program, captured.weights) <= constant_bytes(captured.program) + slack


@cases
def test_compressed(case: ModelCase) -> None:
    """With weights of 4 bits, ONNX Runtime computes what the interpreter does, from no more bytes."""
    captured = parity.captured(case.name)
    program = run_pipeline(captured.program, captured.weights, "recognise,int4{group=16}").program
    parity.check_text(program)
    slack = ALIGNMENT * len(program.constants())
    assert stored_bytes(program, captured.weights) <= constant_bytes(program) + slack
    assert constant_bytes(program) <= constant_bytes(captured.program)
    session = build(lower(program, captured.weights), threads=1)
    for sizes in case.check_sizes:
        inputs = parity.ordered(program, case, sizes)
        with torch.no_grad():
            want = run(program, captured.weights, *inputs)
        have = session(*inputs)
        error = parity.relative_error(have if isinstance(have, tuple) else (have,), want)
        assert error <= parity.ORT_TOLERANCE


def test_every_size_is_new_to_capture() -> None:
    for case in CASES.values():
        for sizes in case.check_sizes:
            assert set(sizes) == set(case.capture_size)
            assert all(sizes[name] != case.capture_size[name] for name in sizes), case.name


def test_relative_error_sees_what_differs() -> None:
    want = torch.tensor([1.0, -math.inf, 4.0])
    assert parity.relative_error([want], [want]) == 0
    assert parity.relative_error([want + torch.tensor([0.5, 0, 0])], [want]) == 0.125
    for other in (want.double(), want[:2], want.abs(), want * math.nan, torch.zeros(3)):
        assert parity.relative_error([other], [want]) == math.inf
    assert parity.relative_error([want, want], [want]) == math.inf
