"""The jobs that `serve` runs in the background: what each does, and which comes first.

A function here makes a job for a store; None while this version has none of that kind.
"""

from __future__ import annotations

from sidecar.config import Config
from sidecar.scheduler.kinds import JobKind, Run
from store.store import Store

_PRIORITIES = {"expire": 10, "compact": 20, "check": 30}


def expire_job(store: Store, config: Config) -> Run | None:  # noqa: ARG001 - not there yet
    """Drops what is past its time."""
    return None


def compact_job(store: Store, config: Config) -> Run | None:  # noqa: ARG001 - not there yet
    """Gives the disk back what nothing names any more."""
    return None


def check_job(store: Store, config: Config) -> Run | None:  # noqa: ARG001 - not there yet
    """Verifies the store."""
    return None


def job_kinds(store: Store, config: Config) -> dict[str, JobKind]:
    """The kinds that there are, by name."""
    jobs = {
        "compact": compact_job(store, config),
        "expire": expire_job(store, config),
        "check": check_job(store, config),
    }
    return {name: JobKind(job, _PRIORITIES[name]) for name, job in jobs.items() if job is not None}
