"""Everything that a backend has no form for, told at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from planish.errors import UnsupportedOpError
from planish.ir.node import Node, Program


def refuse_unsupported(
    program: Program, unsupported: Callable[[Node], Iterable[str]], *, code: str, backend: str
) -> None:
    """Raise ``UnsupportedOpError`` with what ``unsupported`` names, in nested programs too.

    Each has its count and, where it is known, the first line of the user's source.
    """
    missing: Counter[str] = Counter()
    source: dict[str, str] = {}
    pending = [program]
    while pending:
        one = pending.pop()
        pending.extend(one.nested())
        for node in dict.fromkeys((*one.inputs, *one.nodes)):
            for what in unsupported(node):
                missing[what] += 1
                origin = one.origins.get(node)
                if origin is not None and origin.source and what not in source:
                    source[what] = origin.source
    if not missing:
        return
    lines = [
        f"  {what}, {count} times" + (f", first at {source[what]}" if what in source else "")
        for what, count in sorted(missing.items())
    ]
    raise UnsupportedOpError(
        code,
        f"{backend} has no form for\n" + "\n".join(lines),
        hint="use target='eager', or decompose these operations",
    )
