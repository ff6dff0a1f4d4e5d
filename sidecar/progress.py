"""One line on standard error that says how far a command is; nothing at all where nobody is watching."""

from __future__ import annotations

import sys
import time
from typing import Self

_INTERVAL_S = 0.2


class Progress:
    """A line that overwrites itself, a few times a second at most, and is gone at the end."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()
        self._next = time.monotonic() + _INTERVAL_S
        self._width = 0

    def show(self, line: str) -> None:
        """Say where we are."""
        if self._watched and time.monotonic() >= self._next:
            self._next = time.monotonic() + _INTERVAL_S
            sys.stderr.write(f"\r{line.ljust(self._width)}")
            sys.stderr.flush()
            self._width = len(line)

    def clear(self) -> None:
        """Take the line away, before something else is written."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()
