"""What a source of mail is, whatever its kind."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from sidecar.intake import Found
from store.ids import FOREVER_US

PIECE_BYTES = 256 << 10


class SourceError(Exception):
    """The source cannot be read at all; the text names it and says why, `hint` says what to do."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that ought to be mail and cannot be read: where, and why."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Whose mail it is, what to put before the names of its folders, and when it was received: since
    (inclusive), until (exclusive), in µs."""

    recipient: bytes
    prefix: str = ""
    since_us: int = 0
    until_us: int = FOREVER_US

    def folder(self, name: str) -> str:
        """The folder's name with the prefix."""
        return "/".join(part for part in (self.prefix, name) if part)

    def at(self, received_us: int) -> bool:
        """Whether what was received then is wanted. A clock that was before 1970 is no reason to leave it."""
        return self.since_us <= max(received_us, 0) < self.until_us


class Source(Protocol):
    """Mail somewhere. `kind` is what `--format` calls it, `total` how many messages there are, 0 where that
    is not known. `known`: how many were left out because they are in the store."""

    kind: str
    total: int
    known: int

    def messages(self, wanted: Wanted) -> Generator[Found | Skipped]:
        """Every message, and whatever cannot be read. Raises `SourceError` or `LiveError` when nothing more
        can be had."""
