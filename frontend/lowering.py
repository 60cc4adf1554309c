"""From a program after all passes to the code of a backend: which one, by what steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planish.errors import UnsupportedOpError
from planish.ir.rewrite import Log

if TYPE_CHECKING:
    from planish.backends.ort.lower import Lowered
    from planish.backends.tvm.product import Product
    from planish.frontend.compilation import Phases
    from planish.frontend.config import CompileOptions
    from planish.ir.node import Program
    from planish.ir.weights import Weights


def lower(
    program: Program, weights: Weights, options: CompileOptions, phases: Phases
) -> tuple[Lowered | Product, tuple[str, ...]]:
    """The code for the target of the options, and notes on what was chosen."""
    from planish.backends.ort.options import OrtOptions
    from planish.frontend.config import has_compiler

    kind, chosen = options.target.kind, options.options
    if isinstance(chosen, OrtOptions):
        note = () if kind == "onnxruntime" or has_compiler() else _FALLBACK
        return onnx(program, weights, chosen, phases), note
    if kind != "cpu":
        return native(program, weights, options, phases), ()
    if chosen.backend == "auto":
        from planish.frontend.choice import faster

        return faster(program, weights, options, phases)
    try:
        return native(program, weights, options, phases), ()
    except UnsupportedOpError as missing:
        first = str(missing).splitlines()[0]
        return onnx(program, weights, OrtOptions(), phases), (f"ONNX Runtime is used, because {first}",)


_FALLBACK = ("apache-tvm is not installed: ONNX Runtime is used (pip install 'planish[tvm]')",)


def onnx(program: Program, weights: Weights, options: Any, phases: Phases) -> Lowered:
    """The program for ONNX Runtime."""
    from planish.backends.ort.lower import lower as lower_onnx

    with phases("lower"):
        return lower_onnx(program, weights, options=options)


def native(program: Program, weights: Weights, options: CompileOptions, phases: Phases) -> Product:
    """The program in machine code: activations are rounded if asked for, kernels selected, libraries built."""
    from planish.backends.tvm import target as tvm_target
    from planish.backends.tvm.make import build_product
    from planish.passes.batch_norm import FoldBatchNorm
    from planish.passes.canonical.fold import Fold
    from planish.passes.channels_last import ChannelsLast
    from planish.passes.materialise import materialise
    from planish.passes.select import Select

    tvm_target.register()
    log = Log()
    passes = [
        FoldBatchNorm(), Fold(), *rounding(options.options), Select(options.target.kind), ChannelsLast(), Fold()
    ]  # fmt: skip
    with phases("select"):
        for each in passes:
            program = each.apply(program, weights, log)
        split = materialise(program, tvm_target.machine())
    with phases("build"):
        return build_product(program, split.main, split.load, weights, options.target, options.options)


def rounding(options: Any) -> list[Any]:
    """The lossy passes that the options of a target ask for."""
    from planish.passes.activations import RoundActivations, RoundOperands

    made: list[Any] = []
    if options.activation_bits == 8:
        made.append(RoundActivations())
    if getattr(options, "math", "f32") == "bf16":
        made.append(RoundOperands())
    return made
