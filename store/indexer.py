"""Brings the index up to what is durable, behind the acknowledgements and in large steps.

If it falls behind or fails, capture goes on: what is not yet indexed is in `Pending`, and in the streams.
"""

from __future__ import annotations

import logging
import queue
import threading

from store.errors import StoreError
from store.scan import Group
from store.view import View
from store.writer import Pending

log = logging.getLogger(__name__)
_STEP_S = 0.2
_RETRY_S = 2.0


class Indexer:
    """The thread that applies committed groups to the index."""

    def __init__(self, view: View) -> None:
        self.pending = Pending()
        self._view = view
        self._queue: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._put = 0
        self._done = 0
        self._moved = threading.Condition()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)
        self._thread.start()

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

    def _run(self) -> None:
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
            except (StoreError, OSError) as exc:
                log.error("the index falls behind: %s", exc)
                if self._closing.wait(_RETRY_S):  # a full disk must not keep the process from ending
                    return
        for group in groups:
            self.pending.drop(group)
        with self._moved:
            self._done += len(groups)
            self._moved.notify_all()
