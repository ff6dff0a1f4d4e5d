"""An IMAP account with all its folders; nothing in it is changed, and no message becomes read.

Where a message lay is kept with it: server, user, folder, UIDVALIDITY and UID, as a URL (RFC 5092). What was
taken from there before is known by that and not fetched again. Several connections fetch at once; each holds
some messages whole, and no more than a few.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import quote, unquote, urlsplit

from sidecar.intake import Found
from sidecar.live.imap import ImapMailbox, ImapServer
from sidecar.live.mailbox import LiveError, LiveMessage
from sidecar.sources.source import Skipped, SourceError, Wanted
from sidecar.units import Address
from store.deliveries import Query
from store.loopback import LOOPBACK
from store.records import Leg
from store.rows import Term
from store.store import Store

PASSWORD_VARIABLE = "MAILKEEP_IMAP_PASSWORD"  # noqa: S105 - a name, not a password
SCHEMES = {"imap": 143, "imaps": 993}
_BATCH_MESSAGES = 200
_BATCH_BYTES = 8 << 20


def is_url(source: str) -> bool:
    """Whether a source is written as an IMAP URL."""
    return source.partition("://")[0].lower() in SCHEMES and "://" in source


def account(url: str) -> tuple[Address, str, str]:
    """(address, user, "tls" or "starttls" or "none") of `imap://USER@HOST[:PORT]` or `imaps://…`. Without TLS
    on loopback only. Raises `SourceError`."""
    parts = urlsplit(url)
    try:
        port = parts.port or SCHEMES[parts.scheme]
    except ValueError as exc:
        raise SourceError(f"{url}: the port is no number") from exc
    if parts.password is not None:
        raise SourceError(
            "the URL has a password in it, which everybody on this machine can see",
            f"Leave it out: it is asked for, or taken from {PASSWORD_VARIABLE}.",
        )
    if not parts.hostname or not parts.username or parts.path.strip("/") or parts.query:
        raise SourceError(f"{url}: write imap://USER@HOST[:PORT] or imaps://USER@HOST[:PORT]")
    plain = "none" if parts.hostname in LOOPBACK else "starttls"
    tls = "tls" if parts.scheme == "imaps" else plain
    return Address(parts.hostname, port), unquote(parts.username), tls


def password_for(user: str) -> str:
    """The user's password from the environment, else from the terminal. Raises `SourceError`."""
    import getpass
    import sys

    if password := os.environ.get(PASSWORD_VARIABLE):
        return password
    if not sys.stdin.isatty():
        raise SourceError(f"there is no password for {user}", f"Put it into {PASSWORD_VARIABLE}.")
    return getpass.getpass(f"IMAP password of {user}: ")


def taken_before(store: Store, recipient: bytes) -> set[str]:
    """Where the mail lay that was imported by IMAP for a recipient, as origins."""
    found = set()
    for stored in store.deliveries(Query(terms=((Term.RECIPIENT, recipient.lower()),))):
        origin = stored.delivery.attributes.get("origin", b"")
        if stored.delivery.leg == Leg.IMPORT and origin.startswith(b"imap:"):
            found.add(origin.decode("utf-8", "replace"))
    return found


class ImapSource:
    """A user's account. `done` are origins that need not be fetched. See `Source`."""

    kind = "imap"
    total = 0

    def __init__(
        self, server: ImapServer, user: str, *, connections: int = 2, done: AbstractSet[str] = frozenset()
    ) -> None:
        self._server = server
        self._user = user
        self._connections = connections
        self._done = done
        self.known = 0
        self._own = threading.local()
        self._open: list[ImapMailbox] = []

    def messages(self, wanted: Wanted) -> Generator[Found | Skipped]:
        """See `Source`."""
        pool = ThreadPoolExecutor(self._connections, thread_name_prefix="imap")
        waiting: deque[Future[list[Found | Skipped]]] = deque()
        try:
            for batch in self._batches(wanted):
                if isinstance(batch, Skipped):
                    yield batch
                    continue
                waiting.append(pool.submit(self._fetch, batch, wanted))
                while len(waiting) > self._connections:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            for mailbox in self._open:
                mailbox.close()
            self._open.clear()

    def _connect(self) -> ImapMailbox:
        mailbox = ImapMailbox(self._server, self._user)
        self._open.append(mailbox)
        return mailbox

    def _batches(self, wanted: Wanted) -> Iterator[list[tuple[str, LiveMessage]] | Skipped]:
        """What is to be fetched, each with its origin; or a folder that cannot be looked into."""
        mailbox = self._connect()
        for folder in mailbox.folders():
            try:
                where = f"{self._where(folder)};UIDVALIDITY={mailbox.uid_validity(folder)}"
                yield from self._batches_of(mailbox, folder, where, wanted)
            except LiveError as exc:
                yield Skipped(self._where(folder), str(exc))
                mailbox.close()
                mailbox = self._connect()  # and if the server is gone, this says so

    def _batches_of(
        self, mailbox: ImapMailbox, folder: str, where: str, wanted: Wanted
    ) -> Iterator[list[tuple[str, LiveMessage]]]:
        batch: list[tuple[str, LiveMessage]] = []
        size = 0
        for message in mailbox.messages(folder, wanted.since_us, wanted.until_us):
            origin = f"{where}/;UID={message.uid}"
            if not wanted.at(message.received_us):
                continue
            if origin in self._done:
                self.known += 1
                continue
            if batch and (len(batch) == _BATCH_MESSAGES or size + message.size > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append((origin, message))
            size += message.size
        if batch:
            yield batch

    def _fetch(self, batch: list[tuple[str, LiveMessage]], wanted: Wanted) -> list[Found | Skipped]:
        mailbox = getattr(self._own, "mailbox", None)
        if mailbox is None:
            mailbox = self._own.mailbox = self._connect()
        origins = {message.uid: origin for origin, message in batch}
        found: list[Found | Skipped] = []
        for message, raw in mailbox.fetch([message for _, message in batch]):
            found.append(
                Found(
                    origin=origins.pop(message.uid), recipient=wanted.recipient,
                    received_us=message.received_us, folder=wanted.folder(message.folder),
                    flags=_kept(message.flags), pieces=lambda raw=raw: [raw],  # type: ignore[misc]  # mypy cannot infer a lambda's default
                )
            )  # fmt: skip
        found += [Skipped(origin, "is not there any more") for origin in origins.values()]
        return found

    def _where(self, folder: str) -> str:
        return f"imap://{quote(self._user, safe='@')}@{self._server.address}/{quote(folder)}"


def _kept(flags: tuple[str, ...]) -> tuple[str, ...]:
    """\\Recent is of a session, not of the message."""
    return tuple(flag for flag in flags if flag.lower() != "\\recent")
