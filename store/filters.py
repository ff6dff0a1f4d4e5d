"""Which deliveries are meant, said once and for all: by addresses, times, ids and words. Pure.

Holds, erasures and retention rules go by these; what a person types is turned into one of them by
`sidecar.select`. Unlike an index look-up a filter is exact: it is asked of the delivery's own record.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from store.header_text import header_text
from store.records import Delivery, Hold

AddressTest = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions that must all hold; None and () ask for nothing.

    `to` and `sender` are an address, `@domain`, a pattern with `*`, or `<>`. `since_us` is inclusive,
    `until_us` exclusive. `ids` are whole delivery ids in hexadecimal.
    """

    to: str | None = None
    sender: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    queue_id: str | None = None
    message_id: str | None = None
    subject: str | None = None
    leg: str | None = None
    ids: tuple[str, ...] = ()

    @property
    def asks_for_nothing(self) -> bool:
        """Whether everything there is would be meant."""
        return self == Filter()

    def matches(self, delivery: Delivery) -> bool:
        """Whether all conditions hold for a delivery."""
        recipients = delivery.envelope.recipients
        return (
            (self.since_us is None or delivery.time_us >= self.since_us)
            and (self.until_us is None or delivery.time_us < self.until_us)
            and (self.leg is None or delivery.leg == self.leg)
            and (not self.ids or delivery.id.hex() in self.ids)
            and (self.queue_id is None or delivery.queue_id == as_bytes(self.queue_id))
            and (self.message_id is None or bare(delivery.message_id) == bare(as_bytes(self.message_id)))
            and (self.sender is None or address_test(self.sender)(delivery.envelope.sender))
            and (self.to is None or any(map(address_test(self.to), (r.address for r in recipients))))
            and (self.subject is None or self.subject.casefold() in header_text(delivery.subject).casefold())
        )

    def told(self) -> dict[str, Any]:
        """What is asked for, as a record or JSON has it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value not in (None, ())
        }

    @classmethod
    def of(cls, told: dict[str, Any]) -> Filter:
        """The filter that `told` tells. Raises `TypeError` for a condition that this version does not know:
        to pass over it would mean more than was asked."""
        asked: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
        return cls(**asked)


def held_by(holds: Iterable[Hold], delivery: Delivery) -> Hold | None:
    """The first hold in force that a delivery is under; None if none is.

    A hold whose conditions this version does not know holds everything: rather too much than too little.
    """
    for hold in holds:
        if hold.released:
            continue
        try:
            if Filter.of(hold.matches).matches(delivery):
                return hold
        except TypeError:
            return hold
    return None


def exact_address(pattern: str) -> bytes | None:
    """The one address that a pattern means, in lower case as the index has it; None if it may be several."""
    if "*" in pattern or pattern.startswith("@"):
        return None
    return bare(as_bytes(pattern)).lower()


@functools.lru_cache(256)
def address_test(pattern: str) -> AddressTest:
    """Whether an address is meant by `anna@example.org`, `@example.org`, `*@*.example.org` or `<>`."""
    exact = exact_address(pattern)
    if exact is not None:
        return lambda address: address.lower() == exact
    if pattern.startswith("@"):
        pattern = "*" + pattern
    pieces = (re.escape(piece) for piece in as_bytes(pattern).split(b"*"))
    matches = re.compile(b".*".join(pieces), re.IGNORECASE | re.DOTALL).fullmatch
    return lambda address: matches(address) is not None


def as_bytes(argument: str) -> bytes:
    """An argument as its bytes were on the command line."""
    return argument.encode("utf-8", "surrogateescape")


def bare(value: bytes) -> bytes:
    """A value without its angle brackets."""
    return value[1:-1] if value.startswith(b"<") and value.endswith(b">") else value
