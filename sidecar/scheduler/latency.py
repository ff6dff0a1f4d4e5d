"""How long making mail durable took of late: what jobs look at before they go on.

Two numbers, whatever the load. A reading is the longest commit of the last two to four seconds: an average
would hide the one slow commit that somebody is waiting for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_SPAN_S = 2.0


class LatencyMeter:
    """Fed by the writer's thread alone, read by any; a reading that is one commit late does no harm."""

    __slots__ = ("_clock", "_longest", "_longest_before", "_since")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._longest = 0.0
        self._longest_before = 0.0

    def note(self, seconds: float) -> None:
        """A group of messages has been made durable in so long."""
        now = self._clock()
        age = now - self._since
        if age >= _SPAN_S:
            self._longest_before = self._longest if age < 2 * _SPAN_S else 0.0
            self._longest = 0.0
            self._since = now
        self._longest = max(self._longest, seconds)

    def __call__(self) -> float:
        """Seconds that the slowest of the latest commits took; 0 when there was none."""
        age = self._clock() - self._since
        if age >= 2 * _SPAN_S:
            return 0.0
        return self._longest if age >= _SPAN_S else max(self._longest, self._longest_before)
