"""Compare mailboxes as they are now with the store, in both directions, and say why they differ.

What was delivered and is in no folder was deleted, moved out or filtered away: people do that. What is in a
mailbox and not in the store may have been put there by a mail program, or be older than mailkeep; what
nothing explains is a *hole*: mail that should have been captured. Mail is known by its bytes, and by its
headers only where a server gives other bytes than it got (`sidecar.live.matching`).
"""

from __future__ import annotations

import enum
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

from sidecar.live.mailbox import LiveError, LiveMailbox, LiveMessage
from sidecar.live.matching import MOST_BYTES, compare, fields_of, given, starts, trace_ends
from sidecar.live.users import imap_user
from sidecar.sections import ImapConfig
from store.deliveries import Query, RemovedError, StoredDelivery
from store.errors import DamagedError, NotFoundError, SealedError, StoreError
from store.fleet import Archive
from store.ids import FOREVER_US, ContentId, DeliveryId, content_id
from store.looks import short_looks
from store.records import Delivery, Erasure, Leg
from store.rows import Term

log = logging.getLogger(__name__)

_MARGIN_US = 3_600_000_000
"""captured so long before the interval, mail may have been received in it"""
_SECOND_US = 1_000_000
"""mailboxes tell no more"""
_SENT = re.compile(r"(?i)^(sent|gesendet)")
_DRAFTS = re.compile(r"(?i)^(draft|entw[uü]rf)")


class Kind(enum.StrEnum):
    """Why mail is in one place and not in the other."""

    HOLE = "hole"
    """in the mailbox, and nothing explains why it is not in the store"""
    BEFORE = "before"
    """received before the first mail to this user that the store has"""
    SENT = "sent"
    """in a folder for sent mail, and never delivered: it has no trace field on top"""
    DRAFT = "draft"
    APPENDED = "appended"
    """never delivered: some program put it there"""
    OTHER = "other"
    """in the store, but captured for other people only, or only as it was submitted"""
    ERASED = "erased"
    EXPIRED = "expired"
    GONE = "gone"
    """delivered, and in no folder: deleted, moved out, or filtered away"""
    GONE_AGAIN = "gone-again"
    """it was put back, and is in no folder now"""
    UNANSWERED = "unanswered"
    """in no folder, and the store knows no reply for it: perhaps it never arrived"""


MISSING = frozenset({Kind.GONE, Kind.GONE_AGAIN, Kind.UNANSWERED})
"""what the store has and the mailbox has not"""
LACKING = frozenset({Kind.HOLE, Kind.BEFORE, Kind.SENT, Kind.APPENDED})
"""what the store has not, and may have"""


@dataclass(frozen=True, slots=True)
class Difference:
    """One message that is in one of the two alone: a delivery that is missing (`stored`) or a live message
    (`live`). `detail` says more, or nothing. `subject` and `header_from` are fields of the live one, b""
    where they were not asked for."""

    kind: Kind
    stored: StoredDelivery | None = None
    live: LiveMessage | None = None
    detail: str = ""
    subject: bytes = b""
    header_from: bytes = b""


@dataclass(slots=True)
class Account:
    """What came out for one user. `error`: why the mailbox could not be looked into, or not to its end; the
    differences then are none. `present` are the contents found, `by_headers` those of them whose bytes are
    not the same; `imported` is how much was taken in, `taken` which."""

    user: str
    delivered: int = 0
    live: int = 0
    present: int = 0
    by_headers: int = 0
    differences: list[Difference] = field(default_factory=list)
    imported: int = 0
    taken: list[Difference] = field(default_factory=list)
    error: LiveError | None = None
    told: Counter[Kind] = field(default_factory=Counter)
    """how many differences there were that are kept no more"""

    def count(self, *kinds: Kind) -> int:
        """How many differences are of these kinds."""
        kept = sum(difference.kind in kinds for difference in self.differences)
        return kept + sum(self.told[kind] for kind in set(kinds))

    def forget(self) -> None:
        """Keep how many differences there are, and not which: a million of them are gigabytes."""
        self.told.update(difference.kind for difference in self.differences)
        self.differences = []
        self.taken = []

    @property
    def missing(self) -> int:
        """What was delivered and is in no folder."""
        return self.count(*MISSING)


@dataclass(slots=True)
class _Expected:
    """What was captured for a user: ids, the addresses that it came for, when the first came."""

    ids: list[DeliveryId] = field(default_factory=list)
    addresses: set[bytes] = field(default_factory=set)
    first_us: int = FOREVER_US


class Auditor:
    """Audits what lies in [since_us, until_us) against a store. `scan` comes first. Thread-safe after it."""

    def __init__(
        self, store: Archive, imap: ImapConfig, *, since_us: int = 0, until_us: int = FOREVER_US
    ) -> None:
        """Raises `SealedError` where nothing of the store can be read."""
        store.require_identity()
        self._store = store
        self._imap = imap
        self._since_us = since_us
        self._until_us = until_us
        self._expected: dict[str, _Expected] = defaultdict(_Expected)
        self._first_us = FOREVER_US

    def scan(self, advance: Callable[[int], None] = lambda _number: None) -> list[str]:
        """Learn for whom there are deliveries in the interval; their logins, sorted."""
        query = Query(max(self._since_us - _MARGIN_US, 0), self._until_us, newest_first=False)
        for delivery, stored in self._loaded(short_looks(self._store, query)):
            advance(1)
            if stored.delivery.leg == Leg.MILTER:
                continue
            for number, place in enumerate(stored.delivery.envelope.recipients):
                outcome = stored.outcomes.get(number)
                if outcome is not None and not outcome.reply.startswith(b"2"):
                    continue  # refused: there may be no such mailbox
                expected = self._expected[imap_user(place.address, self._imap)]
                expected.addresses.add(place.address.lower())
                if expected.ids[-1:] != [delivery]:
                    expected.ids.append(delivery)
                if stored.delivery.leg == Leg.LMTP:
                    expected.first_us = min(expected.first_us, stored.delivery.time_us)
                    self._first_us = min(self._first_us, stored.delivery.time_us)
        return sorted(user for user, expected in self._expected.items() if expected.ids)

    def login(self, name: str) -> str:
        """The login that a person means by an address or by the login itself."""
        return name if name in self._expected or "@" not in name else imap_user(name.encode(), self._imap)

    def address(self, user: str) -> bytes:
        """An address of a user, without detail if there is such a one."""
        addresses = self._expected[user].addresses if user in self._expected else set()
        return min(addresses, key=lambda address: (len(address), address), default=user.encode())

    def audit(
        self, user: str, mailbox: LiveMailbox, advance: Callable[[int], None] = lambda _number: None
    ) -> Account:
        """Compare one mailbox. Raises `LiveError`, `StoreError`."""
        expected = self._expected.get(user, _Expected())
        account = Account(user)

        def seen(number: int) -> None:
            account.live += number
            advance(number)

        loaded = [stored for _, stored in self._loaded(expected.ids)]
        comparison = compare(
            mailbox,
            [stored.delivery for stored in loaded],
            advance=seen,
            read=self._read,
            is_known=self._is_known,
        )
        places = {stored.delivery.content: comparison.present.get(stored.delivery.id) for stored in loaded}
        account.present = sum(place is not None for place in places.values())
        account.by_headers = sum(place is not None and place.how == "headers" for place in places.values())
        account.differences += self._missing(user, loaded, {c for c, place in places.items() if place})
        expected_here = (one.delivery for one in loaded if one.delivery.leg == Leg.LMTP)
        account.delivered = len({d.content for d in expected_here if self._is_within(d.time_us)})
        unknown = [m for m in comparison.unknown if self._is_within(m.received_us)]
        account.differences += self._explained(user, mailbox, unknown, self._began(expected))
        return account

    # -- what the mailbox has not

    def _missing(
        self, user: str, loaded: list[StoredDelivery], present: set[ContentId]
    ) -> Iterator[Difference]:
        told = set(present)
        for stored in loaded:
            delivery = stored.delivery
            if delivery.leg != Leg.LMTP or delivery.content in told or not self._is_within(delivery.time_us):
                continue
            replies = [
                stored.outcomes[number].reply if number in stored.outcomes else b""
                for number, place in enumerate(delivery.envelope.recipients)
                if imap_user(place.address, self._imap) == user
            ]
            told.add(delivery.content)
            back = [
                replay
                for replay in stored.replays
                if replay.reply.startswith(b"2") and imap_user(replay.recipient, self._imap) == user
            ]
            answered = any(reply.startswith(b"2") for reply in replies)
            kind = Kind.GONE_AGAIN if back else Kind.GONE if answered else Kind.UNANSWERED
            yield Difference(kind, stored, detail=f"put back in run {back[-1].run}" if back else "")

    # -- what the store has not

    def _explained(
        self, user: str, mailbox: LiveMailbox, unknown: list[LiveMessage], began_us: int
    ) -> Iterator[Difference]:
        """Each message that the store has not for this user, with the reason; the cheap ones first."""
        if not unknown:
            return
        self._store.refresh()  # mail that came while we looked is no hole
        left = []
        for message in unknown:
            if "\\draft" in (flag.lower() for flag in message.flags):
                yield Difference(Kind.DRAFT, live=message)
            elif message.received_us + _SECOND_US <= began_us:
                yield Difference(Kind.BEFORE, live=message)
            elif removal := self._removed(Term.MESSAGE_ID, message.message_id):
                yield Difference(removal[0], live=message, detail=removal[1])
            else:
                left.append(message)
        for folder, group in groupby(left, key=lambda message: message.folder):
            yield from self._in_folder(user, mailbox, folder, list(group))

    def _in_folder(
        self, user: str, mailbox: LiveMailbox, folder: str, messages: list[LiveMessage]
    ) -> Iterator[Difference]:
        delivered: list[LiveMessage] = []
        refused: list[LiveMessage] = []
        for message, header in given(mailbox, messages, refused.append, headers=True):
            if len(trace_ends(header)) > 1:
                delivered.append(message)
                continue
            name = re.split(r"[./]", folder)[-1]
            kind = Kind.SENT if _SENT.match(name) else Kind.DRAFT if _DRAFTS.match(name) else Kind.APPENDED
            yield _named(Difference(kind, live=message), header)
        for message, raw in given(mailbox, delivered, refused.append):
            difference = self._by_content(user, message, raw)
            if difference is not None:
                yield _named(difference, raw)
        for message in refused:
            yield Difference(Kind.HOLE, live=message, detail="the server does not give it")

    def _by_content(self, user: str, message: LiveMessage, raw: bytes) -> Difference | None:
        """Whether the store knows these bytes, whoever they were for; None if they were for this user."""
        others: list[Delivery] = []
        for start in starts(raw):
            content = content_id(raw[start:])
            if self._store.was_erased(content):
                return Difference(Kind.ERASED, live=message)
            if removal := self._removed(Term.CONTENT, content):
                return Difference(removal[0], live=message, detail=removal[1])
            ids = self._with_term(Term.CONTENT, content)
            for _, stored in self._loaded(ids):
                if stored.delivery.content == content:
                    addresses = [place.address for place in stored.delivery.envelope.recipients]
                    addresses += [replay.recipient for replay in stored.replays]
                    if stored.delivery.leg != Leg.MILTER and any(
                        imap_user(address, self._imap) == user for address in addresses
                    ):
                        return None  # at another time, or while we looked
                    others.append(stored.delivery)
        if others:
            return Difference(Kind.OTHER, live=message, detail=f"delivery {others[0].id.hex()[:10]}")
        return Difference(Kind.HOLE, live=message)

    def _removed(self, term: Term, value: bytes) -> tuple[Kind, str] | None:
        """Whether what has this term was erased or has expired, and nothing with it is left."""
        found: tuple[Kind, str] | None = None
        for delivery in self._with_term(term, value, removed=True) if value else ():
            try:
                self._store.delivery(delivery)
            except RemovedError as exc:
                found = (Kind.ERASED if isinstance(exc.removal, Erasure) else Kind.EXPIRED, str(exc))
            except StoreError:
                continue
            else:
                return None
        return found

    # -- the store

    def _with_term(self, term: Term, value: bytes, *, removed: bool = False) -> list[DeliveryId]:
        with self._store.index.read() as snapshot:
            return list(snapshot.by_term(term, value, 0, FOREVER_US, newest_first=True, removed=removed))

    def _loaded(self, ids: Iterable[DeliveryId]) -> Iterator[tuple[DeliveryId, StoredDelivery]]:
        """Deliveries that are there; what is damaged is logged and passed over."""
        for delivery in ids:
            try:
                yield delivery, self._store.delivery(delivery)
            except NotFoundError:
                continue
            except (DamagedError, SealedError) as exc:
                log.error("delivery %s: %s", delivery.hex(), exc)

    def _began(self, expected: _Expected) -> int:
        """When the store got its first mail for a user, as far as it matters in the interval; its very first
        mail, if it has none for them."""
        terms: list[tuple[tuple[Term, bytes], ...]] = [
            ((Term.RECIPIENT, address),) for address in expected.addresses
        ]
        if self._since_us and any(map(self._has_earlier, terms or [()])):
            return 0
        return expected.first_us if expected.first_us < FOREVER_US else self._first_us

    def _has_earlier(self, terms: tuple[tuple[Term, bytes], ...]) -> bool:
        """Whether something came through LMTP before the interval. What was imported says nothing about when
        mailkeep began."""
        query = Query(until_us=self._since_us, terms=terms)
        found = self._loaded(short_looks(self._store, query))
        return any(stored.delivery.leg == Leg.LMTP for _, stored in found)

    def _is_known(self, content: ContentId) -> bool:
        return bool(self._store.with_content(content))

    def _read(self, delivery: Delivery) -> bytes | None:
        """A captured message; None where it cannot be read, or is too large to be held."""
        if delivery.size > MOST_BYTES:
            return None
        try:
            return b"".join(self._store.read(delivery.content))
        except StoreError as exc:
            log.error("delivery %s: %s", delivery.id.hex(), exc)
            return None

    def _is_within(self, time_us: int) -> bool:
        return self._since_us <= time_us < self._until_us


def _named(difference: Difference, raw: bytes) -> Difference:
    """With what people know a message by, from its bytes or its header block."""
    fields = fields_of(raw)
    return replace(difference, subject=fields.get(b"subject", b""), header_from=fields.get(b"from", b""))
