"""Brings the index up to what is durable, behind the acknowledgements and in large steps.

If it falls behind or fails, capture goes on: what is not yet indexed is in `Pending`, and in the streams.
Runs are merged in a thread beside, which nothing waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import queue
import threading
from collections.abc import Callable

from store.errors import DamagedError, StoreError
from store.places import Group
from store.view import CaughtUp, View
from store.writer import Pending

log = logging.getLogger(__name__)
_STEP_S = 0.2
_RETRY_S = 2.0


class Indexer:
    """The thread that applies committed groups to the index."""

    def __init__(
        self,
        view: View,
        *,
        behind: bool = False,
        note: Callable[[CaughtUp], None] = lambda _caught: None,
    ) -> None:
        """With `behind` the index is caught up with all streams first; `note` is told what was found."""
        self.pending = Pending()
        self.catching_up = behind
        self._view = view
        self._note = note
        self._queue: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._put = 0
        self._done = 0
        self._moved = threading.Condition()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._merge = threading.Event()
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)
        self._merger = threading.Thread(target=self._run_merges, name="index-merger", daemon=True)
        self._thread.start()
        self._merger.start()

    def put(self, group: Group) -> None:
        """Take a group that is durable. Called by the writer's thread alone."""
        self._put += 1
        self._queue.put(group)

    @property
    def waiting(self) -> int:
        """Groups not yet in the index."""
        return self._put - self._done

    def settle(self, timeout_s: float) -> None:
        """Wait until everything put so far is in the index, or the time is over."""
        target = self._put
        self._hurry.set()
        with self._moved:
            self._moved.wait_for(lambda: self._done >= target, timeout_s)

    def close(self) -> None:
        """Apply what is left, then stop. What cannot be applied is found in the streams at the next start."""
        self._closing.set()
        self._queue.put(None)
        self._hurry.set()
        self._thread.join()
        self._merge.set()
        self._merger.join()

    def _run(self) -> None:
        if self.catching_up:
            self._catch_up()
        stopping = False
        while not stopping:
            item = self._queue.get()
            if item is not None:
                self._hurry.wait(_STEP_S)
            groups: list[Group] = []
            while True:
                if item is None:
                    stopping = True
                    break
                groups.append(item)
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            self._hurry.clear()
            if groups:
                self._apply(groups)

    def _apply(self, groups: list[Group]) -> None:
        while True:
            try:
                self._view.apply(groups)
                break
            except Exception as exc:
                log.error(
                    "the index falls behind: %s", exc, exc_info=not isinstance(exc, (StoreError, OSError))
                )
                if self._closing.wait(_RETRY_S):  # a full disk must not keep the process from ending
                    return
                if isinstance(exc, DamagedError):
                    self._start_over(exc)
        self._merge.set()
        for group in groups:
            self.pending.indexed(group)
        if self._all_in_runs():
            self.pending.folded()
        with self._moved:
            self._done += len(groups)
            self._moved.notify_all()

    def _all_in_runs(self) -> bool:
        try:
            return self._view.index.fresh_count() == 0
        except StoreError:
            return False  # then the next time

    def _start_over(self, why: DamagedError) -> None:
        """The index itself is damaged: what is in the streams makes it anew."""
        log.error("%s; it is emptied and rebuilt from the streams", why)
        try:
            self._view.clear()
        except (StoreError, OSError) as exc:
            log.error("the index cannot be emptied: %s", exc)
            return
        self._catch_up()

    def _catch_up(self) -> None:
        log.info("the index is being rebuilt from the streams; mail is captured meanwhile")
        while not self._closing.is_set():
            try:
                with self._view.index.catching_up() as may:
                    for stream in self._view.names() if may else ():
                        self._note(self._view.catch_up(stream))
                if may:
                    break
                self._closing.wait(_STEP_S)  # another process does it: what it has done is done for us
            except (StoreError, OSError) as exc:
                log.error("the index cannot be rebuilt yet: %s", exc)
                self._closing.wait(_RETRY_S)
        self.catching_up = False
        log.info("the index is up to date")

    def _run_merges(self) -> None:
        while True:
            self._merge.wait()
            self._merge.clear()
            if self._closing.is_set():
                return
            try:
                if self._view.index.merge(stop=self._closing.is_set):
                    _give_back()
            except Exception as exc:  # noqa: BLE001 - as above
                log.error("the index's runs cannot be merged: %s", exc)


def _give_back() -> None:
    """Return to the system what a merge has freed: filters of tens of megabytes, of which glibc would keep
    the holes. Other C libraries have no such call, and need none."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
