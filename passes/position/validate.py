"""A cache is proven on the program itself: no row changes when tokens follow, and steps give what the whole gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from planish.errors import GuardError
from planish.ir.node import Node, Program
from planish.ir.run import example_value, run
from planish.ir.types import evaluate, symbols_of
from planish.ir.weights import Weights
from planish.passes.position.labels import Label, Sequence
from planish.passes.position.parallel import SUFFIX, is_parallel

if TYPE_CHECKING:
    import torch

    from planish.passes.position.cache import Cached

LENGTH = 9
"""Tokens of the sequences that are tried."""

DENSE_BYTES = 4 << 30
"""Weights are decoded once for all runs if that takes no more memory."""

TOLERANCE = 1e-4
"""Largest difference of a row, relative to the largest value of the output: products are summed in another order."""


def validate_cache(
    program: Program, weights: Weights, cached: Cached, *, seed: int = 0, thorough: bool = False
) -> float:
    """Run the program and its steps on random tokens, compare them, and return the largest relative difference.

    That takes six runs of the interpreter; ``thorough`` tries more prefixes and more ways to cut the sequence.

    Raises ``GuardError`` PL520 if a row changes when later tokens do, PL521 with the first layer that differs if
    steps give other rows than the whole program. Unused rows of the caches hold NaN.
    """
    trial = _Trial(program, weights, cached, seed)
    length = trial.length
    half = length // 2
    splits: list[tuple[int, ...]] = [(half, 1, length - half - 1)]
    if thorough:
        splits += [(length,), (3, *[1] * (length - 3)), (half, length - half), (1, length - 1)]
    trial.check_prefixes(range(1, length) if thorough else (half,))
    ways = [tuple(n for n in s if n > 0) for s in dict.fromkeys(splits) if sum(s) == length]
    worst = max(map(trial.check, ways))
    if any(is_parallel(program) for program in cached.module.programs):
        worst = max(worst, trial.check(ways[0], SUFFIX))
    return worst


class _Trial:
    def __init__(self, program: Program, weights: Weights, cached: Cached, seed: int) -> None:
        import torch

        sequence = cached.sequence
        self.program, self.weights, self.cached, self.sequence = program, weights, cached, sequence
        generation = cached.generation
        self.length = min(LENGTH, generation["context"], generation["chunk"])
        self.batch = generation["batch"] or 2
        make = torch.Generator().manual_seed(seed)
        self.binding = dict.fromkeys(program.symbols, 5)
        if sequence.batch in self.binding:
            self.binding[sequence.batch] = self.batch
        self.binding[sequence.length] = self.length
        self.override = _decoded(sequence, weights)
        self.given = {}
        for index, leaf in enumerate(program.inputs):
            if leaf in sequence.tokens and leaf.dtype.is_integer:
                shape = [evaluate(s, self.binding) for s in leaf.shape]
                self.given[leaf] = torch.randint(0, generation["vocabulary"], shape, generator=make)
            else:
                self.given[leaf] = example_value(leaf.tensor, self.binding, seed + index)
        self.full = self.whole(self.given, self.length)

    def whole(self, tokens: Mapping[Node, torch.Tensor], length: int) -> torch.Tensor:
        """The first output for the first ``length`` tokens."""
        feeds = [
            _cut(tokens[leaf], self.sequence.rows(leaf), 0, length)
            if leaf in self.sequence.tokens
            else tokens[leaf]
            for leaf in self.program.inputs
        ]
        return run(self.program, self.weights, *feeds, override=self.override)[0]

    def check_prefixes(self, lengths: Iterable[int]) -> None:
        """Rows of a prefix are those of the whole, and do not see what comes later."""
        full = self.full
        for n in lengths:
            if not 0 < n < self.length:
                continue
            self._compare(
                self.whole(self.given, n), full[:, :n], "PL520", f"when {n} of {self.length} tokens are given"
            )
            changed = dict(self.given)
            for leaf in self.sequence.tokens:
                (axis,) = self.sequence.rows(leaf)
                changed[leaf] = self.given[leaf].clone()
                later = changed[leaf].narrow(axis, n, self.length - n)
                later.copy_(later.flip(axis).roll(1, 0) if later.dtype.is_floating_point else (later + 1) % 7)
            self._compare(
                self.whole(changed, self.length)[:, :n],
                full[:, :n],
                "PL520",
                f"when tokens from {n} on change",
            )

    def check(self, split: tuple[int, ...], suffix: str = "") -> float:
        """The rows of one way to cut the sequence into steps against those of the whole program."""
        full, worst = self.full, 0.0
        for first, rows, made in self.steps(split, suffix=suffix):
            want = full[:, first : first + rows]
            got = made if made.shape[1] == rows else made[:, -1:]
            want = want if made.shape[1] == rows else want[:, -1:]
            worst = max(
                worst, self._compare(got, want, "PL521", f"in steps of {split}, {self._first_layer(split)}")
            )
        return worst

    def steps(
        self, split: tuple[int, ...], hook: Any = None, suffix: str = ""
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        """First row, number of rows and output of each step, by entry points with names that end in ``suffix``."""
        import torch

        module = self.cached.module
        names = [p.name for p in module.programs]
        states: dict[str, Any] = {}
        if "begin" in names:
            begin = module["begin"]
            found = run(
                begin, self.weights, *(self.given[leaf] for leaf in begin.inputs), override=self.override
            )
            states = dict(zip([n for n, _ in begin.states], found, strict=True))
        first = 0
        for rows in split:
            entry = "decode" if rows == 1 else "extend" if "extend" in names else "prefill"
            program = module[entry + suffix]
            for node in program.nodes:
                if node.op == "state" and node.name not in states:
                    shape = [self.batch if symbols_of(s) else int(s) for s in node.shape]
                    states[node.name] = torch.full(shape, float("nan")).to(_torch(node))
            tokens = [_cut(self.given[t], self.sequence.rows(t), first, rows) for t in self.sequence.tokens]
            start, count = (torch.full((self.batch,), n, dtype=torch.int64) for n in (first, rows))
            out = run(
                program,
                self.weights,
                *tokens,
                start,
                count,
                *(self._one_context(start) if suffix else ()),
                states=states,
                override=self.override,
                hook=hook and hook(first),
            )
            states.update(zip([n for n, _ in program.states], out[1:], strict=True))
            yield first, rows, out[0]
            first += rows

    def _one_context(self, start: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The positions of rows as they are, and their first half as a context, which changes nothing."""
        import torch

        last = torch.full_like(start, self.length // 2)
        return start, torch.ones_like(start), last, torch.ones(self.batch), torch.ones(self.batch)

    def _compare(self, got: torch.Tensor, want: torch.Tensor, code: str, when: str) -> float:
        scale = float(want.abs().max()) or 1.0
        gap = float((got - want).abs().nan_to_num(float("inf")).max()) / scale
        if gap > TOLERANCE:
            raise GuardError(code, f"rows differ by {gap:.1e} of the largest value {when}")
        return gap

    def _first_layer(self, split: tuple[int, ...]) -> Lazily:
        return Lazily(lambda: self._diverges(split))

    def _diverges(self, split: tuple[int, ...]) -> str:
        """Where the first difference is: the origin of the first value whose rows are not those of the whole."""
        seen: dict[Node, Any] = {}

        def keep(node: Node, _: Any, value: Any) -> None:
            if self.sequence.labels.get(node) is Label.ROW:
                seen[node] = value

        feeds = [self.given[leaf] for leaf in self.program.inputs]
        run(self.program, self.weights, *feeds, override=self.override, hook=keep)
        back = {new: old for pairs in self.cached.pairs for old, new in pairs.items()}
        found: list[Node] = []

        def at(first: int) -> Any:
            def look(node: Node, _: Any, value: Any) -> None:
                old = back.get(node)
                axes = self.sequence.rows(old) if old is not None else ()
                if found or old not in seen or len(axes) != 1 or old.shape[axes[0]] != self.sequence.length:
                    return
                want = seen[old].narrow(axes[0], first, value.shape[axes[0]])
                if want.shape == value.shape and want.dtype.is_floating_point:
                    scale = float(want.abs().max()) or 1.0
                    if not float((want - value).abs().nan_to_num(float("inf")).max()) <= TOLERANCE * scale:
                        found.append(old)

            return look

        for _ in self.steps(split, at):
            pass
        if not found:
            return "at the output"
        origin = self.program.origins.get(found[0])
        scope = origin.scope if origin is not None and origin.scope else "an unnamed layer"
        return f"first at {scope} ({found[0].op})"


class Lazily:
    """Text that is made when it is shown."""

    def __init__(self, text: Any) -> None:
        self._text = text

    def __format__(self, spec: str) -> str:
        return format(self._text(), spec)

    def __str__(self) -> str:
        return str(self._text())


def _torch(node: Node) -> Any:
    from planish.ir.eager import TORCH_DTYPES

    return TORCH_DTYPES[node.dtype.name]


def _cut(value: torch.Tensor, axes: tuple[int, ...], first: int, rows: int) -> torch.Tensor:
    return value.narrow(axes[0], first, rows)


def _decoded(sequence: Sequence, weights: Weights) -> dict[Node, Any]:
    """Expressions of constants that rows read, computed once; none if they would take too much memory."""
    edge: dict[Node, None] = {}
    for node in sequence.program.nodes:
        if sequence.labels[node] is not Label.FIXED:
            edge.update(
                (o, None) for o in node.operands if sequence.labels[o] is Label.FIXED and not o.is_leaf
            )
    nodes = [n for n in edge if not symbols_of(n.type)]
    if sum(int(n.tensor.nbytes) for n in nodes) > DENSE_BYTES:
        return {}
    return dict(zip(nodes, run(Program("decoded", (), tuple(nodes)), weights), strict=True))
