"""`mailkeep serve` as a process that is loaded with mail, and a small LMTP client to do so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

from sidecar.demo.ports import wait_until
from tests.support.service import START_TIMEOUT_S, Service


class Serving(Service):
    """A service in front of a mailbox server. `extra`: see `Service`."""

    def __init__(self, directory: Path, downstream: str, extra: str = "") -> None:
        super().__init__(directory, lmtp={"downstream": downstream})
        self.extra = extra
        self.configure()

    def start(self) -> float:
        """Returns when it is ready, or complains of something other than a start: the seconds until it
        listened. Before it is ready it has no jobs yet, and a SIGHUP ends it."""
        listened_s = super().start()
        answers = super().answers
        settled = wait_until(lambda: not self.running or answers(), timeout_s=START_TIMEOUT_S)
        assert settled, self.tail()
        assert self.running, self.tail()
        return listened_s

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def stuffed(message: bytes) -> bytes:
    """As it goes over the wire after DATA; the message ends in CRLF or is empty."""
    data = message.replace(b"\r\n.", b"\r\n..")
    return (b"." + data if data.startswith(b".") else data) + b".\r\n"


class Client:
    """One LMTP connection that pipelines whole messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        client = cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))
        try:
            await client.reply()
            client.writer.write(b"LHLO test\r\n")
            await client.reply()
        except OSError:
            await client.close()
            raise
        return client

    async def reply(self) -> bytes:
        whole = b""
        while True:
            line = await self.reader.readline()
            if not line:
                raise ConnectionError("closed")
            whole += line
            if line[3:4] != b"-":
                return whole

    async def send(
        self, message: bytes, recipients: Sequence[bytes] = (b"u@x.example",), *, queue_id: bytes = b""
    ) -> list[bytes]:
        """One transaction; the final reply for each recipient. Raises ConnectionError."""
        lines = [b"XFORWARD IDENT=%s\r\n" % queue_id] if queue_id else []
        lines += [b"MAIL FROM:<s@x.example>\r\n", *(b"RCPT TO:<%s>\r\n" % r for r in recipients), b"DATA\r\n"]
        self.writer.write(b"".join(lines))
        replies = [await self.reply() for _ in lines]
        assert replies[-1].startswith(b"354"), replies
        self.writer.write(stuffed(message))
        await self.writer.drain()
        return [await self.reply() for _ in recipients]

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
