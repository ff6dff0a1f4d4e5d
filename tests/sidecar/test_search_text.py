"""The words of messages: what mail does to hide them, and what hostile mail does to the walk."""

from __future__ import annotations

import random
import time
from base64 import b64encode

import pytest

from sidecar.search.text import MOST_TEXT_BYTES, Text, extract, fold

QP = b"Content-Transfer-Encoding: quoted-printable\r\n"
BASE64 = b"Content-Transfer-Encoding: BASE64\r\n"
PLAIN = (
    b"From: a@example.org\r\nTo: b@example.org\r\nTo: c@example.org\r\nSubject: one\r\n two\r\n\r\nbody here"
)


def multipart(*parts: bytes, boundary: bytes = b"xx", kind: bytes = b"mixed") -> bytes:
    head = (
        b"Subject: s\r\nContent-Type: multipart/"
        + kind
        + b'; boundary="'
        + boundary
        + b'"\r\n\r\npreamble\r\n'
    )
    return (
        head
        + b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
        + b"--"
        + boundary
        + b"--\r\nepilogue"
    )


def body_of(raw: bytes) -> list[str]:
    return extract(raw).body.split()


def test_a_plain_message() -> None:
    found = extract(PLAIN)
    assert found.subject.split() == ["one", "two"]
    assert set(found.people.replace(",", " ").split()) == {"a@example.org", "b@example.org", "c@example.org"}
    assert found.body.split() == ["body", "here"]
    assert extract(PLAIN.replace(b"\r\n", b"\n")).body.split() == ["body", "here"]


@pytest.mark.parametrize(
    ("header", "body", "word"),
    [
        (QP + b"Content-Type: text/plain; charset=utf-8", b"Z=\r\nw=C3=B6lf", "Zwölf"),
        (BASE64 + b'Content-Type: text/plain; charset="ISO-8859-1"', b64encode(b"Zw\xf6lf"), "Zwölf"),
        (b"Content-Type: text/plain; charset=koi8-r", "почта".encode("koi8-r"), "почта"),
        (b"Content-Type: text/plain; charset=iso-2022-jp", "会議".encode("iso-2022-jp"), "会議"),
        (b"Content-Type: text/plain; charset=no-such-thing", "Zwölf".encode(), "Zwölf"),
        (b"Content-Type: text/plain", "Zwölf".encode("latin-1"), "Zwölf"),
        (b"Content-Type: text/html", b"<p>Zw&ouml;lf<br>n&auml;chste", "Zwölf"),
        (b"X: y", b"word", "word"),
        (b"Content-Type: ;;;", b"word", "word"),
    ],
)  # fmt: skip
def test_encodings(header: bytes, body: bytes, word: str) -> None:
    assert word in body_of(header + b"\r\n\r\n" + body)


def test_parts_and_the_names_of_attachments() -> None:
    raw = multipart(
        b"Content-Type: text/plain\r\n\r\nalpha",
        b"Content-Type: application/pdf; name*0*=utf-8''M%C3%BCll; name*1=\"abfuhr.pdf\"\r\n\r\nbinary",
        b'Content-Disposition: attachment; filename="=?utf-8?q?Zw=C3=B6lf?=.doc"\r\n\r\nsecret',
        b"Content-Type: text/plain; name=notes.txt\r\nContent-Disposition: attachment\r\n\r\nhidden",
        b"Content-Type: message/rfc822\r\n\r\nSubject: forwarded\r\n\r\nomega",
        b"\r\nno header",
    )
    found = extract(raw)
    assert found.files.splitlines() == ["Müllabfuhr.pdf", "Zwölf.doc", "notes.txt"]
    assert found.body.split() == ["alpha", "forwarded", "omega", "no", "header"]


def test_html_without_what_nobody_sees() -> None:
    seen = b"<title>seen</title><STYLE>p { hidden }</style><b>al</b>so<a href='hidden'>"
    raw = b"Content-Type: text/html\r\n\r\n<script>hidden</script><!-- hidden -->" + seen
    assert [word for word in body_of(raw) if word.isalpha()] == ["seen", "al", "so"]


def test_folding_and_signs_without_spaces() -> None:
    assert fold("ＡＢ Straße ﬁn").split() == ["ab", "strasse", "fin"]
    assert fold("会議資料ok").split() == ["会", "議", "資", "料", "ok"]
    assert "\ud800" not in fold("a\ud800b")


def _deep() -> bytes:
    inner = b"Content-Type: text/plain\r\n\r\ndeep"
    for number in range(3000):
        inner = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n%b\r\n--b%d--" % (
            number,
            number,
            inner,
            number,
        )
    return inner


HOSTILE = {
    "a million fields": b"A: b\r\n" * 1_000_000 + b"\r\nbody",
    "a field of a million lines": b"Subject: x\r\n" + b" y\r\n" * 1_000_000 + b"\r\nbody",
    "no end": b"x" * 5_000_000,
    "nested": _deep(),
    "many parts": multipart(*[b"\r\nx"] * 100_000),
    "boundaries that are none": multipart(b"--xx-" * 300_000, boundary=b"xx"),
    "all tags": b"Content-Type: text/html\r\n\r\n" + b"<" * 3_000_000,
    "all comments": b"Content-Type: text/html\r\n\r\n" + b"<!--" * 700_000,
    "all scripts": b"Content-Type: text/html\r\n\r\n" + b"<script>" * 400_000,
    "all references": b"Content-Type: text/html\r\n\r\n" + b"&amp" * 700_000,
    "all equals": b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=" * 3_000_000,
    "parameters": b"Content-Type: multipart/mixed" + b'; a="' * 20_000 + b"\r\n\r\nx",
    "sections": b"Content-Type: text/plain" + b"; name*1*=%ff'" * 5000 + b"\r\n\r\nx",
    "encoded words": b"Subject: " + b"=?utf-8?q?=?= " * 5000 + b"\r\n\r\nx",
    "codecs": b"Content-Type: text/plain; charset=punycode\r\n\r\n" + b"a-" * 100_000,
    "idna": b"Content-Type: text/plain; charset=idna\r\n\r\n" + b"xn--a." * 50_000,
    "escapes": b"Content-Type: text/plain; charset=unicode_escape\r\n\r\n\\x",
    "a charset with a null": b"Content-Type: text/plain; charset=\"a\0b\"\r\n\r\nx",
    "long words": b"\r\n" + b"a" * 3_000_000,
    "folds": b"Content-Type: text/plain;\r\n" + b"\t\r\n" * 100_000 + b"\r\nx",
    "carriage returns": b"Subject: " + b"\r" * 1_000_000 + b"\r\n\r\nx",
    "accents": b"Content-Type: text/plain; charset=cp1258\r\n\r\na" + b"\xec\xf2" * 130_000,
    "voice marks": b"\r\na" + "\uff9e\u0301".encode() * 50_000,
    "surrogates": b"Content-Type: text/plain; charset=utf-16\r\n\r\n\x00\xd8" * 1000,
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_mail_takes_no_time_and_raises_nothing(name: str) -> None:
    began = time.process_time()
    found = extract(HOSTILE[name])
    fold(found.body)
    assert time.process_time() - began < 3.0
    assert len(found.body) <= 4 * MOST_TEXT_BYTES


def test_accents_beyond_all_measure_hide_no_word() -> None:
    assert fold("e\u0301" + "\u0323\u0301" * 1000 + "word Zu\u0308rich").split()[1:] == ["word", "zürich"]


def test_noise_raises_nothing() -> None:
    rng = random.Random(3)
    pieces = [
        b"Content-Type: multipart/mixed; boundary=b", b"\r\n", b"\n", b"--b", b"--", BASE64, b"=?utf-8?b?",
        b"?=",
        b"Content-Type: message/rfc822", b"charset*0*='x", b'"', b";", b"<style>", b"&#x110000;", b"\xff\x00",
    ]  # fmt: skip
    for _ in range(3000):
        assert isinstance(extract(b"".join(rng.choices(pieces, k=rng.randrange(40)))), Text)
