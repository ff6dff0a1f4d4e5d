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
from html.parser import HTMLParser
from itertools import islice

from sidecar.browse.parts import Part, Scan
from sidecar.readable import escaped, header_text, text
from sidecar.units import format_size
from store.errors import DamagedError, NotFoundError

FIELDS = ("From", "To", "Cc", "Reply-To", "Date", "Subject")
_MOST_LINES = 2000
_MOST_LINE = 4000
_MOST_FIELD = 1000
_MOST_ATTACHMENTS = 50
_MOST_HTML = 64 << 10
"""Python's parser takes its time over malicious HTML: a second with this much"""
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
    if len(lines) > _MOST_LINES:
        lines, note = [*lines[:_MOST_LINES], "…"], note or "only the beginning is shown"
    if any(part.cut for part in read):
        note = note or "only the beginning is shown"
    others = [part for part in scan.parts if part not in read and not _is_alternative(part, read)]
    told = [_attachment(part) for part in others[:_MOST_ATTACHMENTS]]
    if len(others) > _MOST_ATTACHMENTS or scan.more:
        told.append("and more")
    return Preview(tuple(_fields(scan.header)), tuple(lines), tuple(told), note)


def _to_read(parts: list[Part]) -> Iterator[Part]:
    """The plain texts; HTML only where there is none."""
    texts = [part for part in parts if part.is_text]
    plain = [part for part in texts if part.kind == "text/plain" and (part.size or part.kept)]
    yield from islice(plain or texts, 10)


def _is_alternative(part: Part, read: list[Part]) -> bool:
    return part.kind == "text/html" and part.is_text and not part.name and bool(read)


def _fields(header: Message) -> Iterator[tuple[str, str]]:
    for name in FIELDS:
        for raw in header.get_all(name, [])[:2]:
            yield name, escaped(_field_text(raw)[:_MOST_FIELD])


def _field_text(raw: object) -> str:
    """A field's value as `email` gave it: bytes that are no ASCII came out as surrogates."""
    value = str(raw)
    try:
        data = value.encode("ascii", "surrogateescape")
    except UnicodeEncodeError:  # a `Header` object, decoded already
        data = value.encode("utf-8", "replace")
    return " ".join(header_text(data).split())


def _attachment(part: Part) -> str:
    name = _field_text(part.name) or "(no name)"
    return escaped(f"{name[:200]}  {part.kind[:80]}, {format_size(part.size)}")


def _lines(part: Part) -> list[str]:
    said = _decoded(part)
    if part.kind == "text/html":
        said = html_text(said[:_MOST_HTML])
    lines = said.replace("\r\n", "\n").rstrip("\n").split("\n")
    return [escaped(line[:_MOST_LINE].expandtabs(8).rstrip()) for line in lines[: _MOST_LINES + 1]]


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


class _Reader(HTMLParser):
    """The words of HTML, a line for each block."""

    _HIDDEN = frozenset({"script", "style", "head", "title", "template", "noscript"})
    _BLOCKS = frozenset(
        "p div br tr table ul ol li h1 h2 h3 h4 h5 h6 blockquote pre hr section article header footer".split()  # noqa: SIM905 - a list of words
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.said: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - its signature
        """Called by the parser."""
        if tag in self._HIDDEN and tag != "body":
            self._hidden.append(tag)
        elif tag == "body":
            self._hidden.clear()  # a head that was never closed
        elif tag == "li":
            self.said.append("\n- ")
        elif tag in {"td", "th"}:
            self.said.append("  ")
        elif tag in self._BLOCKS:
            self.said.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """Called by the parser."""
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif tag in self._BLOCKS and tag != "br":
            self.said.append("\n")

    def handle_data(self, data: str) -> None:
        """Called by the parser."""
        if not self._hidden:
            self.said.append(" ".join(data.split()) if data.strip() else " ")
            if data[-1:].isspace():
                self.said.append(" ")


def html_text(html: str) -> str:
    """The text of HTML as lines, without what a browser does not show. Raises nothing for malformed HTML."""
    reader = _Reader()
    with suppress(AssertionError, ValueError):  # some malformed declarations: what came before is text enough
        reader.feed(html)
        reader.close()
    lines: list[str] = []
    for line in "".join(reader.said).split("\n"):
        line = " ".join(line.split())
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip("\n")
