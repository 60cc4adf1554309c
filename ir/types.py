"""Element types, symbolic dimensions with ranges, and tensor types such as ``f16[B, T, 64]``.

A size is an ``int`` or a sympy expression over :class:`Symbol`. A symbol carries its range, so that facts
such as "T is at least 2" never need an environment. Expressions are kept expanded: equal sizes are equal objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias, cast

import sympy

from planish.errors import ShapeError


@dataclass(frozen=True, eq=False)
class DType:
    """An element type: its short name, width in bits and kind (``float``, ``int``, ``uint``, ``bool``, ``complex``)."""

    name: str
    bits: int
    kind: str

    @property
    def is_float(self) -> bool:
        """True for floating-point element types."""
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers, not for ``bool``."""
        return self.kind in ("int", "uint")

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return (dtype, (self.name,))


_ALL = [
    DType(f"{k[0]}{b}", b, k)
    for k in ("float", "int", "uint")
    for b in (8, 16, 32, 64)
    if (k, b) != ("float", 8)
]
_ALL += [DType("bf16", 16, "float"), DType("bool", 8, "bool")]
_ALL += [DType("f8e4m3", 8, "float"), DType("f8e5m2", 8, "float"), DType("c64", 64, "complex")]
DTYPES: Mapping[str, DType] = {d.name: d for d in _ALL}
f64, f32, f16, bf16 = (DTYPES[n] for n in ("f64", "f32", "f16", "bf16"))
i64, i32, i16, i8, u8 = (DTYPES[n] for n in ("i64", "i32", "i16", "i8", "u8"))
boolean = DTYPES["bool"]


def dtype(name: str) -> DType:
    """The element type called ``name``; raises ``ShapeError`` PL301 for an unknown one."""
    if name not in DTYPES:
        raise ShapeError("PL301", f"unknown element type '{name}'", hint=f"known: {', '.join(DTYPES)}")
    return DTYPES[name]


class Symbol(sympy.Symbol):
    """A symbolic dimension with an inclusive range ``[low, high]``; both are part of its identity."""

    __slots__ = ("high", "low")
    low: int
    high: int
    _made: dict[tuple[str, int, int], Symbol] = {}

    def __new__(cls, name: str, low: int = 1, high: int = 2**31 - 1) -> Symbol:
        if not (0 <= low <= high):
            raise ShapeError("PL302", f"{name} = dim({low}, {high}): the range is empty or negative")
        key = (name, low, high)
        if key not in cls._made:
            made = sympy.Symbol.__xnew__(
                cls, name, integer=True, **({"positive": True} if low else {"nonnegative": True})
            )
            made.low, made.high = low, high
            cls._made[key] = made
        return cls._made[key]

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), self.low, self.high)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Symbol, (self.name, self.low, self.high))

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.name, self.low, self.high), {}


Size: TypeAlias = "int | sympy.Expr"


def dim(name: str, low: int = 1, high: int = 2**31 - 1) -> Symbol:
    """A symbolic dimension ``name`` with the inclusive range ``[low, high]``."""
    return Symbol(name, low, high)


def size(value: Any) -> Size:
    """``value`` as a size: a plain ``int`` when it is a number, else an expanded sympy expression."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, sympy.Symbol):
        return cast(Size, value)
    return _expanded(value)


@lru_cache(maxsize=65536)
def _expanded(value: sympy.Expr) -> Size:
    value = sympy.expand(value)
    if value.is_Integer:
        return int(value)
    if value.is_number and value.is_integer is False:
        raise ShapeError("PL303", f"a size must be a whole number, got {value}")
    return cast(Size, value)


@lru_cache(maxsize=65536)
def floor_div(a: Size, b: Size) -> Size:
    """``a // b`` in canonical form: exact quotients lose the floor, nested floors become one."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    plain, divisor = without_mod(a), without_mod(b)
    if (plain, divisor) != (a, b):  # such as (T + -T%4)//4
        exact = floor_div(plain, divisor)
        if equal(size(divisor * exact), plain):
            return exact
    quotient = sympy.cancel(sympy.sympify(a) / b)
    top, bottom = sympy.fraction(sympy.together(quotient))
    if not bottom.is_Integer:
        return size(sympy.floor(quotient))
    terms = sympy.Add.make_args(sympy.expand(top))
    floors = [t for t in terms if isinstance(t, sympy.floor)]
    if len(floors) == 1:  # (x//c + n)//d is (x + n*c)//(c*d) for whole n
        inner, c = sympy.fraction(sympy.together(floors[0].args[0]))
        if c.is_Integer:
            rest = sympy.Add(*(t for t in terms if t is not floors[0]))
            return floor_div(size(inner + c * rest), int(c * bottom))
    quotient = sympy.expand(quotient)
    whole = sympy.floor(quotient.as_coeff_Add()[0])  # what stays inside has a constant part in [0, 1)
    return size(sympy.floor(quotient - whole) + whole)


@lru_cache(maxsize=65536)
def without_mod(value: Size) -> Size:
    """The same size with ``a % b`` spelled ``a - b*(a//b)``."""
    if isinstance(value, int) or not value.has(sympy.Mod):
        return value
    return size(_without_mod(value))


def _without_mod(e: Any) -> Any:
    if not e.args:
        return e
    parts = [_without_mod(a) for a in e.args]
    if isinstance(e, sympy.Mod):
        return parts[0] - parts[1] * floor_div(size(parts[0]), size(parts[1]))
    if isinstance(e, sympy.floor):  # what stood in it may have changed, so it is made again
        top, bottom = sympy.fraction(sympy.together(parts[0]))
        return sympy.sympify(floor_div(size(top), size(bottom)))
    return e.func(*parts)


@lru_cache(maxsize=65536)
def mod(a: Size, b: Size) -> Size:
    """``a % b`` in canonical form."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return size(sympy.Mod(sympy.expand(without_mod(a)), b))


def maximum(a: Size, b: Size) -> Size:
    """The larger of two sizes, decided by ranges where they tell."""
    if at_least(a, b):
        return a
    if at_least(b, a):
        return b
    return size(sympy.Max(a, b))


def minimum(a: Size, b: Size) -> Size:
    """The smaller of two sizes, decided by ranges where they tell."""
    if at_least(a, b):
        return b
    if at_least(b, a):
        return a
    return size(sympy.Min(a, b))


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes; 1 for none."""
    whole, symbols = 1, []
    for each in sizes:
        if isinstance(each, int):
            whole *= each
        else:
            symbols.append(each)
    return size(sympy.Mul(whole, *symbols)) if symbols else whole


def bounds(value: Any) -> tuple[float, float]:
    """An interval that holds ``value`` for every choice of the symbols in their ranges (may be wider than needed)."""
    if isinstance(value, int):
        return value, value
    return _bounds(value)


@lru_cache(maxsize=65536)
def _bounds(value: sympy.Expr) -> tuple[float, float]:
    if isinstance(value, Symbol):
        return value.low, value.high
    if value.is_number:
        number = cast(float, Fraction(int(value.p), int(value.q))) if value.is_Rational else float(value)
        return (int(value), int(value)) if value.is_Integer else (number, number)
    parts = [_bounds(a) for a in value.args]
    if isinstance(value, sympy.Add):
        low, high = sum(p[0] for p in parts), sum(p[1] for p in parts)
        if value.is_integer and any(isinstance(t.as_coeff_Mul()[1], sympy.floor) for t in value.args):
            lowest, highest = _bounds(_relaxed(value, 1))[0], _bounds(_relaxed(value, -1))[1]
            low = max(low, math.ceil(lowest)) if math.isfinite(lowest) else low
            high = min(high, math.floor(highest)) if math.isfinite(highest) else high
        return low, high
    if isinstance(value, sympy.Mul):
        out = parts[0]
        for part in parts[1:]:
            ends = [_times(x, y) for x in out for y in part]
            out = min(ends), max(ends)
        return out
    if isinstance(value, sympy.Pow) and value.exp.is_Integer and value.exp > 0 and parts[0][0] >= 0:
        return parts[0][0] ** int(value.exp), parts[0][1] ** int(value.exp)
    if isinstance(value, sympy.Pow) and value.exp == -1 and parts[0][0] > 0:
        return _inverse(parts[0][1]), _inverse(parts[0][0])
    if isinstance(value, sympy.floor):
        return tuple(math.floor(p) if math.isfinite(p) else p for p in parts[0])  # type: ignore[return-value]
    if isinstance(value, sympy.Mod) and parts[1][0] > 0:
        return 0, parts[1][1] - 1
    if isinstance(value, sympy.Max):
        return max(p[0] for p in parts), max(p[1] for p in parts)
    if isinstance(value, sympy.Min):
        return min(p[0] for p in parts), min(p[1] for p in parts)
    return -math.inf, math.inf


def _relaxed(value: sympy.Add, sign: int) -> Any:
    """A sum without its floors: not above ``value`` for sign 1, not below for -1; ``T - 2*(T//2)`` is at least 0."""
    out = sympy.Integer(0)
    for term in value.args:
        factor, rest = term.as_coeff_Mul()
        if isinstance(rest, sympy.floor):
            rest, bottom = rest.args[0], sympy.fraction(sympy.together(rest.args[0]))[1]
            if factor * sign > 0:
                rest -= 1 - (1 / bottom if bottom.is_Integer else 0)
        out += factor * rest
    return sympy.expand(out)


def _inverse(x: float) -> float:
    return 1 / x if isinstance(x, float) else cast(float, Fraction(1, 1) / x)


def _times(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def equal(a: Size, b: Size) -> bool:
    """True if the two sizes are equal for every choice of symbols, as far as expansion tells."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a == b or without_mod(size(sympy.sympify(a) - b)) == 0


def different(a: Size, b: Size) -> bool:
    """True if the two sizes are certainly different for every choice of symbols."""
    low, high = bounds(size(sympy.sympify(a) - b))
    return low > 0 or high < 0


def at_least(a: Size, b: Size) -> bool:
    """True if ``a >= b`` for every choice of symbols, as far as ranges tell."""
    if isinstance(a, int) and isinstance(b, int):
        return a >= b
    return bounds(size(sympy.sympify(a) - b))[0] >= 0


def symbols_of(value: Any) -> set[Symbol]:
    """The symbols that occur in a size, a type or a (nested) sequence of them."""
    if isinstance(value, sympy.Basic):
        return cast("set[Symbol]", value.free_symbols)
    if isinstance(value, TensorType):
        value = value.shape
    if isinstance(value, TupleType):
        value = value.items
    if isinstance(value, (tuple, list)):
        return set().union(*(symbols_of(v) for v in value)) if value else set()
    return set()


def evaluate(value: Size, binding: Mapping[Symbol, int]) -> int:
    """The number a size stands for once its symbols are bound; raises ``ShapeError`` PL304 for an unbound one."""
    if isinstance(value, int):
        return value
    if isinstance(value, Symbol) and value in binding:
        return binding[value]
    result = value.xreplace({k: sympy.Integer(v) for k, v in binding.items()})
    if result.free_symbols:
        unbound = ", ".join(sorted(str(s) for s in result.free_symbols))
        raise ShapeError("PL304", f"the dimension {unbound} is not bound by any input")
    return int(result)


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a tensor, written ``f32[B, T, 64]``."""

    dtype: DType
    shape: tuple[Size, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def numel(self) -> Size:
        """Number of elements, as a size."""
        return product(self.shape)

    @property
    def nbytes(self) -> Size:
        """Number of bytes when stored densely, as a size."""
        return product((self.numel, self.dtype.bits // 8))

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(format_size, self.shape)) or '()'}]"


@dataclass(frozen=True)
class TupleType:
    """The type of an operator with several results (recurrent ones); its parts are read by ``planish.item``."""

    items: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))}{',' * (len(self.items) == 1)})"


Type: TypeAlias = TensorType | TupleType


def tensor_type(element: DType | str, *shape: Any) -> TensorType:
    """A tensor type from an element type (or its name) and sizes."""
    return TensorType(dtype(element) if isinstance(element, str) else element, tuple(size(s) for s in shape))


@lru_cache(maxsize=65536)
def format_size(value: Size) -> str:
    """A size as Python text that :func:`planish.ir.parser.parse_size` reads back to the same expression."""
    return str(value) if isinstance(value, int) else _text(value)[0]


_ATOM, _POWER, _PRODUCT, _SUM = 3, 3, 2, 1


def _text(e: Any) -> tuple[str, int]:
    """Text of an expression and how tightly its outermost operator binds."""
    if isinstance(e, sympy.Symbol):
        return e.name, _ATOM
    if e.is_Integer:
        return str(e), _ATOM if e >= 0 else _SUM
    if isinstance(e, sympy.Add):
        out = ""
        for term in e.as_ordered_terms():
            negative = term.as_coeff_Mul()[0] < 0
            text, strength = _text(-term if negative else term)
            if negative and not out:  # a leading minus binds tighter than // and %
                text, strength = _wrapped(-term, _PRODUCT), _PRODUCT
            text = text if strength > _SUM else f"({text})"
            out += (" - " if out else "-") + text if negative else (" + " if out else "") + text
        return out, _SUM
    if isinstance(e, sympy.floor):
        top, bottom = sympy.fraction(sympy.together(e.args[0]))
        return f"{_wrapped(top, _PRODUCT)}//{_wrapped(bottom, _ATOM)}", _PRODUCT
    if isinstance(e, sympy.Mod):
        return f"{_wrapped(e.args[0], _PRODUCT)}%{_wrapped(e.args[1], _ATOM)}", _PRODUCT
    if isinstance(e, (sympy.Max, sympy.Min)):
        parts = sorted(_text(a)[0] for a in e.args)
        return f"{'max' if isinstance(e, sympy.Max) else 'min'}({', '.join(parts)})", _ATOM
    if isinstance(e, sympy.Mul):
        if e.as_coeff_Mul()[0] < 0:
            return "-" + _wrapped(-e, _PRODUCT), _SUM
        return "*".join(_wrapped(a, _ATOM) for a in e.as_ordered_factors()), _PRODUCT
    if isinstance(e, sympy.Pow) and e.exp.is_Integer and e.exp > 0:
        return f"{_wrapped(e.base, _ATOM)}**{e.exp}", _POWER
    raise ShapeError("PL303", f"a size cannot be written: {e}")


def _wrapped(e: Any, at_least_strength: int) -> str:
    text, strength = _text(e)
    needs = strength < at_least_strength or (
        strength == _PRODUCT and at_least_strength == _PRODUCT and not e.is_Mul
    )
    return f"({text})" if needs else text
