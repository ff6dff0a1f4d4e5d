"""The trace fields on top of a message: what the last servers on its way wrote before it (RFC 5321 4.4).

Dovecot writes Return-Path, Delivered-To and Received before what LMTP brought it. So a message that was
captured on its way is, in the mailbox, the end of a longer one; and these fields tell the envelope. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEAD_BYTES = 64 << 10
"""as much of a message as is looked at"""
_MOST_FIELDS = 5
_FIELD = re.compile(
    rb"(?i)(return-path|delivered-to|x-original-to|envelope-to|delivery-date|x-sieve|received)[ \t]*:"
    rb"([^\n]*\n(?:[ \t][^\n]*\n)*)"
)
_RETURN_PATH = re.compile(rb"(?im)^return-path[ \t]*:[ \t]*(?:\r?\n[ \t]+)?<([^<>\r\n]*)>")
_HEADER_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class Traces:
    """`starts`: where the message may have begun before a server put trace fields on top, one for each field
    that can be taken away. `sender` is the first Return-Path (b"" is the null sender; None: there is none),
    `delivered_to` the first Delivered-To among these fields, in lower case, b"" for none."""

    starts: tuple[int, ...]
    sender: bytes | None
    delivered_to: bytes


def traces(head: bytes) -> Traces:
    """The traces in a message's first `HEAD_BYTES`."""
    starts: list[int] = []
    delivered_to = b""
    at = 0
    while len(starts) < _MOST_FIELDS and (field := _FIELD.match(head, at)):
        at = field.end()
        starts.append(at)
        if field[1].lower() == b"delivered-to" and not delivered_to:
            delivered_to = field[2].strip().strip(b"<>").lower()
    end = _HEADER_END.search(head)
    found = _RETURN_PATH.search(head, 0, end.start() if end else len(head))
    return Traces(tuple(starts), found[1] if found else None, delivered_to)
