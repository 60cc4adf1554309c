"""Options of a compilation: checked once, then plain values. What is not supported yet is refused, never ignored."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from planish.errors import UsageError

if TYPE_CHECKING:
    from planish.ir.target import Target
    from planish.passes.base import Pass

AUTO = "recognise"
"""What ``auto`` stands for in a pipeline: rewrites that lose nothing."""

Rule: TypeAlias = Mapping[str, Any]
"""One rule for weights, such as ``{"match": "*.down_proj", "bits": 8}`` or ``{"match": "lm_head", "freeze": True}``."""

Progress: TypeAlias = Callable[[str, float], None]
"""Called when a phase ends, or the tuning of a kernel, of which the name begins with ``tune: ``: name and seconds."""

CachePolicy: TypeAlias = Literal["on", "off", "readonly", "redo"]
_ARCHITECTURES = re.compile(r"sm_[0-9]{2,3}a?(\+sm_[0-9]{2,3}a?)*")
_AUTO = re.compile(r"(?:^|(?<=,))\s*auto\s*(?=,|$)")


CONTEXT = 2048
"""The tokens of a sequence that fit into caches, unless the model takes fewer or something else is asked for."""


@dataclass(frozen=True)
class GenerateOptions:
    """How a language model continues texts: entry points over new tokens that share caches of keys and values.

    ``context`` is the largest number of tokens of a sequence (None: 2048, or as many as the model takes if these are
    fewer), ``batch`` the number of sequences (None: any), ``chunk`` the most tokens that one call takes (None: what
    suits the model), ``extend`` whether there is an entry point that gives logits for all rows, which checks drafts.
    ``rings`` lets layers that see a window keep no more than that; ``edit`` adds an entry point that moves rows of the
    caches, where the model allows it and no layer is a ring. ``parallel`` adds those that go on behind contexts which
    were read side by side (:meth:`planish.runtime.generate.model.Model.parallel`), or refuses the model (PL264).
    ``validate`` compares the steps with the program they are made of, on random tokens, and refuses them if they differ
    (PL520, PL521).
    """

    context: int | None = None
    batch: int | None = 1
    chunk: int | None = None
    extend: bool = True
    rings: bool = True
    edit: bool = True
    parallel: bool = False
    validate: bool = True

    def __post_init__(self) -> None:
        for name in ("context", "batch", "chunk"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError("PL824", f"{name}={_short(value)} is not a whole number from 1")
        for name in ("extend", "rings", "edit", "parallel", "validate"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError("PL824", f"{name}={_short(getattr(self, name))} is neither True nor False")


def read_generate(given: Any) -> GenerateOptions | None:
    """What ``generate`` asks for: options, True for those that suit most models, or nothing."""
    if given is None or given is False:
        return None
    if given is True:
        return GenerateOptions()
    if isinstance(given, GenerateOptions):
        return given
    raise UsageError(
        "PL824", f"generate={_short(given)}", hint="say True, or give GenerateOptions(context=...)"
    )


@dataclass(frozen=True)
class CompileOptions:
    """Everything that decides what a compilation makes, as values."""

    target: Target
    passes: tuple[Pass, ...]
    layers: tuple[Rule, ...] = ()
    seed: int = 0
    allow_pickle: bool = False
    allow_fixed: bool = False
    options: Any = None
    cache: Path | None = None
    policy: CachePolicy = "off"
    progress: Progress | None = field(default=None, compare=False)
    tune: float | None = None
    generate: GenerateOptions | None = None

    @property
    def pipeline(self) -> str:
        """The passes as text."""
        from planish.passes.spec import format_pipeline

        return format_pipeline(self.passes)


def refuse_unsupported(**given: Any) -> None:
    """Raise ``UsageError`` PL823 for the first argument that is set but not supported by this version."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise UsageError(
                "PL823", f"{name}={_short(value)} is not supported by this version", hint=f"leave {name} out"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_guard(guard: Any) -> None:
    """A guard holds choices of a search, and nothing is searched yet: ``rollback`` and ``off`` mean the same."""
    if guard not in ("rollback", "warn", "error", "off"):
        raise UsageError("PL824", f"guard={guard!r}", hint="known: rollback, warn, error, off")
    if guard in ("warn", "error"):
        raise UsageError(
            "PL823", f"guard={guard!r} is not supported by this version", hint="leave guard out, or say 'off'"
        )


def check_seed(seed: Any) -> int:
    """A seed is a whole number from 0."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError("PL824", f"seed={seed!r} is not a whole number from 0")
    return seed


TUNE_SECONDS = 60.0
"""How long ``tune=True`` measures at most."""


def read_tune(tune: Any, target: Target, backend: Any) -> float | None:
    """The seconds that kernels may be measured for; None if they are not tuned.

    Raises ``UsageError`` PL824 for what is neither a bool nor a number from 0, PL843 if the code for the target has no
    kernels that are tuned.
    """
    if tune is None or tune is False:
        return None
    seconds = TUNE_SECONDS if tune is True else tune
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
        raise UsageError("PL824", f"tune={_short(tune)}", hint="say True, or a number of seconds from 0")
    if target.kind != "cpu" or not hasattr(backend, "isa"):
        missing = target.kind == "cpu" and not has_compiler()
        raise UsageError(
            "PL843", f"tune={_short(tune)}: only kernels for processors, made through TVM, are tuned",
            hint="pip install 'planish[tvm]'" if missing else "leave tune out, or say target='cpu'",
        )  # fmt: skip
    return float(seconds)


def read_passes(passes: Any) -> tuple[Pass, ...]:
    """The passes of ``"auto"``, ``"none"``, a pipeline as text (in which ``auto`` may stand), or a list of passes."""
    from planish.passes.base import Pass
    from planish.passes.spec import parse_pipeline

    if isinstance(passes, str):
        text = passes.strip()
        return () if text in ("none", "") else tuple(parse_pipeline(_AUTO.sub(AUTO, text)))
    if isinstance(passes, Pass):
        return (passes,)
    if isinstance(passes, Iterable):
        ready = tuple(passes)
        wrong = [p for p in ready if not isinstance(p, Pass)]
        if not wrong:
            return ready
        raise UsageError("PL824", f"passes holds {_short(wrong[0])}, which is no pass")
    raise UsageError(
        "PL824", f"passes={_short(passes)}", hint="give 'auto', 'none', a pipeline or a list of passes"
    )


def read_layers(layers: Any) -> tuple[Rule, ...]:
    """The rules for weights, as a tuple of tables; their content is checked when they are applied."""
    if layers is None:
        return ()
    if isinstance(layers, (str, Mapping)) or not isinstance(layers, Sequence):
        raise UsageError(
            "PL824",
            f"layers={_short(layers)} is not a list of rules",
            hint="layers=[{'match': ..., 'bits': ...}]",
        )
    for index, rule in enumerate(layers):
        if not isinstance(rule, Mapping):
            raise UsageError("PL824", f"layer rule {index + 1} is {_short(rule)}, not a table")
    return tuple(dict(rule) for rule in layers)


def read_target(target: Any) -> tuple[Target, Any]:
    """A target with the options of its backend, from ``cpu``, ``cpu{activation_bits=8}`` or a value.

    Raises ``UsageError`` PL801 for a target that is not known, PL825 for an option that its backend does not have.
    """
    from planish.ir.target import Target, parse_target

    if isinstance(target, Target):
        parse_target(target.kind)
        return target, _backend_options(target.kind, "")
    if not isinstance(target, str):
        raise UsageError("PL801", f"unknown target {_short(target)}", hint="a target is a text such as 'cpu'")
    name, brace, rest = target.strip().partition("{")
    found = parse_target(name)
    if found.arch and found.kind != "cuda":
        raise UsageError("PL801", f"the target '{found}' is not supported", hint=f"say '{found.kind}'")
    if found.kind == "cuda" and not _ARCHITECTURES.fullmatch(found.arch or "sm_90"):
        raise UsageError("PL801", f"the target '{found}' is not supported", hint="such as 'cuda:sm_90'")
    if brace and not rest.endswith("}"):
        raise UsageError("PL825", f"target {target!r}: the brace is not closed", hint="add a }")
    return found, _backend_options(found.kind, rest.removesuffix("}"))


def _backend_options(kind: str, text: str) -> Any:
    """The options of the backend of a target, from ``name=value,name=value``."""
    if kind == "eager":
        if text:
            raise UsageError("PL825", "the target eager has no options")
        return None
    from planish.backends.ort.options import OrtOptions
    from planish.backends.tvm.options import CpuOptions, GpuOptions

    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    if kind == "onnxruntime":
        return _options_of(OrtOptions, kind, pieces)
    if kind != "cpu":
        return _options_of(GpuOptions, kind, pieces)
    if "backend=ort" in pieces:
        return _options_of(OrtOptions, kind, [p for p in pieces if p != "backend=ort"])
    made = _options_of(CpuOptions, kind, pieces)
    if has_compiler() or any(p.startswith("backend=") for p in pieces):
        return made
    return OrtOptions(activation_bits=made.activation_bits)


def has_compiler() -> bool:
    """True if the library that makes machine code is installed; it is not imported."""
    from importlib.util import find_spec

    return find_spec("tvm") is not None


def _options_of(made: type, kind: str, pieces: Sequence[str]) -> Any:
    known: dict[str, Any] = {f.name: type(f.default) for f in fields(made)}
    given: dict[str, Any] = {}
    for part in pieces:
        key, _, value = part.partition("=")
        if key not in known or key in given:
            raise UsageError(
                "PL825", f"target option '{part}'", hint=f"options of {kind}: {', '.join(known)}"
            )
        try:
            kind_of = known[key]
            given[key] = {"true": True, "false": False}[value] if kind_of is bool else kind_of(value)
        except (KeyError, ValueError):
            raise UsageError("PL825", f"target option '{part}': expected {known[key].__name__}") from None
    return made(**given)


def cache_directory(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the cache: the argument, ``PLANISH_CACHE_DIR``, or the platform's place for caches."""
    if given is not None:
        return Path(given)
    if value := os.environ.get("PLANISH_CACHE_DIR"):
        return Path(value)
    from platformdirs import user_cache_path

    return user_cache_path("planish")


def cache_policy(given: str | os.PathLike[str] | None) -> CachePolicy:
    """``PLANISH_CACHE_POLICY``; without it the cache is on where a folder for it is named, and off otherwise."""
    value = os.environ.get("PLANISH_CACHE_POLICY", "")
    if not value:
        return "on" if given is not None or os.environ.get("PLANISH_CACHE_DIR") else "off"
    if value not in ("on", "off", "readonly", "redo"):
        raise UsageError("PL824", f"PLANISH_CACHE_POLICY={value!r}", hint="known: on, off, readonly, redo")
    return value  # type: ignore[return-value]


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The values in a TOML file, by the names of the options that they are for; PL830 for an unknown name."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError("PL830", f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError("PL830", f"is not valid TOML: {error}", where=str(path)) from None
    made = {key.replace("-", "_"): value for key, value in table.items()}
    names = list(known)
    for key in made:
        if key not in names:
            raise UsageError(
                "PL830", f"unknown key '{key}'", where=str(path), hint=f"keys: {', '.join(names)}"
            )
    return made
