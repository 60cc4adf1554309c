"""Pipelines as text: ``canonical,find-rope,int4{group=64,only=*.q_proj*}``, read and written.

::

    pipeline := [pass ("," pass)*]
    pass     := NAME ["{" [option ("," option)*] "}"]
    option   := NAME "=" value
    value    := text without , { } = " and spaces, or a quoted text as in JSON
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from planish.errors import UsageError
from planish.passes.base import Pass
from planish.passes.registry import SHORTHANDS, find_pass, make_pass

SHOWN: Mapping[str, Any] = {"shown": True}
"""Metadata of a field that is printed even when it has its default."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_BARE = re.compile(r"[^\s,{}=\"]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_SPACE = re.compile(r"\s*")


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def peek(self) -> str:
        self.skip()
        return self.text[self.at : self.at + 1]

    def fail(self, message: str, hint: str | None = None, at: int | None = None) -> UsageError:
        """An error that shows the text with a mark under the place."""
        place = self.at if at is None else at
        shown = f"{message}\n      {self.text}\n      {' ' * place}^"
        return UsageError("PL811", shown, hint=hint)

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            have = f"'{self.text[self.at]}'" if self.at < len(self.text) else "the end"
            raise self.fail(f"expected {what}, found {have}")
        self.at = found.end()
        return found.group()

    def options(self, name: str) -> dict[str, str | None]:
        """The options between braces, as text; values that were quoted keep their quotes."""
        given: dict[str, str | None] = {}
        if self.peek() != "{":
            return given
        opened = self.at
        self.at += 1
        while self.peek() != "}":
            if self.peek() == "":
                raise self.fail(f"the brace of {name} is not closed", "add a }", opened)
            key = self.take(_NAME, "the name of an option")
            if key in given:
                raise self.fail(f"{name}: the option {key} is given twice")
            self.take(re.compile("="), f"= after {key}")
            given[key] = self.take(_QUOTED if self.peek() == '"' else _BARE, f"a value for {key}")
            if self.peek() == ",":
                self.at += 1
            elif self.peek() not in ("}", ""):
                raise self.fail(f"expected , or }} after {key}")
        self.at += 1
        return given


def parse_pipeline(text: str) -> list[Pass]:
    """The passes that a text names; raises ``UsageError`` PL810 to PL813."""
    reader = _Reader(text)
    passes: list[Pass] = []
    if reader.peek() == "":
        return passes
    while True:
        name = reader.take(_NAME, "the name of a pass")
        passes.append(_build(name, reader.options(name)))
        if reader.peek() == "":
            return passes
        reader.take(re.compile(","), ", between two passes")


def parse_pass(text: str) -> Pass:
    """The one pass that a text names."""
    passes = parse_pipeline(text)
    if len(passes) != 1:
        raise UsageError("PL811", f"expected one pass, found {len(passes)} in '{text}'")
    return passes[0]


def _build(name: str, given: Mapping[str, str | None]) -> Pass:
    target, preset = SHORTHANDS.get(name, (name, {}))
    kind = find_pass(target)
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.init and f.name not in preset]
    options = {}
    for key, text in given.items():
        field = key.replace("-", "_")
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"options of {name}: {', '.join(known) or 'none'}"
            raise UsageError("PL812", f"{name} has no option '{key}'", hint=hint)
        options[field] = _value(str(text), hints[field], f"{name}{{{key}={text}}}")
    try:
        return make_pass(name, options)
    except (TypeError, ValueError) as problem:
        raise UsageError("PL813", f"{name}: {problem}") from None


def _value(text: str, hint: Any, where: str) -> Any:
    """A value of the type that the field declares."""
    choices = _alternatives(hint)
    if text.startswith('"'):
        try:
            plain = json.loads(text)
        except ValueError:
            raise UsageError("PL813", f"{where}: the quoted text is not valid") from None
        if str in choices or plain in choices:
            return plain
    elif text == "none" and types.NoneType in choices:
        return None
    for choice in choices:
        if choice is bool and text in ("true", "false"):
            return text == "true"
        if choice is int and re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        if choice is float and _is_float(text):
            return float(text)
        if isinstance(choice, str) and choice == text:
            return text
    if str in choices and not text.startswith('"'):
        return text
    raise UsageError("PL813", f"{where}: expected {' or '.join(map(_described, choices))}")


def _is_float(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _alternatives(hint: Any) -> list[Any]:
    """The plain types and the literal values that a field may hold."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return list(typing.get_args(hint))
    if origin in (types.UnionType, typing.Union):
        return [a for part in typing.get_args(hint) for a in _alternatives(part)]
    return [hint]


def _described(choice: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "none",
    }
    return names.get(choice) or repr(choice)


def format_value(value: Any, hint: Any = str) -> str:
    """An option's value as text; quoted where the bare text would read as something else for this type."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    choices = _alternatives(hint)
    mistaken = (
        (value == "none" and types.NoneType in choices)
        or (value in ("true", "false") and bool in choices)
        or (_is_float(value) and (int in choices or float in choices))
    )
    return value if _BARE.fullmatch(value) and not mistaken else json.dumps(value)


def format_options(options: Any, hidden: Iterable[str] = ()) -> str:
    """The fields of a frozen dataclass in braces: those that differ from their default or are always shown."""
    leave = set(hidden)
    hints = typing.get_type_hints(type(options))
    parts = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        same = value == field.default and type(value) is type(field.default)
        if field.init and field.name not in leave and (not same or field.metadata.get("shown")):
            parts.append(f"{field.name}={format_value(value, hints[field.name])}")
    return "{" + ",".join(parts) + "}" if parts else ""


def format_pass(each: Pass) -> str:
    """A pass as text, by its shorthand if there is one."""
    for name, (target, preset) in SHORTHANDS.items():
        if target == each.name and all(getattr(each, k) == v for k, v in preset.items()):
            return name + format_options(each, preset)
    return each.name + format_options(each)


def format_pipeline(passes: Iterable[Pass]) -> str:
    """Passes as text that :func:`parse_pipeline` reads back to equal objects."""
    return ",".join(map(format_pass, passes))
