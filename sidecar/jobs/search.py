"""The job that takes what is new into the search index."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from sidecar.jobs.common import Current, step_of
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.kinds import Run
from sidecar.search import files as search_files
from sidecar.search.follow import Follower, until
from sidecar.search.index import IndexWriter
from store.store import Store

_RUN_S = 300.0
_REST = 3
_LONGEST_REST_S = 0.25


def _resting(step: Callable[[int], None]) -> Callable[[int], None]:
    """`step` with three times as much rest as was worked since the one before: many short pieces of Python
    would have capture wait for its lock, whatever their niceness."""
    worked_s = time.thread_time()

    def rest(size: int) -> None:
        nonlocal worked_s
        time.sleep(min(_REST * (time.thread_time() - worked_s), _LONGEST_REST_S))
        step(size)
        worked_s = time.thread_time()

    return rest


def search_job(store: Store, config: Current) -> Run:
    """Takes what is new into the search index; removes that where none is to be."""

    def run(context: JobContext) -> str:
        if store.keyring.seals or not config().search.enabled:
            gone = search_files.remove(store.path)
            return f"off, {'as the store is sealed' if store.keyring.seals else 'by [search] enabled'}" + (
                "" if gone else "; somebody still writes to the index"
            )
        if shutil.disk_usage(store.path).free < config().store.reserve_bytes:
            return "nothing done: free space is below the reserve"
        index = IndexWriter.take(store.path, store.id)
        if index is None:
            return "another process is at it"
        with index:

            def show(done: int, waiting: int) -> None:
                context.progress(done, done + waiting, "messages that can be found by their words")

            stop = until(_RUN_S)  # other jobs want to run, too; the next run goes on
            reached = Follower(store, index, stop=stop, step=_resting(step_of(context)), progress=show).run()
        return f"{reached.messages} messages can be found by their words" + (
            "" if reached.is_complete else f", {reached.waiting} wait"
        )

    return run
