"""The single writer of a stream: many waiting deliveries, one flush.

A submission with entries is durable when its `done` is called with None, never before: its group's records
and COMMIT are then on disk. Chunks of a message still on its way are appended without a flush; a later
group makes them durable before any entry that names them. While one group is being flushed the next one
gathers by itself, so a busy server gets large groups and an idle one no delay. Knows nothing of SMTP.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from store.errors import StoreError, StoreFailedError, StoreFullError
from store.ids import ChunkId, ContentId
from store.index import Index
from store.layout import NewChunk
from store.log import StreamLog
from store.neighbours import Neighbours
from store.places import Group, Location, Record, stream_number
from store.records import Content, Delivery, Entry, Leg
from store.snapshot import Snapshot

log = logging.getLogger(__name__)

BLOCK_BYTES = 256 << 10
"""small chunks are compressed together up to about this many bytes"""
_GROUP_BYTES = 16 << 20
_GROUP_ENTRIES = 2000
_LAZY_DELAY_S = 0.25
_FULL_DELAY_S = 2.0
_MOST_BYTES = 2 << 30
"""of a pack, whatever its size may be by configuration"""
_ROOM_S = 0.05
"""how long a look at the free space is believed"""

Done = Callable[[StoreError | None], None]


@dataclass(slots=True)
class Tally:
    """What one message's chunks came to; written by the writer's thread alone."""

    new_bytes: int = 0
    duplicate_bytes: int = 0
    taken_bytes: int = 0
    condemnations: int | None = None
    """what the index said of condemnations when the first of them were taken"""


@dataclass(slots=True)
class Submission:
    """Chunks and entries to be written. With `lazy` they wait for the next group that anybody needs."""

    chunks: list[NewChunk] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    tally: Tally | None = None
    done: Done | None = None
    lazy: bool = False
    epoch: int | None = None
    """the writer's `epoch` when the first chunks of this message were handed over; None: all are here"""
    roll: bool = False
    """end the open pack, so that it may be compacted"""


class Pending:
    """What is durable and not yet in the index. Read by any thread, changed by writer and indexer.

    `recent_chunks` and `recent_contents` are in the index, but only in LMDB and in no run yet: the writer,
    which looks for duplicates in runs alone, finds them here, as long as their pack still counts.
    """

    def __init__(self) -> None:
        self.chunks: dict[ChunkId, Location] = {}
        self.contents: dict[ContentId, Location] = {}
        self.queue_ids: dict[bytes, int] = {}
        self.recent_chunks: dict[ChunkId, Location] = {}
        self.recent_contents: dict[ContentId, Location] = {}

    def add(self, group: Group) -> None:
        """Take in a group that has just become durable."""
        self.chunks.update(group.chunks)
        for entry, where in group.entries:
            if isinstance(entry, Content):
                self.contents[entry.id] = where
            elif isinstance(entry, Delivery) and entry.queue_id and entry.leg == Leg.LMTP:
                self.queue_ids[entry.queue_id] = group.state.commits

    def indexed(self, group: Group) -> None:
        """The index now has a group."""
        self.recent_chunks.update(group.chunks)
        for chunk, _ in group.chunks:
            self.chunks.pop(chunk, None)
        for entry, where in group.entries:
            if isinstance(entry, Content):
                self.recent_contents[entry.id] = where
                self.contents.pop(entry.id, None)
            elif isinstance(entry, Delivery) and self.queue_ids.get(entry.queue_id) == group.state.commits:
                del self.queue_ids[entry.queue_id]

    def folded(self) -> None:
        """Everything that is in the index is in its runs."""
        self.recent_chunks = {}
        self.recent_contents = {}


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """Figures about one group, for metrics."""

    submissions: int
    seconds: float
    written_bytes: int


class Writer:
    """Owns a `StreamLog` and the thread that writes to it. `submit` may be called from any thread."""

    def __init__(
        self,
        stream: StreamLog,
        index: Index,
        directory: Path,
        *,
        publish: Callable[[Group], None],
        reserve_bytes: int,
        on_group: Callable[[GroupFacts], None] | None = None,
        suits: Callable[[Location], bool] = lambda _where: True,
        neighbours: Neighbours | None = None,
        others: Sequence[str] = (),
    ) -> None:
        """`suits` says whether a new message may refer to what lies somewhere; `neighbours` is what processes
        that write the streams `others` tell each other."""
        self.pending = Pending()
        self.epoch = 0
        self.failure: StoreFailedError | None = None
        self._stream = stream
        self._index = index
        self._directory = directory
        self._publish = publish
        self._reserve_bytes = reserve_bytes
        self._on_group = on_group
        self._suits = suits
        self._neighbours = neighbours
        self._others = {stream_number(name): name for name in others}
        self._others_indexed: dict[int, int] = {}
        self._queue: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()
        self._stopping = False
        self._closed = False
        self._lazy: list[Submission] = []
        self._lazy_due = 0.0
        self._block: list[NewChunk] = []
        self._block_bytes = 0
        self._fresh: set[ChunkId] = set()
        self._bad: frozenset[Record] = frozenset()
        self._condemnations = 0
        self._condemned = False
        self._indexed_pack = 0
        self._room, self._room_due = 0, 0.0
        self._located: list[tuple[ChunkId, Location]] = []
        self._thread = threading.Thread(target=self._run, name=f"writer-{stream.name}", daemon=True)
        self._thread.start()

    def submit(self, submission: Submission) -> None:
        """Hand over; never blocks. `done` is called in the writer's thread, or at once when it is dead."""
        if self.failure is not None or self._closed:
            if submission.done:
                submission.done(self.failure or StoreFailedError("the store is closed"))
            return
        self._queue.put(submission)

    def roll(self, timeout_s: float = 60.0) -> None:
        """End the open pack, unless nothing is in it, so that it may be compacted. Raises `StoreError`."""
        ended = threading.Event()
        errors: list[StoreError | None] = []

        def done(error: StoreError | None) -> None:
            errors.append(error)
            ended.set()

        self.submit(Submission(roll=True, done=done))
        if not ended.wait(timeout_s):
            raise StoreError("the open pack was not ended in time")
        if errors[0] is not None:
            raise errors[0]

    @property
    def stream(self) -> str:
        """The stream that is written."""
        return self._stream.name

    @property
    def open_pack(self) -> tuple[int, int]:
        """(stream number, pack) that is being written."""
        return self._stream.number, self._stream.state.pack

    @property
    def open_pack_bytes(self) -> int:
        """What the open pack has come to."""
        return self._stream.pack_bytes

    def close(self) -> None:
        """Write what was handed over, then stop and let go of the stream."""
        self._queue.put(None)
        self._thread.join()
        self._closed = True
        while not self._queue.empty():  # handed over while we were closing
            late = self._queue.get()
            if late is not None and late.done:
                late.done(StoreFailedError("the store is closed"))
        self._stream.close()

    def _run(self) -> None:
        while not (self._stopping and self._queue.empty() and not self._lazy):
            batch = self._gather()
            if not batch:
                continue
            try:
                self._write(batch)
            except StoreFullError as exc:
                self._undo(batch, exc)
            except Exception as exc:  # noqa: BLE001 - a bug here must fail the waiters, not leave them hanging
                self._die(batch, exc)

    def _gather(self) -> list[Submission]:
        """Everything that waits; lazy submissions are kept back until somebody else needs a flush."""
        wait = max(0.0, self._lazy_due - time.monotonic()) if self._lazy else None
        batch: list[Submission] = []
        size = entries = 0
        try:
            item = self._queue.get(timeout=0 if self._stopping else wait)
            while True:
                if item is None:
                    self._stopping = True
                elif item.lazy:
                    if not self._lazy:
                        self._lazy_due = time.monotonic() + _LAZY_DELAY_S
                    self._lazy.append(item)
                else:
                    batch.append(item)
                    size += sum(len(chunk.data) for chunk in item.chunks)
                    entries += len(item.entries)
                if size >= _GROUP_BYTES or entries >= _GROUP_ENTRIES:
                    break
                item = self._queue.get_nowait()
        except queue.Empty:
            pass
        due = self._stopping or time.monotonic() >= self._lazy_due
        if self._lazy and (due or any(item.entries for item in batch)):
            batch += self._lazy
            self._lazy = []
        return batch

    def _write(self, batch: list[Submission]) -> None:
        started = time.perf_counter()
        if self.failure is not None:
            raise self.failure
        self._check_room(urgent=not any(item.tally for item in batch))
        encoded: list[bytes] = []
        written: list[Entry] = []
        contents: set[ContentId] = set()
        failed: dict[int, StoreError] = {}
        self._stream.roll(now=any(item.roll for item in batch))
        # The look at the index stays open until the group is committed: whoever has condemned something waits
        # for looks that are older than that to end, and then knows every reference there will ever be.
        with contextlib.ExitStack() as stack:
            snapshot = self._look(stack)
            for number, item in enumerate(batch):
                if item.epoch is not None and item.epoch != self.epoch:
                    failed[number] = StoreFullError(
                        f"{self._directory} was full while the message was on its way"
                    )
                    continue
                self._take_chunks(item, snapshot)
                if self._lacks_chunks(item, snapshot):
                    failed[number] = StoreError("compaction has dropped a part that the message shares")
                    continue
                for entry in item.entries:
                    if isinstance(entry, Content) and self._has_content(entry.id, contents, snapshot):
                        continue
                    written.append(entry)
                    encoded.append(self._stream.encode(entry))
            if encoded:
                self._write_block()
                where = self._stream.append_entries(encoded)
                before, place = self._stream.written_bytes, self._stream.committed
                state = self._stream.commit()
                entries = list(zip(written, where, strict=True))
                group = Group(self._stream.name, state, place, self._located, entries, self._stream.leaves)
                self._located, self._fresh = [], set()
                self.pending.add(group)
                if self._neighbours:
                    self._neighbours.tell(group.chunks)
                self._publish(group)
                if self._on_group:
                    seconds = time.perf_counter() - started
                    self._on_group(GroupFacts(len(batch), seconds, self._stream.written_bytes - before))
        for number, item in enumerate(batch):
            if item.done:
                item.done(failed.get(number))

    def _take_chunks(self, item: Submission, snapshot: Snapshot | None) -> None:
        if item.tally and item.tally.condemnations is None:
            item.tally.condemnations = self._condemnations
        for new in item.chunks:
            known = self._has_chunk(new.id, snapshot)
            size = len(new.data)
            if item.tally:
                item.tally.taken_bytes += size
                if known:
                    item.tally.duplicate_bytes += size
                else:
                    item.tally.new_bytes += size
            if known:
                continue
            self._fresh.add(new.id)
            self._block.append(new)
            self._block_bytes += size
            if self._block_bytes >= BLOCK_BYTES:
                self._write_block()

    def _has_chunk(self, chunk: ChunkId, snapshot: Snapshot | None) -> bool:
        if chunk in self._fresh:
            return True
        if snapshot is None:
            return chunk in self.pending.chunks
        known = (
            self._waits(self.pending.chunks.get(chunk), snapshot)
            or self._counts(self.pending.recent_chunks.get(chunk), snapshot)
            or self._indexed(partial(snapshot.settled_chunk, chunk, self._bad))
            or (self._neighbours is not None and self._told(self._neighbours.find(chunk), snapshot))
        )
        return known and not (self._condemned and snapshot.is_condemned(chunk))

    def _waits(self, where: Location | None, snapshot: Snapshot) -> bool:
        """Whether a place waits to be indexed, or has been by somebody else and not been replaced since."""
        return where is not None and (where.pack > self._indexed_pack or where[:2] in snapshot.known.numbers)

    def _told(self, where: Location | None, snapshot: Snapshot) -> bool:
        """Whether what a neighbour has told is still to be indexed, or sound and where it was."""
        if where is None or where.stream not in self._others_indexed or not self._suits(where):
            return False
        return where.pack > self._others_indexed[where.stream] or self._counts(where, snapshot)

    def _counts(self, where: Location | None, snapshot: Snapshot) -> bool:
        """Whether a recent place is sound, and in a pack that compaction has not replaced meanwhile."""
        return where is not None and where[:2] in snapshot.known.numbers and where.record not in self._bad

    def _lacks_chunks(self, item: Submission, snapshot: Snapshot | None) -> bool:
        """Whether a message whose first parts were taken before something was condemned needs any of that."""
        if item.tally is None or item.tally.condemnations == self._condemnations:
            return False
        return any(
            not self._has_chunk(chunk, snapshot)
            for entry in item.entries
            if isinstance(entry, Content)
            for run in entry.runs
            for chunk in run.chunks
        )

    def _look(self, stack: contextlib.ExitStack) -> Snapshot | None:
        """The index as it is now, or None: without it everything is new, and stored twice does no harm."""
        try:
            snapshot = stack.enter_context(self._index.read())
            self._bad = snapshot.bad()
            self._condemnations = snapshot.condemnations()
            self._condemned = snapshot.has_condemned()
            state = snapshot.state(self._stream.name)
            self._indexed_pack = state.pack if state else 0
            states = {number: snapshot.state(name) for number, name in self._others.items()}
            self._others_indexed = {number: s.pack if s else 0 for number, s in states.items()}
        except StoreError as exc:
            log.error("no deduplication: %s", exc)
            return None
        return snapshot

    def _indexed(self, find: Callable[[], Location | None]) -> bool:
        try:
            where = find()
        except Exception as exc:  # noqa: BLE001 - whatever ails the index, as in _look
            log.error("the index cannot be asked: %s", exc)
            return False
        return where is not None and where.record not in self._bad and self._suits(where)

    def _write_block(self) -> None:
        if self._block:
            self._located += self._stream.append_chunks(self._block)
            self._block, self._block_bytes = [], 0
            if self._stream.pack_bytes >= _MOST_BYTES:
                self._split()

    def _split(self) -> None:
        """End a pack in which nothing but parts of messages on their way has come together: a place has 32
        bits. These parts are durable then, and found by whatever names them later."""
        before, place = self._stream.written_bytes, self._stream.committed
        state = self._stream.commit()
        group = Group(self._stream.name, state, place, self._located, [])
        # From here on they are as any other's, which compaction may drop before they are named.
        self._located, self._fresh = [], set()
        self.pending.add(group)
        self._publish(group)
        if self._on_group:
            self._on_group(GroupFacts(0, 0.0, self._stream.written_bytes - before))
        self._stream.roll(now=True)

    def _has_content(self, content: ContentId, here: set[ContentId], snapshot: Snapshot | None) -> bool:
        if content in here:
            return True
        known = content in self.pending.contents
        if snapshot is not None:
            known = (
                self._waits(self.pending.contents.get(content), snapshot)
                or self._counts(self.pending.recent_contents.get(content), snapshot)
                or self._indexed(partial(snapshot.settled_content, content, self._bad))
            ) and not (self._condemned and snapshot.is_condemned(content))
        if not known:
            here.add(content)
        return known

    def _check_room(self, *, urgent: bool) -> None:
        # Facts without mail (replies to what was delivered, records of replays) are small and cannot be had
        # again: they may use the reserve.
        reserve = self._reserve_bytes // 4 if urgent else self._reserve_bytes
        now = time.monotonic()
        if now >= self._room_due:
            space = os.statvfs(self._directory)
            self._room = space.f_bavail * space.f_frsize
            self._room_due = now + _ROOM_S
        if self._room < reserve:
            self._room_due = 0.0
            raise StoreFullError(f"{self._directory} has less than its reserve of {reserve >> 20} MiB free")

    def _forget_group(self) -> None:
        # Chunks of messages still on their way go too, so those messages must fail: see Submission.epoch.
        self.epoch += 1
        self._block, self._block_bytes = [], 0
        self._located, self._fresh = [], set()

    def _undo(self, batch: list[Submission], exc: StoreFullError) -> None:
        log.error("%s", exc)
        self._forget_group()
        try:
            self._stream.rollback()
        except StoreFailedError as worse:
            self._die(batch, worse)
            return
        for item in batch:
            if item.done and not item.lazy:
                item.done(exc)
        if not self._stopping:
            # By themselves they may have room where mail has none; if they were alone, there is none at all.
            alone = all(item.lazy for item in batch)
            self._lazy = [item for item in batch if item.lazy] + self._lazy
            self._lazy_due = time.monotonic() + (_FULL_DELAY_S if alone else 0.0)

    def _die(self, batch: list[Submission], exc: Exception) -> None:
        log.critical("the store takes no more: %s", exc, exc_info=not isinstance(exc, StoreError))
        failure = exc if isinstance(exc, StoreFailedError) else StoreFailedError(f"internal error: {exc!r}")
        self.failure = failure
        self._stream.failed = True
        self._forget_group()
        waiting = batch + self._lazy
        self._lazy = []
        for item in waiting:
            if item.done:
                item.done(failure)
