"""Cuts a message's bytes, as they come, into pieces such that equal mail parts become equal chunks.

Promise: the pieces put together again (`rebuild`) are the message, byte for byte, whatever bytes it is made of; and
the pieces depend on the message alone, never on how it was cut into feeds. Time is linear in the message's
size; less than `WINDOW` bytes are held between feeds. Nothing here fails on odd input: what does not look
like mail is kept as it is.

Border: bytes in, pieces out; no I/O, no hashing, no MIME tree. What a part is gets decided by content alone:
header block | bodies of text parts | delimiters with their part headers | base64 bodies, decoded. A base64
body is decoded only where encoding it again gave the same bytes; where it turns odd it goes on raw.
"""

from __future__ import annotations

import binascii
import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_HEADER = 256 * 1024
"""Bytes after which a header block without an end is cut."""

MAX_PIECE = 896 * 1024
"""Bytes of the message that one piece covers at most."""

MIN_BODY = 512
"""Bytes that a text part's body needs to be a piece of its own; smaller ones stay with their delimiters."""

MIN_RUN = 1024
"""Bytes of uniform base64 lines that are worth decoding."""

RUN_BYTES = 16 * 41_040
"""Decoded bytes a piece. 41,040 is a whole number of lines for the widths in use (60, 64, 72 and 76
characters are 45, 48, 54 and 57 bytes), so that a file is cut alike whatever width it was sent in."""

_SPAN = 32 * 1024  # how far a decision looks ahead: the longest match of _EVENT and the first lines of a run
WINDOW = MAX_PIECE + _SPAN + 96 * 1024
"""Bytes gathered before a part of a message is cut; the last term keeps small feeds from being joined too often."""

_MAX_LINE = 998  # RFC 5322 2.1.1: characters a line, without its CRLF
_LINES_A_STEP = 1024  # base64 lines decoded in one go: what fits the CPU's cache
_KNOWN_BOUNDARIES = 64

_HEADER_END = re.compile(rb"\n\r?\n")

# The two things that end a text: a line that may be a MIME delimiter (group 1; group 2: part headers, when
# there is a blank line after them), and a blank line before base64 (group 3: its first line, 4: the line's
# end). All repeats are possessive and bounded, and a header line never begins with "-": so attempts
# do not overlap, and a match is never longer than 26 KiB.
_EVENT = re.compile(
    rb"\n(?:"
    rb"--([^\r\n]{1,200}+)"
    rb"(?:\r?\n(?![ \t])((?:(?:[A-Za-z][!-9;-~]{0,76}+:|[ \t])[^\n]{0,998}+\n){0,24}+)\r?\n)?"
    rb"|\r?\n([A-Za-z0-9+/]{16,998}+)(\r?\n)"
    rb")"
)
_BASE64_LINE = re.compile(rb"([A-Za-z0-9+/]{16,998}+)(\r?\n)")
_LAST_LINE = re.compile(rb"[A-Za-z0-9+/]{2,998}+={0,2}+(?=\r?\n|\Z)")


class Kind(enum.IntEnum):
    """What a piece is, so that like can be compressed with like."""

    HEADER = 1
    TEXT = 2
    ATTACHMENT = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a message.

    `width` 0: `data` are the message's bytes. Else `data` were base64, `width` characters a line, with `eol` between lines.
    `joins`: goes on the run of the piece before (same `width` and `eol`; between encoded pieces stands one `eol`).
    """

    kind: Kind
    data: bytes
    width: int = 0
    eol: bytes = b""
    joins: bool = False


def encode(data: bytes, width: int, eol: bytes) -> bytes:
    """The message's bytes for one whole run: base64, `width` characters a line, no `eol` after the last.

    `width` is a multiple of 4; 0 gives `data` back.
    """
    if not width:
        return data
    text = binascii.b2a_base64(data, newline=False)
    return eol.join([text[i : i + width] for i in range(0, len(text), width)])


def encode_run(pieces: Iterable[bytes], width: int, eol: bytes) -> Iterator[bytes]:
    """The same for a run's chunks one after the other, wherever they were cut."""
    if not width:
        yield from pieces
        return
    line = width // 4 * 3
    rest, between = b"", b""
    for piece in pieces:
        data = rest + piece if rest else piece
        whole = len(data) // line * line
        rest = data[whole:]
        if whole:
            yield between + encode(data[:whole], width, eol)
            between = eol
    if rest:
        yield between + encode(rest, width, eol)


def rebuild(pieces: Iterable[Piece]) -> bytes:
    """The message that `pieces` were cut from."""
    out: list[bytes] = []
    for piece in pieces:
        if piece.joins:
            out.append(piece.eol)
        out.append(encode(piece.data, piece.width, piece.eol))
    return b"".join(out)


class Splitter:
    """Cuts one message. `feed` bytes as they come, then `finish` once; each gives the pieces that are complete."""

    __slots__ = ("_body", "_data", "_eol", "_feeds", "_glue", "_joins", "_known", "_out", "_scan", "_size", "_step", "_width")

    def __init__(self) -> None:
        self._feeds: list[bytes] = []
        self._size = 0
        self._data = b""
        self._out: list[Piece] = []
        self._step = self._header
        self._joins = False  # whether the next piece can go on the run of the last one
        # Text not yet given out: data[_glue:_body] are delimiters, part headers and small bodies; data[_body:] is the
        # body they lead to, in which no event begins before _scan. Inside a run _glue is where it goes on.
        self._glue = self._body = self._scan = 0
        self._width, self._eol = 0, b""
        self._known: dict[bytes, None] = {}  # boundaries that have been seen to delimit a part, oldest first

    def feed(self, data: bytes) -> list[Piece]:
        """Take the next bytes of the message."""
        self._feeds.append(data)
        self._size += len(data)
        return self._cut(final=False) if self._size >= WINDOW else []

    def finish(self) -> list[Piece]:
        """The message is complete."""
        return self._cut(final=True)

    def _cut(self, *, final: bool) -> list[Piece]:
        self._data = self._feeds[0] if len(self._feeds) == 1 else b"".join(self._feeds)
        self._out = []
        while self._step(final):
            pass
        if final:
            self._close(self._size)
            self._data, self._feeds, self._size = b"", [], 0
        else:
            # The byte before the text stays: its first line may be a delimiter, which is found by the "\n" before it.
            gone = max(0, self._glue - 1)
            self._feeds = [self._data[gone:]]
            self._data = b""
            self._size -= gone
            self._glue -= gone
            self._body -= gone
            self._scan -= gone
        return self._out
