"""Put what a restore fetches into the index, and check it, while the rest is still on its way.

    fetched as NAME.part, flushed --> named, in the order of its stream --> indexed (a thread), or found so
                                                                       --> checked (`check_ahead`, a process)

A pack gets its name when all that comes before it in its stream has. So the stream is one at every moment,
only shorter, and is caught up with as any other is; nothing here knows how. The check at the end finds what
was checked on the way by the bookmark that every check leaves, and does the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from store.about import About
from store.errors import StoreError
from store.files import adopt, write_all
from store.index import Index
from store.layout import FIRST_COMPACTED
from store.replicas.index_fetch import FetchedIndex
from store.sealing import Keyring
from store.segments import Segment, pack_path, read
from store.view import View

log = logging.getLogger(__name__)
PART = ".part"
_CHECK_S = 3600.0
_TELL_S = 0.25


def on_its_way(path: Path) -> Path:
    """Where a file is until it gets its name."""
    return path.with_name(path.name + PART)


@dataclass(slots=True)
class _Unit:
    """Files that get their names together, the manifests last; `missing` have not come yet."""

    packs: list[Path]
    manifests: list[Path]
    missing: set[Path]


class Arrivals:
    """The streams of one store that is being fetched. `arrived` may be called by any thread."""

    def __init__(
        self, path: Path, about: About, keyring: Keyring, *, ahead: bool, copy: FetchedIndex | None = None
    ) -> None:
        """`ahead`: check what is there in a process of its own meanwhile. `copy`: of the index, which then
        need not be made."""
        self._copy = copy
        self._path = path
        self._about = about
        self._keyring = keyring
        self._lock = threading.Lock()
        self._units: dict[str, deque[_Unit]] = {}
        self._named: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._damage: dict[str, None] = {}
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        # What is sealed is checked at the end, where the identity is at hand.
        self._wants_ahead = ahead and not keyring.seals
        self._ahead: _Ahead | None = None

    def expect(self, stream: str, packs: Iterable[Path], manifests: Mapping[str, str]) -> None:
        """These packs will arrive, and these manifests are theirs; before `start`. Raises `OSError`."""
        directory = self._path / "streams" / stream
        for name, text in manifests.items():
            _write(on_its_way(directory / name), text.encode())
        self._units[stream] = deque(_in_order(directory, set(packs), manifests))

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        for stream in self._units:
            self._name(stream)

    def arrived(self, pack: Path) -> None:
        """A pack is whole, and on the disk. Raises `OSError`."""
        stream = pack.parent.name
        with self._lock:
            for unit in self._units[stream]:
                unit.missing.discard(pack)
        self._name(stream)

    def finish(self) -> list[str]:
        """Wait until all is in the index; the damage that was met. Raises `StoreError`, `OSError`."""
        self._named.put(None)
        self._thread.join()
        if self._ahead:
            self._ahead.finish()
        if self._failure:
            raise self._failure
        return list(self._damage)

    def give_up(self) -> None:
        """End at once."""
        self._stopped.set()
        self._named.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        if self._ahead:
            self._ahead.kill()

    def _name(self, stream: str) -> None:
        """Give their names to what is next in a stream and there."""
        with self._lock:
            units = self._units[stream]
            named = False
            while units and not units[0].missing:
                unit = units.popleft()
                for path in (*unit.packs, *unit.manifests):
                    on_its_way(path).rename(path)
                named = True
        if named:
            self._named.put(stream)

    def _run(self) -> None:
        try:
            index = Index(self._path / "index", self._about.id, keyring=self._keyring)
            with contextlib.closing(index):
                copied = self._take_copy(index)
                if self._wants_ahead:  # which finds the index made
                    self._ahead = _Ahead(self._path, self._about)
                view = View(index, self._path / "streams", self._about.id, self._keyring)
                while (stream := self._named.get()) is not None:
                    if not copied:
                        self._catch_up(view, stream)
                    elif self._ahead:
                        self._ahead.tell(stream)
                if self._stopped.is_set():
                    return
                for stream in view.names():
                    self._catch_up(view, stream)
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self._failure = exc

    def _take_copy(self, index: Index) -> bool:
        """Whether the index is what the host's was. Until all that it knows of is here, nobody may catch it
        up: less than it has seen would have it made anew."""
        if self._copy is None:
            return False
        try:
            return self._copy.take(index)
        except StoreError as exc:
            log.warning("%s; it is made from the packs", exc)
            return False

    def _catch_up(self, view: View, stream: str) -> None:
        told = 0.0

        def step(_size: int) -> None:
            nonlocal told
            if self._stopped.is_set():
                raise _StoppedError
            if self._ahead and time.monotonic() - told >= _TELL_S:  # several packs may have come at once
                self._ahead.tell(stream)
                told = time.monotonic()

        step(0)  # what was the last part is not any more
        caught = view.catch_up(stream, step)
        self._damage.update(dict.fromkeys(map(str, caught.damage)))
        if self._ahead:
            self._ahead.tell(stream)


class _StoppedError(Exception):
    """The restore was given up."""


class _Ahead:
    """The process that checks what is in the index already. Without it all is checked at the end."""

    def __init__(self, path: Path, about: About) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-P", "-m", "store.replicas.check_ahead", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        # By a pipe: what stands in a command's arguments can be read by anybody.
        self.tell(f"{about.id.hex()} {about.key.hex()}")

    def tell(self, line: str) -> None:
        """A stream in which there is more."""
        with contextlib.suppress(OSError):
            assert self._process.stdin  # noqa: S101 - made above
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def finish(self) -> None:
        """Wait until it has checked what it can."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=_CHECK_S)
        self.kill()
        if self._process.returncode:
            log.debug("the check ahead ended with %d", self._process.returncode)

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()


def _in_order(directory: Path, packs: set[Path], manifests: Iterable[str]) -> list[_Unit]:
    """What a stream is made of, in its order, as `store.segments` has it; what counts no more comes last."""
    segments: list[Segment] = []
    for name in manifests:
        # What cannot be read is told when it has its name.
        with contextlib.suppress(ValueError):
            segments.append(read(on_its_way(directory / name)))
    kept = [
        one
        for one in segments
        if not any(other.covers(one.first, one.last) for other in segments if other is not one)
    ]
    units: list[tuple[int, _Unit]] = []
    left, unnamed = set(packs), {directory / name for name in manifests}

    def unit(first: int, some: list[Path], named: list[Path]) -> None:
        there = [path for path in some if path in left]
        units.append((first, _Unit(there, named, set(there))))
        left.difference_update(there)
        unnamed.difference_update(named)

    for segment in kept:
        unit(segment.first, [pack_path(directory, n) for n in segment.packs], [directory / segment.name])
    for path in packs & left:
        number = int(path.stem)
        if number < FIRST_COMPACTED and not any(segment.covers(number, number) for segment in kept):
            unit(number, [path], [])
    found = [one for _, one in sorted(units, key=lambda one: one[0])]
    return [*found, _Unit(sorted(left), sorted(unnamed), set(left))] if left or unnamed else found


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        adopt(path)
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
