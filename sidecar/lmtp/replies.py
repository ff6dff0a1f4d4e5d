"""Replies (RFC 5321 4.2): read as they come, kept exactly as they came.

The text of a reply may be any bytes and is never decoded: it is relayed, recorded and logged as the mailbox
server wrote it. Lines that end in a bare LF are taken as lines. A reply longer than `MAX_REPLY_BYTES` or
without a code is a `ReplyError`; nothing that follows on that connection can be trusted then.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_REPLY_BYTES = 65_536


class ReplyError(Exception):
    """The peer sent something that is no SMTP reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole reply: its code, and `raw`, all its lines with their line ends."""

    code: int
    raw: bytes

    @property
    def positive(self) -> bool:
        """2xx: done."""
        return 200 <= self.code < 300

    @property
    def intermediate(self) -> bool:
        """3xx: go on."""
        return 300 <= self.code < 400

    @property
    def transient(self) -> bool:
        """4xx: try again later."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5xx: do not try again."""
        return self.code >= 500

    @property
    def text(self) -> bytes:
        """The whole reply without its last line end, as outcomes keep it."""
        return self.raw[:-2] if self.raw.endswith(b"\r\n") else self.raw[:-1]

    @property
    def enhanced_code(self) -> bytes:
        """The status code of RFC 2034 at the start of the text, such as `5.2.2`; empty without one."""
        word = self.raw[4:].split(maxsplit=1)[:1]
        numbers = word[0].split(b".") if word else []
        if len(numbers) == 3 and all(n.isdigit() and len(n) <= 3 for n in numbers):
            return word[0]
        return b""

    @classmethod
    def of(cls, raw: bytes) -> Reply:
        """A reply of our own making."""
        return cls(int(raw[:3]), raw)


class ReplyParser:
    """Cuts a stream into replies."""

    __slots__ = ("_buffer", "_code", "_scanned")

    def __init__(self) -> None:
        self._buffer = b""
        self._scanned = 0  # lines before this belong to a reply whose last line has not come
        self._code = b""  # that reply's code

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that `data` completes. Raises ReplyError."""
        buffer = self._buffer + data if self._buffer else data
        replies: list[Reply] = []
        start, line = 0, self._scanned
        code = self._code
        while (newline := buffer.find(b"\n", line)) >= 0:
            line_code, mark = buffer[line : line + 3], buffer[line + 3 : line + 4]
            if line_code != code and (code or not _is_code(line_code)):
                raise ReplyError(f"no reply: {buffer[line : line + 80]!r}")
            line = newline + 1
            if line - start > MAX_REPLY_BYTES:
                raise ReplyError(f"reply longer than {MAX_REPLY_BYTES} bytes")
            if mark == b"-":
                code = line_code
                continue
            if mark not in {b" ", b"\r", b"\n"}:
                raise ReplyError(f"no reply: {buffer[start : start + 80]!r}")
            replies.append(Reply(int(line_code), buffer[start:line]))
            start, code = line, b""
        if len(buffer) - start > MAX_REPLY_BYTES:
            raise ReplyError(f"reply longer than {MAX_REPLY_BYTES} bytes")
        self._buffer = buffer[start:]
        self._scanned = line - start
        self._code = code
        return replies


def _is_code(digits: bytes) -> bool:
    return len(digits) == 3 and digits.isdigit() and b"2" <= digits[:1] <= b"5"
