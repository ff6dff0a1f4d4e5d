"""The job that proves that restoring works."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time

from sidecar.config import ConfigError
from sidecar.drill import DrillFailedError, Plan, drill, record
from sidecar.jobs.common import Current, is_true, step_of
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.kinds import Run
from store.errors import StoreError
from store.store import Store

log = logging.getLogger(__name__)


def drill_job(store: Store, config: Current) -> Run:
    """Proves that restoring works, as [drill] says. Without a recipient there it goes without a canary."""

    def run(context: JobContext) -> str:
        asked = context.arguments.get("canary")
        try:
            plan = Plan.of(
                config(),
                canary=None if asked is None else is_true(asked),
                sample=max(0, int(context.arguments["sample"])) if "sample" in context.arguments else None,
            )
        except ConfigError as exc:  # a drill that cannot be is none that was passed
            record(store.path, time.time(), [str(exc)])
            raise
        step = step_of(context)
        done = itertools.count(1)
        total = 0

        def drawn(number: int) -> None:
            nonlocal total
            total = number

        try:
            report = asyncio.run(
                drill(
                    store, plan, step=step, drawn=drawn,
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
