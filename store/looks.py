"""The ids that a query may mean, gathered in short looks at the index.

A look that stayed open while somebody works through what it finds would keep LMDB's old pages in use, and
compaction waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import dropwhile, islice

from store.deliveries import Query, candidates
from store.fleet import Archive
from store.ids import DeliveryId, delivery_time_us, order

IDS_PER_LOOK = 500


def short_looks(store: Archive, query: Query) -> Iterator[DeliveryId]:
    """The query's candidates in order of time; see `store.store.candidates` for why to look again."""
    last: DeliveryId | None = None
    while True:
        with store.index.read() as snapshot:
            found = _after(candidates(snapshot, query), last, newest_first=query.newest_first)
            ids = list(islice(found, IDS_PER_LOOK))
        yield from ids
        if len(ids) < IDS_PER_LOOK:
            return
        last = ids[-1]
        time_us = delivery_time_us(last)
        query = (
            replace(query, until_us=time_us + 1) if query.newest_first else replace(query, since_us=time_us)
        )


def _after(
    found: Iterator[DeliveryId], last: DeliveryId | None, *, newest_first: bool
) -> Iterator[DeliveryId]:
    """What comes after `last`; several may share a microsecond with it."""
    if last is None:
        return found
    end = order(last)
    return dropwhile(lambda id_: order(id_) >= end if newest_first else order(id_) <= end, found)
