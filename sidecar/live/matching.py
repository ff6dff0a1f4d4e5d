"""Which captured mail is in a live mailbox, and which mail there is none of what was captured. Pure.

A mailbox server puts fields of its own before a message (Return-Path, Delivered-To, Received, X-Sieve…), so
what was captured is the end of what is there: the bytes after some leading trace fields are hashed, and
compared with the content ids. Only what can match is downloaded: the Message-ID is one that is looked for, or
both sides have none and the size fits. Where the bytes are not those (a server that rewrites lines, turns NUL
into something else, or does not give the message at all), the headers decide, and `Match.how` says so.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from blake3 import blake3

from sidecar.live.mailbox import FOREVER_US, LiveError, LiveMailbox, LiveMessage
from store.ids import ContentId, DeliveryId
from store.records import Delivery

TRACE_BYTES = 16 << 10
"""what a server's own fields take at most, where nothing but the size tells what can match"""
MOST_BYTES = 128 << 20
"""larger messages are not downloaded, and known by their headers"""
_KEY_BYTES = 500
"""as much of a Message-ID as is compared: what the store has of one is cut"""
_TRACE = re.compile(
    rb"(?i)(?:(?:return-path|delivered-to|received|received-spf|envelope-to|envelope-from|delivery-date|"
    rb"original-recipient|authentication-results|arc-[a-z-]+|dkim-signature|dkim-filter|lines|status|"
    rb"x-[!-9;-~]+)[ \t]*:(?:[^\n]|\n(?=[ \t]))*\n)"
)

How = Literal["content", "headers"]


@dataclass(frozen=True, slots=True)
class Match:
    """Where a captured message is. `how` "content": the same bytes; "headers": the same Message-ID, Date,
    sender and subject, as far as they are known, and a size that fits."""

    message: LiveMessage
    how: How


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out. `present` has the deliveries that are in the mailbox, one place for each; `unknown` the
    messages there that are none of the deliveries given, in the order of the folders."""

    present: dict[DeliveryId, Match] = field(default_factory=dict)
    unknown: list[LiveMessage] = field(default_factory=list)


def compare(
    mailbox: LiveMailbox,
    deliveries: Sequence[Delivery],
    *,
    advance: Callable[[int], None] = lambda _number: None,
    since_us: int = 0,
    until_us: int = FOREVER_US,
    date_of: Callable[[Delivery], bytes | None] | None = None,
) -> Comparison:
    """Look for deliveries in all folders, among what was received in [since_us, until_us).

    The same bytes delivered several times are one message, which may well be in several folders.
    `advance` is told how many more live messages are done with. `date_of` gives a delivery's Date field,
    which its record does not have (None: not known), for where bytes do not match. Raises `LiveError`.
    """
    search = _Search(mailbox, deliveries, date_of)
    live: list[LiveMessage] = []
    for folder in mailbox.folders():
        found = [
            m for m in mailbox.messages(folder, since_us, until_us) if since_us <= m.received_us < until_us
        ]
        live += found
        maybe = [message for message in found if search.may_be(message)]
        advance(len(found) - len(maybe))
        search.look(maybe, advance)
    places = search.places()
    known = {(match.message.folder, match.message.uid) for matches in places.values() for match in matches}
    return Comparison(
        {d.id: places[d.content][0] for d in deliveries if d.content in places},
        [message for message in live if (message.folder, message.uid) not in known],
    )


def trace_ends(raw: bytes) -> list[int]:
    """Where a message may begin, the server's own fields left out: 0, and after each leading trace field."""
    ends = [0]
    while found := _TRACE.match(raw, ends[-1]):
        ends.append(found.end())
    return ends


@dataclass(slots=True)
class _Leftover:
    """A live message whose bytes are none of those looked for, though its Message-ID is; `raw` facts are
    None where the server does not give it."""

    message: LiveMessage
    sizes: tuple[tuple[int, int], ...]
    """from and to: what the captured message may measure, if it is this one, largest first"""
    core: bytes | None = None
    """names its bytes without any trace fields: copies of one message have the same"""
    fields: dict[bytes, bytes] | None = None


class _Search:
    def __init__(
        self,
        mailbox: LiveMailbox,
        deliveries: Sequence[Delivery],
        date_of: Callable[[Delivery], bytes | None] | None,
    ) -> None:
        self._mailbox = mailbox
        self._date_of = date_of
        self._wanted: dict[ContentId, Delivery] = {}
        for delivery in deliveries:
            self._wanted.setdefault(delivery.content, delivery)
        self._by_key: dict[bytes, list[Delivery]] = defaultdict(list)
        for delivery in self._wanted.values():
            self._by_key[_key(delivery.message_id)].append(delivery)
        self._sizes = sorted({delivery.size for delivery in self._by_key.get(b"", ())})
        self._matches: dict[ContentId, list[Match]] = defaultdict(list)
        self._leftovers: dict[bytes, list[_Leftover]] = defaultdict(list)

    def may_be(self, message: LiveMessage) -> bool:
        """Whether it is worth a download."""
        key = _key(message.message_id)
        if key:
            return key in self._by_key
        at = bisect_right(self._sizes, message.size)
        return at > 0 and message.size - self._sizes[at - 1] <= TRACE_BYTES

    def look(self, messages: list[LiveMessage], advance: Callable[[int], None]) -> None:
        """Compare the bytes of messages of one folder."""
        small = [message for message in messages if message.size <= MOST_BYTES]
        seen = set()
        for message, raw in given(self._mailbox, small, self._refused):
            self._take(message, raw)
            seen.add(message.uid)
            advance(1)
        for message in messages:
            if message.size > MOST_BYTES:
                self._refused(message)
        advance(len(messages) - len(seen))

    def _take(self, message: LiveMessage, raw: bytes) -> None:
        key = _key(message.message_id)
        candidates = self._by_key.get(key, ())
        ends = trace_ends(raw)
        starts = {len(raw) - candidate.size for candidate in candidates}
        view = memoryview(raw)
        for start in ends:  # what has most in front of it comes first
            if start in starts:
                content = ContentId(blake3(view[start:]).digest())
                if content in self._wanted:
                    self._matches[content].append(Match(message, "content"))
                    return
        if key and len(ends) > 1:  # what was delivered has some (RFC 5321 4.4); the sender's copy has none
            # LF may have become CRLF, so it may have been shorter by one byte a line.
            sizes = [(len(raw) - end - raw.count(b"\r\n", end), len(raw) - end) for end in ends]
            left = _Leftover(message, tuple(sizes))
            left.core = blake3(view[ends[-1] :]).digest()
            left.fields = _fields(raw)
            self._leftovers[key].append(left)

    def _refused(self, message: LiveMessage) -> None:
        if key := _key(message.message_id):
            sizes = ((message.size - TRACE_BYTES, message.size),)
            self._leftovers[key].append(_Leftover(message, sizes))

    def places(self) -> dict[ContentId, list[Match]]:
        """Where each content that was found is, the headers asked where its bytes are nowhere."""
        for key, leftovers in self._leftovers.items():
            missing = [wanted for wanted in self._by_key[key] if wanted.content not in self._matches]
            pairs = sorted(
                (
                    (abs(left.message.received_us - wanted.time_us), left.sizes[0][1] - wanted.size, n, m)
                    for n, left in enumerate(leftovers)
                    for m, wanted in enumerate(missing)
                    if self._fits(left, wanted)
                ),
            )
            taken: dict[int, int] = {}
            for _, _, n, m in pairs:  # one message accounts for one content, the nearest in time
                if n not in taken and m not in taken.values():
                    taken[n] = m
                    self._matches[missing[m].content].append(Match(leftovers[n].message, "headers"))
            for n, m in taken.items():
                self._add_copies(missing[m].content, leftovers[n], [
                    left for other, left in enumerate(leftovers) if other not in taken
                ])  # fmt: skip
        return self._matches

    def _add_copies(self, content: ContentId, first: _Leftover, others: list[_Leftover]) -> None:
        """The same message filed again."""
        for left in others:
            if first.core is not None and left.core == first.core:
                self._matches[content].append(Match(left.message, "headers"))

    def _fits(self, left: _Leftover, wanted: Delivery) -> bool:
        """Whether by its headers a live message may be the one that was captured."""
        if not any(low <= wanted.size <= high for low, high in left.sizes):
            return False
        date = self._date_of(wanted) if self._date_of else None
        if date is not None and _key(date) != _key(left.message.date):
            return False
        return left.fields is None or all(
            _key(value) == _key(left.fields.get(name, b""))
            for name, value in ((b"subject", wanted.subject), (b"from", wanted.header_from))
        )


def given(
    mailbox: LiveMailbox, messages: list[LiveMessage], refused: Callable[[LiveMessage], None]
) -> Iterator[tuple[LiveMessage, bytes]]:
    """The bytes of messages of one folder; a message that the server does not give is told, and does not keep
    back the others.

    Raises `LiveError` where it is not about a message."""
    if not messages:
        return
    seen = set()
    try:
        for message, raw in mailbox.fetch(messages):
            yield message, raw
            seen.add(message.uid)
    except LiveError:
        mailbox.folders()  # raises where the connection is gone
        left = [message for message in messages if message.uid not in seen]
        if len(left) == 1:
            refused(left[0])
            return
        half = len(left) // 2
        yield from given(mailbox, left[:half], refused)
        yield from given(mailbox, left[half:], refused)


def _key(value: bytes) -> bytes:
    """A header value as it is compared: how it was folded does not count, and NUL is what Dovecot's IMAP
    makes of it, which cannot say it (RFC 3501 9)."""
    return b" ".join(value.replace(b"\0", b"\x80").split())[:_KEY_BYTES]


_HEADER_BYTES = 256 << 10
_FIELD = re.compile(rb"(?im)^(subject|from)[ \t]*:[ \t]*((?:[^\r\n]|\r?\n[ \t]|\r(?!\n))*)")


def _fields(raw: bytes) -> dict[bytes, bytes]:
    """The values of the fields that a delivery's record has, too: the first of each."""
    end = raw.find(b"\r\n\r\n", 0, _HEADER_BYTES)
    fields: dict[bytes, bytes] = {}
    for found in _FIELD.finditer(raw, 0, end + 2 if end >= 0 else _HEADER_BYTES):
        fields.setdefault(found[1].lower(), found[2].strip())
    return fields
