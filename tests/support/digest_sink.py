"""A mailbox server with CHUNKING that keeps nothing of a message but its length and its BLAKE3."""

from __future__ import annotations

import asyncio
import contextlib

from blake3 import blake3

from sidecar.units import Address

_PIECE_BYTES = 1 << 18


class DigestSink:
    """`delivered`: recipient -> (bytes, BLAKE3) of each message whose last chunk came."""

    def __init__(self) -> None:
        self.delivered: dict[bytes, tuple[int, bytes]] = {}
        self.address = Address()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipient, digest, size = b"", blake3(), 0
        writer.write(b"220 sink ready\r\n")
        while line := await reader.readline():
            verb, *words = line.split()
            if verb == b"LHLO":
                writer.write(b"250-sink\r\n250-CHUNKING\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                continue
            if verb == b"QUIT":
                writer.write(b"221 2.0.0 Bye\r\n")
                return
            if verb == b"MAIL":
                digest, size = blake3(), 0
            elif verb == b"RCPT":
                recipient = line.partition(b"<")[2].partition(b">")[0]
            elif verb == b"BDAT":
                left = int(words[0])
                size += left
                while left:
                    piece = await reader.readexactly(min(left, _PIECE_BYTES))
                    digest.update(piece)
                    left -= len(piece)
                if words[1:]:
                    self.delivered[recipient] = size, digest.digest()
            writer.write(b"250 2.0.0 Ok\r\n")
            await writer.drain()
