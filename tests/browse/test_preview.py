"""A message as text: whatever it is made of, bounded, and nothing in it that drives a terminal."""

from __future__ import annotations

import base64
import random
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from sidecar.browse.html import html_text
from sidecar.browse.parts import KEPT_BYTES, Scan
from sidecar.browse.preview import Preview, preview
from store.errors import DamagedError

MIXED = (
    b"From: Anna <anna@example.org>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n aus =?utf-8?b?S8O2bG4=?=\r\n"
    b'Content-Type: multipart/mixed; boundary="b1"\r\n\r\npreamble\r\n'
    b'--b1\r\nContent-Type: multipart/alternative; boundary="b1-2"\r\n\r\n'
    b"--b1-2\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"  # noqa: E501 - one case, one line
    b"Sch=F6ne=\r\n Gr=FC=DFe\r\n"
    b"--b1-2\r\nContent-Type: text/html\r\n\r\n<p>html</p>\r\n--b1-2--\r\n\r\n"
    b"--b1 \r\nContent-Type: application/pdf; name*=utf-8''rechnung%20%C3%BC.pdf\r\n"
    b"Content-Transfer-Encoding: base64\r\nContent-Disposition: attachment\r\n\r\n"
    + base64.encodebytes(b"x" * 1000).replace(b"\n", b"\r\n")
    + b"--b1\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nhello\r\n--b1--\r\nepilogue\r\n"
)


def seen(message: bytes, step: int = 1 << 16) -> Preview:
    found = preview(message[at : at + step] for at in range(0, len(message), step))
    assert found is not None
    return found


@pytest.mark.parametrize("step", [1, 2, 7, 100, 1 << 16])
@pytest.mark.parametrize("eol", [b"\r\n", b"\n"])
def test_a_message_with_parts_in_pieces_of_any_size(step: int, eol: bytes) -> None:
    found = seen(MIXED.replace(b"\r\n", eol), step)
    assert found.fields == (("From", "Anna <anna@example.org>"), ("Subject", "Grüße aus Köln"))
    assert found.body == ("Schöne Grüße",)
    assert found.attachments[0] == "rechnung ü.pdf  application/pdf, 1000 B"
    assert found.attachments[1].startswith("(no name)  message/rfc822, ")
    assert len(found.attachments) == 2
    assert not found.note


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (b"", ("",)),
        (b"no header at all\r\nsecond", ("",)),
        (b"\r\nno header\r\n", ("no header",)),
        (b"Subject: x\r\n\r\n8 bit \xc3\xa4 \xff\r\n", ("8 bit ä \ufffd",)),
        (b"Content-Type: text/plain; charset=latin-1\r\n\r\n\xe4", ("ä",)),
        (b"Content-Type: text/plain; charset=no-such\r\n\r\n\xc3\xa4", ("ä",)),
        (b"Content-Type: text/plain; charset=unicode_escape\r\n\r\n\\x1b[2J", (r"\x1b[2J",)),
        (b"Content-Type: text/plain; charset=punycode\r\n\r\nabc", ("abc",)),
        (b"Content-Type: text/plain; charset=zlib\r\n\r\nabc", ("abc",)),
        (b"Content-Transfer-Encoding: base64\r\n\r\naGVsbG8=\r\n", ("hello",)),
        (b"Content-Transfer-Encoding: base64\r\n\r\n!!! no base64 !!!\r\n", None),
        (b"Content-Type: multipart/mixed\r\n\r\nno boundary", ("",)),
        (b"Content-Type: multipart/mixed; boundary=x\r\n\r\nnever begun", ("",)),
        (b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nnever ended", ("never ended",)),
        (b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n--x--", ("",)),
        (b"Content-Type: text/html\r\n\r\n<b>bold</b><br>next", ("bold", "next")),
        (b"Subject: x\r\n\r\ntab\there\x08\x07\r\n", (r"tab     here\x08\x07",)),
    ],
)
def test_odd_messages(message: bytes, body: tuple[str, ...] | None) -> None:
    for step in (1, 1 << 16):
        found = seen(message, step)
        if body is not None:
            assert (found.body or ("",)) == body


def test_hostile_mail_drives_no_terminal() -> None:
    evil = b"\x1b[2J\x1b]0;owned\x07\x9b31m\x00\r"
    message = (
        b"Subject: " + evil + b"\r\nFrom: =?utf-8?b?" + base64.b64encode(evil) + b"?=\r\n"
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n" + evil + b"\xe2\x80\xae\r\n"
        b"--b\r\nContent-Type: text/\x1bhtml; name=\"" + evil + b'"\r\n\r\nx\r\n--b--\r\n'
    )  # fmt: skip
    found = seen(message)
    shown = "".join([*(value for _, value in found.fields), *found.body, *found.attachments])
    assert "[2J" in shown
    assert not set(shown) & {chr(code) for code in [*range(32), *range(127, 160), 0x202E]}


def test_any_bytes_do() -> None:
    noise = random.Random(5)
    words = [b"--b", b"--", b"\r\n", b"\n", b"\r", b"Content-Type: multipart/mixed; boundary=b\r\n", b"\r\n\r\n",  # noqa: E501 - one case, one line
             b"Content-Transfer-Encoding: base64\r\n", b"=?utf-8?b?w6Q=?=", b"\xff", b"Content-Type: text/html\r\n",  # noqa: E501 - one case, one line
             b"Subject: x\r\n", b"<p>", b"<!", b"Content-Disposition: attachment; filename*=x'y'%\r\n"]  # fmt: skip  # noqa: E501 - one case, one line
    for _ in range(300):
        message = b"".join(noise.choices(words, k=30))
        whole, split = seen(message), seen(message, 1)
        assert [line.replace("\\x0d", "") for line in whole.body] == [
            line.replace("\\x0d", "") for line in split.body
        ], message


def _big(parts: int, size: int) -> Iterator[bytes]:
    line = base64.encodebytes(b"\0" * 57 * 1000).replace(b"\n", b"\r\n")
    yield b"Subject: big\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n"
    for number in range(parts):
        yield (
            b"--b\r\nContent-Type: video/mp4; name=v%d.mp4\r\nContent-Transfer-Encoding: base64\r\n\r\n"
            % number
        )
        for _ in range(size // len(line)):
            yield line
    yield b"--b--\r\n"


def test_50_mb_are_previewed_in_bounded_memory_and_time() -> None:
    tracemalloc.start()
    try:
        began = time.process_time()
        found = preview(_big(2, 25_000_000))
        took = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found.body == ("hello",)
    assert found.attachments == ("v0.mp4  video/mp4, 17.4 MiB", "v1.mp4  video/mp4, 17.4 MiB")
    assert peak < 4_000_000
    assert took < 20


def test_50_mb_of_text_are_shown_by_their_beginning() -> None:
    found = preview(b"Subject: x\r\n\r\n" if n == 0 else b"a line of text\r\n" * 4096 for n in range(760))
    assert found is not None
    assert len(found.body) == 2000
    assert found.note == "only the beginning is shown"


def test_a_header_without_an_end_and_parts_without_number_are_bounded() -> None:
    scan = Scan()
    for _ in range(200):
        scan.feed(b"x" * 65536)
    assert len(scan._buffer) < 1_000_000
    found = seen(
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\nContent-Type: a/b\r\n\r\n\r\n" * 5000
    )
    assert len(found.attachments) == 51
    assert found.attachments[-1] == "and more"
    scan = Scan()
    scan.feed(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n\r\n--b" + b" " * 5_000_000)
    assert len(scan._buffer) < 1000
    assert all(len(part.kept) <= KEPT_BYTES for part in scan.parts)


@pytest.mark.parametrize(
    "again", [b"\n--b\n\n", b"\n--b\nContent-Type: multipart/mixed; boundary=c\n\n\n--c--\n"]
)
def test_nothing_but_boundaries_take_no_time_to_speak_of(again: bytes) -> None:
    began = time.process_time()
    found = preview([b"Content-Type: multipart/mixed; boundary=b\n\n" + again * (2_000_000 // len(again))])
    assert time.process_time() - began < 5
    assert found
    assert found.attachments[-1:] == ("and more",)


def test_damage_in_the_middle_shows_what_came_before() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"Subject: x\r\n\r\nthe beginning\r\n"
        raise DamagedError("record is damaged\x1b")

    found = preview(pieces())
    assert found is not None
    assert found.body == ("the beginning",)
    assert found.note == r"what follows cannot be read: record is damaged\x1b"


def test_it_may_be_stopped() -> None:
    assert preview(_big(1, 1_000_000), lambda: True) is None


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ("<html><head><title>t</title><style>p{}</style></head><body><p>one <b>two</b></p><p>three</p>", "one two\n\nthree"),  # noqa: E501 - one case, one line
        ("<ul><li>a<li>b &amp; c</ul><script>alert(1)</script>d", "- a\n- b & c\nd"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "a b"),
        ("plain &lt;x&gt; 1 < 2 &eacute;", "plain <x> 1 < 2 é"),
        ("<p>a<!-- never closed <p>b", "a"),
        ("<SCRIPT>x</Script >a<![CDATA[x]]>b<br/>c</", "ab\nc"),
    ],
)  # fmt: skip
def test_html(html: str, said: str) -> None:
    assert html_text(html).strip() == said


EVIL = ("<!", "<a ", "</", "<!--", "&#", "<a='", "<script>", "<p>", "&lt", "<td><li>", "\t", "\x1b", "a\n")


@pytest.mark.parametrize("evil", EVIL)
def test_malicious_html_takes_no_time_to_speak_of(evil: str) -> None:
    began = time.process_time()
    found = seen(b"Content-Type: text/html\r\n\r\n" + (evil * 200_000).encode())
    assert time.process_time() - began < 5
    assert sum(map(len, found.body)) <= 128 << 10


@pytest.mark.parametrize("evil", [b";", b'";', b'\\";', b"=?x?q?", b"x*0*=;", b"?=", b" "])
def test_malicious_fields_take_no_time_to_speak_of(evil: bytes) -> None:
    began = time.process_time()
    value = evil * 50_000
    seen(
        b"Subject: %b\r\nContent-Type: multipart/mixed; x%b\r\nContent-Disposition: attachment;%b\r\n\r\n"
        % ((value,) * 3)
    )
    assert time.process_time() - began < 5
