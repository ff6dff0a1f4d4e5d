"""Memory is bounded, whatever mail is under way and whoever holds connections.

20 clients (50 MB each, all at once) --lmtp--> mailkeep serve --BDAT--> sink that only hashes
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from blake3 import blake3

from store.deliveries import Query
from store.store import Store
from tests.support.digest_sink import DigestSink
from tests.support.lmtp_sink import LmtpSink
from tests.support.service import Service
from tests.support.serving import Client
from tests.support.sink_thread import SinkThread

pytestmark = pytest.mark.e2e

MESSAGES = 20
MESSAGE_BYTES = 50_000_000
RSS_LIMIT_BYTES = 150_000_000
IDLE = 200
MAX_CONNECTIONS = 100
IDLE_LIMIT_BYTES = 100_000_000

_PIECE_BYTES = 57 * 2000


def rss_peak_bytes(pid: int) -> int:
    """The most memory that the process ever had resident (Linux: reads /proc)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def large_message(seed: int) -> Iterator[bytes]:
    """A mail with an attachment that no other has, in pieces."""
    source = random.Random(seed)
    yield (
        b'Subject: large %d\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="cut"\r\n\r\n'
        b"--cut\r\nContent-Type: text/plain\r\n\r\nHere it is.\r\n--cut\r\nContent-Type: video/mp4\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" % seed
    )
    size = 0
    while size < MESSAGE_BYTES:
        piece = base64.encodebytes(source.randbytes(_PIECE_BYTES)).replace(b"\n", b"\r\n")
        size += len(piece)
        yield piece
    yield b"--cut--\r\n"


class Meeting:
    """Everybody waits here until the last one has come."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._open = asyncio.Event()

    async def come(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._open.set()
        await self._open.wait()


async def send_large(port: int, number: int, meeting: Meeting) -> tuple[int, bytes]:
    """One message, half of it before and half of it after all others are as far; its size and BLAKE3."""
    client = await Client.connect(port)
    try:
        client.writer.write(b"MAIL FROM:<s@x.example>\r\nRCPT TO:<m%d@x.example>\r\nDATA\r\n" % number)
        replies = [await client.reply() for _ in range(3)]
        assert replies[-1].startswith(b"354"), replies
        digest, size, met = blake3(), 0, False
        for piece in large_message(number):
            # No line of it begins with a dot, so it goes over the wire as it is.
            client.writer.write(piece)
            await client.writer.drain()
            digest.update(piece)
            size += len(piece)
            if size > MESSAGE_BYTES // 2 and not met:
                met = True
                await meeting.come()
        client.writer.write(b".\r\n")
        reply = await client.reply()
        assert reply.startswith(b"250"), reply
        return size, digest.digest()
    finally:
        await client.close()


@pytest.mark.timeout(300)
async def test_twenty_large_messages_at_once(server_directory: Path) -> None:
    """A gigabyte under way does not become a gigabyte of memory.

    Setup: 20 clients (50 MB of base64 each, all half-way at one moment) --lmtp--> mailkeep serve --BDAT-->
    sink that only counts and hashes.
    Test: VmHWM of serve stays under 150 MB; the sink got and the store gives back what was sent (by BLAKE3).
    """
    sink = DigestSink()
    await sink.start()
    service = Service(server_directory / "mailkeep", lmtp={"downstream": str(sink.address)})
    await asyncio.to_thread(service.start)
    try:
        idle = rss_peak_bytes(service.pid)
        meeting = Meeting(MESSAGES)
        sent = await asyncio.gather(*(send_large(service.port, n, meeting) for n in range(MESSAGES)))
        peak = rss_peak_bytes(service.pid)
    finally:
        ended = await asyncio.to_thread(service.stop)
        await sink.stop()
    assert ended == 0, service.tail()
    print(f"RSS: {idle / 1e6:.0f} MB when idle, {peak / 1e6:.0f} MB at most")
    assert peak < RSS_LIMIT_BYTES
    assert sink.delivered == {b"m%d@x.example" % number: digest for number, digest in enumerate(sent)}
    kept = await asyncio.to_thread(read_back, service.store)
    assert kept == sink.delivered


def read_back(path: Path) -> dict[bytes, tuple[int, bytes]]:
    """Recipient -> size and BLAKE3 of what the store gives back."""
    kept = {}
    with Store.open(path) as store:
        for stored in store.deliveries(Query()):
            digest, size = blake3(), 0
            for piece in store.read(stored.delivery.content):
                digest.update(piece)
                size += len(piece)
            kept[stored.delivery.envelope.recipients[0].address] = size, digest.digest()
    return kept


def test_connections_beyond_the_limit(tmp_path: Path) -> None:
    """Many who hold connections keep nobody else's mail from being kept.

    Setup: 300 clients --lmtp--> mailkeep serve (max_connections = 100) --> sink.
    Test: 100 are greeted with 220, the other 200 with 421 and a close, at once; memory stays small; who was
    greeted can still send, and a place that becomes free is given again.
    """
    with ExitStack() as open_:
        sink = LmtpSink()
        thread = open_.enter_context(SinkThread(sink))
        service = open_.enter_context(
            Service(tmp_path, lmtp={"downstream": thread.address, "max_connections": MAX_CONNECTIONS})
        )
        clients = []
        for _ in range(MAX_CONNECTIONS + IDLE):
            client = open_.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=60))
            clients.append((client, open_.enter_context(client.makefile("rb"))))
        greetings = [lines.readline()[:10] for _, lines in clients]
        assert greetings[:MAX_CONNECTIONS] == [b"220 " + greetings[0][4:]] * MAX_CONNECTIONS
        assert greetings[MAX_CONNECTIONS:] == [b"421 4.3.2 "] * IDLE
        assert [lines.read() for _, lines in clients[MAX_CONNECTIONS:]] == [b""] * IDLE
        assert service.metrics()['connections{leg="lmtp"}'] == MAX_CONNECTIONS
        assert rss_peak_bytes(service.pid) < IDLE_LIMIT_BYTES

        for client, lines in clients[: MAX_CONNECTIONS - 1]:
            client.sendall(b"QUIT\r\n")
            assert lines.readline().startswith(b"221 ")
            assert lines.read() == b""
        client, lines = clients[MAX_CONNECTIONS - 1]
        client.sendall(b"LHLO late\r\nMAIL FROM:<s@x.example>\r\nRCPT TO:<u@x.example>\r\nDATA\r\n")
        while not lines.readline().startswith(b"354"):
            pass
        client.sendall(b"Subject: patient\r\n\r\n.\r\n")
        assert lines.readline().startswith(b"250 ")
        assert [mail.message for mail in sink.delivered] == [b"Subject: patient\r\n\r\n"]
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as fresh:
            assert fresh.recv(4) == b"220 "
