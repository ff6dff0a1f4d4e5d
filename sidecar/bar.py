"""How far a long command is: a bar with rate and time left on a terminal, else a plain line now and then.

All of it goes to standard error, so that results and JSON on standard output stay clean. Ctrl-C leaves the
terminal as it was.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_INTERVAL_S = 10.0


class Bar:
    """Counts `total` things (0: nobody knows how many). Any thread may advance it; a context manager.

    `quiet`: says nothing at all, as with `--json`.
    """

    def __init__(self, what: str, total: int = 0, *, quiet: bool = False) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._began = self._told = time.monotonic()
        self._lock = threading.Lock()
        self._quiet = quiet
        self._rich: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console  # a tenth of a second that pipes need not wait for
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._rich = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty(),
            )  # fmt: skip
            self._rich.start()
            self._task = self._rich.add_task(self._what, total=self._total or None, rate="")
        return self

    def advance(self, number: int = 1) -> None:
        """So many more are done."""
        with self._lock:
            self._done += number
            if self._rich is not None and self._task is not None:
                self._rich.update(self._task, advance=number, rate=f"{self.rate:.1f}/s")
            elif not self._quiet and time.monotonic() - self._told >= _PLAIN_INTERVAL_S:
                self._told = time.monotonic()
                print(f"mailkeep: {self.line()}", file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Things a second since the beginning."""
        return self._done / max(time.monotonic() - self._began, 1e-6)

    def line(self) -> str:
        """Where it is, in words: `replay: 120 of 1000, 41.0/s, 21s left`."""
        if not self._total:
            return f"{self._what}: {self._done}, {self.rate:.1f}/s"
        left = _clock((self._total - self._done) / self.rate) if self._done else "unknown time"
        return f"{self._what}: {self._done} of {self._total}, {self.rate:.1f}/s, {left} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()


def _clock(seconds: float) -> str:
    """A rough time: `21s`, `3m10s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}m"
