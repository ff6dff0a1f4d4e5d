"""What the browser shows and what a person asks it for. Pure: no terminal, no store.

Text in rows is ready to be shown: decoded, and without anything that could drive a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Protocol

from sidecar.readable import escaped, header_text, text
from sidecar.select import Selection
from sidecar.status import Status, status_of
from sidecar.units import format_size, format_time, parse_time
from store.deliveries import StoredDelivery
from store.ids import DeliveryId, now_us
from store.records import Delivery, Leg

KEYS = {
    "to": "to",
    "from": "sender",
    "since": "since",
    "until": "until",
    "subject": "subject",
    "status": "status",
    "leg": "leg",
    "queue-id": "queue_id",
    "message-id": "message_id",
    "as-of": "as_of",
}
"""word of the filter line -> field of `Selection`"""
_CHOICES: dict[str, tuple[str, ...]] = {"leg": tuple(Leg), "status": tuple(Status)}
_TIMES = frozenset({"since", "until", "as-of"})
_WORD = re.compile(r'(?:(?P<key>[A-Za-z-]+):)?(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>\S*))')
_MOST_RAW = 2000
"""bytes of a header field that are decoded for a row"""
_MOST_SUBJECT = 400
"""characters of a subject or address that a row keeps; a line is never longer"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a filter line asks for: the filters of `list`, and words that must all be found."""

    selection: Selection = field(default_factory=Selection)
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, line: str) -> Asked:
        """From a line such as `to:anna@example.org since:2h subject:"second reminder" invoice`.

        Raises `ValueError` that says what is wrong with it."""
        asked: dict[str, str] = {}
        words: list[str] = []
        at = 0
        while at < len(line):
            if line[at].isspace():
                at += 1
                continue
            match = _WORD.match(line, at)
            if match is None or match.end() == at:  # the pattern takes any character that is no space
                raise ValueError(f"{line[at:]!r} cannot be read")
            at = match.end()
            quoted = match["quoted"]
            value = match["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            if match["key"] is None:
                words += [value] if value else []
                continue
            key = match["key"].lower()
            _refuse(key, value, asked)
            asked[key] = value
        return cls(Selection(**{KEYS[key]: value for key, value in asked.items()}), tuple(words))  # type: ignore[arg-type]  # all of these are str

    @property
    def line(self) -> str:
        """The line that asks for this."""
        given = ((key, getattr(self.selection, name)) for key, name in KEYS.items())
        said = [f"{key}:{_quoted(value)}" for key, value in given if value is not None]
        return " ".join([*said, *(_quoted(word, alone=True) for word in self.words)])

    @property
    def is_anything(self) -> bool:
        """Whether nothing is asked for: all there is, as it is now."""
        return self == Asked()

    def with_(self, **filters: str | None) -> Asked:
        """The same but for these filters."""
        return replace(self, selection=replace(self.selection, **filters))  # type: ignore[arg-type]  # all are str

    def finds(self, delivery: Delivery) -> bool:
        """Whether all words are in the subject, the From field or the addresses, in any case."""
        if not self.words:
            return True
        envelope = delivery.envelope
        addresses = b"\n".join([envelope.sender, *(recipient.address for recipient in envelope.recipients)])
        where = "\n".join(
            (header_text(delivery.subject), header_text(delivery.header_from), text(addresses))
        ).casefold()
        return all(word.casefold() in where for word in self.words)


def _refuse(key: str, value: str, asked: dict[str, str]) -> None:
    """Raises `ValueError` for what makes no filter."""
    if key not in KEYS:
        raise ValueError(f"{key}: is no filter (there are {', '.join(KEYS)}); quote a word that has a colon")
    if key in asked:
        raise ValueError(f"{key}: is there twice")
    if not value.strip():
        raise ValueError(f"{key}: is empty" + ("; the null sender is <>" if key == "from" else ""))
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ValueError(f"{key}:{value} is none of {', '.join(_CHOICES[key])}")
    if key in _TIMES:
        parse_time(value, now_us())


def _quoted(value: str, *, alone: bool = False) -> str:
    if value and not re.search(r'[\s"\\]', value) and not (alone and ":" in value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


class Row(Protocol):
    """A line of a list: what tells it from others, and the text of its columns."""

    @property
    def key(self) -> object:
        """What stays the same when the list is made anew."""

    @property
    def cells(self) -> tuple[str, ...]:
        """A text for each column."""


@dataclass(frozen=True, slots=True)
class MessageRow:
    """One delivery."""

    key: DeliveryId
    time_us: int
    sender: str
    recipients: str
    subject: str
    size: int
    status: str

    @classmethod
    def of(cls, stored: StoredDelivery) -> MessageRow:
        """The From field as the reader of the mail sees it; the envelope's sender where there is none."""
        delivery = stored.delivery
        envelope = delivery.envelope
        sender = (
            header_text(delivery.header_from[:_MOST_RAW]).replace('"', "").strip()
            or text(envelope.sender)
            or "<>"
        )
        first = text(envelope.recipients[0].address) if envelope.recipients else ""
        others = len(envelope.recipients) - 1
        return cls(
            delivery.id, delivery.time_us, shown(sender),
            shown(first) + (f" +{others}" if others > 0 else ""),
            shown(header_text(delivery.subject[:_MOST_RAW])), delivery.size, str(status_of(stored)),
        )  # fmt: skip

    @property
    def cells(self) -> tuple[str, ...]:
        """Time, from, to, subject, size, status."""
        when = format_time(self.time_us)[:-3]
        return (when, self.sender, self.recipients, self.subject, format_size(self.size), self.status)


@dataclass(frozen=True, slots=True)
class MailboxRow:
    """One recipient, with what was seen of it so far; `key` is the address in lower case."""

    key: bytes
    messages: int
    message_bytes: int
    newest_us: int

    @property
    def cells(self) -> tuple[str, ...]:
        """Address, messages, size, newest."""
        name = shown(text(self.key)) or "<>"
        return (name, f"{self.messages:,}", format_size(self.message_bytes), format_time(self.newest_us)[:-3])


@dataclass(frozen=True, slots=True)
class DayRow:
    """One day in local time."""

    key: date
    messages: int

    @property
    def cells(self) -> tuple[str, ...]:
        """Date, day of the week, messages."""
        return (self.key.isoformat(), f"{self.key:%A}", f"{self.messages:,}")

    @property
    def until(self) -> str:
        """The day after it, where it ends."""
        return (self.key + timedelta(days=1)).isoformat()


def shown(raw: str) -> str:
    """Text of a mail in one line, without controls and not beyond any measure."""
    return escaped(raw[:_MOST_SUBJECT].replace("\t", " "))


class Mailboxes:
    """Recipients as they turn up, newest mail first: whoever is new comes at the end, nobody moves."""

    def __init__(self) -> None:
        self._found: dict[bytes, MailboxRow] = {}

    def take(self, found: Iterable[StoredDelivery]) -> None:
        """Count these."""
        for stored in found:
            delivery = stored.delivery
            for address in {recipient.address.lower() for recipient in delivery.envelope.recipients}:
                known = self._found.get(address) or MailboxRow(address, 0, 0, delivery.time_us)
                self._found[address] = replace(
                    known, messages=known.messages + 1, message_bytes=known.message_bytes + delivery.size
                )

    def rows(self, order: str = "newest") -> list[MailboxRow]:
        """Ordered by `newest`, `name` or `messages`."""
        rows = list(self._found.values())
        keys: dict[str, Callable[[MailboxRow], object]] = {
            "name": lambda row: row.key.split(b"@")[::-1],
            "messages": lambda row: -row.messages,
        }
        return sorted(rows, key=keys[order]) if order in keys else rows  # type: ignore[arg-type]  # lists of bytes, or ints


class Days:
    """Messages for each day, newest first."""

    def __init__(self) -> None:
        self._found: dict[date, int] = {}
        self._begin_us, self._end_us = 0, 0
        self._day = date.min

    def take(self, times_us: Iterable[int]) -> None:
        """Count messages captured at these times, latest first."""
        for time_us in times_us:
            if not self._begin_us <= time_us < self._end_us:  # asked of the calendar once a day
                self._enter(time_us)
            self._found[self._day] = self._found.get(self._day, 0) + 1

    def _enter(self, time_us: int) -> None:
        try:
            self._day = datetime.fromtimestamp(time_us // 1_000_000).date()  # noqa: DTZ006 - local days are meant
            begin, end = (
                datetime.combine(day, datetime.min.time()).timestamp()
                for day in (self._day, self._day + timedelta(days=1))
            )
            self._begin_us, self._end_us = int(begin * 1e6), int(end * 1e6)
        except (
            OverflowError,
            ValueError,
            OSError,
        ):  # a clock far out: such mail has no day, but must not harm
            self._day, self._begin_us, self._end_us = date.min, time_us, time_us + 1

    def rows(self) -> list[DayRow]:
        """What was counted."""
        return [DayRow(day, count) for day, count in sorted(self._found.items(), reverse=True)]


class Marks:
    """The messages that a person has picked, in the order of picking."""

    def __init__(self) -> None:
        self._marked: dict[DeliveryId, None] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._marked

    def __len__(self) -> int:
        return len(self._marked)

    def __iter__(self) -> Iterator[DeliveryId]:
        return iter(list(self._marked))

    def toggle(self, key: DeliveryId) -> None:
        """Mark it, or take its mark away."""
        if key in self._marked:
            del self._marked[key]
        else:
            self._marked[key] = None

    def add(self, keys: Iterable[DeliveryId]) -> None:
        """Mark these."""
        self._marked.update(dict.fromkeys(keys))

    def drop(self, keys: Iterable[DeliveryId]) -> None:
        """Take the marks of these away."""
        for key in list(keys):
            self._marked.pop(key, None)
