"""The road through IMAP: APPEND, with the received date the message had, its folder and its flags.

Nothing is filtered on this road and nobody is told. Connections are kept for a while, since the mails of a
whole server come by time and not by mailbox; each is used by one lane at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from imapclient.exceptions import IMAPClientAbortError, IMAPClientError

from sidecar.live.connect import imap_server
from sidecar.live.imap import ImapMailbox
from sidecar.live.mailbox import FLAG, LiveError, LoginError
from sidecar.live.users import imap_user
from sidecar.replay.road import Answered, Failed, Lane, LostError
from sidecar.replay.targets import Target
from sidecar.sections import ImapConfig
from store.errors import StoreError
from store.fleet import Archive
from store.records import Delivery, Leg

T = TypeVar("T")

INBOX = "INBOX"
_IDLE_FOR_EACH_LANE = 8
_IDLE_S = 120.0
_NO_LOGIN_S = 60.0
"""how long a refused login is believed: servers take seconds for each"""


class NotSentError(Exception):
    """This one cannot be sent, whatever others can: the mailbox lets nobody in."""


class ImapRoad:
    """`folder` "" and `flags` None: as an import kept them, else the inbox and none."""

    depth = 1

    def __init__(
        self, store: Archive, config: ImapConfig, *, folder: str = "", flags: tuple[str, ...] | None = None,
        lanes: int = 1,
    ) -> None:  # fmt: skip
        self.store = store
        self.server = imap_server(config)
        self.name = f"imap:{config.server}" + (f"/{folder}" if folder else "")
        self._config = config
        self._folder = folder
        self._flags = flags
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="append")
        self._most_idle = lanes * _IDLE_FOR_EACH_LANE
        self._idle: OrderedDict[int, tuple[ImapMailbox, float]] = OrderedDict()
        self._no_login: dict[str, tuple[float, str]] = {}
        self._made: dict[tuple[str, str], str] = {}

    def user(self, recipient: bytes) -> str:
        """Whose mailbox it is."""
        return imap_user(recipient, self._config)

    def folder(self, delivery: Delivery) -> str:
        """Where a message goes."""
        return self._folder or _kept(delivery, "folder") or INBOX

    def flags(self, delivery: Delivery) -> tuple[str, ...]:
        """What it is marked with. `\\Recent` is the server's own; what cannot be said in IMAP at all is left
        out (a Maildir may have such keywords): the message matters more."""
        flags = tuple(_kept(delivery, "flags").split()) if self._flags is None else self._flags
        return tuple(flag for flag in flags if FLAG.fullmatch(flag) and flag.lower() != "\\recent")

    def lane(self) -> Lane:
        """One of the threads that append."""
        return _Lane(self)

    def close(self) -> None:
        """Log out."""
        self._threads.shutdown()
        while self._idle:
            self._idle.popitem()[1][0].close()

    async def do(self, work: Callable[[], T]) -> T:
        """In one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def take(self, user: str) -> ImapMailbox | None:
        """A connection that nobody uses, if it is fresh enough to be believed in."""
        for name, (mailbox, used) in reversed(self._idle.items()):
            if mailbox.user == user:
                del self._idle[name]
                if time.monotonic() - used < _IDLE_S:
                    return mailbox
                mailbox.close()
                return None
        return None

    def give_back(self, mailbox: ImapMailbox) -> ImapMailbox | None:
        """Nobody uses it now; what is returned is one too many, to be closed."""
        self._idle[id(mailbox)] = (mailbox, time.monotonic())
        return self._idle.popitem(last=False)[1][0] if len(self._idle) > self._most_idle else None

    def connect(self, user: str) -> ImapMailbox:
        """A new connection. Raises `LostError`, `NotSentError`."""
        until, why = self._no_login.get(user, (0.0, ""))
        if time.monotonic() < until:
            raise NotSentError(why)
        try:
            return ImapMailbox(self.server, user)
        except LoginError as exc:
            self._no_login[user] = (time.monotonic() + _NO_LOGIN_S, str(exc))
            raise NotSentError(str(exc)) from exc
        except LiveError as exc:
            raise LostError(str(exc), connected=False, code=LiveError.exit_code) from exc

    def make_folder(self, mailbox: ImapMailbox, folder: str) -> str:
        """Once for each mailbox; its name there. Raises `LiveError`."""
        if folder.upper() == INBOX:
            return INBOX
        name = self._made.get((mailbox.user, folder))
        if name is None:
            name = folder
            if "/" in folder and (separator := mailbox.separator()):
                name = folder.replace("/", separator)  # where it is another one, no name has a slash
            mailbox.make_folder(name)
            self._made[mailbox.user, folder] = name
        return name


def _kept(delivery: Delivery, name: str) -> str:
    """What an import noted of where a message was."""
    if delivery.leg != Leg.IMPORT:
        return ""
    return delivery.attributes.get(name, b"").decode("utf-8", "replace")


class _Lane:
    def __init__(self, road: ImapRoad) -> None:
        self._road = road

    async def put(self, targets: Sequence[Target], answered: Answered, failed: Failed) -> None:
        """See `Lane`."""
        for target in targets:
            try:
                reply = await self._one(target)
            except NotSentError as exc:
                failed(target, str(exc), LoginError.exit_code)
            except StoreError as exc:
                failed(target, str(exc))
            else:
                answered(target, reply)

    async def _one(self, target: Target) -> bytes:
        road = self._road
        user = road.user(target.recipient)
        known = road.take(user)
        mailbox = known if known is not None else await road.do(lambda: road.connect(user))
        sound = False
        try:
            reply = await road.do(lambda: self._append(mailbox, target))
            sound = True
        except StoreError:
            sound = True  # nothing was sent
            raise
        except asyncio.CancelledError:
            mailbox.abort()  # the thread cannot be cancelled, and would wait for minutes
            raise
        finally:
            too_many = road.give_back(mailbox) if sound else mailbox
            if too_many is not None:
                await road.do(too_many.close)
        return reply

    def _append(self, mailbox: ImapMailbox, target: Target) -> bytes:
        delivery = target.delivery
        message = b"".join(self._road.store.read(delivery.content))  # its end is the proof of the whole
        folder = self._road.folder(delivery)
        sending = False
        try:
            folder = self._road.make_folder(mailbox, folder)
            sending = True
            said = mailbox.append(
                folder, message, received_us=delivery.time_us, flags=self._road.flags(delivery)
            )
        except LiveError as exc:
            if isinstance(exc.__cause__, IMAPClientError) and not isinstance(
                exc.__cause__, IMAPClientAbortError
            ):
                return f"450 4.2.0 {exc}".encode()
            raise LostError(str(exc), in_doubt=sending) from exc
        return f"250 2.0.0 {said}".encode()

    async def close(self) -> None:
        """Connections are the road's."""
