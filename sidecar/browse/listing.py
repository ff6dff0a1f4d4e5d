"""Deliveries for a list, a page at a time, in whatever thread asks; a search may be stopped at any moment.

Newest first, straight from the store's iterators: a page of a store of millions costs what a page costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

from sidecar.browse.model import Asked
from sidecar.browse.words import found_by_words
from store.deliveries import Query, StoredDelivery
from store.errors import StoreError
from store.fleet import Archive
from store.ids import DeliveryId, delivery_time_us
from store.looks import short_looks

_BATCH = 100
_TELL_EVERY_S = 0.2
_IDS_AT_ONCE = 5000


class StoppedError(Exception):
    """The search was told to stop."""


class Listing:
    """A search that goes on where it was. `next_page` may be called from any thread, but from one at a time;
    `stop` from any other."""

    def __init__(self, store: Archive, asked: Asked) -> None:
        self.asked = asked
        self.done = False
        """all that there is has been given"""
        self.looked_at = 0
        """deliveries looked at so far"""
        self.back_to_us = 0
        """the search has come so far back"""
        self.damaged: list[str] = []
        self._stopped = False
        self._told_s = 0.0
        self._batch: list[StoredDelivery] = []
        self._take: Callable[[list[StoredDelivery]], None] = lambda _found: None
        self._found = found_by_words(store, asked, self._looked, self._note_damage)

    def stop(self) -> None:
        """Whoever searches ends with `StoppedError` at the next delivery."""
        self._stopped = True

    def next_page(self, most: int, take: Callable[[list[StoredDelivery]], None]) -> None:
        """Give `most` more to `take`, as they are found; also nothing, now and then, to show that it lives.

        Raises `StoppedError`, `StoreError`; `ValueError`, `NotFoundError` for what cannot be asked."""
        self._take = take
        for _ in range(most):
            stored = next(self._found, None)
            if stored is None:
                self.done = True
                break
            self._batch.append(stored)
            if len(self._batch) >= _BATCH:
                self._give()
        self._give()

    def _looked(self, delivery: DeliveryId) -> None:
        if self._stopped:
            raise StoppedError
        self.looked_at += 1
        self.back_to_us = delivery_time_us(delivery)
        if time.monotonic() - self._told_s > _TELL_EVERY_S:
            self._give()

    def _give(self) -> None:
        self._told_s = time.monotonic()
        batch, self._batch = self._batch, []
        self._take(batch)

    def _note_damage(self, delivery: DeliveryId, error: StoreError) -> None:
        self.damaged.append(f"{delivery.hex()[:10]}: {error}")


class Times:
    """When everything was captured, newest first, by the index alone: no record is read."""

    def __init__(self, store: Archive) -> None:
        self.done = False
        self._stopped = False
        self._ids: Iterator[DeliveryId] = short_looks(store, Query())

    def stop(self) -> None:
        """As `Listing.stop`."""
        self._stopped = True

    def next_page(self, most: int, take: Callable[[list[int]], None]) -> None:
        """Give `most` more times to `take`. Raises `StoppedError`, `StoreError`."""
        while most > 0:
            if self._stopped:
                raise StoppedError
            times = [delivery_time_us(id_) for id_ in islice(self._ids, min(most, _IDS_AT_ONCE))]
            take(times)
            most -= len(times)
            if not times:
                self.done = True
                return
