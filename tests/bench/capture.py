"""Messages through the store's capture path as the service takes them: many in flight, each durable alone.

Every delivery has XFORWARD attributes and gets the mailbox server's reply recorded, since these take their
place in a store too.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from store.errors import StoreError
from store.ids import DeliveryId
from store.records import Delivery, Envelope, Leg, Outcome, Outcomes, Recipient
from store.store import Store
from store.writer import Submission

PIECE_BYTES = 256 << 10


class Mail(NamedTuple):
    """One transaction to be captured."""

    message: bytes
    sender: bytes
    recipients: tuple[bytes, ...]
    queue_id: bytes
    time_us: int | None = None


class Captures:
    """At most `most` messages wait for their flush; `put` blocks until it may go on. For one thread."""

    def __init__(self, store: Store, most: int) -> None:
        self.last: DeliveryId | None = None
        """the latest delivery that is known to be durable"""
        self._store = store
        self._most = most
        self._failure: StoreError | None = None
        self._durable: deque[list[Delivery]] = deque()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(most):
            self._places.put(None)

    def put(self, mail: Mail, durable: Callable[[], None] | None = None) -> Delivery:
        """Hand one message over; `durable` is called in the writer's thread. Raises `StoreError`."""
        self._places.get()
        self._reply()
        made: list[Delivery] = []

        def done(error: StoreError | None) -> None:
            if error:
                self._failure = error
            else:
                self._durable.append(made)
                if durable:
                    durable()
            self._places.put(None)

        ingest = self._store.begin()
        if len(mail.message) <= PIECE_BYTES:
            ingest.feed(mail.message)
        else:
            for start in range(0, len(mail.message), PIECE_BYTES):
                ingest.feed(mail.message[start : start + PIECE_BYTES])
        delivery = ingest.commit(
            Leg.LMTP,
            Envelope(mail.sender, tuple(Recipient(address) for address in mail.recipients)),
            queue_id=mail.queue_id,
            attributes={
                "NAME": b"mx1.example.org",
                "ADDR": b"192.0.2.25",
                "PROTO": b"ESMTP",
                "HELO": b"mx1.example.org",
                "IDENT": mail.queue_id,
                "SOURCE": b"REMOTE",
            },
            time_us=mail.time_us,
            done=done,
        )
        made.append(delivery)
        return delivery

    def drain(self) -> None:
        """Wait until all are durable. Raises `StoreError`."""
        for _ in range(self._most):
            self._places.get()
        for _ in range(self._most):
            self._places.put(None)
        self._reply()

    def _reply(self) -> None:
        if self._failure:
            raise self._failure
        while self._durable and self._durable[0]:
            [delivery] = self._durable.popleft()
            self.last = delivery.id
            replies = tuple(
                Outcome(number, b"250 2.0.0 <%s> %s Saved" % (who.address, delivery.id.hex().encode()[:16]))
                for number, who in enumerate(delivery.envelope.recipients)
            )
            fact = Outcomes(delivery=delivery.id, time_us=delivery.time_us, outcomes=replies)
            self._store.writer.submit(Submission(entries=[fact], lazy=True))


def timed(store: Store, mails: list[Mail], most: int) -> float:
    """Seconds for all of them, from the first byte to the last flush."""
    captures = Captures(store, most)
    began = time.perf_counter()
    for mail in mails:
        captures.put(mail)
    captures.drain()
    return time.perf_counter() - began
