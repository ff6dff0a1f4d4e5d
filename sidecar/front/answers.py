"""The final replies of one message: told to the client in the order of its recipients, kept as outcomes.

Recipients are named by their place in the envelope. Those refused at RCPT were told then; they are only kept.
"""

from __future__ import annotations

from collections import deque

from sidecar.front.transaction import Transaction
from sidecar.front.wire import Wire
from store.records import Outcome


class Answers:
    """One for each accepted recipient (RFC 2033 4.2), filled as they become known, in any order."""

    def __init__(self, wire: Wire, transaction: Transaction) -> None:
        self._wire = wire
        self._waiting = deque(transaction.accepted)
        self._replies: dict[int, bytes] = {}
        self.outcomes: list[Outcome] = []
        for place, reply in transaction.refusals:
            self._keep(place, reply, "downstream")

    def give(self, place: int, reply: bytes, source: str) -> None:
        """Settle one recipient with a whole reply, line end included."""
        self._replies[place] = reply
        self._keep(place, reply, source)

    def give_rest(self, reply: bytes, source: str) -> None:
        """Settle all that are not settled yet."""
        for place in self._waiting:
            if place not in self._replies:
                self.give(place, reply, source)

    def tell(self) -> None:
        """Send what is next in order, at once."""
        while self._waiting and self._waiting[0] in self._replies:
            self._wire.reply(self._replies[self._waiting.popleft()])
        self._wire.flush()

    def _keep(self, place: int, reply: bytes, source: str) -> None:
        self.outcomes.append(Outcome(place, reply.removesuffix(b"\n").removesuffix(b"\r"), source))
