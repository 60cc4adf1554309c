"""Results of tuple-typed operations, branches and loops.

A nested program becomes a function of its inputs, of the constants that it reads, and of a shape that holds the sizes
which no shape of these tells. A branch is a call of one of two functions. A loop is a function of a range of steps:
a range of one step runs the body, a longer one is split in two, so that calls nest only as deep as a logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.dims import Dims
from planish.backends.tvm.stages import LOOPS
from planish.backends.tvm.table import lowers, storage
from planish.ir.namespace import aten
from planish.ir.node import Node, Program, input_leaf
from planish.ir.types import Symbol, TensorType, symbols_of


@dataclass(frozen=True)
class Nested:
    """A function of a nested program: its name, the constants and the sizes that follow the inputs."""

    function: Any
    constants: tuple[Node, ...]
    sizes: tuple[Symbol, ...]


@lowers("planish.item", form="values")
def _item(body: Any, node: Node) -> Any:
    value, index = node.args
    return body.values[value][index]


def add_nested(module: Any, node: Node) -> None:
    """Add the functions of the programs that stand in a node."""
    for program in (a for a in node.args if isinstance(a, Program)):
        if program in module.nested:
            continue
        module.prepare(program)
        constants = program.constants()
        leaves = (*program.inputs, *constants)
        sizes = _unbound(leaves, program.symbols)
        function = module.function(module.name(program.name), program, leaves, sizes)
        module.nested[program] = Nested(function, constants, sizes)


def _unbound(leaves: Sequence[Node], symbols: Sequence[Symbol]) -> tuple[Symbol, ...]:
    bound = {s for leaf in leaves for s in leaf.shape if isinstance(s, Symbol)}
    return tuple(s for s in symbols if s not in bound)


def _arguments(body: Any, nested: Nested, operands: Sequence[Any]) -> list[Any]:
    given = [*operands, *(body.values[n] for n in nested.constants)]
    return [*given, relax.ShapeExpr([body.dims.var(s) for s in nested.sizes])] if nested.sizes else given


def _tuple(body: Any, call: Any, kinds: Sequence[TensorType]) -> tuple[Any, ...]:
    """The parts of a tuple that a function returns, with their types."""
    from planish.backends.tvm.lower import tensor_type

    made = body.builder.emit(call)
    parts = [body.builder.emit(relax.TupleGetItem(made, i)) for i in range(len(kinds))]
    return tuple(
        body.builder.match_cast(p, tensor_type(body.dims, k)) for p, k in zip(parts, kinds, strict=True)
    )


def _branch(call: Any) -> Any:
    """A call as the body of a branch."""
    result = relax.Var("result", call.ty)
    return relax.SeqExpr([relax.BindingBlock([relax.VarBinding(result, call)])], result)


def _if(body: Any, condition: Any, then: Any, otherwise: Any) -> Any:
    calls = [body.builder.normalize(c) for c in (then, otherwise)]
    return relax.If(condition, _branch(calls[0]), _branch(calls[1]))


@lowers("planish.cond", form="values")
def _cond(body: Any, node: Node) -> Any:
    predicate, then, otherwise, operands = node.args
    condition = body.values[predicate]
    if predicate.rank:
        condition = body.reshape(condition, ())
    given = [body.values[n] for n in operands]
    calls = []
    for program in (then, otherwise):
        nested = body.module.nested[program]
        calls.append(relax.Call(nested.function, _arguments(body, nested, given)))
    return _tuple(body, _if(body, condition, *calls), node.type.items)  # type: ignore[union-attr]


# Loops


@dataclass(frozen=True)
class _Loop:
    """What the functions of a loop take after their range: carried values, then what every step shares."""

    carried: tuple[TensorType, ...]
    xs: tuple[TensorType, ...]
    stacked: tuple[TensorType, ...]
    others: tuple[TensorType, ...]
    sizes: tuple[Symbol, ...]

    @property
    def types(self) -> tuple[TensorType, ...]:
        """The types of all parameters that are tensors."""
        return (*self.carried, *self.xs, *self.stacked, *self.others)


@lowers("planish.scan", form="values")
def _scan(body: Any, node: Node) -> Any:
    program, initial, xs, extra = node.args
    nested = body.module.nested[program]
    kinds = node.type.items  # type: ignore[union-attr]
    stacked = kinds[len(initial) :]
    loop = _Loop(
        tuple(n.type for n in initial),
        tuple(n.type for n in xs),
        stacked,
        tuple(n.type for n in (*extra, *nested.constants)),
        (),
    )
    symbols = sorted(symbols_of(loop.types) | set(nested.sizes), key=lambda s: (s.name, s.low, s.high))
    loop = _Loop(loop.carried, loop.xs, loop.stacked, loop.others, _unbound(_leaves(loop), symbols))
    function = _loop_function(body.module, node, loop, nested)
    results = [_empty(body, kind) for kind in stacked]
    given = [body.values[n] for n in (*initial, *xs)] + results
    given += [body.values[n] for n in (*extra, *nested.constants)]
    length = body.dims(xs[0].shape[0])
    sizes = [body.dims.var(s) for s in loop.sizes]
    call = relax.Call(function, [relax.ShapeExpr([_whole(0), _whole(length), *sizes]), *given])
    return (*_tuple(body, call, loop.carried), *results)


def _whole(value: Any) -> Any:
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def _empty(body: Any, kind: TensorType) -> Any:
    node = aten.full(list(kind.shape), 0, kind.dtype)
    return body.call(frozenset({node}), node)


def _leaves(loop: _Loop) -> tuple[Node, ...]:
    return tuple(input_leaf(f"p{i}", kind) for i, kind in enumerate(loop.types))


def _loop_function(module: Any, node: Node, loop: _Loop, nested: Nested) -> Any:
    """The function of a loop in the module; one for each node."""
    if node in module.nested:
        return module.nested[node]
    name = module.name("loop")
    declared = _Parameters(loop)
    result = relax.TupleType([declared.type(k) for k in loop.carried])
    empty = relax.Function.create_empty(declared.all, result, is_pure=False)
    itself = module.builder.add_func(empty, name)
    step = _step(module, module.name(f"{name}_step"), loop, nested)
    split = _split(module, module.name(f"{name}_split"), loop, itself)
    made = _choice(module, module.name(f"{name}_range"), loop, step, split)
    module.builder.update_func(itself, relax.utils.copy_with_new_vars(made[1]))
    module.nested[node] = made[0]
    return made[0]


class _Parameters:
    """Parameters of a function of a loop: the range and the sizes as a shape, then tensors."""

    def __init__(self, loop: _Loop) -> None:
        self.loop, self.dims = loop, Dims()
        self.begin, self.end = tirx.Var("begin", "int64"), tirx.Var("end", "int64")
        sizes = [self.dims.var(s) for s in loop.sizes]
        self.range = relax.Var("range", relax.ShapeType([self.begin, self.end, *sizes]))
        self.sizes = sizes
        self.tensors = [relax.Var(f"p{i}", self.type(k)) for i, k in enumerate(loop.types)]
        self.all = [self.range, *self.tensors]
        counts = [len(loop.carried), len(loop.xs), len(loop.stacked), len(loop.others)]
        parts, at = [], 0
        for count in counts:
            parts.append(self.tensors[at : at + count])
            at += count
        self.carried, self.xs, self.stacked, self.others = parts

    def type(self, kind: TensorType) -> Any:
        """The type of a tensor in Relax."""
        from planish.backends.tvm.lower import tensor_type

        return tensor_type(self.dims, kind)

    def shape(self, begin: Any, end: Any) -> Any:
        """The first argument of a function of the loop."""
        return relax.ShapeExpr([begin, end, *self.sizes])


def _finish(builder: Any, results: Sequence[Any]) -> Any:
    return builder.emit_func_output(builder.normalize(relax.Tuple(list(results))))


def _items(builder: Any, value: Any, count: int) -> list[Any]:
    return [builder.emit(relax.TupleGetItem(value, i)) for i in range(count)]


def _step(module: Any, name: str, loop: _Loop, nested: Nested) -> Any:
    """One step: takes a row of each sequence, runs the body, puts its rows into the results."""
    p, builder = _Parameters(loop), module.builder
    with builder.function(name, p.all):
        rows = []
        for x, kind in zip(p.xs, loop.xs, strict=True):
            row = TensorType(kind.dtype, kind.shape[1:])
            take = module.add(_take(kind, p.begin), module.name("take"))
            rows.append(builder.emit(relax.call_tir(take, relax.Tuple([x, p.begin]), p.type(row))))
        count = len(p.others) - len(nested.constants)
        given = [*p.carried, *rows, *p.others[:count], *p.others[count:]]
        if nested.sizes:
            given.append(relax.ShapeExpr([p.dims.var(s) for s in nested.sizes]))
        made = builder.emit(relax.Call(nested.function, given))
        found = _items(builder, made, len(loop.carried) + len(loop.stacked))
        for target, value, kind in zip(p.stacked, found[len(loop.carried) :], loop.stacked, strict=True):
            put = module.add(_put(kind), module.name("put"))
            arguments = relax.Tuple([target, value, p.begin])
            builder.emit(relax.op.call_tir_inplace(put, arguments, 0, p.type(kind)))
        return _finish(builder, found[: len(loop.carried)])


def _split(module: Any, name: str, loop: _Loop, itself: Any) -> Any:
    """Two halves of a range, one after the other."""
    p, builder = _Parameters(loop), module.builder
    with builder.function(name, p.all):
        middle = tirx.floordiv(p.begin + p.end, tirx.IntImm("int64", 2))
        shared = [*p.xs, *p.stacked, *p.others]
        first = builder.emit(relax.Call(itself, [p.shape(p.begin, middle), *p.carried, *shared]))
        between = _items(builder, first, len(loop.carried))
        second = builder.emit(relax.Call(itself, [p.shape(middle, p.end), *between, *shared]))
        return _finish(builder, _items(builder, second, len(loop.carried)))


def _choice(module: Any, name: str, loop: _Loop, step: Any, split: Any) -> tuple[Any, Any]:
    """A range of one step or of more; one without steps changes nothing."""
    p, builder = _Parameters(loop), module.builder
    nothing = _nothing(module, module.name(f"{name}_none"), loop)
    more = _more(module, module.name(f"{name}_some"), loop, step, split)
    with builder.function(name, p.all):
        test = module.add(_test(lambda begin, end: begin < end), module.name("some"))
        condition = builder.emit(
            relax.call_tir(test, relax.Tuple([p.begin, p.end]), relax.TensorType((), "bool"))
        )
        body = _BuilderOnly(builder)
        made = builder.emit(_if(body, condition, relax.Call(more, p.all), relax.Call(nothing, p.all)))
        variable = _finish(builder, _items(builder, made, len(loop.carried)))
    return variable, builder.get()[variable]


def _more(module: Any, name: str, loop: _Loop, step: Any, split: Any) -> Any:
    p, builder = _Parameters(loop), module.builder
    with builder.function(name, p.all):
        test = module.add(_test(lambda begin, end: end - begin > 1), module.name("many"))
        condition = builder.emit(
            relax.call_tir(test, relax.Tuple([p.begin, p.end]), relax.TensorType((), "bool"))
        )
        made = builder.emit(
            _if(_BuilderOnly(builder), condition, relax.Call(split, p.all), relax.Call(step, p.all))
        )
        return _finish(builder, _items(builder, made, len(loop.carried)))


def _nothing(module: Any, name: str, loop: _Loop) -> Any:
    p, builder = _Parameters(loop), module.builder
    with builder.function(name, p.all):
        return _finish(builder, p.carried)


@dataclass(frozen=True)
class _BuilderOnly:
    builder: Any


def _test(condition: Any) -> Any:
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": 1, LOOPS: 1})
        begin = T.arg("begin", tirx.Var("begin", "int64"))
        end = T.arg("end", tirx.Var("end", "int64"))
        out = T.arg("out", T.Buffer((), "bool"))
        T.buffer_store(out, condition(begin, end), [])
    return builder.get()


def _loops(sizes: Sequence[Any], body: Any) -> None:
    from planish.backends.tvm.table_scatter import nest

    nest(sizes, body)


def _take(kind: TensorType, at: Any) -> Any:
    """A row of a sequence."""
    dims = Dims()
    shape = tuple(_whole(s) for s in dims.shape(kind.shape))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": 1, LOOPS: 1})
        x = T.arg("x", T.Buffer(shape, storage(kind.dtype)))
        begin = T.arg("begin", tirx.Var("begin", "int64"))
        out = T.arg("out", T.Buffer(shape[1:], storage(kind.dtype)))
        _loops(shape[1:], lambda index: T.buffer_store(out, x[(begin, *index)], list(index)))
    return builder.get()


def _put(kind: TensorType) -> Any:
    """A row written into a result, in place."""
    dims = Dims()
    shape = tuple(_whole(s) for s in dims.shape(kind.shape))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": 1, LOOPS: 1})
        out = T.arg("out", T.Buffer(shape, storage(kind.dtype)))
        row = T.arg("row", T.Buffer(shape[1:], storage(kind.dtype)))
        begin = T.arg("begin", tirx.Var("begin", "int64"))
        _loops(
            shape[1:],
            lambda index: T.buffer_store(out, row[tuple(index)] if index else row[()], [begin, *index]),
        )
    return builder.get()
