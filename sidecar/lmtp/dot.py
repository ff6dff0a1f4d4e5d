"""The dot of DATA (RFC 5321 4.5.2): taken off what comes in, put on what goes out, in bulk.

Only CRLF "." CRLF ends a message, and only a dot behind CRLF is stuffing. Bare CR, bare LF, NUL and lines of
any length are a message's own business and pass unchanged. What is kept between two calls is four bytes at
most, and the work is done by find and replace over whole pieces, never line by line.
"""

from __future__ import annotations

_END = b"\r\n.\r\n"


class DotReader:
    """Turns the bytes after a 354 back into the message.

    The CRLF before the final dot belongs to the message; `.CRLF` as the very first line is the empty message.
    """

    __slots__ = ("_begun", "_held", "ended")

    def __init__(self) -> None:
        # A message begins as if a CRLF stood before it, which is taken off its first bytes again.
        self._held = b"\r\n"
        self._begun = False
        self.ended = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The message's bytes in `data`, and what stands behind its end (empty until `ended`).

        Bytes that may be the start of the end are held back until the next call. After the end, what is fed
        comes back untouched.
        """
        if self.ended:
            return b"", data
        data = self._held + data
        dot = data.find(b"\r\n.")
        end = data.find(_END, dot) if dot >= 0 else -1
        rest = b""
        if end >= 0:
            self.ended = True
            body = data[: end + 2]
            rest = data[end + 5 :]
            self._held = b""
        else:
            held = _held_length(data)
            body = data[:-held] if held else data
            self._held = data[-held:] if held else b""
        if dot != end:
            body = body.replace(b"\r\n.", b"\r\n")
        if not self._begun and body:
            self._begun = True
            body = body[2:]
        return body, rest


def _held_length(data: bytes) -> int:
    """How many bytes at the end of `data` could be the start of the end of the message."""
    for length in (4, 3, 2, 1):
        if data.endswith(_END[:length]):
            return length
    return 0


class DotWriter:
    """Turns a message into what is sent after a 354, and tells when that would be dangerous.

    `lax_end` becomes true when the bytes so far hold a lone dot on a line opened by a bare LF. For RFC 5321
    that is text; Dovecot 2.3 takes `LF . LF` and `LF . CRLF` for the end of DATA and would read the rest of
    the message as commands. Whoever does not know the downstream to be strict must not send such a piece.
    """

    __slots__ = ("_tail", "lax_end")

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the last bytes sent; a message begins as if after a CRLF
        self.lax_end = False

    def feed(self, data: bytes) -> bytes:
        """`data` as it goes over the wire. Look at `lax_end` before sending it."""
        seen = len(self._tail)
        joined = self._tail + data
        if b"\n." in joined:  # one pass settles most mail: no dot begins a line
            joined = joined.replace(b"\r\n.", b"\r\n..")
            # A dot behind CRLF is doubled by now, so a lone one was opened by a bare LF.
            if b"\n.\n" in joined or b"\n.\r\n" in joined:
                self.lax_end = True
            data = joined[seen:]
        self._tail = joined[-3:]
        return data

    def finish(self) -> bytes:
        """The end: a dot on a line of its own, after a CRLF when the message's last line has none.

        That CRLF can complete a lone dot, so `lax_end` is to be looked at here too.
        """
        if self._tail.endswith(b"\n."):
            self.lax_end = True
        return b".\r\n" if self._tail.endswith(b"\r\n") else _END
