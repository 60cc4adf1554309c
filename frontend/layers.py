"""Rules of the user for single weights, as a pass; they stand in the place of the pipeline's own codec."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from planish.errors import UsageError
from planish.frontend.config import Rule
from planish.ir.node import Program
from planish.ir.rewrite import Log
from planish.ir.rule import Kind
from planish.ir.weights import Weights
from planish.passes.base import Pass
from planish.passes.compress.affine import Affine


@dataclass(frozen=True)
class LayerRules(Pass):
    """Encode each weight by the first rule that matches it, all others by ``default``, a pass, or not at all.

    ``rules`` is a list of tables as JSON, so that the pass can be printed and read like any other.
    """

    kind: ClassVar[Kind] = "lossy"
    rules: str = "[]"
    default: str = ""

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Replace every chosen constant by a decoding of its parts."""
        from planish.passes.compress.encode import apply_layer_rules
        from planish.passes.spec import parse_pass

        chosen = parse_pass(self.default) if self.default else None
        codec = chosen.codec() if isinstance(chosen, Affine) else None
        least = chosen.min_numel if isinstance(chosen, Affine) else 1024
        return apply_layer_rules(program, weights, json.loads(self.rules), codec, min_numel=least, log=log)


def with_layers(passes: Sequence[Pass], layers: Sequence[Rule]) -> tuple[Pass, ...]:
    """The passes with the rules in the place of the one that encodes weights, or at the end."""
    if not layers:
        return tuple(passes)
    try:
        rules = json.dumps([dict(rule) for rule in layers], sort_keys=True)
    except (TypeError, ValueError) as error:
        raise UsageError("PL824", f"layers cannot be written as JSON: {error}") from None
    codecs = [p for p in passes if isinstance(p, Affine)]
    if len(codecs) > 1 or any(c.only != "*" or c.skip for c in codecs):
        raise UsageError(
            "PL826", "layers cannot be combined with several codecs in one pipeline, or with only= and skip=",
            hint="say it in layers alone",
        )  # fmt: skip
    made = LayerRules(rules, str(codecs[0]) if codecs else "")
    if not codecs:
        return (*passes, made)
    return tuple(made if each is codecs[0] else each for each in passes)
