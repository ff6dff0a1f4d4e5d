"""Cuts a message's bytes, as they come, into pieces such that equal mail parts become equal chunks.

Promise: the pieces put together again (`rebuild`) are the message, byte for byte, whatever bytes it is made
of; and the pieces depend on the message alone, never on how it was cut into feeds. Time is linear in the
message's size; less than `WINDOW` bytes are held between feeds. Nothing here fails on odd input: what does
not look like mail is kept as it is.

Border: bytes in, pieces out; no I/O, no hashing, no MIME tree. Content alone decides what a part is:
header block | bodies of text parts | delimiters with their part headers | base64 bodies, decoded. Base64
is decoded only where encoding it again gives the same bytes; where it turns odd it goes on raw.
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
"""Bytes gathered before a message is cut; the last term keeps small feeds from being joined too often."""

_LINES_A_STEP = 4096  # base64 lines decoded in one go; more of them are not faster
_KNOWN_BOUNDARIES = 64

_HEADER_END = re.compile(rb"\n\r?\n")

# The two things that end a text: a line that may be a MIME delimiter (group 1; either with part headers and a
# blank line behind it, group 2, or maybe one that closes), and a blank line before base64 (group 3: its
# first line, 4: that line's end). All repeats are possessive and bounded (998: RFC 5322 2.1.1), and a header
# line never begins with "-": so attempts do not overlap, and a match is never longer than 26 KiB.
_EVENT = re.compile(
    rb"\n(?:"
    rb"--([^\r\n]{1,200}+)"
    rb"(?:\r?\n(?![ \t])((?:(?:[A-Za-z][!-9;-~]{0,76}+:|[ \t])[^\n]{0,998}+\n){0,24}+)\r?\n|(?<=[- \t]))"
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

    `width` 0: `data` are the message's bytes. Else they were base64, `width` characters a line, with `eol`
    between lines. `joins`: goes on the run of the piece before, which has the same `width` and `eol`;
    between two such pieces stands one more `eol`.
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
    """Cuts one message: `feed` its bytes as they come, then `finish`; both give what pieces are complete."""

    __slots__ = (
        "_body",
        "_data",
        "_eol",
        "_feeds",
        "_glue",
        "_in_header",
        "_joins",
        "_known",
        "_out",
        "_scan",
        "_size",
        "_width",
    )

    def __init__(self) -> None:
        self._feeds: list[bytes] = []
        self._size = 0
        self._data = b""
        self._out: list[Piece] = []
        self._in_header = True
        self._joins = False  # whether the next piece goes on the run of the last one
        # Text not yet given out: data[_glue:_body] are delimiters, part headers, small bodies; data[_body:]
        # is the body they lead to, and no event begins in it before _scan. In a base64 run all
        # three are where the run goes on.
        self._glue = self._body = self._scan = 0
        self._width, self._eol = 0, b""  # of the base64 run we are in; width 0: in text
        self._known: dict[bytes, None] = {}  # boundaries that were seen to delimit a part, oldest first

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
        if self._in_header:
            self._header()
        while self._run(final=final) if self._width else self._text(final=final):
            pass
        gone = self._glue
        self._feeds = [self._data[gone:]]
        self._size -= gone
        self._glue -= gone
        self._body -= gone
        self._scan -= gone
        self._data = b""
        out, self._out = self._out, []
        return out

    def _header(self) -> None:
        data = self._data
        self._in_header = False
        if data.startswith((b"\n", b"\r\n")):
            end = data.index(b"\n") + 1
        else:
            blank = _HEADER_END.search(data, 0, MAX_HEADER)
            end = blank.end() if blank else min(len(data), MAX_HEADER)
        self._emit(Kind.HEADER, 0, end)
        self._begin_text(end)
        self._begin_run(end)

    def _text(self, *, final: bool) -> bool:
        """Cuts text up to the next base64 run (True), or as far as can be seen (False)."""
        data = self._data
        # An event is only looked at when all that decides on it is there; else the feeds would decide too.
        limit = len(data) if final else len(data) - _SPAN
        while (event := _EVENT.search(data, self._scan)) and event.start() < limit:
            at = event.start()
            boundary, headers, line, _ = event.groups()
            if line is not None:
                if self._begin_run(event.start(3)):
                    return True
                self._scan = event.end(3)
            elif end := self._delimits(event, boundary, headers):
                # RFC 2046 5.1.1: the line end before a delimiter is part of it (not when it ended a header).
                self._end_body(max(self._body, at - 1 if data[at - 1 : at] == b"\r" else at))
                self._body = end
                while end - self._glue > MAX_PIECE:
                    self._emit(Kind.TEXT, self._glue, self._glue + MAX_PIECE)
                    self._glue += MAX_PIECE
                if self._begin_run(end):
                    return True
                self._scan = end - 1
            else:
                self._scan = event.end(1)
        if final:
            self._flush(len(data))
        else:
            self._scan = max(self._scan, limit)
            self._goes_on(limit - 1)  # the next event begins at limit or later, maybe with the "\r" before it
        return False

    def _delimits(self, event: re.Match[bytes], boundary: bytes, headers: bytes | None) -> int:
        """Where the part behind a delimiter line begins; 0 when the line is none.

        Part headers speak for a delimiter; one that closes, or has no part headers, must be known already:
        texts are full of dashes.
        """
        known, boundary = self._known, boundary.rstrip(b" \t")
        if headers is not None and (boundary in known or b"content-" in headers.lower()):
            known.pop(boundary, None)
            known[boundary] = None
            if len(known) > _KNOWN_BOUNDARIES:
                del known[next(iter(known))]
            return event.end()
        return event.end(1) if boundary.endswith(b"--") and boundary[:-2] in known else 0

    def _goes_on(self, upto: int) -> None:
        """The body reaches at least to `upto`: give out what this decides."""
        if upto - self._body >= MIN_BODY:
            self._emit(Kind.TEXT, self._glue, self._body)
            self._glue = self._body
        while upto - self._body > MAX_PIECE:
            # Here large texts are cut by length; cutting by content would have its place here.
            self._emit(Kind.TEXT, self._body, self._body + MAX_PIECE)
            self._glue = self._body = self._body + MAX_PIECE

    def _end_body(self, end: int) -> None:
        """The body ends at `end`: a piece of its own when it is long enough."""
        self._goes_on(end)
        if end - self._body >= MIN_BODY:
            self._emit(Kind.TEXT, self._body, end)
            self._glue = end

    def _flush(self, end: int) -> None:
        """All text ends at `end`."""
        self._end_body(end)
        for start in range(self._glue, end, MAX_PIECE):
            self._emit(Kind.TEXT, start, min(start + MAX_PIECE, end))
        self._begin_text(end)

    def _begin_text(self, at: int) -> None:
        self._glue = self._body = at
        self._scan = max(0, at - 1)

    def _begin_run(self, at: int) -> bool:
        """Whether base64 worth decoding begins at `at`; then all text before it is given out."""
        line = _BASE64_LINE.match(self._data, at)
        if line is None or len(line[1]) % 4:
            return False
        width, eol = len(line[1]), line[2]
        enough = -(-MIN_RUN // (width + len(eol)))
        if _count_lines(self._data, at, enough, width, eol) < enough:
            return False
        if _decode_lines(self._data[at : at + enough * (width + len(eol))], enough * width) is None:
            return False
        self._flush(at)
        self._width, self._eol = width, eol
        self._joins = False
        return True

    def _run(self, *, final: bool) -> bool:
        """Decodes a base64 run up to its end (True), or as far as whole pieces are there (False)."""
        data, width, eol = self._data, self._width, self._eol
        stride = width + len(eol)
        most = min(RUN_BYTES // (width // 4 * 3), MAX_PIECE // stride)
        at = self._glue
        while final or len(data) - at >= (most + 1) * stride + 2:
            joins = self._joins
            start = at + len(eol) if joins else at  # a full piece has its line end behind it
            decoded, lines = _decode(data, start, most, width, eol)
            end = start + lines * stride
            if lines < most:
                last = _LAST_LINE.match(data, end)
                if last and len(last[0]) <= width and (tail := _decode_exactly(last[0])) is not None:
                    decoded.append(tail)
                    end = last.end() + len(eol)
            if not decoded:
                break
            # Here decoded bytes are cut by length; cutting by content would have its place here.
            self._out.append(Piece(Kind.ATTACHMENT, b"".join(decoded), width, eol, joins))
            self._joins = True
            at = end - len(eol)
            if lines < most:
                break
        else:
            self._glue = self._body = self._scan = at
            return False
        self._glue = self._body = self._scan = at
        self._width, self._joins = 0, False
        return True

    def _emit(self, kind: Kind, start: int, end: int) -> None:
        if end > start:
            self._out.append(Piece(kind, self._data[start:end], joins=self._joins))
            self._joins = True


def _decode(data: bytes, at: int, most: int, width: int, eol: bytes) -> tuple[list[bytes], int]:
    """Decodes the uniform lines from `at` on, up to `most`: their bytes, and how many lines they are.

    Steps grow from a few lines, and are halved at each odd one: so the work is in proportion to the lines
    found, also when somebody sends a great many runs that soon turn odd.
    """
    stride = width + len(eol)
    decoded: list[bytes] = []
    lines, step, odd = 0, 32, False
    while lines < most and (n := _count_lines(data, at, min(step, most - lines), width, eol)):
        part = _decode_lines(data[at : at + n * stride], n * width)
        if part is None:
            step, odd = n // 2, True
            continue
        decoded.append(part)
        lines += n
        at += n * stride
        if not odd:
            step = min(2 * step, _LINES_A_STEP)
    return decoded, lines


def _count_lines(data: bytes, at: int, most: int, width: int, eol: bytes) -> int:
    """How many lines from `at` on, up to `most`, have `eol` behind `width` characters."""
    stride = width + len(eol)
    end = at + most * stride
    for i in range(len(eol)):
        ends = data[at + width + i : end : stride]
        most = min(most, len(ends) - len(ends.lstrip(eol[i : i + 1])))
    return most


def _decode_lines(lines: bytes, characters: int) -> bytes | None:
    """The bytes in full lines of base64 with `characters` in all; None when they are not just that."""
    text = lines.translate(None, b"\r\n")
    decoded = _decode_exactly(text)
    # Fewer bytes: there was padding, which makes a last line, or a line end where it does not belong.
    return decoded if decoded is not None and len(decoded) == characters // 4 * 3 else None


def _decode_exactly(text: bytes) -> bytes | None:
    """Decoded base64; None unless encoding it again gives `text`."""
    try:
        decoded = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return None
    return decoded if binascii.b2a_base64(decoded, newline=False) == text else None
