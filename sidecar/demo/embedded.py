"""A small mailbox server for where there is no Dovecot: LMTP with CHUNKING in, a Maildir for each user out.

It answers as a mailbox server must (RFC 2033, RFC 3030): strangers are refused at RCPT, each accepted
recipient gets a reply of its own after the message, and a 250 means that the mail is on disk: written to
`tmp`, flushed, linked into `new`, the folder flushed too. Only CRLF "." CRLF ends DATA. The bytes are kept as
they came, CRLF included, below the one field that final delivery adds (Return-Path, RFC 5321 4.4).

One thread with an event loop, and it flushes in that loop: good for a demo, too slow for a mail host.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from sidecar.demo.mailbox import StoredMail
from sidecar.demo.ports import LOOPBACK, free_port
from sidecar.demo.started import Started
from sidecar.lmtp import Command, CommandError, DotReader, parse_command, parse_path
from store.files import sync_directory

_IDLE_TIMEOUT_S = 300.0
_MAX_LINE_BYTES = 65_536
_PIECE_BYTES = 262_144
_CAPABILITIES = (b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME", b"SMTPUTF8", b"CHUNKING")
_BDAT = re.compile(rb"(\d{1,18})( +LAST)?", re.IGNORECASE)

_OK = b"250 2.0.0 OK\r\n"
_SEQUENCE = b"503 5.5.1 Bad sequence of commands\r\n"
_UNKNOWN_USER = b"550 5.1.1 <%b> User doesn't exist: %b\r\n"
_OVER_QUOTA = b"552 5.2.2 <%b> Quota exceeded (mailbox for user is full)\r\n"
_FAULT = b"451 4.3.0 <%b> Temporary internal error\r\n"


class MaildirServer(Started):
    """A server on a loopback port; a context manager that starts and stops it.

    users: the only mailboxes there are, each below `directory`; `user+detail` is `user`. quota_bytes:
    mailboxes with a limit; what goes over it gets 552 5.2.2 after the message.
    """

    def __init__(
        self, directory: Path, *, users: Collection[str], quota_bytes: Mapping[str, int] | None = None
    ) -> None:
        self.directory = directory
        self.users = {user.encode() for user in users}
        self.quota_bytes = {user.encode(): limit for user, limit in (quota_bytes or {}).items()}
        self.lmtp_port = free_port()
        self._names = (f"{number}.mailkeep" for number in itertools.count(1))
        self._loop = asyncio.new_event_loop()
        self._sessions: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="maildir-server")
        self._server: asyncio.Server | None = None

    @property
    def lmtp_address(self) -> str:
        """HOST:PORT of the LMTP listener."""
        return f"{LOOPBACK}:{self.lmtp_port}"

    def start(self) -> None:
        """Listen; once only. Raises OSError."""
        for user in self.users:
            for name in ("tmp", "new", "cur"):
                (self._maildir(user) / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Drop who is connected and end. The mail stays."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def mailbox(self, user: str) -> MaildirBox:
        """What that user's mail program sees."""
        return MaildirBox(self._maildir(user.encode()))

    # -- for the sessions

    def user_of(self, address: bytes) -> bytes | None:
        """The mailbox that an address means, None when there is none."""
        local, _, domain = address.lower().rpartition(b"@")
        user = local.partition(b"+")[0] + b"@" + domain
        return user if user in self.users else None

    def new_file(self, user: bytes) -> Path:
        """Where to write a message until it is whole: `tmp` of a user who gets it."""
        return self._maildir(user) / "tmp" / next(self._names)

    def deliver(self, written: Path, user: bytes) -> bool:
        """Put a whole, flushed message into the user's `new`, for good; False when it would go over quota."""
        maildir = self._maildir(user)
        limit = self.quota_bytes.get(user)
        if limit is not None and _used_bytes(maildir) + written.stat().st_size > limit:
            return False
        # One file for all its recipients: a message in a Maildir is never written to again.
        os.link(written, maildir / "new" / next(self._names))
        sync_directory(maildir / "new")
        return True

    def _maildir(self, user: bytes) -> Path:
        return self.directory / os.fsdecode(user) / "Maildir"

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.lmtp_port)

    async def _end(self) -> None:
        if self._server:
            self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = asyncio.current_task()
        assert session is not None  # noqa: S101 - a callback of a server runs in a task
        self._sessions.add(session)
        try:
            # A client that went away, or was told to by `stop`, is no fault.
            with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):
                await _Session(self, reader, writer).run()
        finally:
            self._sessions.discard(session)
            writer.close()


class MaildirBox:
    """One user's Maildir, with the same face as a mailbox over IMAP; the UID is the number in its name."""

    def __init__(self, maildir: Path) -> None:
        self._maildir = maildir

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def messages(self) -> list[StoredMail]:
        """All messages, oldest first, as they lie there."""
        return [StoredMail(uid=uid, raw=path.read_bytes()) for uid, path in sorted(self._files().items())]

    def delete(self, uid: int) -> None:
        """Delete one message for good. Raises KeyError when it is not there."""
        path = self._files()[uid]
        path.unlink()
        sync_directory(path.parent)

    def _files(self) -> dict[int, Path]:
        return {int(path.name.partition(".")[0]): path for path in _files(self._maildir)}


def _files(maildir: Path) -> list[Path]:
    return [*(maildir / "new").iterdir(), *(maildir / "cur").iterdir()]


def _used_bytes(maildir: Path) -> int:
    return sum(path.stat().st_size for path in _files(maildir))


class _Message:
    """A message on its way into a file. A fault of the disk is kept for the replies, and the rest is read."""

    def __init__(self, path: Path, sender: bytes) -> None:
        self.path = path
        self.failed = False
        self._file: BinaryIO | None = None
        self.write(b"Return-Path: <%b>\r\n" % sender)

    def write(self, data: bytes) -> None:
        try:
            self._file = self._file or self.path.open("xb")
            self._file.write(data)
        except OSError:
            self.failed = True

    def finish(self) -> None:
        try:
            if self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError:
            self.failed = True

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            if self._file:
                self._file.close()
        self.path.unlink(missing_ok=True)


class _Session:
    """One connection."""

    def __init__(
        self, server: MaildirServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._buffer = b""
        self._greeted = False
        self._sender: bytes | None = None
        self._recipients: list[tuple[bytes, bytes]] = []  # address, user
        self._message: _Message | None = None  # begun by BDAT, its LAST yet to come

    async def run(self) -> None:
        self._writer.write(b"220 maildir LMTP ready\r\n")
        try:
            while (line := await self._line()) is not None:
                try:
                    command = parse_command(line)
                    if command.verb == b"QUIT":
                        self._writer.write(b"221 2.0.0 Bye\r\n")
                        break
                    await self._do(command)
                except CommandError as exc:
                    self._writer.write(exc.reply)
                await self._writer.drain()
            await self._writer.drain()
        finally:
            self._reset()

    async def _do(self, command: Command) -> None:
        match command.verb:
            case b"LHLO":
                self._greeted = True
                self._reset()
                lines = [b"localhost", *_CAPABILITIES]
                self._writer.write(b"".join(b"250-%b\r\n" % line for line in lines[:-1]))
                self._writer.write(b"250 %b\r\n" % lines[-1])
            case b"MAIL":
                self._mail(command.argument)
            case b"RCPT":
                self._rcpt(command.argument)
            case b"DATA":
                await self._data()
            case b"BDAT":
                await self._bdat(command.argument)
            case b"RSET":
                self._reset()
                self._writer.write(_OK)
            case b"NOOP":
                self._writer.write(_OK)
            case b"VRFY":
                self._writer.write(b"252 2.1.5 Send some mail, and see\r\n")
            case _:
                self._writer.write(b"500 5.5.2 Command not recognized\r\n")

    def _mail(self, argument: bytes) -> None:
        if not self._greeted or self._sender is not None:
            self._writer.write(_SEQUENCE)
            return
        self._sender = parse_path(argument, b"FROM:").address
        self._writer.write(b"250 2.1.0 OK\r\n")

    def _rcpt(self, argument: bytes) -> None:
        if self._sender is None or self._message is not None:
            self._writer.write(_SEQUENCE)
            return
        address = parse_path(argument, b"TO:").address
        user = self._server.user_of(address)
        if user is None:
            self._writer.write(_UNKNOWN_USER % (address, address))
            return
        self._recipients.append((address, user))
        self._writer.write(b"250 2.1.5 OK\r\n")

    async def _data(self) -> None:
        # DATA and BDAT do not mix in one transaction (RFC 3030 2).
        if not self._recipients or self._message is not None:
            self._writer.write(_SEQUENCE)
            return
        self._writer.write(b"354 OK\r\n")
        await self._writer.drain()
        message = self._begin()
        reader = DotReader()
        while not reader.ended:
            if not self._buffer:
                await self._more()
            body, self._buffer = reader.feed(self._buffer)
            message.write(body)
        self._deliver(message)

    async def _bdat(self, argument: bytes) -> None:
        told = _BDAT.fullmatch(argument)
        if told is None:
            # How many bytes follow is not known, so nothing behind this can be read as commands.
            self._writer.write(b"501 5.5.4 Syntax: BDAT size [LAST]\r\n")
            raise EOFError
        message = self._message = (self._message or self._begin()) if self._recipients else None
        left = int(told[1])
        while left:
            if not self._buffer:
                await self._more()
            piece, self._buffer = self._buffer[:left], self._buffer[left:]
            left -= len(piece)
            if message:
                message.write(piece)
        if message is None:
            self._writer.write(_SEQUENCE)
        elif told[2]:
            self._deliver(message)
        else:
            self._writer.write(b"250 2.0.0 OK\r\n")

    def _begin(self) -> _Message:
        self._message = _Message(self._server.new_file(self._recipients[0][1]), self._sender or b"")
        return self._message

    def _deliver(self, message: _Message) -> None:
        """A reply for each recipient, in the order of RCPT (RFC 2033 4.2)."""
        message.finish()
        for address, user in self._recipients:
            try:
                if message.failed:
                    reply = _FAULT % address
                elif self._server.deliver(message.path, user):
                    reply = b"250 2.0.0 <%b> Saved\r\n" % address
                else:
                    reply = _OVER_QUOTA % address
            except OSError:
                reply = _FAULT % address
            self._writer.write(reply)
        self._reset()

    def _reset(self) -> None:
        if self._message:
            self._message.discard()
        self._message = None
        self._sender = None
        self._recipients = []

    async def _line(self) -> bytes | None:
        """The next command line without its end, None when the client has gone. Raises EOFError."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_LINE_BYTES:
                self._writer.write(b"500 5.5.2 Line too long\r\n")
                raise EOFError
            if not await self._more(may_end=True):
                return None
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.removesuffix(b"\r")

    async def _more(self, *, may_end: bool = False) -> bool:
        async with asyncio.timeout(_IDLE_TIMEOUT_S):
            data = await self._reader.read(_PIECE_BYTES)
        if not data and not may_end:
            raise EOFError
        self._buffer += data
        return bool(data)
