"""The jobs that `serve` runs in the background: which there are, and which comes first."""

from __future__ import annotations

from sidecar.jobs.audit import Audited, audit_job
from sidecar.jobs.common import Current
from sidecar.jobs.drill import drill_job
from sidecar.jobs.scrub import scrub_job, watch_scrubs
from sidecar.jobs.search import search_job
from sidecar.jobs.upkeep import Others, check_job, compact_job, end_open_pack, expire_job, witness_job
from sidecar.scheduler.kinds import JobKind
from store.store import Store

__all__ = ["Audited", "Current", "Others", "end_open_pack", "job_kinds", "watch_scrubs"]

_PRIORITIES = {
    "witness": 5, "drill": 8, "expire": 10, "search": 15, "compact": 20,
    "check": 30, "scrub": 35, "audit": 40,
}  # fmt: skip


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
        "scrub": (scrub_job(store, config), frozenset({"read_data"})),
        "search": (search_job(store, config), frozenset[str]()),
        "drill": (drill_job(store, config), frozenset({"sample", "canary"})),
        "witness": (witness_job(store, config), frozenset[str]()),
        "audit": (audit_job(store, config, audited), frozenset[str]()),
    }
    return {name: JobKind(job, _PRIORITIES[name], arguments) for name, (job, arguments) in jobs.items()}
