"""How examples of operations are written."""

from __future__ import annotations

EXAMPLES: dict[str, list[str]] = {}


def add(op: str, given: str, *expressions: str) -> None:
    """Programs that apply ``op`` to inputs; in an expression ``@`` stands for the operation."""
    dims = "".join(f"{name} = dim({low}, 64)\n" for name, low in (("B", 1), ("T", 4)) if _uses(given, name))
    for expression in expressions:
        call = expression.replace("@", op)
        EXAMPLES.setdefault(op, []).append(f"{dims}def main({given}):\n    out = {call}\n    return out\n")


def text(op: str, program: str) -> None:
    """A program in full."""
    EXAMPLES.setdefault(op, []).append(program)


def _uses(given: str, name: str) -> bool:
    return name in given.replace("[", " ").replace("]", " ").replace(",", " ").replace("*", " ").split()


X = "x: f32[B, T, 6]"
