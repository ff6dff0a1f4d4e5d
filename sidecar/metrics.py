"""What the service counts, in one table, and the few methods that the mail path calls.

Counting a message is one lock and a handful of additions (under 1 µs), from any thread; names,
types and help are put to the numbers when Prometheus asks. Label values are closed sets, so
every series is there from the start with 0; no state is global.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)

PREFIX = "mailkeep_"

LEGS = ("lmtp", "milter")
REASONS = ("full", "failed", "timeout", "internal")
CLASSES = ("2xx", "4xx", "5xx")
_CLASS_OF = {2: "2xx", 4: "4xx", 5: "5xx"}
SOURCES = ("downstream", "mailkeep", "earlier")
JOBS = ("compact", "expire", "check", "witness")
"""the kinds of background jobs"""
RESULTS = ("ok", "failed", "interrupted")
_LABEL_VALUES: dict[str, tuple[str, ...]] = {
    "leg": LEGS,
    "reason": REASONS,
    "class": CLASSES,
    "source": SOURCES,
    "job": JOBS,
    "result": RESULTS,
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
    Spec("gauge", "last_commit_timestamp_seconds", "Time of the last commit; 0 before the first."),
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
    Spec("gauge", "build_info", "Always 1; the label names the running version.", ("version",)),
)
"""Every metric of mailkeep. `process_*` metrics are there besides."""


def names() -> list[str]:
    """Every metric's name as Prometheus stores it (a histogram's without `_bucket`, `_sum`, `_count`)."""
    return [PREFIX + spec.name for spec in TABLE]


class _Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is for what is above every bound
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics(Collector):
    """The service's numbers. One for the process; every method may be called from any thread."""

    def __init__(self, version: str) -> None:
        self._lock = threading.Lock()
        # A series is named by its metric and label values: ("store_bytes",) or ("connections", "lmtp").
        self._values: dict[tuple[str, ...], float] = {
            (spec.name, *labels): 0
            for spec in TABLE
            if spec.kind != "histogram"
            for labels in itertools.product(*(_LABEL_VALUES[label] for label in spec.labels))
        }
        self._values["build_info", version] = 1
        self._histograms = {spec.name: _Histogram(spec.bounds) for spec in TABLE if spec.kind == "histogram"}
        self._readings: dict[tuple[str, ...], Callable[[], float]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def message_begun(self, leg: str) -> None:
        """A message's transaction begins; `message_ended` follows whatever happens."""
        self._add(("in_flight_messages", leg), 1)

    def message_ended(self, leg: str) -> None:
        """The transaction is over: answered, aborted or cut off."""
        self._add(("in_flight_messages", leg), -1)

    def connection_opened(self, leg: str) -> None:
        """A client has connected; `connection_closed` follows."""
        self._add(("connections", leg), 1)

    def connection_closed(self, leg: str) -> None:
        """The client's connection is closed."""
        self._add(("connections", leg), -1)

    def message_captured(self, leg: str, size: int, new_bytes: int, duplicate_bytes: int) -> None:
        """A message of `size` bytes is durable; so much of it was new to the store, so much was there."""
        values = self._values
        with self._lock:
            values["captured_messages_total", leg] += 1
            values["received_bytes_total", leg] += size
            values["stored_new_bytes_total",] += new_bytes
            values["stored_duplicate_bytes_total",] += duplicate_bytes

    def capture_failed(self, leg: str, reason: str) -> None:
        """A message could not be made durable; a reason outside REASONS counts as `internal`."""
        self._add(("capture_failures_total", leg, reason if reason in REASONS else "internal"), 1)

    def message_uncaptured(self, leg: str, size: int) -> None:
        """A message of `size` bytes goes through without a durable copy."""
        with self._lock:
            self._values["uncaptured_messages_total", leg] += 1
            self._values["received_bytes_total", leg] += size

    def message_answered(
        self, outcomes: Iterable[tuple[int, str]], downstream_s: float | None = None
    ) -> None:
        """The final replies of one message: for each recipient its code and who gave it (SOURCES).

        `downstream_s` is the time from the final dot to the last reply, None when nobody was asked.
        """
        values = self._values
        with self._lock:
            delivered = False
            for code, source in outcomes:
                # What is neither success nor refusal is handled as a temporary failure everywhere.
                values["outcomes_total", _CLASS_OF.get(code // 100, "4xx"), source] += 1
                delivered |= code // 100 == 2 and source == "downstream"
            values["delivered_messages_total",] += delivered
            if downstream_s is not None:
                self._histograms["downstream_seconds"].add(downstream_s)

    def downstream_failed(self) -> None:
        """The mailbox server could not be reached, was lost, or took too long."""
        self._add(("downstream_failures_total",), 1)

    def retries_suppressed(self, recipients: int) -> None:
        """So many recipients got the reply of an earlier delivery."""
        self._add(("retries_suppressed_total",), recipients)

    def redelivered_unknown(self, recipients: int) -> None:
        """So many recipients are delivered to again, their earlier reply being unknown."""
        self._add(("redelivered_unknown_total",), recipients)

    def group_committed(self, messages: int, seconds: float, written_bytes: int) -> None:
        """One flush has made so many submissions durable in `seconds`, appending so many bytes."""
        with self._lock:
            self._values["written_bytes_total",] += written_bytes
            self._histograms["commit_seconds"].add(seconds)
            self._histograms["commit_group_messages"].add(messages)
            self._values["last_commit_timestamp_seconds",] = time.time()

    def job_ended(self, job: str, result: str) -> None:
        """A run of a background job is over; one that JOBS does not name is not counted."""
        if job in JOBS:
            self._add(("job_runs_total", job, result), 1)

    def job_backed_off(self, seconds: float) -> None:
        """A job has waited so long because capture was slow."""
        self._add(("job_backoff_seconds_total",), seconds)

    def watch(self, name: str, read: Callable[[], float], *labels: str) -> None:
        """Take a gauge (such as `store_bytes`) from `read` at each scrape."""
        if (name, *labels) not in self._values:
            raise ValueError(f"there is no metric {name} with labels {labels}")
        self._readings[name, *labels] = read

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def value(self, name: str, *labels: str) -> float:
        """A counter's or gauge's number now, by its name without the prefix and its label values."""
        read = self._readings.get((name, *labels))
        return self._values[name, *labels] if read is None else _read(name, read)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus gets: the numbers of one moment, under the names of the table."""
        with self._lock:
            values = dict(self._values)
            histograms = {name: (list(h.counts), h.total) for name, h in self._histograms.items()}
        for key, read in list(self._readings.items()):  # outside the lock: it may look at the disk
            values[key] = _read(key[0], read)
        for spec in TABLE:
            name = PREFIX + spec.name
            if spec.kind == "histogram":
                counts, total = histograms[spec.name]
                bounds = [*map(str, map(float, spec.bounds)), "+Inf"]
                buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
                yield HistogramMetricFamily(name, spec.help, buckets=buckets, sum_value=total)
                continue
            family_class = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
            family = family_class(name, spec.help, labels=spec.labels)
            for (metric, *labels), number in values.items():
                if metric == spec.name:
                    family.add_metric(labels, number)
            yield family

    def _add(self, key: tuple[str, ...], amount: float) -> None:
        with self._lock:
            self._values[key] += amount


def _read(name: str, read: Callable[[], float]) -> float:
    """A reading, or NaN: a disk that cannot be asked must not cost the other figures."""
    try:
        return read()
    except Exception:  # noqa: BLE001 - whatever it is, the other figures are still wanted
        _log.warning("metric %s cannot be read", name, exc_info=True)
        return math.nan
