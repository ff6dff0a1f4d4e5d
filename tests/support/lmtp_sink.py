"""A mailbox server on a real socket that does as it is told and records every byte.

It can be strict about the end of DATA or lax as Dovecot 2.3 is, offer CHUNKING and PIPELINING or not, answer
each recipient as scripted, wait at any step, and drop the connection at any step.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, field

from tests.support.listener import Listener

STRICT_END = re.compile(rb"(?:\A|\r\n)\.\r\n")
LAX_END = re.compile(rb"(?:\A|\n)\.\r?\n")


class DroppedError(Exception):
    """The script says to go away here."""


@dataclass
class Delivered:
    """A message whose end was seen."""

    mail: bytes
    recipients: list[bytes]
    message: bytes


@dataclass
class LmtpSink(Listener):
    """Set what it shall do, `start` it, look at what it has got. Keys of the scripts are whole RCPT lines."""

    chunking: bool = True
    pipelining: bool = True
    lax: bool = False
    capabilities: tuple[bytes, ...] = (b"8BITMIME", b"ENHANCEDSTATUSCODES")
    greeting: bytes = b"220 sink ready\r\n"
    mail_reply: bytes = b"250 2.1.0 OK\r\n"
    data_reply: bytes = b"354 OK\r\n"
    chunk_reply: bytes = b"250 2.0.0 chunk\r\n"
    chunk_replies: dict[int, bytes] = field(default_factory=dict)
    rcpt_replies: dict[bytes, bytes] = field(default_factory=dict)
    final_replies: dict[bytes, bytes] = field(default_factory=dict)
    gates: dict[bytes, asyncio.Event] = field(default_factory=dict)
    """before a verb is answered, before `body` is read, or before the final reply for a RCPT line"""
    drop_at: bytes = b""
    """a verb, `connect`, `body`, or `end` (after the message, before its replies)"""

    def __post_init__(self) -> None:
        super().__init__()
        self.delivered: list[Delivered] = []
        self.commands: list[bytes] = []
        self.wire: list[bytearray] = []
        self.connections = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        wire = bytearray()
        self.wire.append(wire)
        with contextlib.suppress(DroppedError):
            await _Dialog(self, reader, writer, wire).run()


class _Dialog:
    def __init__(
        self, sink: LmtpSink, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: bytearray
    ) -> None:
        self._sink = sink
        self._reader = reader
        self._writer = writer
        self._wire = wire
        self._buffer = bytearray()
        self._forget()

    def _forget(self) -> None:
        self._mail = b""
        self._recipients: list[bytes] = []
        self._chunks: list[bytes] = []

    async def run(self) -> None:
        await self._pass(b"connect")
        self._writer.write(self._sink.greeting)
        while (line := await self._line()) is not None:
            self._sink.commands.append(line)
            verb = line.split(b" ", 1)[0].upper()
            if verb != b"BDAT":
                await self._pass(verb)
            if verb == b"QUIT":
                self._writer.write(b"221 2.0.0 Bye\r\n")
                return
            await self._command(verb, line)

    async def _command(self, verb: bytes, line: bytes) -> None:
        sink, write = self._sink, self._writer.write
        if verb == b"LHLO":
            words = [b"sink", *sink.capabilities]
            words += [b"CHUNKING"] * sink.chunking + [b"PIPELINING"] * sink.pipelining
            write(b"".join(b"250-%s\r\n" % word for word in words[:-1]) + b"250 %s\r\n" % words[-1])
        elif verb == b"MAIL":
            write(sink.mail_reply)
            self._mail = line if sink.mail_reply.startswith(b"2") else b""
        elif verb == b"RCPT":
            reply = sink.rcpt_replies.get(line, b"250 2.1.5 OK\r\n")
            if not self._mail:
                reply = b"503 5.5.1 MAIL first\r\n"
            if reply.startswith(b"2"):
                self._recipients.append(line)
            write(reply)
        elif verb == b"RSET":
            self._forget()
            write(b"250 2.0.0 OK\r\n")
        elif verb == b"DATA":
            await self._data()
        elif verb == b"BDAT" and sink.chunking:
            await self._bdat(line)
        else:
            write(b"500 5.5.2 Unknown command\r\n")

    async def _data(self) -> None:
        if not self._recipients:
            self._writer.write(b"503 5.5.1 No valid recipients\r\n")
            return
        self._writer.write(self._sink.data_reply)
        if not self._sink.data_reply.startswith(b"3"):
            return
        await self._pass(b"body")
        end = LAX_END if self._sink.lax else STRICT_END
        seen = 0
        while (match := end.search(self._buffer, max(0, seen - 5))) is None:
            seen = len(self._buffer)
            await self._more()
        body = bytes(self._buffer[: match.end()])
        del self._buffer[: match.end()]
        newline = b"\n" if self._sink.lax else b"\r\n"
        message = (newline + body).replace(newline + b".", newline)[len(newline) :]
        await self._deliver(message[: -2 if message.endswith(b"\r\n") else -1])

    async def _bdat(self, line: bytes) -> None:
        words = line.split()
        size = int(words[1])
        await self._pass(b"body")
        while len(self._buffer) < size:
            await self._more()
        await self._pass(b"BDAT")
        self._chunks.append(bytes(self._buffer[:size]))
        del self._buffer[:size]
        if len(words) > 2:
            await self._deliver(b"".join(self._chunks))
        else:
            self._writer.write(self._sink.chunk_replies.get(len(self._chunks), self._sink.chunk_reply))

    async def _deliver(self, message: bytes) -> None:
        sink = self._sink
        if not self._recipients:  # by BDAT alone; a reply for each of none
            self._forget()
            return
        sink.delivered.append(Delivered(self._mail, self._recipients, message))
        await self._pass(b"end")
        for recipient in self._recipients:
            await self._pass(recipient)
            self._writer.write(sink.final_replies.get(recipient, b"250 2.0.0 %s Saved\r\n" % recipient[8:]))
        self._forget()

    async def _pass(self, step: bytes) -> None:
        """Wait or drop at `step`, if the script says so."""
        gate = self._sink.gates.get(step)
        if gate:
            await self._writer.drain()
            await gate.wait()
        if self._sink.drop_at == step:
            raise DroppedError

    async def _line(self) -> bytes | None:
        while (end := self._buffer.find(b"\n")) < 0:
            if not await self._more(eof_is_fine=True):
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.removesuffix(b"\r")

    async def _more(self, *, eof_is_fine: bool = False) -> bool:
        data = await self._reader.read(1 << 18)
        if not data and not eof_is_fine:
            raise DroppedError
        self._buffer += data
        self._wire += data
        return bool(data)
