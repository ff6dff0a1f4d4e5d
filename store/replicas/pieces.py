"""Pieces, created once: what is there is not sent again, and what is damaged there gets a copy beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from store.replicas.errors import DamagedUploadError, DiffersError, ReplicaError
from store.replicas.layout import Extent, extent_of
from store.replicas.source import Target

log = logging.getLogger(__name__)
_COPIES = 100


class Pieces:
    """Creates pieces of packs and of the index; for one thread. `objects` and `sent_bytes` are those of the
    round."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._listed: dict[str, set[str]] = {}
        """what was there below a prefix when we first had a piece for it"""
        self._created: set[str] = set()
        """pieces that are there, and that no round names yet"""
        self._shunned: set[str] = set()
        self.objects = self.sent_bytes = 0

    def shun(self, names: Iterable[str]) -> None:
        """What has these names is damaged, whatever a look at it says."""
        self._shunned.update(names)

    def begin_round(self) -> None:
        """Count from nothing."""
        self.objects = self.sent_bytes = 0

    def count(self, size: int) -> None:
        """One more object was sent."""
        self.objects += 1
        self.sent_bytes += size

    def all_named(self, *, list_anew: bool) -> None:
        """A round names all that was created; with `list_anew` what is there is asked for again."""
        self._created.clear()
        if list_anew:
            self._listed = {}

    def create(
        self, under: str, at: int, data: bytes, name: Callable[[Extent], str], first: int | None = None
    ) -> Extent:
        """Have a piece be there. Where one of that name is damaged, and may not be removed, it gets a copy
        beside it; `first`, where it is known to be gone or damaged, is the copy to begin with. `name` names
        it, below `under`. Raises `StoreError`."""
        if under not in self._listed:
            self._listed[under] = {name for name, _ in self._target.list(under)}
        for copy in range(first or 0, (first or 0) + _COPIES):
            extent = extent_of(at, data, copy=copy)
            piece = name(extent)
            if piece in self._shunned and piece in self._listed[under]:
                continue
            if piece in self._created and first is None:
                return extent
            try:
                # What an earlier run had sent is not sent once more to be told that it is there.
                if piece in self._listed[under] and self._target.holds(piece, data):
                    return extent
                self._target.create(piece, data)
            except (DiffersError, DamagedUploadError) as exc:
                log.error("replica: %s", exc)
                continue
            self._created.add(piece)
            self.count(len(data))
            return extent
        raise ReplicaError(f"{self._target.url}: {piece} arrives damaged again and again")
