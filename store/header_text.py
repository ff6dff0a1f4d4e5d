"""Header values as text: unfolded, their encoded words decoded (RFC 2047).

Bytes that are no UTF-8 come out as U+FFFD, encoded words that cannot be decoded stay as they are. Nothing
here raises, whatever the bytes.
"""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_FOLD = re.compile(r"\r?\n(?=[ \t])")
_WORD = r"=\?[!-<>@-~]+\?[bBqQ]\?[^?\r\n]*\?="  # with spaces in it too, which some senders leave
_ENCODED_WORDS = re.compile(rf"{_WORD}(?:\s+{_WORD})*")


def text(raw: bytes) -> str:
    """`raw` as UTF-8; each byte that is none becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", raw.decode("utf-8", "surrogateescape"))


def header_text(raw: bytes) -> str:
    """A header field's value: unfolded, its encoded words decoded (RFC 2047 6)."""
    unfolded = _FOLD.sub("", text(raw))
    if "=?" not in unfolded:
        return unfolded
    return _SURROGATE.sub("\ufffd", _ENCODED_WORDS.sub(lambda words: _decoded(words[0]), unfolded))


def _decoded(words: str) -> str:
    """A run of encoded words, white space between them dropped. Neighbours of one charset are joined before
    decoding, since senders cut in the middle of a character."""
    from email.errors import HeaderParseError  # not every listing meets an encoded word
    from email.header import decode_header

    try:
        return "".join(
            _from_charset(part, charset or "ascii") if isinstance(part, bytes) else part
            for part, charset in decode_header(words)
        )
    except (HeaderParseError, ValueError):
        return words


def _from_charset(part: bytes, charset: str) -> str:
    name = charset.partition("*")[0]  # RFC 2231 5: a language may follow the charset
    if "escape" in name.lower():  # Python's own codecs, which no mail means and which warn about their input
        return text(part)
    try:
        return part.decode(name, "replace")
    except (LookupError, ValueError):
        return text(part)
