"""From what the scheduler knows to what the metrics show."""

from __future__ import annotations

from functools import partial

from sidecar.metrics import JOBS, Metrics
from sidecar.scheduler.kinds import JobEvents
from sidecar.scheduler.scheduler import Scheduler


def job_events(metrics: Metrics) -> JobEvents:
    """The scheduler's events, counted."""
    return JobEvents(ended=metrics.job_ended, backed_off=metrics.job_backed_off)


def watch_jobs(metrics: Metrics, scheduler: Scheduler) -> None:
    """Let the gauges be read from the scheduler."""
    metrics.watch("jobs_queued", scheduler.queued)
    for kind in set(scheduler.kinds) & set(JOBS):
        metrics.watch("job_running", partial(scheduler.is_running, kind), kind)
        metrics.watch("job_paused", partial(_paused, scheduler, kind), kind)
        metrics.watch("job_last_success_timestamp_seconds", partial(_last_success, scheduler, kind), kind)
        metrics.watch("job_last_duration_seconds", partial(_last_duration_s, scheduler, kind), kind)


def _paused(scheduler: Scheduler, kind: str) -> float:
    return scheduler.of_kind(kind).paused


def _last_success(scheduler: Scheduler, kind: str) -> float:
    return scheduler.of_kind(kind).last_success


def _last_duration_s(scheduler: Scheduler, kind: str) -> float:
    last = scheduler.of_kind(kind).last
    return last.ended - last.started if last else 0.0
