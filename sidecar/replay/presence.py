"""Which targets a mailbox has already: looked for over IMAP in all folders, by content, else by headers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from sidecar.config import ImapConfig
from sidecar.live.connect import imap_server
from sidecar.live.imap import ImapMailbox
from sidecar.live.mailbox import LiveError
from sidecar.live.matching import Comparison, compare
from sidecar.live.users import imap_user
from sidecar.replay.road import StoppedError
from sidecar.replay.targets import Item, Outcome, Result, Target
from store.errors import StoreError
from store.ids import DeliveryId, now_us
from store.records import Delivery
from store.store import FOREVER_US, Store

_SETTLED_S = 3.0
"""what a killed run had just sent may still be on its way into the mailbox"""


class Presence:
    """Looks into mailboxes. `stopped` is asked again and again; what it says ends the look with
    `StoppedError`."""

    def __init__(
        self, store: Store, config: ImapConfig, stopped: Callable[[], bool] = lambda: False,
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
        waiting: dict[str, list[tuple[DeliveryId, bytes, int]]] = {}
        for target in targets:
            self._check()
            if isinstance(target, Result):
                yield target
            else:  # as little of each as will do: there may be a million
                user = imap_user(target.recipient, self._config)
                waiting.setdefault(user, []).append((target.delivery.id, target.recipient, target.begun_us))
        for user in list(waiting):
            yield from self._one(user, waiting.pop(user), since_us)

    def _one(self, user: str, waiting: list[tuple[DeliveryId, bytes, int]], since_us: int) -> Iterator[Item]:
        self._let_settle(max(begun_us for _, _, begun_us in waiting))
        deliveries: dict[DeliveryId, Delivery] = {}
        for delivery, _, _ in waiting:
            self._check()
            try:
                deliveries[delivery] = self._store.delivery(delivery, self._as_of_us).delivery
            except StoreError:  # removed meanwhile, or damaged since
                continue
        found, why = Comparison(), ""
        try:
            with closing(ImapMailbox(self._server, user)) as mailbox:
                found = compare(
                    mailbox, list(deliveries.values()), since_us=since_us,
                    advance=lambda _number: self._check(),
                )  # fmt: skip
        except LiveError as exc:
            if self._strict:
                raise
            why = str(exc)
        for delivery, recipient, begun_us in waiting:
            if delivery not in deliveries:
                continue
            target = Target(deliveries[delivery], recipient, begun_us)
            match = found.present.get(delivery)
            if why:
                yield Result(target, Outcome.IN_DOUBT if begun_us else Outcome.NOT_ATTEMPTED, why=why)
            elif match is not None:
                yield Result(target, Outcome.THERE, how=match.how, folder=match.message.folder)
            else:
                yield Target(target.delivery, recipient)

    def _let_settle(self, begun_us: int) -> None:
        while begun_us and now_us() - begun_us < _SETTLED_S * 1e6:
            self._check()
            time.sleep(0.1)

    def _check(self) -> None:
        if self._stopped():
            raise StoppedError
