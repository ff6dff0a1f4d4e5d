"""A store: its directory, its key, its streams and the index over them, behind one object.

    path/mailkeep.store     what it is: format, id, key (JSON, 0600)
    path/streams/NAME/      packs of one stream
    path/index/             LMDB, derived

Readers need no lock and may run beside the writer. A reader first applies to the index whatever the writer
has not, so it sees every message that was acknowledged before it began.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from store import content, records
from store.about import About
from store.deliveries import Query, StoredDelivery, Told, assemble, candidates, listed
from store.errors import (
    AmbiguousIdError,
    DamagedError,
    NotFoundError,
    PackGoneError,
    SealedError,
    StoreError,
    StoreLockedError,
)
from store.files import Fill, all_here, sync_directory
from store.ids import DELIVERY_ID_BYTES, FOREVER_US, ChunkId, ContentId, DeliveryId, keyed_digest
from store.index import Index
from store.indexer import Indexer
from store.ingest import Ingest
from store.layout import STREAM_NAME_BYTES
from store.log import COMPACT_LOCK, DEFAULT_PACK_BYTES, StreamLog, lock_stream
from store.neighbours import Neighbours
from store.packs import PackReader
from store.places import Location, StreamState
from store.records import (
    Content,
    Delivery,
    Entry,
    EntryType,
    Leg,
    Replay,
)
from store.rows import Term
from store.scan import Suiting, readers_of
from store.sealing import NO_KEYS, Identity, Keyring, fingerprint, recipients_of
from store.segments import all_packs, pack_path
from store.snapshot import REMOVED, Counters, Snapshot
from store.view import CaughtUp, View, find_end
from store.writer import GroupFacts, Pending, Writer

log = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_RESERVE_BYTES = 64 << 20
_MUCH_BYTES = 64 << 20
"""bytes of packs that are indexed while one waits; more take more than a second or two"""


@dataclass(frozen=True, slots=True)
class Stats:
    """Totals over all streams; sizes in bytes. `pack_bytes` and `index_bytes` are what the disk holds."""

    counters: Counters
    pack_bytes: int
    index_bytes: int
    streams: tuple[str, ...]
    last_commit_us: int


class Store:
    """An open store. Close it; use it as a context manager."""

    def __init__(
        self,
        path: Path,
        id_: bytes,
        key: bytes,
        *,
        wait: bool = True,
        catch_up: bool = True,
        keyring: Keyring = NO_KEYS,
        fill: Fill = all_here,
    ) -> None:
        """For most `open` is the way in. `fill`: what is to be asked for before a pack or run is read.
        `catch_up` False: the index is as somebody else leaves it."""
        self.path = path
        self.id = id_
        self.key = key
        self.fill = fill
        self.keyring = keyring
        self.damage: list[str] = []
        self._streams = path / "streams"
        self._packs = PackReader(self._streams, self.id, keyring=keyring, fill=fill)
        self._writer: Writer | None = None
        self._indexer: Indexer | None = None
        self._pending = Pending()
        self._behind = False
        self._neighbours: Neighbours | None = None
        self._others: tuple[str, ...] = ()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._open_view(wait=wait, catch_up=catch_up)
        except DamagedError as exc:
            if not self._put_index_aside(exc):
                raise
            self._open_view(wait=wait, catch_up=catch_up)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        create: bool = False,
        wait: bool = True,
        recipients: Sequence[str] | None = None,
        identities: Sequence[Identity] = (),
    ) -> Store:
        """Raises `StoreNotFoundError`, `FormatError`, `IdentityError`, `SealedError` when it is sealed and
        none of the `identities` given opens any of it, or another `StoreError`.

        An index that is far behind (lost, say) is caught up before this returns, or with `wait` False behind
        the writer that `start_writing` begins. With `recipients` whatever is written from now on, by
        whomever, is sealed for them, or (with none of them) no more; without, what was said last holds.
        """
        about = About.read(path, create=create)
        keyring = Keyring(recipients_of(about.recipients if recipients is None else recipients), identities)
        _refuse_wrong_identity(path, about, keyring)
        wanted = tuple(recipient.text for recipient in keyring.recipients)
        if wanted != about.recipients:
            replace(about, recipients=wanted).write(path)
        return cls(path, about.id, about.key, wait=wait, keyring=keyring)

    @property
    def blind(self) -> bool:
        """Whether what is written here is sealed for others: no identity at hand opens it."""
        return self.keyring.blind

    def require_identity(self) -> None:
        """Raises `SealedError` where nothing of what is sealed can be read."""
        if self.keyring.seals and not self.keyring.identities:
            raise SealedError(f"{self.path} is sealed for {self.keyring.told()}, and no identity is given")

    @property
    def has_identities(self) -> bool:
        """Whether anything that is sealed can be opened."""
        return bool(self.keyring.identities)

    @property
    def name(self) -> str:
        """What an operator knows it by."""
        return str(self.path)

    is_remote = False
    """whether it is a replica, read where it is"""
    faults: Sequence[str] = ()
    """what kept parts of it from being looked at when it was opened: see `store.fleet`"""

    @property
    def members(self) -> tuple[Store, ...]:
        """Itself: a fleet has several (`store.fleet`)."""
        return (self,)

    @property
    def hidden(self) -> list[str]:
        """The streams of which some facts are sealed for others and not in the index."""
        with self.index.read() as snapshot:
            return [name for name in self.view.names() if snapshot.unread(name)]

    @property
    def lacks(self) -> list[str]:
        """The streams of which some facts are damaged or missing, and not in the index."""
        with self.index.read() as snapshot:
            names = [name for name in self.view.names() if not snapshot.unread(name)]
            return [name for name in names if not snapshot.tree(name).whole]

    def require_whole(self) -> None:
        """Raises `SealedError` unless all facts are in the index: whoever decides what may go must know every
        hold and every delivery."""
        if self.blind:
            raise SealedError(
                f"{self.path} is sealed for {self.keyring.told()}, and no identity given opens it"
            )
        if hidden := self.hidden:
            raise SealedError(f"part of {', '.join(hidden)} is sealed for others: what it holds is not known")

    def _open_view(self, *, wait: bool, catch_up: bool) -> None:
        index = self.path / "index"
        if not os.access(self.path, os.W_OK) or (
            index.exists() and not os.access(index / "data.mdb", os.W_OK)
        ):
            # LMDB needs to write even to read. On a medium that is read-only, or for somebody who may only
            # look, the index is built from the streams for as long as this store is open.
            self._scratch = tempfile.TemporaryDirectory(prefix="mailkeep-index-")
            index = Path(self._scratch.name)
        self.index = Index(index, self.id, keyring=self.keyring, fill=self.fill)
        try:
            self.view = View(self.index, self._streams, self.id, self.keyring, self.fill)
            self._behind = not wait and self.view.behind() > _MUCH_BYTES
            if catch_up and not self._behind:
                for stream in self.view.names():
                    self._note(self.view.catch_up(stream))
            self._reseal_holds()
        except BaseException:
            self.index.close()
            raise

    def _reseal_holds(self) -> None:
        """After a rotation of keys holds must be open to the new ones, too."""
        if self.keyring.seals and self.keyring.identities:
            with self.index.read() as snapshot:
                stale = snapshot.stale_holds()
            if stale:
                with self.index.update() as update:
                    for hold in stale:
                        update.put_hold(hold)

    def _put_index_aside(self, why: DamagedError) -> bool:
        """Make way for a new index. False while anybody writes, who would go on in the old one."""
        with contextlib.ExitStack() as locks:
            try:
                for stream in self._streams.iterdir():
                    for name in ("lock", COMPACT_LOCK):  # nor while anybody compacts
                        locks.enter_context(lock_stream(stream, name))
            except StoreLockedError:
                return False
            aside = self.path / f"index.damaged-{time.strftime('%Y%m%dT%H%M%S')}"
            log.error("%s; put aside as %s and rebuilt from the streams", why, aside)
            (self.path / "index").rename(aside)
            return True

    def _note(self, caught: CaughtUp) -> None:
        self.damage += [str(damage) for damage in caught.damage]

    def start_writing(
        self,
        stream: str,
        *,
        pack_bytes: int = DEFAULT_PACK_BYTES,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        level: int = 3,
        on_group: Callable[[GroupFacts], None] | None = None,
    ) -> Writer:
        """Take the stream (made if new) and start its writer. Raises `StoreLockedError` when it is taken."""
        if len(stream.encode()) > STREAM_NAME_BYTES or "/" in stream or not stream.strip("."):
            raise StoreError(f"{stream!r} cannot name a stream: up to {STREAM_NAME_BYTES} bytes, no slash")
        directory = self._streams / stream
        lock = lock_stream(directory)
        try:
            sync_directory(self._streams)
            caught = find_end(directory, self.id) if self._behind else self.view.catch_up(stream)
            if caught.torn and caught.torn.offset == 0:
                caught.torn.path.unlink()  # a pack whose header never came to be
            if caught.damage:  # what cannot be read is not what the writer goes on from
                caught.state = find_end(directory, self.id).state
            with self.index.update() as update:
                update.sweep()
                update.fold()  # the writer does not look into LMDB for what others left there
                last_pack = max(caught.state.pack, update.durable(stream)[0])
            appender = StreamLog(
                directory, self.id, caught.state, lock=lock,
                new_pack=bool(caught.damage or caught.torn), last_pack=last_pack,
                pack_bytes=pack_bytes, level=level, keyring=self.keyring,
            )  # fmt: skip
        except BaseException:
            lock.release()
            raise
        self._note(caught)
        self._indexer = Indexer(self.view, behind=self._behind, note=self._note)
        self._writer = Writer(
            appender, self.index, directory,
            publish=self._indexer.put, reserve_bytes=reserve_bytes, on_group=on_group,
            suits=Suiting(self._streams, self.id, self.keyring),
            neighbours=self._neighbours, others=self._others,
        )  # fmt: skip
        self._pending = self._indexer.pending = self._writer.pending
        return self._writer

    def among_others(self, neighbours: Neighbours, others: Sequence[str]) -> None:
        """Other processes write to this store as well, the streams `others`, and tell what is new there
        through `neighbours`. To be called before `start_writing`."""
        self._neighbours, self._others = neighbours, tuple(others)

    def end_pack(self, stream: str) -> None:
        """End the open pack of a stream that nobody writes. Raises `StoreLockedError` when somebody does."""
        lock = lock_stream(self._streams / stream)
        try:
            caught = self.view.catch_up(stream)
            if caught.torn and caught.torn.offset == 0:
                caught.torn.path.unlink()
            with self.index.read() as snapshot:
                last_pack = max(caught.state.pack, snapshot.durable(stream)[0])
            StreamLog(
                self._streams / stream,
                self.id,
                caught.state,
                lock=None,
                new_pack=True,
                last_pack=last_pack,
                keyring=self.keyring,
            ).close()
        finally:
            lock.release()

    def start_writing_beside(self, name: str) -> Writer:
        """A stream of one's own for a short-lived writer: NAME, or the first free NAME-2, NAME-3…"""
        number = 1
        while True:
            stream = name if number == 1 else f"{name}-{number}"
            try:
                return self.start_writing(stream)
            except StoreLockedError:
                number += 1

    def catch_up(self) -> None:
        """Take in what other processes have committed since the last look."""
        own = self._writer.stream if self._writer else ""
        for stream in self.view.names():
            if stream != own:
                self.view.catch_up(stream)

    def state(self, stream: str) -> StreamState:
        """How far a stream is known now; what was committed since the last look is taken in first."""
        return self.view.catch_up(stream).state

    @property
    def index_lag(self) -> int:
        """Commits that are durable and not yet in the index."""
        return self._indexer.waiting if self._indexer else 0

    def begin(self) -> Ingest:
        """A new message. Needs `start_writing`."""
        return Ingest(self.writer, self.key)

    @property
    def writer(self) -> Writer:
        """The writer that `start_writing` began."""
        if self._writer is None:
            raise StoreError("the store is open for reading only")
        return self._writer

    def deliveries(self, query: Query) -> Iterator[StoredDelivery]:
        """What was captured, in order of time. Damaged entries are logged and passed over, and so is what is
        sealed for others. Raises `SealedError` where nothing can be read."""
        self.require_identity()
        with self.index.read() as snapshot:
            found = (
                (delivery, partial(self._load_as_it_is, snapshot, delivery, query.as_of_us))
                for delivery in candidates(snapshot, query)
            )
            yield from listed(found, query, may_read=self.has_identities)

    def _load_as_it_is(self, snapshot: Snapshot, delivery: DeliveryId, as_of_us: int) -> StoredDelivery:
        """A delivery; looked up anew where compaction has replaced its pack since `snapshot`."""
        try:
            return self._load(snapshot, delivery, as_of_us)
        except PackGoneError:
            with self.index.read() as now:
                return self._load(now, delivery, as_of_us)

    def each(
        self, found: Iterable[DeliveryId], as_of_us: int = FOREVER_US
    ) -> Iterator[tuple[DeliveryId, Callable[[], StoredDelivery]]]:
        """Deliveries that were found, in their order, with what loads each; raises what `delivery` does."""
        return ((delivery, partial(self.delivery, delivery, as_of_us)) for delivery in found)

    def let_go(self) -> None:
        """Close packs that are removed, whose space the disk gets back only then."""
        self._packs.let_go()

    def delivery(self, delivery: DeliveryId, as_of_us: int = FOREVER_US) -> StoredDelivery:
        """Raises `NotFoundError` (its subclass `RemovedError` if it was erased or has expired),
        `DamagedError`."""
        with self.index.read() as snapshot:
            return self._load_as_it_is(snapshot, delivery, as_of_us)

    def resolve(self, prefix: str) -> DeliveryId:
        """The delivery whose id begins with these hex digits. Raises `NotFoundError`, `AmbiguousIdError`."""
        text = prefix.strip().lower()
        if not text or len(text) > 2 * DELIVERY_ID_BYTES or text.strip("0123456789abcdef"):
            raise NotFoundError(f"{prefix!r} is no delivery id (up to 32 hexadecimal digits)")
        with self.index.read() as snapshot:
            found = snapshot.resolve(text)
        if not found:
            raise NotFoundError(f"there is no delivery {prefix!r}")
        if len(found) > 1:
            raise AmbiguousIdError(
                f"{prefix!r} fits {found[0].hex()[:12]}, {found[1].hex()[:12]} and perhaps more"
            )
        return found[0]

    def may_be_retry(self, queue_id: bytes) -> bool:
        """Whether a delivery with this queue id has come through LMTP: the milter's capture of the same mail
        is no earlier attempt. Raises `DamagedError`."""
        if self.blind:  # neither the replies nor the message could be read back
            return False
        if queue_id in self._pending.queue_ids:
            return True
        query = Query(terms=((Term.QUEUE_ID, queue_id),))
        return any(found.delivery.leg == Leg.LMTP for found in self.deliveries(query))

    def settle_index(self, timeout_s: float = 5.0) -> None:
        """Wait until what is durable now is in the index too."""
        if self._indexer:
            self._indexer.settle(timeout_s)

    def refresh(self) -> None:
        """Have in the index what is durable now, whoever wrote it."""
        self.settle_index()
        self.catch_up()

    def recipe(self, content_id: ContentId) -> Content:
        """How a content's bytes are put together. Raises `NotFoundError`, `DamagedError`."""

        def find() -> Location | None:
            where = self._pending.contents.get(content_id)
            if where is None:
                with self.index.read() as snapshot:
                    where = snapshot.content(content_id, snapshot.bad())
            return where

        entry = self._follow(find, self._packs.entry)
        if not isinstance(entry, Content) or entry.id != content_id:
            raise NotFoundError(f"content {content_id.hex()[:16]} is not in the store")
        return entry

    def read(self, content_id: ContentId) -> Iterator[bytes]:
        """A message's bytes; see `store.content.assemble` for what must be kept in mind."""
        return content.assemble(self.recipe(content_id), self._fetch, self.key)

    def skim(self, content_id: ContentId, most_bytes: int) -> Iterator[bytes]:
        """A message's bytes without its long base64 runs (of more than `most_bytes`, decoded), for whoever
        looks for words: what is left out is not even read. Each chunk is checked against its name, the whole
        against nothing. Raises `NotFoundError`, `DamagedError`."""
        recipe = self.recipe(content_id)
        coded = {chunk for run in recipe.runs if run.width for chunk in run.chunks}
        with self.index.read() as snapshot:
            sizes = {chunk: where.size for chunk in coded if (where := snapshot.chunk(chunk))}
        yield from content.assemble_some(
            recipe, self._fetch, self.key,
            lambda run: not run.width or sum(sizes.get(chunk, 0) for chunk in run.chunks) <= most_bytes,
        )  # fmt: skip

    def read_small(self, content_id: ContentId) -> bytes:
        """A message whole and verified, for one that fits into memory: by a single look at the index, half of
        what a small one costs. Raises as `read` does."""
        try:
            with self.index.read() as snapshot:
                bad = snapshot.bad()

                def fetch(chunk: ChunkId) -> bytes:
                    place = self._pending.chunks.get(chunk) or snapshot.chunk(chunk, bad)
                    return self._packs.chunk(place) if place else self._fetch(chunk)

                where = self._pending.contents.get(content_id) or snapshot.content(content_id, bad)
                entry = self._packs.entry(where) if where else None
                if not isinstance(entry, Content) or entry.id != content_id:
                    raise NotFoundError(f"content {content_id.hex()[:16]} is not in the store")
                return b"".join(content.assemble(entry, fetch, self.key))
        except PackGoneError:  # compaction replaced it meanwhile
            return b"".join(self.read(content_id))

    def have(self, content_id: ContentId, stop: Callable[[], bool] = lambda: False) -> None:
        """See to it that a message can be read without being fetched, where it is elsewhere; `stop` is asked
        for each record of it. Raises `NotFoundError`, `DamagedError`, `StoreError`."""
        recipe = self.recipe(content_id)
        with self.index.read() as snapshot:
            bad = snapshot.bad()
            places = [snapshot.chunk(chunk, bad) for run in recipe.runs for chunk in run.chunks]
        for where in {place.record: place for place in places if place}.values():
            if stop():
                return
            self._packs.have(where)

    def coming(self, found: Iterable[T], _content: Callable[[T], ContentId | None]) -> Iterator[T]:
        """What was found, as it is: all messages are at hand."""
        return iter(found)

    def _fetch(self, chunk: ChunkId) -> bytes:
        def find() -> Location | None:
            where = self._pending.chunks.get(chunk)
            if where is None:
                with self.index.read() as snapshot:
                    where = snapshot.chunk(chunk, snapshot.bad())
            return where

        data = self._follow(find, self._packs.chunk)
        if data is None and self.fill is all_here:
            # Perhaps another process has made it durable, and is about to index it. What is here of a replica
            # is indexed by whoever looks for more of it.
            self.catch_up()
            data = self._follow(find, self._packs.chunk)
        if data is None:
            raise DamagedError(f"chunk {chunk.hex()} is missing")
        return data

    def _follow(self, find: Callable[[], Location | None], read: Callable[[Location], T]) -> T | None:
        """What lies where `find` says; looked for again when compaction has just moved it."""
        where = find()
        try:
            return read(where) if where else None
        except PackGoneError:
            again = find()
            if again is None or again == where:
                raise
            return read(again)

    def _load(self, snapshot: Snapshot, delivery: DeliveryId, as_of_us: int = FOREVER_US) -> StoredDelivery:
        entries = snapshot.delivery(delivery)
        if not entries:
            raise NotFoundError(f"there is no delivery {delivery.hex()}")
        return assemble(delivery, self._told(entries), as_of_us)

    def _told(self, entries: list[tuple[EntryType, Location]]) -> list[Told]:
        return [(kind, partial(self._packs.entry, where)) for kind, where in entries]

    def told(self, delivery: DeliveryId) -> list[Told]:
        """All entries about a delivery, whatever became of it: none if it is not known here."""
        with self.index.read() as snapshot:
            return self._told(snapshot.delivery(delivery))

    def replays_in(self, run: str, delivery: DeliveryId) -> dict[bytes, Replay]:
        """The last word of a replay run on a delivery, for each recipient, whenever it was said and whatever
        became of the delivery since. Raises `DamagedError`."""
        try:
            return self._replays_in(run, delivery)
        except PackGoneError:  # compaction replaced it between two looks
            return self._replays_in(run, delivery)

    def _replays_in(self, run: str, delivery: DeliveryId) -> dict[bytes, Replay]:
        found: list[Replay] = []
        with self.index.read() as snapshot:
            for kind, where in snapshot.delivery(delivery):
                if kind == EntryType.REPLAY:
                    entry = self._packs.entry(where)
                    if isinstance(entry, Replay) and entry.run == run:
                        found.append(entry)
        return {replay.recipient: replay for replay in sorted(found, key=lambda replay: replay.time_us)}

    def with_content(self, content_id: ContentId) -> list[DeliveryId]:
        """Every delivery of this message, also those that were removed, newest first."""
        with self.index.read() as snapshot:
            found = snapshot.by_term(Term.CONTENT, content_id, 0, FOREVER_US, newest_first=True, removed=True)
            return list(found)

    def fact(self, snapshot: Snapshot, delivery: DeliveryId) -> Delivery | None:
        """The record of a delivery, also of one that was removed, as long as compaction has left it."""
        for kind, where in snapshot.delivery(delivery):
            if kind == EntryType.DELIVERY:
                entry = self._packs.entry(where)
                return entry if isinstance(entry, Delivery) else None
        return None

    def traces(self, delivery: DeliveryId) -> bytes:
        """What names the facts about a delivery to whoever drops it, end to end. Raises `DamagedError`."""
        try:
            return self._traces(delivery)
        except PackGoneError:  # compaction replaced it between two looks
            return self._traces(delivery)

    def _traces(self, delivery: DeliveryId) -> bytes:
        with self.index.read() as snapshot:
            places = [where for kind, where in snapshot.delivery(delivery) if kind not in REMOVED]
            leaves = [records.leaf(self._packs.encoded(where)) for where in places]
        return b"".join([leaf[: records.LEAF_NAME_BYTES] for leaf in leaves])

    def entry(self, where: Location) -> Entry:
        """The entry at a place that the index gave. Raises `DamagedError`, `SealedError`."""
        return self._packs.entry(where)

    def was_erased(self, content_id: ContentId) -> bool:
        """Whether this message was erased for good: whatever would bring it back must leave it."""
        with self.index.read() as snapshot:
            if not snapshot.counters().erased:  # asked for each message that is put back
                return False
            found = snapshot.by_term(
                Term.ERASED, self.tombstone(content_id), 0, FOREVER_US, newest_first=True, removed=True
            )
            return next(found, None) is not None

    def tombstone(self, content_id: ContentId) -> bytes:
        """What stands for a content in its erasure: 16 bytes that tell nothing to anyone without the key."""
        return keyed_digest(content_id, self.key)

    def run(self, selection: bytes) -> str | None:
        """The unfinished replay run for this selection, if there is one."""
        with self.index.read() as snapshot:
            return snapshot.run(selection)

    def last_run(self, selection: bytes) -> tuple[str, bool] | None:
        """The last replay run for this selection, if there was one, and whether it is finished."""
        with self.index.read() as snapshot:
            return snapshot.last_run(selection)

    def stats(self) -> Stats:
        """Totals."""
        with self.index.read() as snapshot:
            names = self.view.names()
            states = [snapshot.state(name) for name in names]
            counters = snapshot.counters()
        return Stats(
            counters, self.pack_bytes(), self.index.bytes_on_disk(), tuple(names),
            max((state.last_commit_us for state in states if state), default=0),
        )  # fmt: skip

    def pack_bytes(self) -> int:
        """What the packs take on disk."""
        total = 0
        for path in self._streams.glob("*/*.pack"):
            with contextlib.suppress(FileNotFoundError):  # compaction has just replaced it
                total += path.stat().st_size
        return total

    def close(self) -> None:
        """Write what was handed over, index it, and let go."""
        if self._writer:
            self._writer.close()
        if self._indexer:
            self._indexer.close()
        self._packs.close()
        self.index.close()
        if self._scratch:
            self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _refuse_wrong_identity(path: Path, about: About, keyring: Keyring) -> None:
    """A wrong key is told at once, before anything is done."""
    own = {fingerprint(identity.recipient) for identity in keyring.identities}
    named = {*about.recipients, *(recipient.text for recipient in keyring.recipients)}
    if not own or not about.recipients or own & {fingerprint(text) for text in named}:
        return
    for directory in sorted((path / "streams").iterdir()):
        for number in all_packs(directory):
            with contextlib.suppress(ValueError, OSError):
                if own & (readers_of(pack_path(directory, number), about.id) or frozenset()):
                    return
    raise SealedError(f"no identity given opens anything in {path}, which is sealed for {about.told()}")
