"""From programs to one Relax module: a function for each program, its kernels and its plain operations shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from tvm import relax, tirx

from planish.backends.tvm import primitive
from planish.backends.tvm.cpu import registry
from planish.backends.tvm.cpu.variant import DEFAULT, Variant
from planish.backends.tvm.dims import Dims
from planish.backends.tvm.fuse import groups
from planish.backends.tvm.gpu import registry as gpu_registry
from planish.backends.tvm.gpu.device import Gpu
from planish.backends.tvm.in_place import written_in_place
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.kernel_cost import kernel_text
from planish.backends.tvm.primitive import Primitive
from planish.backends.tvm.stages import LOOPS
from planish.backends.tvm.stand_in import stand_in
from planish.backends.tvm.table import TVM_DTYPES, storage, table
from planish.ir.kernel import meaning_of
from planish.ir.namespace import aten
from planish.ir.node import Node, Program, topological
from planish.ir.types import DType, Size, Symbol, TensorType, f32, size, symbols_of
from planish.ir.unsupported import refuse_unsupported


@dataclass(frozen=True)
class Entry:
    """A function of a library. Its parameters are ``inputs``, ``states`` and ``weights``, in this order.

    It returns a tuple: the outputs, then the next states in the order of ``next_states``.
    """

    name: str
    inputs: tuple[str, ...]
    states: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    next_states: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lowered:
    """Programs as a Relax module whose plain functions have no schedule yet."""

    module: Any
    entries: Mapping[str, Entry]


def lower(
    programs: Mapping[str, Program], device: Isa | Gpu, chosen: Mapping[str, Variant] | None = None
) -> Lowered:
    """Lower programs into one module; kernels are those of the device.

    ``chosen`` are variants of kernels by their text. Raises ``UnsupportedOpError`` PL251 with everything that cannot be
    lowered.
    """
    for program in programs.values():
        check(program)
    module = _Module(device, chosen or {})
    entries = {name: module.entry(name, program) for name, program in programs.items()}
    return Lowered(module.builder.get(), entries)


def check(program: Program) -> None:
    """Raise ``UnsupportedOpError`` PL251 with every operation and element type that has no form in TVM."""
    refuse_unsupported(program, _unsupported, code="PL251", backend="TVM")


def _unsupported(node: Node) -> list[str]:
    known = node.is_leaf or node.op in table() or node.op.startswith("kernel.")
    kinds = [node.type] if isinstance(node.type, TensorType) else list(node.type.items)
    return ([] if known else [node.op]) + [
        f"element type {k.dtype}" for k in kinds if k.dtype.name not in TVM_DTYPES
    ]


class _Module:
    """The module in the making, with the functions that it has already."""

    def __init__(self, device: Isa | Gpu, chosen: Mapping[str, Variant]) -> None:
        self.device = device
        self.chosen = chosen
        self.builder = relax.BlockBuilder()
        self.known: dict[Any, tuple[Any, Primitive]] = {}
        self.taken: set[str] = set()
        self.nested: dict[Any, Any] = {}

    def name(self, wanted: str) -> str:
        """A name that no function of the module has."""
        name, count = wanted, 1
        while name in self.taken:
            name, count = f"{wanted}_{count}", count + 1
        self.taken.add(name)
        return name

    def primitive(
        self, group: frozenset[Node], root: Node, *, in_place: bool = False
    ) -> tuple[Any, Primitive]:
        """The function of a group: its name in the module, and what it is called with."""
        key = primitive.key(group, root), in_place
        if key not in self.known:
            made = self._build(group, root, in_place)
            name = self.name(
                "_".join(["f", root.op.partition(".")[2]] + (["fused"] if len(group) > 1 else []))
            )
            self.known[key] = (self.add(made.function, name), made)
        variable, made = self.known[key]
        given = root.operands if root.op.startswith("kernel.") else primitive.operands(group, root)
        return variable, Primitive(made.function, given, made.symbols)

    def add(self, function: Any, name: str) -> Any:
        """Add a function of TIR under a name."""
        return self.builder.add_func(function.without_attr("global_symbol"), name)

    def _build(self, group: frozenset[Node], root: Node, in_place: bool) -> Primitive:
        if not root.op.startswith("kernel."):
            return primitive.build(group, root, cpu=self.is_cpu)
        given = root.operands
        function = (self._changing(root) if in_place else self._kernel(root)).with_attr(
            "tirx.is_scheduled", 1
        )
        if self.is_cpu:
            function = function.with_attr(LOOPS, 1)
        # A kernel that needs no more than shapes gives names of its own to sizes such as B*T.
        extra = len(function.params) > len(given) + (0 if in_place else 1)
        return Primitive(function, given, primitive.free_symbols(group, given, root) if extra else ())

    @property
    def is_cpu(self) -> bool:
        """True if the module is for a CPU."""
        return isinstance(self.device, Isa)

    def _builder(self, node: Node) -> Any:
        name = node.op.removeprefix("kernel.")
        return registry.builder(name) if isinstance(self.device, Isa) else gpu_registry.builder(name)

    def _kernel(self, node: Node) -> Any:
        if not isinstance(self.device, Isa):
            return self._builder(node)(stand_in(node), self.device)
        variant = self.chosen.get(kernel_text(node), DEFAULT) if self.chosen else DEFAULT
        return registry.build(stand_in(node), self.device, variant)

    def _changing(self, node: Node) -> Any:
        build = registry.in_place_builder(node.op.removeprefix("kernel."))
        assert build is not None and isinstance(self.device, Isa), node.op
        return build(stand_in(node), self.device)

    def is_kernel(self, node: Node) -> bool:
        """True if a node is computed by a kernel of this backend."""
        return node.op.startswith("kernel.") and self._builder(node) is not None

    def entry(self, name: str, program: Program) -> Entry:
        """Add a program."""
        name = self.name(name)
        self.prepare(program)
        states = program.state_leaves()
        constants = program.constants()
        leaves = (*program.inputs, *states, *constants)
        self.function(name, program, leaves, (), given=len(program.inputs) + len(states))
        return Entry(
            name,
            tuple(n.name for n in program.inputs),
            tuple(n.name for n in states),
            tuple(n.name for n in constants),
            program.output_names or tuple(f"output{i}" for i in range(len(program.outputs))),
            tuple(name for name, _ in program.states),
        )

    def prepare(self, program: Program) -> None:
        """Add the functions of nested programs."""
        from planish.backends.tvm.table_control import add_nested

        for node in program.nodes:
            if any(isinstance(a, Program) for a in node.args):
                add_nested(self, node)

    def function(
        self,
        name: str,
        program: Program,
        leaves: Sequence[Node],
        sizes: Sequence[Symbol],
        given: int | None = None,
    ) -> Any:
        """A Relax function of leaves, then of a shape that holds ``sizes``.

        ``given`` is how many of the leaves differ from call to call; the virtual machine trusts the others.
        """
        dims = _bound(leaves, sizes)
        values: dict[Node, Any] = {}
        used: set[str] = set()
        for leaf in leaves:
            label = _identifier(leaf.name, used)
            values[leaf] = relax.Var(label, tensor_type(dims, leaf.tensor, dims.declared.get(leaf)))
        parameters = list(values.values())
        if sizes:
            parameters.append(relax.Var("sizes", relax.ShapeType([dims.var(s) for s in sizes])))
        attrs: dict[str, Any] = {}
        if given is not None:
            attrs["num_input"] = given
        with self.builder.function(name, parameters, attrs=attrs or None):
            body = Body(self, dims, values)
            outputs = body.lower(program.roots, program.states)
            return self.builder.emit_func_output(self.builder.normalize(relax.Tuple(outputs)))


class _Sizes(Dims):
    """The sizes of a Relax function; some symbols stand for expressions of what the shapes of parameters give."""

    def __init__(self) -> None:
        super().__init__()
        self.declared: dict[Node, list[Any]] = {}


def _bound(leaves: Sequence[Node], sizes: Sequence[Symbol]) -> _Sizes:
    """Variables for all symbols: plain axes, then ``a*s + b`` solved for ``s``."""
    dims = _Sizes()
    bound = {s for leaf in leaves for s in leaf.shape if isinstance(s, Symbol)} | set(sizes)
    for leaf in leaves:
        for axis, want in enumerate(leaf.shape):
            free = symbols_of(want) - bound
            if not free:
                continue
            found = _solved(want, free, dims)
            if found is None:
                continue
            symbol, variable = found
            bound.add(symbol)
            dims.declared.setdefault(leaf, list(leaf.shape))[axis] = variable
    return dims


def _solved(want: Size, free: set[Symbol], dims: _Sizes) -> tuple[Symbol, Any] | None:
    """Bind the one free symbol of ``a*s + b``; gives it and the variable for the whole size."""
    if len(free) != 1:
        return None
    symbol = next(iter(free))
    slope = size(sympy.diff(want, symbol))
    if not isinstance(slope, int) or slope == 0:
        return None
    variable = tirx.Var(f"size{len(dims.vars)}", "int64")
    rest = size(sympy.sympify(want) - slope * symbol)
    dims.vars[symbol] = tirx.floordiv(variable - dims(rest), tirx.IntImm("int64", slope))
    return symbol, variable


def _identifier(name: str, used: set[str]) -> str:
    label = "".join(ch if ch.isalnum() else "_" for ch in name) or "x"
    while label in used:
        label += "_"
    used.add(label)
    return label


def tensor_type(dims: Dims, kind: TensorType, declared: Sequence[Any] | None = None) -> Any:
    """The type of a tensor in Relax."""
    shape = [s if isinstance(s, tirx.Var) else dims(s) for s in declared or kind.shape]
    return relax.TensorType(shape, storage(kind.dtype))


class Body:
    """The body of a Relax function in the making. ``values`` are the nodes computed so far."""

    def __init__(self, module: _Module, dims: Dims, values: dict[Node, Any]) -> None:
        self.module, self.dims, self.values = module, dims, values
        self.builder = module.builder
        self.in_place: frozenset[Node] = frozenset()

    def lower(self, roots: Sequence[Node], states: Sequence[tuple[str, Node]] = ()) -> list[Any]:
        """Bind everything that the roots need, among them the next ``states`` by name; gives their values."""
        simple = _Simpler(self.module)
        wanted = [simple(n) for n in roots]
        if self.module.is_cpu:
            self.in_place = written_in_place([(name, simple(n)) for name, n in states], wanted)
        nodes = [n for n in topological(wanted) if n not in self.values]
        kept = frozenset(wanted)
        for root, group in _ordered(nodes, groups(nodes, kept)):
            self.values[root] = self._value(root, group)
        return [self.values[n] for n in wanted]

    def _value(self, root: Node, group: frozenset[Node]) -> Any:
        row = table().get(root.op)
        if row is not None and row.form == "values":
            return row.emit(self, root)
        return self.call(group, root)

    def call(self, group: frozenset[Node], root: Node) -> Any:
        """Call the function of a group; several results come as a tuple."""
        in_place = root in self.in_place
        variable, made = self.module.primitive(group, root, in_place=in_place)
        out = [tensor_type(self.dims, kind) for kind in primitive.results(root)]
        given = [self.values[n] for n in made.operands]
        given += [self.dims.var(s) for s in made.symbols]
        arguments = relax.Tuple(given)
        if in_place:
            return self.builder.emit(relax.op.call_tir_inplace(variable, arguments, 0, out[0]))
        result = self.builder.emit(relax.call_tir(variable, arguments, out if len(out) > 1 else out[0]))
        if len(out) == 1 and isinstance(root.type, TensorType):
            return result
        if len(out) == 1:
            return (result,)
        return tuple(self.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(out)))

    def reshape(self, value: Any, shape: Sequence[Size]) -> Any:
        """The same elements under another shape, without a copy."""
        return self.builder.emit(
            relax.op.reshape(value, relax.ShapeExpr([_imm(d) for d in self.dims.shape(shape)]))
        )


def _imm(value: Any) -> Any:
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def _ordered(
    nodes: Sequence[Node], found: Mapping[Node, frozenset[Node]]
) -> list[tuple[Node, frozenset[Node]]]:
    return [(n, found[n]) for n in nodes if n in found]


class _Simpler:
    """Replaces operations of the form ``nodes``, and kernels that nothing computes, by what they mean."""

    def __init__(self, module: _Module) -> None:
        self.module = module
        self.found: dict[Node, Node] = {}

    def __call__(self, root: Node) -> Node:
        from planish.ir.namespace import make
        from planish.ir.node import map_operands

        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node in self.found:
                continue
            if node.is_leaf:
                self.found[node] = node
                continue
            if not ready:
                stack.append((node, True))
                stack.extend((o, False) for o in node.operands)
                continue
            args = map_operands(node.args, self.found.__getitem__)
            changed = node if args == node.args else make(node.op, *args)
            simple = self._step(changed)
            self.found[node] = simple if simple is changed else self(simple)
        return self.found[root]

    def _step(self, node: Node) -> Node:
        if node.op.startswith("kernel."):
            return node if self.module.is_kernel(node) else meaning_of(node)
        row = table()[node.op]
        if node.op == "aten.linear" and self.module.is_cpu:
            return _by_columns(node)
        return row.emit(node) if row.form == "nodes" else node


def _by_columns(node: Node) -> Node:
    """A linear layer as a product with the transposed weight: CPUs add vectors faster than they sum along them."""
    x, weight, bias = node.args
    wide = f32 if node.dtype.is_float and node.dtype.bits < 32 else node.dtype
    product = aten.matmul(_as(x, wide), aten.permute(_as(weight, wide), [1, 0]))
    return _as(aten.add(product, _as(bias, wide)) if bias is not None else product, node.dtype)


def _as(node: Node, kind: DType) -> Node:
    made: Node = aten.to(node, kind) if node.dtype is not kind else node
    return made


__all__ = ["Body", "Entry", "Lowered", "check", "lower", "tensor_type"]
