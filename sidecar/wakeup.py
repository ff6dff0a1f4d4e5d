"""One task waits, callbacks of its connections wake it; a deadline costs next to nothing.

A session waits thousands of times a second, nearly always for something that comes at once. A timer for each
wait would cost more than the wait, so there is one timer, which is late on purpose: when it goes off it looks
at the deadline of the wait at hand, and goes to sleep again if that has not passed.
"""

from __future__ import annotations

import asyncio


class Wakeup:
    """Belongs to one task. What it waits for is looked at by the task itself, before and after each wait."""

    __slots__ = ("_deadline", "_future", "_loop", "_timer", "_timer_at", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = loop.time
        self._future: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def wake(self) -> None:
        """Something happened. Without a waiting task this does nothing."""
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    async def wait(self, deadline: float) -> None:
        """Until the next wake. Raises TimeoutError once `deadline` (in the loop's time) has passed."""
        self._deadline = deadline
        if self._timer is None:
            self._arm()
        elif self._timer_at > deadline:
            self._timer.cancel()
            self._arm()
        self._future = self._loop.create_future()
        try:
            await self._future
        finally:
            self._future = None

    def close(self) -> None:
        """Take back the timer, which would keep the task's belongings alive for its whole length."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._future is None or self._future.done():
            return
        if self._timer_at >= self._deadline:
            self._future.set_exception(TimeoutError())
        else:
            self._arm()
