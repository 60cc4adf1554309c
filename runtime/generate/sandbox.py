"""Templates from files of strangers: rendered without access to Python, within bounds of time and memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from planish.errors import ArtifactError, PlanishError, UsageError

LARGEST_TEMPLATE = 2**18
LARGEST_TEXT = 2**22
MOST_STEPS = 1_000_000
_NAME = "chat template"
_FILTERS = (
    "batch", "center", "filesizeformat", "format", "indent", "pprint", "slice", "urlize", "wordwrap", "xmlattr",
)  # fmt: skip
_METHODS = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"})


class _Exceeded(Exception):
    """A bound is exceeded."""


def render(template: str, values: Mapping[str, Any], *, where: str = _NAME) -> str:
    """The text of a template. PL643: it is malformed, or exceeds a bound; PL876: it refuses the values."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    if len(template) > LARGEST_TEMPLATE:
        raise _invalid(f"it has {len(template)} characters, the limit is {LARGEST_TEMPLATE}", where)
    try:
        with _steps(MOST_STEPS):
            environment = _environment()
            made = environment.from_string(template)
            return _joined(made.generate(**values))
    except PlanishError:
        raise
    except (SecurityError, _Exceeded, MemoryError, RecursionError, OverflowError) as error:
        raise _invalid(f"it may not do this: {_first(error)}", where) from None
    except TemplateError as error:
        raise _invalid(f"it cannot be rendered: {_first(error)}", where) from None
    except Exception as error:  # whatever the operators of a template raise on values they do not expect
        raise _invalid(f"it fails: {type(error).__name__}: {_first(error)}", where) from None


def _environment() -> Any:
    from jinja2 import nodes, pass_environment
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import Extension, loopcontrols
    from jinja2.filters import make_attrgetter
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generator(CodeGenerator):
        """Joins texts by a function that looks at their size."""

        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.concat(str(part) for part in (")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    class Generation(Extension):
        """The tag that marks what a model says; it only stands for its content."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        """No private names, no changes of values, no operation that makes much of little."""

        code_generator_class = Generator
        intercepted_binops = frozenset({"*", "**", "%", "+"})
        concat = staticmethod(_joined)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: Any) -> Any:
            return None  # formats are refused like other methods that make much of little

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, str) and attr in _METHODS:
                return False
            return super().is_safe_attribute(obj, attr, value)

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            owner = getattr(obj, "__self__", None)
            if isinstance(owner, str) and obj.__name__ in ("join", "replace"):
                _check_call(owner, obj.__name__, args)
            return super().call(context, obj, *args, **kwargs)

    @pass_environment
    def join(environment: Any, value: Any, d: str = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = map(make_attrgetter(environment, attribute), value)
        parts = [str(item) for item in value]
        return _joined(piece for i, part in enumerate(parts) for piece in ([str(d), part] if i else [part]))

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    for name in _FILTERS:
        made.filters.pop(name, None)
    made.filters["tojson"] = _to_json
    made.filters["replace"] = _replace
    made.filters["join"] = join
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(str(form)[:200])
    made.globals.pop("lipsum", None)
    return made


def _joined(parts: Iterable[str]) -> str:
    made, size = [], 0
    for part in parts:
        size += len(part)
        if size > LARGEST_TEXT:
            raise _Exceeded(f"a text of more than {LARGEST_TEXT} characters")
        made.append(part)
    return "".join(made)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    sizes = [len(v) for v in (left, right) if isinstance(v, (str, list, tuple))]
    if operator == "%" and isinstance(left, str):
        raise _Exceeded("texts are not formatted by %")
    if operator == "*" and sizes:
        numbers = [v for v in (left, right) if isinstance(v, int)]
        if sizes[0] * max(numbers, default=1) > LARGEST_TEXT:
            raise _Exceeded("a repetition that is too long")
    if operator == "+" and sum(sizes) > LARGEST_TEXT:
        raise _Exceeded("a sum that is too long")
    if operator in ("*", "**") and any(isinstance(v, (int, float)) and abs(v) > 2**53 for v in (left, right)):
        raise _Exceeded("a number that is too large")
    if operator == "**" and isinstance(right, (int, float)) and abs(right) > 64:
        raise _Exceeded("a power that is too large")


def _check_call(text: str, method: str, args: tuple[Any, ...]) -> None:
    if method == "replace" and len(args) > 1 and isinstance(args[1], str):
        if (len(text) + 1) * max(len(args[1]), 1) > LARGEST_TEXT * 4:
            raise _Exceeded("a replacement that is too long")
    elif method == "join" and args and isinstance(args[0], (list, tuple)):
        if len(text) * len(args[0]) > LARGEST_TEXT:
            raise _Exceeded("a text that is too long")


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    _check_call(str(text), "replace", (old, str(new)))
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise _Exceeded("an indentation that is too deep")
    pair = tuple(separators) if separators is not None else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise UsageError(
        "PL876", f"the chat template refuses the messages: {str(message)[:300]}",
        hint="roles are user and assistant in turns, perhaps after a system message",
    )  # fmt: skip


@contextmanager
def _steps(most: int) -> Iterator[None]:
    """Count the lines that this thread runs in code of templates, and end it when there are too many."""
    left = [most]

    def trace(frame: Any, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != "<template>":
            return None
        left[0] -= 1
        if left[0] < 0:
            raise _Exceeded(f"more than {most} steps")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _invalid(what: str, where: str) -> ArtifactError:
    return ArtifactError("PL643", what, where=where, hint="give the prompt as text, without chat")
