"""Line ends as mail has them on the wire: Maildir, mbox and many files have LF, LMTP and IMAP have CRLF."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from itertools import chain


class LineEnds(enum.Enum):
    """What to do with the line ends of a message that comes from elsewhere."""

    KEEP = enum.auto()
    """nothing: the bytes are those of the wire"""
    CRLF = enum.auto()
    """each bare LF becomes CRLF, as an IMAP server gives what lies in a Maildir"""
    AS_FIRST = enum.auto()
    """the first line decides: with CRLF nothing is changed, else as `CRLF`"""


class Lines:
    """One message's pieces, line by line as `ends` says. `changed`: whether any line end was converted, known
    once all have been read."""

    def __init__(self, pieces: Iterable[bytes], ends: LineEnds) -> None:
        self.changed = False
        self._pieces = iter(pieces)
        self._ends = ends

    def __iter__(self) -> Iterator[bytes]:
        match self._ends:
            case LineEnds.KEEP:
                return self._pieces
            case LineEnds.CRLF:
                return self._with_crlf(self._pieces)
            case LineEnds.AS_FIRST:
                return self._as_first()

    def _as_first(self) -> Iterator[bytes]:
        last = b""
        for piece in self._pieces:  # as a rule one
            first = piece.find(b"\n")
            if first < 0:
                yield piece
                last = piece[-1:] or last
                continue
            rest = chain((piece,), self._pieces)
            before = piece[first - 1 : first] if first else last
            yield from rest if before == b"\r" else self._with_crlf(rest)
            return

    def _with_crlf(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        last = b""
        for piece in pieces:
            if not piece:
                continue
            rest = piece
            if last == b"\r" and rest.startswith(b"\n"):
                yield b"\n"
                rest = rest[1:]
            last = piece[-1:]
            crlf = rest.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            self.changed = self.changed or len(crlf) != len(rest)
            yield crlf
