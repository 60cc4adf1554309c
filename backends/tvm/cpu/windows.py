"""Windows along one axis, cut at the borders, and blocks of channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T


@dataclass(frozen=True)
class Window:
    """``size`` taps ``dilation`` apart, every ``stride``, over ``length`` elements with ``padding`` on each side."""

    size: int
    stride: int
    padding: int
    dilation: int
    length: Any

    def taps(self, place: Any) -> tuple[Any, Any]:
        """First tap that lies inside and the one after the last, for the window at a place of the result."""
        begin = place * self.stride - self.padding
        low = tirx.floordiv(tirx.max(0 - begin, 0) + self.dilation - 1, self.dilation)
        high = tirx.floordiv(tirx.max(self.length - begin, 0) + self.dilation - 1, self.dilation)
        return tirx.min(low, self.size), tirx.min(high, self.size)

    def source(self, place: Any, tap: Any) -> Any:
        """The element that a tap reads."""
        return place * self.stride - self.padding + tap * self.dilation


def channel_blocks(channels: int, lanes: int, body: Callable[[Any, int, int], None]) -> None:
    """``body(start, vectors, lanes)`` over all channels: four vectors at a time, then one, then single channels."""
    begin = 0
    for vectors in (4, 1):
        width = vectors * lanes
        count = (channels - begin) // width
        if count > 1:
            with T.serial(0, count) as i:
                body(begin + i * width, vectors, lanes)
        elif count == 1:
            body(begin, vectors, lanes)
        begin += count * width
    if begin < channels:
        with T.serial(0, channels - begin) as i:
            body(begin + i, 1, 1)
