"""Accepts from a socket that other workers accept from as well, so that each gets its share of the sessions.

The kernel wakes whom it likes, mostly the same one, and a session stays where it was accepted for as long as
Postfix keeps it. So whoever has more sessions than a sibling steps back for a moment; if none has come for
the connection by then (it may be stuck, or just have died), it is taken after all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_STEP_BACK_S = 0.005
_STEPS_BACK = 4
_NO_FILES_S = 1.0

Siblings = Callable[[], Sequence[int]]
"""how many sessions each of the other workers has that are ready"""


class SharedListener:
    """Accepts in the running event loop until closed; the socket itself stays open for the others."""

    def __init__(
        self,
        listener: socket.socket,
        accept: Callable[[], asyncio.Protocol],
        lost: Callable[[asyncio.Protocol], None],
        sessions: Callable[[], int],
        siblings: Siblings,
    ) -> None:
        self._listener = listener
        self._accept = accept
        self._lost = lost
        self._sessions = sessions
        self._siblings = siblings
        self._stepped_back = 0
        self._closed = False
        self._waiting: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        self._listen()

    def close(self) -> None:
        """Accept no more, in this process. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener)
            if self._waiting:
                self._waiting.cancel()
            self._listener.close()

    async def settle(self) -> None:
        """Wait until whoever was accepted has got its session."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _listen(self) -> None:
        self._waiting = None
        if not self._closed:
            self._loop.add_reader(self._listener, self._readable)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._waiting = self._loop.call_later(seconds, self._listen)

    def _readable(self) -> None:
        siblings = self._siblings()
        if siblings and self._sessions() > min(siblings) and self._stepped_back < _STEPS_BACK:
            self._stepped_back += 1
            self._pause(_STEP_BACK_S)
            return
        self._stepped_back = 0
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return  # somebody else was quicker, or the client has gone
        except OSError as exc:  # no file descriptors left, such as
            log.error("no connection can be accepted: %s", exc)
            self._pause(_NO_FILES_S)
            return
        connection.settimeout(0)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The session is counted here and now, so that the next connection is another's turn.
        protocol = self._accept()
        task: asyncio.Task[object] = self._loop.create_task(self._connect(protocol, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, protocol: asyncio.Protocol, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError as exc:
            log.warning("a connection was lost at once: %s", exc)
            with contextlib.suppress(OSError):
                connection.close()
            self._lost(protocol)
