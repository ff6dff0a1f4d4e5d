"""Which captured mail is in a live mailbox, and which mail there is none of what was captured. Pure.

A mailbox server puts fields of its own before a message (Return-Path, Delivered-To, Received, X-Sieve…), so
what was captured is the end of what is there: the bytes after some leading trace fields are hashed, and
compared with the content ids. Only what can match is downloaded: the Message-ID is one that is looked for, or
both sides have none and the size fits. Where the bytes are not those, they are compared once more with line
ends made alike; and where that does not help either (a server that has changed a field, or does not give the
message at all) the headers decide. `Match.how` says which.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from blake3 import blake3

from sidecar.live.fields import id_and_date
from sidecar.live.mailbox import LiveError, LiveMailbox, LiveMessage
from store.ids import FOREVER_US, ContentId, DeliveryId
from store.records import Delivery

TRACE_BYTES = 16 << 10
"""what a server's own fields take at most"""
MOST_BYTES = 128 << 20
"""larger messages are not downloaded, and known by their headers"""
_KEY_BYTES = 500
"""as much of a Message-ID as is compared: what the store has of one is cut"""
_TRACE = re.compile(
    rb"(?i)(?:(?:return-path|delivered-to|received|received-spf|envelope-to|envelope-from|delivery-date|"
    rb"original-recipient|authentication-results|arc-[a-z-]+|dkim-signature|dkim-filter|lines|status|"
    rb"x-[!-9;-~]+)[ \t]*:(?:[^\n]|\n(?=[ \t]))*\n)"
)

_ENDS = re.compile(rb"\r*\n")
_STORE_HEADER_BYTES = 64 << 10
"""the store does not know a Message-ID that comes later"""
_TRIED = 8
"""so many captured messages are read for one live message at most"""

How = Literal["content", "lines", "headers"]


Read = Callable[[Delivery], bytes | None]
IsKnown = Callable[[ContentId], bool]
_LOOKS = 3
"""so often folders are looked into, when mail has been moved from one to another while we looked"""


@dataclass(frozen=True, slots=True)
class Match:
    """Where a captured message is. `how` "content": the same bytes; "lines": the same but for CR before LF,
    and NUL, which IMAP cannot say and Dovecot gives as another byte; "headers": the same Message-ID, Date,
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
    read: Read = lambda _delivery: None,
    is_known: IsKnown = lambda _content: False,
) -> Comparison:
    """Look for deliveries in all folders, among what was received in [since_us, until_us).

    The same bytes delivered several times are one message, which may well be in several folders.
    `advance` is told how many more live messages are done with. `read` gives a captured message (None: it
    cannot be read) where hashes do not match: without it nothing is "lines", and no Date is compared.
    `is_known` says whether the store has a message at all: what is another captured message, byte for byte,
    is not taken for one that is looked for, however alike their headers are. Raises `LiveError`.
    """
    search = _Search(mailbox, deliveries, read, is_known)
    live: list[LiveMessage] = []
    seen: set[tuple[str, str]] = set()
    for folder in _folders(mailbox, search):
        found = [
            m for m in mailbox.messages(folder, since_us, until_us)
            if since_us <= m.received_us < until_us and (folder, m.uid) not in seen
        ]  # fmt: skip
        live += found
        seen.update((folder, message.uid) for message in found)
        maybe = [message for message in found if search.may_be(message)]
        advance(len(found) - len(maybe))
        search.look(maybe, advance)
    places = search.places()
    known = {(match.message.folder, match.message.uid) for matches in places.values() for match in matches}
    return Comparison(
        {d.id: places[d.content][0] for d in deliveries if d.content in places},
        [message for message in live if (message.folder, message.uid) not in known],
    )


def _folders(mailbox: LiveMailbox, search: _Search) -> Iterator[str]:
    """All folders; and while something is missing, again those into which mail has come since: it may have
    been moved there from one that we had not looked into yet."""
    marks: dict[str, str] = {}
    for _ in range(_LOOKS):
        changed = False
        for folder in mailbox.folders():
            mark = mailbox.mark(folder)
            if marks.get(folder) != mark:
                marks[folder] = mark
                changed = True
                yield folder
        if not changed or search.has_all:
            return


def trace_ends(raw: bytes) -> list[int]:
    """0, and the end of each leading trace field."""
    ends = [0]
    while (found := _TRACE.match(raw, ends[-1])) and found.end() <= TRACE_BYTES:
        ends.append(found.end())
    return ends


def starts(raw: bytes, most: int = 50) -> list[int]:
    """Where a message may begin under the fields of a server: at each line, since one that begins with white
    space looks like the rest of the field before it. The first so many."""
    end = trace_ends(raw)[-1]
    found = [0]
    while len(found) < most and (at := raw.find(b"\n", found[-1], end)) >= 0:
        found.append(at + 1)
    return found


@dataclass(slots=True)
class _Leftover:
    """A live message whose bytes are none of those looked for, though its Message-ID is. `core` and `fields`
    are None where the server does not give it."""

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
        read: Read,
        is_known: IsKnown,
    ) -> None:
        self._mailbox = mailbox
        self._read = read
        self._is_known = is_known
        self._dates: dict[ContentId, bytes | None] = {}
        self._wanted: dict[ContentId, Delivery] = {}
        for delivery in deliveries:
            self._wanted.setdefault(delivery.content, delivery)
        self._by_key: dict[bytes, list[Delivery]] = defaultdict(list)
        for delivery in self._wanted.values():
            self._by_key[_key(delivery.message_id)].append(delivery)
        self._nameless = sorted(self._by_key.get(b"", ()), key=_size)
        self._large = [delivery for delivery in self._nameless if delivery.size > _STORE_HEADER_BYTES]
        self._matches: dict[ContentId, list[Match]] = defaultdict(list)
        self._leftovers: dict[bytes, list[_Leftover]] = defaultdict(list)

    @property
    def has_all(self) -> bool:
        """Whether nothing is missing."""
        return all(content in self._matches for content in self._wanted)

    def may_be(self, message: LiveMessage) -> bool:
        """Whether it is worth a download."""
        key = _key(message.message_id)
        return key in self._by_key if key and not self._large else bool(self._candidates(key, message.size))

    def _candidates(self, key: bytes, size: int) -> list[Delivery]:
        """What a live message with this Message-ID and size can be: of what has none, what has the size."""
        named = self._by_key.get(key, []) if key else []
        nameless = self._large if key else self._nameless
        low = bisect_left(nameless, size - TRACE_BYTES, key=_size)
        return named + nameless[low : bisect_right(nameless, size, key=_size)]

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
        candidates = self._candidates(key, len(raw))
        ends = trace_ends(raw)
        view = memoryview(raw)
        for start in sorted({len(raw) - candidate.size for candidate in candidates}):
            if 0 <= start <= ends[-1] and (not start or raw[start - 1] == 10):  # LF
                content = ContentId(blake3(view[start:]).digest())
                if content in self._wanted:
                    self._matches[content].append(Match(message, "content"))
                    return
        alike = self._by_lines(raw, ends[-1], key, candidates)
        if alike is not None:
            self._matches[alike].append(Match(message, "lines"))
        elif (
            key and len(ends) > 1 and not self._is_another(raw)
        ):  # what was delivered has some (RFC 5321 4.4); the sender's copy has none
            left = _Leftover(message, _sizes(raw, ends))
            left.core = blake3(view[ends[-1] :]).digest()
            left.fields = fields_of(raw)
            self._leftovers[key].append(left)

    def _is_another(self, raw: bytes) -> bool:
        """Whether this is a captured message that is not looked for."""
        contents = (ContentId(blake3(memoryview(raw)[start:]).digest()) for start in starts(raw))
        return any(content not in self._wanted and self._is_known(content) for content in contents)

    def _by_lines(self, raw: bytes, end: int, key: bytes, candidates: list[Delivery]) -> ContentId | None:
        """The captured message that this is but for CR before LF, and NUL."""
        if not key and b"\x80" not in raw:  # without a Message-ID it might be any, and hardly ever is
            return None
        alike, top = _alike(raw), len(_alike(raw[:end]))
        near = sorted(candidates, key=lambda candidate: abs(len(raw) - end - candidate.size))
        for candidate in near[:_TRIED]:
            captured = self._read(candidate)
            if not captured:
                continue
            captured = _alike(captured)
            start = len(alike) - len(captured)
            if 0 <= start <= top and alike.endswith(captured) and (not start or alike[start - 1] == 10):
                return candidate.content
        return None

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
            accounted: set[int] = set()
            for _, _, n, m in pairs:  # one message accounts for one content, the nearest in time
                if n not in taken and m not in accounted:
                    taken[n] = m
                    accounted.add(m)
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
        date = self._date(wanted)
        if date is not None and _key(date) != _key(left.message.date):
            return False
        return left.fields is None or all(
            _key(value) == _key(left.fields.get(name, b""))
            for name, value in ((b"subject", wanted.subject), (b"from", wanted.header_from))
        )

    def _date(self, wanted: Delivery) -> bytes | None:
        """Its Date field, which the record of a delivery does not have; None where it cannot be read."""
        if wanted.content not in self._dates:
            raw = self._read(wanted)
            self._dates[wanted.content] = None if raw is None else id_and_date(_header(raw))[1]
        return self._dates[wanted.content]


def given(
    mailbox: LiveMailbox,
    messages: list[LiveMessage],
    refused: Callable[[LiveMessage], None],
    *,
    headers: bool = False,
) -> Iterator[tuple[LiveMessage, bytes]]:
    """The bytes of messages of one folder, or their `headers` alone; a message that the server does not give
    is told, and does not keep back the others.

    Raises `LiveError` where it is not about a message."""
    if not messages:
        return
    seen = set()
    try:
        for message, raw in mailbox.headers(messages) if headers else mailbox.fetch(messages):
            yield message, raw
            seen.add(message.uid)
    except LiveError:
        mailbox.folders()  # raises where the connection is gone
        left = [message for message in messages if message.uid not in seen]
        if len(left) == 1:
            refused(left[0])
            return
        half = len(left) // 2
        yield from given(mailbox, left[:half], refused, headers=headers)
        yield from given(mailbox, left[half:], refused, headers=headers)


def _key(value: bytes) -> bytes:
    """A header value as it is compared: how it was folded does not count, and NUL is what Dovecot's IMAP
    makes of it, which cannot say it (RFC 3501 9)."""
    return b" ".join(value.replace(b"\0", b"\x80").split())[:_KEY_BYTES]


def _size(delivery: Delivery) -> int:
    return delivery.size


def _sizes(raw: bytes, ends: list[int]) -> tuple[tuple[int, int], ...]:
    """What a captured message may measure that begins at one of these places, from and to: LF may have become
    CRLF, so it may have been shorter by a byte a line."""
    sizes = []
    lines, after = 0, len(raw)
    for end in reversed(ends):
        lines += raw.count(b"\r\n", end, after)
        after = end
        sizes.append((len(raw) - end - lines, len(raw) - end))
    return tuple(reversed(sizes))


def _alike(raw: bytes) -> bytes:
    """A message with what servers change on the way made one."""
    return _ENDS.sub(b"\n", raw).replace(b"\0", b"\x80")


_FIELD = re.compile(rb"(?im)^(subject|from)[ \t]*:[ \t]*((?:[^\r\n]|\r?\n[ \t]|\r(?!\n))*)")


def fields_of(raw: bytes) -> dict[bytes, bytes]:
    """The values of the fields that a delivery's record has, too, by lower-case names: the first Subject and
    From of a message or header block."""
    fields: dict[bytes, bytes] = {}
    for found in _FIELD.finditer(_header(raw)):
        fields.setdefault(found[1].lower(), found[2].strip())
    return fields


def _header(raw: bytes) -> bytes:
    end = raw.find(b"\r\n\r\n", 0, _STORE_HEADER_BYTES + TRACE_BYTES)
    return raw[: end + 2 if end >= 0 else _STORE_HEADER_BYTES]
