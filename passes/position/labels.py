"""What every value of a program is along its sequence, and why a program is not causal.

A value is *prefix stable* along an axis if its first n rows do not change when more tokens follow. Labels:
``fixed`` (no token and no length reaches it), ``position`` (no token, but the length: tables of positions, masks),
``row`` (one axis of tokens, prefix stable). Attention is where rows meet: it stays ``row`` if no query sees a later
key. Whatever has no rule, or mixes rows, is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from planish.errors import UnsupportedOpError
from planish.ir.dialect import operation
from planish.ir.node import Node, Program
from planish.ir.types import Size, Symbol, symbols_of
from planish.passes.position.axes import follow, routes, rows_of


class Label(Enum):
    """How a value depends on the tokens of a sequence."""

    FIXED = "fixed"
    GIVEN = "given"
    POSITION = "position"
    ROW = "row"


@dataclass(frozen=True)
class Sequence:
    """A program seen along one length: the symbol, which inputs hold a row for each token, labels of all nodes."""

    program: Program
    length: Symbol
    batch: Any
    tokens: tuple[Node, ...]
    labels: dict[Node, Label]
    attentions: tuple[Node, ...]

    def rows(self, node: Node) -> tuple[int, ...]:
        """The axes of a node along the sequence."""
        return rows_of(node.shape, self.length)


def sequence_of(program: Program) -> Sequence:
    """Label a program; raises ``UnsupportedOpError`` PL260 with the operation that is not causal, and its source.

    The sequence is that of the last axis but one of the first output; the batch is the first axis.
    """
    output = program.outputs[0]
    length = output.shape[-2] if output.rank == 3 else None
    if not isinstance(length, Symbol):
        raise UnsupportedOpError(
            "PL261", f"the first output is {output.type}, not [batch, length, vocabulary] of a free length",
            hint="capture the model with a dynamic length: dynamic_shapes={'input_ids': {1: 'T'}}",
        )  # fmt: skip
    tokens = tuple(leaf for leaf in program.inputs if rows_of(leaf.shape, length))
    batch = output.shape[0]
    labels: dict[Node, Label] = {}
    places: dict[Node, tuple[int, Size]] = {}
    attentions = []
    for node in program.nodes:
        labels[node] = label = _label(node, labels, tokens, length)
        if label in (Label.ROW, Label.POSITION):
            _check(program, node, label, labels, length)
        if label is Label.ROW:
            places[node] = _place(program, node, labels, places, length)
        if label is Label.ROW and node.op == "planish.attention" and rows_of(node.args[1].shape, length):
            attentions.append(node)
    if labels[output] is not Label.ROW:
        raise refused(program, output, "does not depend on the tokens")
    return Sequence(program, length, batch, tokens, labels, tuple(attentions))


def _label(node: Node, labels: dict[Node, Label], tokens: tuple[Node, ...], length: Symbol) -> Label:
    if node in tokens:
        return Label.ROW
    if node.op == "input":
        return Label.GIVEN
    if node.is_leaf:
        return Label.FIXED
    found = {labels[o] for o in node.operands}
    if Label.ROW in found:
        return Label.ROW
    if Label.POSITION in found or length in symbols_of(node.args):
        return Label.POSITION
    return Label.GIVEN if Label.GIVEN in found else Label.FIXED


def _check(program: Program, node: Node, label: Label, labels: dict[Node, Label], length: Symbol) -> None:
    """Raise unless the node is prefix stable along every axis of the sequence."""
    if node.is_leaf:
        return
    if any(isinstance(a, Program) for a in node.args):
        raise refused(program, node, "has nested programs")
    _check_lengths(program, node, length)
    if node.op == "planish.attention" and rows_of(node.args[1].shape, length):
        _check_attention(program, node, labels, length)
    found = routes(node)
    if found is None:
        if label is Label.POSITION:
            return  # evaluated at full length, where a prefix is seen to be stable or not
        raise refused(program, node, "has no rule along a sequence")


def _place(
    program: Program,
    node: Node,
    labels: dict[Node, Label],
    places: dict[Node, tuple[int, Size]],
    length: Symbol,
) -> tuple[int, Size]:
    """The axis of a node that holds the rows of tokens, and elements of it for each row; PL260 if there is none."""
    mine = rows_of(node.shape, length)
    if len(mine) != 1:
        where = "two axes" if mine else "no axis"
        raise refused(program, node, f"gives {node.type}, which has {where} of the sequence")
    if node.is_leaf:
        return mine[0], 1
    found: set[tuple[int, Size]] = set()
    for operand, route in routes(node) or ():
        for axis in rows_of(operand.shape, length):
            if _meets(node, operand):
                continue
            at, inner = places.get(operand, (axis, 1))
            if node.op == "aten.view":
                to = follow(operand.shape, node.shape, at, inner, length)
            else:
                to = None if route[at] is None else (int(route[at] or 0), inner)
            if to is None or to[0] != mine[0]:
                raise refused(program, node, f"mixes rows of the sequence: axis {axis} of {operand.type}")
            found.add(to)
    if len(found) != 1:
        raise refused(program, node, f"gives {node.type} from rows that do not line up")
    return found.pop()


def _meets(node: Node, operand: Node) -> bool:
    """True for keys, values and masks of attention: where rows are allowed to meet."""
    return node.op == "planish.attention" and operand in node.operands[1:]


def _check_lengths(program: Program, node: Node, length: Symbol) -> None:
    """The length itself may shape values and count positions; arithmetic on it is not prefix stable."""
    parameters = operation(node.op).parameters
    for parameter, value in zip(parameters, node.args, strict=False):
        if parameter.kind in ("operand", "number", "float", "any") and not isinstance(value, Node):
            if length in symbols_of(value) and not (node.op == "aten.arange" and parameter.name == "end"):
                raise refused(program, node, f"computes with the length {length}")


def _check_attention(program: Program, node: Node, labels: dict[Node, Label], length: Symbol) -> None:
    q, k, v, mask, causal = node.args[:5]
    if not causal:
        raise refused(program, node, "is not causal: queries see later keys")
    if q.rank != 4 or k.rank != 4 or rows_of(k.shape, length) != (2,) or rows_of(v.shape, length) != (2,):
        raise refused(program, node, "needs keys [batch, heads, length, channels]")
    if k.shape[2] != length or v.shape[2] != length:
        raise refused(program, node, f"has keys of {k.type}, not one for each token")
    if mask is not None and labels[mask] is Label.ROW:
        raise refused(program, node, "has a mask that depends on tokens (capture without a padding mask)")


def refused(program: Program, node: Node, why: str) -> UnsupportedOpError:
    """The error for a node that is not causal, with the user's source line where it is known."""
    origin = program.origins.get(node)
    where = (
        origin.source
        if origin is not None and origin.source
        else (origin.scope if origin is not None else None)
    )
    return UnsupportedOpError(
        "PL260", f"{node.op} {why}", where=where or None,
        hint="a cache needs a program in which no row depends on later tokens",
    )  # fmt: skip
