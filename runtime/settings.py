"""How ONNX Runtime is set up for a model: ``code/onnxruntime/session.json``, and the number of threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from planish.errors import ArtifactError, UsageError
from planish.runtime.tensors import parse_json

LEVELS = {"disabled": 0, "basic": 1, "extended": 2, "layout": 3, "all": 99}
"""Graph optimization levels by name, with ONNX Runtime's numbers."""

# A file from a stranger sets these entries and no others: some of the rest name files or libraries.
_CONFIG = frozenset(
    {
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_qdq_constant_folding",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.qdq_matmulnbits_accuracy_level",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
        "mlas.disable_kleidiai",
        "mlas.qnbit.force_fp32",
        "mlas.use_lut_gemm",
        "optimization.constant_folding_max_output_size_in_bytes",
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
    }
)


@dataclass(frozen=True)
class SessionSettings:
    """Options of one ONNX Runtime session; ``config`` are its configuration entries, from a fixed list."""

    graph_optimization_level: str = "all"
    arena: bool = True
    memory_pattern: bool = True
    config: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, *, where: str | None = None) -> SessionSettings:
        """Read the JSON form; unknown fields are ignored, unknown or unsafe config entries refused (PL611)."""
        table = parse_json(data, code="PL611", where=where)
        if not isinstance(table, dict):
            raise ArtifactError("PL611", "is not a JSON object", where=where)
        made = cls(
            table.get("graph_optimization_level", "all"),
            table.get("arena", True),
            table.get("memory_pattern", True),
            table.get("config", {}),
        )
        made.check(where)
        return made

    def check(self, where: str | None = None) -> None:
        """Raise PL611 for a value that ONNX Runtime must not be given."""
        level = self.graph_optimization_level
        if not isinstance(level, str) or level not in LEVELS:
            raise ArtifactError(
                "PL611", f"graph_optimization_level is not one of {', '.join(LEVELS)}", where=where
            )
        for switch in ("arena", "memory_pattern"):
            if getattr(self, switch) not in (True, False):
                raise ArtifactError("PL611", f"{switch} is not true or false", where=where)
        if not isinstance(self.config, Mapping):
            raise ArtifactError("PL611", "config is not a table", where=where)
        for key, value in self.config.items():
            if key not in _CONFIG:
                raise ArtifactError("PL611", f"the config entry {key[:80]!r} is not allowed", where=where)
            if not isinstance(value, str):
                raise ArtifactError("PL611", f"the config entry {key[:80]!r} is not a text", where=where)


def thread_count(threads: int | None = None) -> int | None:
    """The number of threads: the argument, else ``PLANISH_NUM_THREADS``, else None: ONNX Runtime's own choice."""
    if threads is not None:
        if type(threads) is not int or threads < 1:
            raise UsageError("PL862", f"threads is {threads!r}, not a whole number from 1")
        return threads
    text = os.environ.get("PLANISH_NUM_THREADS", "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) >= 1):
        raise UsageError("PL862", f"PLANISH_NUM_THREADS is {text[:40]!r}, not a whole number from 1")
    return int(text)
