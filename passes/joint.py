"""Programs of a module as one program, for decisions on what they share, and taken apart again."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from planish.ir.node import Module, Node, Origin, Program


def join(module: Module) -> Program:
    """One program with all outputs and next states of a module, in order; a single program is itself.

    A constant expression of several programs is one node in it. It is for passes that look at constants: inputs of
    different programs may have the same name.
    """
    if len(module.programs) == 1:
        return module.default
    origins: dict[Node, Origin] = {}
    for program in reversed(module.programs):
        origins.update(program.origins)
    inputs = tuple(dict.fromkeys(leaf for program in module.programs for leaf in program.inputs))
    roots = tuple(root for program in module.programs for root in program.roots)
    return Program(module.default.name, inputs, roots, (), origins)


def split(joint: Program, module: Module) -> Module:
    """The programs of ``module`` with the roots that they have in ``joint``, which :func:`join` made of them."""
    if len(module.programs) == 1:
        return Module((joint,))
    roots = iter(joint.roots)
    made = []
    for program in module.programs:
        outputs = tuple(islice(roots, len(program.outputs)))
        states = tuple(islice(roots, len(program.states)))
        each = program.with_roots(outputs, states)
        known = joint.origins
        made.append(replace(each, origins={n: known[n] for n in each.nodes if n in known}))
    return Module(tuple(made))


__all__ = ["join", "split"]
