"""A message as text to be read on a terminal: its header fields, its text, its attachments by name and size.

Every line is free of controls (`sidecar.readable.escaped`). Bounded in memory, lines and time, whatever the
message; what is left out is said.
"""

from __future__ import annotations

import binascii
import codecs
import quopri
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from itertools import islice

from sidecar.browse.html import html_text
from sidecar.browse.parts import Part, Scan
from sidecar.readable import escaped, header_text, text
from sidecar.units import format_size
from store.errors import DamagedError, NotFoundError

FIELDS = ("From", "To", "Cc", "Reply-To", "Date", "Subject")
_MOST_LINES = 2000
_MOST_LINE = 4000
_MOST_FIELD = 1000
_MOST_ATTACHMENTS = 50
_MOST_SIGNS = 128 << 10
"""characters of all texts together: the screen wraps them in one go"""
_READ_BYTES = 256 << 20
_NO_CHARSETS = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7"})
"""codecs of Python's that no mail means, or that are slow with malicious input"""


@dataclass(frozen=True, slots=True)
class Preview:
    """Lines to be shown; `fields` are (name, value), and `note` says what is missing."""

    fields: tuple[tuple[str, str], ...]
    body: tuple[str, ...]
    attachments: tuple[str, ...] = ()
    note: str = ""


def preview(pieces: Iterable[bytes], stopped: Callable[[], bool] = lambda: False) -> Preview | None:
    """What a message says; None when it was `stopped`, which is asked before each piece. What came before a
    damaged place is shown, and the damage told. Raises `StoreError`."""
    scan = Scan()
    note = ""
    taken = 0
    try:
        for piece in pieces:
            if stopped():
                return None
            if taken > _READ_BYTES:
                note = f"only the first {format_size(taken)} were looked at"
                break
            scan.feed(piece)
            taken += len(piece)
            if scan.more:
                break
    except (DamagedError, NotFoundError) as exc:
        note = escaped(f"what follows cannot be read: {exc}")
    return _told(scan.finish(), note)


def _told(scan: Scan, note: str) -> Preview:
    read = list(_to_read(scan.parts))
    lines: list[str] = []
    for part in read:
        if lines:
            lines.append("")
        lines += _lines(part)
    shown = list(_first(lines))
    if len(shown) < len(lines) or any(part.cut for part in read):
        note = note or "only the beginning is shown"
    others = [part for part in scan.parts if part not in read and not _is_alternative(part, read)]
    told = [_attachment(part) for part in others[:_MOST_ATTACHMENTS]]
    if len(others) > _MOST_ATTACHMENTS or scan.more:
        told.append("and more")
    return Preview(tuple(_fields(scan.header)), tuple(shown), tuple(told), note)


def _first(lines: list[str]) -> Iterator[str]:
    room = _MOST_SIGNS
    for line in lines[:_MOST_LINES]:
        room -= len(line)
        if room < 0:
            return
        yield line


def _to_read(parts: list[Part]) -> Iterator[Part]:
    """The plain texts; HTML only where there is none."""
    texts = [part for part in parts if part.is_text]
    plain = [part for part in texts if part.kind == "text/plain" and (part.size or part.kept)]
    yield from islice(plain or texts, 10)


def _is_alternative(part: Part, read: list[Part]) -> bool:
    return part.kind == "text/html" and part.is_text and not part.name and bool(read)


def _fields(header: Message) -> Iterator[tuple[str, str]]:
    found = list(header.raw_items())
    for name in FIELDS:
        values = [value for other, value in found if other.lower() == name.lower()]
        for value in values[:2]:
            yield name, escaped(_field_text(str(value))[:_MOST_FIELD])


def _field_text(value: str) -> str:
    """A field's value as `email` keeps it: bytes that are no ASCII are surrogates."""
    return " ".join(header_text(value.encode("utf-8", "surrogateescape")).split())


def _attachment(part: Part) -> str:
    name = _field_text(part.name) or "(no name)"
    return escaped(f"{name[:200]}  {part.kind[:80]}, {format_size(part.size)}")


def _lines(part: Part) -> list[str]:
    said = _decoded(part)
    if part.kind == "text/html":
        said = html_text(said)
    lines = said.replace("\r\n", "\n").rstrip("\n").split("\n")
    return [
        escaped(line[:_MOST_LINE].expandtabs(8)[:_MOST_LINE].rstrip()) for line in lines[: _MOST_LINES + 1]
    ]


def _decoded(part: Part) -> str:
    raw = part.kept
    if part.encoding == "base64":
        signs = raw.translate(None, b" \t\r\n")
        with suppress(binascii.Error):  # it is no base64: shown as it stands there
            raw = binascii.a2b_base64(signs[: len(signs) // 4 * 4])
    elif part.encoding == "quoted-printable":
        raw = quopri.decodestring(raw)
    try:
        charset = codecs.lookup(str(part.header.get_content_charset("utf-8"))).name
        return text(raw) if charset in _NO_CHARSETS | {"utf-8"} else raw.decode(charset, "replace")
    except (LookupError, ValueError, TypeError):
        return text(raw)
