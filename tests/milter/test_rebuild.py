"""A message from its events: tables, each with the body cut at every byte."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.milter import Rebuild, parse_path

# headers, body, message, notes
MESSAGES = [
    ([(b"Subject", b" hello")], b"body\r\n", b"Subject: hello\r\n\r\nbody\r\n", ()),
    ([(b"A", b"1"), (b"B", b"\t2"), (b"C", b"  3")], b"x", b"A:1\r\nB:\t2\r\nC:  3\r\n\r\nx", ()),
    ([(b"To", b" a,\n\tb,\n c")], b"x", b"To: a,\r\n\tb,\r\n c\r\n\r\nx", ()),
    ([(b"X", b"")], b"x", b"X:\r\n\r\nx", ()),
    ([(b"X", b" \xff\xe4")], b"\0\xff\r\n.\r\n..\r\n", b"X: \xff\xe4\r\n\r\n\0\xff\r\n.\r\n..\r\n", ()),
    ([(b"Subject", b" only")], b"", b"Subject: only\r\n\r\n", ("blank-line-unknown",)),
    ([], b"", b"\r\n", ("blank-line-unknown",)),
    ([], b" no header\r\n", b"\r\n no header\r\n", ()),
]


def _cuts(body: bytes) -> list[tuple[bytes, ...]]:
    return [(body,), *((body[:at], body[at:]) for at in range(len(body))), tuple(bytes([b]) for b in body)]


@pytest.mark.parametrize(("headers", "body", "message", "notes"), MESSAGES)
def test_message(headers, body, message, notes):
    for slices in _cuts(body):
        rebuild = Rebuild()
        pieces = [rebuild.header(name, value) for name, value in headers]
        pieces.append(rebuild.end_of_headers())
        pieces += [rebuild.body(data) for data in slices]
        pieces.append(rebuild.finish())
        assert b"".join(pieces) == message
        assert rebuild.notes == notes


def test_headers_of_an_ordinary_message_come_as_one_piece():
    rebuild = Rebuild()
    assert [rebuild.header(b"X", b" y") for _ in range(50)] == [b""] * 50
    assert rebuild.end_of_headers() == b"X: y\r\n" * 50 + b"\r\n"


def test_a_message_of_headers_only_does_not_grow_in_memory():
    rebuild = Rebuild()
    pieces = [rebuild.header(b"X-%d" % n, b" " + b"v" * 1000) for n in range(1000)]
    assert max(map(len, pieces)) < 70_000
    assert sum(map(len, pieces)) > 900_000
    whole = b"".join([*pieces, rebuild.end_of_headers()])
    assert whole == b"".join(b"X-%d: %s\r\n" % (n, b"v" * 1000) for n in range(1000)) + b"\r\n"


def test_without_leading_space_one_is_written_and_noted():
    rebuild = Rebuild(leading_space=False)
    assert rebuild.header(b"A", b"b") + rebuild.finish() == b"A: b\r\n\r\n"
    assert rebuild.notes == ("blank-line-unknown", "header-space-unknown")


@pytest.mark.parametrize("ends", list(itertools.product([False, True], repeat=2)))
def test_the_blank_line_comes_once_whatever_the_mta_leaves_out(ends):
    rebuild = Rebuild()
    pieces = [rebuild.header(b"A", b" b")]
    if ends[0]:
        pieces.append(rebuild.end_of_headers())
    pieces.append(rebuild.body(b"body"))
    if ends[1]:
        pieces.append(rebuild.end_of_headers())
    assert b"".join([*pieces, rebuild.finish()]) == b"A: b\r\n\r\nbody"


@given(
    st.lists(st.tuples(st.binary(min_size=1), st.binary().filter(lambda v: b"\r" not in v))),
    st.lists(st.binary()),
)
def test_any_headers_and_slices(headers, slices):
    rebuild = Rebuild()
    pieces = [rebuild.header(name, value) for name, value in headers]
    pieces += [rebuild.end_of_headers(), *map(rebuild.body, slices), rebuild.finish()]
    head = b"".join(n + b":" + b"\r\n".join(v.split(b"\n")) + b"\r\n" for n, v in headers)
    assert b"".join(pieces) == head + b"\r\n" + b"".join(slices)


@pytest.mark.parametrize(
    ("arguments", "address", "params"),
    [
        ((b"<a@example.org>",), b"a@example.org", b""),
        ((b"a@example.org",), b"a@example.org", b""),
        ((b"<>",), b"", b""),
        ((b"",), b"", b""),
        ((b"<a@example.org>", b"SIZE=12", b"BODY=8BITMIME"), b"a@example.org", b"SIZE=12 BODY=8BITMIME"),
        ((b'<"a b>"@example.org>',), b'"a b>"@example.org', b""),
        ((b"<\xc3\xa4@example.org>", b"SMTPUTF8"), b"\xc3\xa4@example.org", b"SMTPUTF8"),
        ((b"<\xff@example.org>",), b"\xff@example.org", b""),
        ((b"<", b"X"), b"<", b"X"),
    ],
)
def test_parse_path(arguments, address, params):
    assert parse_path(arguments) == (address, params)


def test_parse_path_without_an_argument():
    with pytest.raises(ValueError, match="not enough values"):
        parse_path(())
