"""The index: where things lie, in LMDB. The only file that knows LMDB.

It is a view: everything in it comes from the streams, and may be thrown away. It holds locations, not mail.
LMDB runs with its safe defaults (a sync for every commit) on the 0.9 engine, named explicitly because the
library carries two engines that cannot read each other's files, and with a map far larger than any
index, since growing the map of a running environment is where LMDB users get hurt; the file stays sparse.
"""

from __future__ import annotations

import contextlib
import enum
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
from blake3 import blake3

from store.errors import DamagedError, IndexFailedError, StoreFullError
from store.files import adopt
from store.ids import ChunkId, ContentId, DeliveryId
from store.records import EntryType
from store.scan import Location, Record, StreamState

MAP_BYTES = 1 << 40
SCHEMA = 1
"""of the tables; an index with another one is built anew"""
_MAX_READERS = 1024
_ENGINE_0_9 = 0
_LOCATION = struct.Struct("<IIQIII")
_LISTED = struct.Struct("<BIIQIII")
_TERM_HASH_BYTES = 8
_CONTENT_KEY_BYTES = 16
_MAX_TIME = (1 << 64) - 1


_DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


class Term(enum.IntEnum):
    """What a delivery can be looked up by."""

    RECIPIENT = 1
    SENDER = 2
    QUEUE_ID = 3
    MESSAGE_ID = 4
    REPLAY_RUN = 5


class Counters(msgspec.Struct):
    """What the index has counted, over all streams."""

    deliveries: dict[str, int] = {}
    message_bytes: int = 0
    contents: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    uncaptured: int = 0
    replays: int = 0


def term_key(kind: Term, value: bytes) -> bytes:
    """The first 9 bytes of the keys under which deliveries with this term stand."""
    return bytes([kind]) + blake3(value).digest(_TERM_HASH_BYTES)


def _run_key(selection: bytes) -> bytes:
    return b"run:" + blake3(selection).digest(16)


def _by_time(delivery: DeliveryId) -> bytes:
    return delivery[8:] + delivery[:8]


def _from_time_key(key: bytes) -> DeliveryId:
    return DeliveryId(key[8:16] + key[:8])


class Snapshot:
    """A consistent look at the index; short-lived, since an open one keeps LMDB's old pages in use."""

    def __init__(self, txn: Any, tables: dict[str, Any]) -> None:
        self._txn = txn
        self._tables = tables

    def _get(self, table: str, key: bytes) -> bytes | None:
        value: bytes | None = self._txn.get(key, db=self._tables[table])
        return value

    def state(self, stream: str) -> StreamState | None:
        """How far this stream has been applied."""
        value = self._get("meta", b"stream:" + stream.encode())
        return None if value is None else StreamState(*msgspec.msgpack.decode(value))

    def chunk(self, chunk: ChunkId) -> Location | None:
        """Where a chunk lies."""
        value = self._get("chunks", chunk)
        return None if value is None else Location._make(_LOCATION.unpack(value))

    def content(self, content: ContentId) -> Location | None:
        """Where a content's recipe lies."""
        value = self._get("contents", content[:_CONTENT_KEY_BYTES])
        return None if value is None else Location._make(_LOCATION.unpack(value))

    def delivery(self, delivery: DeliveryId) -> list[tuple[EntryType, Location]]:
        """The entries that speak of a delivery, in the order they were committed; empty when unknown."""
        value = self._get("deliveries", _by_time(delivery)) or b""
        return [(EntryType(row[0]), Location._make(row[1:])) for row in _LISTED.iter_unpack(value)]

    def counters(self) -> Counters:
        """The totals."""
        value = self._get("meta", b"counters")
        return Counters() if value is None else msgspec.msgpack.decode(value, type=Counters)

    def run(self, selection: bytes) -> str | None:
        """The unfinished replay run for this selection, if there is one."""
        value = self._get("meta", _run_key(selection))
        if value is None:
            return None
        run, _time_us, finished = msgspec.msgpack.decode(value)
        return None if finished else str(run)

    def durable(self, stream: str) -> tuple[int, int]:
        """(pack, offset) up to which an index that was emptied had seen this stream; (0, 0) if never."""
        value = self._get("meta", b"durable:" + stream.encode())
        return (0, 0) if value is None else tuple(msgspec.msgpack.decode(value))

    def packs(self, stream: str) -> list[int]:
        """The packs from which something is in the index."""
        value = self._get("meta", b"packs:" + stream.encode())
        return [] if value is None else msgspec.msgpack.decode(value)

    def resolve(self, prefix: str, most: int = 2) -> list[DeliveryId]:
        """Up to `most` delivery ids whose hexadecimal form begins with `prefix`."""
        low = bytes.fromhex(prefix if len(prefix) % 2 == 0 else prefix + "0")
        found: list[DeliveryId] = []
        with self._txn.cursor(db=self._tables["ids"]) as cursor:
            if cursor.set_range(low):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.hex().startswith(prefix) or len(found) == most:
                        break
                    found.append(DeliveryId(key))
        return found

    def mark(self) -> bytes | None:
        """What this index was made for: schema and store."""
        return self._get("meta", b"mark")

    def bad(self) -> frozenset[Record]:
        """Records known to be damaged: what lies in them is not offered for deduplication."""
        value = self._get("meta", b"bad")
        return frozenset() if value is None else frozenset(map(tuple, msgspec.msgpack.decode(value)))

    def has_term(self, kind: Term, value: bytes, delivery: DeliveryId) -> bool:
        """Whether a delivery stands under a term."""
        return self._get("terms", term_key(kind, value) + _by_time(delivery)) is not None

    def by_time(self, since_us: int, until_us: int, *, newest_first: bool) -> Iterator[DeliveryId]:
        """Deliveries captured in [since_us, until_us)."""
        yield from self._range("deliveries", b"", since_us, until_us, newest_first=newest_first)

    def by_term(
        self, kind: Term, value: bytes, since_us: int, until_us: int, *, newest_first: bool
    ) -> Iterator[DeliveryId]:
        """Deliveries with this term captured in [since_us, until_us). Hashes may collide: look again."""
        yield from self._range("terms", term_key(kind, value), since_us, until_us, newest_first=newest_first)

    def _range(
        self, table: str, prefix: bytes, since_us: int, until_us: int, *, newest_first: bool
    ) -> Iterator[DeliveryId]:
        low = prefix + max(since_us, 0).to_bytes(8, "big")
        high = prefix + min(max(until_us, 0), _MAX_TIME).to_bytes(8, "big")
        with self._txn.cursor(db=self._tables[table]) as cursor:
            if newest_first:
                found = cursor.prev() if cursor.set_range(high) else cursor.last()
                keys = cursor.iterprev(keys=True, values=False)
            else:
                found = cursor.set_range(low)
                keys = cursor.iternext(keys=True, values=False)
            if not found:
                return
            for key in keys:
                if key < low or key >= high:
                    return
                yield _from_time_key(key[len(prefix) :])


class Update(Snapshot):
    """A write transaction: what has been put is seen by nobody until it commits."""

    def _put(self, table: str, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._tables[table])

    def put_mark(self, mark: bytes) -> None:
        """Note what this index is made for."""
        self._put("meta", b"mark", mark)

    def put_state(self, stream: str, state: StreamState) -> None:
        """How far this stream has now been applied."""
        row = [
            state.pack, state.offset, state.next_record, state.commits, state.facts, state.chain,
            state.last_commit_us,
        ]  # fmt: skip
        self._put("meta", b"stream:" + stream.encode(), msgspec.msgpack.encode(row))
        packs = self.packs(stream)
        if state.pack not in packs:
            self._put("meta", b"packs:" + stream.encode(), msgspec.msgpack.encode([*packs, state.pack]))

    def put_bad(self, records: Iterable[Record]) -> None:
        """These records are damaged, and no others."""
        self._put("meta", b"bad", msgspec.msgpack.encode(sorted(records)))

    def put_chunk(self, chunk: ChunkId, where: Location, bad: frozenset[Record] = frozenset()) -> bool:
        """Add a chunk; False when it is there already. The first place stays, unless it is `bad`."""
        return self._place("chunks", chunk, where, bad)

    def put_content(self, content: ContentId, where: Location, bad: frozenset[Record] = frozenset()) -> bool:
        """Add a recipe; False when it is there already."""
        return self._place("contents", content[:_CONTENT_KEY_BYTES], where, bad)

    def _place(self, table: str, key: bytes, where: Location, bad: frozenset[Record]) -> bool:
        value = _LOCATION.pack(*where)
        if self._txn.put(key, value, db=self._tables[table], overwrite=False):
            return True
        if bad and Location._make(_LOCATION.unpack(self._get(table, key) or value)).record in bad:
            self._put(table, key, value)
        return False

    def put_delivery(
        self, delivery: DeliveryId, where: Location, terms: Iterable[tuple[Term, bytes]]
    ) -> None:
        """Add a delivery, under its id, its time and its terms."""
        self.add_to_delivery(delivery, EntryType.DELIVERY, where)
        self._put("ids", delivery, b"")
        for kind, value in terms:
            self.put_term(kind, value, delivery)

    def put_term(self, kind: Term, value: bytes, delivery: DeliveryId) -> None:
        """One more thing to look a delivery up by."""
        self._put("terms", term_key(kind, value) + _by_time(delivery), b"")

    def add_to_delivery(self, delivery: DeliveryId, kind: EntryType, where: Location) -> None:
        """Note that one more entry speaks of this delivery."""
        key = _by_time(delivery)
        self._put("deliveries", key, (self._get("deliveries", key) or b"") + _LISTED.pack(kind, *where))

    def put_counters(self, counters: Counters) -> None:
        """The totals."""
        self._put("meta", b"counters", msgspec.msgpack.encode(counters))

    def put_run(self, selection: bytes, run: str, time_us: int, *, finished: bool) -> None:
        """How the replay run for this selection stands; the latest word wins, whatever order they come in."""
        known = self._get("meta", _run_key(selection))
        if known is None or msgspec.msgpack.decode(known)[1] <= time_us:
            self._put("meta", _run_key(selection), msgspec.msgpack.encode([run, time_us, finished]))

    def clear(self) -> None:
        """Empty every table, to be filled again from the streams; how far each had been seen is kept."""
        seen: dict[bytes, tuple[int, int]] = {}
        with self._txn.cursor(db=self._tables["meta"]) as cursor:
            for key, value in cursor:
                kind, _, name = bytes(key).partition(b":")
                if kind in {b"stream", b"durable"}:
                    pack, offset = msgspec.msgpack.decode(value)[:2]
                    seen[name] = max(seen.get(name, (0, 0)), (pack, offset))
        for table in self._tables.values():
            self._txn.drop(table, delete=False)
        for name, place in seen.items():
            self._put("meta", b"durable:" + name, msgspec.msgpack.encode(place))


class Index:
    """The LMDB environment of one store; usable from many threads and processes at once.

    Opening it twice in one process is an error of LMDB's; never carry it over a fork.
    """

    _TABLES = ("meta", "chunks", "contents", "deliveries", "ids", "terms")

    def __init__(self, path: Path, store_id: bytes) -> None:
        self.path = path
        fresh = not (path / "data.mdb").exists()
        if not path.exists():
            path.mkdir(mode=0o700)
            adopt(path)
        try:
            self._env = lmdb.open(
                str(path), map_size=MAP_BYTES, max_dbs=len(self._TABLES), max_readers=_MAX_READERS,
                mode=0o600, subdir=True, lib_version=_ENGINE_0_9,
            )  # fmt: skip
            self._env.reader_check()  # slots of readers that were killed would pin old pages for ever
            self._tables = {name: self._env.open_db(name.encode(), create=True) for name in self._TABLES}
        except _DAMAGED as exc:
            raise DamagedError(f"the index at {path} is damaged: {exc}") from exc
        except lmdb.Error as exc:
            raise IndexFailedError(f"the index at {path} cannot be opened: {exc}") from exc
        if fresh:
            adopt(path / "data.mdb")
            adopt(path / "lock.mdb")
        mark = b"%d:%s" % (SCHEMA, store_id)
        with self.read() as snapshot:
            known = snapshot.mark()
        if known != mark:
            with self.update() as update:
                if update.mark() not in {None, mark}:
                    update.clear()  # another version's, or another store's
                update.put_mark(mark)

    @contextlib.contextmanager
    def read(self) -> Iterator[Snapshot]:
        """A snapshot for the length of the block."""
        with self._translated(), self._env.begin() as txn:
            yield Snapshot(txn, self._tables)

    @contextlib.contextmanager
    def update(self) -> Iterator[Update]:
        """A write transaction, committed and synced when the block ends well, else undone."""
        with self._translated(), self._env.begin(write=True) as txn:
            yield Update(txn, self._tables)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.MapFullError, lmdb.DiskError) as exc:
            raise StoreFullError(f"the index at {self.path} cannot grow: {exc}") from exc
        except _DAMAGED as exc:
            raise DamagedError(f"the index at {self.path} is damaged: {exc}") from exc
        except lmdb.Error as exc:
            raise IndexFailedError(f"the index at {self.path} failed: {exc}") from exc

    def close(self) -> None:
        """No snapshot or update may be open."""
        self._env.close()
