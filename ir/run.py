"""The interpreter: executes a program in eager torch, which is the definition of correct. Differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy

from planish.errors import ShapeError
from planish.ir.dialect import Operation, operation
from planish.ir.node import Node, Program
from planish.ir.types import DType, Size, Symbol, TensorType, evaluate, format_size

if TYPE_CHECKING:
    import torch

    from planish.ir.weights import Weights

Hook = Callable[[Node, "tuple[Any, ...]", Any], Any]
"""``hook(node, arguments, result)``; a returned value other than None replaces the result."""

_implementations: dict[str, Callable[..., Any]] = {}


def implementation(row: Operation) -> Callable[..., Any]:
    """The eager torch function behind a row of the dialect."""
    found = _implementations.get(row.name)
    if found is None:
        import torch

        from planish.ir import eager

        if callable(row.torch):
            found = row.torch
        elif row.torch.startswith("custom:"):
            found = getattr(eager, row.torch[7:], None) or _control[row.torch[7:]]
        else:
            name, _, overload = row.torch.partition(".")
            found = _positional(getattr(getattr(torch.ops.aten, name), overload), len(row.parameters))
        _implementations[row.name] = found
    return found


def _positional(overload: Any, count: int) -> Callable[..., Any]:
    """The overload as a function of positions; ATen takes some parameters by keyword only."""
    named = [a.name if a.kwarg_only else "" for a in overload._schema.arguments[:count]]
    plain = named.index(next(filter(None, named))) if any(named) else count
    if plain == count:
        return overload
    return lambda *args: overload(*args[:plain], **dict(zip(named[plain:], args[plain:], strict=True)))


def apply(name: str, *args: Any, **kwargs: Any) -> Any:
    """The number reading of an operation: eager torch on tensors, with defaults filled in."""
    row = operation(name)
    given = dict(zip((p.name for p in row.parameters), args, strict=False)) | kwargs
    full: list[Any] = []
    for parameter in row.parameters:
        value = given.get(parameter.name, None if parameter.required else parameter.default)
        if value is None and parameter.kind == "axes?":
            value = tuple(range(next(v for v in full if hasattr(v, "dim")).dim()))
        full.append(value)
    return execute(row, tuple(full), {})


def execute(row: Operation, args: tuple[Any, ...], binding: Mapping[Symbol, int]) -> Any:
    """Run one operation on tensors; sizes are evaluated under the binding."""
    ready = [_ready(a, binding) for a in args]
    if any(p.kind == "operand" for p in row.parameters):
        _lift_numbers(row, ready)
    return implementation(row)(*ready)


def _ready(arg: Any, binding: Mapping[Symbol, int]) -> Any:
    if isinstance(arg, tuple):
        return [_ready(a, binding) for a in arg]
    if isinstance(arg, sympy.Expr):
        return evaluate(arg, binding)
    if isinstance(arg, DType):
        from planish.ir.eager import TORCH_DTYPES

        return TORCH_DTYPES[arg.name]
    return arg


def _lift_numbers(row: Operation, args: list[Any]) -> None:
    """Numbers among operands become zero-dimensional tensors of the element type of the tensors."""
    import torch

    if row.name == "planish.dequant":
        return
    places = [i for i, p in enumerate(row.parameters) if p.kind in ("operand", "tensor")]
    like = next(
        a
        for i in reversed(places)
        if isinstance(a := args[i], torch.Tensor) and (i or row.name != "aten.where")
    )
    for i in places:
        if not isinstance(args[i], torch.Tensor):
            args[i] = torch.tensor(args[i], dtype=like.dtype)


def bind_inputs(program: Program, inputs: Sequence[Any]) -> dict[Symbol, int]:
    """What the symbols stand for, read off the shapes of the inputs; raises ``ShapeError`` on any misfit."""
    binding: dict[Symbol, int] = {}
    later: list[tuple[str, Size, int]] = []
    for leaf, value in zip(program.inputs, inputs, strict=True):
        kind = leaf.tensor
        if len(value.shape) != kind.rank:
            raise ShapeError("PL320", f"{leaf.name}: expected {kind}, got {list(value.shape)}")
        for want, have in zip(kind.shape, value.shape, strict=True):
            if isinstance(want, Symbol) and want not in binding:
                if not want.low <= have <= want.high:
                    raise ShapeError(
                        "PL321", f"{leaf.name}: {want.name} = {have} is outside of [{want.low}, {want.high}]"
                    )
                binding[want] = int(have)
            else:
                later.append((leaf.name, want, int(have)))
    for name, want, have in later:
        _solve(want, have, binding)
        if evaluate(want, binding) != have:
            raise ShapeError(
                "PL322", f"{name}: {format_size(want)} = {evaluate(want, binding)} here, got {have}"
            )
    return binding


def _solve(want: Size, have: int, binding: dict[Symbol, int]) -> None:
    """Bind the one free symbol of ``a*s + b`` if there is one."""
    if isinstance(want, int):
        return
    free = [s for s in want.free_symbols if s not in binding]
    if len(free) == 1:
        rest = want.xreplace({k: sympy.Integer(v) for k, v in binding.items()})
        answers = [a for a in sympy.solve(rest - have, free[0]) if a.is_Integer]
        if answers:
            binding[free[0]] = int(answers[0])


def run(
    program: Program, weights: Weights, *inputs: Any, hook: Hook | None = None,
    states: Mapping[str, Any] | None = None, override: Mapping[Node, Any] | None = None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Execute the program and return its outputs, then its next states.

    ``hook`` sees every operation as it is computed; ``override`` gives values to nodes (they are not computed).
    Raises ``ShapeError`` if inputs do not fit the declared types.
    """
    if len(inputs) != len(program.inputs):
        names = ", ".join(i.name for i in program.inputs)
        raise ShapeError(
            "PL323", f"{program.name} takes {len(program.inputs)} inputs ({names}), got {len(inputs)}"
        )
    return _run(program, weights, inputs, bind_inputs(program, inputs), hook, states or {}, override or {})


def run_with(program: Program, weights: Weights, binding: Mapping[Symbol, int]) -> tuple[torch.Tensor, ...]:
    """Execute a program without inputs, its dimensions given: for expressions of positions and constants."""
    return _run(program, weights, (), binding, None, {}, {})


def _run(
    program: Program, weights: Weights, inputs: Sequence[Any], binding: Mapping[Symbol, int], hook: Hook | None,
    states: Mapping[str, Any], override: Mapping[Node, Any],
) -> tuple[Any, ...]:  # fmt: skip
    values: dict[Node, Any] = {**dict(zip(program.inputs, inputs, strict=True)), **override}
    order = program.nodes
    remaining: dict[Node, int] = {}
    for node in order:
        for operand in node.operands:
            remaining[operand] = remaining.get(operand, 0) + 1
    for root in program.roots:
        remaining[root] = remaining.get(root, 0) + 1
    for node in order:
        if node not in values:
            values[node] = _value(node, values, weights, binding, states, hook)
        for operand in node.operands:
            remaining[operand] -= 1
            if not remaining[operand] and operand.op != "input":
                values.pop(operand, None)
    return tuple(values[root] for root in program.roots)


def _value(
    node: Node, values: Mapping[Node, Any], weights: Weights, binding: Mapping[Symbol, int], states: Mapping[str, Any],
    hook: Hook | None,
) -> Any:  # fmt: skip
    if node.op == "const":
        return weights.tensor(node.name)
    if node.op == "state":
        return states[node.name]
    if node.op == "input":
        raise ShapeError("PL324", f"input {node.name} is used but not declared by the program")
    args = _substitute(node.args, values)
    row = operation(node.op)
    if any(p.kind == "program" for p in row.parameters):
        result = _control[node.op.partition(".")[2]](weights, binding, hook, *args)
    else:
        result = execute(row, args, binding)
    if hook is not None:
        changed = hook(node, args, result)
        result = result if changed is None else changed
    return result


def _substitute(args: tuple[Any, ...], values: Mapping[Node, Any]) -> tuple[Any, ...]:
    return tuple(
        [
            values[a] if isinstance(a, Node) else _substitute(a, values) if isinstance(a, tuple) else a
            for a in args
        ]
    )


def _cond(
    weights: Weights,
    binding: Any,
    hook: Any,
    predicate: Any,
    then: Program,
    otherwise: Program,
    operands: Any,
) -> Any:
    chosen = then if bool(predicate) else otherwise
    return _run(chosen, weights, operands, {**binding, **bind_inputs(chosen, operands)}, hook, {}, {})


def _scan(weights: Weights, binding: Any, hook: Any, body: Program, initial: Any, xs: Any, extra: Any) -> Any:
    import torch

    carried, rows = tuple(initial), []
    for i in range(xs[0].shape[0]):
        given = (*carried, *(x[i] for x in xs), *extra)
        out = _run(body, weights, given, {**binding, **bind_inputs(body, given)}, hook, {}, {})
        carried = out[: len(initial)]
        rows.append(out[len(initial) :])
    return (*carried, *(torch.stack(column) for column in zip(*rows, strict=True)))


_control: dict[str, Callable[..., Any]] = {"cond": _cond, "scan": _scan}


def example_value(kind: TensorType, binding: Mapping[Symbol, int], seed: int = 0) -> Any:
    """A random tensor of a type, for tests and checks: normal floats, small non-negative integers."""
    import torch

    from planish.ir.eager import TORCH_DTYPES

    generator = torch.Generator().manual_seed(seed)
    shape = [evaluate(s, binding) for s in kind.shape]
    if kind.dtype.is_float:
        return torch.randn(shape, generator=generator).to(TORCH_DTYPES[kind.dtype.name])
    if kind.dtype.name == "bool":
        return torch.rand(shape, generator=generator) > 0.5
    return torch.randint(0, 4, shape, generator=generator).to(TORCH_DTYPES[kind.dtype.name])
