"""The shared step: a message's bytes into the store, durably, whatever road it came by.

INTERFACE DRAFT (the lead fills in the bodies; fronts code against these signatures).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from store.ids import ContentId, DeliveryId
from store.records import Envelope, Leg, Outcome


class CaptureFailedError(Exception):
    """The store could not make the message durable; answer 451 (str() is for the log, not for the wire)."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A durable message. In accept mode `delivery` is None when the message could not be captured."""

    delivery: DeliveryId | None
    content: ContentId
    size: int


class Capture:
    """One message on its way into the store; owned by one session. Ends with one commit or abort."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the message (unstuffed). Raises CaptureFailedError. Never blocks."""
        raise NotImplementedError

    @property
    def backlogged(self) -> bool:
        """True when bytes handed over are not yet written out: call settle before feeding more."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Wait (asyncio) until the backlog is written. Raises CaptureFailedError."""
        raise NotImplementedError

    def settle_blocking(self, timeout_s: float) -> None:
        """The same for threads."""
        raise NotImplementedError

    async def commit(
        self,
        leg: Leg,
        envelope: Envelope,
        *,
        queue_id: bytes,
        attributes: Mapping[str, bytes],
        notes: Sequence[str] = (),
    ) -> Captured:
        """Returns when the message is durable. queue_id b"": taken from the top Received header.

        Raises CaptureFailedError (in accept mode never: then Captured.delivery is None).
        Safe to be cancelled: the commit itself goes on.
        """
        raise NotImplementedError

    def commit_blocking(
        self,
        leg: Leg,
        envelope: Envelope,
        *,
        queue_id: bytes,
        attributes: Mapping[str, bytes],
        notes: Sequence[str] = (),
        timeout_s: float,
    ) -> Captured:
        """The same for threads (the milter); CaptureFailedError too when `timeout_s` runs out."""
        raise NotImplementedError

    def abort(self) -> None:
        """Forget the message. Idempotent; does nothing after commit."""
        raise NotImplementedError


class Capturer:
    """Begins captures and keeps outcomes; one for the process, usable from any thread."""

    def begin(self) -> Capture:
        """A new message."""
        raise NotImplementedError

    def record_outcomes(self, delivery: DeliveryId, outcomes: Sequence[Outcome]) -> None:
        """Keep the replies; rides the next group commit. Never blocks, never raises."""
        raise NotImplementedError

    def seen(self, queue_id: bytes) -> bool:
        """Whether an earlier LMTP delivery had this queue id, i.e. whether this may be a retry. Cheap."""
        raise NotImplementedError

    async def known_replies(self, queue_id: bytes, content: ContentId) -> dict[bytes, bytes]:
        """Recipient address -> the 2xx reply it got, over earlier LMTP deliveries of this queue id and content."""
        raise NotImplementedError

    def read(self, content: ContentId) -> Iterator[bytes]:
        """A stored message's bytes in pieces, verified; raises store.errors.StoreError. Blocking: use a thread."""
        raise NotImplementedError
