"""What people write is read as they mean it, and what cannot be read is quoted with examples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.units import (
    Address,
    exact_duration,
    exact_size,
    format_size,
    format_time,
    iso_time,
    parse_duration,
    parse_size,
    parse_time,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("10m", 600),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1m1ms", 60.001),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "5 minutes", "m", "-5s", "1.5h", "30m1h", "5m5m", "5S", "٥s", "5s\n", "9" * 50 + "s"]
)
def test_what_is_no_duration_is_quoted_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write 5s, 10m, 7d") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 10**12))
def test_exact_duration_reads_back(ms: int) -> None:
    assert parse_duration(exact_duration(ms / 1000)) == ms / 1000


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("1GiB", 1 << 30),
        ("500kB", 500_000),
        ("4096", 4096),
        ("1 TiB", 1 << 40),
        ("12B", 12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "64M", "64mib", "MiB", "-1", "1.5GiB", "1  GiB", "10 %"])
def test_what_is_no_size_is_quoted_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write 64MiB, 1GiB") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.one_of(st.integers(0, 10**15), st.integers(0, 5000).map(lambda n: n << 20)))
def test_exact_size_reads_back(size: int) -> None:
    assert parse_size(exact_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (4060, "3.96 KiB"),
        (25 << 20, "25.0 MiB"),
        (1023 << 10, "1.00 MiB"),
        (640 << 30, "640 GiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_sizes_in_tables(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:24", Address(host="127.0.0.1", port=24)),
        ("mail.example:2424", Address(host="mail.example", port=2424)),
        ("[::1]:24", Address(host="::1", port=24)),
        ("127.0.0.1:0", Address(host="127.0.0.1", port=0)),
        ("unix:/run/mailkeep/milter.sock", Address(path="/run/mailkeep/milter.sock")),
    ],
)
def test_addresses_read_and_show_the_same(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert address.is_unix == text.startswith("unix:")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write 127.0.0.1:24"),
        ("localhost", "write 127.0.0.1:24"),
        (":24", "write 127.0.0.1:24"),
        ("*:24", "write 127.0.0.1:24"),
        ("a b:24", "write 127.0.0.1:24"),
        ("127.0.0.1:lmtp", "write 127.0.0.1:24"),
        ("127.0.0.1:65536", "write 127.0.0.1:24"),
        ("127.0.0.1:-1", "write 127.0.0.1:24"),
        ("::1:24", "in brackets"),
        ("unix:run/x.sock", "starts with /"),
        ("unix:", "starts with /"),
        ("unix:/" + "ü" * 60, "107 bytes at most"),
    ],
)
def test_what_is_no_address_is_quoted_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address|too long for a unix socket") as caught:
        Address.parse(text)
    assert reason in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A POSIX rule, so that the test needs no time zone files.
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


NOW = utc("2026-07-15T10:00:00")  # a Wednesday, 12:00 in Berlin


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("now", "2026-07-15T10:00:00"),
        ("2h", "2026-07-15T08:00:00"),
        ("90m ago", "2026-07-15T08:30:00"),
        ("7d", "2026-07-08T10:00:00"),
        ("today", "2026-07-14T22:00:00"),
        ("today 09:30", "2026-07-15T07:30:00"),
        ("9:30", "2026-07-15T07:30:00"),
        ("today 18:00", "2026-07-15T16:00:00"),
        ("yesterday", "2026-07-13T22:00:00"),
        (" Yesterday   14:00 ", "2026-07-14T12:00:00"),
        ("yesterday at 14:00:05", "2026-07-14T12:00:05"),
        ("tuesday", "2026-07-13T22:00:00"),
        ("last tuesday 10:00", "2026-07-14T08:00:00"),
        ("wednesday", "2026-07-14T22:00:00"),
        ("wednesday 11:00", "2026-07-15T09:00:00"),
        ("wednesday 13:00", "2026-07-08T11:00:00"),
        ("last wed", "2026-07-07T22:00:00"),
        ("thu", "2026-07-08T22:00:00"),
        ("2026-01-10", "2026-01-09T23:00:00"),
        ("2026-01-10 14:00", "2026-01-10T13:00:00"),
        ("2026-07-10T14:00:00", "2026-07-10T12:00:00"),
        ("2026-07-10T14:00:00Z", "2026-07-10T14:00:00"),
        ("2026-07-10T14:00:00+05:30", "2026-07-10T08:30:00"),
    ],
)
def test_times(text: str, when: str) -> None:
    assert parse_time(text, NOW) == utc(when)


@pytest.mark.parametrize(
    "text",
    ["", "ago", "soon", "tu", "last today", "next tuesday", "25:00", "yesterday 24:01", "2026-02-30", "2026"],
)
def test_what_is_no_time_is_quoted_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time: write 2h") as caught:
        parse_time(text, NOW)
    assert repr(text) in str(caught.value)


@pytest.mark.usefixtures("berlin")
def test_times_shown() -> None:
    assert format_time(NOW + 999_999) == "2026-07-15 12:00:00"
    assert iso_time(NOW + 123_456) == "2026-07-15T10:00:00.123456Z"
    assert parse_time(iso_time(NOW + 123_456), 0) == NOW + 123_456


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("time_us", [2**62, 2**63, 2**64 - 1, -(2**63), 10**30, -62_135_596_800_000_001])
def test_times_that_no_calendar_has_are_shown_as_numbers(time_us: int) -> None:
    assert format_time(time_us) == iso_time(time_us) == f"{time_us} µs"


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("time_us", [253_402_300_799_999_999, -62_135_596_800_000_000])
def test_the_ends_of_the_calendar(time_us: int) -> None:
    """The last moment of 9999 and the first of the year 1; local time may lie beyond."""
    assert iso_time(time_us).endswith("Z")
    assert format_time(time_us)
