"""What a session asks of whatever runs an entry point: ONNX Runtime or native code."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol


class Runner(Protocol):
    """Code that is ready to run, with the names of its inputs and outputs, those of states among them."""

    @property
    def inputs(self) -> Collection[str]:
        """The names of what a call takes."""

    @property
    def outputs(self) -> Collection[str]:
        """The names of what a call can give."""

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """Arrays by output name from arrays by input name.

        Outputs named in ``keep`` may come in a form of the runner's own, which it takes as inputs again.
        """

    def array(self, value: Any) -> Any:
        """An output that was kept, as an array."""

    def close(self) -> None:
        """Release memory; later calls are refused with PL704."""
