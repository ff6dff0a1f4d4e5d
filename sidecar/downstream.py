"""The LMTP client: one connection to the mailbox server, for the front and for replay.

The message's end is in the caller's hand. `body` always withholds the last piece, so nothing that could
complete a message leaves before `finish`; `abort` closes without an end, and the server delivers nothing.
BDAT is used where CHUNKING is announced (bytes pass exactly, and the held end is the LAST chunk), else DATA.

Every wait has a deadline given by the caller. What goes wrong is one `DownstreamError`, which carries a 451
for the wire: only the server itself may refuse mail for good.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from sidecar.lmtp import Capabilities, DotWriter, Reply, ReplyError, ReplyParser
from sidecar.units import Address
from sidecar.wakeup import Wakeup

HIGH_WATER_BYTES = 262_144
"""Above this much unsent data the connection counts as paused."""
CHUNK_BYTES = 131_072
"""Pieces of a message are joined up to this size before they are sent, which bounds the number of BDATs."""

# Altering mail is forbidden, and a lax server would take the lone dot for the end and read the rest of the
# message as commands. So it is refused for good, as Postfix does with smtpd_forbid_bare_newline = reject.
BARE_NEWLINE = Reply.of(
    b"550 5.6.0 Message has a bare newline before a dot, refused to prevent smuggling\r\n"
)


class DownstreamError(Exception):
    """The mailbox server cannot be reached, went away, or makes no sense. `reply` is the 451 to give."""

    def __init__(self, reply: bytes, reason: str) -> None:
        super().__init__(reason)
        self.reply = Reply.of(reply)


_NO_CONNECTION = b"451 4.4.1 Cannot reach the mailbox server\r\n"
_LOST = b"451 4.4.2 Lost the connection to the mailbox server\r\n"
_SLOW = b"451 4.4.2 No answer from the mailbox server in time\r\n"
_CONFUSED = b"451 4.5.0 The mailbox server does not speak LMTP\r\n"


class Downstream(asyncio.Protocol):
    """A connection that has said LHLO. Made by `connect`; owned by one task."""

    def __init__(self, wakeup: Wakeup) -> None:
        self.capabilities = Capabilities({})
        self.address = Address()
        """the server that this is a connection to"""
        self.paused = False
        """Whether more than HIGH_WATER_BYTES wait to be sent: `drain` before giving more."""
        self.released = False
        """Whether the end of the message of this transaction may have reached the server"""
        self._wakeup = wakeup
        self._parser = ReplyParser()
        self._replies: deque[Reply] = deque()
        self._expected = 1  # replies that are not here yet; the first is the greeting
        self._chunks_open = 0  # replies to BDAT without LAST that are not here yet; they come first
        self._failure: DownstreamError | None = None
        self._transport: asyncio.Transport | None = None
        self._refusal: Reply | None = None
        self._writer: DotWriter | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0

    @classmethod
    async def connect(
        cls, address: Address, *, hostname: bytes, deadline: float, wakeup: Wakeup | None = None
    ) -> Downstream:
        """Connect, read the greeting, say LHLO. `deadline` is in the loop's time. Raises DownstreamError.

        `wakeup` lets the owner wait for this connection and for others at once.
        """
        loop = asyncio.get_running_loop()
        connection = cls(wakeup or Wakeup(loop))
        connection.address = address
        try:
            async with asyncio.timeout_at(deadline):
                if address.is_unix:
                    await loop.create_unix_connection(lambda: connection, address.path)
                else:
                    await loop.create_connection(lambda: connection, address.host, address.port)
        except (OSError, TimeoutError) as exc:
            connection.abort()
            raise DownstreamError(_NO_CONNECTION, f"{address}: {exc or 'timed out'}") from exc
        try:
            await connection._greet(hostname, deadline)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _greet(self, hostname: bytes, deadline: float) -> None:
        greeting = await self.reply(deadline)
        if not greeting.positive:
            raise DownstreamError(_NO_CONNECTION, f"the mailbox server greeted with {greeting.text!r}")
        self.send(b"LHLO %s\r\n" % hostname, replies=1)
        hello = await self.reply(deadline)
        if not hello.positive:
            raise DownstreamError(_NO_CONNECTION, f"the mailbox server answered LHLO with {hello.text!r}")
        self.capabilities = Capabilities.parse(hello)

    @property
    def lost(self) -> bool:
        """Whether the connection is gone (also after `abort` and `close`)."""
        return self._failure is not None

    # -- commands and replies

    def send(self, *data: bytes, replies: int) -> None:
        """Send commands to which so many replies will come. Raises DownstreamError."""
        transport = self._transport
        if self._failure is not None or transport is None:
            raise self._failure or DownstreamError(_NO_CONNECTION, "not connected")
        self._expected += replies
        transport.writelines(data)  # uvloop copies nothing

    def next_reply(self) -> Reply | None:
        """The next reply if it is here. Raises DownstreamError when none is here and none will come."""
        if self._replies:
            return self._replies.popleft()
        if self._failure is not None:
            raise self._failure
        return None

    async def reply(self, deadline: float) -> Reply:
        """The next reply. Raises DownstreamError."""
        while (reply := self.next_reply()) is None:
            await self._wait(deadline)
        return reply

    def refusal(self, reply: Reply) -> Reply:
        """`reply` itself, in a place where only 4xx or 5xx is a refusal. Raises DownstreamError for others.

        A stray 2xx would tell the client of a delivery that nobody made.
        """
        if not (reply.transient or reply.permanent):
            failure = DownstreamError(_CONFUSED, f"said {reply.text!r} out of place")
            self._lose(failure)
            raise failure
        return reply

    async def exchange(
        self, lines: Sequence[bytes], wait_s: float, answered: Callable[[Reply], object]
    ) -> None:
        """Send command lines (with CRLF) and hand each reply to `answered` as it comes, in order.

        One write when the server pipelines, else one line at a time. `wait_s` is for each reply: thousands
        of recipients may take their time, as long as they go on. Raises DownstreamError.
        """
        now = self._wakeup.now
        groups = [lines] if self.capabilities.pipelining else [[line] for line in lines]
        for group in groups:
            self.send(b"".join(group), replies=len(group))
            for _ in group:
                answered(self.next_reply() or await self.reply(now() + wait_s))

    async def begin(self, mail: bytes, recipients: Sequence[bytes], wait_s: float) -> list[Reply]:
        """Open a transaction with a MAIL line and RCPT lines; a reply for each. Raises DownstreamError."""
        self.released = False
        replies: list[Reply] = []
        await self.exchange([mail, *recipients], wait_s, replies.append)
        return replies

    async def reset(self, deadline: float) -> None:
        """Leave the transaction by RSET; the connection may be used again. Raises DownstreamError."""
        self.send(b"RSET\r\n", replies=1)
        reply = await self.reply(deadline)
        if not reply.positive:
            self._lose(DownstreamError(_CONFUSED, f"answered RSET with {reply.text!r}"))

    # -- the message

    async def open_body(self, deadline: float) -> Reply | None:
        """Make ready for `body`: with DATA, wait for 354. Returns the server's refusal, or None.

        Raises DownstreamError.
        """
        if not self.capabilities.chunking:
            self.send(b"DATA\r\n", replies=1)
            reply = await self.reply(deadline)
            if not reply.intermediate:
                return self.refusal(reply)
        self.begin_body()
        return None

    def begin_body(self) -> None:
        """Make ready for `body` where DATA has had its 354 already, or is not needed."""
        self._writer = None if self.capabilities.chunking else DotWriter()
        self._refusal = None
        self._held = []
        self._held_bytes = 0

    def body(self, piece: bytes) -> Reply | None:
        """Take the next piece; the last one stays here until `finish`. Returns a refusal, or None.

        A refusal (of a chunk by the server, or `BARE_NEWLINE`) is final for every recipient: send no more,
        and `abort`. It stays the answer if the connection is lost afterwards. Raises DownstreamError.
        """
        if self._refusal is not None:
            return self._refusal
        if self._writer is not None:
            piece = self._writer.feed(piece)
            if self._writer.lax_end:
                return self._smuggling()
        if self._held_bytes + len(piece) > CHUNK_BYTES and self._held_bytes:
            self._send_held()
        if piece:
            self._held.append(piece)
            self._held_bytes += len(piece)
        return self._refusal

    async def drain(self, deadline: float) -> None:
        """Wait until the server has taken enough of what was sent, or refused it. Raises DownstreamError."""
        while self.paused and self._refusal is None:
            if self._failure is not None:
                raise self._failure
            await self._wait(deadline)

    async def finish(self, recipients: int, deadline: float) -> Reply | None:
        """Release the end of the message: from here on it may be delivered. Returns a refusal, or None.

        Then comes one reply for each recipient that was accepted (RFC 2033 4.2). Raises DownstreamError.
        """
        self.released = True
        # No LAST behind a chunk that was refused: how many replies come then is anybody's guess.
        while self._chunks_open and self._refusal is None:
            if self._failure is not None:
                raise self._failure
            await self._wait(deadline)
        if self._refusal is not None:
            self.released = False
            return self._refusal
        if self._writer is None:
            self._held.insert(0, b"BDAT %d LAST\r\n" % self._held_bytes)
        else:
            end = self._writer.finish()
            if self._writer.lax_end:
                self.released = False
                return self._smuggling()
            self._held.append(end)
        self.send(*self._held, replies=recipients)
        self._held = []
        self._held_bytes = 0
        return None

    def _send_held(self) -> None:
        if self._writer is None:
            self._held.insert(0, b"BDAT %d\r\n" % self._held_bytes)
            self._chunks_open += 1
        self.send(*self._held, replies=0)
        self._held = []
        self._held_bytes = 0

    def _smuggling(self) -> Reply:
        self.abort()
        self._refusal = BARE_NEWLINE
        return BARE_NEWLINE

    # -- a whole message that is at hand

    def envelope(self, sender: bytes, recipient: bytes, sender_params: bytes) -> tuple[bytes, bytes]:
        """The MAIL and RCPT lines, with what this server takes of the parameters that the sender gave."""
        mail = b"MAIL FROM:<%s>" % sender
        if b"8BITMIME" in self.capabilities.keywords and b"8BITMIME" in sender_params.upper():
            mail += b" BODY=8BITMIME"
        if b"SMTPUTF8" in self.capabilities.keywords and not (sender + recipient).isascii():
            mail += b" SMTPUTF8"
        return mail + b"\r\n", b"RCPT TO:<%s>\r\n" % recipient

    async def deliver(self, mail: bytes, recipient: bytes, pieces: Iterable[bytes], wait_s: float) -> Reply:
        """One message for one recipient: the last reply to it. The end is sent only when `pieces` has come to
        its own end; what it raises is passed on, and the caller has to `abort`. Raises DownstreamError; then
        `released` tells whether the server may have the message nevertheless."""
        now = self._wakeup.now
        for reply in await self.begin(mail, [recipient], wait_s):
            if not reply.positive:
                await self.reset(now() + wait_s)
                return reply
        refusal = await self.open_body(now() + wait_s)
        if refusal is None:
            for piece in pieces:
                refusal = self.body(piece)
                if refusal is not None:
                    break
                await self.drain(now() + wait_s)
            else:
                refusal = await self.finish(1, now() + wait_s)
        if refusal is not None:
            self.abort()
            return refusal
        return await self.reply(now() + wait_s)

    # -- endings

    def abort(self) -> None:
        """Close at once; what was sent of a message has no end and is dropped by the server. Idempotent."""
        if self._failure is None:
            self._failure = DownstreamError(_LOST, "aborted")
        self._held = []
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close in good manners, outside of a transaction. Idempotent."""
        if self._failure is None and self._transport is not None:
            self._transport.write(b"QUIT\r\n")
            self._transport.close()
            self._failure = DownstreamError(_LOST, "closed")

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by descent
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._failure is not None:
            return
        try:
            for reply in self._parser.feed(data):
                self._take(reply)
        except ReplyError as exc:
            self._lose(DownstreamError(_CONFUSED, str(exc)))
        except DownstreamError:
            pass  # whoever waits for a reply is told
        self._wakeup.wake()

    def _take(self, reply: Reply) -> None:
        if self._chunks_open:
            self._chunks_open -= 1
            if not reply.positive and self._refusal is None:
                self._refusal = self.refusal(reply)
        elif self._expected:
            self._expected -= 1
            self._replies.append(reply)
        else:
            # Most often a 421 before an idle connection is closed. It must not answer the next command.
            self._lose(DownstreamError(_LOST, f"said {reply.text!r} unasked"))

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self.paused = True

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self.paused = False
        self._wakeup.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if self._failure is None:
            self._failure = DownstreamError(_LOST, str(exc or "closed by the mailbox server"))
        self._wakeup.wake()

    def _lose(self, failure: DownstreamError) -> None:
        self._failure = failure
        self.abort()

    async def _wait(self, deadline: float) -> None:
        try:
            await self._wakeup.wait(deadline)
        except TimeoutError:
            failure = DownstreamError(_SLOW, "no answer in time")
            self._lose(failure)
            raise failure from None
