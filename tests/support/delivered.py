"""What a mailbox server has made of a message: its own header fields taken off again."""

from __future__ import annotations

import re

from sidecar.demo.dovecot import PrivateDovecot

_TRACE = re.compile(rb"(?:(?:Return-Path|Delivered-To):.*\r\n)*Received:.*\r\n(?:[ \t].*\r\n)*")
_RECEIVED = re.compile(rb"Received:.*\r\n(?:[ \t].*\r\n)*")


def as_received(stored: bytes) -> bytes:
    """A message in a mailbox without the fields that Dovecot put on top of what LMTP gave it."""
    trace = _TRACE.match(stored)
    assert trace, stored[:300]
    return stored[trace.end() :]


def without_first_received(message: bytes) -> bytes:
    """A message as it leaves Postfix, without the field that Postfix put on top."""
    received = _RECEIVED.match(message)
    assert received, message[:300]
    return message[received.end() :]


def inbox(dovecot: PrivateDovecot, user: str) -> list[bytes]:
    """All messages of a user as LMTP gave them, oldest first."""
    with dovecot.mailbox(user) as mailbox:
        return [as_received(stored.raw) for stored in mailbox.messages()]
