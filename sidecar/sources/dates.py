"""Dates as mail and mbox files write them, as µs since 1970; None for what is none. Nothing here raises."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from sidecar.readable import text
from store.ids import now_us

_HEADER_END = re.compile(rb"\r?\n\r?\n")
_VALUE = rb"[ \t]*:((?:[^\n]|\n(?=[ \t]))*)"
_RECEIVED = re.compile(rb"(?im)^received" + _VALUE)
_DATE = re.compile(rb"(?im)^date" + _VALUE)
_DAY_US = 86_400_000_000
_ASCTIME = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +(?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) +"
    rb"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?: +(?P<zone>[+-]\d{4}|[A-Z]{1,5}))?"
    rb" +(?P<year>\d{4})(?: +(?P<late>[+-]\d{4}))?"
)
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def received_us(head: bytes) -> int | None:
    """When a message was received, by its topmost Received field, else when it was written, by its Date."""
    end = _HEADER_END.search(head)
    header = head[: end.start()] if end else head
    for field, last in ((_RECEIVED, True), (_DATE, False)):
        found = field.search(header)
        if found is not None:
            moment = _parsed(found[1].rpartition(b";")[2] if last else found[1])
            if moment is not None:
                return moment
    return None


def from_line_us(line: bytes) -> int | None:
    """When a message was received, by its From_ line; without a zone it is UTC (RFC 4155)."""
    found = _ASCTIME.search(line)
    if found is None:
        return None
    try:
        moment = datetime(
            int(found["year"]), 1 + _MONTHS.index(found["month"]), int(found["day"]),
            int(found["hour"]), int(found["minute"]), min(int(found["second"] or 0), 59), tzinfo=UTC,
        )  # fmt: skip
        return _us(moment - _offset(found["late"] or found["zone"] or b""))
    except (ValueError, OverflowError):
        return None


def _offset(zone: bytes) -> timedelta:
    if zone[:1] not in (b"+", b"-"):
        return timedelta()
    size = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
    return size if zone[:1] == b"+" else -size


def _parsed(value: bytes) -> int | None:
    try:
        moment = parsedate_to_datetime(" ".join(text(value).split()))
        return _us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, TypeError, IndexError, OverflowError):  # whatever a mail may write there
        return None


def _us(moment: datetime) -> int | None:
    """None for what cannot have been: before there were computers, or after tomorrow."""
    time_us = round(moment.timestamp()) * 1_000_000
    return time_us if 0 < time_us < now_us() + _DAY_US else None
