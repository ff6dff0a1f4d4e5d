"""The LMTP listener and its sessions: who may come in, and how they are all brought to an end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from sidecar.capture import Capturer
from sidecar.front.policy import TOO_MANY_CONNECTIONS, FrontEvents, FrontLimits
from sidecar.front.session import LmtpFront
from sidecar.front.sharing import SharedListener, Siblings
from sidecar.lmtp import Capabilities
from sidecar.sockets import BACKLOG, bind_unix
from sidecar.units import Address

log = logging.getLogger(__name__)

_UNREADABLE = 10_000
"""how many queue ids are remembered whose message cannot be sent from the store"""


class _Refuser(asyncio.Protocol):
    """Says 421 to a connection beyond the limit, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        refused = cast(asyncio.WriteTransport, transport)
        refused.write(TOO_MANY_CONNECTIONS)
        refused.close()


class FrontServer:
    """Listens at `listen` and relays to `downstream`; one for the process, in one event loop.

    `limits` and `downstream` may be replaced while it runs: sessions look at them for each step. From
    `listeners`, sockets that other workers accept from as well, it takes its share; `siblings` tells of them.
    """

    def __init__(
        self,
        capturer: Capturer,
        *,
        listen: Address,
        downstream: Address,
        limits: FrontLimits | None = None,
        events: FrontEvents | None = None,
        hostname: str = "",
        socket_mode: int = 0o660,
        socket_group: str = "",
        listeners: Sequence[socket.socket] = (),
        siblings: Siblings = lambda: (),
    ) -> None:
        self.capturer = capturer
        self.downstream = downstream
        self.limits = limits or FrontLimits()
        self.events = events or FrontEvents()
        self.hostname = hostname or socket.gethostname()
        self.capabilities: Capabilities | None = None
        """what the mailbox server could do when it was last reached"""
        self.draining = False
        self.address = listen
        """where it listens; once started with port 0, the port that was given"""
        self._unreadable: dict[bytes, None] = {}
        self._socket_mode = socket_mode
        self._socket_group = socket_group
        self._server: asyncio.Server | None = None
        self._sessions: set[LmtpFront] = set()
        self._listeners = listeners
        self._siblings = siblings
        self._shared: list[SharedListener] = []

    async def start(self) -> None:
        """Listen. Raises OSError, and ValueError for port 25 (RFC 2033 5 forbids LMTP there)."""
        loop = asyncio.get_running_loop()
        if self._listeners:
            self._shared = [
                SharedListener(
                    listener, self._accept, self._not_connected, lambda: len(self._sessions), self._siblings
                )
                for listener in self._listeners
            ]
        elif self.address.is_unix:
            listener = bind_unix(Path(self.address.path), self._socket_mode, self._socket_group)
            self._server = await loop.create_unix_server(self._accept, sock=listener, backlog=BACKLOG)
        else:
            if self.address.port == 25:
                raise ValueError("LMTP must not listen on port 25")
            self._server = await loop.create_server(
                self._accept, self.address.host, self.address.port, backlog=BACKLOG
            )
            self.address = Address(self.address.host, self._server.sockets[0].getsockname()[1])

    def close_listeners(self) -> None:
        """Take no more connections; those that are here go on. Idempotent."""
        for shared in self._shared:
            shared.close()
        if self._server is not None and self._server.is_serving():
            self._server.close()
            if self.address.is_unix:
                Path(self.address.path).unlink(missing_ok=True)

    async def drain(self, timeout_s: float) -> bool:
        """Stop: no new connections, idle ones get 421, transactions may finish within `timeout_s`.

        Returns whether all did; the others are cut off without a reply, and their clients will come again.
        """
        self.close_listeners()
        self.draining = True
        for shared in self._shared:
            await shared.settle()
        await asyncio.sleep(0)  # whoever was accepted just now gets its task
        for session in self._sessions:
            session.wakeup.wake()
        tasks = [session.task for session in self._sessions if session.task is not None]
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        if late:
            log.error("%d LMTP sessions did not end within %g s and were cut off", len(late), timeout_s)
            await asyncio.wait(late)
        return not late

    def may_be_retry(self, queue_id: bytes) -> bool:
        """Whether a message is to be held back until it is known who has it already."""
        return queue_id not in self._unreadable and self.capturer.seen(queue_id)

    def cannot_resend(self, queue_id: bytes) -> None:
        """The stored copy of a retry is of no use: next time the message goes through as it comes.

        Somebody may get it twice, but bit rot does not turn every retry into 451 until it bounces.
        """
        self._unreadable[queue_id] = None
        if len(self._unreadable) > _UNREADABLE:
            del self._unreadable[next(iter(self._unreadable))]

    def left(self, session: LmtpFront) -> None:
        """A session ended, which may be long after its client went away."""
        self._sessions.discard(session)
        self.events.connections(-1)

    def _not_connected(self, protocol: asyncio.Protocol) -> None:
        if isinstance(protocol, LmtpFront):
            self.left(protocol)

    def _accept(self) -> asyncio.Protocol:
        if len(self._sessions) + sum(self._siblings()) >= self.limits.max_connections:
            return _Refuser()
        # Counted here and not when its task starts: a burst is accepted in one go.
        session = LmtpFront(self, asyncio.get_running_loop())
        self._sessions.add(session)
        self.events.connections(+1)
        return session
