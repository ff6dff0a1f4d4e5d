"""A live mailbox in a Maildir++ directory, as Dovecot and Courier write it; also with folders as directories
within each other (Dovecot's LAYOUT=fs). Nothing is written, moved or locked.

Whoever reads mail meanwhile moves files from `new` to `cur` and renames them for their flags: a message goes
by its unique name, and is looked for again where its file has gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from sidecar.live.fields import id_and_date
from sidecar.live.mailbox import LiveError, LiveMessage
from sidecar.maildir_names import flags_of, folder_name, keywords_of
from store.ids import FOREVER_US

_HEADER_BYTES = 256 << 10
_TRIES = 5
_BLANK_LINE = re.compile(rb"\n\r?\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_SIZES = re.compile(r",S=([0-9]+).*,W=([0-9]+)")
_NOT_PLAIN = {
    b"\x1f\x8b": "compressed",
    b"BZh": "compressed",
    b"\xfd7zXZ": "compressed",
    b"\x28\xb5\x2f\xfd": "compressed",
    b"\x04\x22\x4d\x18": "compressed",
    b"CRYPTED\x03\x07": "encrypted",
}
"""how files begin that Dovecot's zlib and mail_crypt plugins write"""


class _File(NamedTuple):
    path: Path
    size: int
    mtime_ns: int


class Maildir:
    """A `LiveMailbox` over a directory with `cur` and `new`."""

    def __init__(self, path: Path, user: str) -> None:
        """Raises `LiveError` for what is no Maildir."""
        self.user = user
        self.path = path
        self._files: dict[str, dict[str, _File]] = {}
        if not _is_folder(path):
            raise LiveError(f"{path}: {_what_it_is(path)}")
        self._paths = {"INBOX": path} | dict(sorted(_folders(path)))

    def folders(self) -> list[str]:
        """See `LiveMailbox`."""
        if not _is_folder(self.path):
            raise LiveError(f"{self.path}: {_what_it_is(self.path)}")
        return list(self._paths)

    def mark(self, folder: str) -> str:
        """See `LiveMailbox`; an old message that was only renamed changes it, too."""
        if folder not in self._paths:
            raise LiveError(f"{self.path} has no folder {folder}")
        return str([_changed(self._paths[folder] / name) for name in ("new", "cur")])

    def messages(self, folder: str, since_us: int = 0, until_us: int = FOREVER_US) -> Iterator[LiveMessage]:
        """See `LiveMailbox`; received when the file was written."""
        files = self._scan(folder)
        keywords = keywords_of(self._paths[folder])
        for name, file in sorted(files.items(), key=lambda found: found[1].mtime_ns):
            received_us = file.mtime_ns // 1_000_000_000 * 1_000_000
            if since_us <= received_us < until_us:
                header = self._header(folder, name)
                if header is not None:
                    yield _live(folder, name, file, received_us, header, keywords)

    def fetch(self, messages: Sequence[LiveMessage]) -> Iterator[tuple[LiveMessage, bytes]]:
        """See `LiveMailbox`; line ends are CRLF, as over IMAP."""
        for message in messages:
            data = self._read(message.folder, message.uid)
            if data is not None:
                yield message, _BARE_LF.sub(b"\r\n", data) if b"\r" in data else data.replace(b"\n", b"\r\n")

    def headers(self, messages: Sequence[LiveMessage]) -> Iterator[tuple[LiveMessage, bytes]]:
        """See `LiveMailbox`."""
        for message in messages:
            header = self._header(message.folder, message.uid)
            if header is not None:
                yield message, _BARE_LF.sub(b"\r\n", header)

    def close(self) -> None:
        """See `LiveMailbox`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _scan(self, folder: str) -> dict[str, _File]:
        """The files of a folder by their unique names; `new` first, since they move from there to `cur`."""
        if folder not in self._paths:
            raise LiveError(f"{self.path} has no folder {folder}")
        places = [self._paths[folder] / name for name in ("new", "cur")]
        found: dict[str, _File] = {}
        for _ in range(_TRIES):  # a listing may miss what is renamed meanwhile
            before = [_changed(place) for place in places]
            found |= {name: file for place in places for name, file in _listed(place)}
            if before == [_changed(place) for place in places]:
                break
        self._files[folder] = found
        return found

    def _header(self, folder: str, name: str) -> bytes | None:
        start = self._read(folder, name, _HEADER_BYTES)
        if start is None:
            return None
        for magic, what in _NOT_PLAIN.items():
            if start.startswith(magic):
                raise LiveError(
                    f"{self._files[folder][name].path} is {what}: ask over IMAP, without --maildir"
                )
        end = _BLANK_LINE.search(start)
        return start[: end.start() + 1] if end else start

    def _read(self, folder: str, name: str, most: int = -1) -> bytes | None:
        """A message's bytes, wherever its file is by now; None if it is gone."""
        for again in range(_TRIES):
            files = self._files.get(folder)
            if files is None or again:
                files = self._scan(folder)
            if name not in files:
                return None
            try:
                with files[name].path.open("rb") as file:
                    return file.read(most)
            except FileNotFoundError:
                del files[name]
            except OSError as exc:
                raise LiveError(f"{files[name].path} cannot be read: {exc.strerror}") from exc
        return None


def _live(
    folder: str, name: str, file: _File, received_us: int, header: bytes, keywords: dict[str, str]
) -> LiveMessage:
    message_id, date = id_and_date(header)
    return LiveMessage(
        folder=folder, uid=name, size=_size(file), received_us=received_us,
        flags=flags_of(file.path.name, keywords), message_id=message_id, date=date,
    )  # fmt: skip


def _size(file: _File) -> int:
    """With CRLF line ends: as the name says where the rest of what it says is true, else by counting."""
    said = _SIZES.search(file.path.name)
    if said and int(said[1]) == file.size and file.size <= int(said[2]) <= 2 * file.size:
        return int(said[2])
    try:
        with file.path.open("rb") as opened:
            lines, before, size = 0, b"", 0
            while data := opened.read(1 << 20):
                size += len(data)
                lines += data.count(b"\n") - data.count(b"\r\n") - (before == b"\r" and data[:1] == b"\n")
                before = data[-1:]
            return size + lines
    except OSError:  # it has just moved
        return file.size


def _listed(place: Path) -> Iterator[tuple[str, _File]]:
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_file():
                    continue
                try:
                    stat = entry.stat()
                except FileNotFoundError:
                    continue  # renamed: the next look has it
                name = entry.name.partition(":2,")[0]
                yield name, _File(Path(entry.path), stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:  # a folder without `new`
        return
    except OSError as exc:
        raise LiveError(f"{place} cannot be read: {exc.strerror}") from exc


def _changed(place: Path) -> int:
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return 0


def _is_folder(path: Path) -> bool:
    return (path / "cur").is_dir()


def _folders(root: Path) -> Iterator[tuple[str, Path]]:
    """(name, directory) of all folders but INBOX, named as over IMAP."""
    for place, names, _ in os.walk(root, onerror=_told):
        # What Maildir++ has is flat, and begins with a dot; the files of a folder have no folders in them.
        names[:] = [name for name in names if name not in ("cur", "new", "tmp")]
        for name in names:
            path = Path(place, name)
            if _is_folder(path):
                relative = str(path.relative_to(root))
                named = folder_name(relative.removeprefix("."))
                yield named.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), path


def _told(exc: OSError) -> None:
    raise LiveError(f"{exc.filename} cannot be read: {exc.strerror}") from exc


def _what_it_is(path: Path) -> str:
    """Why a path will not do, as far as one can see."""
    if not path.exists():
        return "there is no such directory"
    if path.is_file():
        return "is a file: mbox mailboxes are asked over IMAP, without --maildir"
    names = {entry.name for entry in path.iterdir()} if os.access(path, os.R_OK) else set()
    if names & {"mailboxes", "storage", "dbox-Mails"} or any(
        name.startswith("dovecot.map") for name in names
    ):
        return "is dbox, which only Dovecot reads: ask over IMAP, without --maildir"
    inner = next((name for name in ("Maildir", "mail", "mdbox", "sdbox") if (path / name).is_dir()), None)
    if inner:
        return f"is no Maildir, it has no `cur`; did you mean {path / inner}?"
    if any((path / name).is_file() for name in names):
        return "is no Maildir, it has no `cur`; mbox files are asked over IMAP, without --maildir"
    return "is no Maildir: it has no `cur`"
