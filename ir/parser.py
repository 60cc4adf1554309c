"""Reading programs back from text. ``ast.parse`` is the lexer; errors point at the place with a caret."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any

import sympy

from planish.errors import PlanishError, ShapeError
from planish.ir import types
from planish.ir.namespace import make
from planish.ir.node import Module, Node, Origin, Program, const, input_leaf, state
from planish.ir.printer import base_of
from planish.ir.types import DTYPES, Size, Symbol, TensorType

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: types.size(sympy.sympify(a) + b), ast.Sub: lambda a, b: types.size(sympy.sympify(a) - b),
    ast.Mult: lambda a, b: types.product((a, b)), ast.FloorDiv: types.floor_div, ast.Mod: types.mod,
    ast.Pow: lambda a, b: types.size(sympy.sympify(a) ** b),
}  # fmt: skip


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.lines = text.splitlines()
        self.file = file
        self.symbols: dict[str, Symbol] = {}
        self.programs: dict[str, Program] = {}

    def fail(self, at: ast.AST, message: str, code: str = "PL340") -> ShapeError:
        """An error with file, line, column and a caret under the place."""
        line, column = getattr(at, "lineno", 1), getattr(at, "col_offset", 0)
        end = getattr(at, "end_col_offset", None) if getattr(at, "end_lineno", line) == line else None
        source = self.lines[line - 1] if line <= len(self.lines) else ""
        caret = " " * column + "^" * max(1, (end or len(source)) - column)
        return ShapeError(
            code, f"{message}\n      {source}\n      {caret}", where=f"{self.file}:{line}:{column + 1}"
        )

    def size(self, e: ast.expr) -> Size:
        """A dimension expression."""
        if isinstance(e, ast.Constant) and isinstance(e.value, int) and not isinstance(e.value, bool):
            return e.value
        if isinstance(e, ast.Name) and e.id in self.symbols:
            return self.symbols[e.id]
        if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
            return types.size(-sympy.sympify(self.size(e.operand)))
        if isinstance(e, ast.BinOp) and type(e.op) in _BINARY:
            a, b = self.size(e.left), self.size(e.right)
            if isinstance(e.op, (ast.FloorDiv, ast.Mod)) and b == 0:
                raise self.fail(e, "division by zero")
            if isinstance(e.op, ast.Pow) and not (isinstance(b, int) and 0 <= b <= 16):
                raise self.fail(e, "the exponent must be a number from 0 to 16")
            return types.size(_BINARY[type(e.op)](a, b))
        if (
            isinstance(e, ast.Call)
            and isinstance(e.func, ast.Name)
            and e.func.id in ("max", "min")
            and e.args
        ):
            fold = types.maximum if e.func.id == "max" else types.minimum
            result = self.size(e.args[0])
            for each in e.args[1:]:
                result = fold(result, self.size(each))
            return result
        what = (
            f"'{e.id}' is not a dimension" if isinstance(e, ast.Name) else "expected a dimension expression"
        )
        raise self.fail(e, what)

    def type(self, e: ast.expr) -> types.Type:
        """A type annotation."""
        if isinstance(e, ast.Tuple):
            items = [self.type(t) for t in e.elts]
            if not all(isinstance(t, TensorType) for t in items):
                raise self.fail(e, "tuple types hold tensors only")
            return types.TupleType(tuple(items))  # type: ignore[arg-type]
        if not (isinstance(e, ast.Subscript) and isinstance(e.value, ast.Name)):
            raise self.fail(e, "expected a type such as f32[T, 64]")
        if e.value.id not in DTYPES:
            raise self.fail(e.value, f"unknown element type '{e.value.id}'")
        parts = e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice]
        return TensorType(DTYPES[e.value.id], tuple(self.size(p) for p in parts))

    def argument(self, e: ast.expr, values: Mapping[str, Node]) -> Any:
        """An argument of an operation."""
        if isinstance(e, ast.Name):
            if e.id in values:
                return values[e.id]
            if e.id in self.symbols:
                return self.symbols[e.id]
            if e.id in DTYPES:
                return DTYPES[e.id]
            if e.id in ("inf", "nan"):
                return math.inf if e.id == "inf" else math.nan
            if e.id in self.programs:
                return self.programs[e.id]
            raise self.fail(e, f"'{e.id}' is not defined")
        if isinstance(e, (ast.List, ast.Tuple)):
            return tuple(self.argument(x, values) for x in e.elts)
        if isinstance(e, ast.Constant) and (e.value is None or isinstance(e.value, (bool, int, float, str))):
            return e.value
        if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
            inner = self.argument(e.operand, values)
            if isinstance(inner, (int, float)) and not isinstance(inner, bool):
                return -inner
        return self.size(e)

    def operation(self, e: ast.expr, values: Mapping[str, Node]) -> Node:
        """The right-hand side of a statement that is not a leaf."""
        good = (
            isinstance(e, ast.Call)
            and isinstance(e.func, ast.Attribute)
            and isinstance(e.func.value, ast.Name)
        )
        if not good:
            raise self.fail(e, "expected an operation such as aten.linear(x, w)")
        assert (
            isinstance(e, ast.Call)
            and isinstance(e.func, ast.Attribute)
            and isinstance(e.func.value, ast.Name)
        )
        args = [self.argument(a, values) for a in e.args]
        named = {k.arg: self.argument(k.value, values) for k in e.keywords if k.arg is not None}
        try:
            return make(f"{e.func.value.id}.{e.func.attr}", *args, **named)
        except PlanishError as error:
            raise self.fail(
                e, error.message + (f"; {error.hint}" if error.hint else ""), error.code
            ) from None

    def leaf(self, e: ast.expr, annotation: ast.expr | None, at: ast.stmt) -> Node | None:
        """``const('name')`` or ``state('name')``, or None for anything else."""
        if not (isinstance(e, ast.Call) and isinstance(e.func, ast.Name) and e.func.id in ("const", "state")):
            return None
        if (
            len(e.args) != 1
            or not isinstance(e.args[0], ast.Constant)
            or not isinstance(e.args[0].value, str)
            or e.keywords
        ):
            raise self.fail(e, f"{e.func.id} takes one name in quotes")
        if annotation is None:
            raise self.fail(at, "a leaf needs its type, as in  w: f32[4, 4] = const('w')")
        kind = self.type(annotation)
        if not isinstance(kind, TensorType):
            raise self.fail(annotation, "a leaf is one tensor")
        return (const if e.func.id == "const" else state)(e.args[0].value, kind)

    def dimension(self, statement: ast.Assign) -> None:
        """``T = dim(1, 512)``."""
        target, value = statement.targets[0], statement.value
        form = (
            isinstance(target, ast.Name) and isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
        )
        if not form or value.func.id != "dim" or len(value.args) != 2:  # type: ignore[attr-defined]
            raise self.fail(statement, "expected a dimension such as  T = dim(1, 512)")
        assert isinstance(target, ast.Name) and isinstance(value, ast.Call)
        if target.id in self.symbols:
            raise self.fail(target, f"the dimension {target.id} is declared twice")
        low, high = (self.size(a) for a in value.args)
        if not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high):
            raise self.fail(value, "a range needs two whole numbers, 0 <= low <= high")
        self.symbols[target.id] = types.dim(target.id, low, high)

    def function(self, f: ast.FunctionDef) -> Program:
        """One program."""
        a = f.args
        if (
            a.vararg
            or a.kwarg
            or a.kwonlyargs
            or a.defaults
            or a.posonlyargs
            or f.decorator_list
            or f.returns
        ):
            raise self.fail(f, "a program has plain typed parameters only")
        values: dict[str, Node] = {}
        origins: dict[Node, Origin] = {}
        inputs = []
        for arg in a.args:
            if arg.annotation is None:
                raise self.fail(arg, f"{arg.arg} needs a type")
            kind = self.type(arg.annotation)
            if not isinstance(kind, TensorType) or arg.arg in values:
                raise self.fail(arg, "an input is one tensor with a name of its own")
            values[arg.arg] = input_leaf(arg.arg, kind)
            inputs.append(values[arg.arg])
        for statement in f.body[:-1]:
            self.statement(statement, values, origins)
        last = f.body[-1]
        if not isinstance(last, ast.Return) or last.value is None:
            raise self.fail(last, "a program ends with return")
        parts = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
        states: list[tuple[str, Node]] = []
        if isinstance(parts[-1], ast.Dict):
            for key, value in zip(parts[-1].keys, parts[-1].values, strict=True):
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                    raise self.fail(parts[-1], "next states are written {'name': value}")
                states.append((key.value, self.result(value, values)))
            parts = parts[:-1]
        outputs = tuple(self.result(p, values) for p in parts)
        return Program(f.name, tuple(inputs), outputs, tuple(states), origins)

    def result(self, e: ast.expr, values: Mapping[str, Node]) -> Node:
        """A returned name."""
        if not isinstance(e, ast.Name) or e.id not in values:
            raise self.fail(e, "only names of values are returned")
        return values[e.id]

    def statement(self, s: ast.stmt, values: dict[str, Node], origins: dict[Node, Origin]) -> None:
        """``name: type = right-hand side``."""
        target = (
            s.target if isinstance(s, ast.AnnAssign) else s.targets[0] if isinstance(s, ast.Assign) else None
        )
        if (
            not isinstance(target, ast.Name)
            or not isinstance(s, (ast.AnnAssign, ast.Assign))
            or s.value is None
        ):
            raise self.fail(s, "expected  name: type = operation(...)")
        if target.id in values or target.id in self.symbols:
            raise self.fail(target, f"'{target.id}' is defined twice")
        annotation = s.annotation if isinstance(s, ast.AnnAssign) else None
        node = self.leaf(s.value, annotation, s)
        if node is None:
            node = self.operation(s.value, values)
            if annotation is not None:
                declared = self.type(annotation)
                if declared != node.type:
                    raise self.fail(
                        annotation, f"declared {declared}, but the operation gives {node.type}", "PL341"
                    )
        values[target.id] = node
        if not node.is_leaf and node not in origins:
            base = base_of(target.id)
            origins[node] = Origin("" if base == node.op.partition(".")[2] else base)

    def module(self, tree: ast.Module) -> Module:
        """All programs of a file; nested ones belong to those that use them."""
        nested: set[str] = set()
        for statement in tree.body:
            if isinstance(statement, ast.Assign):
                self.dimension(statement)
            elif isinstance(statement, ast.FunctionDef):
                if statement.name in self.programs:
                    raise self.fail(statement, f"the program {statement.name} is defined twice")
                program = self.function(statement)
                nested |= {p.name for p in program.nested()}
                self.programs[statement.name] = program
            else:
                raise self.fail(statement, "expected a dimension or a program")
        return Module(tuple(p for n, p in self.programs.items() if n not in nested))


def parse_module(text: str, file: str = "<program>") -> Module:
    """All programs in a text; raises ``ShapeError`` PL34x that points at the place."""
    reader = _Reader(text, file)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        problem = getattr(error, "msg", None) or str(error)
        raise ShapeError("PL340", f"not a program: {problem}", where=f"{file}:{line}") from None
    try:
        return reader.module(tree)
    except RecursionError:
        raise ShapeError("PL340", "an expression is nested too deeply", where=file) from None


def parse(text: str, file: str = "<program>") -> Program:
    """The one program in a text; raises ``ShapeError`` if there is none or more than one."""
    programs = parse_module(text, file).programs
    if len(programs) != 1:
        raise ShapeError("PL342", f"expected one program, found {len(programs)}", where=file)
    return programs[0]


def parse_type(text: str, symbols: Mapping[str, Symbol] | None = None) -> TensorType:
    """A tensor type from text such as ``f32[B, T, 64]``; unknown names become dimensions of unlimited range."""
    reader = _Reader(text, "<type>")
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ShapeError("PL340", f"not a type: {text!r} ({error.msg})") from None
    for found in ast.walk(tree):
        if isinstance(found, ast.Name) and found.id not in DTYPES and found.id not in ("max", "min"):
            reader.symbols[found.id] = (symbols or {}).get(found.id) or types.dim(found.id)
    kind = reader.type(tree)
    if not isinstance(kind, TensorType):
        raise ShapeError("PL340", f"not a tensor type: {text!r}")
    return kind


def parse_size(text: str, symbols: Mapping[str, Symbol]) -> Size:
    """A dimension expression from text."""
    reader = _Reader(text, "<size>")
    reader.symbols.update(symbols)
    return reader.size(ast.parse(text, mode="eval").body)
