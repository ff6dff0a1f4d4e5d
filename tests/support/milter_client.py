"""The MTA's side of the milter protocol, raw, as Postfix speaks it (protocol 6): to drive a real libmilter.

Sends just what it is told, also out of order; keeps the few rules that decide when a reply comes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

ACTIONS = 0x1FF
STEPS = 0x1FFFFF

CONTINUE = (b"c", b"")
TEMPFAIL = (b"t", b"")

_SLICE_BYTES = 65535
_NO_REPLY_BIT = {
    b"C": 0x1000,
    b"H": 0x2000,
    b"M": 0x4000,
    b"R": 0x8000,
    b"T": 0x10000,
    b"L": 0x80,
    b"N": 0x40000,
    b"B": 0x80000,
}
_NO_EVENT_BIT = {b"C": 0x1, b"H": 0x2, b"M": 0x4, b"R": 0x8, b"T": 0x200}


@dataclass(frozen=True)
class Mail:
    """One message, as Postfix would pass it: values with their leading space, folded lines joined by LF."""

    headers: tuple[tuple[bytes, bytes], ...] = ((b"Subject", b" hello"),)
    body: bytes = b"body\r\n"
    mail: tuple[bytes, ...] = (b"<sender@example.org>",)
    rcpts: tuple[tuple[bytes, ...], ...] = ((b"<rcpt@example.org>",),)
    macros: dict[bytes, dict[bytes, bytes]] = field(default_factory=lambda: {b"E": {b"i": b"4Qabc123"}})

    @property
    def expected(self) -> bytes:
        """The bytes that a capture must hold."""
        lines = [name + b":" + value.replace(b"\n", b"\r\n") + b"\r\n" for name, value in self.headers]
        return b"".join(lines) + b"\r\n" + self.body


class MilterClient:
    """One connection to a milter."""

    def __init__(
        self, path: str, *, actions: int = ACTIONS, steps: int = STEPS, timeout_s: float = 60.0
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._socket.connect(path)
        self._offer = struct.pack("!III", 6, actions, steps)
        self.actions = 0
        self.steps = 0
        self.symbols: dict[int, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, command: bytes, data: bytes = b"") -> None:
        self._socket.sendall(struct.pack("!I", len(data) + 1) + command + data)

    def read(self) -> tuple[bytes, bytes]:
        """One reply: its letter and its data. Raises EOFError, TimeoutError."""
        (size,) = struct.unpack("!I", self._exactly(4))
        reply = self._exactly(size)
        return reply[:1], reply[1:]

    def event(self, command: bytes, data: bytes = b"") -> tuple[bytes, bytes] | None:
        """Send an event and read its reply, as far as was agreed: None where there is none to wait for."""
        if self.steps & _NO_EVENT_BIT.get(command, 0):
            return None
        self.send(command, data)
        return None if self.steps & _NO_REPLY_BIT.get(command, 0) else self.read()

    def negotiate(self) -> Self:
        self.send(b"O", self._offer)
        command, data = self.read()
        assert command == b"O", (command, data)
        _, self.actions, self.steps = struct.unpack("!III", data[:12])
        rest = data[12:]
        while rest:
            (stage,) = struct.unpack("!I", rest[:4])
            self.symbols[stage], _, rest = rest[4:].partition(b"\0")
        return self

    def macros(self, command: bytes, values: dict[bytes, bytes]) -> None:
        self.send(b"D", command + b"".join(k + b"\0" + v + b"\0" for k, v in values.items()))

    def connect(
        self,
        name: bytes = b"client.example.org",
        family: bytes = b"4",
        port: int = 51234,
        address: bytes = b"192.0.2.7",
    ) -> Self:
        """Negotiate, say where the client is, say HELO."""
        self.negotiate()
        self.macros(b"C", {b"j": b"mx.example.org", b"{daemon_name}": b"smtpd"})
        where = family + struct.pack("!H", port) + address + b"\0" if family != b"U" else family
        assert self.event(b"C", name + b"\0" + where) == CONTINUE
        assert self.event(b"H", b"client.example.org\0") in {None, CONTINUE}
        return self

    def envelope(self, mail: Mail) -> tuple[bytes, bytes] | None:
        """MAIL and RCPT. The first reply that is not CONTINUE ends it and is returned."""
        for command, argument_lists in ((b"M", (mail.mail,)), (b"R", mail.rcpts)):
            for arguments in argument_lists:
                self.macros(command, mail.macros.get(command, {}))
                reply = self.event(command, b"".join(a + b"\0" for a in arguments))
                if reply not in {None, CONTINUE}:
                    return reply
        return self.event(b"T")

    def content(self, mail: Mail, slice_bytes: int = _SLICE_BYTES) -> None:
        """Headers and body, up to and not including end-of-message."""
        self.headers(mail.headers)
        self.event(b"N")
        for at in range(0, len(mail.body), slice_bytes):
            self.event(b"B", mail.body[at : at + slice_bytes])

    def headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in headers:
            self.event(b"L", name + b"\0" + value + b"\0")

    def end(self, mail: Mail) -> tuple[bytes, bytes]:
        """End-of-message, and the milter's verdict."""
        self.macros(b"E", mail.macros.get(b"E", {}))
        self.send(b"E")
        return self.read()

    def message(self, mail: Mail, slice_bytes: int = _SLICE_BYTES) -> tuple[bytes, bytes]:
        """A whole message, and the verdict."""
        reply = self.envelope(mail)
        if reply not in {None, CONTINUE}:
            assert reply is not None
            return reply
        self.content(mail, slice_bytes)
        return self.end(mail)

    def abort(self) -> None:
        self.send(b"A")

    def quit(self) -> None:
        self.send(b"Q")
        self.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise EOFError("the milter closed the connection")
            data += more
        return data
