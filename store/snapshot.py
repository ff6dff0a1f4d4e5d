"""A consistent look at the index: fresh rows from LMDB, the rest from sorted runs, one answer from both."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from store import rows
from store.errors import SealedError
from store.ids import ChunkId, ContentId, DeliveryId
from store.places import Location, Record, StreamState, Unread
from store.records import EntryType, Hold
from store.rows import PLACE_AT, Table, Term
from store.runs import Run

if TYPE_CHECKING:
    from store.index import Index

REMOVED = frozenset({EntryType.ERASURE, EntryType.EXPIRY})
"""entries that end a delivery"""
SEALED = b"S"
"""what a sealed value in LMDB begins with (msgpack's arrays begin otherwise)"""
_MAX_TIME = (1 << 64) - 1


class Counters(msgspec.Struct):
    """What the index has counted, over all streams."""

    deliveries: dict[str, int] = {}
    message_bytes: int = 0
    contents: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    uncaptured: int = 0
    replays: int = 0
    erased: int = 0
    expired: int = 0


class Waste(msgspec.Struct, array_like=True):
    """What a pack holds of deliveries that were removed since it was written."""

    deliveries: int = 0
    erased: int = 0
    held: int = 0
    """removed too, but kept by a hold when compaction was there"""
    holds: str = ""
    """the holds that were in force then"""


class TreeState(msgspec.Struct, array_like=True):
    """How far the tree over a stream's facts has grown; the rest of it stands in TILE rows."""

    size: int = 0
    edge: bytes = b""
    """the leaves of the last block, which is not complete"""
    whole: bool = True
    """False once facts were lost: what came after them cannot be put into it"""


class RunInfo(msgspec.Struct, array_like=True, frozen=True):
    """A run that counts; `tier` is its size class."""

    number: int
    tier: int
    rows: int


class Catalogue(msgspec.Struct, array_like=True, frozen=True):
    """Which runs there are, oldest first, and which packs (index number -> stream number, pack)."""

    runs: tuple[RunInfo, ...] = ()
    packs: dict[int, tuple[int, int]] = {}
    next_run: int = 1
    next_pack: int = 1
    doomed: tuple[tuple[int, int], ...] = ()
    """(run, transaction that took it out): files to be removed once nobody reads an older state"""
    dead_rows: int = 0
    """about how many rows name packs that count no longer"""


class Known:
    """A catalogue made ready for look-ups; shared by all snapshots that see it."""

    def __init__(self, catalogue: Catalogue, runs: list[Run]) -> None:
        self.catalogue = catalogue
        self.runs = runs[::-1]
        """newest first"""
        self.numbers = {place: number for number, place in catalogue.packs.items()}


def run_key(selection: bytes) -> bytes:
    """The key in LMDB for the replay run of a selection."""
    return b"run:" + blake3(selection).digest(16)


def hold_key(name: str) -> bytes:
    """The key in LMDB for a hold."""
    return b"hold:" + blake3(name.encode()).digest(16)


def condemned_key(name: bytes) -> bytes:
    """What the keys in LMDB begin with under which a chunk or content is condemned; who did it follows."""
    return b"condemned:" + name[: rows.NAME_BYTES]


class Snapshot:
    """A consistent look at the index; short-lived, since an open one keeps LMDB's old pages in use."""

    def __init__(self, txn: Any, index: Index) -> None:
        self._txn = txn
        self._index = index
        self._known: Known | None = None
        self._looked_up: dict[DeliveryId, list[tuple[EntryType, Location]]] = {}

    @property
    def known(self) -> Known:
        """Runs and packs that count."""
        if self._known is None:
            self._known = self._index.known(self.meta(b"catalogue") or b"")
        return self._known

    def meta(self, key: bytes) -> bytes | None:
        """A value that is true now."""
        value: bytes | None = self._txn.get(key, db=self._index.meta)
        return value

    def meta_range(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(rest of the key, value) for the keys that begin with `prefix`."""
        with self._txn.cursor(db=self._index.meta) as cursor:
            if cursor.set_range(prefix) if prefix else cursor.first():
                for key, value in cursor:
                    if not key.startswith(prefix):
                        return
                    yield key[len(prefix) :], value

    # -- rows

    def fresh(self) -> list[bytes]:
        """The rows that are in no run yet, each behind its table's prefix."""
        with self._txn.cursor(db=self._index.fresh) as cursor:
            return list(cursor.iternext(keys=True, values=False))

    def _find(self, table: Table, prefix: bytes) -> Iterator[bytes]:
        """The rows that begin with `prefix`, newest first."""
        key = rows.PREFIX[table] + prefix
        fresh: list[bytes] = []
        with self._txn.cursor(db=self._index.fresh) as cursor:
            if cursor.set_range(key):
                for found in cursor.iternext(keys=True, values=False):
                    if not found.startswith(key):
                        break
                    fresh.append(found[1:])
        yield from reversed(fresh)
        yield from self._find_settled(table, prefix)

    def _find_settled(self, table: Table, prefix: bytes) -> Iterator[bytes]:
        """The same among the rows in runs alone."""
        for run in self.known.runs:
            yield from run.find(table, prefix)

    def _range(self, table: Table, low: bytes, high: bytes, *, newest_first: bool) -> Iterator[bytes]:
        """The rows in [low, high) of fresh rows and runs, in one order."""
        sources = [run.range(table, low, high, reverse=newest_first) for run in self.known.runs]
        sources.append(self._fresh_range(table, low, high, newest_first=newest_first))
        yield from heapq.merge(*sources, reverse=newest_first)

    def _fresh_range(self, table: Table, low: bytes, high: bytes, *, newest_first: bool) -> Iterator[bytes]:
        low, high = rows.PREFIX[table] + low, rows.PREFIX[table] + high
        with self._txn.cursor(db=self._index.fresh) as cursor:
            if newest_first:
                found = cursor.prev() if cursor.set_range(high) else cursor.last()
                keys = cursor.iterprev(keys=True, values=False)
            else:
                found = cursor.set_range(low)
                keys = cursor.iternext(keys=True, values=False)
            if found:
                for key in keys:
                    if not low <= key < high:
                        return
                    yield key[1:]

    def _location(self, row: bytes, at: int, size: int = 0) -> Location | None:
        """Where a row says that something lies; None when its pack has been replaced."""
        number, offset, inner = rows.split_place(row, at)
        pack = self.known.catalogue.packs.get(number)
        return Location(*pack, offset, inner, size) if pack else None

    # -- look-ups

    def chunk(self, chunk: ChunkId, bad: frozenset[Record] = frozenset()) -> Location | None:
        """Where a chunk lies; a place in one of the `bad` records only if there is no other."""
        return self._chunk(self._find(Table.CHUNK, chunk), bad)

    def settled_chunk(self, chunk: ChunkId, bad: frozenset[Record]) -> Location | None:
        """The same without a look into LMDB, which costs the mail path a wait for Python's lock each time:
        what is new there the writer knows by itself."""
        return self._chunk(self._find_settled(Table.CHUNK, chunk), bad)

    def _chunk(self, found: Iterable[bytes], bad: frozenset[Record]) -> Location | None:
        at = PLACE_AT[Table.CHUNK]
        return _best((self._location(row, at, int.from_bytes(row[22:], "big")) for row in found), bad)

    def content(self, content: ContentId, bad: frozenset[Record] = frozenset()) -> Location | None:
        """Where a content's recipe lies; a place in one of the `bad` records only if there is no other."""
        return self._content(self._find(Table.CONTENT, content[: rows.NAME_BYTES]), bad)

    def settled_content(self, content: ContentId, bad: frozenset[Record]) -> Location | None:
        """The same without a look into LMDB."""
        return self._content(self._find_settled(Table.CONTENT, content[: rows.NAME_BYTES]), bad)

    def _content(self, found: Iterable[bytes], bad: frozenset[Record]) -> Location | None:
        return _best((self._location(row, PLACE_AT[Table.CONTENT]) for row in found), bad)

    def all_places(self, table: Table, name: bytes) -> list[Location]:
        """Every place at which a chunk or recipe of that name lies."""
        found = (self._location(row, PLACE_AT[table]) for row in self._find(table, name[: rows.NAME_BYTES]))
        return [where for where in found if where is not None]

    def delivery(self, delivery: DeliveryId) -> list[tuple[EntryType, Location]]:
        """The entries that speak of a delivery, by type; empty when unknown."""
        if delivery in self._looked_up:
            return self._looked_up[delivery]
        return self._entries(delivery[8:] + delivery[:8]).get(delivery, [])

    def _entries(self, prefix: bytes) -> dict[DeliveryId, list[tuple[EntryType, Location]]]:
        found: dict[DeliveryId, list[tuple[EntryType, Location]]] = {}
        for row in sorted(set(self._find(Table.DELIVERY, prefix))):
            where = self._location(row, PLACE_AT[Table.DELIVERY])
            if where is not None:
                found.setdefault(rows.id_in(row), []).append((EntryType(row[16]), where))
        self._looked_up = found
        return found

    def is_removed(self, delivery: DeliveryId) -> bool:
        """Whether a delivery was erased or has expired."""
        return any(kind in REMOVED for kind, _ in self.delivery(delivery))

    def resolve(self, prefix: str, most: int = 2) -> list[DeliveryId]:
        """Up to `most` delivery ids whose hexadecimal form begins with `prefix`."""
        low = bytes.fromhex(prefix if len(prefix) % 2 == 0 else prefix + "0")
        found: list[DeliveryId] = []
        for row in self._range(Table.ID, low, b"\xff" * 17, newest_first=False):
            if not row.hex().startswith(prefix) or len(found) == most:
                break
            if not found or found[-1] != row:
                found.append(DeliveryId(row))
        return found

    def has_id(self, delivery: DeliveryId) -> bool:
        """Whether there is or was such a delivery, also one of which compaction has left but a stub."""
        return next(self._find(Table.ID, delivery), None) is not None

    def has_term(self, kind: Term, value: bytes, delivery: DeliveryId) -> bool:
        """Whether a delivery stands under a term (or one of the same microsecond does: look again)."""
        return next(self._find(Table.TERM, rows.term_row(kind, value, delivery)), None) is not None

    def by_time(
        self, since_us: int, until_us: int, *, newest_first: bool, removed: bool = False
    ) -> Iterator[DeliveryId]:
        """Deliveries captured in [since_us, until_us); with `removed` also those erased or expired."""
        low, high = _interval(since_us, until_us)
        last, kinds = None, set[int]()
        for row in self._range(Table.DELIVERY, low, high, newest_first=newest_first):
            if row[:16] != last:
                if last is not None and (removed or not kinds & REMOVED):
                    yield rows.id_in(last)
                last, kinds = row[:16], set()
            kinds.add(row[16])
        if last is not None and (removed or not kinds & REMOVED):
            yield rows.id_in(last)

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
        """Deliveries with this term captured in [since_us, until_us), and maybe some that share a hash or a
        microsecond with one: look again."""
        prefix = rows.term_prefix(kind, value)
        low, high = _interval(since_us, until_us)
        last = None
        for row in self._range(Table.TERM, prefix + low, prefix + high, newest_first=newest_first):
            if row == last:
                continue
            last = row
            found = self._entries(row[8:])
            for delivery in sorted(found, key=lambda id_: id_[:8], reverse=newest_first):
                if removed or not any(type_ in REMOVED for type_, _ in found[delivery]):
                    yield delivery

    # -- what is known of streams, packs and the rest

    def state(self, stream: str) -> StreamState | None:
        """How far this stream has been applied."""
        value = self.meta(b"stream:" + stream.encode())
        return None if value is None else StreamState(*msgspec.msgpack.decode(value))

    def unread(self, stream: str) -> list[Unread]:
        """What is sealed and was applied without its facts, since no identity was there to open it."""
        value = self.meta(b"unread:" + stream.encode())
        stretches = msgspec.msgpack.decode(value) if value else []
        return [Unread(StreamState(*start), tuple(end)) for start, end in stretches]

    def tree(self, stream: str) -> TreeState:
        """How far the tree over a stream's facts has grown."""
        value = self.meta(b"tree:" + stream.encode())
        return TreeState() if value is None else msgspec.msgpack.decode(value, type=TreeState)

    def tiles(self, stream: int, level: int, first: int, count: int) -> list[bytes]:
        """The hashes of complete subtrees, of so many as there are from number `first` on."""
        low, high = (rows.tile_prefix(stream, level, number) for number in (first, first + count))
        found = dict.fromkeys(self._range(Table.TILE, low, high, newest_first=False))
        return [row[len(low) :] for row in found]

    def block(self, stream: int, number: int) -> Location | None:
        """The record in which a block of 256 facts begins; `inner` facts of it come before."""
        found = self._find(Table.BLOCK, rows.block_row(stream, number, b""))
        places = (self._location(row, PLACE_AT[Table.BLOCK]) for row in found)
        return next((where for where in places if where is not None), None)

    def durable(self, stream: str) -> tuple[int, int]:
        """(pack, offset) up to which an index that was emptied had seen this stream; (0, 0) if never."""
        value = self.meta(b"durable:" + stream.encode())
        return (0, 0) if value is None else tuple(msgspec.msgpack.decode(value))

    def packs(self, stream: int) -> list[int]:
        """The packs of a stream (by its number) in which something lies, as far as the index knows."""
        return [pack for owner, pack in self.known.catalogue.packs.values() if owner == stream]

    def counters(self) -> Counters:
        """The totals."""
        value = self.meta(b"counters")
        return Counters() if value is None else msgspec.msgpack.decode(value, type=Counters)

    def waste(self) -> dict[tuple[int, int], Waste]:
        """(stream number, pack) -> what it holds of removed deliveries."""
        packs = self.known.catalogue.packs
        return {
            packs[number]: msgspec.msgpack.decode(value, type=Waste)
            for key, value in self.meta_range(b"waste:")
            if (number := int.from_bytes(key, "big")) in packs
        }

    def holds(self) -> dict[str, Hold]:
        """All holds, those released too, by name: the latest word on each. Raises `SealedError`."""
        found = [self._hold(value) for _, value in self.meta_range(b"hold:")]
        return {hold.name: hold for hold in sorted(found, key=lambda hold: hold.name)}

    def _hold(self, value: bytes) -> Hold:
        if value.startswith(SEALED):
            opened = self._index.keyring.unwrap(msgspec.msgpack.decode(value[len(SEALED) :])[3])
            if opened is None:
                raise SealedError("a hold is sealed, and no identity at hand opens it")
            value = opened
        return msgspec.msgpack.decode(value, type=Hold)

    def stale_holds(self) -> list[Hold]:
        """Holds that are not sealed for the present recipients, and that can be opened."""
        found = []
        wanted = self._index.keyring.fingerprints
        for _, value in self.meta_range(b"hold:"):
            if not value.startswith(SEALED) or msgspec.msgpack.decode(value[len(SEALED) :])[2] != wanted:
                with contextlib.suppress(SealedError):
                    found.append(self._hold(value))
        return found

    def run(self, selection: bytes) -> str | None:
        """The unfinished replay run for this selection, if there is one."""
        last = self.last_run(selection)
        return None if last is None or last[1] else last[0]

    def last_run(self, selection: bytes) -> tuple[str, bool] | None:
        """The last replay run for this selection, and whether it is finished."""
        value = self.meta(run_key(selection))
        if value is None:
            return None
        run, _time_us, finished = msgspec.msgpack.decode(value)
        return str(run), bool(finished)

    def mark(self) -> bytes | None:
        """What this index was made for: schema and store."""
        return self.meta(b"mark")

    def bad(self) -> frozenset[Record]:
        """Records known to be damaged: what lies in them is not offered for deduplication."""
        value = self.meta(b"bad")
        return frozenset() if value is None else frozenset(map(tuple, msgspec.msgpack.decode(value)))

    def is_condemned(self, name: bytes) -> bool:
        """Whether compaction is about to drop this chunk or content: it must be stored anew."""
        return next(self.meta_range(condemned_key(name)), None) is not None

    def condemners(self) -> dict[bytes, str]:
        """Who has condemned something (a token of 8 bytes), and which stream each compacts."""
        return {key: value.decode() for key, value in self.meta_range(b"condemner:")}

    def has_condemned(self) -> bool:
        """Whether anything is condemned now."""
        return next(self.meta_range(b"condemned:"), None) is not None

    def condemnations(self) -> int:
        """Rises whenever something is condemned."""
        return int.from_bytes(self.meta(b"condemnations") or b"", "big")

    def rows(self) -> int:
        """Rows in LMDB and in all runs."""
        fresh = int(self._txn.stat(self._index.fresh)["entries"])
        return fresh + sum(run.rows for run in self.known.catalogue.runs)


def _interval(since_us: int, until_us: int) -> tuple[bytes, bytes]:
    return max(since_us, 0).to_bytes(8, "big"), min(max(until_us, 0), _MAX_TIME).to_bytes(8, "big")


def _best(found: Iterable[Location | None], bad: frozenset[Record]) -> Location | None:
    """The first place that is in none of the `bad` records; in one of them only if there is no other."""
    worse = None
    for where in found:
        if where is not None and where.record not in bad:
            return where
        worse = worse or where
    return worse
