"""Make a store again from a replica, with nothing else at hand.

Bytes are verified as they come, and what is whole is put into the index while more comes (`arrivals`).
`mailkeep.store` is written last, so what is not whole is no store and nobody takes it for one; the next run
keeps what is there and right.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from store.about import NAME, About
from store.errors import StoreError
from store.files import adopt, make_directory, sync_directory, write_all
from store.ids import FOREVER_US
from store.replicas.arrivals import PART, Arrivals, on_its_way
from store.replicas.contents import StreamContents
from store.replicas.index_fetch import FetchedIndex
from store.replicas.layout import Extent, RoundError
from store.replicas.local import digest_of
from store.replicas.reader import NoReplicaError, Reading, Replica
from store.replicas.told import about_of
from store.sealing import Identity, Keyring, recipients_of
from store.segments import SUFFIX, pack_path

log = logging.getLogger(__name__)
_MARK = "restoring.json"
_FLUSHED_BYTES = 1 << 20
"""of an extent, from which on it is flushed by itself, while others come"""
_AHEAD_BYTES = 64 << 20
"""of a replica, from which on it is worth while to check in a process of its own"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """`hosts`: () for all that there are. `check_ahead`: begin with the check that is to be made."""

    hosts: tuple[str, ...] = ()
    as_of_us: int = FOREVER_US
    threads: int = 8
    identities: Sequence[Identity] = ()
    check_ahead: bool = False


@dataclass(slots=True)
class Fetched:
    """What came of it. `faults`: what the replica lacks or has wrong, in words."""

    hosts: list[str] = field(default_factory=list)
    as_of_us: int = 0
    """when the last round was made that was taken"""
    streams: int = 0
    packs: int = 0
    bytes: int = 0
    kept_bytes: int = 0
    """of them what an earlier run had fetched"""
    faults: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    """what the index could not take in"""


@dataclass(frozen=True, slots=True)
class _Part:
    """An extent that is wanted, and the file it goes to."""

    host: str
    stream: str
    pack: int
    extent: Extent
    path: Path
    """of the pack, once it has its name"""


class Fetching:
    """One restore: made, it knows what is to be fetched; `run` does it."""

    def __init__(self, replica: Replica, path: Path, options: FetchOptions | None = None) -> None:
        """`path` must be empty or not there, or what an earlier run left. Raises `StoreError`: for what
        cannot be reached, is no replica, or where something else is."""
        self._replica = replica
        self._path = path
        self._options = options or FetchOptions()
        self._fetched = Fetched()
        self._readings = _readings(replica, self._options, self._fetched)
        self._about = _one_store(replica, self._readings, self._options)
        self._parts = list(_wanted(path, self._readings, self._fetched))

    @property
    def total_bytes(self) -> int:
        """How much there is to fetch."""
        return sum(part.extent.length for part in self._parts)

    def run(
        self,
        advance: Callable[[int], None] = lambda _size: None,
        all_there: Callable[[], None] = lambda: None,
    ) -> Fetched:
        """Fetch everything that counts, and put it into the index; `advance` is told of bytes that are there
        now, by any thread, `all_there` is called when all are, and the index is not. What is damaged is told
        in the result. Raises `StoreError`, `OSError`."""
        _begin(self._path, self._replica.source.url, self._about)
        streams = {part.path.parent for part in self._parts}
        segments = _segments(self._readings)
        for directory in streams | {self._path / "streams" / name for name in segments}:
            make_directory(directory)
        _leave_only(self._path, self._parts)
        keyring = Keyring(recipients_of(self._about.recipients), self._options.identities)
        ahead = self._options.check_ahead and self.total_bytes >= _AHEAD_BYTES
        arrivals = Arrivals(self._path, self._about, keyring, ahead=ahead, copy=self._index())
        try:
            for directory in streams:
                packs = {part.path for part in self._parts if part.path.parent == directory}
                arrivals.expect(directory.name, packs, segments.pop(directory.name, {}))
            for name, texts in segments.items():
                arrivals.expect(name, (), texts)
            arrivals.start()
            _Fetch(self._replica, self._parts, arrivals, advance).run(self._options.threads, self._fetched)
            all_there()
            self._fetched.damage = arrivals.finish()
        except BaseException:
            arrivals.give_up()
            raise
        for directory in {self._path / "streams", *(self._path / "streams").iterdir()}:
            sync_directory(directory)
        self._about.write(self._path)
        (self._path / _MARK).unlink()
        return self._fetched

    def _index(self) -> FetchedIndex | None:
        """The host's own, where it says what counts: of one host, and none that begins later."""
        if len(self._readings) != 1:
            return None
        contents = self._readings[0].contents
        if contents.index is None or contents.regrouped:
            return None
        return FetchedIndex(self._replica, contents.host, contents.index, self._options.threads)


def _readings(replica: Replica, options: FetchOptions, fetched: Fetched) -> list[Reading]:
    hosts = options.hosts or tuple(replica.hosts())
    readings = [replica.read(host, options.as_of_us) for host in hosts]
    if not readings:
        raise NoReplicaError(f"{replica.source.url} holds no replica")
    for reading in readings:
        fetched.hosts.append(reading.contents.host)
        fetched.faults += reading.faults
        fetched.as_of_us = max(fetched.as_of_us, reading.contents.time_us)
    return readings


def _one_store(replica: Replica, readings: list[Reading], options: FetchOptions) -> About:
    """The store that all hosts ship. Several hosts' views of it agree in id and key, or they are several."""
    newest = max(readings, key=lambda reading: reading.contents.time_us)
    about = about_of(newest.contents.about, options.identities)
    others = {r.contents.host: r.contents.store_id.hex() for r in readings if r.contents.store_id != about.id}
    if others:
        raise StoreError(
            f"{replica.source.url} has several stores: {about.id.hex()} of {newest.contents.host}, "
            + ", ".join(f"{store} of {host}" for host, store in others.items())
            + ": name the one to restore by --host"
        )
    return about


def _begin(path: Path, url: str, about: About) -> None:
    """Take the place, or go on in one that an earlier run began. Raises `StoreError`."""
    told = {"url": url, "store": about.id.hex()}
    mark = path / _MARK
    if (path / NAME).exists():
        raise StoreError(f"{path} is a store already; nothing was changed")
    if path.exists() and any(path.iterdir()):
        if not mark.exists():
            raise StoreError(f"{path} is not empty; nothing was changed")
        if json.loads(mark.read_text()) != told:
            raise StoreError(f"{path} holds a restore of something else, begun earlier; nothing was changed")
    path.parent.mkdir(parents=True, exist_ok=True)
    make_directory(path)
    make_directory(path / "streams")
    mark.write_text(json.dumps(told))
    adopt(mark)


def _wanted(path: Path, readings: Iterable[Reading], fetched: Fetched) -> Iterable[_Part]:
    """The extents to fetch, of several that have the same bytes one."""
    seen: dict[tuple[str, int], tuple[int, list[_Part]]] = {}
    for reading in readings:
        host = reading.contents.host
        for name, stream in reading.contents.streams.items():
            for pack in stream.packs:
                target = pack_path(path / "streams" / name, pack)
                parts = [_Part(host, name, pack, extent, target) for extent in cover(stream, pack)]
                end = stream.end(pack)
                if stream.has_hole(pack):
                    fetched.faults.append(f"pack {pack} of {name}: a piece is missing at byte {end}")
                if end > seen.get((name, pack), (-1, []))[0]:
                    seen[name, pack] = end, parts
    fetched.streams = len({name for name, _ in seen})
    fetched.packs = len(seen)
    for _, parts in seen.values():
        yield from parts


def cover(stream: StreamContents, pack: int) -> Iterator[Extent]:
    """The fewest extents that make a pack, as far as it is without a hole; pieces rather than rounds."""
    extents = stream.packs[pack]
    end = at = 0
    while True:
        best: Extent | None = None
        while at < len(extents) and extents[at].offset <= end:
            extent = extents[at]
            at += 1
            if best is None or (extent.end, not extent.inline) > (best.end, not best.inline):
                best = extent
        if best is None or best.end <= end:
            return
        yield best
        end = best.end


class _Fetch:
    """The fetching of some parts, by several threads."""

    def __init__(
        self, replica: Replica, parts: list[_Part], arrivals: Arrivals, advance: Callable[[int], None]
    ) -> None:
        self._replica = replica
        self._parts = parts
        self._arrivals = arrivals
        self._advance = advance
        self._lock = threading.Lock()
        self._left = Counter(part.path for part in parts)

    def run(self, threads: int, fetched: Fetched) -> None:
        """All of it. Raises `StoreError`, `OSError`."""
        with ThreadPoolExecutor(threads, thread_name_prefix="fetch") as pool:
            futures = [pool.submit(self._fetch, part) for part in self._parts]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        for future in futures:
            kept, got, fault = future.result()
            fetched.kept_bytes += kept
            fetched.bytes += kept + got
            if fault:
                fetched.faults.append(fault)

    def _fetch(self, part: _Part) -> tuple[int, int, str]:
        """Bytes that were there, bytes that came, and what is wrong with it."""
        extent = part.extent
        fd = os.open(on_its_way(part.path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            adopt(on_its_way(part.path))
            kept, got, fault = self._bring(part, fd)
            with self._lock:
                self._left[part.path] -= 1
                whole = not self._left[part.path]
            if whole or extent.length >= _FLUSHED_BYTES:
                os.fsync(fd)
        finally:
            os.close(fd)
        if whole:
            self._arrivals.arrived(part.path)
        return kept, got, fault

    def _bring(self, part: _Part, fd: int) -> tuple[int, int, str]:
        extent = part.extent
        if _is_there(on_its_way(part.path), extent):
            self._advance(extent.length)
            return extent.length, 0, ""
        at = extent.offset
        try:
            for data in self._replica.extent(part.host, part.stream, part.pack, extent):
                write_all(fd, data, at)
                at += len(data)
                self._advance(len(data))
        except RoundError as exc:
            # Written all the same: what is sound of it can be read, and check tells the rest.
            return 0, extent.length, f"pack {part.pack} of {part.stream}: {exc}"
        return 0, extent.length, ""


def _is_there(file: Path, extent: Extent) -> bool:
    try:
        return digest_of(file, extent.offset, extent.end) == extent.digest
    except FileNotFoundError:  # it is shorter
        return False


def _segments(readings: Iterable[Reading]) -> dict[str, dict[str, str]]:
    """The manifests of each stream, by name. Raises `RoundError` for what cannot be one's name."""
    found: dict[str, dict[str, str]] = {}
    for reading in readings:
        for name, stream in reading.contents.streams.items():
            for segment, text in stream.segments.items():
                found.setdefault(name, {})[segment] = text
    return found


def _leave_only(path: Path, parts: Iterable[_Part]) -> None:
    """Of what an earlier run left take away what counts no more, and let the rest be on its way again."""
    ends: dict[Path, int] = {}
    for part in parts:
        ends[part.path] = max(ends.get(part.path, 0), part.extent.end)
    shutil.rmtree(path / "index", ignore_errors=True)
    for file in [*(path / "streams").glob(f"*/*{SUFFIX}"), *(path / "streams").glob(f"*/*{SUFFIX}{PART}")]:
        file.unlink()
    for file in (path / "streams").glob("*/*.pack"):
        file.rename(on_its_way(file))
    for file in (path / "streams").glob(f"*/*.pack{PART}"):
        end = ends.get(file.with_suffix(""))
        if end is None:
            file.unlink()
        elif file.stat().st_size > end:
            os.truncate(file, end)
