"""Bytes from mail as text that a person or a JSON reader may be given.

What mail says is hostile until shown otherwise: bytes that are no UTF-8 come out as U+FFFD, encoded words
(RFC 2047) that cannot be decoded stay as they are, and `escaped` leaves nothing in that could drive a
terminal. Nothing here raises, whatever the bytes.
"""

from __future__ import annotations

import re

from store.header_text import header_text, text

__all__ = ["escaped", "header_text", "text"]

# C0 and C1 controls move cursors and set colours; the bidirectional ones turn an address round.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def escaped(shown: str) -> str:
    r"""`shown` without any control character: each is written out, as in `\x1b`."""
    return _CONTROL.sub(_escape, shown)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
