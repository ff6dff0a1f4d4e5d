"""What a way into the mailboxes is: lanes that each take a message or a few, and say what came of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from sidecar.replay.targets import Item, Target

Answered = Callable[[Target, bytes], None]
"""told the server's reply for a target: 2xx when it is there"""


class Failed(Protocol):
    """Told why a target cannot be sent, whatever others can; the server does not have it. `code`: see
    `Result`."""

    def __call__(self, target: Target, why: str, code: int = 0) -> None:
        """See above."""


class LostError(Exception):
    """There is no connection, or it was lost. `in_doubt`: the server may have what it was given and has not
    answered; else it cannot. `connected`: it was lost with a message on it. `code`: see `Result`."""

    def __init__(self, reason: str, *, in_doubt: bool = False, connected: bool = True, code: int = 0) -> None:
        super().__init__(reason)
        self.in_doubt = in_doubt
        self.connected = connected
        self.code = code


class Lane(Protocol):
    """A few messages at a time, in their order."""

    async def put(self, targets: Sequence[Target], answered: Answered, failed: Failed) -> None:
        """Put them back; each is told of as soon as something is known. Raises `LostError` for those that
        were not told of."""

    async def close(self) -> None:
        """Let go, in good manners. Idempotent."""


class Road(Protocol):
    """A way in. `name` says which, for the record; `depth` how many messages a lane takes at a time."""

    name: str
    depth: int

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
