"""When a job is due, over changes of daylight saving time too; and the hours in which it may run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from sidecar.scheduler.schedule import LOCAL, Schedule
from sidecar.scheduler.window import Window

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def in_berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def at(text: str) -> float:
    """`2026-03-29 01:30 +01:00` as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def runs(text: str, start: str, count: int) -> list[str]:
    """The next times, as Berlin's clocks show them, with the offset."""
    found, moment = [], at(start)
    for _ in range(count):
        due = Schedule.parse(text).next_after(moment, BERLIN)
        assert due is not None
        assert due > moment
        moment = due
        found.append(datetime.fromtimestamp(due, BERLIN).isoformat(" ", "minutes"))
    return found


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("30 3 * * *", "2026-06-01 12:00+02:00", ["2026-06-02 03:30+02:00", "2026-06-03 03:30+02:00"]),
        ("@daily", "2026-06-01 00:00+02:00", ["2026-06-02 00:00+02:00"]),
        ("@hourly", "2026-06-01 00:59+02:00", ["2026-06-01 01:00+02:00", "2026-06-01 02:00+02:00"]),
        ("@weekly", "2026-06-01 00:00+02:00", ["2026-06-07 00:00+02:00"]),
        ("@monthly", "2026-06-01 00:00+02:00", ["2026-07-01 00:00+02:00"]),
        ("0 4 * * 0", "2026-06-01 00:00+02:00", ["2026-06-07 04:00+02:00", "2026-06-14 04:00+02:00"]),
        ("0 4 29 2 *", "2026-06-01 00:00+02:00", ["2028-02-29 04:00+01:00"]),
        # the night of 29 March has no hour from 2 to 3: what falls into it runs right after
        ("30 2 * * *", "2026-03-28 12:00+01:00", ["2026-03-29 03:00+02:00", "2026-03-30 02:30+02:00"]),
        # the night of 25 October has it twice: what falls into it runs once
        ("30 2 * * *", "2026-10-24 12:00+02:00", ["2026-10-25 02:30+02:00", "2026-10-26 02:30+01:00"]),
        ("30 2 * * *", "2026-10-25 02:15+01:00", ["2026-10-26 02:30+01:00"]),
        ("30 2 * * *", "2026-10-25 02:45+01:00", ["2026-10-26 02:30+01:00"]),
        # but what runs every hour runs in both
        ("0 * * * *", "2026-10-25 01:30+02:00",
         ["2026-10-25 02:00+02:00", "2026-10-25 02:00+01:00", "2026-10-25 03:00+01:00"]),
        ("0 * * * *", "2026-03-29 01:30+01:00", ["2026-03-29 03:00+02:00", "2026-03-29 04:00+02:00"]),
        # an interval is real time
        ("every 6h", "2026-03-29 00:00+01:00", ["2026-03-29 07:00+02:00", "2026-03-29 13:00+02:00"]),
        ("every 1d", "2026-10-24 12:00+02:00", ["2026-10-25 11:00+01:00"]),
    ],
)  # fmt: skip
def test_next(text: str, start: str, expected: list[str]) -> None:
    assert runs(text, start, len(expected)) == expected


def test_never() -> None:
    for text in ("", "  "):
        assert Schedule.parse(text).next_after(at("2026-06-01 00:00+02:00")) is None
        assert Schedule.parse(text) == Schedule()


@pytest.mark.parametrize(
    "text",
    ["* * * *", "* * * * * *", "61 * * * *", "0 24 * * *", "0 0 31 2 *", "every", "every 5", "every 1s",
     "every 0s", "daily", "@never", "a b c d e", "every 6h 5", "0 0 * * * ; rm"],
)  # fmt: skip
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(ValueError, match="is not a schedule") as caught:
        Schedule.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.usefixtures("in_berlin")
def test_the_machines_zone_knows_its_changes() -> None:
    for start in ("2026-03-28 12:00+01:00", "2026-10-24 12:00+02:00", "2026-10-25 02:15+01:00"):
        for text in ("30 2 * * *", "0 * * * *"):
            moment = at(start)
            for _ in range(30):
                ours = Schedule.parse(text).next_after(moment, LOCAL)
                assert ours == Schedule.parse(text).next_after(moment, BERLIN)
                assert ours is not None
                moment = ours


@pytest.mark.usefixtures("in_berlin")
def test_the_second_of_two_equal_hours() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC).astimezone(LOCAL)
    second = datetime(2026, 10, 25, 1, 30, tzinfo=UTC).astimezone(LOCAL)
    assert (first.hour, first.fold, second.hour, second.fold) == (2, 0, 2, 1)
    assert second.timestamp() - first.timestamp() == 3600


@pytest.mark.parametrize(
    ("window", "moment", "is_open"),
    [
        ("", "2026-06-01 12:00+02:00", True),
        ("22:00-06:00", "2026-06-01 21:59+02:00", False),
        ("22:00-06:00", "2026-06-01 22:00+02:00", True),
        ("22:00-06:00", "2026-06-02 00:00+02:00", True),
        ("22:00-06:00", "2026-06-02 05:59+02:00", True),
        ("22:00-06:00", "2026-06-02 06:00+02:00", False),
        ("9:00 - 17:30", "2026-06-02 17:29+02:00", True),
        ("9:00 - 17:30", "2026-06-02 17:30+02:00", False),
        ("00:00-06:00", "2026-06-02 00:00+02:00", True),
        # 29 March: 01:59 is followed by 03:00; the window closes by the clock, an hour of work is missing
        ("22:00-06:00", "2026-03-29 05:59+02:00", True),
        ("22:00-06:00", "2026-03-29 05:59+01:00", False),
        ("02:30-03:30", "2026-03-29 01:59+01:00", False),
        ("02:30-03:30", "2026-03-29 02:00+01:00", True),
        # 25 October: both hours from 2 to 3 are in it
        ("02:00-03:00", "2026-10-25 02:30+02:00", True),
        ("02:00-03:00", "2026-10-25 02:30+01:00", True),
        ("02:00-03:00", "2026-10-25 03:00+01:00", False),
    ],
)
def test_windows(window: str, moment: str, is_open: bool) -> None:
    assert Window.parse(window).is_open(at(moment), BERLIN) == is_open


@pytest.mark.parametrize(
    "text", ["22-06", "22:00", "25:00-06:00", "22:00-22:00", "22:60-23:00", "22:00-24:00", "x"]
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match="is not a window") as caught:
        Window.parse(text)
    assert repr(text) in str(caught.value)
