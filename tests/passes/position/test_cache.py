"""From whole sequences to steps: every architecture by the same rewrite, every way to cut a sequence, every refusal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.errors import CaptureError, GuardError, UnsupportedOpError, UsageError
from planish.frontend.capture.torch import capture_torch
from planish.ir.namespace import aten, make
from planish.ir.node import Module, Node, Program
from planish.ir.parser import parse
from planish.ir.run import run
from planish.ir.verify import verify
from planish.ir.weights import Weights
from planish.passes.pipeline import run_pipeline
from planish.passes.position.cache import Cached, CacheOptions, insert_cache
from planish.passes.position.validate import validate_cache
from tests import parity
from tests.models import BERT, GROUPED, VOCABULARY, hugging_face

LENGTH = 24
TOLERANCE = 1e-5
SPLITS = ((24,), (1,) * 24, (23, 1), (1, 23), (5, 7, 12), (8, 8, 8))
CASES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt", "falcon",
    "mixtral", "qwen3_moe",
)  # fmt: skip
SMALL_BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bloom": ("BloomForCausalLM", "BloomConfig", SMALL_BLOOM),
    "mpt": (
        "MptForCausalLM", "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "use_cache": False},
    ),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GROUPED),
    "cohere": ("CohereForCausalLM", "CohereConfig", GROUPED),
    "masked_bert": ("BertForMaskedLM", "BertConfig", BERT),
}  # fmt: skip


@cache
def source(name: str) -> tuple[Program, Weights]:
    """A recognised program with its weights."""
    if name not in MORE:
        return parity.recognised(name), parity.captured(name).weights
    architecture, configuration, options = MORE[name]
    model = hugging_face(architecture, configuration, **options)()
    length = torch.export.Dim("T", min=1, max=64) if name == "mpt" else "T"
    ids = torch.randint(3, VOCABULARY, (2, 9))
    found = capture_torch(model, {"input_ids": ids}, dynamic_shapes={"input_ids": {0: "B", 1: length}})
    return run_pipeline(found.program, found.weights, "recognise").program, found.weights


def tokens(batch: int, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Random token ids."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


class Steps:
    """Runs entry points one after another; caches begin full of garbage."""

    def __init__(self, made: Cached, weights: Weights, batch: int, garbage: float = float("nan")) -> None:
        self.made, self.weights, self.batch, self.garbage = made, weights, batch, garbage
        self.states: dict[str, Tensor] = {}
        self.lengths = torch.zeros(batch, dtype=torch.int64)

    def begin(self, *inputs: Tensor) -> None:
        """Run ``begin``."""
        program = self.made.module["begin"]
        self._keep(program, run(program, self.weights, *inputs))

    def __call__(self, entry: str, ids: Tensor, counts: Any = None) -> Tensor:
        """The output of a step; ``counts`` are valid tokens of each sequence."""
        program = self.made.module[entry]
        for node in program.nodes:
            if node.op == "state" and node.name not in self.states:
                shape = [s if isinstance(s, int) else self.batch for s in node.shape]
                self.states[node.name] = torch.full(shape, self.garbage)
        count = torch.tensor(counts) if counts is not None else torch.full((self.batch,), ids.shape[1])
        out = run(program, self.weights, ids, self.lengths, count, states=self.states)
        self.lengths = self.lengths + count
        return self._keep(program, out)

    def _keep(self, program: Program, out: tuple[Tensor, ...]) -> Any:
        count = len(program.outputs)
        self.states |= dict(zip([n for n, _ in program.states], out[count:], strict=True))
        return out[0] if count else None

    def all(self, ids: Tensor, split: tuple[int, ...]) -> Tensor:
        """The rows of a sequence that is cut into steps."""
        parts = ids.split(list(split), 1)
        return torch.cat([self("decode" if p.shape[1] == 1 else "extend", p) for p in parts], 1)


def error(have: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((have - want).abs().nan_to_num(float("inf")).max() / want.abs().max())


def inserted(name: str, batch: int | None = 1, **options: Any) -> Cached:
    """The steps of a model."""
    program, weights = source(name)
    given = CacheOptions(**{"context": 40, "batch": batch, "chunk": LENGTH} | options)
    return insert_cache(program, weights, given)


@pytest.mark.parametrize("name", [*CASES, *(n for n in MORE if n != "masked_bert")])
def test_every_split_is_the_whole(name: str) -> None:
    program, weights = source(name)
    ids = tokens(2)
    want = run(program, weights, ids)[0]
    for batch in (None, 2):
        made = inserted(name, batch)
        for each in made.module.programs:
            verify(each, weights)
        assert not any("expand" in n.op and n.rank == 5 for n in made.module["decode"].nodes), (
            "heads are repeated"
        )
        for split in SPLITS if batch is None else SPLITS[-2:]:
            assert error(Steps(made, weights, 2).all(ids, split), want) <= TOLERANCE, (batch, split)
        last = Steps(made, weights, 2)("prefill", ids)
        assert last.shape == (2, 1, VOCABULARY) and error(last[:, 0], want[:, -1]) <= TOLERANCE


@pytest.mark.parametrize("name", ["llama", "mistral", "opt", "bloom"])
def test_batch_of_unequal_lengths(name: str) -> None:
    program, weights = source(name)
    lengths, ids = (1, 5, 11), tokens(3, 20)
    steps = Steps(inserted(name, None), weights, 3)
    first = steps("prefill", ids[:, :11], counts=lengths)
    have = [first]
    for i in range(3):
        column = torch.stack([row[n + i] for row, n in zip(ids, lengths, strict=True)])[:, None]
        have.append(steps("decode", column))
    for b, n in enumerate(lengths):
        want = run(program, weights, ids[b : b + 1, : n + 3])[0][0, n - 1 :]
        assert error(torch.cat([h[b] for h in have]), want) <= TOLERANCE
    waiting = steps.states["keys.0"].clone()
    steps("decode", ids[:, :1], counts=(0, 1, 0))
    after = steps.states["keys.0"][0]
    assert torch.equal(after.nan_to_num(9.0), waiting[0].nan_to_num(9.0)), (
        "a sequence that waits is left alone"
    )


def test_ring_runs_long() -> None:
    program, weights = source("mistral")
    ids = tokens(1, 36)
    want = run(program, weights, ids)[0]
    for chunk in (1, 3, 6):
        made = inserted("mistral", chunk=chunk)
        assert made.generation["rings"]["keys.0"] == {"capacity": 4 + chunk - 1, "window": 4}
        steps = Steps(made, weights, 1, 1e4)
        rows = [steps("extend" if chunk > 1 else "decode", p) for p in ids.split(chunk, 1)]
        assert error(torch.cat(rows, 1), want) <= TOLERANCE
    static = inserted("mistral", rings=False)
    assert (
        not static.generation["rings"]
        and error(Steps(static, weights, 1).all(ids[:, :24], (7, 17)), want[:, :24]) <= 1e-5
    )


def test_each_layer_has_its_own_capacity() -> None:
    made = inserted("gemma2", chunk=4)
    kinds = {n.name: n.shape[2] for n in made.module["decode"].nodes if n.op == "state"}
    assert kinds == {"keys.0": 7, "values.0": 7, "keys.1": 40, "values.1": 40}


def test_rollback_is_exact() -> None:
    _, weights = source("llama")
    ids = tokens(1)
    steps = Steps(inserted("llama"), weights, 1)
    steps("extend", ids[:, :10])
    first = steps("extend", ids[:, 10:14])
    steps("extend", tokens(1, 6, 5))
    steps.lengths = torch.tensor([10])
    assert torch.equal(steps("extend", ids[:, 10:14]), first)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_and_decoder(name: str) -> None:
    program, weights = source(name)
    made = insert_cache(program, weights, CacheOptions(context=40, batch=None, chunk=LENGTH))
    encoder, ids = tokens(2, 9, 7), tokens(2)
    inputs = {leaf.name: encoder for leaf in program.inputs} | {"decoder_input_ids": ids}
    for leaf in program.inputs:
        if "mask" in leaf.name:
            inputs[leaf.name] = torch.ones_like(encoder)
    want = run(program, weights, *(inputs[leaf.name] for leaf in program.inputs))[0]
    steps = Steps(made, weights, 2)
    steps.begin(*(inputs[leaf.name] for leaf in made.module["begin"].inputs))
    kept = dict(steps.states)
    assert kept and all(name.startswith("given.") for name in kept)
    assert error(steps.all(ids, (5, 1, 18)), want) <= TOLERANCE
    assert all(torch.equal(steps.states[n], v) for n, v in kept.items())


def test_programs_are_text() -> None:
    with_encoder = insert_cache(*source("bart"), CacheOptions(context=40, batch=None))
    modules = (inserted("gemma2", None).module, inserted("llama").module, with_encoder.module)
    every = [program for module in modules for program in module.programs]
    assert {p.name for p in every} == {"prefill", "decode", "extend", "move", "begin"}
    for program in every:
        assert parse(str(program)) == program


class Mean(nn.Module):
    """A decoder whose hidden states are averaged over the sequence."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = self.decoder(input_ids=input_ids).logits
        return logits - logits.mean(1, keepdim=True)


class Length(nn.Module):
    """Logits that are scaled by the length."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.decoder(input_ids=input_ids).logits
        return logits / input_ids.shape[1]


def wrapped(wrapper: Any) -> tuple[Program, Weights]:
    """A small model in something that is not causal."""
    found = capture_torch(
        wrapper(parity.model_of("llama")), {"input_ids": tokens(2, 9)},
        dynamic_shapes={"input_ids": {0: "B", 1: "T"}},
    )  # fmt: skip
    return run_pipeline(found.program, found.weights, "recognise").program, found.weights


@pytest.mark.parametrize(
    "make_source, code, what",
    [
        (lambda: source("masked_bert"), "PL260", "modeling_bert.py.*planish.attention is not causal"),
        (lambda: source("bert"), "PL260", "modeling_bert.py.* mixes rows"),
        (lambda: source("llama_padded"), "PL260", "modeling_llama.py.* mixes rows"),
        (lambda: wrapped(Mean), "PL260", "aten.mean.* mixes rows|no axis"),
        (lambda: wrapped(Length), "PL260", "the length"),
        (lambda: source("vit"), "PL261", "first output"),
    ],
    ids=["bert", "padded_bert", "padded", "mean", "length", "vit"],
)
def test_refused(make_source: Any, code: str, what: str) -> None:
    program, weights = make_source()
    with pytest.raises(UnsupportedOpError, match=what) as found:
        insert_cache(program, weights, CacheOptions(context=40))
    import re

    assert re.fullmatch(code, found.value.code) and found.value.exit_code == 3


def test_dynamic_rotary_is_refused_at_capture() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = hugging_face("LlamaForCausalLM", "LlamaConfig", **GROUPED, rope_parameters=scaling)()
    with pytest.raises(CaptureError, match=r"modeling_rope_utils.py.*depends on the data") as found:
        capture_torch(model, {"input_ids": tokens(2, 9)}, dynamic_shapes={"input_ids": {0: "B", 1: "T"}})
    assert found.value.exit_code == 3


def test_bad_options() -> None:
    program, weights = source("gpt2")
    with pytest.raises(UnsupportedOpError, match="64 positions") as found:
        insert_cache(program, weights, CacheOptions(context=65))
    assert found.value.code == "PL262"
    for options in (
        CacheOptions(context=0),
        CacheOptions(context=8, chunk=9),
        CacheOptions(context=8, chunk=0),
    ):
        with pytest.raises(UsageError, match="PL835"):
            insert_cache(program, weights, options)


def replaced(made: Cached, entry: str, change: Any) -> Cached:
    """The steps with one entry point changed."""
    programs = [change(p) if p.name == entry else p for p in made.module.programs]
    return replace(made, module=Module(tuple(programs)))


def swap(program: Program, change: Any) -> Program:
    """The program with nodes changed; operands first."""
    done: dict[Node, Node] = {}
    for node in program.nodes:
        if node.is_leaf:
            continue
        args = tuple(done.get(a, a) if isinstance(a, Node) else a for a in node.args)
        done[node] = change(node, args) or make(node.op, *args)
    return replace(
        program, outputs=tuple(done[o] for o in program.outputs),
        states=tuple((n, done[s]) for n, s in program.states),
        origins={done.get(n, n): o for n, o in program.origins.items()},
    )  # fmt: skip


def test_validation_passes_and_finds_wrong_steps() -> None:
    program, weights = source("gemma2")
    made = inserted("gemma2", None)
    assert validate_cache(program, weights, made, thorough=True) <= TOLERANCE

    def widen(node: Node, args: tuple[Any, ...]) -> Node | None:
        return (
            make(node.op, *args[:6], None, *args[7:])
            if node.op == "planish.attend" and node.args[6]
            else None
        )

    with pytest.raises(GuardError, match=r"PL521.*layers") as found:
        validate_cache(program, weights, replaced(made, "decode", lambda p: swap(p, widen)), thorough=True)
    assert "planish.attention" in str(found.value)


def test_validation_finds_a_program_that_is_not_stable() -> None:
    program, weights = source("llama")
    made = inserted("llama", None)
    mean = aten.mean(program.outputs[0], [1], True)
    unstable = replace(program, outputs=(aten.sub(program.outputs[0], mean),))
    with pytest.raises(GuardError, match="PL520"):
        validate_cache(unstable, weights, made)


def every_state(made: Cached) -> Iterator[Node]:
    """The state leaves of all entry points."""
    for program in made.module.programs:
        yield from (n for n in program.nodes if n.op == "state")


def test_entry_points_share_states_and_constants() -> None:
    made = inserted("llama")
    states = {n.name: n for n in every_state(made)}
    assert len(states) == 4 and set(states) == set(dict(made.module["decode"].states))
    constants = [set(p.constants()) for p in made.module.programs if p.name != "move"]
    assert all(c == constants[0] for c in constants)
