"""Files of which only what was read is here: the rest is fetched when somebody asks for it.

A file stands at its place with its whole length, and is sparse. What of it is here a map beside it says, with
a byte for each page. A crash of the machine may lose pages and keep the map, so maps are of one boot.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from store.files import room_for, write_all
from store.replicas.errors import MissingObjectError
from store.replicas.layout import RoundError

PAGE_BYTES = 128 << 10
_FETCH_BYTES = 4 << 20
_AT_ONCE = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_HERE = b"\x01"


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file from `offset` on: `length` of them, from `at` on in what `name` names. With a `digest`
    (BLAKE3) they are fetched as a whole and compared; then parts begin at pages."""

    offset: int
    length: int
    name: str
    at: int = 0
    digest: bytes = b""

    @property
    def end(self) -> int:
        """Where in the file it ends."""
        return self.offset + self.length


Get = Callable[[str, int, int], bytes]
"""the bytes of what a name names, from a place on, so many"""


class Hollow:
    """The hollow files below a directory. Thread-safe; several processes may fill one directory."""

    def __init__(self, root: Path, get: Get, wrong: Callable[[str], None] = lambda _name: None) -> None:
        """`wrong` is told the name of what is missing or damaged, when it is met."""
        self._root = root
        self._get = get
        self._wrong = wrong
        self._maps = root / "here"
        self._lock = threading.Lock()
        self._files: dict[Path, _File] = {}
        self._arrived = threading.Condition()
        """of pages that are being fetched; guards `_File.coming`"""
        self._pool: ThreadPoolExecutor | None = None
        self.fetched_bytes = 0

    def begin(self) -> bool:
        """Forget what an earlier boot had fetched; whether there was one. Nobody else may be at it."""
        self._maps.mkdir(mode=0o700, parents=True, exist_ok=True)
        boot, mark = _BOOT_ID.read_text(), self._maps / "boot"
        if mark.exists() and mark.read_text() == boot:
            return False
        for path in self._maps.iterdir():
            path.unlink()
        mark.write_text(boot)
        return True

    def lay_out(self, path: Path, parts: Sequence[Part]) -> None:
        """Have a file be there, made of `parts`, which follow on each other and may overlap. One that is
        there already may only grow."""
        size = parts[-1].end if parts else 0
        with self._lock:
            known = self._files.get(path)
            if known and known.size == size and path.exists():
                known.consist_of(parts)
            else:
                # Whoever is fetching into the one before goes on with it: its pages are the same.
                self._files[path] = _File(path, self._map_path(path), parts, size)

    def remove(self, path: Path) -> None:
        """A file that counts no more, laid out by whomever."""
        with self._lock:
            self._files.pop(path, None)
            path.unlink(missing_ok=True)
            self._map_path(path).unlink(missing_ok=True)

    def drop(self, path: Path) -> None:
        """A file that is whole, and was made by somebody else."""
        with self._lock:
            self._files.pop(path, None)
            self._map_path(path).unlink(missing_ok=True)

    def _map_path(self, path: Path) -> Path:
        return self._maps / str(path.relative_to(self._root)).replace("/", "=")

    def forget(self) -> None:
        """All files, and what was fetched of them."""
        for path in list(self._files):
            self.remove(path)

    def size(self, path: Path) -> int | None:
        """How long a file was laid out; None if it was not."""
        file = self._files.get(path)
        return file.size if file else None

    def paths(self) -> Iterable[Path]:
        """The files that were laid out."""
        return list(self._files)

    def fill(self, path: Path, start: int, end: int, *, again: bool = False) -> None:
        """See `store.files.Fill`; files that were not laid out are whole. Raises `StoreError`, `OSError`."""
        file = self._files.get(path)
        if file and again:
            file.forget(start, end)
        if file is None or file.has(start, end):
            return
        with self._arrived:
            mine = list(file.missing(start, end))
            others = file.coming & {*_pages(start, end)}
            file.coming.update(*(_pages(*stretch) for stretch in mine))
        try:
            self._fetch_all(file, mine)
        finally:
            with self._arrived:
                file.coming.difference_update(*(_pages(*stretch) for stretch in mine))
                self._arrived.notify_all()
        if others:
            with self._arrived:
                self._arrived.wait_for(lambda: others.isdisjoint(file.coming))
                left = list(file.missing(start, end))
            self._fetch_all(file, left)  # they have failed, or others have begun

    def _fetch_all(self, file: _File, stretches: Sequence[tuple[int, int]]) -> None:
        if len(stretches) == 1:
            self._fetch(file, *stretches[0])
        elif stretches:
            with self._lock:
                self._pool = self._pool or ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
            for done in [self._pool.submit(self._fetch, file, *stretch) for stretch in stretches]:
                done.result()

    def _fetch(self, file: _File, start: int, end: int) -> None:
        got = []
        for part, at, size in file.pieces(start, end):
            try:
                got.append(self._read(part, at, size))
            except (RoundError, MissingObjectError):
                self._wrong(part.name)
                raise
        with room_for(file.path):
            file.put(start, b"".join(got))
        with self._lock:
            self.fetched_bytes += end - start

    def _read(self, part: Part, at: int, size: int) -> bytes:
        data = self._get(part.name, at, size)
        if len(data) != size:
            raise RoundError(f"{part.name} has less than {at + size} bytes")
        if part.digest and blake3(data).digest() != part.digest:
            raise RoundError(f"{part.name} is damaged")
        return data

    def close(self) -> None:
        """Let go of the files."""
        if self._pool:
            self._pool.shutdown()
        self._files.clear()


def _pages(start: int, end: int) -> range:
    """The pages in which a range lies."""
    return range(start // PAGE_BYTES, -(-end // PAGE_BYTES))


class _File:
    """One of them. It holds no descriptor: a replica has more packs than a process may have files open."""

    def __init__(self, path: Path, map_path: Path, parts: Sequence[Part], size: int) -> None:
        self.path = path
        self._map_path = map_path
        self.size = size
        self.coming: set[int] = set()
        """pages that somebody in this process is fetching"""
        self.consist_of(parts)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            map_path.unlink(missing_ok=True)  # of an earlier one at this place
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            had = os.fstat(fd).st_size
            if had < size:
                self._grow(fd, had)
        finally:
            os.close(fd)
        self._map = self._read_map()

    def _grow(self, fd: int, had: int) -> None:
        """The page in which it ended has more from now on: said before, should we be killed in between, and
        after, should another process have said that it is here in between."""
        if had % PAGE_BYTES:
            self._say(b"\0", had // PAGE_BYTES)
        os.truncate(fd, self.size)
        if had % PAGE_BYTES:
            self._say(b"\0", had // PAGE_BYTES)

    def _read_map(self) -> bytes:
        pages = max(1, -(-self.size // PAGE_BYTES))
        try:
            return self._map_path.read_bytes()[:pages].ljust(pages, b"\0")
        except FileNotFoundError:
            return bytes(pages)

    def _say(self, pages: bytes, first: int) -> None:
        fd = os.open(self._map_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, pages, first)
        finally:
            os.close(fd)

    def consist_of(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._begins = [part.offset for part in parts]

    def forget(self, start: int, end: int) -> None:
        """What is here of a range is not right."""
        first, last = start // PAGE_BYTES, -(-min(end, self.size) // PAGE_BYTES)
        if last > first:
            self._say(bytes(last - first), first)
            self._map = self._read_map()

    def has(self, start: int, end: int) -> bool:
        return self._map.find(b"\0", start // PAGE_BYTES, -(-min(end, self.size) // PAGE_BYTES)) < 0

    def missing(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of a range is neither here nor coming, in whole pages, and not too much at once."""
        end = min(end, self.size)
        page, last = start // PAGE_BYTES, -(-end // PAGE_BYTES)
        self._map = self._read_map()  # another process may have fetched it
        here = bytearray(self._map)
        for number in self.coming:
            here[number : number + 1] = _HERE
        while (page := here.find(b"\0", page, last)) >= 0:
            until = here.find(_HERE, page, last)
            until = min(last if until < 0 else until, page + _FETCH_BYTES // PAGE_BYTES)
            start, end = self._whole(page * PAGE_BYTES, min(until * PAGE_BYTES, self.size))
            yield start, end
            page = -(-end // PAGE_BYTES)

    def _whole(self, start: int, end: int) -> tuple[int, int]:
        """A range, widened to where parts begin and end that are compared."""
        if not self.parts or not self.parts[0].digest:
            return start, end
        first = self.parts[bisect_right(self._begins, start) - 1]
        last = self.parts[bisect_left(self._begins, end) - 1]
        return first.offset, last.end

    def pieces(self, start: int, end: int) -> Iterator[tuple[Part, int, int]]:
        """Where a range's bytes are: part, place in what it names, length."""
        at = start
        for part in self.parts:
            if part.offset <= at < part.end:
                size = min(end, part.end) - at
                yield part, part.at + at - part.offset, size
                at += size
                if at == end:
                    return

    def put(self, start: int, data: bytes) -> None:
        """Raises `FileNotFoundError` when the file counts no more."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_all(fd, data, start)
            end = start + len(data)
            first, last = start // PAGE_BYTES, -(-end // PAGE_BYTES)
            if end % PAGE_BYTES and os.fstat(fd).st_size > end:
                last -= 1  # another one knows of more of it
            if last > first:
                self._say(_HERE * (last - first), first)
                if end % PAGE_BYTES and os.fstat(fd).st_size > end:  # since a moment ago
                    self._say(b"\0", end // PAGE_BYTES)
        finally:
            os.close(fd)
        self._map = self._read_map()
