"""A link before a server on loopback: `PORT HOST:PORT BYTES [SECONDS]`. A process of its own.

Lets through so many bytes a second of what the server sends, over all connections together, and takes so long
to bring a request there.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import uvloop

_READ_BYTES = 128 << 10


class Link:
    """Connections to one server that share the bandwidth."""

    def __init__(self, upstream: str, limit_bytes: float, delay_s: float) -> None:
        self._host, _, self._port = upstream.rpartition(":")
        self._limit = limit_bytes
        self._delay_s = delay_s
        self._free_at = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        back, forth = await asyncio.open_connection(self._host, int(self._port))
        await asyncio.gather(self._pump(reader, forth, limited=False), self._pump(back, writer, limited=True))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_READ_BYTES):
                if limited:
                    self._free_at = max(time.monotonic(), self._free_at) + len(data) / self._limit
                    await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
                elif self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _main() -> None:
    link = Link(sys.argv[2], float(sys.argv[3]), float((*sys.argv, "0")[4]))
    server = await asyncio.start_server(link.serve, "127.0.0.1", int(sys.argv[1]), limit=1 << 20)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
