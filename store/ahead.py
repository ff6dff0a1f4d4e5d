"""Ask for what is wanted next while the answer before is being made use of: where answers come from afar.

What is at hand is quicker asked for one after the other, and whoever wants only the first answers must not
wait for more. So nothing is asked ahead until an answer has taken its time; then ever more is, as long as
answers do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")
_SLOW_S = 0.002
"""from which on an answer has come from elsewhere"""
_FEWEST, _AT_ONCE = 4, 16


class Ahead:
    """Threads that ask ahead: none until they are wanted. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.closing = False
        """whether what is being asked for is wanted no more: what takes long may end early"""

    def each(self, items: Iterable[K], ask: Callable[[K], T]) -> Iterator[tuple[K, Callable[[], T]]]:
        """Each of the items, in their order, with what gives its answer or raises what asking has raised.
        `ask` may be called by any thread, and for items that are never come to. Raises what `items` raises,
        after those that came before."""
        trouble: list[Exception] = []
        left = _until_trouble(items, trouble)
        waiting: deque[tuple[K, Future[tuple[T, float]]]] = deque()
        wanted = 0
        last_s = 0.0

        def timed(item: K) -> tuple[T, float]:
            began = time.monotonic()
            return ask(item), time.monotonic() - began

        def noted(get: Callable[[], tuple[T, float]]) -> T:
            nonlocal last_s
            answer, last_s = get()
            return answer

        try:
            while True:
                wanted = min(_AT_ONCE, max(_FEWEST, wanted * 2)) if last_s >= _SLOW_S else wanted // 2
                for item in islice(left, max(0, wanted - len(waiting))):
                    waiting.append((item, self._threads().submit(timed, item)))
                if waiting:
                    item, future = waiting.popleft()
                    yield item, partial(noted, future.result)
                    continue
                try:
                    item = next(left)
                except StopIteration:
                    break
                yield item, partial(noted, partial(timed, item))
        finally:
            for _, future in waiting:
                future.cancel()
        if trouble:
            raise trouble[0]

    def firsts(self, sources: Sequence[Iterator[T]]) -> list[T | None]:
        """The first of each, None of those that have none. From the first that takes its time on the rest
        are asked at once. Raises what the first of them raised, once none of them is being asked."""
        found: list[T | None] = []
        for at, source in enumerate(sources):
            began = time.monotonic()
            found.append(next(source, None))
            if time.monotonic() - began >= _SLOW_S:
                return found + self._all_at_once(sources[at + 1 :])
        return found

    def _all_at_once(self, sources: Sequence[Iterator[T]]) -> list[T | None]:
        asked = [self._threads().submit(next, source, None) for source in sources]
        try:
            return [future.result() for future in asked]
        finally:  # nobody is in them any more when this is over: they may read what the caller lets go of
            for future in asked:
                future.cancel()
            wait(asked)

    def close(self) -> None:
        """Wait for what is being asked, and ask no more."""
        self.closing = True
        with self._lock:
            if self._pool:
                self._pool.shutdown(cancel_futures=True)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ahead")
            return self._pool


def _until_trouble(items: Iterable[K], trouble: list[Exception]) -> Iterator[K]:
    try:
        yield from items
    except Exception as exc:  # noqa: BLE001 - raised when its turn comes
        trouble.append(exc)
