"""Capture from PyTorch: a module with example inputs, or an exported program, becomes a program and its weights."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from planish.errors import CaptureError, PlanishError, UsageError
from planish.frontend.capture.base import Captured
from planish.frontend.capture.dims import Wanted, free_symbols, symbolic_axes, wanted_axes
from planish.frontend.capture.guards import conditions
from planish.frontend.capture.recurrent import keep_recurrent
from planish.frontend.capture.sources import Fixed, fixed_line, model_line, watch_fixed_dimensions
from planish.frontend.capture.translate import translate


def capture_torch(
    model: torch.nn.Module | ExportedProgram,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    allow_fixed: bool = False,
    name: str = "main",
) -> Captured:
    """A PyTorch model as a program.

    ``example_inputs`` is a tensor, a tuple of positional inputs or a mapping of keyword inputs. ``dynamic_shapes``
    names dimensions: ``{"input_ids": {0: "B", 1: ("T", 2, 512)}}``, or torch.export's own syntax with ``Dim``.
    A dimension that the model's Python fixes raises ``CaptureError`` PL104 with the line, unless ``allow_fixed``; so
    does a choice that the model's Python made by a size, if sizes in range would choose otherwise.
    Other errors: PL101 (capture failed), PL102 (data-dependent size), PL105 (mutation), ``UnsupportedOpError`` PL201.
    """
    if isinstance(model, ExportedProgram):
        return translate(model, name, _symbols_of_export(model), ())
    args, kwargs = _inputs(example_inputs)
    names = _parameter_names(model, args, kwargs)
    asked = _asked(dynamic_shapes, names, args, kwargs)
    with watch_fixed_dimensions() as fixed:
        exported = _export(model, args, kwargs, names, asked)
    notes = _check_fixed(exported, asked, fixed, allow_fixed)
    asked, more = _check_conditions(exported, asked, allow_fixed)
    return translate(exported, name, asked, notes + more)


def _inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example_inputs is None:
        raise UsageError(
            "PL850",
            "a PyTorch module needs example inputs",
            hint="pass example_inputs=(tensor, ...) or a mapping",
        )
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if not isinstance(example_inputs, Sequence) or isinstance(example_inputs, (str, bytes)):
        kind = type(example_inputs).__name__
        raise UsageError("PL850", f"example inputs are a tensor, a tuple or a mapping, got {kind}")
    match example_inputs:
        case (tuple() | list() as positional, Mapping() as named):
            return tuple(positional), dict(named)
    return tuple(example_inputs), {}


def _parameter_names(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            "PL851",
            f"the example inputs do not fit {type(model).__name__}.forward: {error}",
            hint=f"it is {signature}",
        ) from None
    names: list[str] = []
    for key, value in bound.arguments.items():
        kind = signature.parameters[key].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{key}_{i}" for i in range(len(value))]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            names += list(value)
        else:
            names.append(key)
    return names


def _asked(
    dynamic_shapes: Any, names: list[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, dict[int, Wanted]]:
    """Per input the axes that shall be dynamic."""
    if dynamic_shapes is None:
        return {}
    values = dict(zip(names, args, strict=False)) | dict(kwargs)
    if isinstance(dynamic_shapes, (tuple, list)):
        if len(dynamic_shapes) > len(names):
            raise UsageError("PL852", f"{len(dynamic_shapes)} dynamic shapes for {len(names)} inputs")
        dynamic_shapes = dict(zip(names, dynamic_shapes, strict=False))
    unknown = [k for k in dynamic_shapes if k not in values]
    if unknown:
        raise UsageError(
            "PL852", f"no input is called {', '.join(unknown)}", hint=f"inputs: {', '.join(names)}"
        )
    out = {}
    for key, spec in dynamic_shapes.items():
        if spec is not None and not isinstance(values[key], torch.Tensor):
            raise UsageError("PL852", f"{key} is not a tensor, it has no dynamic dimensions")
        axes = wanted_axes(spec, values[key].dim(), key) if spec is not None else {}
        for axis, each in axes.items():
            have = values[key].shape[axis]
            if not each.low <= have <= each.high:
                limits = f"[{each.low}, {each.high}]"
                raise UsageError("PL853", f"{key}: axis {axis} ({each.name}) is {have}, outside of {limits}")
        out[key] = axes
    return out


def _tree(value: Any, axes: Mapping[int, Wanted]) -> Any:
    """torch.export's dynamic shapes for one input."""
    if isinstance(value, torch.Tensor):
        return {a: Dim.AUTO(min=max(w.low, 0), max=w.high) for a, w in axes.items()} or None
    if isinstance(value, (list, tuple)):
        return type(value)(_tree(v, {}) for v in value)
    if isinstance(value, dict):
        return {k: _tree(v, {}) for k, v in value.items()}
    return None


@contextlib.contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module gets its own mode back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and nothing on stderr, where torch prints whole graphs when a capture fails."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str],
    asked: Mapping[str, Mapping[int, Wanted]],
) -> ExportedProgram:  # fmt: skip
    shapes: dict[str, Any] = {}
    for key, value in zip(names, args, strict=False):
        shapes[key] = _tree(value, asked.get(key, {}))
    for key, value in kwargs.items():
        shapes[key] = _tree(value, asked.get(key, {}))
    variadic = any(
        p.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for p in inspect.signature(model.forward).parameters.values()
    )
    spec: Any = _variadic_shapes(model, args, kwargs, shapes, names) if variadic else shapes
    with _quiet(), _evaluation_mode(model), torch.no_grad(), keep_recurrent():
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=spec, strict=False)
        except PlanishError:
            raise
        except Exception as error:  # every failure of torch.export becomes one coded error
            raise _capture_failed(model, error) from error


def _variadic_shapes(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: dict[str, Any],
    names: list[str],
) -> Any:
    """Dynamic shapes for a forward with ``*args`` or ``**kwargs``: torch wants them nested under those names."""
    signature = inspect.signature(model.forward)
    out: dict[str, Any] = {}
    for key, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[key].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            out[key] = tuple(shapes[f"{key}_{i}"] for i in range(len(value)))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            out |= {k: shapes[k] for k in value}
        else:
            out[key] = shapes[key]
    return out


def _capture_failed(model: torch.nn.Module, error: Exception) -> CaptureError:
    text = str(error).strip().split("\n\nThe following call raised")[0]
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    where = model_line(error)
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in text.lower() or "unbacked" in text.lower():
        return CaptureError(
            "PL102", f"{type(model).__name__}: the model's Python depends on the data: {first}", where=where,
            hint="write the choice with torch.where, or fix what it depends on",
        )  # fmt: skip
    return CaptureError("PL101", f"{type(model).__name__} cannot be captured: {kind}: {first}", where=where)


def _check_fixed(
    exported: ExportedProgram,
    asked: Mapping[str, Mapping[int, Wanted]],
    fixed: list[Fixed],
    allow_fixed: bool,
) -> tuple[str, ...]:
    """Refuse or note every dimension that was asked to be dynamic and came out fixed."""
    notes = []
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            continue
        for axis, each in asked.get(node.name, asked.get(node.target, {})).items():
            have = node.meta["val"].shape[axis]
            if not isinstance(have, int) and not have.node.expr.is_number:
                continue
            line = fixed_line(fixed, node.name, axis, int(have))
            message = f"{node.name}: dimension {each.name} (axis {axis}) is fixed to {int(have)} by the model's Python"
            if not allow_fixed:
                raise CaptureError(
                    "PL104", message, where=line,
                    hint="pass allow_fixed=True to capture the model with this size only",
                )  # fmt: skip
            notes.append(message + (f" at {line}" if line else ""))
    return tuple(notes)


def _check_conditions(
    exported: ExportedProgram, asked: dict[str, dict[int, Wanted]], allow_fixed: bool
) -> tuple[dict[str, dict[int, Wanted]], tuple[str, ...]]:
    """Refuse or note conditions on sizes under which the model's Python would have done something else.

    A condition that holds from some size on raises the lower end of that dimension's range instead.
    """
    names: dict[Any, str] = {}
    for node in exported.graph.nodes:
        wanted = asked.get(node.name, {}) if node.op == "placeholder" else {}
        for axis, have in symbolic_axes(node.meta.get("val")) if wanted else ():
            if axis in wanted and have.node.expr.is_Symbol:
                names.setdefault(have.node.expr, wanted[axis].name)
    notes: list[str] = []
    lowest: dict[str, int] = {}
    for condition in conditions(exported, names):
        message = f"the model's Python does something else unless {condition.text}"
        if condition.dimension is not None:
            lowest[condition.dimension] = max(lowest.get(condition.dimension, 0), condition.low)
            message += f", so {condition.dimension} is at least {condition.low}"
        elif not allow_fixed:
            raise CaptureError(
                "PL104", message, where=condition.line,
                hint="pass allow_fixed=True to capture what it does for such sizes only",
            )  # fmt: skip
        notes.append(f"{message} at {condition.line}")
    raised = {
        key: {a: replace(w, low=max(w.low, lowest.get(w.name, 0))) for a, w in axes.items()}
        for key, axes in asked.items()
    }
    return raised, tuple(notes)


def _symbols_of_export(exported: ExportedProgram) -> dict[str, dict[int, Wanted]]:
    """Names for the dynamic dimensions of a program that was exported elsewhere."""
    out: dict[str, dict[int, Wanted]] = {}
    seen: dict[Any, Wanted] = {}
    names = iter([*"ABCDEFGHIJKLMNOPQRSUVWXYZ", *(f"S{i}" for i in range(1000))])
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            continue
        for axis, have in symbolic_axes(node.meta.get("val")):
            for symbol in free_symbols(have):
                if symbol not in seen:
                    limits = exported.range_constraints.get(symbol)
                    low = max(1, int(limits.lower)) if limits is not None else 1
                    high = int(limits.upper) if limits is not None and limits.upper.is_Integer else 2**31 - 1
                    seen[symbol] = Wanted(next(names), low if low > 2 else 1, min(high, 2**31 - 1))
                out.setdefault(node.name, {})[axis] = seen[symbol]
    return out
