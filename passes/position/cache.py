"""``insert-kv-cache``: a causal program over whole sequences becomes steps over new tokens, with explicit caches.

The rewrite knows no architecture. Rows of tokens keep their operations, for as many rows as are new. Where attention
needs keys and values of earlier rows, new ones are put into a state and all are read from it; grouped heads are never
repeated. Values of positions are computed at the positions of the new rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from planish.errors import UnsupportedOpError, UsageError
from planish.ir.namespace import make, planish
from planish.ir.node import Module, Node, Origin, Program, input_leaf, state
from planish.ir.types import Symbol, TensorType, dim, i64, size
from planish.ir.weights import Weights
from planish.passes.position.labels import Label, Sequence, refused, sequence_of
from planish.passes.position.last import last_rows
from planish.passes.position.places import Places

START, COUNT = "start", "count"


@dataclass(frozen=True)
class CacheOptions:
    """How a cache is laid out.

    ``context`` is the largest number of tokens of a sequence, ``batch`` the number of sequences (None: any),
    ``chunk`` the most tokens that one call takes (None: 256, or the context if no layer has a window), ``rings``
    whether layers that see a window keep no more than that. ``extend`` and ``edit`` add the entry points that give
    all rows, and that move rows of the caches (where the model allows it). ``parallel`` adds those over contexts that
    were read side by side, and refuses what does not allow it.
    """

    context: int = 2048
    batch: int | None = 1
    chunk: int | None = None
    rings: bool = True
    extend: bool = True
    edit: bool = True
    parallel: bool = False


@dataclass(frozen=True)
class Cached:
    """Entry points that share constants and states, and what a host needs to know of them.

    ``sequence`` is what was found about the source; ``pairs`` maps its rows to those of ``extend`` and ``decode``.
    """

    module: Module
    generation: dict[str, Any]
    sequence: Sequence
    pairs: tuple[dict[Node, Node], ...]
    sources: dict[str, Node]
    """Which rows of the source program each state keeps."""


@dataclass
class Step:
    """The program for some number of new rows in the making; ``inputs`` are what it takes besides tokens."""

    sequence: Sequence
    options: CacheOptions
    weights: Weights
    new: Any
    name: str
    chunk: int
    made: dict[Node, Node] = field(default_factory=dict)
    caches: dict[tuple[Node, int], Node] = field(default_factory=dict)
    states: list[tuple[str, Node]] = field(default_factory=list)
    given: dict[Node, Node] = field(default_factory=dict)
    rings: dict[str, dict[str, int]] = field(default_factory=dict)
    origins: dict[Node, Origin] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batch = self.sequence.batch
        self.batch: Any = batch if self.options.batch is None else self.options.batch
        if not isinstance(batch, Symbol) and self.batch != batch:
            raise UsageError("PL835", f"the model is captured for a batch of {batch}, not of {self.batch}")
        self.start = input_leaf(START, TensorType(i64, (self.batch,)))
        self.count = input_leaf(COUNT, TensorType(i64, (self.batch,)))
        self.inputs: tuple[Node, ...] = (self.start, self.count)
        self.places = Places(
            self.sequence, self.weights, self.batch, self.new, self.options.context, self.start
        )

    def program(self) -> Program:
        """The step: token inputs, start and count to the rows of the first output, and next states."""
        source = self.sequence.program
        for node in source.nodes:
            if self.sequence.labels[node] is Label.ROW:
                made = self.made[node] = self._row(node)
                if node in source.origins:
                    self.origins.setdefault(made, source.origins[node])
        tokens = tuple(self.made.get(t) or self._input(t) for t in self.sequence.tokens)
        return Program(
            self.name, (*tokens, *self.inputs), (self.made[source.outputs[0]],), tuple(self.states),
            self.origins, source.output_names[:1],
        )  # fmt: skip

    def _row(self, node: Node) -> Node:
        if node.is_leaf:
            return self._input(node)
        if node.op == "planish.attention" and self.sequence.rows(node.args[1]):
            return self._attend(node)
        return make(node.op, *self._arguments(node, node.args))

    def _arguments(self, node: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        made: list[Any] = []
        for arg in args:
            if isinstance(arg, Node):
                made.append(self._operand(node, arg))
            elif isinstance(arg, tuple):
                made.append(self._arguments(node, arg))
            else:
                made.append(self._sized(arg))
        return tuple(made)

    def _sized(self, value: Any) -> Any:
        """A size with the number of new rows in place of the length, and the batch that is asked for."""
        if not hasattr(value, "xreplace"):
            return value
        return size(
            value.xreplace(
                {self.sequence.length: size_of(self.new), self.sequence.batch: size_of(self.batch)}
            )
        )

    def _operand(self, node: Node, operand: Node) -> Node:
        label = self.sequence.labels[operand]
        if label is Label.ROW:
            return self.made[operand]
        if label is Label.POSITION:
            return self.places.rows_for(operand, node)
        if label is Label.GIVEN:
            return self._given(operand)
        return operand

    def _input(self, leaf: Node) -> Node:
        shape = tuple(self._sized(s) for s in leaf.shape)
        return input_leaf(leaf.name, TensorType(leaf.dtype, shape))

    def _given(self, operand: Node) -> Node:
        """What follows from other inputs is computed once, and kept as a state."""
        if operand not in self.given:
            shape = tuple(self._sized(s) for s in operand.shape)
            self.given[operand] = state(f"given.{len(self.given)}", TensorType(operand.dtype, shape))
            self.states.append((self.given[operand].name, self.given[operand]))
        return self.given[operand]

    def _attend(self, node: Node) -> Node:
        q, k, v, mask, _, window, scale, softcap = node.args
        query = self._query(node, q, k)
        bias = None if mask is None else self._bias(node, mask)
        capacity, ring = self._capacity(window, bias)
        keys, values = (
            self._cache(kind, each, capacity, ring, window) for kind, each in (("keys", k), ("values", v))
        )
        return planish.attend(query, keys, values, self.start, self.count, bias, window, scale, softcap, ring)

    def _query(self, node: Node, q: Node, k: Node) -> Node:
        query = self._operand(node, q)
        if not query.shape[0] == self.batch == self.made[k].shape[0]:
            raise refused(self.sequence.program, node, f"has queries {query.type}, which begin with no batch")
        return query

    def _capacity(self, window: int | None, bias: Node | None) -> tuple[int, bool]:
        """A ring is as long as what the oldest of the new rows sees; a bias speaks of places, which a ring moves."""
        if self.options.rings and window is not None and bias is None:
            needed = window + self.chunk - 1
            if needed < self.options.context:
                return needed, True
        return self.options.context, False

    def _cache(self, kind: str, source: Node, capacity: int, ring: bool, window: int | None) -> Node:
        """Everything put so far, with the new rows of ``source``."""
        known = self.caches.get((source, capacity))
        if known is not None:
            return known
        new = self.made[source]
        name = f"{kind}.{sum(n.startswith(f'{kind}.') for n, _ in self.states)}"
        leaf = state(name, TensorType(new.dtype, (*new.shape[:-2], capacity, new.shape[-1])))
        made = planish.put(leaf, new, self.start, self.count, ring)
        self.caches[source, capacity] = made
        self.states.append((name, made))
        if ring:
            self.rings[name] = {"capacity": capacity, "window": int(window or 0)}
        return made

    def _bias(self, node: Node, mask: Node) -> Node:
        if self.sequence.labels[mask] is not Label.POSITION:
            return mask if self.sequence.labels[mask] is Label.FIXED else self._given(mask)
        return self.places.bias_for(mask, node)


def size_of(value: Any) -> Any:
    """A number or a symbol as sympy has it."""
    import sympy

    return sympy.Integer(value) if isinstance(value, int) else value


def insert_cache(program: Program, weights: Weights, options: CacheOptions | None = None) -> Cached:
    """Entry points ``prefill``, ``decode`` and ``extend`` of a causal language model, and ``begin`` if there is more
    than tokens to read.

    ``program`` maps tokens ``i64[B, T]`` (and whatever else it is given) to logits ``[B, T, V]``. Raises
    ``UnsupportedOpError`` PL260 with the operation that makes it not causal, PL261 if there is no free length, PL262
    if the context is longer than the model has positions, PL264 if contexts cannot be read side by side.
    """
    options = options or CacheOptions()
    sequence = sequence_of(program)
    context = options.context
    if context < 1 or (options.chunk is not None and not 1 <= options.chunk <= context):
        raise UsageError("PL835", f"a context of {context} tokens with a chunk of {options.chunk} is none")
    if not sequence.length.low <= context <= sequence.length.high:
        raise UnsupportedOpError(
            "PL262",
            f"the context is {context}, the model takes {sequence.length.low} to {sequence.length.high} tokens",
        )
    windows = [n.args[5] for n in sequence.attentions if n.args[5] is not None]
    chunk = options.chunk or (min(256, context) if windows and options.rings else context)
    steps = [Step(sequence, options, weights, dim("S", 1, chunk), "prefill", chunk)]
    steps.append(Step(sequence, options, weights, 1, "decode", chunk))
    made = [step.program() for step in steps]
    if options.extend:
        made.append(replace(made[0], name="extend"))
    made[0] = last_rows(made[0], steps[0].new, steps[0].count)
    begin = _begin(sequence, steps[1])
    generation = {
        "context": context, "chunk": chunk, "batch": options.batch, "token_input": sequence.tokens[0].name,
        "vocabulary": int(program.outputs[0].shape[-1]), "rings": steps[0].rings,
    }  # fmt: skip
    cached = Cached(
        Module((*made, *begin)), generation, sequence, tuple(s.made for s in steps), _sources(steps[1])
    )
    cached = _with_move(cached, weights) if options.edit else cached
    if not options.parallel:
        return cached
    from planish.passes.position.parallel import with_parallel

    return with_parallel(cached, weights, options, steps[0].new)


def _with_move(cached: Cached, weights: Weights) -> Cached:
    """The same with ``move``, or with the reason why there is none."""
    from planish.passes.position.reencode import move_program

    try:
        move = move_program(cached, weights)
    except UnsupportedOpError as problem:
        return replace(cached, generation={**cached.generation, "no_edit": problem.message})
    return replace(cached, module=Module((*cached.module.programs, move)))


def _sources(step: Step) -> dict[str, Node]:
    by_cache = {made: source for (source, _), made in step.caches.items()}
    return {name: by_cache[made] for name, made in step.states if made in by_cache}


def _begin(sequence: Sequence, step: Step) -> tuple[Program, ...]:
    """The program that reads everything but tokens, once."""
    if not step.given:
        return ()
    source = sequence.program
    inputs = tuple(leaf for leaf in source.inputs if leaf not in sequence.tokens)
    states = tuple((leaf.name, node) for node, leaf in step.given.items())
    return (Program("begin", inputs, (), states, source.origins, ()),)


__all__ = ["COUNT", "START", "CacheOptions", "Cached", "Step", "insert_cache"]
