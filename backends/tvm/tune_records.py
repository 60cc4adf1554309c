"""What was measured before, in files: for each kernel on each machine, the variant that was fastest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from planish.errors import ArtifactError
from planish.runtime.processor import features
from planish.runtime.tensors import parse_json
from planish.runtime.zipwriter import replacing

FOLDER = "tuning"
"""The folder of the records within the cache."""

FORMAT = 1
LARGEST = 1 << 20
"""Bytes of the largest file that is read."""


@dataclass(frozen=True)
class Record:
    """The name of the variant that was chosen, and its share of the time of the default."""

    variant: str
    ratio: float


class Records:
    """The records in the cache folder ``folder`` (None: none are kept), under the policy of that cache.

    ``problems`` tells of files that were ignored, and why.
    """

    def __init__(self, folder: Path | None, policy: str = "on") -> None:
        self.folder = None if folder is None or policy == "off" else folder / FOLDER
        self.policy = policy
        self.problems: list[str] = []

    def find(self, facts: Mapping[str, Any]) -> Record | None:
        """What was measured under these facts; None if nothing was, or if the file is not understood."""
        if self.folder is None or self.policy == "redo":
            return None
        path = self.folder / name_of(facts)
        try:
            return read_record(path, facts)
        except FileNotFoundError:
            return None
        except (OSError, ArtifactError, ValueError) as error:
            self.problems.append(f"the tuning record {path.name} is ignored: {_reason(error)}")
            return None

    def keep(self, facts: Mapping[str, Any], record: Record) -> None:
        """Write a record; a folder that cannot be written is a problem, not an error."""
        if self.folder is None or self.policy == "readonly":
            return
        table = {"format": FORMAT, "facts": facts, "variant": record.variant, "ratio": record.ratio}
        path = self.folder / name_of(facts)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path, overwrite=True) as file:
                file.write(json.dumps(table, indent=1, sort_keys=True).encode() + b"\n")
        except (OSError, ArtifactError) as error:
            self.problems.append(f"the tuning record {path.name} is not kept: {_reason(error)}")


def read_record(path: Path, facts: Mapping[str, Any]) -> Record:
    """The record in a file; ``ArtifactError`` or ``ValueError`` if it is not one for these facts."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError("it is too large")
    table = parse_json(data, code="PL611", where=None)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise ValueError("it is not a record of this version")
    if table.get("facts") != json.loads(json.dumps(facts)):
        raise ValueError("it is for something else than its name says")
    name, ratio = table.get("variant"), table.get("ratio")
    if not isinstance(name, str) or name not in facts["variants"]:
        raise ValueError("it names no variant of the kernel")
    if not isinstance(ratio, float) or not 0 < ratio < 10:
        raise ValueError("it has no ratio")
    return Record(name, ratio)


def _reason(error: Exception) -> str:
    if isinstance(error, ArtifactError):
        return error.message
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def name_of(facts: Mapping[str, Any]) -> str:
    """The file of a record."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32] + ".json"


@cache
def machine_facts(threads: int) -> Mapping[str, Any]:
    """What measured times depend on besides the kernel: the processor, the threads, the tools."""
    known = " ".join(sorted(features()))
    return {
        "processor": processor(),
        "features": hashlib.sha256(known.encode()).hexdigest()[:16],
        "threads": threads,
        "versions": {name: _version(name) for name in ("planish", "apache-tvm", "apache-tvm-ffi")},
    }


def processor(text: str | None = None) -> str:
    """The name of the processor with its family, model and stepping, from ``/proc/cpuinfo`` or a text like it."""
    if text is None:
        try:
            text = Path("/proc/cpuinfo").read_text()
        except OSError:
            return "unknown"
    rows = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    table = {key.strip(): value.strip() for key, _, value in rows}
    parts = (table.get(key, "") for key in ("model name", "cpu family", "model", "stepping"))
    return " ".join(part for part in parts if part) or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
