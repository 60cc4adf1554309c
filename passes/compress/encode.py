"""Replacing constants by what a codec makes of them: which constants, in which layout, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

from planish.errors import GuardError, UsageError
from planish.ir.namespace import aten
from planish.ir.node import Node, Origin, Program, const
from planish.ir.rewrite import Log, sweep
from planish.ir.weights import Weights
from planish.passes.base import map_programs
from planish.passes.compress.codec import Codec, single_threads

Layout: TypeAlias = Literal["rows", "columns", "filters"]
"""Where the axis that a weight sums over is: the last, the last but one, or all but the first."""


@dataclass(frozen=True)
class EncodedWeight:
    """What became of one weight: the codec, the bytes that are stored and the error that they leave."""

    name: str
    spec: str
    nbytes: int
    bits_per_weight: float
    error: float

    def __str__(self) -> str:
        return f"{self.name}: {self.spec}, {self.bits_per_weight:.3f} bits per weight, error {self.error:.4f}"


_made: WeakKeyDictionary[Weights, dict[str, tuple[Node, EncodedWeight]]] = WeakKeyDictionary()
"""Encoded weights by recipe, so that a search does not encode one twice."""


def encodable(program: Program) -> dict[Node, Layout]:
    """The constants that codecs apply to: weights of linear layers, tables, filters and factors of products."""
    found: dict[Node, Layout] = {}
    for child in program.nested():
        found.update(encodable(child))
    for node in program.nodes:
        for operand, layout in _uses(node):
            leaf, seen = _source(operand, layout)
            if leaf is not None and leaf.rank >= 2 and leaf.dtype.is_float and leaf.dtype.bits > 8:
                if found.get(leaf, "columns") == "columns":
                    found[leaf] = seen
    return found


def _uses(node: Node) -> list[tuple[Node, Layout]]:
    match node.op:
        case "aten.linear":
            return [(node.args[1], "rows")]
        case "aten.embedding":
            return [(node.args[0], "rows")]
        case "aten.convolution":
            return [(node.args[1], "filters")]
        case "aten.matmul":
            return [(node.args[1], "columns")] if node.args[1].rank >= 2 else []
    return []


def _source(node: Node, layout: Layout) -> tuple[Node | None, Layout]:
    """The constant behind transpositions, casts and selections of rows, with the layout that it has itself."""
    while node.op != "const":
        if node.op == "aten.permute" and _swaps_last(node.args[1]) and layout != "filters":
            layout = "rows" if layout == "columns" else "columns"
        elif node.op not in ("aten.to", "aten.index_select") or (node.op[-1] == "t" and node.args[1] != 0):
            return None, layout
        node = node.args[0]
    return node, layout


def _swaps_last(dims: Sequence[int]) -> bool:
    rank = len(dims)
    return tuple(dims) == (*range(rank - 2), rank - 1, rank - 2)


def matches(name: str, patterns: str) -> bool:
    """True if a weight, or the module that it belongs to, matches one of the globs (separated by ``|``)."""
    names = (name, name.removesuffix(".weight"))
    return any(fnmatchcase(n, p) for p in patterns.split("|") if p for n in names)


def _demand_match(pattern: str, names: Sequence[str], what: str) -> None:
    for each in filter(None, pattern.split("|")):
        if not any(matches(n, each) for n in names):
            shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            raise UsageError(
                "PL814", f"{what} '{each}' matches no weight", hint=f"weights are: {shown or 'none'}"
            )


def encode_constants(
    program: Program,
    weights: Weights,
    codec: Codec,
    *,
    only: str | tuple[str, ...] = "*",
    skip: str | tuple[str, ...] = "",
    min_numel: int = 1024,
    log: Log | None = None,
) -> Program:
    """Replace constants by decodings of their parts, which become derived weights named by recipe.

    ``only`` and ``skip`` are globs; one that matches nothing raises ``UsageError`` PL814. Weights of fewer than
    ``min_numel`` elements, and those that would not become smaller, stay as they are. An :class:`EncodedWeight` for
    each is added to the notes of the log. One weight is held in memory at a time.
    """
    wanted, unwanted = (p if isinstance(p, str) else "|".join(p) for p in (only, skip))
    found = encodable(program)
    names = sorted(leaf.name for leaf in found)
    if wanted != "*":
        _demand_match(wanted, names, "only")
    _demand_match(unwanted, names, "skip")
    chosen = {
        leaf: codec
        for leaf in found
        if matches(leaf.name, wanted) and not matches(leaf.name, unwanted) and leaf.tensor.numel >= min_numel
    }
    return _encode(program, weights, chosen, found, Log() if log is None else log)


def apply_layer_rules(
    program: Program,
    weights: Weights,
    rules: Sequence[Mapping[str, Any]],
    default: Codec | None,
    *,
    min_numel: int = 1024,
    log: Log | None = None,
) -> Program:
    """Encode each weight by the first rule that matches it, others by ``default`` (None: they stay as they are).

    A rule is ``{"match": glob, "freeze": True}`` or has options of the codec, such as ``"bits": 3``, which replace
    those of the default. Raises ``UsageError`` PL814 for a rule that no weight reaches, PL815 for a malformed one.
    """
    found = encodable(program)
    codecs = [_rule_codec(index, each, default) for index, each in enumerate(rules)]
    names = sorted(leaf.name for leaf in found)
    used: set[int] = set()
    chosen: dict[Node, Codec] = {}
    for leaf in found:
        first = next((i for i, r in enumerate(rules) if matches(leaf.name, r["match"])), None)
        if first is not None:
            used.add(first)
        codec = default if first is None else codecs[first]
        if codec is not None and (first is not None or leaf.tensor.numel >= min_numel):
            chosen[leaf] = codec
    for index, each in enumerate(rules):
        _demand_match(each["match"], names, f"layer rule {index + 1}:")
        if index not in used:
            raise UsageError(
                "PL814", f"layer rule {index + 1}: earlier rules take all that '{each['match']}' matches"
            )
    return _encode(program, weights, chosen, found, Log() if log is None else log)


def _rule_codec(index: int, each: Mapping[str, Any], default: Codec | None) -> Codec | None:
    """The codec of a rule; None to leave weights as they are."""
    where = f"layer rule {index + 1}"
    if not isinstance(each.get("match"), str) or not each["match"]:
        raise UsageError("PL815", f"{where} needs a glob under 'match', got {dict(each)}")
    options = {k: v for k, v in each.items() if k not in ("match", "freeze")}
    frozen = each.get("freeze", False)
    if not isinstance(frozen, bool) or (frozen and options):
        raise UsageError("PL815", f"{where}: 'freeze' is true or false and stands alone, got {dict(each)}")
    if frozen:
        return None
    if default is None:
        from planish.passes.compress.affine import AffineCodec

        default = AffineCodec()
    known = {f.name: type(getattr(default, f.name)) for f in fields(default)}
    for key, value in options.items():
        if key not in known:
            raise UsageError(
                "PL815", f"{where}: unknown key '{key}'", hint=f"keys: match, freeze, {', '.join(known)}"
            )
        if type(value) is not known[key]:
            raise UsageError("PL815", f"{where}: {key}={value!r}: expected {known[key].__name__}")
    return replace(default, **options)


def _encode(
    program: Program, weights: Weights, chosen: Mapping[Node, Codec], layouts: Mapping[Node, Layout], log: Log
) -> Program:
    made = _made.setdefault(weights, {})

    def encoded(node: Node) -> Node | None:
        codec = chosen.get(node)
        if codec is None:
            return None
        recipe = f"{node.name}#{codec.spec}"
        if recipe not in made:
            with single_threads():
                made[recipe] = _encode_one(node, codec, layouts[node], weights)
        after, note = made[recipe]
        if after is not node and note not in log.notes:
            log.notes.append(note)
        return after

    rules: list[tuple[str, Callable[[Node], Node | None]]] = [("encode", encoded)]

    def change(each: Program) -> Program:
        scopes = {
            n: Origin(n.name.partition("#")[0].removesuffix(".weight")) for n in each.nodes if n in chosen
        }
        after = sweep(replace(each, origins={**each.origins, **scopes}), rules, log)
        return each if after == each else after

    return map_programs(program, change)


def _encode_one(node: Node, codec: Codec, layout: Layout, weights: Weights) -> tuple[Node, EncodedWeight]:
    """The decoding that stands for a constant (the constant itself if that would not be smaller)."""
    import torch

    value = weights.tensor(node.name).to(torch.float32)
    if not value.numel() or not all(map(math.isfinite, map(float, torch.aminmax(value)))):
        raise GuardError(
            "PL511",
            f"weight {node.name}, {node.type}, is empty or holds NaN or infinity and cannot be encoded",
            hint="leave it out with skip, or repair the model",
        )
    if layout == "columns":
        value = value.transpose(-1, -2).contiguous()
    elif layout == "filters":
        value = value.reshape(value.shape[0], -1)
    codec = codec.adapted(value)
    parts = codec.encode(value)
    nbytes = sum(part.numel() * part.element_size() for part in parts.values())
    note = EncodedWeight(
        node.name, codec.spec, nbytes, 8 * nbytes / value.numel(), codec.error(value, parts, node.dtype)
    )
    if nbytes >= int(node.tensor.nbytes):
        return node, note
    recipe = f"{node.name}#{codec.spec}"
    leaves = {k: const(f"{recipe}/{k}", weights.add(f"{recipe}/{k}", part)) for k, part in parts.items()}
    decoded = codec.decode(leaves, tuple(value.shape), node.dtype)
    if layout == "columns":
        rank = node.rank
        decoded = aten.permute(decoded, [*range(rank - 2), rank - 1, rank - 2])
    elif layout == "filters":
        decoded = aten.view(decoded, node.shape)
    return decoded, note
