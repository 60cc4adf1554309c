"""Which passes there are: the built-in ones are listed here, others come from the entry points `planish.passes`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from planish.errors import UsageError
from planish.passes.base import Pass

GROUP = "planish.passes"
"""The entry point group in which other packages offer passes."""

BUILT_IN: Mapping[str, str] = {
    "canonical": "planish.passes.canonical.passes:Canonical",
    "simplify": "planish.passes.canonical.passes:Simplify",
    "fold": "planish.passes.canonical.fold:Fold",
    "find-norm": "planish.passes.recognise.norm:FindNorm",
    "find-rope": "planish.passes.recognise.rope:FindRope",
    "find-attention": "planish.passes.recognise.attention:FindAttention",
    "recognise": "planish.passes.recognise.recognise:Recognise",
    "affine": "planish.passes.compress.affine:Affine",
    "nm": "planish.passes.compress.nm:Nm",
    "fold-batch-norm": "planish.passes.batch_norm:FoldBatchNorm",
    "round-activations": "planish.passes.activations:RoundActivations",
    "round-operands": "planish.passes.activations:RoundOperands",
    "widen": "planish.passes.widen:Widen",
    "select": "planish.passes.select:Select",
    "channels-last": "planish.passes.channels_last:ChannelsLast",
}
"""Name of a pass to the class that is imported when it is asked for."""

SHORTHANDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    f"int{bits}": ("affine", {"bits": bits}) for bits in range(2, 9)
}
"""Names for a pass with some options set."""


@cache
def _foreign() -> Mapping[str, Any]:
    return {point.name: point for point in entry_points(group=GROUP)}


def pass_names() -> list[str]:
    """Every name that a pipeline may use, shorthands included."""
    return sorted({*BUILT_IN, *SHORTHANDS, *_foreign()})


def find_pass(name: str) -> type[Pass]:
    """The class behind a name (not a shorthand); raises ``UsageError`` PL810 with near names."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    elif name in _foreign():
        found = _foreign()[name].load()
    else:
        near = difflib.get_close_matches(name, pass_names(), 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known passes: {', '.join(pass_names())}"
        raise UsageError("PL810", f"unknown pass '{name}'", hint=hint)
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise UsageError("PL810", f"'{name}' is not a pass: {found!r}")
    return found


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """A pass by its name or shorthand, with options given as values."""
    target, preset = SHORTHANDS.get(name, (name, {}))
    return find_pass(target)(**{**preset, **options})
