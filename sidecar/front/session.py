"""The commands of one LMTP connection (RFC 2033), in front of one connection to the mailbox server.

MAIL and RCPT are relayed as they came and answered with the server's own bytes, so it is the mailbox server
that decides about addresses; those that the client pipelined go on in one write. All other commands are
answered here, and none that is unknown is passed on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from sidecar.downstream import Downstream, DownstreamError
from sidecar.front import policy
from sidecar.front.message import Message
from sidecar.front.transaction import Transaction
from sidecar.front.wire import Wire
from sidecar.lmtp import CommandError, Reply, parse_command, parse_path, parse_xforward
from sidecar.lmtp.commands import UNKNOWN
from store.records import Recipient

if TYPE_CHECKING:
    from sidecar.front.server import FrontServer

log = logging.getLogger(__name__)

_SLOW_S = 1.0
"""replies to a long pipeline are sent together, unless they take longer than this"""

_FIXED = {
    b"NOOP": policy.OK,
    b"VRFY": policy.NO_VRFY,
    b"HELP": policy.HELP,
    b"HELO": policy.NOT_SMTP,
    b"EHLO": policy.NOT_SMTP,
}


class _Goodbye(Exception):  # noqa: N818 - no error: the session's way out, from any depth
    """Say `reply` and hang up."""

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self.reply = reply


class LmtpFront(Wire):
    """One connection from the MTA. Its task outlives it until the message in hand is done."""

    def __init__(self, server: FrontServer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            hostname=server.hostname,
            line_limit_bytes=server.limits.command_line_bytes,
            loop=loop,
        )
        self.server = server
        self.xforward: dict[str, bytes] = {}
        self._downstream: Downstream | None = None
        self._lines = 0  # served since others had their turn
        self._offered: frozenset[bytes] | None = None  # what LHLO promised in the mailbox server's name
        self._relayed: list[tuple[bytes, Recipient | None]] = []  # MAIL (None) and RCPT not yet sent on
        self._commands: dict[bytes, Callable[[bytes], Awaitable[None]]] = {
            b"LHLO": self._lhlo,
            b"XFORWARD": self._xforward,
            b"DATA": self._data,
            b"RSET": self._rset,
            b"QUIT": self._quit,
        }

    # -- the task of the connection

    async def _handle_client(self) -> None:
        """Called by aiosmtpd as the task of this connection."""
        try:
            self.reply(b"220 %s LMTP mailkeep\r\n" % self.hostname.encode())
            while await self._step():
                pass
        except _Goodbye as goodbye:
            self.reply(goodbye.reply)
        except TimeoutError:
            self.reply(policy.IDLE_TOO_LONG)
        except Exception:
            log.exception("%s: the session ends on a fault", self.peer)
            self.server.events.fault()
            self.reply(policy.INTERNAL_ERROR)
        finally:
            self.hang_up()
            if self._downstream is not None:
                if self.transaction.is_open:
                    self._downstream.abort()
                self._downstream.close()
            self.server.left(self)

    async def _step(self) -> bool:
        """Serve the next line, or wait for one. False when there will be none."""
        try:
            line = self.next_line()
            if line is None:
                if self._relayed:
                    await self._relay()
                self._lines = 0
                return await self.more_of_lines(self.server.limits.idle_timeout_s)
            self._lines += 1
            command = parse_command(line)
            if command.verb == b"RCPT":
                self._rcpt(line, command.argument)
            elif command.verb == b"MAIL":
                await self._mail(line, command.argument)
            elif command.verb == b"DATA" and not command.argument:
                await self._data(b"")
            else:
                await self._local(command.verb, command.argument)
        except CommandError as exc:
            await self._relay()
            self.reply(exc.reply)
        if self._lines >= policy.LINES_AT_ONCE or self.much_queued:
            self._lines = 0
            await self._relay()  # or what waits could grow as long as lines come
            return await self.breathe(self.server.limits.idle_timeout_s)
        return True

    async def _local(self, verb: bytes, argument: bytes) -> None:
        await self._relay()
        handler = self._commands.get(verb)
        if handler is not None:
            await handler(argument)
        else:
            self.reply(_FIXED.get(verb, UNKNOWN))

    def ending(self) -> bool:
        """A drain ends idle connections; a transaction that has begun may finish."""
        if self.server.draining and not self.transaction.is_open:
            raise _Goodbye(policy.SHUTTING_DOWN)
        return False

    def _create_envelope(self) -> Transaction:
        """Called by aiosmtpd for a new connection, and by us for a new transaction."""
        self.transaction = Transaction()
        return self.transaction

    def _forget(self) -> None:
        """The transaction is over, and what XFORWARD told of it."""
        self.xforward = {}  # a new one: a commit may still hold the old
        self.envelope = self._create_envelope()

    # -- commands answered here

    async def _lhlo(self, argument: bytes) -> None:
        if not argument:
            raise CommandError(policy.NO_HOSTNAME)
        await self._leave()
        try:
            capabilities = (await self._connected()).capabilities
        except DownstreamError as exc:
            # Without knowing them, nothing true could be offered, and a client that is not offered SMTPUTF8
            # bounces mail that needs it.
            if self.server.capabilities is None:
                self._downstream_failed(exc)
                self.reply(exc.reply.raw)
                return
            capabilities = self.server.capabilities
        if self.session is not None:
            self.session.host_name = argument.decode("ascii", "backslashreplace")
            self.session.extended_smtp = True
        self._offered = frozenset(capabilities.mirrored)
        self.reply(capabilities.lhlo_reply(self.hostname.encode()))

    async def _xforward(self, argument: bytes) -> None:
        if self._offered is None:
            raise CommandError(policy.NO_LHLO)
        if self.transaction.is_open:
            raise CommandError(policy.NESTED_MAIL)
        self.xforward.update(parse_xforward(argument))
        self.reply(policy.OK)

    async def _rset(self, argument: bytes) -> None:
        if argument:
            raise CommandError(policy.NO_ARGUMENT)
        await self._leave()
        self.reply(policy.OK)

    async def _quit(self, _argument: bytes) -> None:
        raise _Goodbye(policy.BYE)

    # -- the transaction

    async def _mail(self, line: bytes, argument: bytes) -> None:
        await self._relay()
        if self._offered is None:
            raise CommandError(policy.NO_LHLO)
        if self.transaction.is_open and self.transaction.fault is None:
            raise CommandError(policy.NESTED_MAIL)
        if self.server.draining:
            raise _Goodbye(policy.SHUTTING_DOWN)
        sender = parse_path(argument, b"FROM:")
        if self.transaction.is_open:
            self._forget()
        self.transaction.sender = sender
        self.transaction.mail_line = line + b"\r\n"
        self._relayed.append((self.transaction.mail_line, None))

    def _rcpt(self, line: bytes, argument: bytes) -> None:
        transaction = self.transaction
        if not transaction.is_open:
            raise CommandError(policy.NO_MAIL if self._offered is not None else policy.NO_LHLO)
        address, parameters = parse_path(argument, b"TO:")
        if transaction.asked >= self.server.limits.max_recipients:
            raise CommandError(policy.TOO_MANY_RECIPIENTS)
        transaction.asked += 1
        self._relayed.append((line + b"\r\n", Recipient(address, parameters)))

    async def _relay(self, *, with_data: bool = False) -> Reply | None:
        """Send on the MAIL and RCPTs that wait, and answer them. Returns DATA's reply if it went too."""
        if not self._relayed:
            return None
        relayed, self._relayed = self._relayed, []
        waiting = iter(relayed)
        transaction = self.transaction
        data_reply: Reply | None = None
        begun = self.wakeup.now()

        def answered(reply: Reply) -> None:
            nonlocal data_reply
            line, recipient = next(waiting, (b"", None))
            if not line:
                data_reply = reply
                return
            self.reply(reply.raw)
            if recipient is None:
                transaction.mail_accepted = reply.positive
            else:
                transaction.answered(line, recipient, reply)
            if self.wakeup.now() - begun > _SLOW_S:
                self.flush()  # a client counts its patience from reply to reply

        if transaction.fault is None:
            try:
                if transaction.downstream is None:
                    transaction.downstream = await self._connected()
                lines = [line for line, _ in relayed]
                if with_data:
                    lines.append(b"DATA\r\n")
                await transaction.downstream.exchange(lines, self.server.limits.reply_timeout_s, answered)
            except DownstreamError as exc:
                self._downstream_failed(exc)
                transaction.fault = exc.reply.raw
        for _ in waiting:
            self.reply(transaction.fault or policy.INTERNAL_ERROR)
        if not transaction.mail_accepted and transaction.fault is None:
            self._forget()
        return data_reply

    def _downstream_failed(self, exc: DownstreamError) -> None:
        log.warning("the mailbox server failed for %s: %s", self.peer, exc)
        self.server.events.downstream_failed()

    async def _connected(self) -> Downstream:
        """The connection for a new transaction, made anew where the old one is lost or outdated.

        Raises DownstreamError.
        """
        if self._downstream is None or self._outdated(self._downstream):
            if self._downstream is not None:
                self._downstream.close()
            self._downstream = await Downstream.connect(
                self.server.downstream,
                hostname=self.hostname.encode(),
                deadline=self.wakeup.now() + self.server.limits.connect_timeout_s,
                wakeup=self.wakeup,
            )
            capabilities = self.server.capabilities = self._downstream.capabilities
            if self._offered is not None and not self._offered <= capabilities.mirrored.keys():
                # It would answer what we offered with a 5xx. The client is to ask again what there is.
                raise _Goodbye(policy.DOWNSTREAM_CHANGED)
        return self._downstream

    def _outdated(self, downstream: Downstream) -> bool:
        """Whether the next transaction needs another connection."""
        return downstream.lost or downstream.address != self.server.downstream

    async def _leave(self) -> None:
        """End the transaction without a message, here and downstream."""
        downstream = self.transaction.downstream
        self._forget()
        if downstream is not None and not downstream.lost:
            try:
                await downstream.reset(self.wakeup.now() + self.server.limits.reply_timeout_s)
            except DownstreamError as exc:
                log.warning("%s: %s", self.peer, exc)  # MAIL will connect again

    async def _data(self, argument: bytes) -> None:
        if argument:
            raise CommandError(policy.NO_ARGUMENT)
        held_back = self.server.may_be_retry(self.xforward.get("IDENT", b""))
        data_reply = await self._relay(with_data=not held_back and self._pipelines_data())
        transaction = self.transaction
        downstream = transaction.downstream
        refusal = transaction.fault
        if refusal is None:
            if downstream is None or not transaction.accepted:
                if self._downstream is not None and data_reply is not None and data_reply.intermediate:
                    self._downstream.abort()  # in DATA there is no other way back
                raise CommandError(policy.NO_RECIPIENTS if transaction.is_open else policy.NO_MAIL)
            if not held_back:
                refusal = await self._open_body(downstream, data_reply)
        if refusal is not None or downstream is None:
            await self._leave()
            self.reply(refusal or policy.INTERNAL_ERROR)
            return
        message = Message(self, transaction, downstream, held_back=held_back)
        self.reply(policy.GO_AHEAD)
        if await message.run():
            self._forget()

    def _pipelines_data(self) -> bool:
        """Whether DATA may go on in one write with the MAIL and RCPTs before it: saves a round trip."""
        downstream = self._downstream
        return (
            downstream is not None
            and not self._outdated(downstream)
            and downstream.capabilities.pipelining
            and not downstream.capabilities.chunking
        )

    async def _open_body(self, downstream: Downstream, data_reply: Reply | None) -> bytes | None:
        """What keeps the message from being sent on as it comes, or None."""
        try:
            if data_reply is None:
                refusal = await downstream.open_body(self.wakeup.now() + self.server.limits.reply_timeout_s)
            elif data_reply.intermediate:
                downstream.begin_body()
                refusal = None
            else:
                refusal = downstream.refusal(data_reply)
        except DownstreamError as exc:
            self._downstream_failed(exc)
            return exc.reply.raw
        return None if refusal is None else refusal.raw
