"""What a person's mail program sees: one user's folder, read and changed over IMAP.

Gives the bytes as the server stores them; interprets none of them.
"""

from __future__ import annotations

import imaplib
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

_UID = re.compile(rb"UID (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMail:
    """One message in a folder: its IMAP UID and its exact bytes."""

    uid: int
    raw: bytes


class Mailbox:
    """A logged-in IMAP connection with one folder selected; a context manager.

    Every method may raise imaplib.IMAP4.error or OSError.
    """

    def __init__(self, host: str, port: int, user: str, password: str, *, folder: str = "INBOX") -> None:
        self._imap = imaplib.IMAP4(host, port, timeout=30)
        try:
            self._imap.login(user, password)
            _ok(self._imap.select(folder))
        except BaseException:
            self._imap.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._imap.logout()

    def count(self) -> int:
        """How many messages the folder holds now."""
        self._imap.noop()
        return len(_ok(self._imap.uid("SEARCH", "ALL"))[0].split())

    def messages(self) -> list[StoredMail]:
        """All messages of the folder, oldest first. BODY.PEEK leaves them unread."""
        self._imap.noop()
        if not _ok(self._imap.uid("SEARCH", "ALL"))[0]:
            return []
        fetched = _ok(self._imap.uid("FETCH", "1:*", "(UID BODY.PEEK[])"))
        return [
            StoredMail(uid=int(uid[1]), raw=item[1])
            for item in fetched
            if isinstance(item, tuple) and (uid := _UID.search(item[0]))
        ]

    def delete(self, uid: int) -> None:
        """Delete one message for good."""
        _ok(self._imap.uid("STORE", str(uid), "+FLAGS.SILENT", "(\\Deleted)"))
        _ok(self._imap.expunge())


def _ok(answer: tuple[str, list[Any]]) -> list[Any]:
    status, data = answer
    if status != "OK":
        raise imaplib.IMAP4.error(f"IMAP answered {status}: {data!r}")
    return data
