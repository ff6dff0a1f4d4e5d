"""HTML as lines of text: what a browser would not show is left out, and a block begins a line. Pure.

Not Python's `html.parser`: over 64 KiB of malicious tags it holds up the whole process for a minute. Here
each character is looked at a few times at most; in return an attribute with a `>` in it shows its tail.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_HIDDEN = ("script", "style", "title", "template", "noscript")
_HIDDEN_END = {name: re.compile(f"</{name}", re.IGNORECASE) for name in _HIDDEN}
_BLOCKS = frozenset({
    "p", "div", "br", "tr", "table", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre",
    "hr", "section", "article", "header", "footer", "li", "dt", "dd",
})  # fmt: skip
_CELLS = frozenset({"td", "th"})
_TAG_NAME = re.compile(r"/?([A-Za-z][A-Za-z0-9]{0,20})")


def html_text(source: str) -> str:
    """The text of HTML, malformed or not. What entities stand for may be controls: escape before showing."""
    lines: list[str] = []
    for line in "".join(_said(source)).split("\n"):
        words = " ".join(line.split())
        if words or (lines and lines[-1]):
            lines.append(words)
    return "\n".join(lines).strip("\n")


def _said(source: str) -> Iterator[str]:
    at = 0
    while True:
        # Whatever is looked for and not found ends it, so nothing is searched twice.
        begin = source.find("<", at)
        yield _words(source[at : begin if begin >= 0 else len(source)])
        if begin < 0:
            return
        if source.startswith("<!--", begin):
            end = source.find("-->", begin + 4)
            at = end + 3
            if end < 0:
                return
            continue
        name = _TAG_NAME.match(source, begin + 1)
        if name is None and source[begin + 1 : begin + 2] not in {"!", "?", "/"}:
            yield "<"
            at = begin + 1
            continue
        end = source.find(">", begin)
        if end < 0:
            return
        at = end + 1
        tag = name[1].lower() if name else ""
        yield _break(tag, closing=source.startswith("</", begin))
        if tag in _HIDDEN and not source.startswith("</", begin):
            hidden = _HIDDEN_END[tag].search(source, at)
            if hidden is None:
                return
            at = hidden.start()


def _break(tag: str, *, closing: bool) -> str:
    if tag == "li":
        return "" if closing else "\n- "
    if tag in _CELLS:
        return "  "
    return "\n" if tag in _BLOCKS else ""


def _words(run: str) -> str:
    """Line ends in HTML are spaces; those that entities make are not, but do no harm as such either."""
    return re.sub(r"[ \t\r\n]+", " ", html.unescape(run))
