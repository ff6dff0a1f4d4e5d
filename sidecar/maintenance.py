"""The jobs that `serve` runs in the background: what each does, and which comes first.

Each is made of small steps and may be stopped between any two of them: what it had finished stays, and the
next run goes on.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable
from typing import Protocol

from sidecar.config import Config, StoreConfig
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.kinds import JobKind, Run
from sidecar.search import files as search_files
from sidecar.search.follow import Follower, until
from sidecar.search.index import IndexWriter
from sidecar.units import format_size
from sidecar.witness import witness
from store.check import Checked, Checker, CheckOptions
from store.compact import CompactOptions, Compactor, close_open_packs
from store.retention import expire
from store.sample import Sample
from store.store import Store

log = logging.getLogger(__name__)

_ROLL_BYTES = 16 << 20
_PRIORITIES = {"witness": 5, "expire": 10, "search": 15, "compact": 20, "check": 30}
_FINDINGS_TOLD = 20
_SEARCH_RUN_S = 300.0
_REST = 3
_LONGEST_REST_S = 0.25

Current = Callable[[], Config]
"""the configuration as it is now: SIGHUP changes it"""


class Others(Protocol):
    """The other processes that write to the store for the same service."""

    def ask_to_roll(self, *, everything: bool) -> None:
        """Let them end their open packs as `end_open_pack` does, and wait until they have."""

    def other_streams(self) -> list[str]:
        """The streams that they write."""


def _step(context: JobContext) -> Callable[[int], None]:
    def step(size: int) -> None:
        context.spent(size)
        context.yield_()

    return step


def _is_true(text: str) -> bool:
    """Raises `ValueError` for what is neither yes nor no."""
    if text.lower() in {"true", "yes", "1", ""}:
        return True
    if text.lower() in {"false", "no", "0"}:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def expire_job(store: Store, config: Current) -> Run:
    """Drops what is past its time, as the rules under [[retention]] say."""

    def run(context: JobContext) -> str:
        step = _step(context)
        rules = config().rules
        if not rules:
            return "no rules: mail is kept for ever"
        dropped = expire(store, rules, owner="mailkeep serve", step=lambda: step(0))
        return f"{dropped.deliveries} deliveries expired"

    return run


def end_open_pack(store: Store, settings: StoreConfig, *, everything: bool) -> None:
    """End the pack that this process writes, if there is something in it that is worth compacting."""
    enough = store.writer.open_pack_bytes >= min(_ROLL_BYTES, settings.pack_size_bytes)
    with store.index.read() as snapshot:
        wasted = store.writer.open_pack in snapshot.waste()  # what was erased shall not wait for more mail
    if enough or wasted or everything:
        store.writer.roll()


def compact_job(store: Store, config: Current, others: Others | None) -> Run:
    """Rewrites closed packs; ends the open ones first if there is something in them that is worth it."""

    def run(context: JobContext) -> str:
        settings = config().store
        everything = _is_true(context.arguments.get("all", "false"))
        end_open_pack(store, settings, everything=everything)
        if others is not None:
            others.ask_to_roll(everything=everything)
        close_open_packs(store, others.other_streams() if others is not None else ())
        store.settle_index()
        if store.blind:
            return "sealed: open packs were ended; go on with `mailkeep compact --identity FILE`"
        report = Compactor(
            store,
            CompactOptions(
                level=settings.compaction_level, threads=context.threads,
                pack_bytes=settings.pack_size_bytes, everything=everything,
                step=_step(context), stop=context.stop_requested, progress=context.progress,
            ),
        ).run()  # fmt: skip
        return report.told() if report.units or report.skipped else "nothing is due"

    return run


def check_job(store: Store, config: Current) -> Run:  # noqa: ARG001 - as the others
    """Verifies the store; what it finds goes to the log, and the run counts as failed."""

    def run(context: JobContext) -> str:
        asked = context.arguments.get("read_data")
        sample = Sample.parse(asked) if asked is not None else None

        def show(checked: Checked) -> None:
            context.progress(checked.deliveries, 0, f"{format_size(checked.message_bytes)} read")

        checker = Checker(
            store,
            CheckOptions(
                read_data=sample, threads=context.threads, resume=True, step=_step(context), progress=show
            ),
        )
        findings = list(itertools.islice(checker.run(), 10_000))
        for finding in findings[:_FINDINGS_TOLD]:
            log.error("check: %s: %s: %s", finding.kind, finding.where, finding.what)
        if findings:
            raise FoundDamageError(f"{len(findings)} findings; `mailkeep check` tells them")
        if checker.checked.sealed:
            return f"nothing wrong; {checker.checked.sealed} commits are sealed, and seen from without alone"
        return f"{checker.checked.deliveries} deliveries, nothing wrong"

    return run


def witness_job(store: Store, config: Current) -> Run:
    """Sends the head to where it is kept."""

    def run(context: JobContext) -> str:
        context.yield_()
        store.settle_index()
        return witness(store, config().witness)

    return run


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

            stop = until(_SEARCH_RUN_S)  # other jobs want to run, too; the next run goes on
            reached = Follower(store, index, stop=stop, step=_resting(_step(context)), progress=show).run()
        return f"{reached.messages} messages can be found by their words" + (
            "" if reached.is_complete else f", {reached.waiting} wait"
        )

    return run


class FoundDamageError(Exception):
    """The check found something wrong."""


def job_kinds(store: Store, config: Current, others: Others | None = None) -> dict[str, JobKind]:
    """The kinds that there are, by name."""
    jobs = {
        "compact": (compact_job(store, config, others), frozenset({"all"})),
        "expire": (expire_job(store, config), frozenset[str]()),
        "check": (check_job(store, config), frozenset({"read_data"})),
        "search": (search_job(store, config), frozenset[str]()),
        "witness": (witness_job(store, config), frozenset[str]()),
    }
    return {name: JobKind(job, _PRIORITIES[name], arguments) for name, (job, arguments) in jobs.items()}
