"""The road through LMTP: one recipient a transaction, no end sent before the whole message has proved right.

A small message is read and proved first, and then goes out in one write with its MAIL and RCPT where the
server pipelines and takes BDAT: one round trip a message, where a client that waits for each reply has four.
"""

from __future__ import annotations

import asyncio
import re
import socket

from sidecar.downstream import CHUNK_BYTES, Downstream, DownstreamError
from sidecar.replay.road import Lane, LostError
from sidecar.replay.targets import Target
from sidecar.units import Address
from store.errors import StoreError
from store.store import Store

CONNECT_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 300.0
_GOING_AWAY = 421
_ATOMS = re.compile(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\xff-]+")


class LmtpRoad:
    """`sender` None: as captured; b"": the null sender, which nothing answers to. `folder` goes into the
    address, behind `delimiter`."""

    def __init__(
        self, store: Store, address: Address, *, sender: bytes | None = b"", folder: str = "",
        delimiter: str = "+",
    ) -> None:  # fmt: skip
        self._store = store
        self._address = address
        self._sender = sender
        self._detail = (delimiter[:1] + folder).encode() if folder else b""
        self.name = str(address)

    def lane(self) -> Lane:
        """A connection, made when it is needed."""
        return _Lane(self._store, self._address, self._sender, self._detail)

    def close(self) -> None:
        """Nothing is held here."""


def with_detail(address: bytes, detail: bytes) -> bytes:
    """`anna@example.org` and `+Old mail`: `"anna+Old mail"@example.org`, quoted where RFC 5321 wants it."""
    if not detail:
        return address
    local, at, domain = address.rpartition(b"@")
    if not at:
        local, domain = domain, b""
    if local.startswith(b'"') and local.endswith(b'"') and len(local) > 1:
        local = re.sub(rb"\\(.)", rb"\1", local[1:-1], flags=re.DOTALL)
    local += detail
    if not _ATOMS.fullmatch(local) or b".." in local or local[:1] == b"." or local[-1:] == b".":
        local = b'"%s"' % re.sub(rb'(["\\])', rb"\\\1", local)
    return local + at + domain


class _Lane:
    def __init__(self, store: Store, address: Address, sender: bytes | None, detail: bytes) -> None:
        self._store = store
        self._address = address
        self._sender = sender
        self._detail = detail
        self._connection: Downstream | None = None
        self._hostname = socket.gethostname().encode("ascii", "replace")
        self._now = asyncio.get_running_loop().time
        self._busy = False

    async def put(self, target: Target) -> bytes:
        """See `Lane`."""
        self._busy = True
        reply = await self._put(target)
        self._busy = False
        return reply

    async def _put(self, target: Target) -> bytes:
        connection = await self._connected()
        mail, rcpt = self._envelope(target, connection)
        can_join = connection.capabilities.pipelining and connection.capabilities.chunking
        if can_join and target.delivery.size <= CHUNK_BYTES:
            message = self._store.read_small(target.delivery.content)
            reply = await self._at_once(connection, mail, rcpt, message)
        else:
            reply = await self._step_by_step(connection, mail, rcpt, target)
        if reply.startswith(b"%d" % _GOING_AWAY):
            self._drop()
            raise LostError(reply.decode("utf-8", "replace"))
        return reply

    async def _connected(self) -> Downstream:
        if self._connection is None or self._connection.lost:
            try:
                self._connection = await Downstream.connect(
                    self._address, hostname=self._hostname, deadline=self._now() + CONNECT_TIMEOUT_S
                )
            except DownstreamError as exc:
                raise LostError(str(exc), connected=False) from exc
        return self._connection

    async def _at_once(self, connection: Downstream, mail: bytes, rcpt: bytes, message: bytes) -> bytes:
        refusal = b""
        try:
            connection.send(mail, rcpt, b"BDAT %d LAST\r\n" % len(message), message, replies=3)
        except DownstreamError as exc:  # it was closed while it was idle: nothing has gone out
            raise LostError(str(exc)) from exc
        try:
            for _ in range(2):
                reply = await connection.reply(self._now() + REPLY_TIMEOUT_S)
                if not reply.positive and not refusal:
                    refusal = reply.text
            last = await connection.reply(self._now() + REPLY_TIMEOUT_S)
            if not refusal:
                return last.text
            if last.positive:  # a recipient was refused and the message taken all the same: for whom?
                self._drop()
                raise LostError(f"the server said {last.text!r} after {refusal!r}", in_doubt=True)
            await connection.reset(self._now() + REPLY_TIMEOUT_S)
        except DownstreamError as exc:
            self._drop()
            if refusal:
                return refusal
            raise LostError(str(exc), in_doubt=True) from exc
        return refusal

    async def _step_by_step(self, connection: Downstream, mail: bytes, rcpt: bytes, target: Target) -> bytes:
        ended = False
        try:
            for reply in await connection.begin(mail, [rcpt], REPLY_TIMEOUT_S):
                if not reply.positive:
                    await connection.reset(self._now() + REPLY_TIMEOUT_S)
                    return reply.text
            refusal = await connection.open_body(self._now() + REPLY_TIMEOUT_S)
            if refusal is None:
                for piece in self._store.read(target.delivery.content):
                    refusal = connection.body(piece)
                    if refusal is not None:
                        break
                    await connection.drain(self._now() + REPLY_TIMEOUT_S)
                else:  # the iterator's end is the proof of the whole message; only then its end is sent
                    ended = True
                    refusal = await connection.finish(1, self._now() + REPLY_TIMEOUT_S)
            if refusal is not None:
                self._drop()
                return refusal.text
            return (await connection.reply(self._now() + REPLY_TIMEOUT_S)).text
        except DownstreamError as exc:
            self._drop()
            raise LostError(str(exc), in_doubt=ended) from exc
        except StoreError:
            self._drop()  # the end was not sent: the server keeps nothing of it
            raise

    def _envelope(self, target: Target, connection: Downstream) -> tuple[bytes, bytes]:
        envelope = target.delivery.envelope
        sender = envelope.sender if self._sender is None else self._sender
        recipient = with_detail(target.recipient, self._detail)
        mail = b"MAIL FROM:<%s>" % sender
        if b"8BITMIME" in connection.capabilities.keywords and b"8BITMIME" in envelope.sender_params.upper():
            mail += b" BODY=8BITMIME"
        if b"SMTPUTF8" in connection.capabilities.keywords and not (sender + recipient).isascii():
            mail += b" SMTPUTF8"
        return mail + b"\r\n", b"RCPT TO:<%s>\r\n" % recipient

    def _drop(self) -> None:
        if self._connection:
            self._connection.abort()
            self._connection = None

    async def close(self) -> None:
        """See `Lane`."""
        if self._busy:  # with a message half sent, a QUIT would be part of it
            self._drop()
        elif self._connection:
            self._connection.close()
            self._connection = None
