"""The scratch LMTP server (RFC 2033) that a drill restores to: keeps length and BLAKE3, and not the mail.

It listens on a unix socket in a directory that only this user may enter, and offers CHUNKING as Dovecot does,
so that messages reach it as they would reach a mailbox. It says 250 only after the last byte was there.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from blake3 import blake3

from sidecar.lmtp import CommandError, parse_command, parse_path
from sidecar.units import Address

_PIECE_BYTES = 1 << 18
_SOCKET_PATH_BYTES = 107
_HELLO = b"250-scratch\r\n250-CHUNKING\r\n250-PIPELINING\r\n250-SMTPUTF8\r\n250 8BITMIME\r\n"
_OK = b"250 2.0.0 Ok\r\n"


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message that came whole: for whom, its bytes, their BLAKE3."""

    recipient: bytes
    size: int
    digest: bytes


class ScratchError(Exception):
    """There can be no scratch server here."""


class ScratchServer:
    """Use it as an async context manager; `address` is where to deliver to."""

    def __init__(self) -> None:
        self.address = Address()
        self._directory = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived: list[Arrived] = []

    async def __aenter__(self) -> Self:
        try:
            await self._listen()
        except OSError as exc:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise ScratchError(f"there can be no scratch server to restore to: {exc}") from exc
        return self

    async def _listen(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="mailkeep-drill-")  # 0700
        path = Path(self._directory) / "lmtp.sock"
        if len(str(path).encode()) > _SOCKET_PATH_BYTES:  # TMPDIR is deep down somewhere
            shutil.rmtree(self._directory)
            self._directory = tempfile.mkdtemp(prefix="mailkeep-drill-", dir="/tmp")
            path = Path(self._directory) / "lmtp.sock"
        self.address = Address(path=str(path))
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_PIECE_BYTES)

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        shutil.rmtree(self._directory, ignore_errors=True)

    def take(self) -> list[Arrived]:
        """What came since the last look."""
        arrived, self._arrived = self._arrived, []
        return arrived

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:  # a server's handler always runs as one
            return
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a message without its end is none
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipient, digest, size = b"", blake3(), 0
        writer.write(b"220 scratch LMTP\r\n")
        while line := await reader.readline():
            reply = _OK
            try:
                command = parse_command(line.removesuffix(b"\n").removesuffix(b"\r"))
                match command.verb:
                    case b"LHLO":
                        reply = _HELLO
                    case b"MAIL":
                        parse_path(command.argument, b"FROM:")
                    case b"RCPT":
                        recipient = parse_path(command.argument, b"TO:").address
                    case b"BDAT":
                        words = command.argument.split()
                        size += int(words[0])
                        await _read(reader, int(words[0]), digest)
                        if len(words) > 1:
                            self._arrived.append(Arrived(recipient, size, digest.digest()))
                            recipient, digest, size = b"", blake3(), 0
                    case b"RSET":
                        recipient, digest, size = b"", blake3(), 0
                    case b"QUIT":
                        writer.write(b"221 2.0.0 Bye\r\n")
                        return
                    case _:
                        reply = b"502 5.5.1 Not here\r\n"
            except CommandError as exc:
                reply = exc.reply
            writer.write(reply)
            await writer.drain()


async def _read(reader: asyncio.StreamReader, size: int, digest: blake3) -> None:
    while size:
        piece = await reader.read(min(size, _PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        digest.update(piece)
        size -= len(piece)
