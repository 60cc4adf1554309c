"""Pipelines as text: read, written, and refused with a message that helps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.errors import UsageError
from planish.passes import registry
from planish.passes.base import Pass, kebab
from planish.passes.canonical.passes import Canonical
from planish.passes.compress.affine import Affine
from planish.passes.registry import BUILT_IN, SHORTHANDS, find_pass, make_pass, pass_names
from planish.passes.spec import SHOWN, format_pass, format_pipeline, parse_pass, parse_pipeline


@dataclass(frozen=True)
class Everything(Pass):
    """A pass with an option of every type."""

    kind: ClassVar = "exact"
    count: int = 3
    share: float = 0.5
    loud: bool = False
    only: str = "*"
    mode: Literal["fast", "none", "exact"] = "fast"
    limit: int | None = None
    label: str | None = None
    either: int | str = 1
    window: float | None = field(default=None, metadata=SHOWN)

    def apply(self, program, weights, log):
        return program


@pytest.fixture(autouse=True)
def everything(monkeypatch):
    monkeypatch.setattr(registry, "BUILT_IN", {**BUILT_IN, "everything": f"{__name__}:Everything"})
    monkeypatch.setattr(
        registry,
        "import_module",
        lambda name: _Here if name == __name__ else __import__(name, fromlist=["x"]),
    )


class _Here:
    Everything = Everything


texts = st.text(max_size=12)
everythings = st.builds(
    Everything,
    count=st.integers(),
    share=st.floats(allow_nan=False),
    loud=st.booleans(),
    only=texts,
    mode=st.sampled_from(["fast", "none", "exact"]),
    limit=st.none() | st.integers(),
    label=st.none() | texts,
    either=st.integers() | texts,
    window=st.none() | st.floats(allow_nan=False),
)
affines = st.builds(
    Affine,
    bits=st.integers(2, 8),
    group=st.integers(0, 512),
    symmetric=st.booleans(),
    search=st.sampled_from(["auto", "mse", "none"]),
    only=texts,
    skip=texts,
    zero=st.sampled_from(["int", "float"]),
    scale=st.sampled_from(["f16", "f32"]),
    min_numel=st.integers(0, 10**6),
)


@given(st.lists(everythings | affines | st.just(Canonical()), max_size=4))
def test_pipelines_read_back(passes):
    text = format_pipeline(passes)
    back = parse_pipeline(text)
    assert back == passes
    assert format_pipeline(back) == text


@pytest.mark.parametrize("name", sorted([*BUILT_IN, *SHORTHANDS]))
def test_every_pass_reads_back_by_name(name):
    each = parse_pass(name)
    assert parse_pass(str(each)) == each
    assert each.kind in ("exact", "close", "lossy")
    assert each.apply.__doc__ and type(each).__doc__


def test_names():
    assert kebab("FindRope") == "find-rope"
    assert kebab("Int4") == "int4"
    assert find_pass("canonical").name == "canonical"
    assert {"canonical", "fold", "int4"} <= set(pass_names())


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("int4", "int4{group=64}"),
        ("affine{bits=4}", "int4{group=64}"),
        ("int3{ group = 32 , only = *.q_proj* }", "int3{group=32,only=*.q_proj*}"),
        ("canonical, int8{symmetric=true,group=0}", "canonical,int8{group=0,symmetric=true}"),
        ('int4{only="a b"}', 'int4{group=64,only="a b"}'),
        ("int4{only=*.q_proj|*.k_proj}", "int4{group=64,only=*.q_proj|*.k_proj}"),
        ("int4{search=none}", "int4{group=64,search=none}"),
        ("", ""),
        ("canonical{}", "canonical"),
    ],
)
def test_spelling(text, printed):
    assert format_pipeline(parse_pipeline(text)) == printed


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("canonicl", "PL810", "unknown pass 'canonicl'; did you mean canonical"),
        ("zzz", "PL810", "known passes: "),
        ("int4{group=64", "PL811", "the brace of int4 is not closed"),
        ("int4{group=64}}", "PL811", "expected , between two passes, found '}'"),
        ("canonical,,fold", "PL811", "expected the name of a pass, found ','"),
        ("canonical,", "PL811", "found the end"),
        ("canonical fold", "PL811", "expected , between two passes"),
        ("int4{group}", "PL811", "expected = after group, found '}'"),
        ("int4{group=}", "PL811", "expected a value for group"),
        ("int4{group=1 2}", "PL811", "expected , or } after group"),
        ("int4{group=1,group=2}", "PL811", "the option group is given twice"),
        ("int4{groups=64}", "PL812", "int4 has no option 'groups'; did you mean group?"),
        ("int4{bits=4}", "PL812", "int4 has no option 'bits'"),
        ("canonical{deep=true}", "PL812", "options of canonical: none"),
        ("int4{group=many}", "PL813", "int4{group=many}: expected a whole number"),
        ("int4{symmetric=yes}", "PL813", "expected true or false"),
        ("int4{search=best}", "PL813", "expected 'auto' or 'mse' or 'none'"),
        ("affine{bits=9}", "PL813", "bits=9: expected one of 2, 3, 4, 5, 6, 7, 8"),
        ("int4{group=-1}", "PL813", "a group has at least one code"),
        ('int4{only="a}', "PL811", "expected a value for only"),
        ('int4{only="\\q"}', "PL813", "the quoted text is not valid"),
    ],
)
def test_refused(text, code, message):
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text)
    assert caught.value.code == code
    assert message in str(caught.value)


def test_the_place_is_marked():
    with pytest.raises(UsageError) as caught:
        parse_pipeline("canonical,int4{group=64")
    assert str(caught.value).splitlines()[1:3] == ["      canonical,int4{group=64", " " * 20 + "^"]


def test_one_pass_is_wanted():
    with pytest.raises(UsageError, match="expected one pass, found 2"):
        parse_pass("canonical,fold")


def test_entry_points_are_found(monkeypatch):
    class Point:
        name = "theirs"

        def load(self):
            return Everything

    class Wrong(Point):
        name = "wrong"

        def load(self):
            return dict

    monkeypatch.setattr(registry, "_foreign", lambda: {p.name: p for p in (Point(), Wrong())})
    assert parse_pass("theirs{count=5}") == Everything(count=5)
    assert "theirs" in pass_names()
    with pytest.raises(UsageError, match="'wrong' is not a pass"):
        find_pass("wrong")


def test_shorthands_set_options():
    assert make_pass("int5", {"group": 32}) == Affine(bits=5, group=32)
    assert format_pass(Affine(bits=5, group=32)) == "int5{group=32}"
