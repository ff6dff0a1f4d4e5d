"""Several stores as one: what many hosts captured is listed, read and put back as if one host had.

Hosts have stores of their own, with ids, keys and indexes of their own, so that nothing that befalls one
touches another. A delivery is what all of them say of it: one that is in two (a host, and what took its place
and was restored from it) is there once, and what one says was removed is removed. What is put on record here
(replays) goes into a store beside them.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeAlias, TypeVar

from store.ahead import Ahead
from store.deliveries import Query, StoredDelivery, Told, assemble, candidates, listed
from store.errors import (
    AmbiguousIdError,
    DamagedError,
    NotFoundError,
    PackGoneError,
    StoreError,
)
from store.ids import FOREVER_US, ChunkId, ContentId, DeliveryId, order
from store.places import Location
from store.records import Content, Entry, EntryType, Replay
from store.rows import Term
from store.snapshot import REMOVED, Snapshot
from store.store import Store
from store.writer import Writer

log = logging.getLogger(__name__)
T = TypeVar("T")
_AT_ONCE = 16


class Fleet:
    """The stores of some hosts. `record` is a store for what is put on record from here. Closes them all.

    Methods are those of `Store`, and raise the same.
    """

    is_remote = True

    def __init__(
        self,
        stores: Sequence[Store],
        record: Store,
        name: str,
        refresh: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
        faults: Sequence[str] = (),
    ) -> None:
        """`name` is what an operator knows it by. `refresh` has in the stores what came since; `close` is
        called when they are closed. `faults`, in words: what of the hosts could not be looked at."""
        self.members = tuple(stores)
        self.name = name
        self.faults = faults
        self._record = record
        self._refresh = refresh
        self._close = close
        self._all = (*self.members, record)
        self._ahead, self._sides = Ahead(), Ahead()  # two: who waits for the one may ask by the other
        self.index = FleetIndex(self._all, self._ahead)

    # -- what it is

    @property
    def path(self) -> Path:
        """Where what is put on record from here lies."""
        return self._record.path

    @property
    def damage(self) -> list[str]:
        """What is damaged in any of them."""
        return [damage for store in self._all for damage in store.damage]

    @property
    def has_identities(self) -> bool:
        """Whether anything that is sealed can be opened."""
        return any(store.has_identities for store in self.members)

    @property
    def hidden(self) -> list[str]:
        """The streams that are sealed for others in part."""
        return [stream for store in self.members for stream in store.hidden]

    @property
    def lacks(self) -> list[str]:
        """The streams of which some facts are damaged or missing."""
        return [stream for store in self._all for stream in store.lacks]

    def require_identity(self) -> None:
        """See `Store.require_identity`."""
        for store in self.members:
            store.require_identity()

    # -- deliveries

    def deliveries(self, query: Query) -> Iterator[StoredDelivery]:
        """See `Store.deliveries`."""
        self.require_identity()
        with self.index.read() as snapshot:
            found = self.each(candidates(snapshot, query), query.as_of_us)
            yield from listed(found, query, may_read=self.has_identities)

    def each(
        self, found: Iterable[DeliveryId], as_of_us: int = FOREVER_US
    ) -> Iterator[tuple[DeliveryId, Callable[[], StoredDelivery]]]:
        """See `Store.each`; where they come from afar, some are fetched ahead."""
        return self._ahead.each(found, lambda delivery: self.delivery(delivery, as_of_us))

    def delivery(self, delivery: DeliveryId, as_of_us: int = FOREVER_US) -> StoredDelivery:
        """See `Store.delivery`."""
        try:
            return self._delivery(delivery, as_of_us, PackGoneError)
        except PackGoneError:  # another process has taken up what compaction did, between two looks
            return self._delivery(delivery, as_of_us)

    def _delivery(
        self, delivery: DeliveryId, as_of_us: int, unless: type[DamagedError] | tuple[()] = ()
    ) -> StoredDelivery:
        answers = self._sides.each(self._all, lambda store: store.told(delivery))
        told = [entries for _, ask in answers if (entries := ask())]
        if not told:
            raise NotFoundError(f"there is no delivery {delivery.hex()}")
        return assemble(delivery, told[0] if len(told) == 1 else _together(told, unless), as_of_us)

    def resolve(self, prefix: str) -> DeliveryId:
        """See `Store.resolve`."""
        found: set[DeliveryId] = set()
        missing: NotFoundError | None = None
        for store in self._all:
            try:
                found.add(store.resolve(prefix))
            except NotFoundError as exc:
                missing = exc
        if not found:
            raise missing or NotFoundError(f"there is no delivery {prefix!r}")
        if len(found) > 1:
            one, other, *_ = sorted(found)
            raise AmbiguousIdError(f"{prefix!r} fits {one.hex()[:12]}, {other.hex()[:12]} and perhaps more")
        return found.pop()

    def with_content(self, content_id: ContentId) -> list[DeliveryId]:
        """See `Store.with_content`."""
        found = {id_ for store in self.members for id_ in store.with_content(content_id)}
        return sorted(found, key=order, reverse=True)

    def was_erased(self, content_id: ContentId) -> bool:
        """See `Store.was_erased`."""
        return any(store.was_erased(content_id) for store in self.members)

    # -- messages

    def recipe(self, content_id: ContentId) -> Content:
        """See `Store.recipe`."""
        return self._first(lambda store: store.recipe(content_id))

    def read(self, content_id: ContentId) -> Iterator[bytes]:
        """See `Store.read`."""
        return self._holder(content_id).read(content_id)

    def read_small(self, content_id: ContentId) -> bytes:
        """See `Store.read_small`."""
        return self._first(lambda store: store.read_small(content_id))

    def coming(self, found: Iterable[T], content: Callable[[T], ContentId | None]) -> Iterator[T]:
        """What was found, in its order, while the messages that are wanted of it are fetched ahead."""
        for one, have in self._ahead.each(found, lambda one: self._have(content(one))):
            with contextlib.suppress(StoreError):  # whoever reads it is told
                have()
            yield one

    def _have(self, content_id: ContentId | None) -> None:
        if content_id is not None:
            self._first(lambda store: store.have(content_id, lambda: self._ahead.closing))

    def _holder(self, content_id: ContentId) -> Store:
        def holder(store: Store) -> Store:
            store.recipe(content_id)
            return store

        return self._first(holder)

    def _first(self, ask: Callable[[Store], T]) -> T:
        """The answer of the first that has one. Of those that have none the one that is damaged is told."""
        why: StoreError = NotFoundError("the message is in none of the stores")
        for store in self.members:
            try:
                return ask(store)
            except StoreError as exc:
                if isinstance(why, NotFoundError):
                    why = exc
        raise why

    # -- what is put on record

    @property
    def writer(self) -> Writer:
        """See `Store.writer`."""
        return self._record.writer

    def start_writing_beside(self, name: str) -> Writer:
        """See `Store.start_writing_beside`."""
        return self._record.start_writing_beside(name)

    def last_run(self, selection: bytes) -> tuple[str, bool] | None:
        """The last replay run for this selection that was begun from here."""
        return self._record.last_run(selection)

    def replays_in(self, run: str, delivery: DeliveryId) -> dict[bytes, Replay]:
        """See `Store.replays_in`."""
        return self._record.replays_in(run, delivery)

    def settle_index(self, timeout_s: float = 5.0) -> None:
        """See `Store.settle_index`."""
        self._record.settle_index(timeout_s)

    def refresh(self) -> None:
        """Have here what was shipped since."""
        self._refresh()
        self._record.refresh()

    def close(self) -> None:
        """Let go of all of them."""
        self._ahead.close()
        self._sides.close()
        for store in self._all:
            store.close()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FleetIndex:
    """The indexes of some stores as one, for reading."""

    def __init__(self, stores: Sequence[Store], ahead: Ahead) -> None:
        self._stores = stores
        self._ahead = ahead

    @contextlib.contextmanager
    def read(self) -> Iterator[FleetSnapshot]:
        """A snapshot of each for the length of the block."""
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(store.index.read()) for store in self._stores]
            yield FleetSnapshot(found, self._ahead)


class FleetSnapshot:
    """Consistent looks at some indexes, one for each. Methods are those of `Snapshot`."""

    def __init__(self, snapshots: Sequence[Snapshot], ahead: Ahead) -> None:
        self._snapshots = snapshots
        self._ahead = ahead

    def by_time(
        self, since_us: int, until_us: int, *, newest_first: bool, removed: bool = False
    ) -> Iterator[DeliveryId]:
        """See `Snapshot.by_time`."""
        found = (
            snapshot.by_time(since_us, until_us, newest_first=newest_first, removed=removed)
            for snapshot in self._snapshots
        )
        return self._merged(list(found), newest_first=newest_first)

    def by_term(
        self,
        kind: Term,
        value: bytes,
        since_us: int,
        until_us: int,
        *,
        newest_first: bool,
        removed: bool = False,
    ) -> Iterator[DeliveryId]:
        """See `Snapshot.by_term`."""
        found = (
            snapshot.by_term(kind, value, since_us, until_us, newest_first=newest_first, removed=removed)
            for snapshot in self._snapshots
        )
        return self._merged(list(found), newest_first=newest_first)

    def _merged(self, found: Sequence[Iterator[DeliveryId]], *, newest_first: bool) -> Iterator[DeliveryId]:
        """Ids of several in one order, each once."""
        begun = [
            itertools.chain([first], rest)
            for first, rest in zip(self._ahead.firsts(found), found, strict=True)
            if first is not None
        ]
        last = None
        for id_ in heapq.merge(*begun, key=order, reverse=newest_first):
            if id_ != last:
                yield id_
            last = id_

    def has_term(self, kind: Term, value: bytes, delivery: DeliveryId) -> bool:
        """See `Snapshot.has_term`."""
        return any(snapshot.has_term(kind, value, delivery) for snapshot in self._snapshots)

    def delivery(self, delivery: DeliveryId) -> list[tuple[EntryType, Location]]:
        """See `Snapshot.delivery`; places are those of several stores."""
        return [entry for snapshot in self._snapshots for entry in snapshot.delivery(delivery)]

    def is_removed(self, delivery: DeliveryId) -> bool:
        """See `Snapshot.is_removed`."""
        return any(kind in REMOVED for kind, _ in self.delivery(delivery))

    def chunk(self, chunk: ChunkId) -> Location | None:
        """See `Snapshot.chunk`."""
        return next(filter(None, (snapshot.chunk(chunk) for snapshot in self._snapshots)), None)


Archive: TypeAlias = Store | Fleet
"""What mail is listed in, read and put back from."""


def gather(count: int, do: Callable[[int], T]) -> list[T]:
    """The results of `do` for 0 … count - 1, several at once. Raises what the first of them raised."""
    if count == 1:
        return [do(0)]
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, count)), thread_name_prefix="host") as pool:
        return list(pool.map(do, range(count)))


def _together(told: Iterable[list[Told]], unless: type[DamagedError] | tuple[()]) -> list[Told]:
    """What several stores tell of one delivery, the same once. What is damaged in one of them is left out if
    another one has it: a removal, if there is one, and else the delivery; `unless` it is one of these.
    Raises what reading raised otherwise."""
    found: list[tuple[EntryType, Entry]] = []
    why: DamagedError | None = None
    removed = False
    for entries in told:
        for kind, read in entries:
            removed = removed or kind in REMOVED
            try:
                entry = (kind, read())
            except DamagedError as exc:
                if isinstance(exc, unless):
                    raise
                why = exc
                continue
            if entry not in found:
                found.append(entry)
    wanted = REMOVED if removed else {EntryType.DELIVERY}
    if why and not any(kind in wanted for kind, _ in found):
        raise why
    return [(kind, lambda entry=entry: entry) for kind, entry in found]  # type: ignore[misc]  # bound now
