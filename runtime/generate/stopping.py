"""Texts at which a generation ends, found while it streams."""

from __future__ import annotations

from collections.abc import Sequence


class Stopper:
    """Passes text on until one of the stops occurs; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop was found; it and all that follows it are dropped."""
        if not self._stops:
            return text, False
        self._held += text
        places = [at for at in map(self._held.find, self._stops) if at >= 0]
        if places:
            shown, self._held = self._held[: min(places)], ""
            return shown, True
        keep = max(self._overlap(stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False

    def flush(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """How many characters at the end begin a stop."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
