"""Whatever mail says comes out as text that harms nobody."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.readable import escaped, header_text, text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        ("grüße".encode(), "grüße"),
        (b"gr\xfc\xdfe", "gr\ufffd\ufffde"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),  # a surrogate in UTF-8's clothes
        (b"", ""),
    ],
)
def test_bytes_that_are_no_utf8(raw: bytes, shown: str) -> None:
    assert text(raw) == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"=?utf-8?q?h=C3=A9llo_w=C3=B6rld?=", "héllo wörld"),
        (b"=?UTF-8?B?aMOpbGxv?= there", "héllo there"),
        (b"=?utf-8?b?4oI=?= =?utf-8?b?rA==?=", "€"),  # cut in the middle of a character
        (b"=?iso-8859-1?q?=e9?=\r\n =?koi8-r?b?8NLJ18XU?=", "éПривет"),
        (b"=?utf-8*en?q?=C3=A9?=", "é"),
        (b"folded\r\n subject\n\twithout encoding", "folded subject\twithout encoding"),
        (b"gr\xc3\xbc\xc3\x9fe =?utf-8?q?=C3=A9?=", "grüße é"),
        (b"8-bit \xff =?utf-8?q?=C3=A9?=", "8-bit \ufffd é"),
        (b"=?no-such-charset?q?a=FFb?=", "a\ufffdb"),
        (b"=?unicode_escape?q?=5Cd?=", "\\d"),
        (b"=?utf-7?q?+2AA-?=", "\ufffd"),
        (b"=?rot13?q?abc?=", "abc"),
        (b"=?utf-8?b?not base64!?=", None),
        (b"=?utf-8?b?A?=", None),
        (b"=?=?=?utf-8?q?", None),
        (b"=?\x00?q?a?=", None),
        (b"=?utf-8?q?spaces in it?=", "spaces in it"),
    ],
)
def test_header_values(raw: bytes, shown: str | None) -> None:
    found = header_text(raw)
    assert shown is None or found == shown
    found.encode()


@given(st.binary(max_size=60), st.sampled_from([b"", b"=?utf-8?q?", b"=?utf-16?b?", b"=?punycode?q?"]))
def test_nothing_raises_and_nothing_is_left_that_drives_a_terminal(raw: bytes, start: bytes) -> None:
    for shown in (header_text(start + raw + b"?="), text(raw)):
        shown.encode()  # no surrogates
        safe = escaped(shown)
        assert not any(char < " " or "\x7f" <= char <= "\x9f" for char in safe)
        json.dumps(shown)


def test_controls_are_written_out() -> None:
    assert escaped("a\x1b[31m\r\n\x9b\u202eb") == "a\\x1b[31m\\x0d\\x0a\\x9b\\u202eb"
    assert escaped("naïve \u00a0 👨‍👩‍👧 ok") == "naïve \u00a0 👨‍👩‍👧 ok"
