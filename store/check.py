"""Verify a store: every checksum, the chain of its history, and that all that is named is there, both ways.

    manifests -> parts (packs and segments, several at a time) -> chain from part to part -> index

Takes no lock and may run beside the writer, which is checked up to where it was when the check began, and
beside compaction: a part that is replaced while it is read is no finding, and what replaces it is checked
instead. Changes nothing but the index, which catches up and no longer offers what is damaged for
deduplication. With `read_data` messages are put together and compared with their BLAKE3 (`store.check_read`).

What the streams refer to, and how that is compared with the index without holding either in memory, is told
in `store.check_part` and `store.check_index`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from store import rows
from store.check_bookmark import Bookmark
from store.check_index import IndexView, Lookups, Pack, difference
from store.check_part import PartCheck, PartResult, Task, signature, tasks
from store.check_read import Reading
from store.errors import SealedError
from store.findings import Checked, Finding, Sum
from store.packs import PackReader
from store.places import Damage, Place, stream_number
from store.rows import Table
from store.sample import Sample
from store.scan import initial_state, scan_groups
from store.segments import Segment, first_of, last_of, pack_path, stream_files
from store.store import Store

__all__ = ["CheckOptions", "Checked", "Checker", "Finding", "Sample", "check"]

_CACHE_BYTES = 160 << 20
"""of unpacked blocks, shared by the threads"""
_LOOKS = 5
"""at what there is to check: each finds less that compaction has replaced meanwhile"""
_SAVE_S = 5.0
_EXPLAINED = 8
"""packs on which index and log differ that are gone through row by row"""
_NOT_FOLLOWING = "does not follow on what is before it: something is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How to check. `read_data` says which messages are read, None for none.

    `step` is called between small steps, from any of the threads, with the bytes read in it, and may wait;
    what it raises ends the check and comes out of `run`. With `resume` an interrupted check goes on.
    """

    read_data: Sample | None = None
    threads: int = 1
    resume: bool = False
    step: Callable[[int], None] = lambda _size: None
    progress: Callable[[Checked], None] = lambda _checked: None


class _StoppedError(Exception):
    """Another thread's work has failed."""


@dataclass(slots=True)
class _Stream:
    """A stream as it was when the check began, and what is known of its tasks."""

    name: str
    directory: Path
    end: Place
    durable: tuple[Place, ...]
    damaged: dict[Path, str] = field(default_factory=dict)


def check(
    store: Store,
    checked: Checked,
    *,
    read_data: bool = False,
    progress: Callable[[Checked], None] = lambda _checked: None,
) -> Iterator[Finding]:
    """What is wrong with the store, as it is found; `checked` counts along."""
    options = CheckOptions(read_data=Sample() if read_data else None, progress=progress)
    return Checker(store, options, checked).run()


class Checker:
    """One check of one store."""

    def __init__(
        self, store: Store, options: CheckOptions | None = None, checked: Checked | None = None
    ) -> None:
        self.checked = checked or Checked()
        self._store = store
        self._options = options or CheckOptions()
        self._sample = self._options.read_data
        self._bookmark = Bookmark(store.path)
        self._done: dict[str, PartResult] = {}
        self._kept: dict[str, PartResult] = {}
        self._earlier: dict[str, PartResult] = {}
        self._streams: list[_Stream] = []
        self._limits: dict[Pack, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self) -> Iterator[Finding]:
        """What is wrong, as it is found. Ends early only by what `step` raises, `StoreError`, `OSError`."""
        if self._options.read_data and self._store.blind:
            raise SealedError("the store is sealed: messages cannot be read here")
        if self._options.resume:
            self._sample, self._earlier = self._bookmark.load(self._sample)
        self._begin()
        try:
            for _ in range(_LOOKS):
                yield from self._check_parts()
                for stream in self._streams:
                    self._store.view.catch_up(stream.name)
                with self._lock:
                    self.checked.phase = "index"
                view = IndexView(self._store.index, self._limits, self._step_index)
                counting = [self._tasks(stream) for stream in self._streams]
                if all(task.name in self._done for some in counting for task in some):
                    break
        except BaseException:
            self._bookmark.save(self._sample, self._kept)
            raise
        for stream, some in zip(self._streams, counting, strict=True):
            yield from self._join(stream, [task for task in some if task.name in self._done])
        found = [task for some in counting for task in some if task.name in self._done]
        try:
            yield from self._check_index(view, found)
        except ValueError as exc:  # a block of a run
            yield Finding("index", str(self._store.index.path), str(exc))
        damage = [
            Damage(Path(path), offset, what)
            for task in found
            for path, offset, what in self._done[task.name].damage
        ]
        self._store.view.note_damage(damage, all_of_it=True)
        self._bookmark.clear()

    def _begin(self) -> None:
        for name in self._store.view.names():
            state = self._store.state(name)
            with self._store.index.read() as snapshot:
                before = snapshot.durable(name)
            directory = self._store.path / "streams" / name
            self._streams.append(_Stream(name, directory, state.place, (state.place, before)))
            self._limits[stream_number(name), state.pack] = state.offset
        self.checked.streams = len(self._streams)

    def _tasks(self, stream: _Stream) -> list[Task]:
        files = stream_files(stream.directory)
        stream.damaged.update(files.damaged)
        return tasks(stream.directory, files, stream.end, stream.durable)

    # -- parts

    def _check_parts(self) -> Iterator[Finding]:
        waiting: list[Task] = []
        for task in [task for stream in self._streams for task in self._tasks(stream)]:
            if task.name in self._done:
                continue
            earlier = self._earlier.get(task.name)
            if earlier is not None and task.following is not None and self._is_unchanged(task, earlier):
                self.checked.bytes_done += self._size(task)
                self._finish(task, earlier)
                yield from earlier.findings
            else:
                waiting.append(task)
        sizes = sum(self._size(task) for task in waiting)
        with self._lock:
            self.checked.phase = "streams"
            self.checked.bytes_total = self.checked.bytes_done + sizes
        saved = time.monotonic()
        pool = ThreadPoolExecutor(self._options.threads, thread_name_prefix="check")
        try:
            running: dict[Future[PartResult | None], Task] = {}
            while waiting or running:
                while waiting and len(running) < self._options.threads:
                    task = waiting.pop(0)
                    running[pool.submit(self._check_part, task)] = task
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task, result = running.pop(future), future.result()
                    if result is not None:
                        self._finish(task, result)
                        yield from result.findings
                if time.monotonic() - saved >= _SAVE_S:
                    self._bookmark.save(self._sample, self._kept)
                    saved = time.monotonic()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def _check_part(self, task: Task) -> PartResult | None:
        """None when compaction has replaced the part meanwhile."""
        reading = None
        if self._sample:
            cache = _CACHE_BYTES // self._options.threads
            reading = Reading(self._store, self._sample, self._step, cache_bytes=cache)
        began = self._counts(task)
        try:
            result = PartCheck(self._store, task, self._step_pack, reading).run()
        except FileNotFoundError as exc:
            if not self._counts(task):
                return None
            path = Path(str(exc.filename))
            result = PartResult(files=[], start=("", 0))
            result.damage = [(str(path), 0, "file is missing")]
            result.findings = [Finding("damage", f"{path}:0", "file is missing")]
        return result if began and (not result.findings or self._counts(task)) else None

    def _counts(self, task: Task) -> bool:
        parts = stream_files(self._store.path / "streams" / task.stream).parts
        return set(task.parts) <= set(parts)

    def _finish(self, task: Task, result: PartResult) -> None:
        self._done[task.name] = result
        if task.following is not None:  # the newest part of a stream still grows
            self._kept[task.name] = result
        with self._lock:
            result.count(self.checked)
            self._options.progress(self.checked)

    def _is_unchanged(self, task: Task, earlier: PartResult) -> bool:
        try:
            return earlier.files == signature(self._store.path / "streams" / task.stream, task)
        except FileNotFoundError:
            return False

    def _size(self, task: Task) -> int:
        directory = self._store.path / "streams" / task.stream
        paths = [pack_path(directory, number) for number in task.packs()]
        return sum(path.stat().st_size for path in paths if path.exists())

    def _step(self, size: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        self._options.step(size)

    def _step_pack(self, size: int) -> None:
        self._step(size)
        with self._lock:
            self.checked.bytes_done += size
            self._options.progress(self.checked)

    def _step_index(self, size: int) -> None:
        self._options.step(size)
        self._options.progress(self.checked)

    # -- from part to part

    def _join(self, stream: _Stream, counting: list[Task]) -> Iterator[Finding]:
        """Whether each part begins as the one before it ended."""
        for path, what in stream.damaged.items():
            if path.exists():
                yield self._damage(path, what)
        initial = initial_state(self._store.id, stream.name)
        if not counting:  # and yet something may have been there
            for found in scan_groups(stream.directory, self._store.id, stream.name, initial, *stream.durable):
                if isinstance(found, Damage):
                    yield Finding("damage", f"{found.path}:{found.offset}", found.what)
        ended, pack = (initial.chain.hex(), initial.next_record), 0
        for task in counting:
            result = self._done[task.name]
            if pack and first_of(task.parts[0]) > pack + 1:
                yield self._damage(pack_path(stream.directory, pack + 1), "pack is missing")
            if result.start != ended and result.start != ("", 0):
                first = task.parts[0]
                path = (
                    stream.directory / first.name
                    if isinstance(first, Segment)
                    else pack_path(stream.directory, first)
                )
                yield self._damage(path, _NOT_FOLLOWING)
            ended, pack = result.end, last_of(task.parts[-1])

    def _damage(self, path: Path, what: str) -> Finding:
        return Finding("damage", f"{path}:0", what)

    # -- the index

    def _check_index(self, view: IndexView, found: list[Task]) -> Iterator[Finding]:
        packs: dict[Pack, Task] = {
            (stream_number(task.stream), number): task for task in found for number in task.packs()
        }
        sums = view.sums(set(packs))
        differing = [
            pack
            for pack, task in packs.items()
            if _differ(self._done[task.name].sums.get(pack[1], {}), sums[pack], self._done[task.name])
        ]
        hurt = any(self._done[task.name].damage for task in found)
        for count, pack in enumerate(differing):
            task = packs[pack]
            path = pack_path(self._store.path / "streams" / task.stream, pack[1])
            if count >= _EXPLAINED:
                yield Finding("index", str(path), "the index does not say what this pack says")
                continue
            damaged = bool(self._done[task.name].damage)
            yield from difference(view, pack, path, self._expected(task, pack[1]), damaged=damaged)
        yield from self._lost_packs(view, packs)
        if any(self._done[task.name].sealed for task in found):
            return  # what deliveries are looked up by can be told by their records alone
        reader = PackReader(self._store.path / "streams", self._store.id, keyring=self._store.keyring)
        try:
            results = [self._done[task.name] for task in found]
            sums_hold = not hurt and not differing
            yield from Lookups(view, set(packs), reader).check(results, sums_hold=sums_hold)
        finally:
            reader.close()

    def _expected(self, task: Task, pack: int) -> dict[Table, set[bytes]]:
        expected: dict[Table, set[bytes]] = {}

        def add(where: int, table: Table, some: list[bytes]) -> None:
            if where == pack:
                expected.setdefault(table, set()).update(some)

        PartCheck(self._store, task, self._step_index).expected(add)
        return expected

    def _lost_packs(self, view: IndexView, checked: dict[Pack, Task]) -> Iterator[Finding]:
        """Packs that the index knows and that are not there, nor stood for by anything."""
        names = {stream_number(stream.name): stream for stream in self._streams}
        strange = set(view.packs.values()) - checked.keys()
        with self._store.index.read() as snapshot:
            still = set(snapshot.known.catalogue.packs.values())
        for owner, pack in sorted(strange & still):
            stream = names.get(owner)
            if stream is None:
                if owner not in {stream_number(name) for name in self._store.view.names()}:
                    yield Finding("index", f"{owner:08x}", "the index knows a stream that is not there")
            elif not pack_path(stream.directory, pack).exists() and pack <= rows.MAX_OFFSET:
                yield self._damage(pack_path(stream.directory, pack), "pack is missing")


def _differ(of_log: dict[int, Sum], of_index: dict[int, Sum], result: PartResult) -> bool:
    """Whether log and index do not say the same of a pack. Of one that is sealed and not opened only what
    stands in the clear is known: which chunks it has, and how many facts."""
    if result.sealed:
        return any(of_log.get(table) != of_index.get(table) for table in (Table.CHUNK, Table.BLOCK))
    return of_log != of_index
