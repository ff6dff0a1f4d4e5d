"""The canary: a mail that goes the way that mail goes, and is looked for in the store.

Nothing about it is like another mail, so that it is captured anew and not found to be there already.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import smtplib
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from sidecar.downstream import DownstreamError
from sidecar.drill.restore import Sender
from sidecar.readable import text
from sidecar.units import Address
from store.deliveries import Query, StoredDelivery
from store.ids import DeliveryId, now_us
from store.records import Leg
from store.rows import Term
from store.store import Store

_ATTACHMENT_BYTES = 6_000
_LOOK_S = 0.1
_CLOCK_US = 60_000_000


class CanaryError(Exception):
    """The canary did not get where it should; the text says how far it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the canary is handed in, and for whom. Over LMTP that is mailkeep itself, else (`smtp`) Postfix.

    `leg` is the one that must capture it: only the LMTP leg knows what the mailbox server answered."""

    address: Address
    smtp: bool
    sender: bytes
    recipient: bytes
    timeout_s: float
    leg: Leg = Leg.LMTP

    def __str__(self) -> str:
        return f"{'SMTP' if self.smtp else 'LMTP'} {self.address}"


@dataclass(frozen=True, slots=True)
class Canary:
    """It came through: under which id, how long until the store had it, the mailbox server's reply (empty
    where the leg does not see it)."""

    id: DeliveryId
    seconds: float
    reply: bytes
    size: int


def make_canary(route: Route) -> tuple[bytes, bytes]:
    """Its Message-ID, and a message in which nothing has to be added or mended on the way."""
    token = secrets.token_hex(12).encode()
    message_id = b"<drill-%s@mailkeep.invalid>" % token
    file = base64.encodebytes(secrets.token_bytes(_ATTACHMENT_BYTES)).replace(b"\n", b"\r\n")
    message = (
        b"From: mailkeep drill <%(from)s>\r\nTo: <%(to)s>\r\nDate: %(date)s\r\nMessage-ID: %(id)s\r\n"
        b"Subject: mailkeep drill %(token)s\r\nAuto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="drill-%(token)s"\r\n\r\n'
        b"--drill-%(token)s\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
        b"Sent by `mailkeep drill`, which proves that mail is kept and comes back.\r\nIt may be deleted.\r\n"
        b"--drill-%(token)s\r\nContent-Type: application/octet-stream\r\n"
        b'Content-Disposition: attachment; filename="drill-%(token)s.bin"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n%(file)s--drill-%(token)s--\r\n"
    ) % {
        b"from": route.sender or route.recipient, b"to": route.recipient, b"id": message_id, b"token": token,
        b"date": formatdate().encode(), b"file": file,
    }  # fmt: skip
    return message_id, message


async def fly(store: Store, route: Route, *, step: Callable[[], None]) -> Canary:
    """Send one, wait until the store has it with its reply, and compare. `step` is called now and
    then. Raises `CanaryError`, `StoreError`."""
    message_id, message = make_canary(route)
    began, began_us = time.monotonic(), now_us()
    said = await _hand_in(route, message)
    if not said.startswith(b"2"):
        raise CanaryError(f"the canary was refused by {route}: {text(said)}")
    query = Query(since_us=began_us - _CLOCK_US, terms=((Term.MESSAGE_ID, message_id),))
    while True:
        store.refresh()
        everywhere = list(store.deliveries(query))
        found = [stored for stored in everywhere if stored.delivery.leg == route.leg]
        arrived = next((stored for stored in found if route.leg != Leg.LMTP or _delivered(stored)), None)
        if arrived is not None:
            break
        refused = next((reply for stored in found if (reply := _reply(stored)).startswith(b"5")), None)
        if refused is not None:
            raise CanaryError(f"the canary was captured, but the mailbox server said: {text(refused)}")
        if time.monotonic() - began > route.timeout_s:
            raise CanaryError(_how_far(route, found, offered=len(everywhere) > len(found)))
        await asyncio.sleep(_LOOK_S)
        step()
    seconds = time.monotonic() - began
    captured = b"".join(store.read(arrived.delivery.content))
    if not captured.endswith(message):
        raise CanaryError(
            f"the canary was captured as {arrived.delivery.id.hex()[:10]}, but not as it was sent: "
            "something on the way altered it"
        )
    return Canary(arrived.delivery.id, seconds, _reply(arrived), arrived.delivery.size)


def _delivered(stored: StoredDelivery) -> bool:
    return bool(stored.outcomes) and all(
        outcome.reply.startswith(b"2") for outcome in stored.outcomes.values()
    )


def _reply(stored: StoredDelivery) -> bytes:
    return next((outcome.reply for outcome in stored.outcomes.values()), b"")


def _how_far(route: Route, found: list[StoredDelivery], *, offered: bool) -> str:
    waited = f"in {route.timeout_s:g} s"
    if not found and offered:
        return (
            f"the canary was taken by {route} and seen by the milter, but did not come through LMTP {waited}:"
            " the mailbox server is away, or does not know the recipient (Postfix's log says which)"
        )
    if not found:
        return f"the canary was taken by {route}, but is not in the store {waited}"
    if reply := next(filter(None, map(_reply, found)), b""):
        return f"the canary was captured, but the mailbox server took none {waited}, and said: {text(reply)}"
    return f"the canary was captured, but no reply of the mailbox server is on record {waited}"


async def _hand_in(route: Route, message: bytes) -> bytes:
    """The reply to it. Raises `CanaryError` when there is none."""
    try:
        if route.smtp:
            return await asyncio.to_thread(_by_smtp, route, message)
        sender = Sender(route.address, route.timeout_s)
        try:
            return await sender.send(route.sender, route.recipient, [message])
        finally:
            sender.close()
    except (DownstreamError, OSError, smtplib.SMTPException) as exc:
        raise CanaryError(f"the canary cannot be handed in by {route}: {exc}") from exc


def _by_smtp(route: Route, message: bytes) -> bytes:
    host, port, timeout_s = route.address.host, route.address.port, route.timeout_s
    with smtplib.SMTP(host, port, local_hostname="mailkeep.drill", timeout=timeout_s) as smtp:
        smtp.ehlo_or_helo_if_needed()
        options = [] if (route.sender + route.recipient).isascii() else ["SMTPUTF8"]
        said = smtp.mail(route.sender.decode(), options)
        if said[0] < 300:
            said = smtp.rcpt(route.recipient.decode())
        if said[0] < 300:
            said = smtp.data(message)
        return b"%d %s" % said
