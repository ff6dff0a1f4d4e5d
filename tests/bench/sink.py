"""A mailbox server that costs next to nothing: takes BDAT or DATA, answers at once, keeps nothing.

`python -m tests.bench.sink PORT`. Stands behind mailkeep where mailkeep itself is to be measured.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Sink(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._skip = 0
        self._last = False
        self._recipients = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        out = []
        if self._skip:
            taken = min(self._skip, len(data))
            self._skip -= taken
            data = data[taken:]
            if self._skip:
                return
            out.append(self._end_of_chunk())
        buffer = self._buffer + data
        while (end := buffer.find(b"\r\n")) >= 0:
            line, buffer = buffer[:end], buffer[end + 2 :]
            verb = line[:4].upper()
            if verb == b"BDAT":
                words = line.split()
                self._last = len(words) > 2
                size = int(words[1])
                taken = min(size, len(buffer))
                self._skip = size - taken
                buffer = buffer[taken:]
                if self._skip:
                    break
                out.append(self._end_of_chunk())
            elif verb == b"LHLO":
                out.append(b"250-sink\r\n250-8BITMIME\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
            else:
                self._recipients += verb == b"RCPT"
                out.append(b"250 2.1.0 Ok\r\n")
        self._buffer = buffer
        if out:
            self._transport.write(b"".join(out))

    def _end_of_chunk(self) -> bytes:
        if not self._last:
            return b"250 2.0.0 chunk\r\n"
        replies = b"250 2.0.0 Saved\r\n" * self._recipients
        self._recipients = 0
        return replies


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Sink, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
