"""A context as a file: safetensors with the caches, and in its header the tokens and whose they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import ArtifactError, PlanishError, UsageError
from planish.runtime.generate.capacity import BEGIN, PREFILL
from planish.runtime.generate.checks import check_tokens
from planish.runtime.generate.context import Context
from planish.runtime.generate.model import Model
from planish.runtime.generate.parallel import Parallel, ParallelContext
from planish.runtime.manifest import EntryPoint, State
from planish.runtime.states import States, number_type, zeros
from planish.runtime.tensors import (
    Array,
    SafetensorsPayload,
    parse_json,
    read_metadata,
    read_table,
    view_tensors,
)
from planish.runtime.typetext import evaluate, solve, symbols
from planish.runtime.zipwriter import replacing

FORMAT, VERSION = "planish-context", "1"
_LOGITS = "logits"


def write_context(context: Context, path: Path, *, overwrite: bool = False) -> Path:
    """Write a context; of caches that grow only the rows in use. The file appears when it is complete."""
    tensors: dict[str, Array] = {}
    logits_of = context.logits  # first of all, because it may read a token again
    growing, used = _growing(context.model), max(context.lengths)
    for name, array in context.states.arrays().items():
        tensors[name] = np.ascontiguousarray(array[..., :used, :] if name in growing else array)
    for index, logits in enumerate(logits_of):
        if logits is not None:
            tensors[f"{_LOGITS}/{index}"] = np.ascontiguousarray(logits)
    facts = {
        "format": FORMAT, "version": VERSION, "model": context.model.digest,
        "tokens": json.dumps(context.tokens, separators=(",", ":")),
        "reach": json.dumps(context._reach),
    }  # fmt: skip
    if isinstance(context, ParallelContext):
        facts["parallel"] = json.dumps(asdict(context.parallel))
    facts["sha256"] = _digest(facts, tensors)
    with replacing(path, overwrite=overwrite) as file:
        for chunk in SafetensorsPayload(tensors, facts).chunks():
            file.write(chunk)
    return path


def read_context(model: Model, path: Path) -> Context:
    """The context in a file. PL640: damaged, or no such file; PL641: of another model."""
    where = str(path)
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise ArtifactError("PL640", f"cannot be read: {error.strerror or error}", where=where) from None

    def read(offset: int, length: int) -> bytes:
        return bytes(data[offset : offset + length])

    try:
        facts = read_metadata(read, len(data), where=where)
        table = read_table(read, len(data), where=where)
    except ArtifactError as error:
        raise _damaged(error.message, where) from None
    if facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise _damaged("it holds no context of a generation that this version reads", where)
    tensors = view_tensors(data, table)
    if facts.get("sha256") != _digest({k: v for k, v in facts.items() if k != "sha256"}, tensors):
        raise _damaged("its content has another SHA-256 than it says", where)
    if facts.get("model") != model.digest:
        raise ArtifactError(
            "PL641", "the context is that of another model", where=where,
            hint="restore it with the artifact that wrote it",
        )  # fmt: skip
    try:
        return _context(model, facts, tensors, where)
    except PlanishError as error:
        raise error if error.code == "PL640" else _damaged(error.message, where) from None


def _context(model: Model, facts: Mapping[str, str], tensors: Mapping[str, Array], where: str) -> Context:
    tokens, reach = (_json(facts.get(key, ""), where) for key in ("tokens", "reach"))
    if not isinstance(tokens, list) or not tokens or not isinstance(reach, list) or len(reach) != len(tokens):
        raise _damaged("its tokens are not a list", where)
    made = _empty(model, facts, tokens, where)
    made._tokens = [check_tokens(ids, made.capacity.vocabulary) for ids in tokens]
    if not all(type(r) is int and r >= n for r, n in zip(reach, made.lengths, strict=True)):
        raise _damaged("it says that fewer positions were written than there are tokens", where)
    most = made.capacity.context
    if most is not None and max(made.lengths) > most:
        raise _damaged(f"it holds {max(made.lengths)} tokens, the model takes {most}", where)
    made._reach = reach
    made._logits = _logits(tensors, made, where)
    entry, caches = model.entry_points[PREFILL], {}
    stored = {name: a for name, a in tensors.items() if not name.startswith(f"{_LOGITS}/")}
    if stored:
        states = entry.states if max(made.lengths) else _begun(model, stored)
        if set(stored) != {s.name for s in states}:
            raise _damaged("it holds other caches than the model has", where)
        caches = {s.name: _cache(s, entry, stored[s.name], made, where) for s in states}
    elif max(made.lengths):
        raise _damaged("it holds tokens, but no caches", where)
    made.states = States(caches)
    return made


def _empty(model: Model, facts: Mapping[str, str], tokens: list[Any], where: str) -> Context:
    """A context without tokens, of the kind that was written."""
    if "parallel" not in facts:
        return Context(model, len(tokens))
    try:
        place = Parallel(**_json(facts["parallel"], where))
    except (TypeError, UsageError):
        place = None
    if place is None or not model.capacity.parallel or len(tokens) != 1 or len(tokens[0]) < place.last:
        raise _damaged("it does not say where contexts side by side stand", where)
    return ParallelContext(model, place)


def _begun(model: Model, stored: Mapping[str, Array]) -> tuple[State, ...]:
    """The states of a context without tokens: those that stand for other inputs, and perhaps caches."""
    begin = model.entry_points.get(BEGIN)
    known = model.entry_points[PREFILL].states
    only = begin.states if begin is not None else known
    return only if set(stored) == {s.name for s in only} else known


def _cache(state: State, entry: EntryPoint, stored: Array, context: Context, where: str) -> Array:
    """A whole cache from its stored rows."""
    width = context.capacity.widths[entry.name][0]
    sizes = _sizes(entry, context.batch, width)
    for dim, size in zip(state.type.dims, stored.shape):
        sizes |= solve(dim, size, sizes)
    shape = tuple(state.type.sizes(sizes))
    have = list(shape)
    grows = state.name in _growing(context.model)
    if grows:
        have[-2] = max(context.lengths)
    if tuple(have) != stored.shape or stored.dtype != number_type(state.type.dtype):
        raise _damaged(
            f"{state.name} is {stored.dtype}{list(stored.shape)}, the model has {state.type}", where
        )
    made = zeros(shape, state.type.dtype)
    if grows:
        made[..., : stored.shape[-2], :] = stored
    else:
        made[...] = stored
    return made


def _sizes(entry: EntryPoint, batch: int, width: int) -> dict[str, int]:
    tokens = next(v.type for v in entry.inputs if v.type.rank == 2)
    return solve(tokens.dims[0], batch, {}) | solve(tokens.dims[1], width, {})


def _logits(tensors: Mapping[str, Array], context: Context, where: str) -> list[Array | None]:
    found: list[Array | None] = [None] * context.batch
    for index in range(context.batch):
        row = tensors.get(f"{_LOGITS}/{index}")
        if row is not None and (row.shape != (context.capacity.vocabulary,) or row.dtype != np.float32):
            raise _damaged(f"its logits are {row.dtype}{list(row.shape)}", where)
        found[index] = row
    return found


def _growing(model: Model) -> set[str]:
    """The states that have one row for each position of the context."""
    capacity, begin = model.capacity, model.entry_points.get(BEGIN)
    others = {*capacity.rings, *(s.name for s in (begin.states if begin is not None else ()))}
    if capacity.context is None:
        return set()
    states = (s for s in model.entry_points[PREFILL].states if s.name not in others and s.type.rank >= 3)
    rows = {s.name: s.type.dims[-2] for s in states}
    return {n for n, dim in rows.items() if not symbols(dim) and evaluate(dim, {}) == capacity.context}


def _digest(facts: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"\0{name}\0{array.dtype.name}{list(array.shape)}\0".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _json(text: str, where: str) -> Any:
    return parse_json(text.encode(), code="PL640", where=where)


def _damaged(what: str, where: str) -> ArtifactError:
    return ArtifactError(
        "PL640", what, where=where, hint="the file is damaged, or was written by something else"
    )
