"""Compaction: closed packs rewritten into a segment, smaller, without what nobody needs any more.

    plan -> read -> (condemn) -> regroup -> write -> verify -> manifest -> index -> old packs go

Takes no lock that capture waits for and may be stopped at any step: until the manifest has its name, what it
wrote counts for nothing; from then on what it replaced does. Whatever a killed run left is finished or
removed by the next. Damaged packs are never rewritten.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from store import layout, records, segments
from store.errors import DamagedError, SealedError, StoreError, StoreLockedError
from store.files import sync_directory
from store.garbage import Garbage
from store.ids import ChunkId, DeliveryId, chunk_id
from store.layout import FIRST_COMPACTED, NewChunk
from store.log import COMPACT_LOCK, StreamLog, lock_stream
from store.packs import PackReader
from store.places import Damage, Group, Location, StreamState, stream_number
from store.plan import Unit, in_force, plan
from store.records import Content, Delivery, Outcomes, Replay, Stub
from store.regroup import FILES, class_of, file_type, thread_key
from store.scan import readers_of, scan_groups, scan_segment
from store.segments import Files, Part, Segment, first_of, last_of, pack_path, packs_of, stream_files
from store.store import Store
from store.view import find_end

log = logging.getLogger(__name__)

_CACHE_BYTES = 64 << 20
_COMMIT_BYTES = 64 << 20
_ENTRIES_BYTES = 32 << 10
"""raw bytes of facts and recipes a block: whoever lists mail unpacks one for each message"""
_ENTRIES_A_COMMIT = 10_000
"""facts and recipes in one group: whoever reads it holds them all"""
_READERS_WAIT_S = 30.0
_ROOM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactOptions:
    """How to compact. `unit_bytes` bounds what is regrouped at once, and with it the memory (about a tenth).

    `step` is called between small steps with the bytes read or written in it; it may wait, and whatever it
    raises ends the run. `stop` is asked where nothing may be raised. `progress` is told the bytes of packs
    done and to be done, and in words what is being done.
    """

    level: int = 19
    block_bytes: int = 2 << 20
    unit_bytes: int = 512 << 20
    pack_bytes: int = 256 << 20
    threads: int = 1
    everything: bool = False
    """also what is not due, as after a change of level, and what too little would be gained from"""
    reseal: bool = False
    """also what is not sealed for the present recipients, as after a rotation of keys"""
    step: Callable[[int], None] = lambda _size: None
    stop: Callable[[], bool] = lambda: False
    progress: Callable[[int, int, str], None] = lambda _done, _total, _text: None


@dataclass(slots=True)
class CompactReport:
    """What came of it; sizes in bytes of pack files."""

    units: int = 0
    packs_before: int = 0
    packs_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    dropped_chunks: int = 0
    dropped_messages: int = 0
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    """units left as they are, with the reason"""

    def told(self) -> str:
        """In one line."""
        dropped = f", {self.dropped_messages} messages dropped" if self.dropped_messages else ""
        left = f", {len(self.skipped)} units left as they are" if self.skipped else ""
        return (
            f"{self.packs_before} packs of {self.bytes_before / 1e6:.1f} MB are now {self.packs_after} "
            f"of {self.bytes_after / 1e6:.1f} MB{dropped}{left}"
        )


def waiting(store: Store) -> list[str]:
    """The packs that are being written and hold something that was removed: no compaction comes to them."""
    found = []
    with store.index.read() as snapshot:
        waste = snapshot.waste()
    for name in store.view.names():
        newest = stream_files(store.path / "streams" / name).newest
        here = waste.get((stream_number(name), newest)) if newest else None
        if here is not None and here.deliveries:
            what = "removed delivery" if here.deliveries == 1 else "removed deliveries"
            found.append(f"{name}, pack {newest} is being written and holds {here.deliveries} {what}")
    return found


def close_open_packs(store: Store, besides: Iterable[str] = ()) -> None:
    """End the newest pack of every stream that nobody writes, so that it too may be compacted; streams
    `besides` are somebody's who may just not be there."""
    for name in set(store.view.names()).difference(besides):
        directory = store.path / "streams" / name
        newest = stream_files(directory).newest
        if newest is None or pack_path(directory, newest).stat().st_size <= layout.PACK_HEADER_BYTES:
            continue
        with contextlib.suppress(StoreLockedError):
            store.end_pack(name)


@dataclass(slots=True)
class _Chunk:
    """A chunk of the unit: where it lies now, and where its like are."""

    where: Location
    kind: int
    key: bytes = b""
    order: int = 0


class Compactor:
    """Compacts one store; begin it anew for each run."""

    def __init__(self, store: Store, options: CompactOptions | None = None) -> None:
        self._store = store
        self._options = options or CompactOptions()
        self._streams = store.path / "streams"
        self._done = 0
        self.report = CompactReport()

    def plan(self) -> list[Unit]:
        """What a run would do, in the order of it; nothing is changed."""
        units: list[Unit] = []
        with self._store.index.read() as snapshot:
            waste, holds = snapshot.waste(), in_force(snapshot.holds())
            states = {name: snapshot.state(name) for name in self._store.view.names()}
        for name, state in states.items():
            directory = self._streams / name
            with contextlib.suppress(FileNotFoundError):  # somebody else compacts: nothing for us then
                units += plan(
                    directory, waste, holds, state.place if state else (0, 0),
                    unit_bytes=self._options.unit_bytes, everything=self._options.everything,
                    stale=partial(self._is_stale, directory),
                )  # fmt: skip
        # What nobody needs is let go of from the newest to the oldest: recipes go before what they refer to.
        return sorted(units, key=lambda unit: (not unit.wasted, -first_of(unit.parts[0])))

    def _is_stale(self, directory: Path, part: Part) -> bool:
        """Whether a part is to be resealed."""
        if not self._options.reseal:
            return False
        wanted = self._store.keyring.readers
        for number in packs_of(part):
            with contextlib.suppress(ValueError, FileNotFoundError):  # damaged packs are not rewritten
                readers = readers_of(pack_path(directory, number), self._store.id)
                if (readers or frozenset()) != wanted:
                    return True
        return False

    def run(self) -> CompactReport:
        """Compact what is due. Raises `SealedError` when what is written could not be read here, another
        `StoreError`, `OSError`, and what `step` raises."""
        if self._store.blind:
            raise SealedError("the store is sealed: what compaction would rewrite cannot be read here")
        began = time.monotonic()
        try:
            for name in self._store.view.names():
                self._finish_earlier(name)
            done: set[tuple[str, tuple[int, int]]] = set()
            while units := [unit for unit in self.plan() if (unit.stream, unit.range()) not in done]:
                total = self._done + sum(unit.size for unit in units)
                for unit in units:
                    done.add((unit.stream, unit.range()))
                    self._options.progress(self._done, total, str(unit))
                    self._compact(unit, total)
                    self._done += unit.size
                if not any(unit.wasted for unit in units):
                    break  # else what was let go of may have been all that held something older
            self._tidy_index()
        finally:
            self.report.seconds = time.monotonic() - began
        return self.report

    def _tidy_index(self) -> None:
        with self._store.index.read() as snapshot:
            catalogue, rows = snapshot.known.catalogue, snapshot.rows()
        if self._options.everything or catalogue.dead_rows * 4 > rows:
            self._store.index.merge(everything=True, stop=self._options.stop)

    # -- one unit

    @contextlib.contextmanager
    def _locked(self, stream: str) -> Iterator[Path]:
        with lock_stream(self._streams / stream, COMPACT_LOCK):
            yield self._streams / stream

    def _finish_earlier(self, stream: str) -> None:
        """Finish or remove what a run that was killed left. Where anything is damaged or missing nothing is
        removed: it may be all that is left of what a lost manifest named."""
        with contextlib.suppress(StoreLockedError), self._locked(stream) as directory:
            caught = self._store.view.catch_up(stream)
            with self._store.index.read() as snapshot:
                left = [token for token, whose in snapshot.condemners().items() if whose == stream]
            if left:
                with self._store.index.update() as update:
                    for token in left:
                        update.pardon(token)
            files = stream_files(directory)
            if not caught.damage and files.whole:
                self._remove(directory, files.superseded)

    def _remove(self, directory: Path, paths: tuple[Path, ...]) -> None:
        with self._store.index.read() as snapshot:
            counting = set(snapshot.packs(stream_number(directory.name)))
        paths = tuple(p for p in paths if p.suffix != ".pack" or int(p.stem) not in counting)
        if paths:
            # Who has looked up a place in them may be about to open them; who comes too late looks again.
            index = self._store.index
            if not index.wait_for_readers(index.last_transaction(), _READERS_WAIT_S):
                return  # the next run does it
            sync_directory(directory)  # the manifest's name first, should a killed run have left that open
        for path in paths:
            path.unlink(missing_ok=True)
        for path in directory.glob("*" + segments.SUFFIX + ".new"):
            path.unlink(missing_ok=True)
        self._store.let_go()

    def _compact(self, unit: Unit, total: int) -> None:
        free = os.statvfs(self._streams)
        if free.f_bavail * free.f_frsize < unit.size + _ROOM_BYTES:
            self._skip(unit, "there is not enough free space to write it anew beside what is there")
            return
        try:
            with self._locked(unit.stream) as directory:
                files = stream_files(directory)
                if not set(unit.parts) <= set(files.parts):
                    return  # somebody else was quicker

                def progress(share: float) -> None:
                    self._options.progress(self._done + int(unit.size * share), total, str(unit))

                work = _Work(self._store, directory, unit, files, self._options, progress)
                segment = work.write()
                if segment is None:
                    if work.why_not:  # else there is nothing in it but what a crash left
                        self._skip(unit, work.why_not)
                    return
                self._store.view.adopt(unit.stream, segment, verified=True, pardon=work.garbage.token)
                work.garbage.note_held()
                self._remove(directory, _replaced(directory, work.unit, segment))
        except (StoreLockedError, DamagedError) as exc:
            self._skip(unit, str(exc))
            return
        report = self.report
        report.units += 1
        report.packs_before += unit.packs
        report.packs_after += len(segment.packs)
        report.bytes_before += unit.size
        report.bytes_after += sum(pack_path(directory, n).stat().st_size for n in segment.packs)
        report.dropped_chunks += len(work.garbage.chunks)
        report.dropped_messages += len(work.garbage.contents)
        log.info("compacted %s: %d bytes, in all %d now", unit, unit.size, report.bytes_after)

    def _skip(self, unit: Unit, why: str) -> None:
        self.report.skipped.append(f"{unit}: {why}")
        log.error("not compacted, %s: %s", unit, why)


class _Work:
    """One unit being rewritten."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        unit: Unit,
        files: Files,
        options: CompactOptions,
        progress: Callable[[float], None],
    ) -> None:
        self._store = store
        self._directory = directory
        self._unit = self.unit = unit
        self._files = files
        self._options = options
        self._progress = progress
        self._chunks: dict[ChunkId, _Chunk] = {}
        self._end: StreamState | None = None
        self._start = self._state_before(unit.parts[0])
        self.garbage = Garbage(store, directory.name, unit)
        self.why_not = ""

    def write(self) -> Segment | None:
        """The segment, durable and counting; None (`why_not`) when the unit must be left as it is."""
        if not self._gather():
            return None
        assert self._end is not None  # noqa: S101 - a unit has at least one pack
        # Packs at the end in which nothing was ever committed are not stood for, so they stay.
        end = self._end.pack
        self.unit = replace(self._unit, parts=tuple(p for p in self._unit.parts if last_of(p) <= end))
        newest = max([*segments.all_packs(self._directory), FIRST_COMPACTED - 1])
        first = newest + 1
        stream: StreamLog | None = None
        segment: Segment | None = None
        done = False
        try:
            stream = StreamLog(
                self._directory, self._store.id, self._start, lock=None, new_pack=True,
                last_pack=newest, pack_bytes=self._options.pack_bytes,
                level=self._options.level, entries_bytes=_ENTRIES_BYTES, keyring=self._store.keyring,
            )  # fmt: skip
            self.why_not = self.garbage.find(self._chunks.keys(), self._groups)
            if self.why_not:
                return None
            self._write_chunks(stream)
            self._write_entries(stream)
            state = stream.commit()
            segment = Segment(
                first_of(self._unit.parts[0]), self._end.pack, tuple(range(first, state.pack + 1)),
                self._start, self._end, state.next_record,
                tuple(n for part in self._unit.parts if isinstance(part, Segment) for n in part.packs),
            )  # fmt: skip
            wrong = self._store.view.damage_in(self._directory.name, segment)
            if (state.chain, state.facts) != (self._end.chain, self._end.facts) or wrong:
                self.why_not = f"what was written is not right: {wrong[0] if wrong else 'another history'}"
                return None
            self.garbage.note_outside()
            self.why_not = self.garbage.still_stands()
            if self.why_not:
                return None
            segments.write(self._directory, segment)
            done = True
            return segment
        finally:
            if stream is not None:
                stream.close()
            # Stopped after the manifest got its name, it counts: the next run goes on as after a kill.
            if not done and not (segment and segments.may_count(self._directory, segment)):
                for number in segments.all_packs(self._directory):
                    if number >= first:
                        pack_path(self._directory, number).unlink(missing_ok=True)
                self.garbage.pardon()

    # -- reading

    def _state_before(self, part: Part) -> StreamState:
        if isinstance(part, Segment):
            return part.start
        before = [other for other in self._files.parts if first_of(other) < part]
        return find_end(self._directory, self._store.id, before).state

    def _groups(self) -> Iterator[Group | Damage]:
        """All of the unit, in order."""
        parts = list(self._files.parts)
        at = parts.index(self._unit.parts[-1])
        following = parts[at + 1 : at + 2]
        first = parts.index(self._unit.parts[0])
        files = Files((*parts[max(0, first - 1) : first], *self._unit.parts, *following), (), ())
        name = self._directory.name
        keyring = self._store.keyring
        for found in scan_groups(
            self._directory, self._store.id, name, self._start, files=files, keyring=keyring
        ):
            if isinstance(found, Segment):
                if following == [found]:
                    return
                yield from scan_segment(self._directory, self._store.id, name, found, keyring)
                self._end = found.end
            elif isinstance(found, Group):
                if following == [found.state.pack]:
                    return
                self._end = found.state
                yield found
            elif isinstance(found, Damage):
                if following and found.path == pack_path(self._directory, first_of(following[0])):
                    return
                yield found

    def _gather(self) -> bool:
        """What chunks there are and to which conversation they belong. False when something is damaged."""
        order = 0
        for found in self._groups():
            if isinstance(found, Damage):
                self.why_not = str(found)
                return False
            if found.sealed:
                self.why_not = "it is sealed, and no identity at hand opens it"
                return False
            for (chunk, where), kind in zip(found.chunks, found.kinds, strict=True):
                self._chunks.setdefault(chunk, _Chunk(where, kind))
            recipes = {e.id: e for e, _ in found.entries if isinstance(e, Content)}
            for entry, _ in found.entries:
                if isinstance(entry, Delivery) and entry.content in recipes:
                    order += 1
                    self._name(recipes.pop(entry.content), thread_key(entry), order)
            self._options.step(sum(where.size for _, where in found.chunks))
        return self._end is not None and self._end.place != self._start.place

    def _name(self, recipe: Content, key: bytes, order: int) -> None:
        for run in recipe.runs:
            for chunk in run.chunks:
                known = self._chunks.get(chunk)
                if known is not None and not known.order:
                    known.key, known.order = key, order

    # -- writing

    def _write_chunks(self, stream: StreamLog) -> None:
        reader = PackReader(
            self._streams(), self._store.id, keyring=self._store.keyring, cache_bytes=_CACHE_BYTES
        )
        written = passed = 0
        total = sum(known.where.size for known in self._chunks.values()) or 1
        waiting: list[Future[bytes]] = []
        with contextlib.closing(reader), ThreadPoolExecutor(self._options.threads) as pool:
            for block in self._blocks(reader):
                size = sum(len(chunk.data) for chunk in block)
                waiting.append(pool.submit(_encoded, block, self._options.level))
                self._options.step(size)
                passed += size
                self._progress(passed / total)
                if len(waiting) > self._options.threads:
                    written += self._put(stream, waiting.pop(0).result())
                if written >= _COMMIT_BYTES:
                    stream.commit()
                    stream.roll()
                    written = 0
            for future in waiting:
                self._put(stream, future.result())

    def _streams(self) -> Path:
        return self._directory.parent

    def _put(self, stream: StreamLog, payload: bytes) -> int:
        stream.append_block(payload)
        self._options.step(len(payload))
        return len(payload)

    def _blocks(self, reader: PackReader) -> Iterator[list[NewChunk]]:
        """Blocks of chunks, what is alike together; chunks that nobody needs are left out."""
        classes: dict[int, list[tuple[bytes, int, ChunkId]]] = {}
        types: dict[int, bytes] = {}
        for chunk, known in self._chunks.items():
            if chunk in self.garbage.chunks:
                continue
            begin = reader.chunk(known.where)[:1024] if known.kind == 3 else b""
            kind = class_of(known.kind, begin)
            key = known.key
            if kind == FILES:
                # A file's later pieces look like anything: they go with its first.
                key = types.setdefault(known.order, file_type(begin))
            classes.setdefault(kind, []).append((key, known.order, chunk))
        for kind in sorted(classes):
            # Files compress no better in larger blocks, and are read faster from smaller ones.
            most = self._options.block_bytes // 2 if kind == FILES else self._options.block_bytes
            block: list[NewChunk] = []
            size = 0
            for _, _, chunk in sorted(classes[kind], key=lambda row: row[:2]):
                known = self._chunks[chunk]
                data = reader.chunk(known.where)
                if block and size + len(data) > most:
                    yield block
                    block, size = [], 0
                if chunk_id(data, self._store.key) != chunk:  # what replaces the original must be right
                    raise DamagedError(f"chunk {chunk.hex()} is not what it was")
                block.append(NewChunk(chunk, data, known.kind))
                size += len(data)
            if block:
                yield block

    def _write_entries(self, stream: StreamLog) -> None:
        batch: list[bytes] = []
        for found in self._groups():
            if isinstance(found, Damage):
                raise StoreError(str(found))
            for data in found.encoded:
                kept = self._kept(data)
                if kept is not None:
                    batch.append(kept)
            if len(batch) >= _ENTRIES_A_COMMIT:
                stream.append_entries(batch)
                stream.commit()
                batch = []
                self._options.step(0)
        if batch:
            stream.append_entries(batch)

    def _kept(self, data: bytes) -> bytes | None:
        """What stays of an entry: itself, nothing, or its leaf."""
        if not self.garbage.removed and not self.garbage.contents:
            return data
        entry = records.decode(data) if records.is_known(data) else None
        if isinstance(entry, Content):
            return None if entry.id in self.garbage.contents else data
        about: DeliveryId | None = None
        if isinstance(entry, Delivery):
            about = entry.id
        elif isinstance(entry, Outcomes | Replay):
            about = entry.delivery
        if entry is None or about is None or not self.garbage.goes(about, leaf := records.leaf(data)):
            return data
        return records.encode(Stub(leaf=leaf, delivery=about, type=records.type_in(data)))


def _replaced(directory: Path, unit: Unit, segment: Segment) -> tuple[Path, ...]:
    """The files that a segment stands for, and no others."""
    packs = [part for part in unit.parts if not isinstance(part, Segment)]
    manifests = [directory / part.name for part in unit.parts if isinstance(part, Segment)]
    paths = [pack_path(directory, number) for number in (*packs, *segment.replaces)]
    return (*paths, *(path for path in manifests if path.name != segment.name))


def _encoded(block: list[NewChunk], level: int) -> bytes:
    """A CHUNKS payload that has been unpacked again and compared."""
    payload = layout.encode_chunks(block, level)
    if layout.block_bytes(layout.RecordType.CHUNKS, payload) != b"".join(chunk.data for chunk in block):
        raise DamagedError("a block does not come back from compression as it went in")
    return payload
