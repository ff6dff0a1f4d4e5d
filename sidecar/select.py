"""Which deliveries a person means: filters as written, turned into index look-ups and a second look.

`list`, `export` and `replay` ask through here, so the same words find the same mail everywhere. The index
narrows down where it can; every filter is then applied to the record itself, since index terms are hashes
and may collide. Reads the store and nothing else.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice

from blake3 import blake3

from sidecar.status import status_of
from sidecar.units import parse_time
from store.deliveries import Look, Query, StoredDelivery
from store.errors import DamagedError, NotFoundError, SealedError, StoreError
from store.filters import Filter, as_bytes, bare, exact_address
from store.fleet import Archive
from store.ids import FOREVER_US, DeliveryId, delivery_time_us, now_us, order
from store.looks import IDS_PER_LOOK, short_looks
from store.records import Leg
from store.rows import Term

log = logging.getLogger(__name__)

LINK_WINDOW_US = 5 * 86_400_000_000
"""how far apart the two legs of one queue id may be: Postfix gives a mail up after 5 days by default, and
uses its short queue ids again"""


def _log_damage(delivery: DeliveryId, error: StoreError) -> None:
    log.error("delivery %s: %s", delivery.hex(), error)


Damaged = Callable[[DeliveryId, StoreError], None]
Looked = Callable[[DeliveryId], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Filters that must all hold; None asks for nothing. `limit` keeps the newest so many, 0 keeps all.

    `to` and `sender` are an address, `@domain`, a pattern with `*`, or `<>`; `since` (inclusive) and `until`
    (exclusive) are as `sidecar.units.parse_time` reads them; `ids` may be abbreviated. `as_of`: as the store
    stood then, except for what was erased.
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
    as_of: str | None = None
    limit: int = 0

    def digest(self) -> bytes:
        """16 bytes that name this request as it was written: `--since 2h` is the same request an hour later,
        so that a replay that was interrupted is known again."""
        asked = {name: value for name, value in asdict(self).items() if value}
        return blake3(json.dumps(asked, sort_keys=True).encode()).digest(16)


def moment_us(as_of: str | None) -> int:
    """The moment that `--as-of` names; without it, whatever there is. Raises `ValueError`."""
    return FOREVER_US if as_of is None else parse_time(as_of, now_us())


def exact_filter(store: Archive, selection: Selection) -> Filter:
    """A selection's conditions on the record itself, with whole ids and times as they are now understood: all
    but `status`, `as_of` and `limit`. Raises `ValueError`, `NotFoundError`, `AmbiguousIdError`."""
    now = now_us()
    return Filter(
        to=selection.to, sender=selection.sender,
        since_us=None if selection.since is None else parse_time(selection.since, now),
        until_us=None if selection.until is None else parse_time(selection.until, now),
        queue_id=selection.queue_id, message_id=selection.message_id, subject=selection.subject,
        leg=selection.leg, ids=tuple(dict.fromkeys(store.resolve(prefix).hex() for prefix in selection.ids)),
    )  # fmt: skip


def select(
    store: Archive,
    selection: Selection,
    *,
    newest_first: bool = True,
    damaged: Damaged = _log_damage,
    looked: Looked = lambda _id: None,
    legs: Collection[Leg] | None = None,
) -> Iterator[StoredDelivery]:
    """The deliveries meant, in order of time, of all `legs` or of these. One whose record is damaged goes to
    `damaged` instead. `looked` hears of each that is looked at, whether it is meant or not, and may raise to
    end the search.

    No look at the index stays open while the caller works, however long that takes. Oldest first, what is
    captured after the beginning is left out. Filters do not see what was removed. Raises `ValueError` for a
    time that is none, `NotFoundError` (`RemovedError` for what was removed) and `AmbiguousIdError` for `ids`,
    and `StoreError` when the store fails.
    """
    store.require_identity()
    chosen = _Chosen(store, selection, looked, legs)
    if newest_first:
        yield from islice(chosen.load(chosen.ids(newest_first=True), damaged), selection.limit or None)
    elif selection.limit:
        # Which ones is known only at the end; ids are small enough to keep.
        newest = islice(chosen.load(chosen.ids(newest_first=True), damaged), selection.limit)
        yield from chosen.load(reversed([stored.delivery.id for stored in newest]), damaged)
    else:
        yield from chosen.load(chosen.ids(newest_first=False), damaged)


def matching(
    store: Archive, selection: Selection, found: Iterable[DeliveryId], *, damaged: Damaged = _log_damage
) -> Iterator[StoredDelivery]:
    """Those of the deliveries `found` elsewhere that are there and are meant, in the order given; `limit` is
    the first so many. Raises as `select`, but for what was removed, which is left out."""
    store.require_identity()
    chosen = _Chosen(store, selection)
    yield from islice(chosen.load(chosen.likely(found), damaged), selection.limit or None)


class _Chosen:
    """A selection made ready for one store and one moment."""

    def __init__(
        self, store: Archive, selection: Selection, looked: Looked = lambda _id: None,
        legs: Collection[Leg] | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._looked = looked
        self._legs = legs
        self._status = selection.status
        self._filter = exact_filter(store, selection)
        self._as_of_us = moment_us(selection.as_of)

    def ids(self, *, newest_first: bool) -> Iterable[DeliveryId]:
        """Candidates, in order of time."""
        asked = self._filter
        if asked.ids:
            ids = [DeliveryId(bytes.fromhex(text)) for text in asked.ids]
            for delivery in ids:  # before anything is done with the others
                with suppress(DamagedError):
                    self._store.delivery(delivery, self._as_of_us)
            return sorted(ids, key=order, reverse=newest_first)
        query = Query(
            asked.since_us or 0, FOREVER_US if asked.until_us is None else asked.until_us,
            newest_first=newest_first, as_of_us=self._as_of_us,
        )  # fmt: skip
        if not newest_first:
            newest = next(short_looks(self._store, Query(as_of_us=self._as_of_us)), None)
            end_us = delivery_time_us(newest) + 1 if newest else 0
            query = replace(query, until_us=min(query.until_us, end_us))
        found = (short_looks(self._store, replace(query, terms=terms)) for terms in self._terms())
        return heapq.merge(*found, key=order, reverse=newest_first)

    def _terms(self) -> Iterator[tuple[tuple[Term, bytes], ...]]:
        """What the index can be asked; several alternatives when it holds a value in several forms."""
        asked = self._filter
        terms = []
        if asked.queue_id is not None:
            terms.append((Term.QUEUE_ID, as_bytes(asked.queue_id)))
        for kind, pattern in ((Term.RECIPIENT, asked.to), (Term.SENDER, asked.sender)):
            if pattern is not None and (address := exact_address(pattern)) is not None:
                terms.append((kind, address))
        if asked.message_id is None:
            yield tuple(terms)
        else:
            inner = bare(as_bytes(asked.message_id))
            for form in (b"<%b>" % inner, inner):
                yield ((Term.MESSAGE_ID, form), *terms)

    def likely(self, ids: Iterable[DeliveryId]) -> Iterator[DeliveryId]:
        """Those among the ids that may be meant, as far as the index can tell: it need not read them."""
        alternatives = [terms for terms in self._terms() if terms]
        asked = self._filter
        since_us, until_us = asked.since_us or 0, FOREVER_US if asked.until_us is None else asked.until_us
        rest = (id_ for id_ in ids if since_us <= delivery_time_us(id_) < until_us)
        if not alternatives:
            yield from rest
            return
        while some := list(islice(rest, IDS_PER_LOOK)):
            with self._store.index.read() as snapshot:
                kept = [id_ for id_ in some if _has_any(snapshot, id_, alternatives)]
            yield from kept

    def load(self, ids: Iterable[DeliveryId], damaged: Damaged) -> Iterator[StoredDelivery]:
        """Those among the candidates that all filters hold for."""
        for delivery, load in self._store.each(ids, self._as_of_us):
            self._looked(delivery)
            try:
                stored = load()
            except (DamagedError, SealedError) as exc:
                if isinstance(exc, SealedError) and not self._store.has_identities:
                    raise  # it is so for all of them
                damaged(delivery, exc)
                continue
            except NotFoundError:  # removed, or as of then not there yet
                continue
            if self._legs is not None and stored.delivery.leg not in self._legs:
                continue
            if self._filter.matches(stored.delivery) and self._status in (None, status_of(stored)):
                yield stored


def _has_any(snapshot: Look, id_: DeliveryId, alternatives: list[tuple[tuple[Term, bytes], ...]]) -> bool:
    return any(all(snapshot.has_term(kind, value, id_) for kind, value in terms) for terms in alternatives)


@dataclass(frozen=True, slots=True)
class Legs:
    """Both sides of one mail, oldest first: as Postfix was offered it, and each try to deliver it."""

    offered: tuple[StoredDelivery, ...]
    delivered: tuple[StoredDelivery, ...]


def legs_of(store: Archive, stored: StoredDelivery, as_of_us: int = FOREVER_US) -> Legs:
    """A delivery and those with its queue id, captured within `LINK_WINDOW_US` of it. Raises `StoreError`."""
    delivery = stored.delivery
    same = [stored]
    if delivery.queue_id:
        query = Query(
            max(delivery.time_us - LINK_WINDOW_US, 0), delivery.time_us + LINK_WINDOW_US + 1,
            terms=((Term.QUEUE_ID, delivery.queue_id),), newest_first=False, as_of_us=as_of_us,
        )  # fmt: skip
        others = [other for other in store.deliveries(query) if _is_same_mail(stored, other)]
        same = sorted([stored, *others], key=lambda found: order(found.delivery.id))
    return Legs(
        tuple(found for found in same if found.delivery.leg == Leg.MILTER),
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
