"""What a way into the mailboxes is: lanes that each take one message at a time, and say what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from sidecar.replay.targets import Item, Target


class LostError(Exception):
    """There is no connection, or it was lost. `in_doubt`: the message's end may have gone out, so the server
    may have it; else it cannot. `connected`: it was lost with this message on it."""

    def __init__(self, reason: str, *, in_doubt: bool = False, connected: bool = True) -> None:
        super().__init__(reason)
        self.in_doubt = in_doubt
        self.connected = connected


class NotSentError(Exception):
    """This one cannot be sent, whatever others can; the text says why. The server does not have it."""


class Lane(Protocol):
    """One message at a time."""

    async def put(self, target: Target) -> bytes:
        """Put it back, and give the server's reply: 2xx when it is there. Raises `LostError`, `NotSentError`,
        and `StoreError` when the message does not prove right (the server does not have it then)."""

    async def close(self) -> None:
        """Let go, in good manners. Idempotent."""


class Road(Protocol):
    """A way in. `name` says which, for the record."""

    name: str

    def lane(self) -> Lane:
        """A new one."""

    def close(self) -> None:
        """When all lanes are closed."""


class StoppedError(Exception):
    """Somebody wants us to stop."""


class Looks(Protocol):
    """Who can tell what is in the mailboxes already."""

    def sift(self, targets: Iterable[Item], *, since_us: int = 0) -> Iterator[Item]:
        """Those that are in no folder, as targets no longer in doubt, and a result for each of the others."""
