"""A server on a real socket: a task for each connection, all of which end when it stops."""

from __future__ import annotations

import asyncio
import contextlib

from sidecar.units import Address


class Listener:
    """Listens at `address` once it is started, at the same one when it is started again."""

    def __init__(self) -> None:
        self.address = Address()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, until this returns or the connection breaks."""
        raise NotImplementedError

    async def start(self, path: str = "") -> None:
        if path:
            self.address = Address(path=path)
            self._server = await asyncio.start_unix_server(self._serve, path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.address.port)
            self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Refuse from now on, and drop who is connected."""
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
            await self.talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
