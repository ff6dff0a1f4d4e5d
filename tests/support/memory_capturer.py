"""A store in memory behind the capture interface, which can be told to fail, to be slow, or to be a bug."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sidecar.capture import Capture, Captured, Capturer
from store.ids import ContentId, DeliveryId, content_id, new_delivery_id, now_us
from store.records import Envelope, Leg, Outcome


@dataclass
class Kept:
    """What one commit left behind."""

    id: DeliveryId
    envelope: Envelope
    queue_id: bytes
    attributes: dict[str, bytes]
    message: bytes
    outcomes: list[Outcome] = field(default_factory=list)


class MemoryCapturer(Capturer):
    """Faults are raised once they are set; `commit_gate` holds commits back until it is set."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.aborted = 0
        self.largest_feed = 0
        self.fed = 0
        self.feed_fault: Exception | None = None
        self.commit_fault: Exception | None = None
        self.read_fault: Exception | None = None
        self.commit_gate: asyncio.Event | None = None
        self.settle_gate: asyncio.Event | None = None
        self.settle_s = 0.0
        self.uncaptured = False
        self.accept = False
        self.given_up: list[tuple[bytes, str, bytes]] = []  # queue id, reason, what would be put aside
        self.seen_ids: set[bytes] = set()

    def begin(self) -> MemoryCapture:
        return MemoryCapture(self)

    def record_outcomes(self, delivery: DeliveryId, outcomes: Sequence[Outcome]) -> None:
        next(kept for kept in self.kept if kept.id == delivery).outcomes = list(outcomes)

    def seen(self, queue_id: bytes) -> bool:
        return queue_id in self.seen_ids or any(queue_id and kept.queue_id == queue_id for kept in self.kept)

    async def known_replies(
        self, queue_id: bytes, content: ContentId, besides: DeliveryId
    ) -> dict[bytes, bytes]:
        known: dict[bytes, bytes] = {}
        for kept in self.kept:
            if kept.queue_id == queue_id and content_id(kept.message) == content and kept.id != besides:
                replies = {outcome.recipient: outcome.reply for outcome in kept.outcomes}
                for number, recipient in enumerate(kept.envelope.recipients):
                    if not known.get(recipient.address, b"").startswith(b"2"):
                        known[recipient.address] = replies.get(number, b"")
        return known

    def read(self, content: ContentId) -> Iterator[bytes]:
        message = next(kept.message for kept in self.kept if content_id(kept.message) == content)
        for start in range(0, len(message), 1000):
            if self.read_fault and start:
                raise self.read_fault
            yield message[start : start + 1000]


class MemoryCapture(Capture):
    def __init__(self, capturer: MemoryCapturer) -> None:
        self._memory = capturer
        self._pieces: list[bytes] = []
        self._ended = False

    def feed(self, data: bytes) -> None:
        self._memory.fed += len(data)
        self._memory.largest_feed = max(self._memory.largest_feed, len(data))
        self._pieces.append(data)  # as the spool, which is there for what the store does not take
        if self._memory.feed_fault:
            raise self._memory.feed_fault

    @property
    def backlogged(self) -> bool:
        return self._memory.settle_gate is not None or self._memory.settle_s > 0

    async def settle(self) -> None:
        await asyncio.sleep(self._memory.settle_s)
        if self._memory.settle_gate:
            await self._memory.settle_gate.wait()

    async def commit(
        self,
        leg: Leg,
        envelope: Envelope,
        *,
        queue_id: bytes,
        attributes: Mapping[str, bytes],
        notes: Sequence[str] = (),
    ) -> Captured:
        if self._memory.commit_gate:
            await self._memory.commit_gate.wait()
        if self._memory.commit_fault:
            raise self._memory.commit_fault
        self._ended = True
        message = b"".join(self._pieces)
        if self._memory.uncaptured:
            return Captured(None, content_id(message), len(message))
        kept = Kept(new_delivery_id(now_us()), envelope, queue_id, dict(attributes), message)
        self._memory.kept.append(kept)
        return Captured(kept.id, content_id(message), len(message))

    def give_up(
        self, leg: Leg, envelope: Envelope, *, queue_id: bytes, attributes: Mapping[str, bytes], reason: str
    ) -> Captured:
        aside = b"" if self._ended else b"".join(self._pieces)
        self._ended = True
        self._memory.given_up.append((queue_id, reason, aside))
        return Captured(None, ContentId(b""), len(aside))

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._memory.aborted += 1
