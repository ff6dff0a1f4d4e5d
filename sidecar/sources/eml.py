"""A file with one message, or a folder with such files, and folders below it.

Files that end in `.eml` are mail whatever is in them, as far as there is any header field at all; others are
passed over. A message was received when its topmost Received field says; without one its Date counts, and
then the file's own time.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

from sidecar.intake import Found
from sidecar.line_ends import LineEnds
from sidecar.sources.dates import received_us
from sidecar.sources.files import files_below, head_of, pieces_of, why_no_file
from sidecar.sources.source import Skipped, Wanted
from sidecar.traces import HEAD_BYTES

SUFFIX = ".eml"
HEADER_FIELD = re.compile(rb"(?m)^[!-9;-~]+[ \t]*:")


NO_HEADER = "is no mail: there is no header field in it"


class EmlSource:
    """The .eml files at a path. See `Source`."""

    kind = "eml"
    known = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        self.total = 1 if path.is_file() else sum(1 for _ in files_below(path, lambda _path, _why: None))

    def messages(self, wanted: Wanted) -> Generator[Found | Skipped]:
        """See `Source`."""
        if self._path.is_file():
            yield from _message(self._path, "", wanted)
            return
        unread: list[Skipped] = []
        for path in files_below(self._path, lambda where, why: unread.append(Skipped(f"eml:{where}", why))):
            yield from unread
            unread.clear()
            if path.name.lower().endswith(SUFFIX):
                folder = path.parent.relative_to(self._path).as_posix()
                yield from _message(path, "" if folder == "." else folder, wanted)
        yield from unread


def _message(path: Path, folder: str, wanted: Wanted) -> Iterator[Found | Skipped]:
    origin = f"eml:{path}"
    reason = why_no_file(path)
    if reason is None:
        try:
            head = head_of(path, HEAD_BYTES)
            time_us = received_us(head) or path.stat().st_mtime_ns // 1000
        except OSError as exc:
            reason = f"cannot be read: {exc.strerror}"
        else:
            if not HEADER_FIELD.search(head):
                reason = NO_HEADER
    if reason is not None:
        yield Skipped(origin, reason)
    elif wanted.at(time_us):
        yield Found(
            origin=origin, recipient=wanted.recipient, received_us=time_us, folder=wanted.folder(folder),
            pieces=partial(pieces_of, path), line_ends=LineEnds.AS_FIRST,
        )  # fmt: skip
