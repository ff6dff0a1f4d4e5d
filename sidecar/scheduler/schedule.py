"""When a job is due: a cron expression or an interval, and the next time after a given one.

Pure computing: reads no clock. A cron expression means local time, and follows Debian's cron over changes of
daylight saving time: what falls into the hour that is skipped runs right after it, what falls into the hour
that comes twice runs once. An interval is real time and knows nothing of clocks on walls.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from cronsim import CronSim, CronSimError

from sidecar.units import parse_duration

SCHEDULE_EXAMPLES = '"30 3 * * *", "@daily", "every 6h" or "" for only when asked'

_NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
}
_SHORTEST_S = 60.0
_FIELDS = 5


class LocalZone(tzinfo):
    """The machine's time zone with its changes; `datetime.astimezone()` gives today's offset alone."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        """The offset at a local time."""
        return None if moment is None else moment.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, moment: datetime | None) -> None:  # noqa: ARG002 - the signature is tzinfo's
        """Not told apart from the offset."""
        return

    def tzname(self, moment: datetime | None) -> str:  # noqa: ARG002 - the signature is tzinfo's
        """A name for `repr`."""
        return "local"

    def fromutc(self, moment: datetime) -> datetime:
        """Local time; of an hour that comes twice, the second is marked by `fold`."""
        local = moment.replace(tzinfo=UTC).astimezone()
        first = local.replace(tzinfo=None)
        return local.replace(tzinfo=self, fold=int(first.astimezone().utcoffset() != local.utcoffset()))


LOCAL = LocalZone()


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a job is due. `text` is what was written; with neither cron nor interval it is never due."""

    text: str = ""
    cron: str = ""
    interval_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """A schedule from a cron expression, `@daily` and the like, `every 6h`, or "". Raises ValueError."""
        words = text.split()
        if not words:
            return cls()
        try:
            if words[0] == "every":
                return cls(text, interval_s=_interval(" ".join(words[1:])))
            return cls(text, cron=_cron(_NAMES.get(text.strip(), " ".join(words))))
        except (ValueError, CronSimError, StopIteration) as exc:
            why = str(exc) or "it never comes"
            raise ValueError(f"{text!r} is not a schedule ({why}): write {SCHEDULE_EXAMPLES}") from exc

    def next_after(self, time_s: float, zone: tzinfo = LOCAL) -> float | None:
        """The next time it is due, in seconds since 1970; None for never."""
        if self.interval_s:
            return time_s + self.interval_s
        if not self.cron:
            return None
        for moment in CronSim(self.cron, datetime.fromtimestamp(time_s, zone)):
            due = moment.timestamp()
            if due > time_s:  # in the second of two equal hours the first comes out again
                return due
        return None


def _cron(expression: str) -> str:
    if len(expression.split()) != _FIELDS:
        raise ValueError("a cron expression has five fields")
    next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))  # some never come: 31 February
    return expression


def _interval(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < _SHORTEST_S:
        raise ValueError("a minute is the least")
    return seconds
