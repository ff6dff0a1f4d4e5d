"""What the service counts, and the few methods that the mail path calls.

Counting a message is one lock and some additions (about 1 µs), from any thread; names, types, help
(`sidecar.metric_table`) are put to the numbers when Prometheus asks. Of several workers each counts in its
row of the board, and whichever is asked adds them up. No state is global.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, MutableSequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.board import Board
from sidecar.metric_table import (
    CLASS_OF,
    JOBS,
    LABEL_VALUES,
    LEGS,
    PLACES,
    PREFIX,
    REASONS,
    SIZE,
    SOURCES,
    TABLE,
    Series,
    Spec,
    names,
)
from sidecar.processes import ProcessesCollector

__all__ = ["JOBS", "LEGS", "REASONS", "SOURCES", "TABLE", "Metrics", "Spec", "names"]

_log = logging.getLogger(__name__)

_BOUNDS = {spec.name: spec.bounds for spec in TABLE if spec.kind == "histogram"}


class Metrics(Collector):
    """The service's numbers. One for the process; every method may be called from any thread."""

    def __init__(
        self, version: str, board: Board | None = None, row: int = 0, *, replicas: Collection[str] = ()
    ) -> None:
        """Of several workers each has its `row` of the board; a process alone needs none. `replicas`: the
        places in the configuration where there is one; of others nothing is told."""
        self._lock = threading.Lock()
        self._version = version
        self._labels = LABEL_VALUES | {"replica": tuple(replicas)}
        self._board = board
        self._numbers: MutableSequence[float] = board.numbers(row) if board else array("d", bytes(8 * SIZE))
        self._readings: dict[Series, Callable[[], float]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        if board:
            self.registry.register(ProcessesCollector(board))
        else:
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
        numbers = self._numbers
        with self._lock:
            numbers[PLACES["captured_messages_total", leg]] += 1
            numbers[PLACES["received_bytes_total", leg]] += size
            numbers[PLACES["stored_new_bytes_total",]] += new_bytes
            numbers[PLACES["stored_duplicate_bytes_total",]] += duplicate_bytes

    def capture_failed(self, leg: str, reason: str) -> None:
        """A message could not be made durable; a reason outside REASONS counts as `internal`."""
        self._add(("capture_failures_total", leg, reason if reason in REASONS else "internal"), 1)

    def message_uncaptured(self, leg: str, size: int) -> None:
        """A message of `size` bytes goes through without a durable copy."""
        with self._lock:
            self._numbers[PLACES["uncaptured_messages_total", leg]] += 1
            self._numbers[PLACES["received_bytes_total", leg]] += size

    def message_answered(
        self, outcomes: Iterable[tuple[int, str]], downstream_s: float | None = None
    ) -> None:
        """The final replies of one message: for each recipient its code and who gave it (SOURCES).

        `downstream_s` is the time from the final dot to the last reply, None when nobody was asked.
        """
        numbers = self._numbers
        with self._lock:
            delivered = False
            for code, source in outcomes:
                # What is neither success nor refusal is handled as a temporary failure everywhere.
                numbers[PLACES["outcomes_total", CLASS_OF.get(code // 100, "4xx"), source]] += 1
                delivered |= code // 100 == 2 and source == "downstream"
            numbers[PLACES["delivered_messages_total",]] += delivered
            if downstream_s is not None:
                self._observe("downstream_seconds", downstream_s)

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
            self._numbers[PLACES["written_bytes_total",]] += written_bytes
            self._observe("commit_seconds", seconds)
            self._observe("commit_group_messages", messages)
            self._numbers[PLACES["last_commit_timestamp_seconds",]] = time.time()

    def job_ended(self, job: str, result: str) -> None:
        """A run of a background job is over; one that JOBS does not name is not counted."""
        if job in JOBS:
            self._add(("job_runs_total", job, result), 1)

    def audited(self, holes: int, missing: int, *, whole: bool) -> None:
        """What an audit found; `whole` when it could look into every mailbox."""
        with self._lock:
            self._numbers[PLACES["audit_holes",]] = holes
            self._numbers[PLACES["audit_missing",]] = missing
            if whole:
                self._numbers[PLACES["audit_timestamp_seconds",]] = time.time()

    def job_backed_off(self, seconds: float) -> None:
        """A job has waited so long because capture was slow."""
        self._add(("job_backoff_seconds_total",), seconds)

    def watch(self, name: str, read: Callable[[], float], *labels: str) -> None:
        """Take a gauge (such as `store_bytes`) from `read` at each scrape."""
        if (name, *labels) not in PLACES:
            raise ValueError(f"there is no metric {name} with labels {labels}")
        self._readings[name, *labels] = read

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def restarted(self) -> None:
        """A worker has ended by itself and is started again."""
        self._add(("worker_restarts_total",), 1)

    def value(self, name: str, *labels: str) -> float:
        """This process's counter or gauge now, by its name without the prefix and its label values."""
        read = self._readings.get((name, *labels))
        return self._numbers[PLACES[name, *labels]] if read is None else _read(name, read)

    def publish(self) -> None:
        """Take the gauges that are read elsewhere into one's row, for whoever adds up."""
        for series, read in list(self._readings.items()):  # outside the lock: it may look at the disk
            self._numbers[PLACES[series]] = _read(series[0], read)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus gets: the numbers of one moment, under the names of the table."""
        self.publish()
        with self._lock:
            own = list(self._numbers)
        rows = [list(row) for row in self._board.all_numbers()] if self._board else [own]
        columns = list(zip(*rows, strict=True))
        for spec in TABLE:
            name = PREFIX + spec.name
            if spec.kind == "histogram":
                at = PLACES[spec.name,]
                bounds = [*map(str, map(float, spec.bounds)), "+Inf"]
                counts = [sum(column) for column in columns[at : at + len(bounds)]]
                buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
                total = sum(columns[at + len(bounds)])
                yield HistogramMetricFamily(name, spec.help, buckets=buckets, sum_value=total)
                continue
            family_class = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
            family = family_class(name, spec.help, labels=spec.labels)
            combine = max if spec.over == "max" else sum
            for labels in itertools.product(*(self._labels[label] for label in spec.labels)):
                family.add_metric(labels, combine(columns[PLACES[spec.name, *labels]]))
            if spec.name == "build_info":
                family.add_metric([self._version], 1)
            yield family

    def _add(self, series: Series, amount: float) -> None:
        with self._lock:
            self._numbers[PLACES[series]] += amount

    def _observe(self, name: str, value: float) -> None:
        bounds = _BOUNDS[name]
        at = PLACES[name,]
        self._numbers[at + bisect.bisect_left(bounds, value)] += 1
        self._numbers[at + len(bounds) + 1] += value


def _read(name: str, read: Callable[[], float]) -> float:
    """A reading, or NaN: a disk that cannot be asked must not cost the other figures."""
    try:
        return read()
    except Exception:  # noqa: BLE001 - whatever it is, the other figures are still wanted
        _log.warning("metric %s cannot be read", name, exc_info=True)
        return math.nan
