"""``re-encode-positions``: rows of a cache move to other positions without being computed again.

A key that was rotated for one position is rotated by the difference to another one. From it follows PIE
("Let the Code LLM Edit Itself When You Edit the Code", arXiv 2407.03157): after an edit only new tokens are encoded,
later keys are moved. What deeper layers have seen of the edited tokens stays as it was: that part is approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planish.errors import UnsupportedOpError
from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program, input_leaf
from planish.ir.rule import Decline, rule
from planish.ir.types import TensorType, i64
from planish.ir.weights import Weights
from planish.passes.position.cache import Cached
from planish.passes.position.labels import Label, Sequence
from planish.passes.position.places import Places

FIRST, BY = "first", "by"
TOLERANCE = 1e-5
"""How well tables of cosines and sines must be those of angles that grow evenly, relative to their largest value."""


@rule(
    lambda x, c, s, cos, sin, interleaved: planish.rope(
        planish.rope(x, c, s, interleaved), cos, sin, interleaved
    ),
    kind="close",
    tolerance=1e-5,
    example={
        "x": "f32[B, 4, T, 16]",
        "c": "f32[T, 8]",
        "s": "f32[T, 8]",
        "cos": "f32[T, 8]",
        "sin": "f32[T, 8]",
        "interleaved": False,
    },
)
def compose_rotations(x: Node, c: Node, s: Node, cos: Node, sin: Node, interleaved: bool) -> Node:
    """rope(rope(x, c, s), cos, sin) = rope(x, c*cos - s*sin, s*cos + c*sin)"""
    if c.shape[-1] != cos.shape[-1]:
        raise Decline("the two rotations turn different channels")
    new_cos = aten.sub(aten.mul(c, cos), aten.mul(s, sin))
    return planish.rope(x, new_cos, aten.add(aten.mul(s, cos), aten.mul(c, sin)), interleaved)


@dataclass(frozen=True)
class _Rotation:
    """How the keys of an attention are rotated: nodes of tables for the rows of the source program."""

    cos: Node
    sin: Node
    interleaved: bool
    length: float
    """What a pair of cosine and sine is long: a factor that some models multiply into them."""


def move_program(cached: Cached, weights: Weights) -> Program:
    """The entry point ``move(first i64[B], by i64[B])``: rows ``first`` and later of every cache move by ``by`` rows.

    Keys are rotated by the difference of their angles; what stood between is overwritten, or left to be put anew.
    Raises ``UnsupportedOpError`` PL263 if positions reach the model otherwise than by rotation or biases of attention,
    or a cache is a ring.
    """
    sequence = cached.sequence
    _only_rotated(sequence)
    if cached.generation["rings"]:
        raise UnsupportedOpError(
            "PL263", f"rows of a ring cannot be moved: {', '.join(sorted(cached.generation['rings']))}",
            hint="make the caches with rings=False",
        )  # fmt: skip
    decode = cached.module["decode"]
    batch = decode.inputs[-1].shape[0]
    first, by = (input_leaf(name, TensorType(i64, (batch,))) for name in (FIRST, BY))
    capacity = int(cached.generation["context"])
    rows = aten.arange(0, capacity)
    moved = aten.ge(aten.view(rows, [1, capacity]), aten.view(aten.add(first, by), [batch, 1]))
    origin = aten.sub(aten.view(rows, [1, capacity]), aten.view(by, [batch, 1]))
    source = aten.clamp(
        aten.where(moved, origin, aten.expand(aten.view(rows, [1, capacity]), moved.shape)), 0, capacity - 1
    )
    here = aten.expand(aten.view(rows, [1, capacity]), moved.shape)
    old, new = (_places(sequence, weights, batch, capacity, at) for at in (source, here))
    rotations = {name: _rotation(sequence, node, weights) for name, node in cached.sources.items()}
    states: list[tuple[str, Node]] = []
    for name, after in decode.states:
        if after.op != "planish.put":
            states.append((name, after))
            continue
        leaf = after.args[0]
        shape = leaf.shape
        lead = [batch, *[1] * (leaf.rank - 3)]
        index = aten.expand(aten.view(source, [*lead, capacity, 1]), shape)
        made = aten.gather(leaf, leaf.rank - 2, index)
        rotation = rotations.get(name)
        if rotation is not None:
            cos, sin = _between(rotation, old, new, cached.sources[name])
            turned = planish.rope(made, cos, sin, rotation.interleaved)
            made = aten.where(aten.view(moved, [*lead, capacity, 1]), turned, made)
        states.append((name, made))
    return Program("move", (first, by), (), tuple(states), {}, ())


def _places(sequence: Sequence, weights: Weights, batch: Any, capacity: int, positions: Node) -> Places:
    """Values of positions at the rows of a cache: ``positions`` is ``i64[B, C]``."""
    begin = input_leaf("nowhere", TensorType(i64, (batch,)))
    made = Places(sequence, weights, batch, capacity, max(capacity, 2), begin)
    made.positions = aten.view(positions, [made.total])
    return made


def _between(rotation: _Rotation, before: Places, after: Places, keys: Node) -> tuple[Node, Node]:
    """Cosines and sines of the rotation from one position to another, for every row of a cache.

    They are made of the entries of both positions, not of the difference: tables hold angles that are rounded, by
    1e-4 at position 2048, and keys that are computed anew have the same ones.
    """
    c, s = (before.rows_for(table, keys) for table in (rotation.cos, rotation.sin))
    cos, sin = (
        aten.mul(after.rows_for(table, keys), 1 / rotation.length**2)
        for table in (rotation.cos, rotation.sin)
    )
    return (
        aten.add(aten.mul(cos, c), aten.mul(sin, s)),
        aten.sub(aten.mul(sin, c), aten.mul(cos, s)),
    )


def _rotation(sequence: Sequence, node: Node, weights: Weights) -> _Rotation | None:
    """How the rows of a cache are rotated; None if they carry no position."""
    if node.op != "planish.rope":
        return None
    _, cos, sin, interleaved = node.args
    return _Rotation(cos, sin, interleaved, _evenly(sequence, node, weights))


def _evenly(sequence: Sequence, rope: Node, weights: Weights) -> float:
    """The common length of all pairs of the tables, if they are those of angles that grow evenly with the position."""
    import torch

    places = Places(sequence, weights, 1, 1, 2, input_leaf("nowhere", TensorType(i64, (1,))))
    length = min(257, sequence.length.high)
    cos, sin = (places.evaluated(rope.args[i], length).double().reshape(length, -1) for i in (1, 2))
    factor = float(cos[0].abs().max())
    table = torch.complex(cos, sin) / factor
    steps = length // 2
    turned = table[:steps, None] * table[None, :steps]
    want = table[torch.arange(steps)[:, None] + torch.arange(steps)[None, :]]
    if not float((turned - want).abs().max()) <= TOLERANCE * max(1.0, length / 64):
        raise UnsupportedOpError(
            "PL263", f"the tables of {rope.type} are not those of angles that grow evenly"
        )
    return factor


def _only_rotated(sequence: Sequence) -> None:
    """Raise unless positions reach rows of tokens by rotations of queries and keys and by biases alone."""
    turned = {n.args[i] for n in sequence.attentions for i in (0, 1)}
    for node in sequence.program.nodes:
        if sequence.labels[node] is not Label.ROW:
            continue
        for place, operand in enumerate(node.operands):
            if sequence.labels[operand] is not Label.POSITION:
                continue
            rotates = node.op == "planish.rope" and place > 0 and node in turned
            if not rotates and not (node.op == "planish.attention" and place == 3):
                origin = sequence.program.origins.get(node)
                raise UnsupportedOpError(
                    "PL263", f"{node.op} reads positions into {node.type}: its rows cannot be moved",
                    where=origin.source if origin is not None else None,
                    hint="learned positions are part of what every later layer computes",
                )  # fmt: skip


__all__ = ["BY", "FIRST", "compose_rotations", "move_program"]
