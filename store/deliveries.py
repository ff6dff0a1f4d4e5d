"""What a store says of a delivery, and how it is asked for: of one store, or of many at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from store.errors import DamagedError, NotFoundError, SealedError
from store.ids import FOREVER_US, DeliveryId
from store.records import Delivery, Entry, EntryType, Erasure, Expiry, Outcome, Outcomes, Replay
from store.rows import Term
from store.snapshot import REMOVED
from store.view import terms

log = logging.getLogger(__name__)

Told = tuple[EntryType, Callable[[], Entry]]
"""an entry about a delivery: of what type, and what reads it"""


@dataclass(frozen=True, slots=True)
class StoredDelivery:
    """A delivery with what became of it. `outcomes` has the last reply for each recipient that got one;
    `replays` those that were answered, `in_doubt` those that were begun and of which no answer is known."""

    delivery: Delivery
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    replays: tuple[Replay, ...] = ()
    in_doubt: tuple[Replay, ...] = ()


class RemovedError(NotFoundError):
    """The delivery was erased, or has expired; `removal` says when, by whom and why."""

    hint = "What was erased or has expired does not come back."

    def __init__(self, delivery: DeliveryId, removal: Erasure | Expiry) -> None:
        if isinstance(removal, Erasure):
            what, why = "was erased", removal.reason
        else:
            what, why = "has expired", removal.rule
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(removal.time_us / 1e6))
        super().__init__(f"delivery {delivery.hex()[:10]} {what} on {day} by {removal.owner}: {why}")
        self.removal = removal


@dataclass(frozen=True, slots=True)
class Query:
    """Which deliveries: a time interval [since, until) in µs, and terms that all must hold.

    `as_of_us`: as the store stood then; what was captured, replied or expired later has not happened yet.
    What was erased is gone at all times.
    """

    since_us: int = 0
    until_us: int = FOREVER_US
    terms: tuple[tuple[Term, bytes], ...] = ()
    newest_first: bool = True
    as_of_us: int = FOREVER_US


def assemble(delivery: DeliveryId, told: Sequence[Told], as_of_us: int = FOREVER_US) -> StoredDelivery:
    """A delivery from all that is told of it, as of a moment. Raises `NotFoundError`, `RemovedError`,
    `DamagedError`, and what reading raises."""
    found: Delivery | None = None
    removed: Erasure | Expiry | None = None
    expiry: Expiry | None = None
    outcomes: list[Outcomes] = []
    replays: list[Replay] = []
    removals = [read for kind, read in told if kind in REMOVED]
    for read in removals or [read for _, read in told]:
        match read():
            case Delivery() as entry if entry.captured_us <= as_of_us:
                found = entry
            case Outcomes() as entry if entry.time_us <= as_of_us:
                outcomes.append(entry)
            case Replay() as entry if entry.time_us <= as_of_us:
                replays.append(entry)
            case (Erasure() | Expiry()) as entry:
                if isinstance(entry, Erasure) or entry.time_us <= as_of_us:
                    removed = removed or entry
                else:
                    expiry = entry
    if removed is not None:
        raise RemovedError(delivery, removed)
    if expiry is not None:  # it had not expired then; its facts may still be there
        left = [one for one in told if one[0] not in REMOVED]
        if all(kind != EntryType.DELIVERY for kind, _ in left):
            raise RemovedError(delivery, expiry)
        return assemble(delivery, left, as_of_us)
    if found is None:
        if any(kind == EntryType.DELIVERY for kind, _ in told):
            raise NotFoundError(f"delivery {delivery.hex()} was captured later")
        raise DamagedError("its record is missing")
    last: dict[int, Outcome] = {}
    for fact in sorted(outcomes, key=lambda fact: fact.time_us):
        last.update((outcome.recipient, outcome) for outcome in fact.outcomes)
    replays.sort(key=lambda replay: replay.time_us)
    newest = {(replay.run, replay.recipient): replay for replay in replays}
    return StoredDelivery(
        found, last,
        tuple(replay for replay in replays if not replay.is_intent),
        tuple(replay for replay in newest.values() if replay.is_intent),
    )  # fmt: skip


class Look(Protocol):
    """What is asked of an index; `store.snapshot.Snapshot` is one."""

    def by_time(
        self, since_us: int, until_us: int, *, newest_first: bool, removed: bool = False
    ) -> Iterator[DeliveryId]:
        """See `Snapshot.by_time`."""

    def by_term(
        self,
        kind: Term,
        value: bytes,
        since_us: int,
        until_us: int,
        *,
        newest_first: bool,
        removed: bool = False,
    ) -> Iterator[DeliveryId]:
        """See `Snapshot.by_term`."""

    def has_term(self, kind: Term, value: bytes, delivery: DeliveryId) -> bool:
        """See `Snapshot.has_term`."""


def candidates(snapshot: Look, query: Query) -> Iterator[DeliveryId]:
    """The ids among which a query's deliveries are, in order of time: index terms are hashes, look again."""
    since, until = query.since_us, min(query.until_us, query.as_of_us + 1)
    # What has expired since then had not yet: only a look at the expiry itself tells.
    removed = query.as_of_us < FOREVER_US
    if not query.terms:
        yield from snapshot.by_time(since, until, newest_first=query.newest_first, removed=removed)
        return
    (kind, value), *others = query.terms
    found = snapshot.by_term(kind, value, since, until, newest_first=query.newest_first, removed=removed)
    for delivery in found:
        if all(snapshot.has_term(other, text, delivery) for other, text in others):
            yield delivery


def listed(
    found: Iterable[tuple[DeliveryId, Callable[[], StoredDelivery]]], query: Query, *, may_read: bool
) -> Iterator[StoredDelivery]:
    """A query's deliveries among `candidates`, which come with what loads them. What is damaged is logged and
    passed over, and so is what is sealed for others; it is raised where nothing `may_read` anything."""
    for delivery, load in found:
        try:
            stored = load()
        except NotFoundError:
            continue  # removed, or not yet captured then
        except (DamagedError, SealedError) as exc:
            if isinstance(exc, SealedError) and not may_read:
                raise
            log.error("delivery %s: %s", delivery.hex(), exc)
            continue
        if has_terms(stored, query.terms):
            yield stored


def has_terms(found: StoredDelivery, wanted: tuple[tuple[Term, bytes], ...]) -> bool:
    """Whether a delivery stands under these terms, and not only something with the same hash."""
    if not wanted:
        return True
    own = terms(found.delivery)
    return all(
        term in own
        or (
            term[0] == Term.REPLAY_RUN
            and any(replay.run.encode() == term[1] for replay in (*found.replays, *found.in_doubt))
        )
        for term in wanted
    )
