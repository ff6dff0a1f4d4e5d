"""The jobs that `serve` runs in the background: what each does, and which comes first.

Each is made of small steps and may be stopped between any two of them: what it had finished stays, and the
next run goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Protocol

from sidecar.config import Config, ImapConfig, StoreConfig
from sidecar.drill import DrillFailedError, Plan, drill, record
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.kinds import JobKind, Run
from sidecar.units import format_size
from sidecar.witness import witness
from store.check import Checked, Checker, CheckOptions
from store.compact import CompactOptions, Compactor, close_open_packs
from store.errors import StoreError
from store.ids import now_us
from store.retention import expire
from store.sample import Sample
from store.store import Store

log = logging.getLogger(__name__)

_ROLL_BYTES = 16 << 20
_PRIORITIES = {"witness": 5, "drill": 8, "expire": 10, "compact": 20, "check": 30, "audit": 40}
_FINDINGS_TOLD = 20

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


class Audited(Protocol):
    """Is told what an audit found."""

    def __call__(self, holes: int, missing: int, *, whole: bool) -> None:
        """`whole`: no mailbox was left out."""


def audit_job(store: Store, config: Current, audited: Audited) -> Run:
    """Compares the mailboxes with the store; holes go to the log. The run fails when one cannot be asked."""

    def run(context: JobContext) -> str:
        from sidecar.audit import Auditor, Kind  # an IMAP client in memory, for those alone who audit
        from sidecar.audit_run import AuditRun
        from sidecar.live.connect import imap_server
        from sidecar.live.imap import ImapMailbox

        def step(_number: int) -> None:
            context.yield_()

        imap, back_us = config().imap, config().scheduler.audit_since_us
        server = imap_server(imap)
        since_us = 0 if back_us is None else max(now_us() - back_us, 0)
        auditor = Auditor(store, imap or ImapConfig(), since_us=since_us)
        users = auditor.scan(step)
        holes = missing = failed = 0
        for number, account in enumerate(
            AuditRun(auditor, lambda user: ImapMailbox(server, user), advance=step).run(users), 1
        ):
            context.progress(number, len(users), account.user)
            if account.error is not None:
                failed += 1
                log.error("audit: %s", account.error)
            for difference in account.differences:
                if difference.kind is Kind.HOLE and difference.live is not None and holes < _FINDINGS_TOLD:
                    live = difference.live
                    log.error("audit: %s, %s: %s is not in the store", account.user, live.folder, live.uid)
                holes += difference.kind is Kind.HOLE
            missing += account.missing
        audited(holes, missing, whole=not failed)
        if failed:
            raise NotAskedError(f"{failed} of {len(users)} mailboxes could not be asked")
        return f"{len(users)} mailboxes: {holes} holes, {missing} messages deleted or moved out"

    return run


def drill_job(store: Store, config: Current) -> Run:
    """Proves that restoring works, as [drill] says. Without a recipient there it goes without a canary."""

    def run(context: JobContext) -> str:
        asked = context.arguments.get("canary")
        plan = Plan.of(
            config(),
            canary=None if asked is None else _is_true(asked),
            sample=max(0, int(context.arguments["sample"])) if "sample" in context.arguments else None,
        )
        step = _step(context)
        done = itertools.count(1)
        total = 0

        def drawn(number: int) -> None:
            nonlocal total
            total = number

        try:
            report = asyncio.run(
                drill(
                    store, plan, refresh=store.settle_index, step=step, drawn=drawn,
                    told=lambda _: context.progress(next(done), total),
                )
            )  # fmt: skip
        except StoreError as exc:
            record(store.path, time.time(), [str(exc)])
            raise
        record(store.path, time.time(), list(report.reasons))
        if not report.proven:
            for line in report.lines():
                log.error("drill: %s", line)
            more = f" and {len(report.reasons) - 1} more" if len(report.reasons) > 1 else ""
            raise DrillFailedError(f"not proven: {report.reasons[0]}{more}")
        return "; ".join(report.lines())

    return run


class NotAskedError(Exception):
    """The audit could not look into a mailbox."""


class FoundDamageError(Exception):
    """The check found something wrong."""


def _tell_nobody(holes: int, missing: int, *, whole: bool) -> None:
    """Where nothing counts."""


def job_kinds(
    store: Store, config: Current, others: Others | None = None, *, audited: Audited = _tell_nobody
) -> dict[str, JobKind]:
    """The kinds that there are, by name."""
    jobs = {
        "compact": (compact_job(store, config, others), frozenset({"all"})),
        "expire": (expire_job(store, config), frozenset[str]()),
        "check": (check_job(store, config), frozenset({"read_data"})),
        "drill": (drill_job(store, config), frozenset({"sample", "canary"})),
        "witness": (witness_job(store, config), frozenset[str]()),
        "audit": (audit_job(store, config, audited), frozenset[str]()),
    }
    return {name: JobKind(job, _PRIORITIES[name], arguments) for name, (job, arguments) in jobs.items()}
