"""What a running job has in hand: whether to stop, when to stand back, how far it is.

A job calls `yield_` between small steps (a few ms of work each). There it waits while capture is slow, pays
for the bytes it has `spent`, and learns by `JobInterrupted` that it must stop. A job that stops is run again
later with its `bookmark`: what it has done must stay done. All of this may be called from several threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

BACKOFF_CAP_S = 30.0
"""However busy capture is, a job makes one step in this time: under load without end it is slow, yet ends."""
_LOOK_S = 0.1
_BURST_S = 0.25


class JobInterrupted(Exception):  # noqa: N818 - it is no fault
    """The job must stop now; it is resumed later, unless it was cancelled."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; `total` is 0 where it is not known."""

    done: int = 0
    total: int = 0
    text: str = ""
    waiting: str = ""
    """why it stands still at the moment"""


class JobContext:
    """One run of one job."""

    def __init__(
        self,
        arguments: Mapping[str, str],
        bookmark: str = "",
        *,
        threads: int = 1,
        busy_latency_s: Callable[[], float] = lambda: 1.0,
        io_rate_bytes: Callable[[], int] = lambda: 0,
        latency_s: Callable[[], float] = lambda: 0.0,
        backed_off: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.arguments = arguments
        self.bookmark = bookmark
        """where to go on, in the job's own words; kept when it stops, and once a minute while it runs"""
        self.threads = threads
        """how many threads the job may use"""
        self.told_to_stop = False
        """whether the job knows that it must stop, so that a return is no completion"""
        self.cancelled = False
        self._busy_latency_s = busy_latency_s
        self._io_rate_bytes = io_rate_bytes
        self._latency_s = latency_s
        self._backed_off = backed_off
        self._stop = threading.Event()
        self._reason = ""
        self._lock = threading.Lock()
        self._progress = Progress()
        self._waiting = ""
        self._debt_bytes = 0.0
        self._paid_at = time.monotonic()

    def stop_requested(self) -> bool:
        """Whether the job must come to an end: shutdown, pause, cancel, or the end of the window."""
        self.told_to_stop |= self._stop.is_set()
        return self._stop.is_set()

    def spent(self, size: int) -> None:
        """So many bytes were read or written; paid for at the next `yield_`."""
        with self._lock:
            self._earn()  # up to now, and no more than may be saved up
            self._debt_bytes += size

    def progress(self, done: int, total: int = 0, text: str = "") -> None:
        """How far the job is."""
        self._progress = Progress(done, total, text)

    def yield_(self) -> None:
        """Let others go first, for as long as it takes. Raises JobInterrupted."""
        self._check()
        if self._latency_s() > self._busy_latency_s():
            self._back_off()
        if self._debt_bytes > 0:
            self._pay()

    # -- the scheduler's side

    def stop(self, reason: str) -> None:
        """Ask the job to stop; the first reason stays."""
        self._reason = self._reason or reason
        self._stop.set()

    def cancel(self) -> None:
        """Ask the job to stop, not to be resumed."""
        self.cancelled = True
        self.stop("cancelled")

    @property
    def stop_reason(self) -> str:
        """Why it was asked to stop; "" while it was not."""
        return self._reason

    def how_far(self) -> Progress:
        """What `progress` was told last, and why the job waits if it does."""
        progress = self._progress
        return Progress(progress.done, progress.total, progress.text, self._waiting)

    # -- waiting

    def _check(self) -> None:
        if self.stop_requested():
            raise JobInterrupted(self._reason)

    def _wait(self, seconds: float, why: str) -> None:
        self._waiting = why
        self._stop.wait(seconds)
        self._waiting = ""
        self._check()

    def _back_off(self) -> None:
        began = time.monotonic()
        try:
            while self._latency_s() > self._busy_latency_s() and time.monotonic() - began < BACKOFF_CAP_S:
                self._wait(_LOOK_S, "capture is busy")
        finally:
            self._backed_off(time.monotonic() - began)

    def _pay(self) -> None:
        """Wait until the bytes spent fit the rate, which may change; a quarter second's are free."""
        while True:
            with self._lock:
                rate = self._earn()
                owed_s = self._debt_bytes / rate if rate else 0.0
            if owed_s <= 0:
                return
            self._wait(min(owed_s, 1.0), "I/O rate")

    def _earn(self) -> int:
        """Take what the time since the last look is worth off the debt; the rate."""
        rate = self._io_rate_bytes()
        now = time.monotonic()
        earned = (now - self._paid_at) * rate
        self._paid_at = now
        self._debt_bytes = max(self._debt_bytes - earned, -_BURST_S * rate) if rate else 0.0
        return rate
