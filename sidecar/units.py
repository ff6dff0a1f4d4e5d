"""Durations, sizes, addresses and times, as people write them and as tables show them.

Text in, plain values out: seconds, bytes, `Address`, µs since 1970 in UTC. What cannot be read is a
`ValueError` that quotes the text and shows how it is written; of a mail address there is no more to say
than that it is none. Reads no clock: whoever asks says what time
it is; the machine's time zone is all it takes from its surroundings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

DURATION_EXAMPLES = "5s, 10m, 7d, 1y, 1h30m or 250ms"
SIZE_EXAMPLES = "64MiB, 1GiB, 500kB or 4096"
ADDRESS_EXAMPLES = "127.0.0.1:24, [::1]:24 or unix:/run/mailkeep/lmtp.sock"
TIME_EXAMPLES = '2h, today 09:30, "yesterday 14:00", tuesday, 2026-03-31 or 2026-03-31T14:00:00+02:00'

_DURATION_UNITS_MS = {
    "y": 31_536_000_000,  # 365 days
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1000,
    "ms": 1,
}
# Largest unit first and each at most once: `1h30m` is read, `30m1h` and `5m5m` are slips to point out.
_DURATION = re.compile("".join(f"(?:([0-9]{{1,9}}){unit})?" for unit in _DURATION_UNITS_MS))

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
_SIZE = re.compile(r"([0-9]{1,18}) ?([A-Za-z]*)")

_UNIX_PATH_MAX_BYTES = (
    107  # sun_path holds 108 with its NUL; a longer path fails at bind with no good reason given
)

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY = re.compile(r"(?:(last) )?([a-z]+)(?:(?: at)? ([0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?))?")
_CLOCK = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?")


def parse_duration(text: str) -> float:
    """Seconds in `text`, such as `5s`, `10m`, `7d`, `1h30m`, `250ms`. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text!r} is not a duration: write {DURATION_EXAMPLES}")
    amounts = zip(match.groups(), _DURATION_UNITS_MS.values(), strict=True)
    return sum(int(amount) * unit_ms for amount, unit_ms in amounts if amount) / 1000


def exact_duration(seconds: float) -> str:
    """`seconds` as `parse_duration` reads it, to the millisecond."""
    left_ms, text = round(seconds * 1000), ""
    for unit in ("y", "d", "h", "m", "s", "ms"):
        amount, left_ms = divmod(left_ms, _DURATION_UNITS_MS[unit])
        text += f"{amount}{unit}" if amount else ""
    return text or "0s"


def parse_size(text: str) -> int:
    """Bytes in `text`, such as `64MiB`, `1GiB`, `500kB`, `4096`. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError(f"{text!r} is not a size: write {SIZE_EXAMPLES}")
    return int(match[1]) * _SIZE_UNITS[match[2]]


def exact_size(size: int) -> str:
    """`size` bytes as `parse_size` reads it, in the largest binary unit that loses nothing."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)


def format_size(size: int) -> str:
    """`size` bytes for a table, to three figures: `812 B`, `3.96 KiB`, `25.0 MiB`."""
    if abs(size) < 1024:
        return f"{size} B"
    amount, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if abs(amount) < 999.5:  # 999.5 would be shown as 1000
            break
        amount, unit = amount / 1024, larger
    decimals = 2 if abs(amount) < 9.995 else 1 if abs(amount) < 99.95 else 0
    return f"{amount:.{decimals}f} {unit}"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect: `host` and `port` for TCP, or `path` for a unix socket.

    Port 0 means any free port and makes sense only for listening.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket."""
        return bool(self.path)

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address from `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`. Raises ValueError."""
        if text.startswith("unix:"):
            return cls._parse_unix(text)
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r} is not an address: an IPv6 host stands in brackets, as in [::1]:24")
        number = int(port) if re.fullmatch("[0-9]{1,5}", port) else -1
        if not colon or not re.fullmatch(r"[0-9A-Za-z._:%-]+", host) or not 0 <= number <= 65535:
            raise ValueError(f"{text!r} is not an address: write {ADDRESS_EXAMPLES}")
        return cls(host=host, port=number)

    @classmethod
    def _parse_unix(cls, text: str) -> Address:
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{text!r} is not an address: the path of a unix socket starts with /")
        if len(path.encode()) > _UNIX_PATH_MAX_BYTES:
            raise ValueError(f"{text!r} is too long for a unix socket: {_UNIX_PATH_MAX_BYTES} bytes at most")
        return cls(path=path)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def bare_address(text: str) -> bytes | None:
    """A mail address as envelopes have it, without angle brackets, "" for the null sender; None for none."""
    bare = text.strip().removeprefix("<").removesuffix(">")
    return None if any(sign in "<>\\ " or not sign.isprintable() for sign in bare) else bare.encode()


def parse_time(text: str, now_us: int) -> int:
    """The moment that `text` names, in µs since 1970 UTC, seen from `now_us`. Raises ValueError.

    ISO 8601 (without a zone it is local time; a date is its first moment), a duration (`2h`: that long ago),
    `now`, a clock time (`09:30`: today), and `today`, `yesterday` or a weekday, with or without a clock time.
    A weekday is the latest one that is not in the future; `last tuesday` is one before today.
    """
    words = " ".join(text.split())
    lower = words.lower()
    duration = lower.removesuffix(" ago")
    now = _from_us(now_us).astimezone()
    try:
        if lower == "now":
            return now_us
        if duration and _DURATION.fullmatch(duration):
            return now_us - round(parse_duration(duration) * 1_000_000)
        if _CLOCK.fullmatch(lower):
            return _to_us(_local(now.date(), lower))
        match = _DAY.fullmatch(lower)
        if match is not None:
            return _to_us(_day(match[2], match[3] or "00:00", now, before_today=match[1] is not None))
        return _to_us(datetime.fromisoformat(words))
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"{text!r} is not a time: write {TIME_EXAMPLES}") from exc


def _day(name: str, clock: str, now: datetime, *, before_today: bool) -> datetime:
    """`today`, `yesterday` or a weekday (three letters are enough) at `clock`, in local time."""
    today = now.date()
    if name in {"today", "yesterday"} and not before_today:
        return _local(today - timedelta(days=name == "yesterday"), clock)
    weekdays = [number for number, day in enumerate(_WEEKDAYS) if len(name) >= 3 and day.startswith(name)]
    if not weekdays:
        raise ValueError(name)
    days_back = (today.weekday() - weekdays[0]) % 7
    if days_back == 0 and (before_today or _local(today, clock).astimezone() > now):
        days_back = 7
    return _local(today - timedelta(days=days_back), clock)


def _local(day: date, clock: str) -> datetime:
    hour, rest = clock.split(":", 1)
    return datetime.combine(day, time.fromisoformat(f"{hour:0>2}:{rest}"))


def _to_us(moment: datetime) -> int:
    """µs since 1970; what has no zone is local time. Whole-number arithmetic: floats lose microseconds."""
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _from_us(time_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)


def format_time(time_us: int) -> str:
    """µs since 1970 as local time for a table: `2026-03-31 14:00:00`. Takes any number: one that no calendar
    has is shown as it is, with its unit."""
    try:
        return _from_us(time_us).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # the year 9999 is the last; localtime has limits of its own
        return f"{time_us} µs"


def iso_time(time_us: int) -> str:
    """µs since 1970 as ISO 8601 in UTC, for machines: `2026-03-31T12:00:00.000000Z`. Takes any number, as
    `format_time` does."""
    try:
        return _from_us(time_us).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except OverflowError:
        return f"{time_us} µs"
