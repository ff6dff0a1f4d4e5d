"""The shared step: a message's bytes into the store, durably, whatever road it came by.

Both fronts use it: `Capturer.begin`, `feed`, then `commit` or `abort`. A commit that returns is durable. The
policy for when that cannot be had is here too: *tempfail* raises `CaptureFailedError`, and the front answers
451; *accept* spools the message if it can, counts it as uncaptured, and lets it through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.spool import Spool, Spooled
from store.deliveries import Query
from store.errors import DamagedError, SealedError, StoreError, StoreFullError
from store.ids import ContentId, DeliveryId, new_delivery_id, now_us
from store.ingest import Ingest, Receipt
from store.records import Delivery, Envelope, Leg, Outcome, Outcomes, Uncaptured
from store.rows import Term
from store.store import Store
from store.writer import Submission

log = logging.getLogger(__name__)

BACKLOG_BYTES = 1 << 20
"""a front stops reading while more than this of one message waits for the disk"""
_DRAIN_TIMEOUT_S = 60.0
_YOUNG_US = 2_000_000
_REPLY_WAIT_S = 0.5
"""another worker writes down what it was told a quarter of a second later, at most"""
RETRY_WINDOW_US = 30 * 86_400_000_000
"""how far back a queue id is looked for; Postfix gives up after 5 days by default"""


class CaptureFailedError(Exception):
    """The store could not make the message durable: answer 451. The text is for the log, not for the wire."""

    def __init__(self, text: str, *, full: bool = False) -> None:
        super().__init__(text)
        self.full = full
        """the disk is full: 4.3.1 says so to the client"""


@dataclass(frozen=True, slots=True)
class Captured:
    """A durable message. In accept mode `delivery` is None when it could not be captured."""

    delivery: DeliveryId | None
    content: ContentId
    size: int
    new_bytes: int = 0
    duplicate_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CaptureEvents:
    """What the metrics want to know. Called from any thread; must be quick and never raise."""

    captured: Callable[[Leg, Receipt], None] = lambda _leg, _receipt: None
    failed: Callable[[Leg, str], None] = lambda _leg, _reason: None
    uncaptured: Callable[[Leg, int], None] = lambda _leg, _size: None


class Others(Protocol):
    """Other processes that take mail for the same store: a retry may come to any of us."""

    def note_id(self, queue_id: bytes) -> None:
        """We are given mail under this queue id."""

    def has_id(self, queue_id: bytes) -> bool:
        """Whether one of us has been given mail under this queue id, not long ago."""

    def other_streams(self) -> list[str]:
        """The streams that the others write."""


class _Doorbell:
    """Brings results from the writer's thread to an event loop, one wake-up for a whole group."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._results: deque[tuple[asyncio.Future[None], StoreError | None]] = deque()
        self._rung = False

    def resolve(self, future: asyncio.Future[None], error: StoreError | None) -> None:
        """Called in the writer's thread."""
        self._results.append((future, error))
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._rung = False  # before emptying, so that a result added meanwhile rings again
        while self._results:
            future, error = self._results.popleft()
            if future.done():  # its waiter was cancelled; the commit itself went on
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


class Capturer:
    """Begins captures and keeps outcomes; one for the process, usable from any thread."""

    def __init__(
        self,
        store: Store,
        *,
        accept: bool = False,
        spool: Spool | None = None,
        events: CaptureEvents | None = None,
        others: Others | None = None,
    ) -> None:
        self.store = store
        self.others = others
        self.accept = accept
        self.spool = spool
        self.events = events or CaptureEvents()
        self._capturing = True
        self._unwritten: dict[DeliveryId, Outcomes] = {}
        self._doorbells: dict[asyncio.AbstractEventLoop, _Doorbell] = {}

    def begin(self) -> Capture:
        """A new message."""
        return Capture(self, self.store.begin())

    def record_outcomes(self, delivery: DeliveryId, outcomes: Sequence[Outcome]) -> None:
        """Keep the replies; rides the next group commit. Never blocks, never raises."""
        if outcomes:
            fact = Outcomes(delivery=delivery, time_us=now_us(), outcomes=tuple(outcomes))
            self._unwritten[delivery] = fact

            def written(_error: StoreError | None) -> None:
                self._unwritten.pop(delivery, None)

            self.store.writer.submit(Submission(entries=[fact], lazy=True, done=written))

    def seen(self, queue_id: bytes) -> bool:
        """Whether a delivery with this queue id is known, so that this may be a retry. Cheap.

        While messages cannot be captured nothing is taken for a retry: it could not be read back.
        """
        if not queue_id or not self._capturing or self.store.blind:
            return False  # blind: neither the replies nor the message could be read back
        # What another worker has just taken is not in the index yet, nor what it took before it was killed.
        if self.others is not None and self.others.has_id(queue_id):
            return True
        try:
            return self.store.may_be_retry(queue_id)
        except StoreError:
            log.exception("cannot tell whether %r is a retry; taken as new", queue_id)
            return False

    async def known_replies(
        self, queue_id: bytes, content: ContentId, besides: DeliveryId
    ) -> dict[bytes, bytes]:
        """What earlier LMTP deliveries of this queue id and content came to: recipient -> reply.

        A 2xx wins over what came later; b"" for a recipient whose reply is not known. `besides` is the
        delivery at hand.
        """
        in_thread = asyncio.get_running_loop().run_in_executor
        if self.others is None:
            return await in_thread(None, self._known_replies, queue_id, content, besides)
        known, young = await in_thread(None, self._replies_of_all, queue_id, content, besides)
        if young and b"" in known.values():
            await asyncio.sleep(_REPLY_WAIT_S)
            known, _ = await in_thread(None, self._replies_of_all, queue_id, content, besides)
        return known

    def _replies_of_all(
        self, queue_id: bytes, content: ContentId, besides: DeliveryId
    ) -> tuple[dict[bytes, bytes], bool]:
        """The same where other workers may have had the mail before; and whether one had it a moment ago, so
        that its replies may not be written down yet."""
        self._catch_up_with_others()
        known = self._known_replies(queue_id, content, besides)
        young = Query(since_us=now_us() - _YOUNG_US, terms=((Term.QUEUE_ID, queue_id),))
        return known, any(found.delivery.id != besides for found in self.store.deliveries(young))

    def _catch_up_with_others(self) -> None:
        for stream in self.others.other_streams() if self.others else ():
            try:
                self.store.state(stream)
            except (StoreError, OSError) as exc:
                log.warning("cannot tell what stream %s has of a retry: %s", stream, exc)

    def _known_replies(self, queue_id: bytes, content: ContentId, besides: DeliveryId) -> dict[bytes, bytes]:
        unwritten = dict(self._unwritten)  # first: what leaves it meanwhile is in the index after settling
        self.store.settle_index()
        known: dict[bytes, bytes] = {}
        recipients = {r.address.lower() for r in self.store.delivery(besides).delivery.envelope.recipients}
        # One recipient at a time: a list's message comes in many transactions under one queue id, and loading
        # them all for each of them would take longer and longer.
        for address in recipients:
            for stored in self.store.deliveries(
                Query(
                    since_us=now_us() - RETRY_WINDOW_US,
                    terms=((Term.QUEUE_ID, queue_id), (Term.RECIPIENT, address)),
                    newest_first=False,
                )
            ):
                delivery = stored.delivery
                if delivery.id == besides or (delivery.leg, delivery.content) != (Leg.LMTP, content):
                    continue
                outcomes = dict(stored.outcomes)
                if delivery.id in unwritten:
                    outcomes.update((fact.recipient, fact) for fact in unwritten[delivery.id].outcomes)
                _add_replies(known, delivery, outcomes)
        return known

    def read(self, content: ContentId) -> Iterator[bytes]:
        """A stored message's bytes in pieces, verified. Blocking. Raises `store.errors.StoreError`."""
        return self.store.read(content)

    def drain_spool(self, stopping: Callable[[], bool] = lambda: False, *, own: bool = False) -> int:
        """Bring what waits in the spool into the store, until `stopping`; returns how many. Blocking.

        Stops at the first message that the store refuses. A message that was captured but whose spool
        files outlived a crash is captured again: twice is better than not at all.
        """
        done = 0
        for delivery, message in self.spool.messages(own=own) if self.spool else ():
            if stopping():
                break
            ingest = self.store.begin()
            waiter = _Waiter()
            try:
                for piece in self.spool.read(message) if self.spool else ():
                    ingest.feed(piece)
                    if ingest.backlog > BACKLOG_BYTES:
                        taken = _Waiter()
                        ingest.hand_over(taken.done)
                        taken.wait(_DRAIN_TIMEOUT_S)
                ingest.commit(
                    delivery.leg, delivery.envelope,
                    queue_id=delivery.queue_id, attributes=delivery.attributes,
                    notes=(*delivery.notes, "from-spool"), time_us=delivery.time_us, done=waiter.done,
                )  # fmt: skip
                waiter.wait(_DRAIN_TIMEOUT_S)
            except (DamagedError, SealedError) as exc:
                log.error("it stays in the spool: %s", exc)
                continue
            except StoreError as exc:
                log.warning("the spool waits: %s", exc)
                break
            except OSError as exc:
                log.error("%s cannot be read and stays: %s", message, exc)
                continue
            if self.spool:
                self.spool.remove(message)
            done += 1
        return done

    def noted(self, *, captured: bool) -> None:
        """How the last commit went."""
        self._capturing = captured

    def doorbell(self, loop: asyncio.AbstractEventLoop) -> _Doorbell:
        """The way back from the writer's thread to `loop`."""
        bell = self._doorbells.get(loop)
        if bell is None:
            bell = self._doorbells[loop] = _Doorbell(loop)
        return bell


def _add_replies(known: dict[bytes, bytes], delivery: Delivery, outcomes: Mapping[int, Outcome]) -> None:
    for number, recipient in enumerate(delivery.envelope.recipients):
        outcome = outcomes.get(number)
        # A 451 of our own, as for a connection lost behind the message, says nothing of who has it.
        reply = outcome.reply if outcome is not None and outcome.source != "mailkeep" else b""
        if not known.get(recipient.address, b"").startswith(b"2"):
            known[recipient.address] = reply


class Capture:
    """One message on its way into the store; owned by one session. Ends with one commit or abort."""

    def __init__(self, capturer: Capturer, ingest: Ingest) -> None:
        self._capturer = capturer
        self._ingest = ingest
        self._fed = 0
        self._spooled: Spooled | None = None
        if capturer.accept and capturer.spool:
            self._spooled = capturer.spool.begin()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the message (unstuffed). Never blocks. Raises `CaptureFailedError`."""
        self._fed += len(data)
        if self._spooled:
            self._spooled.write(data)
        failure = self._capturer.store.writer.failure
        if failure is not None and not self._capturer.accept:
            raise CaptureFailedError(str(failure)) from failure
        self._ingest.feed(data)

    @property
    def size(self) -> int:
        """Bytes fed so far."""
        return self._ingest.size

    @property
    def backlogged(self) -> bool:
        """Whether much of this message waits for the disk: `settle` before feeding more."""
        return self._ingest.backlog > BACKLOG_BYTES

    async def settle(self) -> None:
        """Wait until the writer has taken what was fed. Raises `CaptureFailedError`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        bell = self._capturer.doorbell(loop)
        self._ingest.hand_over(lambda error: bell.resolve(future, error))
        with self._policy():
            await future

    def settle_blocking(self, timeout_s: float) -> None:
        """The same for threads; `CaptureFailedError` too when the time is over."""
        waiter = _Waiter()
        self._ingest.hand_over(waiter.done)
        with self._policy():
            waiter.wait(timeout_s)

    async def commit(
        self,
        leg: Leg,
        envelope: Envelope,
        *,
        queue_id: bytes,
        attributes: Mapping[str, bytes],
        notes: Sequence[str] = (),
    ) -> Captured:
        """Returns when the message is durable. Through LMTP, with no `queue_id`, the top Received header's id
        is taken; a milter does not see the Received header of its own MTA, so there it would be another's.

        Raises `CaptureFailedError`, in accept mode never. May be cancelled: the commit itself goes on.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        bell = self._capturer.doorbell(loop)
        delivery = self._ingest.commit(
            leg, envelope, queue_id=self._queue_id(leg, queue_id), attributes=attributes,
            notes=notes, done=lambda error: bell.resolve(future, error),
        )  # fmt: skip
        try:
            await future
        except StoreError as exc:
            return self._failed(leg, delivery, exc)
        return self._succeeded(leg, delivery)

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
        """The same for threads. Raises too when the time is over, though it may yet be captured."""
        waiter = _Waiter()
        delivery = self._ingest.commit(
            leg, envelope, queue_id=self._queue_id(leg, queue_id), attributes=attributes,
            notes=notes, done=waiter.done,
        )  # fmt: skip
        try:
            waiter.wait(timeout_s)
        except StoreError as exc:
            return self._failed(leg, delivery, exc)
        return self._succeeded(leg, delivery)

    def finish(self) -> ContentId:
        """No more bytes will come; what the message is called."""
        return self._ingest.finish()

    def top_received_id(self) -> bytes:
        """The id in the topmost Received header, b"" if none: the queue id when no XFORWARD told it."""
        return self._ingest.top_received_id()

    def abort(self) -> None:
        """Forget the message. Idempotent; does nothing after commit."""
        if self._spooled:
            self._spooled.discard()

    def give_up(
        self, leg: Leg, envelope: Envelope, *, queue_id: bytes, attributes: Mapping[str, bytes], reason: str
    ) -> Captured:
        """Let a message through uncaptured after a fault of our own (accept mode). Never raises.

        Spools it if it can, counts it, and notes it in the log if that can still be written.
        """
        content = ContentId(b"")
        now = now_us()
        delivery = Delivery(
            id=new_delivery_id(now), time_us=now, leg=leg, content=content, size=self._fed, envelope=envelope,
            queue_id=queue_id, attributes=dict(attributes),
        )  # fmt: skip
        self._capturer.noted(captured=False)
        self._capturer.events.failed(leg, "internal")
        return self._let_through(delivery, reason)

    def _let_through(self, delivery: Delivery, reason: str) -> Captured:
        kept = self._spooled.keep(delivery) if self._spooled else False
        log.critical(
            "message %s goes through UNCAPTURED, %s: %s",
            delivery.queue_id.decode(errors="replace") or "without queue id",
            "spooled" if kept else "and could not be spooled",
            reason,
        )
        self._capturer.events.uncaptured(delivery.leg, delivery.size)
        fact = Uncaptured(
            time_us=delivery.time_us, leg=delivery.leg, envelope=delivery.envelope,
            queue_id=delivery.queue_id, reason=reason,
        )  # fmt: skip
        self._capturer.store.writer.submit(Submission(entries=[fact], lazy=True))
        return Captured(None, delivery.content, delivery.size)

    def _queue_id(self, leg: Leg, told: bytes) -> bytes:
        queue_id = told or (self._ingest.top_received_id() if leg is Leg.LMTP else b"")
        if self._capturer.others is not None and queue_id and leg is Leg.LMTP:
            self._capturer.others.note_id(queue_id)
        return queue_id

    def _succeeded(self, leg: Leg, delivery: Delivery) -> Captured:
        if self._spooled:
            self._spooled.discard()
        receipt = self._ingest.receipt(delivery)
        if log.isEnabledFor(logging.DEBUG):
            queue_id = delivery.queue_id.decode(errors="replace") or "without queue id"
            log.debug("%s: captured as %s, %d bytes", queue_id, delivery.id.hex()[:10], receipt.size)
        self._capturer.noted(captured=True)
        self._capturer.events.captured(leg, receipt)
        return Captured(
            delivery.id, delivery.content, receipt.size, receipt.new_bytes, receipt.duplicate_bytes
        )

    def _failed(self, leg: Leg, delivery: Delivery, exc: StoreError) -> Captured:
        self._capturer.noted(captured=False)
        full = isinstance(exc, StoreFullError)
        reason = "timeout" if isinstance(exc, _TimedOutError) else "full" if full else "failed"
        self._capturer.events.failed(leg, reason)
        if not self._capturer.accept:
            raise CaptureFailedError(str(exc), full=full) from exc
        return self._let_through(delivery, str(exc))

    @contextlib.contextmanager
    def _policy(self) -> Iterator[None]:
        try:
            yield
        except StoreError as exc:
            # In accept mode the message goes on; its commit will fail and be dealt with there.
            if not self._capturer.accept:
                raise CaptureFailedError(str(exc), full=isinstance(exc, StoreFullError)) from exc


class _TimedOutError(StoreError):
    """The store did not answer in time."""


class _Waiter:
    """Lets a thread wait for the writer."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._error: StoreError | None = None

    def done(self, error: StoreError | None) -> None:
        """Called in the writer's thread."""
        self._error = error
        self._event.set()

    def wait(self, timeout_s: float) -> None:
        """Raises what the writer reported, or `_TimedOutError`."""
        if not self._event.wait(timeout_s):
            raise _TimedOutError(f"the store did not answer within {timeout_s:g} s")
        if self._error is not None:
            raise self._error
