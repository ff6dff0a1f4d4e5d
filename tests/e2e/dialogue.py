"""A bare LMTP client for tests: says exactly what it is told, keeps nothing straight by itself."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType
from typing import Self


class LmtpDialogue:
    """One connection to an LMTP server (a loopback port or a UNIX socket); greeted and LHLO'd when open."""

    def __init__(self, server: int | Path) -> None:
        if isinstance(server, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(60)
            self._socket.connect(str(server))
        else:
            self._socket = socket.create_connection(("127.0.0.1", server), timeout=60)
        self._lines = self._socket.makefile("rb")
        self.reply()
        self.capabilities = self.say(b"LHLO client.example")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reply(self) -> bytes:
        """The next reply with its line ends, b"" at end of file."""
        lines = []
        while line := self._lines.readline():
            lines.append(line)
            if line[3:4] != b"-":
                break
        return b"".join(lines)

    def say(self, command: bytes) -> bytes:
        self.send(command + b"\r\n")
        return self.reply()

    def begin(self, *recipients: bytes) -> None:
        """MAIL and RCPTs, all accepted."""
        assert self.say(b"MAIL FROM:<sender@client.example>").startswith(b"250")
        for recipient in recipients:
            assert self.say(b"RCPT TO:<" + recipient + b">").startswith(b"250")

    def half_close(self) -> None:
        """Say no more; what the server still says can be read."""
        self._socket.shutdown(socket.SHUT_WR)
