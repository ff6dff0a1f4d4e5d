"""What is to be put back, to whom, and what came of it. Pure, and one at a time: a run may have millions."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from blake3 import blake3

from store.deliveries import StoredDelivery
from store.ids import ContentId, DeliveryId, delivery_time_us
from store.records import Delivery, Envelope, Leg

MAILBOX_LEGS = frozenset({Leg.LMTP, Leg.IMPORT})
"""where mail is captured that was in a mailbox, or on its last step to one"""


@dataclass(frozen=True, slots=True)
class Target:
    """One message for one recipient. `begun_us`: when an earlier part of the run began to send it, of which
    nobody knows whether the server has it; else 0."""

    delivery: Delivery
    recipient: bytes
    begun_us: int = 0


class Outcome(enum.StrEnum):
    """What became of a target."""

    RESTORED = "restored"
    EARLIER = "restored before"
    """by an earlier part of the same run"""
    THERE = "already there"
    REFUSED = "refused"
    """by the server; or it cannot be sent, as `why` says"""
    IN_DOUBT = "in doubt"
    """the server may have it or not"""
    NOT_ATTEMPTED = "not attempted"


BACK = frozenset({Outcome.RESTORED, Outcome.EARLIER, Outcome.THERE})


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a target: the server's reply, or `why` there is none. `how` and `folder`: what one that
    is already there was recognised by ("content" or "headers"), and where. `code`: the exit code of the
    `LiveError`, where the mailbox could not be got at."""

    target: Target
    outcome: Outcome
    reply: bytes = b""
    why: str = ""
    how: str = ""
    folder: str = ""
    code: int = 0

    @property
    def is_back(self) -> bool:
        """Whether the message is where it was to go."""
        return self.outcome in BACK


Item = Target | Result


def unread(delivery: DeliveryId) -> Delivery:
    """What is known of a delivery whose record cannot be read: it must be told all the same."""
    return Delivery(
        id=delivery, time_us=delivery_time_us(delivery), leg=Leg.LMTP, content=ContentId(bytes(32)), size=0,
        envelope=Envelope(b"", ()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereto:
    """Who gets it: those who got it then, if `wanted` holds for them; or `recipient` in their place; or
    whoever `mapping` names for them (lower case -> address), and the others nothing. `legs`: which captures
    count, None for all."""

    recipient: bytes | None = None
    wanted: Callable[[bytes], bool] | None = None
    mapping: Mapping[bytes, bytes] | None = None
    legs: frozenset[Leg] | None = None


def targets(
    found: Iterable[StoredDelivery], whereto: Whereto, mapped: Callable[[bytes], None] = lambda _old: None
) -> Iterator[Target]:
    """Of a delivery through LMTP each recipient without a 4xx or 5xx. The same bytes for the same recipient
    come once. `mapped` hears of every address that `mapping` has a line for, in lower case."""
    seen: set[bytes] = set()
    for stored in found:
        delivery = stored.delivery
        if whereto.legs is not None and delivery.leg not in whereto.legs:
            continue
        addresses = [
            place.address
            for number, place in enumerate(delivery.envelope.recipients)
            if not (number in stored.outcomes and stored.outcomes[number].reply[:1] in (b"4", b"5"))
            and (whereto.wanted is None or whereto.wanted(place.address))
        ]
        if whereto.mapping is not None:
            olds = [old for old in map(bytes.lower, addresses) if old in whereto.mapping]
            for old in olds:
                mapped(old)
            addresses = [whereto.mapping[old] for old in olds]
        if whereto.recipient is not None and addresses:
            addresses = [whereto.recipient]
        for address in addresses:
            name = blake3(delivery.content + address.lower()).digest(16)  # small: they are kept until the end
            if name not in seen:
                seen.add(name)
                yield Target(delivery, address)
