"""`mailkeep serve` as a process of its own, and a small LMTP client to load it with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from sidecar.demo.ports import free_port

COMMAND = (sys.executable, "-P", "-m", "sidecar.cli")
START_TIMEOUT_S = 60.0


class Serving:
    """Started by `start`; `kill` is SIGKILL, `stop` is SIGTERM. May be started again."""

    def __init__(self, directory: Path, downstream: str, extra: str = "") -> None:
        self.directory = directory
        self.store = directory / "store"
        self.port = free_port()
        self.metrics_port = free_port()
        self.config = directory / "mailkeep.toml"
        self.log = directory / "serve.log"
        self.config.write_text(
            f'[store]\npath = "{self.store}"\nstream = "host"\nreserve = "1MiB"\n'
            f'[lmtp]\nlisten = "127.0.0.1:{self.port}"\ndownstream = "{downstream}"\n'
            f'[metrics]\nlisten = "127.0.0.1:{self.metrics_port}"\n{extra}'
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "MAILKEEP_CONFIG": str(self.config)}

    def start(self) -> float:
        """Returns when it is ready, or complains of something other than a start: the seconds until it
        listened. Before it is ready it has no jobs yet, and a SIGHUP ends it."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--config", str(self.config)], stdout=log, stderr=log
            )
        while time.monotonic() < began + START_TIMEOUT_S:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    listened_s = time.monotonic() - began
                    break
            time.sleep(0.02)
        else:
            raise AssertionError("serve does not listen: " + self.log.read_text()[-3000:])
        while self._is_starting():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < began + START_TIMEOUT_S, self.log.read_text()[-3000:]
            time.sleep(0.02)
        return listened_s

    def _is_starting(self) -> bool:
        try:
            page = f"http://127.0.0.1:{self.metrics_port}/readyz"
            with urllib.request.urlopen(page, timeout=60):
                return False
        except urllib.error.HTTPError as answer:
            with answer:
                return "starting" in answer.read().decode()
        except OSError:
            return True

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def stop(self) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(45)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """An operator's command on this store."""
        return subprocess.run(
            [*COMMAND, *arguments], env=self.environment, capture_output=True, timeout=120, check=False
        )


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
