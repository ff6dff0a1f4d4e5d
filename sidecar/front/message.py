"""One message, from 354 to the last reply: taken in, made durable, released, answered.

The order is the promise: bytes go to the store and, as they come, to the mailbox server, which is not given
the message's end before the store has made it durable; then each of its replies is relayed as it arrives, and
they are written down. Once the message has ended, nothing the client does (going away included) stops this.

Faults on our side are 451; with the policy *accept*, those of the capture let the message pass. The rest of a
message that failed is still read up to its end, for only there does the client listen again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidecar.capture import Captured, CaptureFailedError
from sidecar.downstream import BARE_NEWLINE, Downstream, DownstreamError
from sidecar.front import policy
from sidecar.front.answers import Answers
from sidecar.front.pace import Pace
from sidecar.front.retry import Retry
from sidecar.front.transaction import Transaction
from sidecar.lmtp import DotReader, Reply
from store.records import Leg

if TYPE_CHECKING:
    from sidecar.front.session import LmtpFront

log = logging.getLogger(__name__)


class Message:
    """Owned by a session's task; `run` is called once.

    `held_back`: this may be a retry (its queue id was seen before), so nothing of it goes downstream before
    it is known who still needs it.
    """

    def __init__(
        self, session: LmtpFront, transaction: Transaction, downstream: Downstream, *, held_back: bool
    ) -> None:
        self._session = session
        self._transaction = transaction
        self._held_back = held_back
        self._limits = session.server.limits
        self._events = session.server.events
        self._capturer = session.server.capturer
        self._capture = self._capturer.begin()
        self._keeping = True
        self._whole = True  # the capture was given every byte
        self._fault = ""  # why it was given up, in accept mode
        self._pace = Pace(self._limits, session.wakeup.now)
        self._downstream = downstream
        self._answers = Answers(session, transaction)
        self._downstream_s: float | None = None
        # What everybody without an answer is told, and by whom; nothing more goes downstream then.
        self._verdict: tuple[bytes, str] | None = None

    async def run(self) -> bool:
        """Whether the message's end was seen and the session can go on.

        Raises TimeoutError when the client falls silent before that.
        """
        self._events.in_flight(+1)
        try:
            if not await self._receive():
                return False
            await self._conclude()
            return True
        finally:
            self._capture.abort()  # does nothing after a commit
            self._events.in_flight(-1)

    # -- taking it in

    async def _receive(self) -> bool:
        """Read up to the end of DATA. False when the client went away before it."""
        session = self._session
        reader = DotReader()
        while await session.more(self._limits.idle_timeout_s, self._pace.client_deadline()):
            piece, rest = reader.feed(session.take())
            if piece:
                self._events.received(len(piece))
                deadline = self._pace.came(len(piece))
                await self._keep(piece)
                if not self._held_back and self._verdict is None:
                    await self._pass_on(piece, deadline)
            if reader.ended:
                session.give_back(rest)
                return True
        return False

    async def _keep(self, piece: bytes) -> None:
        if not self._keeping:
            self._whole = False
            return
        try:
            self._capture.feed(piece)
            if self._capture.backlogged:
                began = self._session.wakeup.now()
                try:
                    # Half of what both may take: the mailbox server's turn is after this.
                    async with asyncio.timeout(
                        min(self._limits.reply_timeout_s / 2, self._pace.store.left_s)
                    ):
                        await self._capture.settle()
                finally:
                    self._pace.waited(self._pace.store, began)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is logged, and answered with 451 or counted
            self._not_kept(exc)

    async def _pass_on(self, piece: bytes, deadline: float) -> None:
        """To the mailbox server. Whatever it makes of it, the message is captured to its end."""
        try:
            self._refused_by(self._downstream.body(piece))
            if self._downstream.paused and self._verdict is None:
                # Not reading on meanwhile is what slows the client down.
                began = self._session.wakeup.now()
                try:
                    await self._downstream.drain(min(deadline, began + self._pace.server.left_s))
                finally:
                    self._pace.waited(self._pace.server, began)
        except DownstreamError as exc:
            self._failed(exc.reply.raw, exc)

    # -- concluding it

    async def _conclude(self) -> None:
        """Commit, release, relay, write down. Also when the client is gone; bounded by its own deadline."""
        deadline = self._pace.delivery_deadline()
        captured: Captured | None = None
        try:
            async with asyncio.timeout_at(deadline):
                captured = await self._commit(deadline)
                if captured is not None and self._verdict is None:
                    await self._deliver(captured, deadline)
        except DownstreamError as exc:
            self._failed(exc.reply.raw, exc)
        except TimeoutError as exc:
            self._failed(policy.OUT_OF_TIME, exc)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is logged and answered with 451
            self._failed(policy.INTERNAL_ERROR, exc)
        finally:
            # Reached too when a shutdown has run out of patience: what is known is kept then.
            if self._verdict is not None:
                self._downstream.abort()
                self._answers.give_rest(*self._verdict)
                self._answers.tell()
            if captured is not None and captured.delivery is not None:
                self._capturer.record_outcomes(captured.delivery, self._answers.outcomes)
            self._events.answered(self._answers.outcomes, self._downstream_s)

    async def _commit(self, deadline: float) -> Captured | None:
        """None when it is not kept and must not be delivered."""
        if self._keeping:
            now = self._session.wakeup.now()
            try:
                # Where mail goes on without being kept, there must be time left for that.
                async with asyncio.timeout_at((now + deadline) / 2 if self._capturer.accept else None):
                    return await self._capture.commit(
                        Leg.LMTP,
                        self._transaction.record(),
                        queue_id=self._session.xforward.get("IDENT", b""),
                        attributes=self._session.xforward,
                    )
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is logged, and answered with 451 or counted
                self._not_kept(exc)
        return self._let_through() if self._fault else None

    def _let_through(self) -> Captured:
        """Accept mode after a fault of our own: the message goes on, and that it is missing is known."""
        if not self._whole:
            self._capture.abort()  # half a message must not be put aside as a whole one
        return self._capture.give_up(
            Leg.LMTP,
            self._transaction.record(),
            queue_id=self._session.xforward.get("IDENT", b""),
            attributes=self._session.xforward,
            reason=self._fault,
        )

    async def _deliver(self, captured: Captured, deadline: float) -> None:
        """Only called with the message durable (or let through by policy). Raises DownstreamError."""
        recipients: Sequence[int] = self._transaction.accepted
        if self._held_back:
            retry = Retry(self._session, self._transaction, self._downstream, self._answers)
            recipients, refusal = await retry.prepare(captured, deadline)
            self._refused_by(refusal)
            if not recipients or self._verdict is not None:
                return
        began = self._session.wakeup.now()
        self._refused_by(await self._downstream.finish(len(recipients), deadline))
        if self._verdict is not None:
            return
        for recipient in recipients:
            reply = self._downstream.next_reply()
            if reply is None:
                self._answers.tell()
                reply = await self._downstream.reply(deadline)
            if not reply.positive:
                self._downstream.refusal(reply)
            self._answers.give(recipient, reply.raw, "downstream")
        self._answers.tell()
        self._downstream_s = self._session.wakeup.now() - began

    # -- what goes wrong

    def _refused_by(self, refusal: Reply | None) -> None:
        if refusal is not None:
            self._verdict = (refusal.raw, "mailkeep" if refusal is BARE_NEWLINE else "downstream")

    def _not_kept(self, exc: Exception) -> None:
        """Without a durable copy there is no delivery: the mailbox server is left without an end.

        In accept mode there is, and no fault of ours may stop it.
        """
        self._keeping = False
        if self._capturer.accept:
            late = isinstance(exc, TimeoutError)
            self._fault = "the store took too long" if late else str(exc) or type(exc).__name__
            log.critical(
                "%s: capturing stopped: %s", self._name(), self._fault, exc_info=None if late else exc
            )
            if not late:
                self._events.fault()
            return
        self._capture.abort()
        self._downstream.abort()
        if isinstance(exc, CaptureFailedError):
            self._failed(policy.STORE_FULL if exc.full else policy.NOT_KEPT, exc)
        elif isinstance(exc, TimeoutError):
            self._failed(policy.NOT_KEPT, exc)
        else:
            self._failed(policy.INTERNAL_ERROR, exc)

    def _failed(self, reply: bytes, exc: Exception) -> None:
        self._verdict = (reply, "mailkeep")
        unexpected = reply is policy.INTERNAL_ERROR
        log.error(
            "%s: message answered with %s: %s",
            self._name(),
            reply.decode("ascii").rstrip(),
            str(exc) or type(exc).__name__,
            exc_info=exc if unexpected else None,
        )
        if unexpected:
            self._events.fault()
        elif isinstance(exc, DownstreamError):
            self._events.downstream_failed()

    def _name(self) -> str:
        return self._session.xforward.get("IDENT", b"no queue id").decode("ascii", "backslashreplace")
