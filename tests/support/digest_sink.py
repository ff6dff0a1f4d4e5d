"""A mailbox server with CHUNKING that keeps nothing of a message but its length and its BLAKE3."""

from __future__ import annotations

import asyncio

from blake3 import blake3

from tests.support.listener import Listener

_PIECE_BYTES = 1 << 18


class DigestSink(Listener):
    """`delivered`: recipient -> (bytes, BLAKE3) of each message whose last chunk came."""

    def __init__(self) -> None:
        super().__init__()
        self.delivered: dict[bytes, tuple[int, bytes]] = {}

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
