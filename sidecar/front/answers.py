"""The final replies of one message: told to the client in the order of its recipients, kept as outcomes."""

from __future__ import annotations

from sidecar.front.wire import Wire
from store.records import Outcome


class Answers:
    """One for each accepted recipient (RFC 2033 4.2), filled as they become known, in any order."""

    def __init__(self, wire: Wire, recipients: int) -> None:
        self._wire = wire
        self._replies: list[bytes | None] = [None] * recipients
        self._told = 0
        self.outcomes: list[Outcome] = []

    def give(self, recipient: int, reply: bytes, source: str) -> None:
        """Settle one recipient with a whole reply, line end included."""
        self._replies[recipient] = reply
        self.outcomes.append(Outcome(recipient, reply.removesuffix(b"\n").removesuffix(b"\r"), source))

    def give_rest(self, reply: bytes, source: str) -> None:
        """Settle all that are not settled yet."""
        for recipient, given in enumerate(self._replies):
            if given is None:
                self.give(recipient, reply, source)

    def tell(self) -> None:
        """Send what is next in order, at once."""
        for reply in self._replies[self._told :]:
            if reply is None:
                break
            self._wire.reply(reply)
            self._told += 1
        self._wire.flush()
