"""The texts beside an exported library: a C header with names, types and shapes, an example in C++, a Makefile."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planish.runtime.manifest import EntryPoint
from planish.runtime.native_code import NativeCode
from planish.runtime.tensors import TensorInfo
from planish.runtime.typetext import TensorType

# DLPack's code of a kind of number, and its bits.
_KINDS = {
    "f64": (2, 64), "f32": (2, 32), "f16": (2, 16), "bf16": (4, 16), "f8e4m3": (10, 8), "f8e5m2": (12, 8),
    "c64": (5, 64), "bool": (6, 8), "i64": (0, 64), "i32": (0, 32), "i16": (0, 16), "i8": (0, 8), "u64": (1, 64),
    "u32": (1, 32), "u16": (1, 16), "u8": (1, 8),
}  # fmt: skip
_STORED = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f8e4m3", "F8_E5M2": "f8e5m2", "C64": "c64",
    "BOOL": "bool", "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8", "U64": "u64", "U32": "u32", "U16": "u16",
    "U8": "u8",
}  # fmt: skip


@dataclass(frozen=True)
class HeaderFacts:
    """What the header tells: the code, its typed entry points, ranges of sizes, and where each weight lies."""

    code: NativeCode
    entries: Mapping[str, EntryPoint]
    dims: Mapping[str, tuple[int, int]]
    layout: Mapping[str, TensorInfo]
    weight_bytes: int


def header(facts: HeaderFacts) -> str:
    """``planish_model.h``, for C and C++."""
    load = facts.code.entries[facts.code.load] if facts.code.load is not None else None
    made = list(load.outputs) if load is not None else []
    used = {name: None for entry in facts.code.entries.values() for name in entry.weights}
    weights = {name: number for number, name in enumerate(used)}
    parts = [
        _INTRODUCTION,
        f"#define PLANISH_WEIGHTS_BYTES INT64_C({facts.weight_bytes})\n",
        _size_names(facts.dims),
        _TYPES,
        _weight_table(list(weights), made, facts.layout),
    ]
    tables = []
    for name, code in facts.code.entries.items():
        if name == facts.code.load:
            continue
        entry = facts.entries[name]
        inputs = [(v.name, v.type) for v in entry.inputs]
        states = [(s.input, s.type) for s in entry.states]
        results = [(v.name, v.type) for v in entry.outputs] + [(s.output, s.type) for s in entry.states]
        parts.append(
            _entry_tables(name, inputs + states, results, [weights[w] for w in code.weights], facts.dims)
        )
        counts = f"{len(inputs)}, {len(states)}, {len(entry.outputs)}, {len(code.weights)}"
        tables.append(
            f"    {{{_text(name)}, {_text(code.function)}, {counts}, planish_{name}_arguments,\n"
            f"     planish_{name}_results, planish_{name}_weights, planish_{name}_shape}},\n"
        )
    parts.append(f"static const planish_entry PLANISH_ENTRIES[] = {{\n{''.join(tables)}}};\n")
    parts.append(f"#define PLANISH_ENTRY_COUNT {len(tables)}\n")
    function = _text(load.function) if load is not None else "0"
    numbers = [weights[name] for name in load.weights] if load is not None else []
    parts.append(
        "/* A function that is run once; its results are weights (`made`). 0 where there is none. */\n"
        f"#define PLANISH_LOAD_FUNCTION {function}\n#define PLANISH_LOAD_WEIGHTS {len(numbers)}\n"
        f"static const int32_t PLANISH_LOAD_WEIGHT_NUMBERS[] = {_numbers(numbers)};\n"
    )
    parts.append(_HELPERS)
    return "\n".join(parts)


def c_expression(expression: ast.expr, sizes: Sequence[str]) -> str:
    """A size as an expression of C over the array ``sizes``, whose order is that of the names given."""
    match expression:
        case ast.Constant(value=int(value)):
            return f"INT64_C({value})"
        case ast.Name(id=name):
            return f"sizes[{sizes.index(name)}]"
        case ast.UnaryOp(operand=operand):
            return f"(-{c_expression(operand, sizes)})"
        case ast.Call(func=ast.Name(id=name), args=args):
            found = [c_expression(a, sizes) for a in args]
            made = found[0]
            for other in found[1:]:
                made = f"planish_{name}({made}, {other})"
            return made
        case ast.BinOp(left=left, op=op, right=right):
            a, b = c_expression(left, sizes), c_expression(right, sizes)
            if isinstance(op, ast.FloorDiv | ast.Mod):
                return f"planish_{'floor' if isinstance(op, ast.FloorDiv) else 'modulo'}({a}, {b})"
            sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}[type(op)]
            return f"({a} {sign} {b})"
    raise ValueError(f"{ast.unparse(expression)} is not a size")


def _size_names(dims: Mapping[str, tuple[int, int]]) -> str:
    rows = "".join(
        f"    {{{_text(n)}, INT64_C({low}), INT64_C({high})}},\n" for n, (low, high) in dims.items()
    )
    return (
        "/* Sizes that a caller chooses, each within its range. */\n"
        "typedef struct { const char *name; int64_t low, high; } planish_size;\n"
        f"#define PLANISH_SIZE_COUNT {len(dims)}\n"
        f"static const planish_size PLANISH_SIZES[] = {{\n{rows}    {{0, 0, 0}}}};\n"
    )


def _weight_table(names: Sequence[str], made: Sequence[str], layout: Mapping[str, TensorInfo]) -> str:
    shapes, rows = [], []
    for number, name in enumerate(names):
        if name in made:
            rows.append(f"    {{{_text(name)}, 0, 0, 0, 0, INT64_C(-1), 0, {made.index(name)}}},\n")
            continue
        info = layout[name]
        code, bits = _KINDS[_STORED[info.format]]
        shapes.append(f"static const int64_t planish_shape_{number}[] = {_numbers(info.shape)};\n")
        rows.append(
            f"    {{{_text(name)}, {code}, {bits}, {len(info.shape)}, planish_shape_{number}, "
            f"INT64_C({info.offset}), INT64_C({info.length}), -1}},\n"
        )
    table = f"static const planish_weight PLANISH_WEIGHTS[] = {{\n{''.join(rows)}    {{0, 0, 0, 0, 0, 0, 0, 0}}}};\n"
    return f"{''.join(shapes)}{table}#define PLANISH_WEIGHT_COUNT {len(names)}\n"


def _entry_tables(
    name: str, arguments: Sequence[tuple[str, TensorType]], results: Sequence[tuple[str, TensorType]],
    weights: Sequence[int], dims: Mapping[str, tuple[int, int]],
) -> str:  # fmt: skip
    cases = []
    for number, (_, kind) in enumerate(arguments):
        sizes = [f"shape[{axis}] = {c_expression(dim, list(dims))};" for axis, dim in enumerate(kind.dims)]
        cases.append(f"    case {number}: {' '.join(sizes)} break;\n")
    values = f"static const planish_value planish_{name}_{{}}[] = {{{{\n{{}}    {{{{0, 0, 0, 0, 0}}}}}}}};\n"
    return (
        values.format("arguments", "".join(_value(n, kind) for n, kind in arguments))
        + values.format("results", "".join(_value(n, kind) for n, kind in results))
        + f"static const int32_t planish_{name}_weights[] = {_numbers(weights)};\n"
        + f"static inline void planish_{name}_shape(int32_t number, const int64_t *sizes, int64_t *shape) {{\n"
        + "  (void)sizes;\n  (void)shape;\n  switch (number) {\n"
        + "".join(cases)
        + "    default: break;\n  }\n}\n"
    )


def _value(name: str, kind: TensorType) -> str:
    code, bits = _KINDS[kind.dtype]
    return f"    {{{_text(name)}, {_text(str(kind))}, {code}, {bits}, {kind.rank}}},\n"


def _numbers(values: Iterable[int]) -> str:
    return "{" + ", ".join([*(str(v) for v in values), "0"]) + "}"


def _text(value: str) -> str:
    """A string of C; what is not plain is written in octal, byte by byte."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in value.encode())
    return f'"{"".join(plain)}"'


_INTRODUCTION = """\
/* What the model in this folder takes and gives. Written by planish; needs no other file of planish.

   libmodel.so is loaded by the C++ API of apache-tvm-ffi, with libtvm_runtime in the process: see example.cc,
   which `make` builds. Weights lie in weights.safetensors, at the offsets below, each at a multiple of 64 bytes. */
#ifndef PLANISH_MODEL_H
#define PLANISH_MODEL_H

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static inline int64_t planish_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t planish_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t planish_floor(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
static inline int64_t planish_modulo(int64_t a, int64_t b) { return a - b * planish_floor(a, b); }
"""

_TYPES = """\
/* An input, output or state: its type as text, and the code and bits of its numbers as DLPack has them. */
typedef struct {
  const char *name, *type;
  uint8_t code, bits;
  int32_t rank;
} planish_value;

/* A weight: `bytes` from `offset` on, or, where offset is -1, result number `made` of the load function. */
typedef struct {
  const char *name;
  uint8_t code, bits;
  int32_t rank;
  const int64_t *shape;
  int64_t offset, bytes;
  int32_t made;
} planish_weight;

/* An entry point. `function` takes inputs, states and weights, in this order, and gives an array of outputs and
   then of next states. `weights` are numbers of PLANISH_WEIGHTS; `shape` computes the sizes of an argument. */
typedef struct {
  const char *name, *function;
  int32_t inputs, states, outputs, weight_count;
  const planish_value *arguments, *results;
  const int32_t *weights;
  void (*shape)(int32_t number, const int64_t *sizes, int64_t *shape);
} planish_entry;
"""

_HELPERS = """\
/* Map the file of weights, read-only; 0 if it cannot be read or is not the one that this header describes. */
static inline const char *planish_map_weights(const char *path) {
  struct stat status;
  int file = open(path, O_RDONLY);
  void *begin = MAP_FAILED;
  if (file >= 0 && fstat(file, &status) == 0 && status.st_size == PLANISH_WEIGHTS_BYTES)
    begin = mmap(0, (size_t)PLANISH_WEIGHTS_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
  if (file >= 0) close(file);
  return begin == MAP_FAILED ? 0 : (const char *)begin;
}

static inline void planish_unmap_weights(const char *begin) {
  if (begin) munmap((void *)begin, (size_t)PLANISH_WEIGHTS_BYTES);
}

#endif
"""

EXAMPLE = r"""// Run the model in this folder on made-up inputs: make && ./example [ENTRY] [SIZE=NUMBER ...]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include "planish_model.h"

namespace ffi = tvm::ffi;

struct Mapped {  // memory of the mapped file, which outlives every tensor
  void AllocData(DLTensor* t, const char* place) { t->data = const_cast<char*>(place); }
  void FreeData(DLTensor*) {}
};
struct Owned {  // memory of its own, aligned as the code expects
  void AllocData(DLTensor* t) {
    size_t bytes = (ffi::GetDataSize(*t) + 64) / 64 * 64;
    t->data = memset(aligned_alloc(64, bytes), 0, bytes);
  }
  void FreeData(DLTensor* t) { free(t->data); }
};

static ffi::Array<ffi::Tensor> call(ffi::Module vm, const char* name, const std::vector<ffi::Any>& values) {
  std::vector<ffi::AnyView> views(values.begin(), values.end());
  ffi::Any result;
  vm->GetFunction(name).value().CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
  return result.cast<ffi::Array<ffi::Tensor>>();
}

int main(int count, char** words) try {
  const planish_entry* entry = &PLANISH_ENTRIES[0];
  int64_t sizes[PLANISH_SIZE_COUNT + 1] = {0};
  for (int s = 0; s < PLANISH_SIZE_COUNT; ++s) sizes[s] = planish_max(PLANISH_SIZES[s].low, 1);
  for (int w = 1; w < count; ++w) {
    const char* value = strchr(words[w], '=');
    for (int e = 0; !value && e < PLANISH_ENTRY_COUNT; ++e)
      if (!strcmp(words[w], PLANISH_ENTRIES[e].name)) entry = &PLANISH_ENTRIES[e];
    for (int s = 0; value && s < PLANISH_SIZE_COUNT; ++s)
      if (std::string(words[w], value - words[w]) == PLANISH_SIZES[s].name) sizes[s] = atoll(value + 1);
  }
  const char* file = planish_map_weights("weights.safetensors");
  if (!file) return fprintf(stderr, "weights.safetensors cannot be read\n"), 1;

  ffi::Module library = ffi::Module::LoadFromFile("./libmodel.so");
  ffi::Module vm = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  vm->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, 2);

  const DLDevice cpu{kDLCPU, 0};
  ffi::Array<ffi::Tensor> made;
  auto weight = [&](int32_t number) -> ffi::Tensor {
    const planish_weight& w = PLANISH_WEIGHTS[number];
    if (w.offset < 0) return made[w.made];
    return ffi::Tensor::FromNDAlloc(Mapped(), ffi::ShapeView(w.shape, w.rank), DLDataType{w.code, w.bits, 1}, cpu,
                                    file + w.offset);
  };
  std::vector<ffi::Any> values;
  for (int i = 0; i < PLANISH_LOAD_WEIGHTS; ++i) values.push_back(weight(PLANISH_LOAD_WEIGHT_NUMBERS[i]));
  const char* load = PLANISH_LOAD_FUNCTION;
  if (load) made = call(vm, load, values);

  values.clear();
  for (int32_t i = 0; i < entry->inputs + entry->states; ++i) {
    const planish_value& v = entry->arguments[i];
    std::vector<int64_t> shape(v.rank + 1);
    entry->shape(i, sizes, shape.data());
    DLDataType type{v.code, v.bits, 1};
    ffi::Tensor t = ffi::Tensor::FromNDAlloc(Owned(), ffi::ShapeView(shape.data(), v.rank), type, cpu);
    for (int64_t n = 0; i < entry->inputs && n < t.numel(); ++n) {  // states begin as zeros
      if (v.code == kDLFloat && v.bits == 32) static_cast<float*>(t.data_ptr())[n] = 0.125f * (n % 17);
      if (v.code == kDLInt && v.bits == 64) static_cast<int64_t*>(t.data_ptr())[n] = n % 7;
    }
    values.push_back(t);
  }
  for (int32_t i = 0; i < entry->weight_count; ++i) values.push_back(weight(entry->weights[i]));
  ffi::Array<ffi::Tensor> results = call(vm, entry->function, values);
  for (size_t r = 0; r < results.size(); ++r) {
    const planish_value& v = entry->results[r];
    ffi::Tensor t = results[r];
    printf("%s %s (%lld numbers):", v.name, v.type, static_cast<long long>(t.numel()));
    for (int64_t n = 0; n < t.numel() && n < 8; ++n) {
      if (v.code == kDLFloat && v.bits == 32) printf(" %.9g", static_cast<float*>(t.data_ptr())[n]);
      if (v.code == kDLInt && v.bits == 64)
        printf(" %lld", static_cast<long long>(static_cast<int64_t*>(t.data_ptr())[n]));
    }
    printf("\n");
  }
  return 0;
} catch (const std::exception& error) {
  fprintf(stderr, "%s\n", error.what());
  return 1;
}
"""

MAKEFILE = """\
# PYTHON is one in which apache-tvm-ffi and apache-tvm are installed; TVM_LIB holds libtvm_runtime.so.
PYTHON ?= python3
FFI := $(shell $(PYTHON) -m tvm_ffi.config --cxxflags --ldflags)
FFI_LIB := $(patsubst -L%,%,$(filter -L%,$(FFI)))
TVM_LIB ?= $(shell $(PYTHON) -c \\
  "from importlib.util import find_spec as f; print(f('tvm').submodule_search_locations[0] + '/lib')")

example: example.cc planish_model.h
\t$(CXX) -O1 example.cc -o $@ $(FFI) -L$(TVM_LIB) -Wl,--no-as-needed -ltvm_runtime -ltvm_ffi \\
\t  -Wl,-rpath,$(FFI_LIB) -Wl,-rpath,$(TVM_LIB)
"""
