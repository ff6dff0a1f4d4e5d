"""A Maildir with its folders: Maildir++ (`.Archive.2024`), or directories in directories (LAYOUT=fs).

Folders have the names that IMAP gives them, the top one is INBOX. A message was received at the earlier of
two times: the file's own, which Dovecot takes for INTERNALDATE, and the one in its unique name. Where they
differ the later one comes from moving or copying it. A file that has no name as servers give them is none of
theirs, and mail only if it begins with a header.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.intake import Found
from sidecar.line_ends import LineEnds
from sidecar.maildir_names import flags_of, folder_name, keywords_of
from sidecar.sources.eml import HEADER_FIELD, NO_HEADER
from sidecar.sources.files import Told, own_pieces_of, why_no_file
from sidecar.sources.source import Skipped, Wanted
from sidecar.traces import HEAD_BYTES

INBOX = "INBOX"
_PLACES = ("cur", "new")
_LINK = "is a symbolic link: whose Maildir it is may have pointed it at what is not theirs"
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_SECONDS = re.compile(r"(\d{9,11})\.")


def is_maildir(path: Path) -> bool:
    """Whether a directory is a Maildir, or has one below it."""
    return any(True for _ in _directories(path))


class MaildirSource:
    """The Maildir at a path. See `Source`."""

    kind = "maildir"
    known = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        self.total = sum(len(_names(directory)) for directory, _ in _directories(path))

    def messages(self, wanted: Wanted) -> Generator[Found | Skipped]:
        """See `Source`."""
        unread: list[Skipped] = []
        for directory, folder in _directories(
            self._path, lambda where, why: unread.append(Skipped(f"maildir:{where}", why))
        ):
            keywords = keywords_of(directory)
            for place in _PLACES:
                if _is_link(directory / place):
                    yield Skipped(f"maildir:{directory / place}", _LINK)
                    continue
                try:
                    names = sorted(entry.name for entry in (directory / place).iterdir())
                except FileNotFoundError:
                    continue
                except OSError as exc:
                    yield Skipped(f"maildir:{directory / place}", f"cannot be read: {exc.strerror}")
                    continue
                for name in names:
                    if not name.startswith("."):
                        yield from _message(_File(directory, place, name), folder, keywords, wanted)
        yield from unread


@dataclass(frozen=True, slots=True)
class _File:
    """A message's file as it was listed. A mail server at work may rename it at any time."""

    directory: Path
    place: str
    name: str

    def path(self) -> Path:
        """Where it is now, or where it was."""
        listed = self.directory / self.place / self.name
        if os.path.lexists(listed):
            return listed
        unique = self.name.partition(":")[0]
        for place in _PLACES:
            with contextlib.suppress(OSError):
                for entry in (self.directory / place).iterdir():
                    if entry.name.partition(":")[0] == unique:
                        return entry
        return listed

    def pieces(self) -> Iterator[bytes]:
        return own_pieces_of(self.path())


def _message(file: _File, folder: str, keywords: dict[str, str], wanted: Wanted) -> Iterator[Found | Skipped]:
    path = file.path()
    origin = f"maildir:{file.directory / file.place / file.name}"
    reason = why_no_file(path)
    if reason is None and _is_link(path):
        reason = _LINK
    if reason is not None:
        yield Skipped(origin, reason)
        return
    try:
        time_us = path.stat().st_mtime_ns // 1000
        is_mail = _has_a_servers_name(file.name) or _has_header(file)
    except OSError as exc:
        yield Skipped(origin, f"cannot be read: {exc.strerror}")
        return
    if not is_mail:
        yield Skipped(origin, NO_HEADER)
        return
    if named := _SECONDS.match(file.name):
        time_us = min(time_us, int(named[1]) * 1_000_000)
    if wanted.at(time_us):
        yield Found(
            origin=origin, recipient=wanted.recipient, received_us=time_us, folder=wanted.folder(folder),
            flags=flags_of(file.name, keywords), pieces=file.pieces, line_ends=LineEnds.CRLF,
        )  # fmt: skip


def _has_a_servers_name(name: str) -> bool:
    return ":2," in name or _SECONDS.match(name) is not None


def _has_header(file: _File) -> bool:
    """Raises `OSError`."""
    head = next(file.pieces(), b"")[:HEAD_BYTES]
    return HEADER_FIELD.search(_EMPTY_LINE.split(head, 1)[0]) is not None


def _directories(top: Path, told: Told = lambda _path, _why: None) -> Iterator[tuple[Path, str]]:
    """Each Maildir in a directory, with its folder's name; INBOX first."""
    if _is_one(top):
        yield top, INBOX
    yield from _below(top, "", told)


def _below(directory: Path, folder: str, told: Told) -> Iterator[tuple[Path, str]]:
    try:
        with os.scandir(directory) as listed:  # which tells directories from files without a look at each
            entries = sorted(
                Path(one.path)
                for one in listed
                if one.is_dir(follow_symlinks=False) or (one.is_symlink() and _is_one(Path(one.path)))
            )
    except OSError as exc:
        told(str(directory), f"cannot be read: {exc.strerror}")
        return
    for entry in entries:
        if entry.name in (*_PLACES, "tmp"):
            continue
        if _is_link(entry):
            told(str(entry), _LINK)
            continue
        name = folder_name(entry.name.removeprefix("."))
        if not folder and entry.name.startswith("."):
            if _is_one(entry):
                yield entry, name
            continue
        inner = f"{folder}/{name}" if folder else name
        if _is_one(entry):
            yield entry, inner
        yield from _below(entry, inner, told)


def _is_one(directory: Path) -> bool:
    try:
        return any((directory / place).is_dir() for place in _PLACES)
    except PermissionError:  # told when it is read
        return directory.name.startswith(".")


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except PermissionError:  # told when it is read
        return False


def _names(directory: Path) -> list[str]:
    found: list[str] = []
    for place in _PLACES:
        with contextlib.suppress(OSError):
            found += [entry.name for entry in (directory / place).iterdir()]
    return found
