"""Jobs that keep the store in order: expire, compact, check, witness.

Each is made of small steps and may be stopped between any two of them: what it had finished stays, and the
next run goes on.
"""

from __future__ import annotations

import itertools
import logging
from typing import Protocol

from sidecar.jobs.common import FINDINGS_TOLD, Current, is_true, step_of
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.kinds import Run
from sidecar.sections import StoreConfig
from sidecar.units import format_size
from sidecar.witness import witness
from store.check import Checked, Checker, CheckOptions
from store.compact import CompactOptions, Compactor, close_open_packs
from store.retention import expire
from store.sample import Sample
from store.store import Store

log = logging.getLogger(__name__)
_ROLL_BYTES = 16 << 20


class Others(Protocol):
    """The other processes that write to the store for the same service."""

    def ask_to_roll(self, *, everything: bool) -> None:
        """Let them end their open packs as `end_open_pack` does, and wait until they have."""

    def other_streams(self) -> list[str]:
        """The streams that they write."""


def expire_job(store: Store, config: Current) -> Run:
    """Drops what is past its time, as the rules under [[retention]] say."""

    def run(context: JobContext) -> str:
        step = step_of(context)
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
        everything = is_true(context.arguments.get("all", "false"))
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
                step=step_of(context), stop=context.stop_requested, progress=context.progress,
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
                read_data=sample, threads=context.threads, resume=True, step=step_of(context), progress=show
            ),
        )
        findings = list(itertools.islice(checker.run(), 10_000))
        for finding in findings[:FINDINGS_TOLD]:
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


class FoundDamageError(Exception):
    """The check found something wrong."""
