"""The parts of a message as it streams by: types, names and sizes, and the beginning of each text (RFC 2045).

Memory is bounded whatever the message: of a body only the first `KEPT_BYTES` of a text stay, the rest is
counted. Nothing is repaired and nothing refused: what cannot be understood is the text that it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import compat32
from itertools import islice

KEPT_BYTES = 128 << 10
_MOST_HEADER = 256 << 10
_MOST_FIELDS = 500
_MOST_FIELD = 2000
_MOST_PARTS = 200
_MOST_LINES = 1000
"""boundary lines; a message of nothing else would take a minute"""
_MOST_DEPTH = 20
_MOST_BOUNDARY = 200
"""RFC 2046 5.1.1 allows 70"""
_TAIL = _MOST_BOUNDARY + 120
"""bytes of a body that are looked at again when more comes: a boundary line may be cut in two"""
_HEADER_END = re.compile(rb"(?:\A|\n)\r?\n")
_WHITE = b" \t\r\n"


@dataclass(slots=True)
class Part:
    """A part that has no parts itself. `size` is what its body takes when decoded; of quoted-printable, as it
    stands there. `kept` is the beginning of the body of a text, still encoded."""

    header: Message
    size: int = 0
    kept: bytes = b""
    cut: bool = False
    """`kept` is not all"""
    _padding: int = 0

    @property
    def kind(self) -> str:
        """The content type in lower case, as in `text/plain`."""
        return self.header.get_content_type()

    @property
    def encoding(self) -> str:
        """The transfer encoding in lower case."""
        return str(self.header.get("Content-Transfer-Encoding", "")).strip().lower()

    @property
    def name(self) -> str:
        """The file name that the part gives itself; empty where it has none."""
        try:
            return str(self.header.get_filename() or "")
        except (LookupError, ValueError, TypeError):  # RFC 2231 with a charset that there is not
            return "?"

    @property
    def is_text(self) -> bool:
        """Whether it is there to be read, and not a file that came along."""
        disposition = str(self.header.get("Content-Disposition", "")).strip().lower()
        return self.kind in {"text/plain", "text/html"} and not disposition.startswith("attachment")

    def take(self, data: bytes) -> None:
        """Count and perhaps keep a stretch of the body."""
        if self.encoding == "base64":
            signs = data.translate(None, _WHITE)
            self._padding += signs.count(b"=")
            self.size += len(signs)
        else:
            self.size += len(data)
        if self.is_text:
            room = KEPT_BYTES - len(self.kept)
            self.kept += data[:room]
            self.cut |= len(data) > room

    def end(self) -> None:
        """The body is over: from base64's signs to bytes."""
        if self.encoding == "base64":
            self.size = max(0, self.size * 3 // 4 - self._padding)


@dataclass(slots=True)
class Scan:
    """Feed it the pieces of a message, then `finish`. `header` is the message's own, once it is known."""

    header: Message = field(default_factory=Message)
    parts: list[Part] = field(default_factory=list)
    more: bool = False
    """there are parts beyond those that are counted: what comes then is not looked at"""
    _lines: int = 0
    _buffer: bytes = b""
    _in_header: bool = True
    _seen_header: bool = False
    _part: Part | None = None
    _boundaries: list[bytes] = field(default_factory=list)
    _delimiter: re.Pattern[bytes] | None = None
    _after_newline: bool = True

    def feed(self, piece: bytes) -> None:
        """The next bytes."""
        if not self.more:
            self._buffer += piece
        while not self.more and self._step(last=False):
            pass

    def finish(self) -> Scan:
        """That was all."""
        while not self.more and self._step(last=True):
            pass
        self._end_part()
        return self

    def _step(self, *, last: bool) -> bool:
        """Take something from the buffer. False when that needs more of the message."""
        return self._header_step(last=last) if self._in_header else self._body_step(last=last)

    def _header_step(self, *, last: bool) -> bool:
        end = _HEADER_END.search(self._buffer)
        if end is None and len(self._buffer) <= _MOST_HEADER and not last:
            return False
        size = end.end() if end else len(self._buffer) if last else _MOST_HEADER
        if self._boundaries and (early := self._delimiter_in(self._buffer[:size])) is not None:
            size = early.start()  # a part without an empty line
        header = _shortened(BytesHeaderParser(policy=compat32).parsebytes(self._buffer[:size]))
        self._buffer = self._buffer[size:]
        self._in_header, self._after_newline = False, True
        if not self._seen_header:
            self._seen_header, self.header = True, header
        self._begin(header)
        return True

    def _begin(self, header: Message) -> None:
        boundary = _boundary(header)
        if boundary and len(self._boundaries) < _MOST_DEPTH and boundary not in self._boundaries:
            self._boundaries.append(boundary)
            self._compile()
            self._part = None
        elif len(self.parts) < _MOST_PARTS:
            self._part = Part(header)
            self.parts.append(self._part)
        else:
            self.more, self._part = True, None

    def _compile(self) -> None:
        any_of = b"|".join(
            re.escape(boundary) for boundary in sorted(self._boundaries, key=len, reverse=True)
        )
        self._delimiter = (
            re.compile(rb"(?:\r?\n|\A)--(%b)(--)?[ \t]{0,100}(?:\r?\n|\Z)" % any_of)
            if self._boundaries
            else None
        )

    def _delimiter_in(self, data: bytes) -> re.Match[bytes] | None:
        """The first boundary line; one at the very beginning counts only where a line begins."""
        if self._delimiter is None:
            return None
        found = self._delimiter.search(data)
        if found is not None and data.startswith(b"--") and found.start() == 0 and not self._after_newline:
            found = self._delimiter.search(data, 1)
        return found

    def _body_step(self, *, last: bool) -> bool:
        found = self._delimiter_in(self._buffer)
        if found is not None and (last or found.end() < len(self._buffer)):
            self._take(found.start())
            self._end_part()
            self._buffer = self._buffer[found.end() - found.start() :]
            self._cross(found[1], closing=found[2] is not None)
            return True
        if last or self._delimiter is None:
            self._take(len(self._buffer))
        elif len(self._buffer) > _TAIL:
            self._take(found.start() if found is not None else len(self._buffer) - _TAIL)
        return False

    def _take(self, size: int) -> None:
        if size:
            if self._part is not None:
                self._part.take(self._buffer[:size])
            self._after_newline = self._buffer[size - 1 : size] == b"\n"
            self._buffer = self._buffer[size:]

    def _cross(self, boundary: bytes, *, closing: bool) -> None:
        """Past a boundary line: inner multiparts that were never closed end here, too (RFC 2046 5.1.2)."""
        self._lines += 1
        self.more |= self._lines > _MOST_LINES
        at = self._boundaries.index(boundary)
        self._boundaries = self._boundaries[: at if closing else at + 1]
        self._compile()
        self._in_header, self._after_newline = not closing, True

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.end()
            self._part = None


def _shortened(header: Message) -> Message:
    """The first fields by their beginnings: Python's parsers of parameters and encoded words take their time
    over malicious ones."""
    short = Message(policy=compat32)
    for name, value in islice(header.raw_items(), _MOST_FIELDS):
        short[name] = str(value)[:_MOST_FIELD]
    return short


def _boundary(header: Message) -> bytes:
    """The boundary of a multipart; empty where it is none that can be used."""
    if header.get_content_maintype() != "multipart":
        return b""
    try:
        boundary = header.get_boundary() or ""
    except (LookupError, ValueError, TypeError):
        return b""
    raw = boundary.encode("utf-8", "surrogateescape").rstrip()
    return raw if len(raw) <= _MOST_BOUNDARY else b""
