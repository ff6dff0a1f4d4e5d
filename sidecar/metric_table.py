"""Every metric of mailkeep in one table, and where each number stands among all of them.

Label values are closed sets, so every series is there from the start with 0, and has one place, the same in
every process: a list of numbers is all there is to keep.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

PREFIX = "mailkeep_"

LEGS = ("lmtp", "milter")
REASONS = ("full", "failed", "timeout", "internal")
CLASSES = ("2xx", "4xx", "5xx")
CLASS_OF = {2: "2xx", 4: "4xx", 5: "5xx"}
SOURCES = ("downstream", "mailkeep", "earlier")
JOBS = ("compact", "expire", "check", "scrub", "search", "drill", "witness", "audit")
"""the kinds of background jobs"""
REPLICAS = tuple("12345678")
"""by their places in the configuration"""
RESULTS = ("ok", "failed", "interrupted")
LABEL_VALUES: dict[str, tuple[str, ...]] = {
    "leg": LEGS,
    "reason": REASONS,
    "class": CLASSES,
    "source": SOURCES,
    "job": JOBS,
    "result": RESULTS,
    "replica": REPLICAS,
    "version": (),  # the running one, known only then
}

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_MESSAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Spec(NamedTuple):
    """One metric: its name without the prefix, its help, its labels, a histogram's bounds."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    over: Literal["sum", "max"] = "sum"
    """what several workers' numbers come to; one that only a single worker knows is 0 with the others"""


TABLE = (
    Spec("counter", "captured_messages_total", "Messages made durable in the store.", ("leg",)),
    Spec("counter", "delivered_messages_total", "Messages taken by the mailbox server for some recipient."),
    Spec("counter", "outcomes_total", "Final replies, one for each recipient.", ("class", "source")),
    Spec("counter", "capture_failures_total", "Messages that could not be made durable.", ("leg", "reason")),
    Spec("counter", "uncaptured_messages_total", "Messages let through without a durable copy.", ("leg",)),
    Spec("counter", "received_bytes_total", "Bytes of messages captured or let through.", ("leg",)),
    Spec("counter", "stored_new_bytes_total", "Bytes that were new to the store, before compression."),
    Spec("counter", "stored_duplicate_bytes_total", "Bytes that the store already had."),
    Spec("counter", "written_bytes_total", "Bytes appended to pack files."),
    Spec(
        "counter", "downstream_failures_total", "Times the mailbox server was not there, lost, or too slow."
    ),
    Spec("counter", "retries_suppressed_total", "Recipients answered from an earlier delivery."),
    Spec(
        "counter", "redelivered_unknown_total", "Recipients delivered to again, an earlier reply being lost."
    ),
    Spec("histogram", "commit_seconds", "Time that a group commit took.", bounds=_SECONDS),
    Spec("histogram", "commit_group_messages", "Submissions made durable by one flush.", bounds=_MESSAGES),
    Spec("histogram", "downstream_seconds", "Time from final dot to last reply.", bounds=_SECONDS),
    Spec("gauge", "in_flight_messages", "Messages begun and not yet answered.", ("leg",)),
    Spec("gauge", "connections", "Open client connections.", ("leg",)),
    Spec("gauge", "store_bytes", "Bytes that the store's files take."),
    Spec("gauge", "store_free_bytes", "Bytes free on the store's file system."),
    Spec(
        "gauge", "last_commit_timestamp_seconds", "Time of the last commit; 0 before the first.", over="max"
    ),
    Spec("gauge", "index_lag_commits", "Commits that are durable and not yet in the index."),
    Spec("gauge", "spool_messages", "Messages in the spool that wait to be captured."),
    Spec("counter", "job_runs_total", "Runs of background jobs.", ("job", "result")),
    Spec("counter", "job_backoff_seconds_total", "Time that jobs waited because capture was slow."),
    Spec("gauge", "jobs_queued", "Jobs that wait."),
    Spec("gauge", "job_running", "1 while the job runs.", ("job",)),
    Spec("gauge", "job_paused", "1 while the job is paused by an operator.", ("job",)),
    Spec(
        "gauge",
        "job_last_success_timestamp_seconds",
        "Time of the last run that went well; 0 before the first.",
        ("job",),
    ),
    Spec("gauge", "job_last_duration_seconds", "Time that the last run took.", ("job",)),
    Spec("gauge", "audit_holes", "Mail in mailboxes that the store lacks unexplained, at the last audit."),
    Spec("gauge", "audit_missing", "Delivered mail that was in no folder any more, at the last audit."),
    Spec(
        "gauge",
        "audit_timestamp_seconds",
        "Time of the last audit that could look into every mailbox; 0 before the first since the start.",
        over="max",
    ),
    Spec(
        "gauge",
        "last_proven_restore_timestamp_seconds",
        "Time of the last drill that proved that restoring works; 0 before the first.",
    ),
    Spec("counter", "drill_failures_total", "Drills that did not prove it, since the store was made."),
    Spec("gauge", "replica_lag_bytes", "Bytes of packs that the replica is not known to have.", ("replica",)),
    Spec(
        "gauge",
        "replica_lag_seconds",
        "At most so old is the oldest mail that was captured and is not in the replica.",
        ("replica",),
    ),
    Spec(
        "gauge",
        "replica_last_success_timestamp_seconds",
        "Everything captured before this time is known to be in the replica; 0 before the first.",
        ("replica",),
    ),
    Spec("counter", "replica_uploaded_bytes_total", "Bytes sent to the replica.", ("replica",)),
    Spec("counter", "replica_requests_total", "Requests made of the replica.", ("replica",)),
    Spec("counter", "replica_failures_total", "Times that shipping to the replica failed.", ("replica",)),
    Spec(
        "gauge",
        "replica_scrub_timestamp_seconds",
        "Time of the last scrub with nothing wrong, or nothing but what is being mended; 0 before the first.",
        ("replica",),
    ),
    Spec("gauge", "replica_missing_objects", "Objects that the last scrub missed there.", ("replica",)),
    Spec("gauge", "replica_damaged_objects", "Objects that the last scrub found damaged.", ("replica",)),
    Spec("gauge", "replica_unmended_objects", "Of them those that stay so, as the log tells.", ("replica",)),
    Spec("gauge", "workers_running", "Processes that are ready to take mail."),
    Spec("counter", "worker_restarts_total", "Workers that ended by themselves and were started again."),
    Spec("gauge", "build_info", "Always 1; the label names the running version.", ("version",)),
)
"""Every metric of mailkeep. `process_*` metrics are there besides."""


def names() -> list[str]:
    """Every metric's name as Prometheus stores it (a histogram's without `_bucket`, `_sum`, `_count`)."""
    return [PREFIX + spec.name for spec in TABLE]


Series = tuple[str, ...]
"""a series is named by its metric and label values: ("store_bytes",) or ("connections", "lmtp")"""


def _places() -> tuple[dict[Series, int], int]:
    places: dict[Series, int] = {}
    at = 0
    for spec in TABLE:
        for labels in itertools.product(*(LABEL_VALUES[label] for label in spec.labels)):
            places[spec.name, *labels] = at
            # A histogram: a count for each bound, one for what is above them all, and the sum.
            at += len(spec.bounds) + 2 if spec.kind == "histogram" else 1
    return places, at


PLACES, SIZE = _places()
"""where the number of each series stands, and how many numbers there are"""


def passing() -> list[int]:
    """The places of what is true only as long as the process runs."""
    gone = {spec.name for spec in TABLE if spec.kind == "gauge" and spec.over == "sum"}
    return [at for (name, *_), at in PLACES.items() if name in gone]
