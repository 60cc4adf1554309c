"""Verification of several programs: what they share has one meaning in all of them."""

from __future__ import annotations

from planish.errors import ShapeError
from planish.ir.node import Module
from planish.ir.verify import verify
from planish.ir.weights import Weights


def verify_module(module: Module, weights: Weights | None = None) -> Module:
    """The module itself if its programs are valid and agree on what they share; raises ``ShapeError`` PL360 otherwise.

    They share dimensions, constants and states by name: each has one range or one type, and programs have names of
    their own. What a program reads as a state it also gives as a next state.
    """
    names = [program.name for program in module.programs]
    found = [f"two programs are called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
    if not names:
        found.append("there is no program")
    kinds: dict[tuple[str, str], tuple[object, str]] = {}
    for program in module.programs:
        verify(program, weights)
        shared: list[tuple[str, str, object]] = [
            ("dimension", s.name, f"{s.low}..{s.high}") for s in program.symbols
        ]
        shared += [("constant", leaf.name, leaf.type) for leaf in program.constants()]
        shared += [("state", leaf.name, leaf.type) for leaf in program.state_leaves()]
        for what, name, kind in shared:
            known, where = kinds.setdefault((what, name), (kind, program.name))
            if known != kind:
                found.append(f"{what} {name} is {known} in {where} and {kind} in {program.name}")
        given = {name for name, _ in program.states}
        lost = [leaf.name for leaf in program.state_leaves() if leaf.name not in given]
        found += [f"{program.name} reads the state {name} and gives no next value for it" for name in lost]
    if found:
        raise ShapeError("PL360", "the module is not valid:\n  " + "\n  ".join(found[:20]))
    return module
