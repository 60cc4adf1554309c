"""Shape rules against torch: each example runs at several sizes, and its results have the inferred types."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from planish.ir.dialect import OPERATIONS
from planish.ir.types import TensorType, evaluate
from planish.ir.weights import type_of
from tests.op_examples import BINDINGS, EXAMPLES, cases, expected, inputs_of, program_of


def test_every_operation_has_examples() -> None:
    assert set(EXAMPLES) == {name for name in OPERATIONS if not name.startswith("kernel.")}


@pytest.mark.parametrize("sizes", BINDINGS, ids=lambda b: "-".join(f"{k}{v}" for k, v in b.items()))
def test_inferred_types_are_those_of_the_results(sizes: Mapping[str, int]) -> None:
    wrong = []
    for name, source in cases():
        program = program_of(source)
        binding = {s: sizes[s.name] for s in program.symbols}
        results = expected(program, inputs_of(program, sizes))
        for node, value in zip(program.outputs, results, strict=True):
            shape = tuple(evaluate(s, binding) for s in node.shape)
            if type_of(value) != TensorType(node.dtype, shape):
                wrong.append(f"{name}: inferred {node.type}, got {type_of(value)}\n{source}")
    assert not wrong, "\n".join(wrong)
