"""The dot, taken off and put on: tables, every one split at every byte, and round trips."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.lmtp import DotReader, DotWriter

# bytes after 354, message, bytes behind the end
READ = [
    (b".\r\n", b"", b""),
    (b"\r\n.\r\n", b"\r\n", b""),
    (b"a\r\n.\r\n", b"a\r\n", b""),
    (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
    (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n"),
    (b"..\r\n.\r\n", b".\r\n", b""),
    (b"..a\r\n..\r\n...b\r\n.\r\n", b".a\r\n.\r\n..b\r\n", b""),
    (b".a\r\n.b\r\n.\r\n", b"a\r\nb\r\n", b""),  # a lone dot before text is taken off (RFC 5321 4.5.2)
    (
        b"a\n.\nb\n.\r\nc\r.\rd\r\n.\ne\r\n.\r\n",
        b"a\n.\nb\n.\r\nc\r.\rd\r\n\ne\r\n",
        b"",
    ),  # only CRLF.CRLF ends
    (b"a\r\n.\rb\r\n.\r\n", b"a\r\n\rb\r\n", b""),
    (b"\r\r\n.\r\n", b"\r\r\n", b""),
    (b"\r\n\r\n..\r\n\r\n.\r\n", b"\r\n\r\n.\r\n\r\n", b""),
    (b"\0\xff\x80\r\n.\r\n", b"\0\xff\x80\r\n", b""),
    (b".\n.\r\n\r\n.\r\n", b"\n.\r\n\r\n", b""),
]


def read(*pieces: bytes) -> tuple[bytes, bytes, bool]:
    reader = DotReader()
    body, rest = b"", b""
    for piece in pieces:
        more, behind = reader.feed(piece)
        body, rest = body + more, rest + behind
    return body, rest, reader.ended


@pytest.mark.parametrize(("wire", "message", "rest"), READ)
def test_reader_split_at_every_byte(wire: bytes, message: bytes, rest: bytes) -> None:
    assert read(wire) == (message, rest, True)
    for cut in range(len(wire) + 1):
        assert read(wire[:cut], wire[cut:]) == (message, rest, True)
    assert read(*(wire[i : i + 1] for i in range(len(wire)))) == (message, rest, True)


@pytest.mark.parametrize(
    "wire", [b"", b".", b".\r", b"a\r\n.\n", b"a\n.\n", b"a\n.\r\n", b"a\r\n.\r", b"a\r.\r", b"\n.\n"]
)
def test_reader_sees_no_end_where_none_is(wire: bytes) -> None:
    assert not read(wire)[2]
    assert not read(*(wire[i : i + 1] for i in range(len(wire))))[2]


def test_reader_keeps_a_few_bytes_only() -> None:
    reader = DotReader()
    for _ in range(100):
        body, _ = reader.feed(b"x" * 100_000 + b"\r\n.\r")
        assert len(body) > 99_990
        assert len(reader._held) <= 4


# message, bytes on the wire, would a lax server take part of it for the end
WRITE = [
    (b"", b".\r\n", False),
    (b"a", b"a\r\n.\r\n", False),
    (b"a\r\n", b"a\r\n.\r\n", False),
    (b"a\n", b"a\n\r\n.\r\n", False),
    (b"a\r", b"a\r\r\n.\r\n", False),
    (b".\r\n", b"..\r\n.\r\n", False),
    (b".", b"..\r\n.\r\n", False),
    (b"..a\r\n.b\r\n", b"...a\r\n..b\r\n.\r\n", False),
    (b"a\r\n.\r\n", b"a\r\n..\r\n.\r\n", False),
    (b"a\r\n.\nb\r\n", b"a\r\n..\nb\r\n.\r\n", False),  # doubled, so harmless to a lax server as well
    (b"a\n.\nb\r\n", b"a\n.\nb\r\n.\r\n", True),
    (b"a\n.\r\nb\r\n", b"a\n.\r\nb\r\n.\r\n", True),
    (b"\n.\n\r\n", b"\n.\n\r\n.\r\n", True),
    (b"a\n.b\r\n", b"a\n.b\r\n.\r\n", False),
    (b"a\n..\r\n", b"a\n..\r\n.\r\n", False),
    (b"a\n.", b"a\n.\r\n.\r\n", True),
    (b"a\n.\rb\r\n", b"a\n.\rb\r\n.\r\n", False),
    (b"a\r.\rb\r\n", b"a\r.\rb\r\n.\r\n", False),
]


def write(*pieces: bytes) -> tuple[bytes, bool]:
    writer = DotWriter()
    wire = b"".join([writer.feed(piece) for piece in pieces]) + writer.finish()
    return wire, writer.lax_end


@pytest.mark.parametrize(("message", "wire", "lax_end"), WRITE)
def test_writer_split_at_every_byte(message: bytes, wire: bytes, lax_end: bool) -> None:
    assert write(message) == (wire, lax_end)
    for cut in range(len(message) + 1):
        assert write(message[:cut], message[cut:]) == (wire, lax_end)
    assert write(*(message[i : i + 1] for i in range(len(message)))) == (wire, lax_end)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


DOTTY = st.lists(
    st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"\r\n.", b"\n.", b"a", b"\0"]), max_size=40
).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=8)


@given(DOTTY, CUTS, CUTS)
def test_what_is_written_is_read_back(message: bytes, cuts: list[int], more_cuts: list[int]) -> None:
    wire, _ = write(*pieces_of(message, cuts))
    whole = message if not message or message.endswith(b"\r\n") else message + b"\r\n"
    assert read(*pieces_of(wire + b"QUIT\r\n", more_cuts)) == (whole, b"QUIT\r\n", True)


def lax_ends(wire: bytes) -> int:
    """How many ends Dovecot 2.3 sees: a lone dot on a line, lines ended by LF with or without CR."""
    return sum(line.removesuffix(b"\r") == b"." for line in wire.split(b"\n")[:-1])


@given(DOTTY, CUTS)
def test_lax_end_is_what_a_lax_server_sees(message: bytes, cuts: list[int]) -> None:
    wire, lax_end = write(*pieces_of(message, cuts))
    assert lax_end == (lax_ends(wire) > 1)
