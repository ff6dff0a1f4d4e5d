"""The road through LMTP: one recipient a transaction, no end sent before the whole message has proved right.

Small messages are read and proved first, and then go out in one write with their MAIL and RCPT where the
server pipelines and takes BDAT: one round trip for a few messages, where a client that waits for each reply
has four for each.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence

from sidecar.downstream import CHUNK_BYTES, Downstream, DownstreamError
from sidecar.replay.road import Answered, Failed, Lane, LostError
from sidecar.replay.targets import Target
from sidecar.units import Address
from store.errors import StoreError
from store.fleet import Archive
from store.ids import ContentId

CONNECT_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 300.0
_GOING_AWAY = b"421"
DEPTH = 4
"""messages in one write: more of them would be in doubt when a connection is lost, and gain little"""
_CONTROL = re.compile(rb"[\0-\x1f\x7f]")
_ATOMS = re.compile(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\xff-]+")


class LmtpRoad:
    """`sender` None: as captured; b"": the null sender, which nothing answers to. `folder` goes into the
    address, behind `delimiter`."""

    def __init__(
        self, store: Archive, address: Address, *, sender: bytes | None = b"", folder: str = "",
        delimiter: str = "+", depth: int = 1,
    ) -> None:  # fmt: skip
        self._store = store
        self._address = address
        self._sender = sender
        self._detail = (delimiter[:1] + folder).encode() if folder else b""
        self.depth = depth
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
    def __init__(self, store: Archive, address: Address, sender: bytes | None, detail: bytes) -> None:
        self._store = store
        self._address = address
        self._sender = sender
        self._detail = detail
        self._connection: Downstream | None = None
        self._hostname = socket.gethostname().encode("ascii", "replace")
        self._now = asyncio.get_running_loop().time
        self._busy = False

    async def put(self, targets: Sequence[Target], answered: Answered, failed: Failed) -> None:
        """See `Lane`."""
        self._busy = True
        connection = await self._connected()
        joined: list[tuple[Target, bytes]] = []
        size = 0
        can_join = connection.capabilities.pipelining and connection.capabilities.chunking
        for target in targets:
            sender = target.delivery.envelope.sender if self._sender is None else self._sender
            if _CONTROL.search(target.recipient + sender):
                failed(target, "its envelope has an address with a control character, which LMTP cannot say")
                continue
            if not can_join or target.delivery.size > CHUNK_BYTES:
                await self._at_once(connection, joined, answered)
                joined, size = [], 0
                await self._step_by_step(await self._connected(), target, answered, failed)
                continue
            try:
                message = await self._read(target.delivery.content)
            except StoreError as exc:
                failed(target, str(exc))
                continue
            if size + len(message) > CHUNK_BYTES:
                await self._at_once(connection, joined, answered)
                joined, size = [], 0
            joined.append((target, message))
            size += len(message)
        await self._at_once(connection, joined, answered)
        self._busy = False

    async def _read(self, content: ContentId) -> bytes:
        if self._store.is_remote:  # the other lanes go on while it is fetched
            return await asyncio.to_thread(self._store.read_small, content)
        return self._store.read_small(content)

    async def _connected(self) -> Downstream:
        if self._connection is None or self._connection.lost:
            try:
                self._connection = await Downstream.connect(
                    self._address, hostname=self._hostname, deadline=self._now() + CONNECT_TIMEOUT_S
                )
            except DownstreamError as exc:
                raise LostError(str(exc), connected=False) from exc
        return self._connection

    async def _at_once(
        self, connection: Downstream, joined: list[tuple[Target, bytes]], answered: Answered
    ) -> None:
        """Messages that have proved right, in one write. After each an RSET: where a recipient was refused,
        the server has the message's bytes to forget (Dovecot takes no MAIL before)."""
        if not joined:
            return
        parts: list[bytes] = []
        for target, message in joined:
            mail, rcpt = self._envelope(target, connection)
            parts += (mail, rcpt, b"BDAT %d LAST\r\n" % len(message), message, b"RSET\r\n")
        try:
            connection.send(*parts, replies=4 * len(joined))
        except DownstreamError as exc:  # it was closed while it was idle: nothing has gone out
            raise LostError(str(exc)) from exc
        for target, _ in joined:
            await self._one_of_several(connection, target, answered)

    async def _one_of_several(self, connection: Downstream, target: Target, answered: Answered) -> None:
        said = b""
        for step in ("MAIL", "RCPT", "BDAT", "RSET"):
            try:
                reply = connection.next_reply() or await connection.reply(self._now() + REPLY_TIMEOUT_S)
            except DownstreamError as exc:
                self._drop()
                raise LostError(str(exc), in_doubt=True) from exc
            if reply.raw.startswith(_GOING_AWAY):
                # By the RFC nothing of what comes behind is done. A Dovecot that is stopped says it in the
                # place of a reply that it had not sent yet, to mail that it had taken.
                self._drop()
                raise LostError(reply.text.decode("utf-8", "replace"), in_doubt=True)
            if step == "BDAT":
                answered(target, said or reply.text)
                if said and reply.positive:
                    # Without a recipient nobody can have it. The server gave no reply for each of none, and
                    # this is that of RSET: which reply is whose is not sure any more.
                    self._drop()
                    raise LostError(f"the server said {reply.text!r} after {said!r}", in_doubt=True)
            elif not reply.positive and not said:
                said = reply.text

    async def _step_by_step(
        self, connection: Downstream, target: Target, answered: Answered, failed: Failed
    ) -> None:
        content = target.delivery.content
        try:  # the end of what `read` yields is the proof of the whole message
            reply = await connection.deliver(
                *self._envelope(target, connection), self._store.read(content), REPLY_TIMEOUT_S
            )
        except StoreError as exc:
            self._drop()  # the end was not sent: the server keeps nothing of it
            failed(target, str(exc))
            return
        except DownstreamError as exc:
            self._drop()
            raise LostError(str(exc), in_doubt=connection.released) from exc
        if reply.raw.startswith(_GOING_AWAY):
            self._drop()  # after the end it is no word on this message: see `_one_of_several`
            raise LostError(reply.text.decode("utf-8", "replace"), in_doubt=connection.released)
        answered(target, reply.text)

    def _envelope(self, target: Target, connection: Downstream) -> tuple[bytes, bytes]:
        envelope = target.delivery.envelope
        sender = envelope.sender if self._sender is None else self._sender
        return connection.envelope(
            sender, with_detail(target.recipient, self._detail), envelope.sender_params
        )

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
