"""Time while a message comes in: what the client may take of it, and what we may.

A client that drips would hold a connection for ever, so beyond its idle time a message has to come at a
minimum pace; waits of our own do not count against it. And we must not hold it back for ever: its last bytes
and the dot may be on the way already, for the MTA counts from when it has handed them to the kernel. So all
waits within the last stretch of a message count as if they were behind its dot.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.front.policy import MIN_PACE_BYTES_S, STRETCH_BYTES, FrontLimits


class Stalls:
    """How long one of the two, store or mailbox server, has held a message back of late."""

    def __init__(self, allowance_s: float) -> None:
        self._allowance_s = allowance_s
        self._before_s = 0.0  # in the stretch before this one
        self._now_s = 0.0

    @property
    def total_s(self) -> float:
        """In this stretch and the one before."""
        return self._before_s + self._now_s

    @property
    def left_s(self) -> float:
        """What is left of the allowance; at 0 a wait ends at once."""
        return max(0.0, self._allowance_s - self.total_s)

    def add(self, seconds: float) -> None:
        """So long a wait is over."""
        self._now_s += seconds

    def next_stretch(self) -> None:
        """What was long enough ago is forgotten."""
        self._before_s, self._now_s = self._now_s, 0.0


class Pace:
    """The clock of one message, from 354 to its end. All times are the loop's."""

    def __init__(self, limits: FrontLimits, now: Callable[[], float]) -> None:
        self._limits = limits
        self._now = now
        self._began = now()
        self._size = 0
        self._stretch = 0  # bytes of it
        self._ours_s = 0.0
        # A third of the time for each, and a third for what is left to do behind the dot.
        self.store = Stalls(limits.delivery_timeout_s / 3)
        self.server = Stalls(limits.delivery_timeout_s / 3)

    def client_deadline(self) -> float:
        """When the client is too slow: by then more must have come, or the end."""
        patience = self._limits.idle_timeout_s + self._size / MIN_PACE_BYTES_S
        return self._began + self._ours_s + patience

    def came(self, size: int) -> float:
        """So many bytes are here. Returns until when they may be held back, by store and server together."""
        self._size += size
        self._stretch += size
        if self._stretch >= STRETCH_BYTES:
            self._stretch = 0
            self.store.next_stretch()
            self.server.next_stretch()
        return self._now() + self._limits.reply_timeout_s

    def waited(self, stalls: Stalls, since: float) -> None:
        """A wait for one of the two is over."""
        seconds = self._now() - since
        stalls.add(seconds)
        self._ours_s += seconds

    def delivery_deadline(self) -> float:
        """At the message's end: when its last reply is due, the dot taken to be as old as it can be."""
        stalled_s = self.store.total_s + self.server.total_s
        return self._now() + self._limits.delivery_timeout_s - stalled_s
