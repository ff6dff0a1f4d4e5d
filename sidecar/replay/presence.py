"""Which targets a mailbox has already: looked for over IMAP in all folders, by content, else by headers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from sidecar.live.connect import imap_server
from sidecar.live.imap import ImapMailbox
from sidecar.live.mailbox import LiveError
from sidecar.live.matching import MOST_BYTES, Comparison, compare
from sidecar.live.users import imap_user
from sidecar.replay.road import StoppedError
from sidecar.replay.targets import Item, Outcome, Result, Target, unread
from sidecar.sections import ImapConfig
from store.errors import StoreError
from store.fleet import Archive
from store.ids import FOREVER_US, ContentId, DeliveryId, now_us
from store.records import Delivery

_SETTLED_S = 3.0
"""what a killed run had just sent may still be on its way into the mailbox"""

_Waiting = tuple[DeliveryId, bytes, int]


class Presence:
    """Looks into mailboxes. `stopped` is asked again and again; what it says ends the look with
    `StoppedError`."""

    def __init__(
        self, store: Archive, config: ImapConfig, stopped: Callable[[], bool] = lambda: False,
        as_of_us: int = FOREVER_US, *, strict: bool = False,
    ) -> None:  # fmt: skip
        """`strict`: a mailbox that cannot be looked into is an error. Raises `ConfigError`."""
        self._store = store
        self._config = config
        self._server = imap_server(config)
        self._stopped = stopped
        self._as_of_us = as_of_us
        self._strict = strict

    def sift(self, targets: Iterable[Item], *, since_us: int = 0) -> Iterator[Item]:
        """Mailbox by mailbox, those that are in no folder as they are, and a result for each of the others.

        Only messages received since `since_us` count. Where a mailbox cannot be looked into, its targets come
        as results that say why. Results given pass. Raises `StoppedError`, `StoreError`, with `strict` also
        `LiveError`.
        """
        waiting: dict[str, list[_Waiting]] = {}
        for target in targets:
            self._check()
            if isinstance(target, Result):
                yield target
            else:  # as little of each as will do: there may be a million
                user = imap_user(target.recipient, self._config)
                waiting.setdefault(user, []).append((target.delivery.id, target.recipient, target.begun_us))
        for user in list(waiting):
            yield from self._one(user, waiting.pop(user), since_us)

    def _one(self, user: str, waiting: list[_Waiting], since_us: int) -> Iterator[Item]:
        self._let_settle(max(begun_us for _, _, begun_us in waiting))
        deliveries: dict[DeliveryId, Delivery] = {}
        lost: dict[DeliveryId, str] = {}
        for delivery, _, _ in waiting:
            self._check()
            try:
                deliveries[delivery] = self._store.delivery(delivery, self._as_of_us).delivery
            except StoreError as exc:  # removed meanwhile, or damaged since
                lost[delivery] = str(exc)
        found, why, code = Comparison(), "", 0
        try:
            with closing(ImapMailbox(self._server, user)) as mailbox:
                found = compare(
                    mailbox, list(deliveries.values()), since_us=since_us,
                    advance=lambda _number: self._check(), read=self._read, is_known=self._is_known,
                )  # fmt: skip
        except LiveError as exc:
            if self._strict:
                raise
            why, code = str(exc), exc.exit_code
        for delivery, recipient, begun_us in waiting:
            if delivery in lost:
                gone = Target(unread(delivery), recipient, begun_us)
                yield Result(gone, Outcome.IN_DOUBT if begun_us else Outcome.REFUSED, why=lost[delivery])
                continue
            target = Target(deliveries[delivery], recipient, begun_us)
            match = found.present.get(delivery)
            if why:
                yield Result(
                    target, Outcome.IN_DOUBT if begun_us else Outcome.NOT_ATTEMPTED, why=why, code=code
                )
            elif match is not None:
                yield Result(target, Outcome.THERE, how=match.how, folder=match.message.folder)
            else:
                yield Target(target.delivery, recipient)

    def _is_known(self, content: ContentId) -> bool:
        return bool(self._store.with_content(content))

    def _read(self, delivery: Delivery) -> bytes | None:
        """A captured message; None where it cannot be read, or is too large to be held."""
        self._check()
        try:
            return b"".join(self._store.read(delivery.content)) if delivery.size <= MOST_BYTES else None
        except StoreError:
            return None

    def _let_settle(self, begun_us: int) -> None:
        # The clock may have been set back since: no longer than that in any case.
        left_s = min(_SETTLED_S - (now_us() - begun_us) / 1e6, _SETTLED_S) if begun_us else 0.0
        until = time.monotonic() + left_s
        while time.monotonic() < until:
            self._check()
            time.sleep(0.1)

    def _check(self) -> None:
        if self._stopped():
            raise StoppedError
