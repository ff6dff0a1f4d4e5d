"""A message that was seen before, as after a lost connection: who has it already is not given it twice.

(queue id, content, recipient) with a known 2xx is answered with that reply. Everybody else is delivered to
from the store, where the message is by now; whether they got it the first time nobody can know (RFC 1047).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.capture import Captured
from sidecar.downstream import Downstream
from sidecar.front import policy
from sidecar.front.answers import Answers
from sidecar.front.transaction import Transaction
from sidecar.lmtp import Reply
from store.errors import StoreError
from store.ids import ContentId

if TYPE_CHECKING:
    from sidecar.front.session import LmtpFront


class Retry:
    """Brings a held back message to where only its end is missing downstream."""

    def __init__(
        self, session: LmtpFront, transaction: Transaction, downstream: Downstream, answers: Answers
    ) -> None:
        self._server = session.server
        self._queue_id = session.xforward.get("IDENT", b"")
        self._transaction = transaction
        self._answers = answers
        self._downstream = downstream

    async def prepare(self, captured: Captured, deadline: float) -> tuple[list[int], Reply | None]:
        """The places that `finish` will bring replies for, or a refusal of the message for all of them.

        Those who need no delivery are answered. Raises DownstreamError, and StoreError when the message
        cannot be read back.
        """
        if captured.delivery is None:
            # Let through uncaptured, but it was held back and is nowhere to be read from.
            self._server.cannot_resend(self._queue_id)
            return [], Reply.of(policy.NOT_KEPT)
        try:
            known = await self._server.capturer.known_replies(
                self._queue_id, captured.content, captured.delivery
            )
        except StoreError:  # an earlier record that cannot be read must not defer the mail for ever
            self._server.cannot_resend(self._queue_id)
            raise
        everybody = self._transaction.accepted
        rest = []
        unknown = 0
        for place in everybody:
            reply = known.get(self._transaction.recipients[place].address)
            if reply is not None and reply.startswith(b"2"):
                self._answers.give(place, reply + b"\r\n", "earlier")
            else:
                rest.append(place)
                unknown += reply == b""
        self._answers.tell()
        self._server.events.suppressed(len(everybody) - len(rest))
        self._server.events.redelivered(unknown)
        if len(rest) < len(everybody):
            await self._downstream.reset(deadline)
            rest = await self._begin_again(rest, deadline)
        if not rest:
            return [], None
        return rest, await self._send_stored(captured.content, deadline)

    async def _begin_again(self, places: list[int], deadline: float) -> list[int]:
        """A transaction of its own for these. Who is refused now is answered; the others are returned."""
        if not places:
            return []
        lines = [self._transaction.lines[place] for place in places]
        mail, *replies = await self._downstream.begin(
            self._transaction.mail_line, lines, self._server.limits.reply_timeout_s
        )
        accepted = []
        for place, reply in zip(places, replies, strict=True):
            if mail.positive and reply.positive:
                accepted.append(place)
            else:
                refusal = self._downstream.refusal(reply if mail.positive else mail)
                self._answers.give(place, refusal.raw, "downstream")
        self._answers.tell()
        if not accepted:
            await self._downstream.reset(deadline)
        return accepted

    async def _send_stored(self, content: ContentId, deadline: float) -> Reply | None:
        refusal = await self._downstream.open_body(deadline)
        pieces = self._server.capturer.read(content)
        try:
            while refusal is None and (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                refusal = self._downstream.body(piece)
                await self._downstream.drain(deadline)
        except StoreError:
            self._server.cannot_resend(self._queue_id)
            raise
        return refusal
