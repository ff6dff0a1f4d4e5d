"""What became of a delivery, in one word, from the replies that its recipients got."""

from __future__ import annotations

import enum

from store.deliveries import StoredDelivery
from store.records import Leg


class Status(enum.StrEnum):
    """The words of `--status`."""

    DELIVERED = "delivered"
    """every recipient got a 2xx reply"""
    PARTIAL = "partial"
    """some got a 2xx reply, others a refusal or none yet"""
    REFUSED = "refused"
    """every recipient has a reply and none is 2xx"""
    PENDING = "pending"
    """replies are missing and none that is known is 2xx"""
    OFFERED = "offered"
    """seen where there are no replies for each recipient: the milter leg"""
    IMPORTED = "imported"
    """taken in from elsewhere"""


def status_of(stored: StoredDelivery) -> Status:
    """The status of a delivery."""
    if stored.delivery.leg == Leg.IMPORT:
        return Status.IMPORTED
    if stored.delivery.leg != Leg.LMTP:
        return Status.OFFERED
    recipients = len(stored.delivery.envelope.recipients)
    accepted = sum(outcome.reply.startswith(b"2") for outcome in stored.outcomes.values())
    if accepted:
        return Status.DELIVERED if accepted >= recipients else Status.PARTIAL
    return Status.REFUSED if len(stored.outcomes) >= recipients > 0 else Status.PENDING
