"""Ctrl-C, SIGTERM and a closed terminal: one KeyboardInterrupt, and only where it can do no harm.

Servers are started and stopped, and the directory is removed, in stretches that no signal cuts short; a
signal that came in one is raised behind it. After the first, signals change nothing any more: they would
only hinder the cleaning up that the first has begun.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Takes the signals for as long as it is entered (main thread only); raises inside `allowed` alone."""

    def __init__(self) -> None:
        self._came = False
        self.raised = False
        """Whether KeyboardInterrupt has been raised; nothing more will be."""
        self._allowed = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._former = {number: signal.signal(number, self._take) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A signal may raise KeyboardInterrupt anywhere in here, also for one that came before."""
        self._allowed = True
        try:
            self._raise_once()
            yield
        finally:
            self._allowed = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside of `allowed`: a stretch that is to be finished first."""
        self._allowed = False
        try:
            yield
        finally:
            self._allowed = True
        self._raise_once()

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._allowed:
            self._raise_once()

    def _raise_once(self) -> None:
        if self._came and not self.raised:
            self.raised = True
            raise KeyboardInterrupt
