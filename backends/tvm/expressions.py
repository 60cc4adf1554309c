"""Elements of fused values as scalar expressions of TIR, each computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
from tvm import ir, te, tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.dims import Dims
from planish.backends.tvm.table import computed, main_dtype, storage, table
from planish.ir.dialect import operation
from planish.ir.node import Node
from planish.ir.types import DType

Index = tuple[Any, ...]


def literal(value: Any, kind: str) -> Any:
    """A number as a constant of an element type of TVM; floating point takes ``inf`` and ``nan``."""
    if kind == "bool":
        return tirx.const(bool(value), "bool")
    if kind.startswith(("int", "uint")):
        bits = int(kind.lstrip("uint"))
        whole = int(value) & ((1 << bits) - 1)
        if not kind.startswith("u") and whole >> (bits - 1):
            whole -= 1 << bits
        return tirx.const(whole, kind)
    return tirx.const(float(value), kind)


def cast(value: Any, kind: str) -> Any:
    """``value`` in another element type; floating point becomes an integer by truncation, bool is ``!= 0``."""
    have = str(value.ty)
    if have == kind:
        return value
    if "bfloat16" in (have, kind):
        return _cast_bf16(value, have, kind)
    if kind == "bool":
        return unequal(value, literal(0, have))
    if have == "bool":
        return tirx.Select(value, literal(1, kind), literal(0, kind))
    if have.startswith("float") and kind.startswith(("int", "uint")) and kind != "int64":
        return tirx.Cast(kind, tirx.Cast("int64", value))  # wraps, as torch does
    return tirx.Cast(kind, value)


def unequal(a: Any, b: Any) -> Any:
    """True where two numbers differ, or one is NaN, which TVM's comparison denies."""
    differ = tirx.NE(a, b)
    if not str(a.ty).startswith("float"):
        return differ
    for each in (a, b):
        is_number = isinstance(each, tirx.FloatImm) and not math.isnan(each.value)
        differ = differ if is_number else tirx.any(differ, tirx.isnan(each))
    return differ


def _cast_bf16(value: Any, have: str, kind: str) -> Any:
    """By its bits: TVM's own casts of this type are lost in statements that bind names. Rounds half to even."""
    wide = "uint32"
    if have == "bfloat16":
        return cast(_widened(value), kind)
    value = cast(value, "float32")
    bits = tirx.reinterpret(wide, value)
    odd = tirx.bitwise_and(tirx.shift_right(bits, literal(16, wide)), literal(1, wide))
    rounded = tirx.shift_right(bits + (odd + literal(0x7FFF, wide)), literal(16, wide))
    rounded = tirx.Select(tirx.isnan(value), literal(0x7FC0, wide), rounded)
    return tirx.reinterpret("bfloat16", tirx.Cast("uint16", rounded))


def _widened(value: Any) -> Any:
    """A value of bf16 as f32. Bits are taken of what is read or rounded: TVM makes f32 of a choice between values."""
    if isinstance(value, tirx.FloatImm):
        return literal(value.value, "float32")
    if isinstance(value, tirx.Let):
        return tirx.Let(value.var, value.value, _widened(value.body))
    if isinstance(value, tirx.Select):
        return tirx.Select(value.condition, _widened(value.true_value), _widened(value.false_value))
    name = value.op.name if isinstance(value, ir.Call) else ""
    if name == "prim.if_then_else":
        condition, yes, no = value.args
        return tirx.if_then_else(condition, _widened(yes), _widened(no))
    bits = value.args[0] if name == "tirx.reinterpret" else tirx.reinterpret("uint16", value)
    shifted = tirx.shift_left(tirx.Cast("uint32", bits), literal(16, "uint32"))
    return tirx.reinterpret("float32", shifted)


def as_expression(value: Any, kind: str = "int64") -> Any:
    """A Python number as a constant; expressions stay."""
    return literal(value, kind) if isinstance(value, (bool, int, float)) else value


class Reader:
    """A tensor operand as a function of an index. Called, it gives the element as it is stored."""

    def __init__(self, elements: Elements, node: Node) -> None:
        self.elements, self.node = elements, node
        self.shape: list[Any] = elements.dims.shape(node.shape)
        self.dtype = storage(node.dtype)

    def __call__(self, *index: Any) -> Any:
        """The element at an index."""
        return self.elements.alone(lambda: self.elements.value(self.node, tuple(index)))

    def wide(self, *index: Any) -> Any:
        """The element at an index, in the type to compute in."""
        return cast(self(*index), computed(self.node.dtype))

    @property
    def is_computed(self) -> bool:
        """True if elements are computed where they are read."""
        return self.node not in self.elements.stored

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


def _places(index: Index) -> tuple[int, ...]:
    """What tells indices apart: numbers by value, expressions by identity."""
    return tuple(int(i) if isinstance(i, (int, tirx.IntImm)) else id(i) for i in index)


class _Scope:
    """Names of one place. ``statements`` says that they are written at once, as local variables."""

    def __init__(self, statements: bool) -> None:
        self.statements = statements
        self.names: list[tuple[Any, Any]] = []
        self.known: dict[Any, tuple[Any, Index]] = {}

    def add(self, name: Any, value: Any) -> None:
        """A name for a value."""
        if self.statements:
            T.Bind(value, var=name)
        else:
            self.names.append((name, value))


class Elements:
    """Elements of the nodes of a group. ``stored`` are the operands from outside, as functions of an index.

    A value that is needed twice at one index is bound to a name. ``cpu`` says whether words of LLVM may be used.
    """

    def __init__(
        self, group: frozenset[Node], stored: Mapping[Node, Callable[[Index], Any]], dims: Dims, cpu: bool
    ) -> None:
        self.group, self.stored, self.dims, self.cpu = group, stored, dims, cpu
        self._scopes: list[_Scope] = []

    def alone(self, make: Callable[[], Any]) -> Any:
        """An expression with its own names, if there is no scope around it; else part of that."""
        return make() if self._scopes else self.scope(make)

    def scope(self, make: Callable[[], Any]) -> Any:
        """An expression that holds the names that it needs: for one side of a condition."""
        self._scopes.append(_Scope(False))
        value = make()
        for name, bound in reversed(self._scopes.pop().names):
            value = tirx.Let(name, bound, value)
        return value

    def write(self, make: Callable[[], None]) -> None:
        """Make statements; names become local variables.

        Not names of TIR: its passes replace these by what they stand for, which takes long where values are shared.
        """
        self._scopes.append(_Scope(True))
        make()
        self._scopes.pop()

    def let(self, value: Any) -> Any:
        """A name for a value."""
        if isinstance(value, (tirx.Var, tirx.IntImm, tirx.FloatImm)) or not self._scopes:
            return value
        kind, scope = str(value.ty), self._scopes[-1]
        if kind == "bfloat16":  # TVM legalises no names of this type
            return value
        value = self._flat(value)
        if scope.statements:
            local = T.alloc_buffer((1,), kind)  # unlike ``alloc_local``, never asked of the runtime
            T.buffer_store(local, value, [0])
            return local[0]
        name = tirx.Var("v", kind)
        scope.add(name, value)
        return name

    def _flat(self, value: Any) -> Any:
        """Names before, not within, the value that uses them: passes of TVM take long for the latter."""
        while isinstance(value, tirx.Let):
            self._scopes[-1].add(value.var, self._flat(value.value))
            value = value.body
        return value

    def value(self, node: Node, index: Index) -> Any:
        """The element of a node at an index, in its element type."""
        return self.shared(node, index, lambda: self._value(node, index))

    def _value(self, node: Node, index: Index) -> Any:
        if node not in self.stored:
            return self.let(self._made(node, index))
        made = self.stored[node](index)
        return self.let(made) if self._scopes[-1].statements else made

    def _wide(self, node: Node, index: Index) -> Any:
        """A name for the element of a node at an index, in the type to compute in."""
        value, kind = self.value(node, index), computed(node.dtype)
        return self.shared((node, kind), index, lambda: self.let(cast(value, kind)))

    def shared(self, what: Any, index: Index, make: Callable[[], Any]) -> Any:
        """What ``make`` gives for an index, made once."""
        key = (what, *_places(index))
        for scope in self._scopes:
            if key in scope.known:
                return scope.known[key][0]
        made = make()
        # the index stays alive, so that its identity stays its own
        self._scopes[-1].known[key] = (made, index)
        return made

    def _made(self, node: Node, index: Index) -> Any:
        row = table()[node.op]
        call = Call(node, self)
        if row.form == "scalar":
            value = row.emit(call, *self._scalars(call, node, index))
        else:
            value = row.emit(call, index, *self.arguments(node))
        value, kind = as_expression(value, call.dtype), storage(node.dtype)
        return cast(self.let(value) if kind == "bfloat16" else value, kind)  # that cast repeats its argument

    def arguments(self, node: Node) -> list[Any]:
        """The arguments of a node with readers in place of nodes."""
        return [self._reader(a) for a in node.args]

    def _reader(self, arg: Any) -> Any:
        if isinstance(arg, Node):
            return Reader(self, arg)
        return tuple(self._reader(a) for a in arg) if isinstance(arg, tuple) else arg

    def _scalars(self, call: Call, node: Node, index: Index) -> list[Any]:
        made: list[Any] = []
        for parameter, arg in zip(operation(node.op).parameters, node.args, strict=True):
            if isinstance(arg, Node):
                made.append(self._broadcast(arg, index))
            elif parameter.kind == "operand":
                made.append(call.number(arg))
            else:
                made.append(arg)
        return made

    def _broadcast(self, node: Node, index: Index) -> Any:
        places = index[len(index) - node.rank :]
        places = tuple(0 if s == 1 else i for s, i in zip(node.shape, places, strict=True))
        return self._wide(node, places)


class Call:
    """One operation to lower: its node, the sizes of its function, and ``dtype``, the type to compute in."""

    def __init__(self, node: Node, elements: Elements) -> None:
        self.node, self.elements = node, elements
        self.kind: DType = main_dtype(node)
        self.dtype = computed(self.kind)
        self.cpu = elements.cpu

    @property
    def is_float(self) -> bool:
        """True if the computation is in floating point."""
        return self.kind.is_float

    def number(self, value: Any, kind: str | None = None) -> Any:
        """A number or size as a constant of the type to compute in, rounded to the type of the operands."""
        if isinstance(value, sympy.Expr):
            return cast(self.elements.dims(value), kind or self.dtype)
        if kind is None and self.is_float and self.kind.bits < 32:
            value = _rounded(float(value), self.kind)
        return literal(value, kind or self.dtype)

    def size(self, value: Any) -> Any:
        """A size as an i64 expression or ``int``."""
        return self.elements.dims(value)

    def shape(self, node: Node | None = None) -> list[Any]:
        """The sizes of a node (default: the result)."""
        return self.elements.dims.shape((node or self.node).shape)

    def let(self, value: Any) -> Any:
        """A name for a value that is used more than once."""
        return self.elements.let(value)

    def compute(self, shape: Sequence[Any], element: Callable[..., Any], name: str = "out") -> Any:
        """A tensor expression whose element at an index is given by a function."""
        return te.compute(
            tuple(shape),
            lambda *index: self.elements.scope(lambda: as_expression(element(*index), self.dtype)),
            name,
        )

    def scope(self, make: Callable[[], Any]) -> Any:
        """An expression with the names that it needs."""
        return self.elements.scope(make)

    def when(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """One of two values; only that side is computed."""
        if isinstance(condition, (bool, tirx.IntImm)):
            return then() if bool(condition) else otherwise()
        yes, no = self.elements.scope(then), self.elements.scope(otherwise)
        return tirx.if_then_else(condition, yes, no)


def _rounded(value: float, kind: DType) -> float:
    import ml_dtypes
    import numpy as np

    element = np.float16 if kind.name == "f16" else ml_dtypes.bfloat16
    return float(np.array(value, dtype=element))


def all_of(conditions: Sequence[Any]) -> Any:
    """The conjunction of conditions; a Python bool where it is known."""
    left = [c for c in conditions if not (isinstance(c, bool) and c)]
    if any(isinstance(c, bool) for c in left):
        return False
    if not left:
        return True
    return tirx.all(*left) if len(left) > 1 else left[0]
