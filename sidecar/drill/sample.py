"""Which deliveries a drill puts back: some at random, spread evenly over the time that the store covers.

Moments are drawn, not deliveries, so that a quiet year counts as much as a busy one: damage, keys and formats
go by age. Looks into the index alone, a few rows for each.
"""

from __future__ import annotations

import random
from itertools import islice

from store.deliveries import Query, candidates
from store.ids import DeliveryId, delivery_time_us, order
from store.store import Store


def draw(store: Store, number: int, *, but: frozenset[DeliveryId] = frozenset()) -> list[DeliveryId]:
    """`number` different deliveries in order of time, all there are if there are not so many; none of `but`,
    and none that was erased or has expired. Raises `StoreError`."""
    if number <= 0:
        return []
    enough = number + len(but) + 1
    with store.index.read() as snapshot:
        oldest = list(islice(candidates(snapshot, Query(newest_first=False)), enough))
        if len(oldest) < enough:
            return [delivery for delivery in oldest if delivery not in but]
        first_us = delivery_time_us(oldest[0])
        last_us = delivery_time_us(next(candidates(snapshot, Query())))
        drawn: set[DeliveryId] = set()
        while len(drawn) < number:
            moment_us = random.randint(first_us, last_us)  # noqa: S311 - nobody gains by guessing it
            following = islice(candidates(snapshot, Query(since_us=moment_us, newest_first=False)), enough)
            # At the end of time there may be none left: then the search goes on at its beginning.
            for delivery in (*following, *oldest):
                if delivery not in drawn and delivery not in but:
                    drawn.add(delivery)
                    break
    return sorted(drawn, key=order)
