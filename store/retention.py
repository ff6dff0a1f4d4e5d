"""How long mail is kept, what may not go, and what must: rules, holds and erasures.

The rules are pure. Whatever is decided by them or by a person becomes a fact in the log (who, when, why) and
counts from then on; the bytes go with the next compaction. A hold wins over rules and erasures: what is under
one is passed over by `expire` and refused by `erase`.
"""

from __future__ import annotations

import heapq
import ipaddress
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice

from store.deliveries import Query
from store.errors import DamagedError, HeldError, NotFoundError, SealedError, StoreError
from store.filters import Filter, address_test, exact_address, held_by
from store.ids import DeliveryId, now_us, order
from store.looks import short_looks
from store.records import Delivery, Entry, Erasure, Expiry, Hold, Leg
from store.rows import Term
from store.store import Store
from store.writer import Submission

log = logging.getLogger(__name__)

YEAR_US = 365 * 86_400_000_000
_UNITS_US = {
    "y": YEAR_US,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "us": 1,
}
_BATCH = 1000
"""ids in one fact: a few ms of work for the writer"""
_STEP = 50
"""deliveries that are looked at between two steps"""
_WRITTEN_TIMEOUT_S = 60.0
_HOLD_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Step = Callable[[], None]
"""called between small steps; may wait, and stops the work by raising. What was written stays done."""


def _go_on() -> None:
    pass


# -- rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How long the mail is kept that all conditions hold for; None asks for nothing, and as `keep_us` is for
    ever. `to` and `sender` are an address, `@domain`, a pattern with `*`, or `<>`."""

    to: str | None = None
    sender: str | None = None
    leg: str | None = None
    direction: str | None = None
    keep_us: int | None = None

    @property
    def is_for_all(self) -> bool:
        """Whether no mail is left for the rules after this one."""
        return (self.to, self.sender, self.leg, self.direction) == (None, None, None, None)

    def matches(self, delivery: Delivery, recipient: bytes | None) -> bool:
        """Whether the conditions hold for a delivery to this recipient."""
        return (
            (self.leg is None or delivery.leg == self.leg)
            and (self.sender is None or address_test(self.sender)(delivery.envelope.sender))
            and (self.to is None or (recipient is not None and address_test(self.to)(recipient)))
            and (self.direction is None or direction_of(delivery) == self.direction)
        )

    def __str__(self) -> str:
        conditions = {"to": self.to, "from": self.sender, "leg": self.leg, "direction": self.direction}
        words = [f"{name} {value}" for name, value in conditions.items() if value is not None]
        return ", ".join([*words, f"keep {_duration(self.keep_us)}"])


def direction_of(delivery: Delivery) -> str | None:
    """`in` for what was on its way to a mailbox here: all of the LMTP leg, and what came to the milter from
    elsewhere. `out` for what the milter saw somebody here submit, logged in or from this machine, wherever
    it went. None where the capture does not tell, as with imports."""
    if delivery.leg == Leg.LMTP:
        return "in"
    if delivery.leg != Leg.MILTER:
        return None
    if delivery.attributes.get("auth_authen"):
        return "out"
    address = delivery.attributes.get("client_addr", b"").decode("ascii", "replace")
    try:
        local = ipaddress.ip_address(re.sub("(?i)^ipv6:", "", address)).is_loopback
    except ValueError:
        return None
    return "out" if local else "in"


def deciding(delivery: Delivery, rules: Iterable[Rule]) -> Rule | None:
    """The rule by which a delivery expires; None if it is kept for ever.

    For each recipient the first rule that matches counts, and of these the one that keeps longest.
    """
    found: Rule | None = None
    rules = tuple(rules)
    addresses: list[bytes | None] = [recipient.address for recipient in delivery.envelope.recipients]
    for address in addresses or [None]:
        rule = next((rule for rule in rules if rule.matches(delivery, address)), None)
        if rule is None or rule.keep_us is None:
            return None
        if found is None or found.keep_us is None or rule.keep_us > found.keep_us:
            found = rule
    return found


def expires_us(delivery: Delivery, rules: Iterable[Rule]) -> int | None:
    """The moment from which a delivery has had its time; None if it is kept for ever."""
    rule = deciding(delivery, rules)
    return None if rule is None or rule.keep_us is None else delivery.time_us + rule.keep_us


def _duration(keep_us: int | None) -> str:
    if keep_us is None:
        return "forever"
    unit = next(unit for unit, us in _UNITS_US.items() if keep_us % us == 0)
    return f"{keep_us // _UNITS_US[unit]}{unit}"


# -- expiry


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A delivery past its time, by which rule, and under which hold if it is under one."""

    delivery: Delivery
    rule: Rule
    hold: Hold | None = None


@dataclass(slots=True)
class Gone:
    """How much was dropped under one rule; bytes as captured."""

    deliveries: int = 0
    message_bytes: int = 0


@dataclass(slots=True)
class Expired:
    """What `expire` has done: by rule, and how many were due but are held."""

    rules: dict[str, Gone] = field(default_factory=dict)
    held: int = 0

    @property
    def deliveries(self) -> int:
        """How many were dropped."""
        return sum(gone.deliveries for gone in self.rules.values())


def due(store: Store, rules: Sequence[Rule], at_us: int, step: Step = _go_on) -> Iterator[Due]:
    """What has had its time at `at_us`, oldest first; what is held among it. Damaged entries are logged and
    passed over. Mail that is younger than any rule's time is not even looked at."""
    store.require_whole()
    holds = holds_in_force(store)
    for number, id_ in enumerate(_old(store, rules, at_us)):
        if number % _STEP == 0:
            step()
        try:
            delivery = store.delivery(id_).delivery
        except (DamagedError, SealedError) as exc:
            log.error("delivery %s: %s", id_.hex(), exc)
            continue
        except NotFoundError:
            continue  # removed meanwhile
        rule = deciding(delivery, rules)
        if rule is not None and rule.keep_us is not None and delivery.time_us + rule.keep_us <= at_us:
            yield Due(delivery=delivery, rule=rule, hold=held_by(holds, delivery))


def _old(store: Store, rules: Sequence[Rule], at_us: int) -> Iterator[DeliveryId]:
    """The ids among which those that are due are, in order of time: all that are old enough, or where every
    rule names an address, those with such an address alone."""
    everything = [rule.keep_us for rule in rules if rule.keep_us is not None and not _term(rule)]
    looks: list[Query] = []
    if everything:
        looks.append(Query(0, at_us - min(everything) + 1, newest_first=False))
    for rule in rules:
        term = _term(rule)
        if rule.keep_us is None or term is None or (everything and rule.keep_us >= min(everything)):
            continue
        looks.append(Query(0, at_us - rule.keep_us + 1, terms=(term,), newest_first=False))
    merged = heapq.merge(*(short_looks(store, query) for query in looks), key=order)
    return (id_ for id_, _ in groupby(merged))


def _term(rule: Rule) -> tuple[Term, bytes] | None:
    for kind, pattern in ((Term.RECIPIENT, rule.to), (Term.SENDER, rule.sender)):
        if pattern is not None and (address := exact_address(pattern)) is not None:
            return kind, address
    return None


def expire(
    store: Store,
    rules: Sequence[Rule],
    *,
    owner: str,
    at_us: int | None = None,
    step: Step = _go_on,
    progress: Callable[[int], None] = lambda _deliveries: None,
) -> Expired:
    """Drop what has had its time. Needs a writer; may be stopped by `step` and begun again at any time.
    Raises `StoreError`."""
    store.view.catch_up_all()
    report = Expired()
    found = due(store, rules, now_us() if at_us is None else at_us, step)
    while batch := list(islice(found, _BATCH)):
        step()
        holds = holds_in_force(store)  # one may have been placed a moment ago
        by_rule: dict[str, list[Delivery]] = {}
        for one in batch:
            if one.hold is not None or held_by(holds, one.delivery):
                report.held += 1
            else:
                by_rule.setdefault(str(one.rule), []).append(one.delivery)
        record(store, [_expiry(store, rule, owner, some, step) for rule, some in by_rule.items()])
        for rule, deliveries in by_rule.items():
            gone = report.rules.setdefault(rule, Gone())
            gone.deliveries += len(deliveries)
            gone.message_bytes += sum(delivery.size for delivery in deliveries)
        progress(report.deliveries)
    return report


def _expiry(store: Store, rule: str, owner: str, deliveries: Sequence[Delivery], step: Step) -> Expiry:
    names: list[bytes] = []
    for number, delivery in enumerate(deliveries):
        if number % _STEP == 0:
            step()
        names.append(store.traces(delivery.id))
    return Expiry(
        time_us=now_us(), rule=rule, owner=owner, deliveries=tuple(delivery.id for delivery in deliveries),
        facts=tuple(names),
    )  # fmt: skip


# -- erasure


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """One line of a receipt: what there was, without a word of what it said."""

    delivery: DeliveryId
    captured_us: int
    leg: str
    recipients: int
    size: int
    tombstone: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """An erasure as it stands in the log."""

    owner: str
    reason: str
    time_us: int
    erased: tuple[Erased, ...]


def erase(
    store: Store, ids: Iterable[DeliveryId], *, owner: str, reason: str, step: Step = _go_on
) -> Receipt:
    """Drop deliveries for good. Raises `HeldError` (then nothing is dropped), `NotFoundError`,
    `DamagedError` for one whose record cannot be read, and `StoreError`."""
    store.view.catch_up_all()
    store.require_whole()
    time_us = now_us()
    found = [store.delivery(id_).delivery for id_ in dict.fromkeys(ids)]
    refuse_held(store, found)
    erased = tuple(
        Erased(
            delivery=delivery.id, captured_us=delivery.time_us, leg=str(delivery.leg),
            recipients=len(delivery.envelope.recipients), size=delivery.size,
            tombstone=store.tombstone(delivery.content),
        )
        for delivery in found
    )  # fmt: skip
    for start in range(0, len(erased), _BATCH):
        step()
        facts: list[Entry] = [
            Erasure(
                delivery=one.delivery, time_us=time_us, owner=owner, reason=reason, content=one.tombstone,
                facts=store.traces(one.delivery),
            )
            for one in erased[start : start + _BATCH]
        ]  # fmt: skip
        record(store, facts)
    return Receipt(owner=owner, reason=reason, time_us=time_us, erased=erased)


def refuse_held(store: Store, deliveries: Iterable[Delivery]) -> None:
    """Raises `HeldError` when any of them is under a hold."""
    holds = holds_in_force(store)
    held = [(delivery, hold) for delivery in deliveries if (hold := held_by(holds, delivery))]
    if held:
        delivery, hold = held[0]
        others = f", and {len(held) - 1} more are held" if len(held) > 1 else ""
        raise HeldError(
            f"nothing was erased: delivery {delivery.id.hex()[:10]} is under the hold {hold.name} "
            f"of {hold.owner} ({hold.reason}){others}"
        )


# -- holds


class HoldNameError(StoreError):
    """A hold cannot have this name."""

    hint = "`mailkeep hold list` shows the holds; choose another name, or release that one first."
    exit_code = 1


class NoHoldError(NotFoundError):
    """No hold of this name is in force."""

    hint = "`mailkeep hold list` shows the holds in force, with --all those released too."


def holds_in_force(store: Store) -> list[Hold]:
    """The holds that are not released, by name."""
    with store.index.read() as snapshot:
        return [hold for _, hold in sorted(snapshot.holds().items()) if not hold.released]


def place_hold(store: Store, name: str, matches: Filter, *, owner: str, reason: str) -> Hold:
    """Hold whatever `matches`, now and in future. Raises `HoldNameError`, `StoreError`."""
    if not _HOLD_NAME.fullmatch(name):
        raise HoldNameError(
            f"{name!r} cannot name a hold: write letters, digits, dots, hyphens and underscores, up to 63"
        )
    known = _hold(store, name)
    if known is not None and not known.released:
        raise HoldNameError(f"the hold {name} is in force already: {known.reason}")
    hold = Hold(name=name, time_us=_after(known), owner=owner, reason=reason, matches=matches.told())
    record(store, [hold])
    return hold


def release_hold(store: Store, name: str, *, owner: str, reason: str) -> Hold:
    """End a hold. Raises `NoHoldError`, `StoreError`."""
    known = _hold(store, name)
    if known is None or known.released:
        was = "was released before" if known else "there is none"
        raise NoHoldError(f"no hold {name} is in force: {was}")
    release = Hold(
        name=name, time_us=_after(known), owner=owner, reason=reason, matches=known.matches, released=True
    )
    record(store, [release])
    return release


def _hold(store: Store, name: str) -> Hold | None:
    store.view.catch_up_all()
    store.require_whole()
    with store.index.read() as snapshot:
        return snapshot.holds().get(name)


def _after(known: Hold | None) -> int:
    """Now; and in any case after what it is to supersede, should the clock have been set back."""
    return max(now_us(), known.time_us + 1 if known else 0)


# -- the log


def record(store: Store, facts: Sequence[Entry]) -> None:
    """Make facts durable, all or none, and have them in the index. Raises `StoreError`."""
    if not facts:
        return
    written = threading.Event()
    errors: list[StoreError | None] = []

    def done(error: StoreError | None) -> None:
        errors.append(error)
        written.set()

    store.writer.submit(Submission(entries=list(facts), done=done))
    if not written.wait(_WRITTEN_TIMEOUT_S):
        raise StoreError("the record of it was not written in time")
    if errors[0] is not None:
        raise errors[0]
    store.settle_index(_WRITTEN_TIMEOUT_S)
