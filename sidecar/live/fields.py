"""The header fields that name a message to whoever looks for it. Pure."""

from __future__ import annotations

import re

_FIELD = re.compile(rb"(?im)^(message-id|date)[ \t]*:[ \t]*((?:[^\r\n]|\r?\n[ \t])*)")
_LINE_END = re.compile(rb"\r?\n")


def id_and_date(header: bytes) -> tuple[bytes, bytes]:
    """The Message-ID and Date of a header block, unfolded, b"" for none; the first of several, as the store
    has it."""
    fields: dict[bytes, bytes] = {}
    for found in _FIELD.finditer(header):
        fields.setdefault(found[1].lower(), _LINE_END.sub(b"", found[2]).strip())
    return fields.get(b"message-id", b""), fields.get(b"date", b"")
