"""The answers of the search index, newest first, beside whoever writes to it."""

from __future__ import annotations

import contextlib
import heapq
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from sidecar.search.files import (
    DIRECTORY,
    SearchDamagedError,
    Shard,
    State,
    connect,
    mark_of,
    shard_path,
    told,
)
from store.ids import DeliveryId, delivery_time_us, order
from store.store import Store


class IndexReader:
    """Reads beside the writer, without a lock. Everything may raise `SearchError`."""

    def __init__(self, store_path: Path, store_id: bytes) -> None:
        """Raises `FileNotFoundError` when there is no index."""
        self.directory = store_path / DIRECTORY
        path = self.directory / "state.db"
        if not path.exists():
            raise FileNotFoundError(str(path))
        with told(self.directory):
            self._db = connect(path, write=False)
            self._state = State(self._db)
            if self._state.mark() != mark_of(store_id):
                self._db.close()
                raise SearchDamagedError(f"{path} is by another version, or of another store")

    def counts(self) -> tuple[int, int]:
        """How many messages are in it, and how many wait."""
        with told(self.directory):
            return self._state.messages(), self._state.waiting()

    def behind(self, store: Store) -> bool:
        """Whether a stream has facts that were not followed yet."""
        with told(self.directory):
            known = dict(self._db.execute("select name, facts from streams").fetchall())
        return any(store.state(name).facts > known.get(name, 0) for name in store.view.names())

    def search(self, expression: str, since_us: int, until_us: int) -> Iterator[DeliveryId]:
        """The messages in [since, until) that an FTS5 expression matches, newest first. No look at the index
        stays open while the caller works. What the writer takes away meanwhile is left out."""
        with told(self.directory):
            left = [s for s in self._state.shards() if s.newest_us >= since_us and s.oldest_us < until_us]
        left.sort(key=lambda shard: shard.newest_us)
        heads: list[tuple[int, DeliveryId, Iterator[DeliveryId]]] = []
        while left or heads:
            while left and (not heads or left[-1].newest_us >= delivery_time_us(heads[0][1])):
                _push(heads, self._in_order(left.pop(), expression, since_us))
            if heads:
                _, id_, rest = heapq.heappop(heads)
                if since_us <= delivery_time_us(id_) < until_us:
                    yield id_
                _push(heads, rest)

    def _in_order(self, shard: Shard, expression: str, since_us: int) -> Iterator[DeliveryId]:
        """A shard's matches, the newest first, also where its rows are not quite so."""
        heap: list[tuple[int, DeliveryId]] = []
        for id_ in self._rows(shard, expression):
            time_us = delivery_time_us(id_)
            while heap and delivery_time_us(heap[0][1]) >= time_us + shard.disorder_us:
                yield heapq.heappop(heap)[1]
            if time_us + shard.disorder_us < since_us:
                break
            heapq.heappush(heap, (_backwards(id_), id_))
        while heap:
            yield heapq.heappop(heap)[1]

    def _rows(self, shard: Shard, expression: str) -> Iterator[DeliveryId]:
        """By row, from the last on, some at a time: an open look would keep the writer's log growing."""
        below, count = 1 << 62, 100
        while True:
            try:
                with told(self.directory), contextlib.closing(self._shard(shard.number)) as db:
                    rows = db.execute(
                        "select rowid, (select id from ids where row = words.rowid) from words "
                        "where words match ? and rowid < ? order by rowid desc limit ?",
                        (expression, below, count),
                    ).fetchall()
            except FileNotFoundError:
                return
            yield from (DeliveryId(id_) for _, id_ in rows if id_ is not None)
            if len(rows) < count:
                return
            below, count = rows[-1][0], min(count * 4, 5000)

    def _shard(self, number: int) -> sqlite3.Connection:
        path = shard_path(self.directory, number)
        try:
            return connect(path, write=False)
        except sqlite3.OperationalError:
            if not path.exists():
                raise FileNotFoundError(str(path)) from None
            raise

    def close(self) -> None:
        """Let go."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _backwards(id_: DeliveryId) -> int:
    return -int.from_bytes(order(id_), "big")


def _push(heads: list[tuple[int, DeliveryId, Iterator[DeliveryId]]], rest: Iterator[DeliveryId]) -> None:
    id_ = next(rest, None)
    if id_ is not None:
        heapq.heappush(heads, (_backwards(id_), id_, rest))
