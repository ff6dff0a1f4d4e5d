"""Free text on the filter line: what finds words in mail is asked here, and nowhere else in the browser."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.browse.model import Asked
from sidecar.select import Damaged, Looked, select
from store.deliveries import StoredDelivery
from store.fleet import Archive


def found_by_words(
    store: Archive, asked: Asked, looked: Looked, damaged: Damaged
) -> Iterator[StoredDelivery]:
    """The deliveries for which the filters hold and in which all words are found, newest first: in the
    subject, the From field and the addresses. `looked` may raise to end the search."""
    found = select(store, asked.selection, looked=looked, damaged=damaged)
    return (stored for stored in found if asked.finds(stored.delivery))
