"""The load: unique mails sent over pipelining LMTP connections, as Postfix sends them. A process of its own.

`python -m tests.bench.load HOST:PORT KIND COUNT SESSIONS RECIPIENT` prints the seconds from the first command
to the last reply. Every message differs in header and body, so that nothing is deduplicated away; all are
made before the clock starts. Connections stay open over messages, as Postfix keeps them under load. With
`wait` behind it says `ready` and waits for a line before it begins, and for another before it ends.
"""

from __future__ import annotations

import asyncio
import base64
import random
import sys
import time
from typing import cast

import uvloop

_WORDS = [bytes(random.Random(n).choices(b"abcdefghijklmnopqrstuvwxyz", k=2 + n % 9)) for n in range(3000)]


def small(number: int, rng: random.Random) -> bytes:
    """A plain text mail of about 4 kB."""
    lines = [b" ".join(rng.choices(_WORDS, k=10)) for _ in range(52)]
    return _header(number, rng) + b"\r\n" + b"\r\n".join(lines) + b"\r\n"


def large(number: int, rng: random.Random) -> bytes:
    """A mail of about 25 MB with one attachment that does not compress."""
    body = base64.encodebytes(rng.randbytes(18_200_000)).replace(b"\n", b"\r\n")
    part = b'Content-Type: multipart/mixed; boundary="=-%d"\r\n\r\n--=-%d\r\n' % (number, number)
    head = b"Content-Type: application/zip\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return _header(number, rng) + part + head + body + b"--=-%d--\r\n" % number


def _header(number: int, rng: random.Random) -> bytes:
    token = rng.randbytes(12).hex().encode()
    lines = (
        b"Received: from client.example (client.example [192.0.2.7])",
        b"\tby mx.example (Postfix) with ESMTPS id 4%s" % token[:11],
        b"\tfor <u@example.org>; Mon, 2 Nov 2026 10:00:00 +0000",
        b"From: Sender <s%d@example.com>" % number,
        b"To: u@example.org",
        b"Subject: mail number %d" % number,
        b"Message-ID: <%s@client.example>" % token,
        b"Date: Mon, 2 Nov 2026 10:00:00 +0000",
        b"MIME-Version: 1.0",
    )
    return b"".join(line + b"\r\n" for line in lines)


KINDS = {"small": small, "large": large}


class Session(asyncio.Protocol):
    """One connection: takes the next message as soon as the last one is answered."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._waiting = 1  # replies before the next step
        self._steps = iter(self._run())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
            if line[3:4] == b"-":
                continue
            if line[:1] not in b"23":
                self._load.failed(line)
            self._waiting -= 1
            if not self._waiting:
                next(self._steps, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._load.failed(b"connection lost")

    def _run(self):  # type: ignore[no-untyped-def]  # a generator that is only stepped
        self._transport.write(b"LHLO bench.example\r\n")
        self._waiting = 1
        yield
        self._load.connected()
        while True:
            message = self._load.take()
            if message is None:
                return
            self._transport.write(
                b"MAIL FROM:<s@example.com>\r\nRCPT TO:<%s>\r\nDATA\r\n" % self._load.recipient
            )
            self._waiting = 3
            yield
            self._transport.write(message)
            self._waiting = 1
            yield
            self._load.answered()

    def go(self) -> None:
        """Begin sending."""
        next(self._steps, None)


class Load:
    """All the sessions and what is left to send."""

    def __init__(self, kind: str, count: int, sessions: int, recipient: bytes) -> None:
        rng = random.Random(time.time_ns())
        self.recipient = recipient
        self._messages = [KINDS[kind](n, rng).replace(b"\r\n.", b"\r\n..") + b".\r\n" for n in range(count)]
        self._left = count
        self._sessions = sessions
        self._ready = asyncio.Event()
        self._done = asyncio.get_running_loop().create_future()

    def take(self) -> bytes | None:
        """The next message, if there is one."""
        return self._messages.pop() if self._messages else None

    def connected(self) -> None:
        """A session has said LHLO; none sends before all have."""
        self._sessions -= 1
        if not self._sessions:
            self._ready.set()

    def answered(self) -> None:
        """A message got its reply."""
        self._left -= 1
        if not self._left:
            self._done.set_result(None)

    def failed(self, line: bytes) -> None:
        """A measurement with refusals would be no measurement."""
        if not self._done.done():
            self._done.set_exception(RuntimeError(line.decode(errors="replace")))

    async def run(self, host: str, port: int, sessions: int, *, wait: bool) -> float:
        """Seconds from first command to last reply."""
        loop = asyncio.get_running_loop()
        open_sessions = [
            (await loop.create_connection(lambda: Session(self), host, port))[1] for _ in range(sessions)
        ]
        await self._ready.wait()
        if wait:
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        began = time.perf_counter()
        for session in open_sessions:
            session.go()
        await self._done
        return time.perf_counter() - began


async def _main() -> None:
    address, kind, count, sessions, recipient = sys.argv[1:6]
    host, _, port = address.rpartition(":")
    load = Load(kind, int(count), int(sessions), recipient.encode())
    wait = sys.argv[6:] == ["wait"]
    elapsed = await load.run(host, int(port), int(sessions), wait=wait)
    print(elapsed, flush=True)
    if wait:
        await asyncio.to_thread(sys.stdin.readline)  # what it has used is looked up first


if __name__ == "__main__":
    uvloop.run(_main())
