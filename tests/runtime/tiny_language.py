"""A language model of one layer in numpy, which keeps keys and values as native code does: written to in place."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from planish.runtime.generate.capacity import Capacity, read_capacity
from planish.runtime.generate.model import Model
from planish.runtime.manifest import EntryPoint, State, Value
from planish.runtime.states import States
from planish.runtime.typetext import parse_type

VOCABULARY, HEADS, WIDTH = 64, 2, 8
ENDLESS = 10**6


def entries(context: int, batch: int | None, rows: int) -> dict[str, EntryPoint]:
    """The entry points of the contract, with caches of ``rows`` rows."""
    b = "B" if batch is None else batch
    made = {}
    for name, width, out in (("prefill", "S", 1), ("decode", 1, 1), ("extend", "S", "S")):
        inputs = (
            Value("input_ids", parse_type(f"i64[{b}, {width}]")),
            Value("start", parse_type(f"i64[{b}]")),
            Value("count", parse_type(f"i64[{b}]")),
        )
        states = tuple(
            State(n, parse_type(f"f32[{b}, {HEADS}, {rows}, {WIDTH}]"), n, f"{n}.next")
            for n in ("keys.0", "values.0")
        )
        outputs = (Value("logits", parse_type(f"f32[{b}, {out}, {VOCABULARY}]")),)
        made[name] = EntryPoint(name, inputs, outputs, states)
    return made


class Runner:
    """One entry point; caches are changed in place, rows that no token was put into hold NaN."""

    def __init__(self, model: TinyLanguage, name: str) -> None:
        self.model, self.name = model, name
        self.inputs = ("input_ids", "start", "count", "keys.0", "values.0")
        self.outputs = ("logits", "keys.0.next", "values.0.next")

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        model = self.model
        model.calls.append((self.name, feeds["input_ids"].shape[1]))
        keys, values = feeds["keys.0"], feeds["values.0"]
        rows = keys.shape[2]
        logits = np.full((*feeds["input_ids"].shape, VOCABULARY), np.nan, np.float32)
        for b, (start, count) in enumerate(zip(feeds["start"], feeds["count"])):
            if start == 0 and count:
                keys[b], values[b] = np.nan, np.nan
            x = model.embed[feeds["input_ids"][b, :count]] + model.places(int(start), int(count))
            for i in range(count):
                keys[b, :, (start + i) % rows] = (x[i] @ model.k).reshape(HEADS, WIDTH)
                values[b, :, (start + i) % rows] = (x[i] @ model.v).reshape(HEADS, WIDTH)
            last = start + count - 1
            held = last - (last - np.arange(rows)) % rows
            for i in range(count):
                at = start + i
                seen = np.flatnonzero((held >= 0) & (held <= at) & (at - held < model.window))
                seen = seen[np.argsort(held[seen])]
                q = (x[i] @ model.q).reshape(HEADS, WIDTH)
                scores = np.einsum("hd,hsd->hs", q, keys[b][:, seen])
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                mixed = np.einsum("hs,hsd->hd", weights / weights.sum(-1, keepdims=True), values[b][:, seen])
                logits[b, i] = (x[i] + mixed.reshape(-1) @ model.o) @ model.head.T
        if model.spoil:
            logits[...] = model.spoil
        if self.name != "extend":
            logits = logits[np.arange(len(logits)), np.maximum(feeds["count"] - 1, 0)][:, None]
        found = {"logits": logits, "keys.0.next": keys, "values.0.next": values}
        return {n: found[n] for n in (outputs or self.outputs)}

    def array(self, value: Any) -> Any:
        return value.copy()

    def close(self) -> None:
        """Nothing is held."""


class TinyLanguage(Model):
    """``window`` makes the layer a ring of ``rows`` rows; ``files`` are those of a tokenizer."""

    def __init__(
        self, *, context: int = 48, chunk: int = 5, batch: int | None = None, window: int | None = None, rows: int = 12,
        files: Mapping[str, bytes] | None = None, extend: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        random = np.random.default_rng(seed)
        size = HEADS * WIDTH
        self.embed = random.standard_normal((VOCABULARY, size)).astype(np.float32)
        self.head = random.standard_normal((VOCABULARY, size)).astype(np.float32)
        self.q, self.k, self.v, self.o = (
            (random.standard_normal((size, size)) * 0.7).astype(np.float32) for _ in range(4)
        )
        self.window = window or ENDLESS
        self.spoil: float | None = None
        self.calls: list[tuple[str, int]] = []
        self.files = dict(files or {})
        rings = {} if window is None else {"keys.0": {"capacity": rows, "window": window}}
        self.table = {
            "context": context, "chunk": chunk, "batch": batch, "token_input": "input_ids", "vocabulary": VOCABULARY,
            "rings": rings,
        }  # fmt: skip
        self._entries = entries(context, batch, context if window is None else rows)
        if not extend:
            del self._entries["extend"]
        self._runners = {name: Runner(self, name) for name in self._entries}
        self._name = f"tiny {seed} {json.dumps(self.table)}"

    def places(self, start: int, count: int) -> Any:
        """What tells positions apart."""
        at = np.arange(start, start + count)[:, None] / np.array([3.0 + 2 * i for i in range(HEADS * WIDTH)])
        return np.sin(at).astype(np.float32)

    @property
    def entry_points(self) -> Mapping[str, EntryPoint]:
        return self._entries

    @property
    def capacity(self) -> Capacity:
        return read_capacity(self.table, self._entries, {"B": (1, 4), "S": (1, self.table["chunk"])}, "tiny")

    @property
    def digest(self) -> str:
        return self._name

    def run(
        self, feeds: Mapping[str, Any], entry: str | None = None, *, states: States | None = None
    ) -> dict[str, Any]:
        assert states is not None and entry is not None
        sizes = {"B": feeds["input_ids"].shape[0], "S": feeds["input_ids"].shape[1]}
        return states.run(self._runners[entry], self._entries[entry], feeds, sizes)

    def tokenizer_file(self, name: str) -> bytes | None:
        return self.files.get(name)


def byte_tokenizer(vocabulary: int = VOCABULARY) -> dict[str, bytes]:
    """A tokenizer with a token for each byte of some letters, one that ends texts, and a template for chats."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    wanted = b"abcdefghijklmnopqrstuvwxyz .,!?\n" + "é€😀".encode()
    letters = _byte_letters()
    vocabulary_table = {letters[b]: i for i, b in enumerate(sorted(set(wanted)))}
    made = Tokenizer(models.BPE(vocabulary_table, [], fuse_unk=False))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    assert made.get_vocab_size() <= vocabulary
    settings = {"eos_token": "<end>", "bos_token": None}
    template = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}a {% endif %}"
    return {
        "tokenizer.json": made.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "chat_template.jinja": template.encode(),
    }


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in tokenizers of bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
