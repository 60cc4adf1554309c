"""From programs after all passes to the code of a backend: which one, by what steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planish.errors import UnsupportedOpError
from planish.ir.rewrite import Log

if TYPE_CHECKING:
    from planish.backends.ort.module import LoweredModule
    from planish.backends.tvm.product import Product
    from planish.backends.tvm.tune import Tuned
    from planish.frontend.compilation import Phases
    from planish.frontend.config import CompileOptions
    from planish.ir.node import Module
    from planish.ir.weights import Weights


def lower(
    module: Module, weights: Weights, options: CompileOptions, phases: Phases
) -> tuple[LoweredModule | Product, tuple[str, ...]]:
    """The code for the target of the options, and notes on what was chosen."""
    from planish.backends.ort.options import OrtOptions
    from planish.frontend.config import has_compiler

    kind, chosen = options.target.kind, options.options
    if isinstance(chosen, OrtOptions):
        note = () if kind == "onnxruntime" or has_compiler() else _FALLBACK
        return onnx(module, weights, chosen, phases), note
    if kind != "cpu":
        return native(module, weights, options, phases), ()
    if chosen.backend == "auto":
        from planish.frontend.choice import faster

        return faster(module, weights, options, phases)
    try:
        made = native(module, weights, options, phases)
        return made, made.notes
    except UnsupportedOpError as missing:
        first = str(missing).splitlines()[0]
        return onnx(module, weights, OrtOptions(), phases), (f"ONNX Runtime is used, because {first}",)


_FALLBACK = ("apache-tvm is not installed: ONNX Runtime is used (pip install 'planish[tvm]')",)


def onnx(module: Module, weights: Weights, options: Any, phases: Phases) -> LoweredModule:
    """The programs for ONNX Runtime."""
    from planish.backends.ort.module import lower_module

    with phases("lower"):
        return lower_module(module, weights, options=options)


def native(module: Module, weights: Weights, options: CompileOptions, phases: Phases) -> Product:
    """The programs in machine code: activations are rounded if asked for, kernels selected, libraries built."""
    from planish.backends.tvm import target as tvm_target
    from planish.backends.tvm.make import build_product
    from planish.passes.materialise import materialise_module

    tvm_target.register()
    with phases("select"):
        module = selected(module, weights, options)
        parts = materialise_module(module, tvm_target.machine())
    variants = tuned(parts.main, options, phases) if options.tune is not None else None
    with phases("build"):
        return build_product(
            module, parts.main, parts.load, weights, options.target, options.options, variants
        )


def tuned(module: Module, options: CompileOptions, phases: Phases) -> Tuned:
    """Variants of the kernels of programs, measured on this machine for as long as the options say."""
    from planish.backends.tvm.make import chosen, need_compiler
    from planish.backends.tvm.target import machine
    from planish.backends.tvm.tune import Tuning, tune
    from planish.runtime.tvm_threads import tvm_threads

    need_compiler()
    assert options.tune is not None
    tuning = Tuning(options.tune, options.cache, options.policy, tvm_threads(), progress=options.progress)
    with phases("tune"):
        return tune(module.programs, chosen(options.options.isa), machine(), tuning)


def selected(module: Module, weights: Weights, options: CompileOptions) -> Module:
    """The programs with kernels of the target.

    Kernels are chosen for each program alone, since their neighbours decide. What becomes of a constant is decided
    for all programs at once: it is stored in a layout only if none of them reads it in another form.
    """
    from planish.ir.target import kernel_set
    from planish.passes.batch_norm import FoldBatchNorm
    from planish.passes.canonical.fold import Fold
    from planish.passes.channels_last import ChannelsLast
    from planish.passes.joint import join, split
    from planish.passes.select import lay_out, with_kernels
    from planish.passes.widen import Widen

    log, kernels = Log(), kernel_set(options.target.kind)
    joint = join(module)
    for each in (FoldBatchNorm(), Fold(), Widen(), *rounding(options.options)):
        joint = each.apply(joint, weights, log)
    module = split(joint, module).map(lambda program: with_kernels(program, kernels, log))
    module = split(lay_out(join(module), weights, log), module)
    module = module.map(lambda program: ChannelsLast().apply(program, weights, log))
    return split(Fold().apply(join(module), weights, log), module)


def rounding(options: Any) -> list[Any]:
    """The lossy passes that the options of a target ask for."""
    from planish.passes.activations import RoundActivations, RoundOperands

    made: list[Any] = []
    if options.activation_bits == 8:
        made.append(RoundActivations())
    if getattr(options, "math", "f32") == "bf16":
        made.append(RoundOperands())
    return made
