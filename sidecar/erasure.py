"""What an erasure takes, and what of the same mail it leaves: a plan, before anything is written.

A message named by its id is taken in both its legs and with all tries to deliver it to the same people;
filters are asked of each capture by itself. Deliveries to others, and others of the same bytes, stay unless
everything is asked for: as long as one is there, the bytes are. Reads the store and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sidecar.select import Selection, legs_of, select
from store.deliveries import Query, StoredDelivery
from store.ids import FOREVER_US, DeliveryId
from store.records import Delivery, Leg
from store.rows import Term
from store.store import Store


@dataclass(frozen=True, slots=True)
class Plan:
    """`taken` in order of time, and `left`: the same mail or the same bytes, and not taken."""

    taken: tuple[StoredDelivery, ...]
    left: tuple[StoredDelivery, ...]


def plan_erasure(store: Store, selection: Selection, *, everywhere: bool = False) -> Plan:
    """What erasing a selection means. One that names a leg takes that leg alone; `everywhere` leaves nothing
    of the same mail and the same bytes. Raises `DamagedError` for a record that cannot be read (whether it is
    held cannot be known), and what `select` raises."""
    taken = {
        stored.delivery.id: stored for stored in select(store, selection, newest_first=False, damaged=_refuse)
    }
    left: dict[DeliveryId, StoredDelivery] = {}
    named = set(taken) if selection.ids and selection.leg is None else set()
    waiting = list(taken.values())
    while waiting:
        stored = waiting.pop()
        for other in _related(store, stored):
            if other.delivery.id in taken:
                continue
            left.pop(other.delivery.id, None)
            if everywhere or (
                stored.delivery.id in named and _is_for_nobody_else(other.delivery, stored.delivery)
            ):
                taken[other.delivery.id] = other
                waiting.append(other)
            else:
                left[other.delivery.id] = other
    return Plan(_in_order(taken.values()), _in_order(left.values()))


def _refuse(_delivery: DeliveryId, error: Exception) -> None:
    raise error


def _related(store: Store, stored: StoredDelivery) -> Iterator[StoredDelivery]:
    """Both legs and all tries of a mail, then whatever else has its bytes."""
    legs = legs_of(store, stored)
    yield from (*legs.offered, *legs.delivered)
    query = Query(0, FOREVER_US, terms=((Term.CONTENT, stored.delivery.content),))
    yield from store.deliveries(query)


def _is_for_nobody_else(other: Delivery, named: Delivery) -> bool:
    """Whether `other` is the same mail, as it was offered or in a try for the same people."""
    if not named.queue_id or other.queue_id != named.queue_id:
        return False
    return other.leg != Leg.LMTP or _people(other) <= _people(named)


def _people(delivery: Delivery) -> set[bytes]:
    return {recipient.address.lower() for recipient in delivery.envelope.recipients}


def _in_order(found: Iterable[StoredDelivery]) -> tuple[StoredDelivery, ...]:
    return tuple(sorted(found, key=lambda stored: (stored.delivery.time_us, stored.delivery.id)))
