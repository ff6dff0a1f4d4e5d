"""Build the index anew from the streams alone, beside the one in use, and put it in its place in one step.

Capture, readers and the old index go on meanwhile: `take_over` is one transaction, before which everybody
sees the old index whole and after which the new one. What was captured during the build is taken in while
that transaction keeps others from adding to the old index, so nothing is ever missing from what is in use.
Compaction waits (its lock is held), since it replaces what is being read.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from store.errors import StoreError, StoreLockedError
from store.files import adopt
from store.index import Index
from store.locks import take_lock
from store.log import COMPACT_LOCK, lock_stream
from store.places import Damage
from store.store import Store
from store.view import View

_PREFIX = "index.new-"
_TAIL_BYTES = 1 << 20
"""what may be left to read while the old index is kept from changing"""
_ROUNDS = 20
_LOOK_S = 0.2


@dataclass(slots=True)
class RebuildReport:
    """What the new index has, what it took, and the damage that was met."""

    deliveries: int = 0
    contents: int = 0
    chunks: int = 0
    pack_bytes: int = 0
    seconds: float = 0.0
    damage: list[Damage] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildOptions:
    """`step` is told the bytes read since the last call, may wait, and raises to stop: the old index stays.
    `progress` is told bytes read, bytes in all, and what is going on."""

    step: Callable[[int], None] = lambda _size: None
    progress: Callable[[int, int, str], None] = lambda _done, _total, _text: None


def rebuild(store: Store, options: RebuildOptions | None = None) -> RebuildReport:
    """Rebuild a store's index. Raises `StoreLockedError` when somebody else does, `StoreError`, `OSError`."""
    options = options or RebuildOptions()
    if store.index.path != store.path / "index":
        raise StoreError(f"{store.path} cannot be written to: its index is not kept")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        lock = take_lock(store.path / "rebuild.lock")
        if lock is None:
            raise StoreLockedError(f"another process rebuilds the index of {store.path}")
        stack.enter_context(lock)
        for left in store.path.glob(_PREFIX + "*"):  # of one that was killed: there is no other
            shutil.rmtree(left)
        stack.enter_context(_no_compaction(store, options))
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=store.path))
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        adopt(path)
        fresh = Index(path, store.id, keyring=store.keyring)
        stack.callback(fresh.close)
        report = _Build(store, fresh, options).run()
    report.seconds = time.monotonic() - began
    return report


@contextlib.contextmanager
def _no_compaction(store: Store, options: RebuildOptions) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in store.view.names():
            while True:
                try:
                    stack.enter_context(lock_stream(store.path / "streams" / name, COMPACT_LOCK))
                except StoreLockedError:
                    options.progress(0, 0, f"waits for the compaction of {name}")
                    options.step(0)
                    time.sleep(_LOOK_S)
                    continue
                break
        yield


class _Build:
    """The new index on its way."""

    def __init__(self, store: Store, fresh: Index, options: RebuildOptions) -> None:
        self._store = store
        self._fresh = fresh
        self._options = options
        self._view = View(fresh, store.path / "streams", store.id, store.keyring)
        self._damage: dict[Damage, None] = {}
        self._read = 0
        self._total = self._view.behind()

    def run(self) -> RebuildReport:
        """All of it, up to the moment where it is in use."""
        for _ in range(_ROUNDS):
            self._catch_up()
            if self._view.behind() <= _TAIL_BYTES:
                break
        self._options.progress(self._read, self._total, "merges")
        self._fresh.merge(everything=True, stop=self._stop)
        self._options.step(0)
        with self._store.index.update() as update:
            self._catch_up()  # nobody can add to the old index now, so the new one is ahead of it
            update.take_over(self._fresh)
            counters = update.counters()
        for name in self._store.view.names():
            self._store.view.catch_up(name)
        return RebuildReport(
            sum(counters.deliveries.values()), counters.contents, counters.chunks, self._read,
            damage=list(self._damage),
        )  # fmt: skip

    def _catch_up(self) -> None:
        for name in self._view.names():
            caught = self._view.catch_up(name, lambda size, name=name: self._advance(name, size))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            self._damage.update(dict.fromkeys(caught.damage))

    def _advance(self, name: str, size: int) -> None:
        self._read += size
        self._options.step(size)
        self._fresh.merge(stop=self._stop)  # else runs pile up, and each is an open file
        self._options.progress(self._read, max(self._total, self._read), name)

    def _stop(self) -> bool:
        """Whether `step` wants an end; it is asked again where raising is right."""
        try:
            self._options.step(0)
        except Exception:  # noqa: BLE001 - whatever the caller stops by; it comes again at the next step
            return True
        return False
