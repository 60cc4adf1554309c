"""Writing an ONNX graph: nodes without repeats, small constants, casts, and sizes as integer arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import sympy
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from planish.errors import BackendError
from planish.ir.arrays import numpy_type
from planish.ir.types import DTYPES, DType, Size, Symbol, bounds, format_size
from planish.ir.types import size as as_size

OPSET = 24
"""The newest operator set for which ONNX Runtime 1.32 has all kernels: from 25 on it expands Attention, slowly."""

NEWER = {"CumProd": 26}
"""Operators that need a newer set; only models that use them ask for it."""

IR_VERSION = 11
MICROSOFT = "com.microsoft"
Array = NDArray[Any]

ONNX_TYPES: Mapping[str, int] = {
    "f64": TensorProto.DOUBLE, "f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16,
    "i64": TensorProto.INT64, "i32": TensorProto.INT32, "i16": TensorProto.INT16, "i8": TensorProto.INT8,
    "u64": TensorProto.UINT64, "u32": TensorProto.UINT32, "u16": TensorProto.UINT16, "u8": TensorProto.UINT8,
    "u4": TensorProto.UINT4, "u2": TensorProto.UINT2, "bool": TensorProto.BOOL, "f8e4m3": TensorProto.FLOAT8E4M3FN,
    "f8e5m2": TensorProto.FLOAT8E5M2,
}  # fmt: skip
"""ONNX element types by planish's names, and packed codes (u4, u2); complex numbers have none."""

I64_MAX, I64_MIN = 2**63 - 1, -(2**63)


class Graph:
    """An ONNX graph in the making. Values are named by strings; equal nodes are made once.

    A nested graph (a branch, the body of a loop) sees the values, symbols and constants of its parent.
    """

    def __init__(self, parent: Graph | None = None) -> None:
        self.parent = parent
        self.nodes: list[onnx.NodeProto] = []
        self.root: Graph = parent.root if parent else self
        self.constants: dict[str, onnx.TensorProto] = {} if parent is None else parent.constants
        self.symbols: dict[Symbol, Callable[[], str]] = dict(parent.symbols) if parent else {}
        self.scope = ""
        self.opset = OPSET
        self._made: dict[Any, tuple[str, ...]] = {}
        self._constant_names: dict[Any, str] = {} if parent is None else parent._constant_names
        self._names: dict[str, int] = {} if parent is None else parent._names

    def fresh(self, base: str) -> str:
        """A name that no other value has."""
        count = self._names.get(base, 0)
        self._names[base] = count + 1
        return f"{base}/{count}" if count else base

    def reserve(self, name: str) -> str:
        """Keep a name for an input or output; BackendError PL742 if it is taken."""
        if self._names.get(name):
            raise BackendError("PL742", f"two inputs or outputs are called {name!r}")
        self._names[name] = 1
        return name

    def op(self, kind: str, *inputs: str | None, domain: str = "", **attributes: Any) -> str:
        """One node with one result; attributes that are None are left out."""
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def contrib(self, kind: str, *inputs: str | None, **attributes: Any) -> str:
        """One node of ONNX Runtime's own operators."""
        return self.op(kind, *inputs, domain=MICROSOFT, **attributes)

    def ops(
        self, kind: str, results: int, *inputs: str | None, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """One node with several results; an equal node that was made before is used again."""
        given = [i or "" for i in inputs]
        while given and not given[-1]:
            given.pop()
        kept = {k: v for k, v in attributes.items() if v is not None}
        key: Any = (domain, kind, results, tuple(given), tuple(sorted((k, _key(v)) for k, v in kept.items())))
        found = self._find(key)
        if found is not None:
            return found
        self.require(NEWER.get(kind, OPSET))
        base = f"{self.scope}/{kind}" if self.scope else kind
        names = tuple(self.fresh(base) for _ in range(results))
        self.nodes.append(helper.make_node(kind, given, names, name=names[0], domain=domain, **kept))
        self._made[key] = names
        return names

    def _find(self, key: Any) -> tuple[str, ...] | None:
        graph: Graph | None = self
        while graph is not None:
            if key in graph._made:
                return graph._made[key]
            graph = graph.parent
        return None

    def require(self, opset: int) -> None:
        """Ask for a newer operator set."""
        self.root.opset = max(self.root.opset, opset)

    def copy(self, value: str, name: str) -> None:
        """Give a value a second name, as a result of the graph."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def rename(self, names: Mapping[str, str]) -> dict[str, str]:
        """Give results of nodes other names, wherever they stand; gives those that are results, with their new names.

        No node may be made of these values afterwards.
        """
        mine = {name: names[name] for node in self.nodes for name in node.output if name in names}
        if mine:
            _rename(self.nodes, mine)
        return mine

    def constant(self, value: Any, kind: DType | str, shape: Sequence[int] | None = None) -> str:
        """A small constant held in the model itself."""
        element = DTYPES[kind] if isinstance(kind, str) else kind
        with np.errstate(all="ignore"):
            array = np.asarray(value).astype(numpy_type(element))
        if shape is not None:
            array = np.broadcast_to(array, tuple(shape)) if array.size == 1 else array.reshape(tuple(shape))
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (element.name, array.shape, array.tobytes())
        if key not in self._constant_names:
            text = f"{array.reshape(-1)[0]}" if array.size == 1 else "x".join(map(str, array.shape))
            name = self.fresh(f"constant/{element.name}/{text}")
            self.constants[name] = numpy_helper.from_array(array, name)
            self._constant_names[key] = name
        return self._constant_names[key]

    def ints(self, *values: int) -> str:
        """A constant list of i64."""
        return self.constant(np.asarray(values, np.int64), "i64")

    def cast(self, value: str, kind: DType | str) -> str:
        """A value in another element type."""
        name = kind if isinstance(kind, str) else kind.name
        self.require(25 if name == "u2" else OPSET)
        saturate = 0 if name.startswith("f8") else None
        return self.op("Cast", value, to=ONNX_TYPES[name], saturate=saturate)

    # Sizes: one-element lists of i64, so that they join to shapes.

    def size(self, value: Size) -> str:
        """A size as ``i64[1]``, computed from the shapes of the inputs."""
        if isinstance(value, int):
            return self.ints(value)
        return self._size(as_size(value))

    def _size(self, e: Any) -> str:
        if isinstance(e, int) or e.is_Integer:
            return self.ints(int(e))
        if isinstance(e, Symbol):
            if e not in self.symbols:
                raise BackendError("PL743", f"the dimension {e.name} is not bound by any input")
            return self.symbols[e]()
        if isinstance(e, sympy.floor):
            return self._floor(e.args[0])
        if isinstance(e, sympy.Mod):
            return self.op("Mod", self._size(e.args[0]), self._size(e.args[1]))
        if isinstance(e, (sympy.Max, sympy.Min)):
            return self.op("Max" if isinstance(e, sympy.Max) else "Min", *map(self._size, sorted_args(e)))
        if isinstance(e, sympy.Pow) and e.exp.is_Integer and e.exp > 0:
            return self._chain("Mul", [self._size(e.base)] * int(e.exp))
        top, bottom = sympy.fraction(sympy.together(e))
        if not (bottom.is_Integer and bottom == 1):
            return self.op("Div", self._size(top), self._size(bottom))
        if isinstance(e, sympy.Add):
            plus = [self._size(a) for a in sorted_args(e) if a.as_coeff_Mul()[0] >= 0]
            minus = [self._size(-a) for a in sorted_args(e) if a.as_coeff_Mul()[0] < 0]
            total = self._chain("Add", plus) if plus else self.ints(0)
            return self._chain("Sub", [total, *minus])
        if isinstance(e, sympy.Mul):
            return self._chain("Mul", [self._size(a) for a in sorted_args(e)])
        raise BackendError("PL743", f"a size cannot be computed: {format_size(e)}")

    def _floor(self, e: Any) -> str:
        top, bottom = sympy.fraction(sympy.together(e))
        a, b = self._size(sympy.expand(top)), self._size(sympy.expand(bottom))
        if bounds(sympy.expand(top))[0] >= 0:
            return self.op("Div", a, b)
        return self.op("Div", self.op("Sub", a, self.op("Mod", a, b)), b)  # rounds down, not to zero

    def _chain(self, kind: str, parts: list[str]) -> str:
        out = parts[0]
        for part in parts[1:]:
            out = self.op(kind, out, part)
        return out

    def sizes(self, values: Sequence[Size]) -> str:
        """Several sizes as ``i64[n]``."""
        if all(isinstance(v, int) for v in values):
            return self.ints(*(int(v) for v in values))
        return self.op("Concat", *map(self.size, values), axis=0) if len(values) > 1 else self.size(values[0])

    def scalar(self, value: Size, kind: str = "i64") -> str:
        """A size as a zero-dimensional tensor."""
        if isinstance(value, int):
            return self.constant(value, kind)
        flat = self.op("Squeeze", self.size(value), self.ints(0))
        return flat if kind == "i64" else self.cast(flat, kind)

    def reshape(self, value: str, have: Sequence[Size], want: Sequence[Size]) -> str:
        """Another shape: ``0`` and ``-1`` stand for sizes where they can, so that nothing is computed."""
        if tuple(have) == tuple(want):
            return value
        shape: list[Size] = list(want)
        if any(isinstance(s, int) and s == 0 for s in (*have, *want)):
            return self.op("Reshape", value, self.sizes(shape), allowzero=1)
        for i, each in enumerate(want):
            if not isinstance(each, int) and i < len(have) and have[i] == each:
                shape[i] = 0
        unknown = [i for i, each in enumerate(shape) if not isinstance(each, int)]
        if len(unknown) == 1 and all(bounds(s)[0] > 0 for s in (*have, *want)):
            shape[unknown[0]] = -1
        return self.op("Reshape", value, self.sizes(shape))

    def bind(self, name: str, shape: Sequence[Size]) -> None:
        """Learn the symbols that are sizes of the value ``name``; later calls do not replace earlier ones."""
        for axis, want in enumerate(shape):
            if isinstance(want, int):
                continue
            free = [s for s in want.free_symbols if s not in self.symbols]
            if isinstance(want, Symbol):
                if free:
                    self.symbols[want] = self._axis_of(name, axis)
            elif len(free) == 1:
                symbol = free[0]
                answers = sympy.solve(want - sympy.Symbol("have", integer=True), symbol)
                if len(answers) == 1:
                    self.symbols[symbol] = self._solved(name, axis, answers[0])

    def _axis_of(self, name: str, axis: int) -> Callable[[], str]:
        return lambda: self.op("Shape", name, start=axis, end=axis + 1)

    def _solved(self, name: str, axis: int, answer: Any) -> Callable[[], str]:
        def make() -> str:
            stand_in = Symbol(f"{name}.{axis}", 0)
            self.symbols[stand_in] = self._axis_of(name, axis)
            return self._size(answer.subs(sympy.Symbol("have", integer=True), stand_in))

        return make


def sorted_args(e: Any) -> list[Any]:
    """The arguments of a sympy expression in a fixed order."""
    return sorted(e.args, key=sympy.default_sort_key)


def _rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    pending = [nodes]
    while pending:
        for node in pending.pop():
            for values in (node.input, node.output):
                for i, name in enumerate(values):
                    if name in names:
                        values[i] = names[name]
            pending.extend(a.g.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


def _key(value: Any) -> Any:
    if isinstance(value, onnx.GraphProto):
        return id(value)
    if isinstance(value, onnx.TensorProto):
        return value.SerializeToString()
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return (type(value).__name__, value)


def value_info(name: str, kind: DType, shape: Iterable[Size]) -> onnx.ValueInfoProto:
    """The type of an input or output; sizes that are not numbers become named dimensions."""
    dims = [s if isinstance(s, int) else format_size(s) for s in shape]
    return helper.make_tensor_value_info(name, ONNX_TYPES[kind.name], dims)


def fixed(values: Iterable[Size]) -> bool:
    """True if all sizes are numbers."""
    return all(isinstance(v, int) for v in values)


def number(value: Any) -> bool:
    """True for plain numbers, not for bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
