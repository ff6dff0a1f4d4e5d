"""From what the fronts tell to what the metrics count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sidecar.front import FrontEvents
from sidecar.metrics import Metrics
from sidecar.milter_session import Result
from store.records import Outcome


class LmtpEvents(FrontEvents):
    """The LMTP front's events, counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def connections(self, change: int) -> None:
        """A connection came or went."""
        if change > 0:
            self._metrics.connection_opened("lmtp")
        else:
            self._metrics.connection_closed("lmtp")

    def in_flight(self, change: int) -> None:
        """A message came or got its last reply."""
        if change > 0:
            self._metrics.message_begun("lmtp")
        else:
            self._metrics.message_ended("lmtp")

    def answered(self, outcomes: Sequence[Outcome], downstream_s: float | None) -> None:
        """A message has had its last reply."""
        self._metrics.message_answered(
            [(int(outcome.reply[:3]), outcome.source) for outcome in outcomes], downstream_s
        )

    def suppressed(self, recipients: int) -> None:
        """Recipients of a retry who had it already."""
        self._metrics.retries_suppressed(recipients)

    def redelivered(self, recipients: int) -> None:
        """Recipients of a retry who may have it already."""
        self._metrics.redelivered_unknown(recipients)

    def downstream_failed(self) -> None:
        """The mailbox server could not be reached, was lost, or took too long."""
        self._metrics.downstream_failed()

    def fault(self) -> None:
        """An exception that nobody expected."""
        self._metrics.capture_failed("lmtp", "internal")


class MilterWatch:
    """The milter front's events."""

    def __init__(self, metrics: Metrics, died: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._died = died

    def finished(self, result: Result) -> None:
        """Captures and failures are counted where they happen; what remains is of no interest."""

    def died(self, reason: str) -> None:
        """libmilter has ended by itself."""
        self._died(reason)
