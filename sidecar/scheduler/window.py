"""The hours in which jobs may run, by the clock on the wall.

What counts is what the clock shows, so a change of daylight saving time makes a window an hour longer or
shorter, as it does the night.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, tzinfo

from sidecar.scheduler.schedule import LOCAL

WINDOW_EXAMPLES = '"22:00-06:00" or "" for always'
_CLOCKS = re.compile(r"\s*([0-2]?[0-9]:[0-5][0-9])\s*-\s*([0-2]?[0-9]:[0-5][0-9])\s*")


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` up to `end`, over midnight if `end` is the earlier; without a text it is always open."""

    text: str = ""
    start: time = time()
    end: time = time()

    @classmethod
    def parse(cls, text: str) -> Window:
        """A window from `HH:MM-HH:MM`, or "" for always. Raises ValueError."""
        if not text.strip():
            return cls()
        match = _CLOCKS.fullmatch(text)
        try:
            start, end = (time.fromisoformat(f"{clock:0>5}") for clock in match.groups()) if match else (0, 0)
        except ValueError:
            start = end = 0
        if not isinstance(start, time) or not isinstance(end, time) or start == end:
            raise ValueError(f"{text!r} is not a window: write {WINDOW_EXAMPLES}")
        return cls(text, start, end)

    def is_open(self, time_s: float, zone: tzinfo = LOCAL) -> bool:
        """Whether jobs may run at a time, in seconds since 1970."""
        if not self.text:
            return True
        clock = datetime.fromtimestamp(time_s, zone).time()
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end
