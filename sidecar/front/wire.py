"""The bytes of one LMTP connection: aiosmtpd's SMTP class with its reading and writing replaced.

Kept of aiosmtpd.smtp.SMTP: the session object (peer, host name), the envelope as the place of a transaction's
state, the task for each connection and its making, asyncio's flow control for writing. Replaced, and why:

- StreamReader and the read loop: a coroutine switch per command and per line of DATA is what costs (40 MB/s),
  and the reader's limit of 1001 bytes a line turns legal mail into a 500, which is a bounce.
- `command_size_limits`: kept on the class and cleared by every new connection; here a connection's own.
- addresses through the email package and replies through ASCII: neither preserves bytes.
- one reply per DATA: LMTP has one per recipient. Faults of the handler are 451 here, not 500.
- the timer restarted per command: it would close a connection whose delivery takes long.
- `eof_received` and `connection_lost`, which cancel the task: once a message has ended, a client that goes
  away must not keep its delivery from being finished and written down.
- `command_call_limit`, AUTH, STARTTLS, PROXY: the peer is our own MTA on a loopback or unix socket.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

from aiosmtpd.smtp import SMTP

from sidecar.front.policy import LINE_TOO_LONG, QUEUED_REPLY_BYTES
from sidecar.lmtp import CommandError
from sidecar.wakeup import Wakeup

HIGH_WATER_BYTES = 262_144
"""Reading stops when this much is here and not yet taken: the peer has to wait then."""
_LINGER_S = 10.0


class Wire(SMTP):
    """Lines and bulk bytes in, replies out. What it reads is looked at by one task, `_handle_client`."""

    def __init__(
        self, handler: Any, *, hostname: str, line_limit_bytes: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(handler, hostname=hostname, data_size_limit=None, loop=loop)
        self.wakeup = Wakeup(loop)
        self.gone = False
        """the peer has closed its side: what is here may be used, more will not come"""
        self._lost = False
        self._buffer = b""
        self._position = 0
        self._fresh = False  # bytes came since somebody looked
        self._reading = True
        self._clogged = False  # the peer does not take what is sent to it
        self._overlong = False  # in a line beyond the limit, which is dropped up to its end
        self._line_limit_bytes = line_limit_bytes
        self._line_begun: float | None = None  # when a line came that is not complete yet
        self._out: list[bytes] = []
        self._out_bytes = 0

    @property
    def peer(self) -> str:
        """The client's address, for logs; a unix socket has none."""
        return str(self.session.peer or "unix socket") if self.session else "nobody"

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task of this connection, once it has one."""
        return self._handler_coroutine

    # -- in

    def next_line(self) -> bytes | None:
        """The next command line without its line end, or None if none is complete.

        Raises CommandError in the place of a line that is too long.
        """
        buffer, start = self._buffer, self._position
        end = buffer.find(b"\n", start)
        if end < 0:
            rest = buffer[start:]
            self._overlong = self._overlong or len(rest) > self._line_limit_bytes
            self._buffer = b"" if self._overlong else rest
            self._position = 0
            if rest and self._line_begun is None:
                self._line_begun = self.wakeup.now()
            self._taken()
            return None
        self._line_begun = None
        self._position = end + 1
        if self._overlong or end - start > self._line_limit_bytes:
            self._overlong = False
            raise CommandError(LINE_TOO_LONG)
        if buffer[end - 1 : end] == b"\r" and end > start:
            end -= 1
        return buffer[start:end]

    def take(self) -> bytes:
        """All bytes that are here."""
        data = self._buffer[self._position :] if self._position else self._buffer
        self._buffer = b""
        self._position = 0
        self._taken()
        return data

    def give_back(self, data: bytes) -> None:
        """Put back what `take` gave too much."""
        self._buffer = data + self._buffer[self._position :]
        self._position = 0

    async def more_of_lines(self, idle_s: float) -> bool:
        """As `more`; a line that has begun must be complete within `idle_s`, however it drips."""
        return await self.more(idle_s, math.inf if self._line_begun is None else self._line_begun + idle_s)

    async def more(self, idle_s: float, latest: float = math.inf) -> bool:
        """Send what is to be sent, then wait for more bytes, no later than `latest`. False if none will come.

        Raises TimeoutError when the peer neither sends nor takes what is sent to it for `idle_s`.
        """
        self.flush()
        deadline = min(self.wakeup.now() + idle_s, latest)
        while not self._fresh or self._clogged:
            if self._lost or (self.gone and not self._fresh) or self.ending():
                return False
            await self.wakeup.wait(deadline)
        return True

    @property
    def much_queued(self) -> bool:
        """Whether many replies wait: `breathe` before there are more."""
        return self._out_bytes >= QUEUED_REPLY_BYTES

    async def breathe(self, idle_s: float) -> bool:
        """In the middle of many lines: send what is to be sent, and let others have their turn.

        False when nobody is there for whom the rest of the lines could be served.
        Raises TimeoutError when the peer does not take it within `idle_s`.
        """
        self.flush()
        deadline = self.wakeup.now() + idle_s
        await asyncio.sleep(0)
        while self._clogged and not self._lost and not self.ending():
            await self.wakeup.wait(deadline)
        return not self._lost

    def ending(self) -> bool:
        """Whether this connection should end rather than wait; looked at after each wake."""
        return False

    def _taken(self) -> None:
        self._fresh = False
        if not self._reading and not self._lost:
            self._reading = True
            self._link.resume_reading()

    # -- out

    def reply(self, raw: bytes) -> None:
        """Queue a whole reply; `flush` sends all of them in one write."""
        self._out.append(raw)
        self._out_bytes += len(raw)

    def flush(self) -> None:
        """Send the queued replies. To a peer that is no longer there nothing is sent."""
        if self._out:
            if not self._lost:
                self._link.write(b"".join(self._out))
            self._out.clear()
            self._out_bytes = 0

    def hang_up(self) -> None:
        """Send what is queued and close."""
        self.flush()
        self.wakeup.close()
        if not self._lost:
            self._link.close()
            if self._link.get_write_buffer_size():
                # A peer that does not read would keep the connection for ever.
                self.loop.call_later(_LINGER_S, self._link.abort)

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio; aiosmtpd makes the session object and starts the task."""
        self._link = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio. Never reaches aiosmtpd's StreamReader."""
        if self._position < len(self._buffer):
            self._buffer = self._buffer[self._position :] + data
        else:
            self._buffer = data
        self._position = 0
        self._fresh = True
        if self._reading and len(self._buffer) >= HIGH_WATER_BYTES:
            self._reading = False
            self._link.pause_reading()
        self.wakeup.wake()

    def eof_received(self) -> bool:
        """Called by asyncio. The peer may still read: it gets its replies."""
        self.gone = True
        self.wakeup.wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio. The task goes on until what it has in hand is done."""
        self.gone = self._lost = True
        # Past aiosmtpd's own method, which would cancel the task.
        asyncio.StreamReaderProtocol.connection_lost(self, exc)
        self.wakeup.wake()

    def pause_writing(self) -> None:
        """Called by asyncio."""
        super().pause_writing()
        self._clogged = True

    def resume_writing(self) -> None:
        """Called by asyncio."""
        super().resume_writing()
        self._clogged = False
        self.wakeup.wake()

    def _reset_timeout(self, duration: float | None = None) -> None:
        """aiosmtpd's timer per command is not used; see `more`."""
