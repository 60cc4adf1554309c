"""Runs scheduled functions of TIR on an OpenCL device: TVM writes the source, pyopencl compiles and launches it.

What the host does between launches (workspaces, conditions on sizes) is read from the function that TVM has left for
the host.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import numpy as np
import pyopencl as cl
import torch
import tvm
from tvm import tirx
from tvm.ir.instrument import pass_instrument

from planish.backends.tvm.gpu.device import OPENCL, Gpu

OPERATORS = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "FloorDiv": operator.floordiv,
    "Div": operator.floordiv,
    "FloorMod": operator.mod, "Mod": operator.mod, "Min": min, "Max": max, "LT": operator.lt, "LE": operator.le,
    "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq, "NE": operator.ne, "And": operator.and_,
    "Or": operator.or_,
}  # fmt: skip
SHIFTS = {"tirx.shift_right": operator.rshift, "tirx.shift_left": operator.lshift}
NUMPY = {"float32": np.float32, "int64": np.int64, "int32": np.int32}


@cache
def queue() -> Any:
    """A queue of the first OpenCL device."""
    device = cl.get_platforms()[0].get_devices()[0]
    return cl.CommandQueue(cl.Context([device]))


@pass_instrument
class _Split:
    """Keeps the module as it is after the host's part was split from the device's."""

    def run_after_pass(self, module: Any, info: Any) -> None:
        if info.name.endswith("SplitHostDevice"):
            self.module = module


class Compiled:
    """A function of TIR compiled for OpenCL; call it with tensors, the output last (written in place)."""

    def __init__(self, function: Any, gpu: Gpu = OPENCL) -> None:
        split = _Split()
        target = tvm.target.Target(gpu.target)
        with tvm.transform.PassContext(instruments=[split]):
            library = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target)
        imported = library.mod.imports
        self.source = imported[0].inspect_source() if len(imported) else ""
        self.host = split.module["main"]
        self.program = cl.Program(queue().context, self.source).build() if self.source else None
        self.launches: list[str] = []

    def __call__(self, *tensors: torch.Tensor, sizes: tuple[int, ...] = ()) -> None:
        call = _Call(self, tensors, sizes)
        call.run(self.host.body)
        call.finish()


class _Call:
    def __init__(self, compiled: Compiled, tensors: tuple[torch.Tensor, ...], sizes: tuple[int, ...]) -> None:
        self.compiled = compiled
        self.buffers: dict[Any, Any] = {}
        self.sizes: dict[Any, Any] = {}
        self.pairs = []
        compiled.launches = []
        numbers = list(sizes)
        given = list(tensors)
        for parameter in compiled.host.params:
            buffer = parameter
            if not given or str(parameter.ty) == "int64":
                self.sizes[parameter] = numbers.pop(0)
                continue
            tensor = given.pop(0)
            for have, want in zip(tensor.shape, buffer.shape, strict=True):
                if isinstance(want, tirx.Var):
                    assert self.sizes.setdefault(want, have) == have
            raw = tensor.view(torch.uint8) if tensor.numel() else tensor.new_zeros(1, dtype=torch.uint8)
            array = raw.numpy()
            place = cl.Buffer(
                queue().context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=array
            )
            self.buffers[buffer] = place
            self.pairs.append((tensor, place))

    def number(self, value: Any) -> int:
        """The whole number that an expression of the host is."""
        if isinstance(value, int):
            return value
        kind = type(value).__name__
        if value in self.sizes:
            return self.sizes[value]
        if kind == "IntImm":
            return int(value.value)
        if kind == "Cast":
            return self.number(value.value)
        if kind == "Call" and value.op.name in SHIFTS:
            return SHIFTS[value.op.name](*[self.number(a) for a in value.args])
        if kind == "Select":
            return self.number(value.true_value if self.number(value.condition) else value.false_value)
        if kind == "Not":
            return int(not self.number(value.a))
        return int(OPERATORS[kind](self.number(value.a), self.number(value.b)))

    def run(self, statement: Any) -> None:
        kind = type(statement).__name__
        if kind == "SeqStmt":
            for each in statement.seq:
                self.run(each)
        elif kind == "AllocBuffer":
            buffer = statement.buffer
            count = 1
            for extent in buffer.shape:
                count *= self.number(extent)
            size = max(count, 1) * np.dtype(str(buffer.dtype)).itemsize
            place = cl.Buffer(queue().context, cl.mem_flags.READ_WRITE, size=size)
            cl.enqueue_fill_buffer(queue(), place, np.uint8(0xFF), 0, size)
            self.buffers[buffer] = place
        elif kind == "IfThenElse":
            chosen = statement.then_case if self.number(statement.condition) else statement.else_case
            if chosen is not None:
                self.run(chosen)
        elif kind == "Bind":
            self.sizes[statement.var] = self.number(statement.value)
        elif kind == "Evaluate":
            self.evaluate(statement.value)
        else:
            assert kind == "DeclBuffer", kind
            self.buffers[statement.buffer] = self.buffers[statement.data.args[0]]

    def evaluate(self, call: Any) -> None:
        if not hasattr(call, "op"):
            return
        assert call.op.name == "tirx.call_ffi_kernel", call
        name = call.args[0].value
        axes = [str(a) for a in call.attrs["launch_params"]]
        given, extents = call.args[1 : -len(axes)], [self.number(a) for a in call.args[-len(axes) :]]
        grid, block = [1, 1, 1], [1, 1, 1]
        for axis, extent in zip(axes, extents, strict=True):
            part = grid if axis.startswith("blockIdx") else block
            part["xyz".index(axis[-1])] = extent
        assert min(grid) > 0 and block[0] * block[1] * block[2] <= OPENCL.threads, (name, grid, block)
        arguments = []
        for value in given:
            is_buffer = type(value).__name__ == "Call" and value.args and value.args[0] in self.buffers
            arguments.append(
                self.buffers[value.args[0]] if is_buffer else NUMPY[str(value.ty)](self.number(value))
            )
        kernel = cl.Kernel(self.compiled.program, name)
        kernel(queue(), [g * b for g, b in zip(grid, block, strict=True)], block, *arguments)
        self.compiled.launches.append(name)

    def finish(self) -> None:
        tensor, place = self.pairs[-1]
        if tensor.numel():
            array = np.empty(tensor.numel() * tensor.element_size(), np.uint8)
            cl.enqueue_copy(queue(), array, place)
            tensor.copy_(torch.from_numpy(array).view(tensor.dtype).view(tensor.shape))
        queue().finish()
