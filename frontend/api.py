"""``planish.compile``, ``planish.export`` and ``planish.load``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from planish.errors import ArtifactError, BackendError, UsageError
from planish.frontend import config
from planish.frontend.compiled import Bench, Compiled
from planish.frontend.report import Layer, Report
from planish.runtime.session import load as load_session

if TYPE_CHECKING:
    from planish.frontend.capture.base import Captured
    from planish.ir.target import Target
    from planish.passes.base import Pass
    from planish.runtime.limits import Limits

__all__ = ["Bench", "Compiled", "Layer", "Report", "compile", "export", "load"]


def compile(
    model: Any,
    *,
    target: str | Target = "cpu",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    generate: bool | config.GenerateOptions | None = None,
    budget: Any = None,
    passes: str | Iterable[Pass] = "auto",
    plan: Any = None,
    layers: Any = None,
    calibration: Any = None,
    evaluate: Any = None,
    guard: str = "rollback",
    seed: int = 0,
    workers: int | None = None,
    resume: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: config.Progress | None = None,
    allow_pickle: bool = False,
    allow_fixed: bool = False,
    tune: bool | float = False,
) -> Compiled:
    """Capture a model, rewrite it and lower it to a target. The model is never changed.

    ``model`` is an ``nn.Module``, an ``ExportedProgram``, an ONNX ``ModelProto`` or a path: ``.onnx``, ``.gguf``, a
    Hugging Face folder, a program ``.ir.py`` with its weights beside it, or ``.planish``, which is loaded. Modules
    need ``example_inputs``, except for models of transformers. ``dynamic_shapes`` is that of ``torch.export`` or
    names: ``{"input_ids": {1: "T"}}``.

    ``target`` is ``cpu``, ``onnxruntime`` or ``eager``, with options of the backend in braces, such as
    ``cpu{activation_bits=8}``. ``passes`` is ``auto`` (rewrites that lose nothing), ``none``, a list of passes, or a
    pipeline such as ``"auto,int4{group=64}"``. ``layers`` are ordered rules for single weights:
    ``{"match": "*.down_proj", "bits": 8}`` or ``{"match": "lm_head", "freeze": True}``; a rule that reaches no weight
    is an error. ``progress`` is called with the name and the seconds of every phase. ``cache_dir`` turns on the cache
    of finished artifacts for models that are files. ``allow_pickle`` reads files that can run code,
    ``allow_fixed`` accepts that the model's Python fixes a dimension that was to be dynamic. ``tune`` measures variants
    of the costliest kernels on this machine, for 60 seconds (True) or as many as it says, and takes the fastest; with
    a cache what was measured is kept, and not measured again. Only the target ``cpu`` has it (PL843).

    ``generate`` makes entry points that continue texts, which share weights and caches of keys and values: ``prefill``
    takes new tokens, ``decode`` one token, and ``extend`` gives logits for all rows. ``GenerateOptions(context=4096)``
    says how large the caches are. A model that is not causal is refused (PL260).

    The other arguments belong to later versions and are refused when they are set (``UsageError`` PL823).
    """
    config.refuse_unsupported(
        budget=budget, plan=plan, calibration=calibration, evaluate=evaluate, workers=workers,
        resume=resume,
    )  # fmt: skip
    config.check_guard(guard)
    options = make_options(
        target=target, passes=passes, layers=layers, seed=seed, cache_dir=cache_dir, progress=progress,
        allow_pickle=allow_pickle, allow_fixed=allow_fixed, tune=tune,
        generate=generate,
    )  # fmt: skip
    if isinstance(model, (str, os.PathLike)) and str(model).endswith(".planish"):
        loaded = load(model)
        if options.generate is not None and loaded.generation is None:
            raise UsageError(
                "PL824", "generate: the artifact was made without entry points that continue texts", where=str(model),
                hint="compile the model that it was made of",
            )  # fmt: skip
        return loaded
    return _compile(model, options, example_inputs, dynamic_shapes)


def make_options(
    *,
    target: str | Target = "cpu",
    passes: str | Iterable[Pass] = "auto",
    layers: Any = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: config.Progress | None = None,
    allow_pickle: bool = False,
    allow_fixed: bool = False,
    tune: bool | float = False,
    generate: bool | config.GenerateOptions | None = None,
) -> config.CompileOptions:
    """The options of a compilation as checked values."""
    if progress is not None and not callable(progress):
        raise UsageError(
            "PL824", f"progress={progress!r} cannot be called", hint="give a function of name and seconds"
        )
    kind, backend = config.read_target(target)
    policy = config.cache_policy(cache_dir)
    return config.CompileOptions(
        target=kind,
        passes=config.read_passes(passes),
        layers=config.read_layers(layers),
        seed=config.check_seed(seed),
        allow_pickle=allow_pickle,
        allow_fixed=allow_fixed,
        options=backend,
        cache=config.cache_directory(cache_dir) if policy != "off" else None,
        policy=policy,
        progress=progress,
        tune=config.read_tune(tune, kind, backend),
        generate=config.read_generate(generate),
    )


def _compile(
    model: Any, options: config.CompileOptions, example_inputs: Any, dynamic_shapes: Any
) -> Compiled:
    from planish.frontend.cache import cached
    from planish.frontend.compilation import Phases

    phases = Phases(options.progress)

    def make() -> Compiled:
        from planish.frontend.capture.source import capture

        with phases("capture"):
            captured = capture(
                model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes,
                allow_pickle=options.allow_pickle, allow_fixed=options.allow_fixed,
                generate=options.generate is not None,
            )  # fmt: skip
        return compile_captured(captured, options, phases)

    return cached(model, options, example_inputs, dynamic_shapes, make)


def compile_captured(captured: Captured, options: config.CompileOptions, phases: Any = None) -> Compiled:
    """Compile a model that was captured already, so that one capture serves several pipelines."""
    from planish.frontend.compilation import compile_captured as finish

    return Compiled(made=finish(captured, options, phases))


def export(
    compiled: Compiled,
    path: str | os.PathLike[str],
    *,
    format: Literal["planish", "onnx", "so", "mlir"] = "planish",
    overwrite: bool = False,
) -> Path:
    """Write a compiled model and return its path.

    ``planish`` is one file (see docs/artifact.md); ``onnx`` is a folder with ``model.onnx`` and its data, which any
    ONNX Runtime loads. The destination appears when it is complete and on disk, or not at all; one that exists is
    refused (PL614) unless ``overwrite``.
    """
    return compiled.export(path, format=format, overwrite=overwrite)


def load(
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    mmap: bool = True,
    verify: Literal["full", "fast", "off"] = "full",
    allow_native_code: bool | None = None,
    limits: Limits | None = None,
) -> Compiled:
    """Load an artifact; it runs with numpy and the runtime of its code alone: onnxruntime, or TVM's.

    ``verify="full"`` checks every hash and runs the self-test, ``"fast"`` checks small members, ``"off"`` only the
    structure. ``mmap=False`` copies the weights into memory. Machine code in a file runs only if ``allow_native_code``
    is true or the file was trusted before, as what this user exported is; otherwise its program is compiled again,
    which takes the compiler library (``ArtifactError`` PL622 without it), and so it is where the code is for another
    processor.
    """
    try:
        session = load_session(
            path, device=device, mmap=mmap, verify=verify, allow_native_code=allow_native_code, limits=limits
        )
    except (ArtifactError, BackendError) as error:
        from planish.frontend.afresh import REASONS, compile_again

        if error.code not in REASONS or not config.has_compiler() or device not in (None, "cpu"):
            raise
        return compile_again(path, verify=verify, mmap=mmap, limits=limits, reason=error)
    return Compiled(session=session)
