"""Which kind of source something on disk is, by looking at it."""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path

from sidecar.sources.eml import HEADER_FIELD, SUFFIX, EmlSource
from sidecar.sources.files import files_below, head_of, why_no_file
from sidecar.sources.format import Format
from sidecar.sources.maildir import MaildirSource, is_maildir
from sidecar.sources.mbox import MboxSource, is_mbox
from sidecar.sources.source import Source, SourceError
from sidecar.traces import HEAD_BYTES

_LOOKED_AT = 10_000


def source_at(path: Path, format_: Format = Format.AUTO) -> Source:
    """The source at a path, of the kind that is said or that it looks like. Raises `SourceError`."""
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            os.scandir(path).close()  # a directory that may not be looked into is not an empty one
        return _source(path, _detected(path) if format_ is Format.AUTO else format_)
    except OSError as exc:
        raise SourceError(f"{exc.filename or path}: cannot be read: {exc.strerror}") from exc


def _source(path: Path, kind: Format) -> Source:
    if kind is Format.MAILDIR:
        path = _inner(path)
        if not is_maildir(path):
            raise SourceError(f"{path}: is no Maildir: there is no cur and no new in it")
        return MaildirSource(path)
    if kind is Format.MBOX:
        return MboxSource(path)
    if kind is Format.IMAP:
        raise SourceError(f"{path}: is a path; an account is written imap://USER@HOST or --imap USER")
    return EmlSource(path)


def _inner(path: Path) -> Path:
    """A user's home has the Maildir in it; the home itself is no folder of it."""
    inner = path / "Maildir"
    return inner if (inner / "cur").is_dir() and not (path / "cur").is_dir() else path


def _detected(path: Path) -> Format:
    if path.is_dir():
        return _detected_in(path)
    if reason := why_no_file(path):
        raise SourceError(f"{path}: {reason}")
    if is_mbox(path):
        return Format.MBOX
    if path.name.lower().endswith(SUFFIX) or HEADER_FIELD.match(head_of(path, HEAD_BYTES)):
        return Format.EML
    raise SourceError(
        f"{path}: is neither an mbox (its first line does not begin with 'From ') nor a message",
        "Say what it is by --format.",
    )


def _detected_in(path: Path) -> Format:
    if is_maildir(path):
        return Format.MAILDIR
    kinds = set()
    for file in islice(files_below(path, lambda _path, _why: None), _LOOKED_AT):
        try:
            if file.name.lower().endswith(SUFFIX):
                kinds.add(Format.EML)
            elif is_mbox(file):
                kinds.add(Format.MBOX)
        except OSError:  # told later, when it is its turn
            continue
    if len(kinds) == 1:
        return kinds.pop()
    if kinds:
        raise SourceError(f"{path}: has both .eml and mbox files in it", "Say which by --format.")
    raise SourceError(
        f"{path}: there is no Maildir (cur, new), no mbox and no .eml file in it",
        "Check the path, or say what it is by --format.",
    )
