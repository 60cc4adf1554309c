"""Operations on coded weights: kernels of ONNX Runtime that read codes, and decoding where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planish.backends.ort.graph import ONNX_TYPES, OPSET, Graph
from planish.backends.ort.options import OrtOptions
from planish.backends.ort.storage import Storage
from planish.backends.ort.table_quantized import dequantized, unpack
from planish.backends.ort.weights import Coded, Layout, block_of, coded, is_constant
from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program


@dataclass(frozen=True)
class Site:
    """Where a choice is written: the graph, the storage, the options, and constant expressions at load."""

    graph: Graph
    storage: Storage
    options: OrtOptions
    in_load: Callable[[Node], str]


@dataclass(frozen=True)
class Choice:
    """How a node is written in place of its row, from other operands."""

    operands: tuple[Node, ...]
    emit: Callable[..., str]


def choose(program: Program) -> Mapping[Node, Choice]:
    """The nodes of a program that are written otherwise than by their rows."""
    found: dict[Node, Choice] = {}
    for node in program.nodes:
        choice = None
        if node.op == "aten.linear":
            choice = _linear(node)
        elif node.op == "aten.embedding":
            choice = _embedding(node)
        elif node.op == "planish.dequant":
            choice = _stored_codes(node)
        if choice is not None:
            found[node] = choice
    return found


# Quantized weights


def kernel_bits(bits: int, options: OrtOptions) -> int:
    """The width in which ``MatMulNBits`` reads codes: 4 or 8, or 2 with whole-number activations.

    With exact activations it decodes 2-bit weights anew in each call: 17 times slower for one token.
    """
    if bits <= 2 and options.activation_bits == 8:
        return 2
    return 4 if bits <= 4 else 8


def _linear(node: Node) -> Choice | None:
    """linear(x, dequant(unpack(codes, bits), scale, zero, group), b) = MatMulNBits."""
    x, weight, bias = node.args
    found = coded(weight)
    block = block_of(found) if found is not None else None
    if found is None or block is None or x.dtype.name != "f32":
        return None

    def emit(site: Site, value: str, shift: str | None = None) -> str:
        layout = Layout(found, site.storage, site.in_load, kernel_bits(found.bits, site.options), block)
        g = site.graph
        row = g.op("Unsqueeze", value, g.ints(0)) if x.rank == 1 else value
        out = g.contrib(
            "MatMulNBits", row, layout.codes(), layout.scale(g), layout.zeros(g), None, shift,
            K=found.length, N=found.rows, bits=layout.bits, block_size=block,
            accuracy_level=4 if site.options.activation_bits == 8 else None,
        )  # fmt: skip
        if found.has_offset:
            out = g.op(
                "Add", out, g.contrib("FusedMatMul", _group_sums(g, row, found), layout.offset(), transB=1)
            )
        return g.op("Squeeze", out, g.ints(0)) if x.rank == 1 else out

    return Choice((x,) if bias is None else (x, bias), emit)


def _group_sums(g: Graph, x: str, weight: Coded) -> str:
    """The sum over each group of inputs: what multiplies a zero that the kernel does not take."""
    room = weight.groups * weight.group - weight.length
    if room:
        x = g.op("Pad", x, g.ints(0, room), None, g.ints(-1))
    lead = g.op("Shape", x, start=0, end=-1)
    shape = g.op("Concat", lead, g.ints(weight.groups, weight.group), axis=0)
    return g.op("ReduceSum", g.op("Reshape", x, shape), g.ints(-1), keepdims=0)


def _embedding(node: Node) -> Choice | None:
    """embedding(dequant(unpack(codes, bits), scale, zero, group), ids) = GatherBlockQuantized.

    Where that operator does not take the codes, rows of codes are gathered first and decoded after.
    """
    table, ids = node.args
    found = coded(table)
    if found is None:
        return None
    fits = found.bits in (2, 4, 8) and found.group == block_of(found) and found.length % found.group == 0
    zero = found.whole_number_zero
    if not fits or not (found.packable_zeros or zero == 2 ** (found.bits - 1)):
        return _gathered_rows(node, found)

    def emit(site: Site, index: str) -> str:
        layout = Layout(found, site.storage, site.in_load, found.bits, found.group)
        g = site.graph
        index = index if ids.dtype.name in ("i32", "i64") else g.cast(index, "i64")
        return g.contrib(
            "GatherBlockQuantized", site.storage.constant(found.codes.name), index, layout.scale(g), layout.zeros(g),
            bits=found.bits, block_size=found.group, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    return Choice((ids,), emit)


def _gathered_rows(node: Node, weight: Coded) -> Choice | None:
    """embedding(dequant(unpack(codes)), ids) = dequant(unpack(embedding(codes, ids)), embedding(scale, ids))."""
    ids = node.args[1]
    parts = [weight.scale] + ([weight.zero] if isinstance(weight.zero, Node) else [])
    if any(p.shape[0] != weight.rows for p in parts) or ids.rank == 0:
        return None
    codes = aten.embedding(weight.codes, ids)
    if weight.bits != 8:
        codes = planish.unpack(codes, weight.bits, weight.length)
    zero = weight.zero
    if isinstance(zero, Node):
        if zero.op == "planish.unpack":
            zero = planish.unpack(aten.embedding(zero.args[0], ids), *zero.args[1:])
        else:
            zero = aten.embedding(zero, ids)
    rows = planish.dequant(codes, aten.embedding(weight.scale, ids), zero, weight.group, node.dtype)
    return Choice((rows,), lambda site, value: value)


def _stored_codes(node: Node) -> Choice | None:
    """A dequant of constants that no kernel takes: its codes in an element type that DequantizeLinear reads."""
    codes = node.args[0]
    if codes.op != "planish.unpack" or codes.args[0].op != "const" or not is_constant(node):
        return None
    packed, bits, length = codes.args
    if not all(isinstance(s, int) for s in codes.shape):
        return None
    direct = bits in (2, 4) and length * bits % 8 == 0
    parts = tuple(n for n in node.args[1:3] if isinstance(n, Node))

    def emit(site: Site, *statistics: str) -> str:
        if direct:
            kind = f"u{bits}"
            site.graph.require(25 if bits == 2 else OPSET)
            value = site.storage.view(packed.name, kind, ONNX_TYPES[kind], codes.shape)
        else:
            kind, lead = "u8", codes.shape[:-1]
            value = site.storage.loaded(
                f"{packed.name}@u8", kind, codes.shape,
                lambda g: unpack(g, site.in_load(packed), lead, bits, length),
            )  # fmt: skip
        return dequantized(site.graph, node, value, kind, *statistics)

    return Choice(parts, emit)
