"""The real small language model: captured, recognised, stored in 4 bits, and equal to transformers' own."""

from __future__ import annotations

import pytest
import torch

from planish.frontend import api, yardstick
from planish.frontend.capture.source import capture
from planish.frontend.showcase import COUNTS, INT4, PIPELINES, ROOM, SHARE, TARGET
from planish.ir.parser import parse
from planish.ir.rewrite import Log
from planish.ir.run import run
from planish.ir.verify import verify
from planish.passes.recognise.recognise import Recognise

LENGTHS = ((1, 5), (2, 33), (1, 200))
"""Batches and lengths that capture did not see."""

MASKS = {
    "aten.le",
    "aten.ge",
    "aten.gt",
    "aten.lt",
    "aten.where",
    "aten.bitwise_and",
    "aten.cumsum",
    "aten.eq",
}


@pytest.fixture(scope="module")
def captured():
    return capture(yardstick.model_file())


def relative(got, wanted) -> float:
    return float((torch.as_tensor(got) - wanted).abs().max() / wanted.abs().max())


def random_tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 49000, (batch, length), generator=torch.Generator().manual_seed(length))


def test_capture_recognition_and_text(captured):
    program = captured.program
    verify(program, captured.weights)
    assert {s.name for s in program.symbols} == {"B", "T"}
    found = verify(Recognise().apply(program, captured.weights, Log()), captured.weights)
    assert {op: found.count(op) for op in COUNTS} == COUNTS
    attentions = [n for n in found.nodes if n.op == "planish.attention"]
    assert all(n.args[3] is None and n.args[4] is True and n.args[5] is None for n in attentions), (
        "causal, no mask"
    )
    assert all(n.args[0].shape[1] == 9 and n.args[1].shape[1] == 3 for n in attentions), "grouped"
    assert not MASKS & {n.op for n in found.nodes}
    for each in (program, found):
        text = str(each)
        again = parse(text)
        assert str(again) == text
        assert again.outputs == each.outputs, "the same node objects"
    tokens = random_tokens(1, 23)
    with torch.no_grad():
        before, after = (run(p, captured.weights, tokens)[0] for p in (program, found))
    assert relative(after, before) <= 1e-5


def test_four_bits_on_disk(captured, tmp_path):
    path = tmp_path / "int4.planish"
    with api.compile_captured(
        captured, api.make_options(passes="auto,int4{group=64}", target="cpu{activation_bits=32}")
    ) as compiled:
        dense = compiled.report.bytes_before
        compiled.export(path)
    assert path.stat().st_size <= SHARE * dense
    tokens = random_tokens(1, 39).numpy()
    with api.load(path) as loaded, torch.no_grad():
        got = torch.as_tensor(loaded.run({"input_ids": tokens})["logits"])
        wanted = run(loaded.program, loaded.weights, torch.from_numpy(tokens))[0]
    assert relative(got, wanted) <= 1e-4


@pytest.mark.slow
def test_equal_to_transformers(captured):
    from transformers import AutoModelForCausalLM

    file = yardstick.model_file()
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    options = api.make_options(passes="auto")
    with api.compile_captured(captured, options) as compiled, torch.no_grad():
        for batch, length in LENGTHS:
            tokens = random_tokens(batch, length)
            wanted = model(tokens, use_cache=False).logits
            assert relative(run(captured.program, captured.weights, tokens)[0], wanted) <= 1e-5
            assert relative(compiled.run({"input_ids": tokens.numpy()})["logits"], wanted) <= 1e-4


@pytest.mark.slow
def test_resident_memory(captured, tmp_path):
    path = tmp_path / "int4.planish"
    with api.compile_captured(captured, api.make_options(passes=PIPELINES[INT4], target=TARGET)) as compiled:
        compiled.export(path)
    assert yardstick.memory(path).resident <= path.stat().st_size + ROOM
