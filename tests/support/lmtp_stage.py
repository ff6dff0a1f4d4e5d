"""A front between a scripted client and a scripted mailbox server, all on real sockets."""

from __future__ import annotations

import asyncio

from sidecar.front import FrontLimits, FrontServer
from sidecar.units import Address
from tests.support.lmtp_sink import LmtpSink
from tests.support.memory_capturer import MemoryCapturer
from tests.support.waiting import PATIENCE_S


class Client:
    """Sends bytes, reads whole replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            await self.writer.drain()

    async def reply(self) -> bytes:
        """One reply, all its lines."""
        raw = b""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await self.reader.readuntil(b"\n")
                raw += line
                if line[3:4] != b"-":
                    return raw

    async def replies(self, number: int) -> list[bytes]:
        return [await self.reply() for _ in range(number)]

    async def say(self, data: bytes) -> bytes:
        await self.send(data)
        return await self.reply()

    async def closed(self) -> bytes:
        """What comes until the front closes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()


class Stage:
    """The front, what is before it and what is behind it."""

    def __init__(self) -> None:
        self.sink = LmtpSink()
        self.capturer = MemoryCapturer()
        self.limits = FrontLimits()
        self.server: FrontServer | None = None
        self._clients: list[Client] = []

    async def start(self, listen: Address | None = None, **how: object) -> FrontServer:
        if not self.sink.address.port and not self.sink.address.path:
            await self.sink.start()
        self.server = FrontServer(
            self.capturer,
            listen=listen or Address("127.0.0.1", 0),
            downstream=self.sink.address,
            limits=self.limits,
            hostname="keep.example",
            **how,
        )
        await self.server.start()
        return self.server

    async def connect(self) -> Client:
        """A client that has read the greeting."""
        if self.server is None:
            await self.start()
        client = await self.raw()
        greeting = await client.reply()
        assert greeting == b"220 keep.example LMTP mailkeep\r\n"
        return client

    async def raw(self) -> Client:
        assert self.server
        address = self.server.address
        if address.is_unix:
            client = Client(*await asyncio.open_unix_connection(address.path))
        else:
            client = Client(*await asyncio.open_connection(address.host, address.port))
        self._clients.append(client)
        return client

    async def greeted(self, ident: bytes = b"") -> Client:
        """A client that has said LHLO, and told a queue id if one is given."""
        client = await self.connect()
        assert (await client.say(b"LHLO mta.example\r\n")).startswith(b"250-keep.example\r\n")
        if ident:
            assert await client.say(b"XFORWARD IDENT=%s\r\n" % ident) == b"250 2.0.0 Ok\r\n"
        return client

    async def stop(self) -> None:
        for client in self._clients:
            client.abort()
        if self.server:
            await self.server.drain(PATIENCE_S)
        await self.sink.stop()


async def settle() -> None:
    """Long enough for what should not happen to happen."""
    await asyncio.sleep(0.1)
