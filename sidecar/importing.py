"""An import from its first message to its last: offered to the intake, settled batch by batch, told.

Of each message it is told what became of it once that is durable. However the import ends (it is stopped, a
server goes away), what was taken by then is settled and told; the same import again goes on there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from sidecar.intake import Found, How, Intake
from sidecar.sources.source import Skipped, Source, Wanted
from store.errors import StoreError
from store.ids import DeliveryId

_BATCH_MESSAGES = 1000
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one message. `how` FAILED stands for whatever was skipped, with its `reason`."""

    origin: str
    how: How
    recipient: bytes = b""
    folder: str = ""
    delivery: DeliveryId | None = None
    size: int = 0
    reason: str = ""


@dataclass(slots=True)
class Summary:
    """How many messages were taken, were there already, had been erased, were skipped; the bytes of those
    taken."""

    taken: int = 0
    there: int = 0
    erased: int = 0
    skipped: int = 0
    taken_bytes: int = 0

    @property
    def messages(self) -> int:
        """All that were met."""
        return self.taken + self.there + self.erased + self.skipped

    def told(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


class Import:
    """One import into a store. `tell` is called for each message when what became of it is settled, `advance`
    with how many were looked at since the last call; `stop` says between two messages whether to end."""

    def __init__(
        self,
        intake: Intake,
        tell: Callable[[Told], None],
        advance: Callable[[int], None] = lambda _n: None,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.summary = Summary()
        self._intake = intake
        self._tell = tell
        self._advance = advance
        self._stop = stop
        self._waiting: list[Told] = []
        self._bytes = 0

    def run(self, sources: Iterable[tuple[Source, Wanted] | Skipped]) -> Summary:
        """Take in all of them. Raises `StoreError`, and `SourceError` or `LiveError` when a source ends
        before its time."""
        try:
            for source in sources:
                if isinstance(source, Skipped):
                    self._one(source)
                elif not self._stop():
                    self._all_of(*source)
        except StoreError:
            raise
        except Exception:
            self._settle()
            raise
        self._settle()
        return self.summary

    def _all_of(self, source: Source, wanted: Wanted) -> None:
        try:
            with contextlib.closing(source.messages(wanted)) as messages:
                for found in messages:
                    if self._stop():
                        return
                    self._one(found)
        finally:
            self.summary.there += source.known

    def _one(self, found: Found | Skipped) -> None:
        if isinstance(found, Skipped):
            told = Told(found.origin, How.FAILED, reason=found.reason)
        else:
            taken = self._intake.take(found)
            # Not the message itself: its bytes may hang on it.
            told = Told(
                found.origin,
                taken.how,
                found.recipient,
                found.folder,
                taken.delivery,
                taken.size,
                taken.reason,
            )
            self._bytes += taken.size if taken.how is How.NEW else 0
        self._waiting.append(told)
        self._advance(1)
        if len(self._waiting) >= _BATCH_MESSAGES or self._bytes >= _BATCH_BYTES:
            self._settle()

    def _settle(self) -> None:
        self._intake.settle()
        for told in self._waiting:
            self._count(told)
            self._tell(told)
        self._waiting.clear()
        self._bytes = 0

    def _count(self, told: Told) -> None:
        match told.how:
            case How.NEW:
                self.summary.taken += 1
                self.summary.taken_bytes += told.size
            case How.THERE:
                self.summary.there += 1
            case How.ERASED:
                self.summary.erased += 1
            case How.FAILED:
                self.summary.skipped += 1
