"""An mbox file, or a folder of them: messages one after another, each under a line that begins with `From `.

Read in one pass and never whole: a message is a stretch of the file. A line `From ` ends a message when it
has a date, as every mail program writes it; in a file whose first line has none, when an empty line stands
before it. `>From ` is unquoted as in mboxrd. The empty line before the next message is not part of it.
Content-Length is not believed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sidecar.intake import Found
from sidecar.line_ends import LineEnds
from sidecar.sources.dates import from_line_us, received_us
from sidecar.sources.files import files_below, head_of, why_no_file
from sidecar.sources.source import PIECE_BYTES, Skipped, Wanted
from sidecar.traces import HEAD_BYTES

FROM = b"From "
_BLOCK_BYTES = 1 << 20
_LINE_BYTES = 1000
"""a line that is longer is no From_ line"""
_BEFORE = 4
_DATED = re.compile(
    rb"From .*\b(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +[A-Z][a-z]{2} +\d{1,2} +\d{1,2}:\d\d"
    rb"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d)"
)
_QUOTED = re.compile(rb"(?m)^>(>*From )")
_QUOTE_BEGUN = re.compile(rb">+(F|Fr|Fro|From)?")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"(?im)^(?:x-)?status[ \t]*:[ \t]*([a-z]*)")
_FLAGS = {b"R": "\\Seen", b"A": "\\Answered", b"F": "\\Flagged", b"D": "\\Deleted", b"T": "\\Draft"}


@dataclass(frozen=True, slots=True)
class Stretch:
    """One message in an mbox: its bytes from `start` to `stop`, still quoted, and its From_ line."""

    line: bytes
    start: int
    stop: int
    file: tuple[int, int] = (0, 0)
    """which file it was"""


class MboxSource:
    """The mbox at a path, or all those in a folder. See `Source`."""

    kind = "mbox"
    total = 0
    known = 0

    def __init__(self, path: Path) -> None:
        self._path = path

    def messages(self, wanted: Wanted) -> Generator[Found | Skipped]:
        """See `Source`."""
        if not self._path.is_dir():
            yield from _messages(self._path, wanted.folder(""), wanted)
            return
        unread: list[Skipped] = []
        for path in files_below(self._path, lambda where, why: unread.append(Skipped(f"mbox:{where}", why))):
            yield from unread
            unread.clear()
            name = path.relative_to(self._path).as_posix().removesuffix(".mbox")
            yield from _messages(path, wanted.folder(name), wanted)
        yield from unread


def is_mbox(path: Path) -> bool:
    """Whether a file begins as an mbox does. Raises `OSError`."""
    return path.is_file() and head_of(path, len(FROM)) == FROM


def stretches(fd: int) -> Iterator[Stretch]:
    """The messages of an mbox, in order. Raises `OSError`."""
    last: tuple[bytes, int] | None = None
    file = _identity(fd)
    for line, at, stop in _from_lines(fd):
        if last is not None:
            yield Stretch(*last, stop, file)
        last = line, at + len(line)
    if last is not None:
        yield Stretch(*last, _end(fd, last[1]), file)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def unquoted(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """One `>` less before each line that begins with `>From `, `>>From `…"""
    held = b""
    bare = True  # what comes next begins a line
    for piece in pieces:
        data = held + piece
        # With a sign before it a piece that goes on within a line has no line's beginning at its own.
        data = _QUOTED.sub(rb"\1", data) if bare else _QUOTED.sub(rb"\1", b"x" + data)[1:]
        line = data.rfind(b"\n") + 1
        begun = _QUOTE_BEGUN.fullmatch(data, line) if line or bare else None
        bare = begun is not None or (data.endswith(b"\n") if data else bare)
        held = b""
        if begun:  # which `>` goes does not matter: one is kept back, and not a line of a gigabyte of them
            held = b">" + (begun[1] or b"")
            data = data[: len(data) - len(held)]
        if data:
            yield data
    yield held


def _messages(path: Path, folder: str, wanted: Wanted) -> Iterator[Found | Skipped]:
    reason = why_no_file(path)
    try:
        if reason is None and not is_mbox(path):
            reason = "is no mbox: its first line does not begin with 'From '"
        if reason is not None:
            yield Skipped(f"mbox:{path}", reason)
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        yield Skipped(f"mbox:{path}", f"cannot be read: {exc.strerror}")
        return
    try:
        written_us = os.fstat(fd).st_mtime_ns // 1000
        for stretch in stretches(fd):
            origin = f"mbox:{path}@{stretch.start}"
            head = os.pread(fd, min(HEAD_BYTES, stretch.stop - stretch.start), stretch.start)
            time_us = from_line_us(stretch.line) or received_us(head) or written_us
            if stretch.start == stretch.stop:
                yield Skipped(origin, "is empty")
            elif wanted.at(time_us):
                yield Found(
                    origin=origin, recipient=wanted.recipient, received_us=time_us, folder=folder,
                    flags=_flags(head), pieces=partial(_pieces, path, stretch), line_ends=LineEnds.CRLF,
                )  # fmt: skip
    except OSError as exc:
        yield Skipped(f"mbox:{path}", f"cannot be read to its end: {exc.strerror}")
    finally:
        os.close(fd)


def _pieces(path: Path, stretch: Stretch) -> Iterator[bytes]:
    return unquoted(_raw(path, stretch))


def _raw(path: Path, stretch: Stretch) -> Iterator[bytes]:
    """What lies there. Raises `OSError`, also where the file is another by now: mail programs write theirs
    anew, and from the middle of one message to that of another is no mail."""
    with path.open("rb", buffering=0) as file:
        file.seek(stretch.start - len(stretch.line))
        if file.read(len(stretch.line)) != stretch.line or _identity(file.fileno()) != stretch.file:
            raise OSError(errno.ESTALE, "it was changed meanwhile")
        left = stretch.stop - stretch.start
        while left and (piece := file.read(min(PIECE_BYTES, left))):
            left -= len(piece)
            yield piece


def _flags(head: bytes) -> tuple[str, ...]:
    end = _HEADER_END.search(head)
    letters = b"".join(_STATUS.findall(head, 0, end.start() if end else len(head))).upper()
    return tuple(flag for letter, flag in _FLAGS.items() if letter in letters)


def _from_lines(fd: int) -> Iterator[tuple[bytes, int, int]]:
    """Each From_ line with its place, and where the message before it ends."""
    lax = False
    window, base, first = b"", 0, True
    while True:
        block = os.pread(fd, _BLOCK_BYTES, base + len(window))
        window += block
        at = 0
        while True:
            place = 0 if first else window.find(b"\n" + FROM, at) + 1
            if not first and not place:
                # What is kept may be the beginning of what is looked for, with the line end before it.
                keep = max(len(window) - len(FROM) - _BEFORE, at - _BEFORE, 0)
                break
            end = window.find(b"\n", place) + 1
            if not end and block and len(window) - place < _LINE_BYTES:
                keep = max(place - _BEFORE, 0)
                break
            line = window[place : end or len(window)]
            before = window[max(place - _BEFORE, 0) : place]
            empty = 2 if before.endswith(b"\n\r\n") else 1 if before.endswith(b"\n\n") else 0
            dated = len(line) <= _LINE_BYTES and _DATED.match(line) is not None
            if first or dated or (lax and empty):
                lax = lax or (first and not dated)
                yield line, base + place, base + place - empty
            first = False
            at = place + len(FROM) - 1
        if not block:
            return
        base += keep
        window = window[keep:]


def _end(fd: int, start: int) -> int:
    """Where the last message ends: before the empty line at the end, if there is one."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, 3, max(size - 3, start))
    if tail.endswith(b"\n\r\n"):
        return size - 2
    return size - 1 if tail.endswith(b"\n\n") or (tail == b"\n" and size - 1 == start) else size
