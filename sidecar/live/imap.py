"""A live mailbox over IMAP (RFC 3501, 9051), by one user's login or by a master user.

A master user is Dovecot's and Cyrus' way to let one password into every mailbox: logins are `user*master`.
One connection belongs to one thread; open as many as there are threads.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from imapclient import IMAPClient, SocketTimeout
from imapclient.exceptions import IMAPClientError
from imapclient.exceptions import LoginError as RefusedError

from sidecar.live.fields import id_and_date
from sidecar.live.mailbox import LiveError, LiveMessage, LoginError
from sidecar.readable import escaped
from sidecar.units import Address
from store.ids import FOREVER_US

CONNECT_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 300.0
_AT_ONCE = 500
"""messages whose facts are asked for in one command"""
_AT_ONCE_BYTES = 8 << 20
"""about so many bytes of messages are fetched by one command, and held here"""
_FACTS = ("RFC822.SIZE", "INTERNALDATE", "FLAGS", "BODY.PEEK[HEADER.FIELDS (MESSAGE-ID DATE)]")
_LONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_ATOM = re.compile(r"[!#$&'*+,./:;<=>?@A-Z\[^_`a-z|}~0-9-]+")
_NO_SELECT = frozenset({b"\\noselect", b"\\nonexistent"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImapServer:
    """Where the live mailboxes are and how to get in. `tls`: "none", "starttls" or "tls". With a `master`
    user `password` is the master's and opens every mailbox; else `passwords` has each user's own."""

    address: Address
    tls: str = "none"
    ca: Path | None = None
    master: str = ""
    separator: str = "*"
    password: str = field(default="", repr=False)
    passwords: dict[str, str] | None = field(default=None, repr=False)
    named: str = ""
    """the key that names it"""

    def __str__(self) -> str:
        return f"IMAP server {self.address} of {self.named}" if self.named else f"IMAP server {self.address}"

    def login(self, user: str) -> tuple[str, str]:
        """The name and the password for a user. Raises `LoginError`."""
        if any(
            ord(sign) < 32 or ord(sign) == 127 for sign in user
        ):  # to IMAP they end a line, to PLAIN a name
            raise LoginError(f"{escaped(user)} is no login: it has a control character")
        if self.master:
            return f"{user}{self.separator}{self.master}", self.password
        own = (self.passwords or {}).get(user)
        if own is None:
            raise LoginError(f"there is no password for {user}, and no master user")
        return user, own


class ImapMailbox:
    """A connection that is logged in as one user; a context manager. See `LiveMailbox`."""

    def __init__(self, server: ImapServer, user: str) -> None:
        """Raises `LiveError`, `LoginError`."""
        self.user = user
        self.server = server
        self._selected: tuple[str, bool] | None = None
        name, password = server.login(user)
        with self._told("cannot be reached"):
            self._client = self._connect()
        try:
            with self._told("refuses the login"):
                if _ATOM.fullmatch(name) and password.isascii():  # the library quotes no name
                    self._client.login(name, password)
                else:
                    self._client.plain_login(name, password)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> IMAPClient:
        address, server = self.server.address, self.server
        context = ssl.create_default_context(cafile=server.ca) if server.tls != "none" else None
        client = IMAPClient(
            address.host,
            address.port,
            ssl=server.tls == "tls",
            ssl_context=context,
            timeout=SocketTimeout(CONNECT_TIMEOUT_S, REPLY_TIMEOUT_S),
        )
        client.normalise_times = False
        if server.tls == "starttls":
            client.starttls(context)
        return client

    def folders(self) -> list[str]:
        """See `LiveMailbox`."""
        with self._told("does not list folders"):
            found = self._client.list_folders()
            names = [
                str(name) for flags, _, name in found if not _NO_SELECT & {flag.lower() for flag in flags}
            ]
        strange = self._strangers()
        names = [name for name in names if not name.startswith(strange)]
        return sorted(names, key=lambda name: (name.upper() != "INBOX", name))

    def _strangers(self) -> tuple[str, ...]:
        """What the names of folders begin with that belong to others, or to all (RFC 2342)."""
        if not self._client.has_capability("NAMESPACE"):
            return ()
        with self._told("does not name its namespaces"):
            try:
                known = self._client.namespace()
            except ValueError:  # one with extensions, which the library does not read
                return ()
        return tuple(
            str(prefix) for kind in (known.other, known.shared) for prefix, _ in kind or () if prefix
        )

    def mark(self, folder: str) -> str:
        """See `LiveMailbox`."""
        self._selected = None  # a folder that is open may show what came only when it is opened anew
        with self._told(f"does not tell of {folder}"):
            status = self._client.folder_status(folder, ["UIDVALIDITY", "UIDNEXT"])
        return f"{status.get(b'UIDVALIDITY')}.{status.get(b'UIDNEXT')}"

    def uid_validity(self, folder: str) -> int:
        """What a folder's UIDs belong to (RFC 3501 2.3.1.1): with another one they mean other messages.
        Raises `LiveError`."""
        with self._told(f"does not tell of {folder}"):
            return int(self._client.folder_status(folder, ["UIDVALIDITY"])[b"UIDVALIDITY"])

    def messages(self, folder: str, since_us: int = 0, until_us: int = FOREVER_US) -> Iterator[LiveMessage]:
        """See `LiveMailbox`; by whole days."""
        self._select(folder)
        with self._told(f"does not search {folder}"):
            uids = sorted(self._client.search(_criteria(since_us, until_us)))
        for at in range(0, len(uids), _AT_ONCE):
            asked = uids[at : at + _AT_ONCE]
            with self._told(f"does not tell what is in {folder}"):
                facts = self._client.fetch(asked, _FACTS)
                # Of one deleted since the search nothing is told; any other is there, whatever it lacks.
                known = [_live(folder, uid, facts[uid]) for uid in asked if facts.get(uid)]
            yield from known

    def fetch(self, messages: Sequence[LiveMessage]) -> Iterator[tuple[LiveMessage, bytes]]:
        """See `LiveMailbox`."""
        return self._give(_batches(messages), "")

    def headers(self, messages: Sequence[LiveMessage]) -> Iterator[tuple[LiveMessage, bytes]]:
        """See `LiveMailbox`."""
        batches = (messages[at : at + _AT_ONCE] for at in range(0, len(messages), _AT_ONCE))
        return self._give(batches, "HEADER")

    def _give(
        self, batches: Iterable[Sequence[LiveMessage]], part: str
    ) -> Iterator[tuple[LiveMessage, bytes]]:
        for batch in batches:
            self._select(batch[0].folder)
            with self._told(f"does not give what is in {batch[0].folder}"):
                found = self._client.fetch([int(message.uid) for message in batch], (f"BODY.PEEK[{part}]",))
            for message in batch:
                data = found.get(int(message.uid), {}).get(b"BODY[%b]" % part.encode())
                if isinstance(data, bytes):
                    yield message, data

    def append(self, folder: str, raw: bytes, *, received_us: int, flags: Sequence[str] = ()) -> str:
        """Put a message into a folder, with the received date it had; the server's words. Raises
        `LiveError`."""
        moment = datetime.fromtimestamp(received_us // 1_000_000, UTC)
        with self._told(f"does not take a message into {folder}"):
            # `append` would turn every lone CR or LF into a line end; `multiappend` passes bytes as they are.
            if self._client.has_capability("MULTIAPPEND"):
                message = {"msg": raw, "flags": flags, "date": moment}
                kind, said = self._client.multiappend(folder, [message])
                if kind != "OK":
                    raise IMAPClientError(b" ".join(said).decode("utf-8", "replace"))
                return b" ".join(said).decode("utf-8", "replace")
            if _LONE.search(raw):
                raise IMAPClientError(
                    "it knows no MULTIAPPEND, and lone line ends would not stay as they are"
                )
            answer: bytes = self._client.append(folder, raw, flags, moment)
        return answer.decode("utf-8", "replace")

    def separator(self) -> str:
        """What stands between a folder and one below it; "" where there is none. Raises `LiveError`."""
        with self._told("does not name its separator"):
            found = self._client.list_folders("", "")
        return (found[0][1] or b"").decode("ascii", "replace") if found else ""

    def make_folder(self, folder: str) -> bool:
        """Make a folder, and subscribe to it, unless it is there; whether it is new. Raises `LiveError`."""
        with self._told(f"does not make {folder}"):
            found = self._client.list_folders("", folder)
            # What only has folders below it is listed, too, and takes no messages until it is made.
            if any(not _NO_SELECT & {flag.lower() for flag in flags} for flags, _, _ in found):
                return False
            self._client.create_folder(folder)
            self._client.subscribe_folder(folder)
            return True

    def delete(self, messages: Sequence[LiveMessage]) -> None:
        """Delete messages of one folder for good. Raises `LiveError`."""
        if messages:
            self._select(messages[0].folder, readonly=False)
            with self._told(f"does not delete in {messages[0].folder}"):
                uids = [int(message.uid) for message in messages]
                self._client.delete_messages(uids, silent=True)
                self._client.expunge(uids if self._client.has_capability("UIDPLUS") else None)

    def abort(self) -> None:
        """From any thread: whoever waits for an answer gets a `LiveError` at once."""
        with contextlib.suppress(AttributeError, OSError):
            self._client.socket().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `LiveMailbox`."""
        client = getattr(self, "_client", None)
        if client is not None:
            del self._client
            with contextlib.suppress(IMAPClientError, OSError):
                client.logout()
            with contextlib.suppress(IMAPClientError, OSError):
                client.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _select(self, folder: str, *, readonly: bool = True) -> None:
        if self._selected != (folder, readonly):
            with self._told(f"does not open {folder}"):
                self._client.select_folder(folder, readonly=readonly)
            self._selected = (folder, readonly)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever goes wrong within is told as what the server did not do."""
        where = escaped(f"{self.server}, {self.user}")
        what = escaped(what)
        try:
            yield
        except RefusedError as exc:
            raise LoginError(f"{where}: {what}: {_words(exc)}") from exc
        except (IMAPClientError, OSError, ssl.SSLError) as exc:
            self._selected = None
            raise LiveError(f"{where}: {what}: {_words(exc)}") from exc
        except (AttributeError, ValueError, TypeError, LookupError, AssertionError, OverflowError) as exc:
            if not hasattr(self, "_client"):
                raise LiveError(f"{where}: the connection is closed") from exc
            # The library takes much of what a server says for granted.
            self._selected = None
            raise LiveError(f"{where}: {what}: its answer makes no sense ({_words(exc)})") from exc


def _words(exc: Exception) -> str:
    if isinstance(exc, socket.timeout):
        return "no answer in time"
    if isinstance(exc, OSError) and exc.strerror and not isinstance(exc, ssl.SSLError):
        return escaped(exc.strerror)
    text = escaped(" ".join(str(exc).split()))
    return text.removeprefix("b'").removesuffix("'") or type(exc).__name__


def _criteria(since_us: int, until_us: int) -> list[Any]:
    """IMAP knows days only, in the server's own zone: a day more on each side."""
    criteria: list[Any] = []
    if since_us > 0:
        criteria += ["SINCE", _day(since_us, -1)]
    if until_us < FOREVER_US:
        criteria += ["BEFORE", _day(until_us, 2)]
    return criteria or ["ALL"]


def _day(time_us: int, days: int) -> Any:
    return (datetime.fromtimestamp(time_us / 1e6, UTC) + timedelta(days=days)).date()


def _live(folder: str, uid: int, facts: dict[bytes, Any]) -> LiveMessage:
    header = next((value for name, value in facts.items() if name.startswith(b"BODY[HEADER.FIELDS")), b"")
    message_id, date = id_and_date(header)
    size = facts.get(b"RFC822.SIZE")
    received: datetime | None = facts.get(b"INTERNALDATE")
    return LiveMessage(
        folder=folder,
        uid=str(uid),
        size=size if isinstance(size, int) else 0,
        received_us=round(received.timestamp()) * 1_000_000 if received else 0,
        flags=tuple(flag.decode("ascii", "replace") for flag in facts.get(b"FLAGS") or ()),
        message_id=message_id,
        date=date,
    )


def _batches(messages: Sequence[LiveMessage]) -> Iterator[list[LiveMessage]]:
    batch: list[LiveMessage] = []
    size = 0
    for message in messages:
        if batch and (size + message.size > _AT_ONCE_BYTES or len(batch) == _AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += message.size
    if batch:
        yield batch
