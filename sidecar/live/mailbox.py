"""What a live mailbox is, whatever it lies in: folders with messages, each with the facts that identify it.

Looking changes nothing: no message becomes read or loses its mark of being new.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from store.ids import FOREVER_US

FLAG = re.compile(r"""\\?[!#$&'+,./:;<=>?@A-Z^_`a-z|}~0-9-]+""")
"""A system flag or a keyword as servers take it (RFC 9051 9, flag)."""


class LiveError(Exception):
    """The mailbox server, or the Maildir, cannot be asked; the text says who said what."""

    hint = "Nothing was changed. Mend what is named, and run the same command again."
    exit_code = 40


class LoginError(LiveError):
    """The server does not let us in."""

    hint = "Look at [imap]: the user, the master user and the files with passwords."
    exit_code = 41


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMessage:
    """One message in one folder. `size` is what the server says (RFC822.SIZE), in bytes, with CRLF line ends;
    `received_us` the INTERNALDATE, in whole seconds; `message_id` and `date` are the values of these header
    fields, unfolded, b"" for none."""

    folder: str
    uid: str
    size: int
    received_us: int
    flags: tuple[str, ...] = ()
    message_id: bytes = b""
    date: bytes = b""


class LiveMailbox(Protocol):
    """One user's mail. To be closed by whoever opened it. Every method may raise `LiveError`."""

    user: str

    def folders(self) -> list[str]:
        """The names of all folders that hold messages, INBOX first. Those of other users, or of all, are none
        of theirs, though they may be looked into."""

    def mark(self, folder: str) -> str:
        """Something that is another text as soon as a message has come into the folder."""

    def messages(self, folder: str, since_us: int = 0, until_us: int = FOREVER_US) -> Iterator[LiveMessage]:
        """What a folder holds, oldest first, without its bytes. The interval is of `received_us`, and widened
        to whole days where the server knows no better: look again."""

    def fetch(self, messages: Sequence[LiveMessage]) -> Iterator[tuple[LiveMessage, bytes]]:
        """The bytes of messages (all of one folder), as the server gives them. One that has gone meanwhile is
        left out."""

    def headers(self, messages: Sequence[LiveMessage]) -> Iterator[tuple[LiveMessage, bytes]]:
        """Their header blocks alone, in the same way."""

    def close(self) -> None:
        """Let go. Idempotent, and raises nothing."""
