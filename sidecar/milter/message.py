r"""A message put together again from header, end-of-headers and body events.

`name ":" value CRLF` for each header, an empty line, the body. With HDR_LEADSPC negotiated a value carries
all that stood after the colon, leading white space included, its folded lines joined by a bare LF; body
slices come as they are, cut anywhere, CRLF included.

The result is what Postfix has in its queue and hands to LMTP, except for what no milter is shown:

* Postfix's own `Received:` is not there. Headers of the client that Postfix drops (`Bcc`, `Resent-Bcc`,
  `Return-Path`, `Content-Length`) are gone already, those it adds (`Message-Id`, `Date`, `From`) are there.
* The line between headers and body is never passed. With a body of 0 bytes a message that has that line and
  one that ends with its last header look the same; we write the line and note `blank-line-unknown`.
* `Name : value` comes as `Name: value`; a first line `From ...` as an `X-Mailbox-Line:` header.
* A header is cut at a NUL, and after 60000 bytes (Postfix cuts the delivered mail there too).
* In the body a bare CR has become a space and a bare LF CRLF; a last line without an end has got one.
* A line among the headers that is no header, or a first line that begins with white space, has ended the
  headers: an empty line was put before it, and the rest is body.
* Without HDR_LEADSPC (very old MTAs) one leading space was eaten from each value, if there was one; we
  write one and note `header-space-unknown`.
"""

from __future__ import annotations

_FLUSH_BYTES = 65536


class Rebuild:
    """One message's bytes from its events. Each call returns what can be fed at once, often nothing.

    Headers are gathered, so that an ordinary message's come as one piece, but never more than about 64 KiB
    and one header: a message made of headers only must not grow here.
    """

    __slots__ = ("_body_bytes", "_colon", "_header_ended", "_leading_space", "_waiting", "_waiting_bytes")

    def __init__(self, *, leading_space: bool = True) -> None:
        self._leading_space = leading_space
        self._colon = b":" if leading_space else b": "
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._header_ended = False
        self._body_bytes = 0

    def header(self, name: bytes, value: bytes) -> bytes:
        """One header, its folded lines joined by LF."""
        line = name + self._colon + value.replace(b"\n", b"\r\n") + b"\r\n"
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        return self._flush() if self._waiting_bytes >= _FLUSH_BYTES else b""

    def end_of_headers(self) -> bytes:
        """The empty line. A second call adds none."""
        if not self._header_ended:
            self._header_ended = True
            self._waiting.append(b"\r\n")
        return self._flush()

    def body(self, data: bytes) -> bytes:
        """A slice of the body."""
        self._body_bytes += len(data)
        # An MTA that passes a body has passed the end of the headers; if it did not, its place is here.
        return data if self._header_ended else self.end_of_headers() + data

    def finish(self) -> bytes:
        """What is still owed at end-of-message."""
        return self.end_of_headers()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the capture must know, once the message has ended."""
        unknown = []
        if self._body_bytes == 0:
            unknown.append("blank-line-unknown")
        if not self._leading_space:
            unknown.append("header-space-unknown")
        return tuple(unknown)

    def _flush(self) -> bytes:
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        return data
