"""Which deliveries a person means: filters as written, turned into index look-ups and a second look.

`list`, `export` and `replay` ask through here, so the same words find the same mail everywhere. The index
narrows down where it can; every filter is then applied to the record itself, since index terms are hashes
and may collide. Reads the store and nothing else.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import dropwhile, islice

from blake3 import blake3

from sidecar.readable import header_text
from sidecar.status import status_of
from sidecar.units import parse_time
from store.errors import DamagedError, NotFoundError, StoreError
from store.filters import address_test, as_bytes, bare, exact_address
from store.ids import DeliveryId, delivery_time_us, now_us
from store.records import Leg
from store.rows import Term
from store.snapshot import Snapshot
from store.store import FOREVER_US, Query, Store, StoredDelivery

log = logging.getLogger(__name__)

LINK_WINDOW_US = 5 * 86_400_000_000
"""how far apart the two legs of one queue id may be: Postfix gives a mail up after 5 days by default, and
uses its short queue ids again"""
_IDS_PER_LOOK = 500


def _log_damage(delivery: DeliveryId, error: StoreError) -> None:
    log.error("delivery %s: %s", delivery.hex(), error)


Damaged = Callable[[DeliveryId, StoreError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Filters that must all hold; None asks for nothing. `limit` keeps the newest so many, 0 keeps all.

    `to` and `sender` are an address, `@domain`, a pattern with `*`, or `<>`; `since` (inclusive) and `until`
    (exclusive) are as `sidecar.units.parse_time` reads them; `ids` may be abbreviated.
    """

    ids: tuple[str, ...] = ()
    to: str | None = None
    sender: str | None = None
    since: str | None = None
    until: str | None = None
    queue_id: str | None = None
    message_id: str | None = None
    subject: str | None = None
    leg: str | None = None
    status: str | None = None
    limit: int = 0

    def digest(self) -> bytes:
        """16 bytes that name this request as it was written: `--since 2h` is the same request an hour later,
        so that a replay that was interrupted is known again."""
        asked = {name: value for name, value in asdict(self).items() if value}
        return blake3(json.dumps(asked, sort_keys=True).encode()).digest(16)


def select(
    store: Store,
    selection: Selection,
    *,
    newest_first: bool = True,
    damaged: Damaged = _log_damage,
) -> Iterator[StoredDelivery]:
    """The deliveries meant, in order of time. One whose record is damaged goes to `damaged` instead.

    No look at the index stays open while the caller works, however long that takes. Oldest first, what is
    captured after the beginning is left out. Raises `ValueError` for a time that is none, `NotFoundError` and
    `AmbiguousIdError` for `ids`, and `StoreError` when the store fails.
    """
    chosen = _Chosen(store, selection)
    if newest_first:
        yield from islice(chosen.load(chosen.ids(newest_first=True), damaged), selection.limit or None)
    elif selection.limit:
        # Which ones is known only at the end; ids are small enough to keep.
        newest = islice(chosen.load(chosen.ids(newest_first=True), damaged), selection.limit)
        yield from chosen.load(reversed([stored.delivery.id for stored in newest]), damaged)
    else:
        yield from chosen.load(chosen.ids(newest_first=False), damaged)


class _Chosen:
    """A selection made ready for one store and one moment."""

    def __init__(self, store: Store, selection: Selection) -> None:
        now = now_us()
        self._store = store
        self._selection = selection
        self._since_us = 0 if selection.since is None else parse_time(selection.since, now)
        self._until_us = FOREVER_US if selection.until is None else parse_time(selection.until, now)
        self._to = None if selection.to is None else address_test(selection.to)
        self._sender = None if selection.sender is None else address_test(selection.sender)
        self._queue_id = None if selection.queue_id is None else as_bytes(selection.queue_id)
        self._message_id = None if selection.message_id is None else bare(as_bytes(selection.message_id))
        self._subject = None if selection.subject is None else selection.subject.casefold()

    def ids(self, *, newest_first: bool) -> Iterable[DeliveryId]:
        """Candidates, in order of time."""
        if self._selection.ids:
            ids = {self._store.resolve(prefix) for prefix in self._selection.ids}
            return sorted(ids, key=_order, reverse=newest_first)
        query = Query(self._since_us, self._until_us, newest_first=newest_first)
        if not newest_first:
            newest = next(_candidates(self._store, Query()), None)
            end_us = delivery_time_us(newest) + 1 if newest else 0
            query = replace(query, until_us=min(query.until_us, end_us))
        found = (_candidates(self._store, replace(query, terms=terms)) for terms in self._terms())
        return heapq.merge(*found, key=_order, reverse=newest_first)

    def _terms(self) -> Iterator[tuple[tuple[Term, bytes], ...]]:
        """What the index can be asked; several alternatives when it holds a value in several forms."""
        terms = []
        if self._queue_id is not None:
            terms.append((Term.QUEUE_ID, self._queue_id))
        for kind, pattern in ((Term.RECIPIENT, self._selection.to), (Term.SENDER, self._selection.sender)):
            if pattern is not None and (address := exact_address(pattern)) is not None:
                terms.append((kind, address))
        if self._message_id is None:
            yield tuple(terms)
        else:
            for form in (b"<%b>" % self._message_id, self._message_id):
                yield ((Term.MESSAGE_ID, form), *terms)

    def load(self, ids: Iterable[DeliveryId], damaged: Damaged) -> Iterator[StoredDelivery]:
        """Those among the candidates that all filters hold for."""
        for delivery in ids:
            try:
                stored = self._store.delivery(delivery)
            except (DamagedError, NotFoundError) as exc:
                damaged(delivery, exc)
                continue
            if self._matches(stored):
                yield stored

    def _matches(self, stored: StoredDelivery) -> bool:
        delivery = stored.delivery
        asked = self._selection
        recipients = delivery.envelope.recipients
        return (
            self._since_us <= delivery.time_us < self._until_us
            and (asked.leg is None or delivery.leg == asked.leg)
            and (self._queue_id is None or delivery.queue_id == self._queue_id)
            and (self._to is None or any(self._to(recipient.address) for recipient in recipients))
            and (self._sender is None or self._sender(delivery.envelope.sender))
            and (self._message_id is None or bare(delivery.message_id) == self._message_id)
            and (asked.status is None or status_of(stored) == asked.status)
            and (self._subject is None or self._subject in header_text(delivery.subject).casefold())
        )


def _candidates(store: Store, query: Query) -> Iterator[DeliveryId]:
    """Ids from the index, in short looks: one that stayed open would keep LMDB's old pages in use."""
    last: DeliveryId | None = None
    while True:
        with store.index.read() as snapshot:
            found = list(islice(_look(snapshot, query, last), _IDS_PER_LOOK))
        yield from found
        if len(found) < _IDS_PER_LOOK:
            return
        last = found[-1]
        time_us = delivery_time_us(last)
        query = (
            replace(query, until_us=time_us + 1) if query.newest_first else replace(query, since_us=time_us)
        )


def _look(snapshot: Snapshot, query: Query, last: DeliveryId | None) -> Iterator[DeliveryId]:
    """The query's ids after `last`; several may share a microsecond with it."""
    interval = (query.since_us, query.until_us)
    if query.terms:
        (kind, value), *others = query.terms
        ids = snapshot.by_term(kind, value, *interval, newest_first=query.newest_first)
        found = (id_ for id_ in ids if all(snapshot.has_term(*other, id_) for other in others))
    else:
        found = (id_ for id_ in snapshot.by_time(*interval, newest_first=query.newest_first))
    if last is None:
        return found
    end = _order(last)
    return dropwhile(lambda id_: _order(id_) >= end if query.newest_first else _order(id_) <= end, found)


def _order(delivery: DeliveryId) -> bytes:
    """The order in which the index keeps deliveries: time, then the random part."""
    return delivery[8:] + delivery[:8]


@dataclass(frozen=True, slots=True)
class Legs:
    """Both sides of one mail, oldest first: as Postfix was offered it, and each try to deliver it."""

    offered: tuple[StoredDelivery, ...]
    delivered: tuple[StoredDelivery, ...]


def legs_of(store: Store, stored: StoredDelivery) -> Legs:
    """A delivery and those with its queue id, captured within `LINK_WINDOW_US` of it. Raises `StoreError`."""
    delivery = stored.delivery
    same = [stored]
    if delivery.queue_id:
        query = Query(
            max(delivery.time_us - LINK_WINDOW_US, 0), delivery.time_us + LINK_WINDOW_US + 1,
            terms=((Term.QUEUE_ID, delivery.queue_id),), newest_first=False,
        )  # fmt: skip
        others = [other for other in store.deliveries(query) if _is_same_mail(stored, other)]
        same = sorted([stored, *others], key=lambda found: _order(found.delivery.id))
    return Legs(
        tuple(found for found in same if found.delivery.leg != Leg.LMTP),
        tuple(found for found in same if found.delivery.leg == Leg.LMTP),
    )


def _is_same_mail(stored: StoredDelivery, other: StoredDelivery) -> bool:
    mine, its = stored.delivery, other.delivery
    # A queue id that was used again for another mail shows in the Message-ID, where both have one.
    return (
        its.id != mine.id
        and its.queue_id == mine.queue_id
        and (not its.message_id or not mine.message_id or its.message_id == mine.message_id)
    )
