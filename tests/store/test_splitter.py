"""The splitter's two laws, what is shared between mails that share parts, and what hostile mail costs."""

from __future__ import annotations

import base64
import itertools
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from store import splitter as splitter_module
from store.cutting import MAX_CUT, MIN_CUT
from store.splitter import (
    MAX_HEADER,
    MAX_PIECE,
    MIN_BODY,
    MIN_RUN,
    WINDOW,
    Kind,
    Piece,
    Splitter,
    encode,
    encode_run,
    rebuild,
)

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "corpus"
FEED = 256 * 1024
HEADER = b"Received: from a.example by b.example; Mon, 1 Jan 2024 00:00:00 +0000\r\nSubject: x\r\n\r\n"
TEXT = b"".join(b"Line %d of a text that is long enough to be a piece.\r\n" % i for i in range(40))


def split(message: bytes, sizes: Iterable[int] = (FEED,)) -> list[Piece]:
    """All pieces of a message fed in these sizes, again and again."""
    splitter, pieces, at = Splitter(), list[Piece](), 0
    for size in itertools.cycle(sizes):
        if at >= len(message):
            break
        pieces += splitter.feed(message[at : at + size])
        assert splitter._size < WINDOW
        assert not splitter._out
        assert not splitter._data
        at += size
    return pieces + splitter.finish()


def is_lawful(message: bytes, *ways: Iterable[int]) -> list[Piece]:
    """Both laws for one message; and what holds for all pieces."""
    pieces = split(message)
    assert rebuild(pieces) == message
    for sizes in ways:
        assert split(message, sizes) == pieces
    assert all(piece.data for piece in pieces)
    for before, piece in itertools.pairwise([Piece(Kind.TEXT, b"", joins=True), *pieces]):
        assert len(piece.data) <= (MAX_CUT if piece.kind is Kind.ATTACHMENT else MAX_PIECE)
        if piece.joins:
            assert (piece.width, piece.eol) == (before.width, before.eol)
    return pieces


def part(body: bytes, boundary: bytes = b"=_b", headers: bytes = b"Content-Type: text/plain\r\n") -> bytes:
    return b"\r\n--" + boundary + b"\r\n" + headers + b"\r\n" + body


def attachment(data: bytes, width: int = 76, eol: bytes = b"\r\n", boundary: bytes = b"=_b") -> bytes:
    headers = b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n"
    mail = part(b"@", boundary, headers).replace(b"\r\n", eol)
    return mail[:-1] + encode(data, width, eol) + eol + b"--" + boundary + b"--" + eol


def data_of(pieces: Iterable[Piece], kind: Kind) -> list[bytes]:
    return [piece.data for piece in pieces if piece.kind is kind]


# --- the two laws -----------------------------------------------------------------------------------------

eols = st.sampled_from([b"\r\n", b"\n"])
widths = st.sampled_from([60, 64, 72, 76, 4, 16, 61, 998])
boundaries = st.sampled_from([b"=_b", b"b2", b"b--", b"-----x", b"b" * 200, b"b" * 201, b"sp "])


@st.composite
def base64_bodies(draw: st.DrawFn) -> bytes:
    size = draw(
        st.integers(0, 6000)
        | st.sampled_from([57 * 14, 57 * 100, MIN_CUT, MIN_CUT + 1, 300_000, MAX_CUT + 58])
    )
    width, eol = draw(widths), draw(eols)
    text = base64.b64encode(random.Random(size).randbytes(size))
    body = eol.join(text[i : i + width] for i in range(0, len(text), width))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        odd = draw(
            st.sampled_from(
                [b"=", b"==", b" ", b"\r", b"\n", b"\r\n\r\n", b"\0", b"A", b"\xff", b"\n\n--b\n"]
            )
        )
        body = body[:at] + odd + body[at + draw(st.sampled_from([0, len(odd)])) :]
    return body[: draw(st.sampled_from([len(body), len(body) * 2 // 3]))] + draw(
        st.sampled_from([b"", eol, b" " + eol])
    )


@st.composite
def mails(draw: st.DrawFn, *, filler: int = 3000) -> bytes:
    """Bytes like mail: the parts of which mail is made, in any order, some of them large."""
    eol = draw(eols)
    delimiter = st.builds(
        lambda boundary, headers, end: eol + b"--" + boundary + end + eol + headers,
        boundaries,
        st.sampled_from(
            [b"", eol, b"Content-Type: a/b" + eol + eol, b"X: y" + eol + b" z" + eol + eol, b"Content-A:"]
        ),
        st.sampled_from([b"", b"--", b"-- ", b" "]),
    )
    fill = st.builds(
        lambda unit, size: (unit * (size // len(unit) + 1))[:size],
        st.sampled_from([b"x", b"some words" + eol, b"\n", b"\r\n", b"\0", b"A" * 76 + eol, b"--b" + eol]),
        st.integers(0, 700) | st.integers(0, filler),
    )
    raw = st.binary(max_size=60) | st.sampled_from([b"\r", b"\n", b"\r\n", eol * 2, b"-- ", b"--"])
    bodies = base64_bodies()
    if filler > FEED:
        near = st.integers(-40, 40).flatmap(
            lambda d: st.sampled_from([MIN_CUT + d, MAX_HEADER + d, MAX_CUT + d, MAX_PIECE + d, WINDOW + d])
        )
        fill = fill | st.builds(
            lambda unit, size: (unit * size)[:size], st.sampled_from([b"x", b"\r\n", b"ab" + eol]), near
        )
    return b"".join(draw(st.lists(delimiter | fill | raw | bodies | st.just(eol * 2), max_size=14)))


ways = st.lists(st.integers(1, 400), min_size=1, max_size=5)


@given(mails(), ways)
@settings(max_examples=400, deadline=None)
def test_mail_comes_back_and_pieces_do_not_depend_on_feeds(message: bytes, sizes: list[int]) -> None:
    is_lawful(message, sizes)


@given(mails(filler=3 * WINDOW), st.lists(st.integers(1000, FEED), min_size=1, max_size=5))
@settings(
    max_examples=60, deadline=None, phases=[Phase.reuse, Phase.generate]
)  # shrinking megabytes takes hours
def test_large_mail_too(message: bytes, sizes: list[int]) -> None:
    is_lawful(message, sizes, [len(message) or 1])


@given(st.binary(max_size=3000), ways)
@settings(max_examples=200, deadline=None)
def test_any_bytes_come_back(message: bytes, sizes: list[int]) -> None:
    is_lawful(message, sizes)


@given(
    st.binary(max_size=2000),
    widths.filter(lambda w: not w % 4) | st.just(0),
    eols,
    st.lists(st.integers(0, 2000)),
)
def test_encode_run_does_not_mind_where_chunks_were_cut(
    data: bytes, width: int, eol: bytes, cuts: list[int]
) -> None:
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(borders)]
    assert b"".join(encode_run(pieces, width, eol)) == encode(data, width, eol)


FIRST = HEADER + part(b"y" * 200_000)
TAIL = part(TEXT) + b"\r\n--=_b--\r\n"
RANDOM = random.Random(2).randbytes(3 * MAX_CUT)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *((FIRST + part(b"x" * (MAX_CUT + d)), TAIL) for d in (-2, -1, 0, 1, 2, 400)),
        (FIRST + part(RANDOM[:MAX_CUT]), TAIL),
        (FIRST + part(b"x" * MAX_PIECE), b"\r\n\r\n" + encode(RANDOM[:9000], 76, b"\r\n") + TAIL),
        (
            HEADER + b"x" * WINDOW,
            b"\r\n--a--\r\n--a\r\nContent-A: b\r\n\r\n" + TEXT + b"\r\n--a--\r\n\r\n" + TAIL,
        ),
        (HEADER + b"x" * WINDOW + part(b"z") * 200, TAIL + attachment(RANDOM[:2000], eol=b"\n")),
        (HEADER + b"x" * WINDOW, b"\n\n" + encode(RANDOM[:2000], 60, b"\n") + b"\n\n" + TEXT),
    ],
)
def test_what_is_seen_may_end_anywhere(before: bytes, after: bytes) -> None:
    """The last byte that is decided on falls before, into and behind what decides: it changes nothing."""
    message = before + after + b"-" * 2 * splitter_module._SPAN
    pieces = is_lawful(message)
    for seen in range(len(before) - 5, len(before) + 200):
        assert split(message, [seen + splitter_module._SPAN, len(message)]) == pieces
        assert split(message, [seen, len(message)]) == pieces


@pytest.mark.parametrize("eol", [b"\r\n", b"\n"])
@pytest.mark.parametrize("end", [b"", b"\r\n", b"AA==", b"\nA\r\n", b"\r\nAA==\r\n", b"\r\n" + b"A" * 76])
def test_a_run_may_be_cut_off_anywhere(eol: bytes, end: bytes) -> None:
    for data in (RANDOM[: 57 * 60], RANDOM[: 57 * 60 + 1], b"\0" * (MAX_CUT + 57)):
        run = HEADER + encode(data, 76, eol)
        for message in (run + end, run + end + b"\r\nfooter" * 200):
            pieces = is_lawful(message, [4096])
            for seen in range(len(run) - 170, min(len(run) + 90, len(message)), 1 if len(data) < FEED else 7):
                assert split_early(message, seen) == pieces


def split_early(message: bytes, seen: int) -> list[Piece]:
    """Its pieces when the first look is taken at `seen` bytes, however few these are."""
    splitter = Splitter()
    splitter._feeds, splitter._size = [message[:seen]], seen
    pieces = splitter._cut(final=False)
    return pieces + splitter.feed(message[seen:]) + splitter.finish()


def corpus_mails(archive: Path) -> Iterator[tuple[str, bytes]]:
    with (
        archive.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)):
                yield member.name, file.read()


@pytest.mark.parametrize("name", ["everyday", "torture"])
@pytest.mark.timeout(300)
def test_corpus(name: str) -> None:
    archive = CORPUS / f"{name}.tar.zst"
    if not archive.exists():
        pytest.skip(f"{archive} is not there")
    count = 0
    for count, (path, mail) in enumerate(corpus_mails(archive), 1):  # noqa: B007  # counted for the check below
        lf = mail.replace(b"\r\n", b"\n")
        for message in {mail, lf, lf.replace(b"\n", b"\r\n")}:
            pieces = split(message)
            assert rebuild(pieces) == message, path
            assert split(message, (997, 65_535, 262_143)) == pieces, path
    assert count > 1000


# --- what is shared ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [MIN_RUN, 57 * 40, 57 * 40 + 1, MIN_CUT, MIN_CUT + 1, MAX_CUT, 4 * MAX_CUT + 100_001]
)
def test_one_file_is_one_attachment_whatever_its_lines(size: int) -> None:
    data = random.Random(size).randbytes(size)
    seen = []
    for width, eol in itertools.product([60, 64, 72, 76], [b"\r\n", b"\n"]):
        header = b"Subject: x" + eol + eol
        pieces = is_lawful(header + part(TEXT) + attachment(data, width, eol), [FEED - 1])
        seen.append(data_of(pieces, Kind.ATTACHMENT))
        assert {(p.width, p.eol) for p in pieces if p.kind is Kind.ATTACHMENT} == {(width, eol)}
    assert b"".join(seen[0]) == data
    assert all(pieces == seen[0] for pieces in seen)


def test_one_text_is_one_piece_under_any_boundary() -> None:
    for boundary in [b"=_1", b"----=_Part_2", b"a" * 70]:
        mail = (
            HEADER
            + part(TEXT, boundary)
            + part(b"<html>" + TEXT, boundary)
            + b"\r\n--"
            + boundary
            + b"--\r\n"
        )
        texts = data_of(is_lawful(mail, [1000]), Kind.TEXT)
        assert TEXT in texts
        assert b"<html>" + TEXT in texts
        assert texts[-1] == b"\r\n--" + boundary + b"--\r\n"


def test_a_first_delimiter_right_after_the_header_is_found() -> None:
    mail = HEADER + part(TEXT)[2:] + b"\r\n--=_b--\r\n"
    assert TEXT in data_of(is_lawful(mail, [77]), Kind.TEXT)


def test_a_delimiter_right_after_part_headers_is_found() -> None:
    mail = HEADER + part(b"") + part(TEXT)[2:] + b"\r\n--=_b--\r\n"
    assert TEXT in data_of(is_lawful(mail, [77]), Kind.TEXT)


def test_a_part_without_headers_begins_behind_a_known_boundary_only() -> None:
    other = b"<html>" + TEXT
    mail = HEADER + part(TEXT) + part(other, headers=b"") + b"\r\n--=_b--\r\n"
    assert other in data_of(is_lawful(mail, [77]), Kind.TEXT)
    assert len(is_lawful(HEADER + TEXT + part(other, headers=b""), [77])) == 2


def test_one_body_is_the_same_pieces_under_any_header() -> None:
    body = part(TEXT) + attachment(bytes(range(256)) * 20) + b"\r\nA footer\r\n"
    first, *rest = is_lawful(HEADER + body, [500])
    for header in (b"A: b\r\n\r\n", b"\r\n", b"Received: x\r\n" * 900 + b"\r\n"):
        other, *others = is_lawful(header + body, [500])
        assert (first.data, other.data) == (HEADER, header)
        assert others == rest


def test_small_parts_stay_together() -> None:
    mail = HEADER + part(b"hello\r\n") * 20 + b"\r\n--=_b--\r\n"
    header, rest = is_lawful(mail, [7])
    assert (header.data, rest.data) == (HEADER, mail[len(HEADER) :])


def test_a_body_needs_a_size_to_be_a_piece() -> None:
    tail = b"\r\n--=_b--\r\n"
    assert b"x" * MIN_BODY in data_of(split(HEADER + part(b"x" * MIN_BODY) + tail), Kind.TEXT)
    assert len(split(HEADER + part(b"x" * (MIN_BODY - 1)) + tail)) == 2


def test_dashes_in_a_text_are_no_delimiters() -> None:
    text = (
        TEXT
        + b"\r\n-----Original Message-----\r\nFrom: a\r\nTo: b\r\n\r\n"
        + TEXT
        + b"\r\n-- \r\nme\r\n\r\n----\r\n"
        + TEXT
    )
    assert data_of(is_lawful(HEADER + text, [50]), Kind.TEXT) == [text]


def test_base64_in_a_forwarded_mail_is_found() -> None:
    data = bytes(range(256)) * 8
    inner = (
        b"Subject: inner\r\nContent-Transfer-Encoding: base64\r\n\r\n" + encode(data, 76, b"\r\n") + b"\r\n"
    )
    mail = HEADER + part(inner, headers=b"Content-Type: message/rfc822\r\n") + b"\r\n--=_b--\r\n"
    assert data_of(is_lawful(mail, [333]), Kind.ATTACHMENT) == [data]


def test_a_body_that_is_all_base64_is_decoded() -> None:
    data = b"abc" * 1000 + b"d"
    for tail in (b"", b"\r\n", b"\r\n\r\n"):
        pieces = is_lawful(HEADER + encode(data, 64, b"\r\n") + tail, [100])
        assert data_of(pieces, Kind.ATTACHMENT) == [data]


@pytest.mark.parametrize(
    ("spoil", "decoded"),
    [
        (lambda lines: [*lines[:30], b"!" * 76, *lines[31:]], 30 * 57),  # not base64
        (lambda lines: [*lines[:30], lines[30] + b" ", *lines[31:]], 30 * 57),  # trailing space
        (lambda lines: [*lines[:30], lines[30][:40], *lines[31:]], 30 * 57 + 30),  # a short line ends it
        (
            lambda lines: [*lines[:30], lines[30][:-2] + b"==", *lines[31:]],
            30 * 57 + 55,
        ),  # padding in the middle
        (
            lambda lines: [*lines[:30], lines[30][:-2] + b"z=", *lines[31:]],
            30 * 57,
        ),  # padding nobody would write
        (lambda lines: [*lines[:30], lines[30] + lines[30], *lines[31:]], 30 * 57),  # a longer line
        (lambda lines: [*lines[:-1], b"AAA"], 39 * 57),  # a last line that is no whole group
        (lambda lines: [*lines[:-1], b"AB=="], 39 * 57),  # bits in the padding that would be lost
        (lambda lines: [*lines[:-1], b"AA=="], 39 * 57 + 1),
        (lambda lines: [lines[0], b"", *lines[1:5]], 0),  # too short to be worth it
    ],
)
def test_base64_that_turns_odd_goes_on_raw(spoil: Callable[[list[bytes]], list[bytes]], decoded: int) -> None:
    data = random.Random(1).randbytes(57 * 40)
    lines = encode(data, 76, b"\r\n").split(b"\r\n")
    lines[30] = lines[30][:-3] + b"AAA"
    pieces = is_lawful(HEADER + b"\r\n".join(spoil(lines)) + b"\r\n", [1], [700])
    assert sum(map(len, data_of(pieces, Kind.ATTACHMENT))) == decoded


def test_a_mixed_line_end_ends_the_run() -> None:
    first, second = bytes(range(57)) * 40, b"x" * 57 * 40
    mail = HEADER + encode(first, 76, b"\r\n") + b"\n" + encode(second, 76, b"\n")
    assert data_of(is_lawful(mail, [1000]), Kind.ATTACHMENT) == [first]


# --- borders and hostile mail -----------------------------------------------------------------------------


def test_no_message_is_no_piece() -> None:
    assert split(b"") == []
    assert Splitter().feed(b"") == []


@pytest.mark.parametrize("blank", [b"\r\n\r\n", b"\n\n", b"\n\r\n"])
def test_header_ends_with_the_first_blank_line(blank: bytes) -> None:
    pieces = is_lawful(b"A: b" + blank + b"body\r\n\r\nmore", [1])
    assert [(p.kind, p.data) for p in pieces] == [
        (Kind.HEADER, b"A: b" + blank),
        (Kind.TEXT, b"body\r\n\r\nmore"),
    ]


def test_header_without_end_is_cut() -> None:
    assert [p.kind for p in is_lawful(b"A: b\r\n", [1])] == [Kind.HEADER]
    pieces = is_lawful(b"A: b\r\n" * 100_000, [FEED])
    assert [(p.kind, len(p.data)) for p in pieces] == [
        (Kind.HEADER, MAX_HEADER),
        (Kind.TEXT, 600_000 - MAX_HEADER),
    ]


HOSTILE = {
    "parts": b"\n--b\nContent-A:\n\n",
    "delimiters": b"\n--b",
    "closing delimiters": b"\n--b--",
    "delimiters that are headers": b"\n--a:b",
    "headers": b"\nA:b",
    "nesting": b"--%d\nContent-Type: multipart/mixed; boundary=%d\n\n",
    "no headers": b"\n--b\nX:\n\n",
    "header lines that never end": b"\n--b\nContent-A:" + b"x" * 3000,
    "many header lines": b"\n--b" + b"\nContent-A:" * 200,
    "continuation lines": b"\n--b\nContent-A:" + b"\n\t" * 500,
    "one line": b"x",
    "line of base64": b"QUJD",
    "LF": b"\n",
    "CR": b"\r",
    "CRLF": b"\r\n",
    "NUL": b"\0",
    "dashes": b"-",
    "base64 lines": b"\n\nAAAAAAAAAAAAAAAA\n",
    "base64 runs that turn odd in step": b"\n" + (b"A" * 76 + b"\n") * 15 + b"!" * 75 + b"\n",
    "base64 runs with a blank line": b"\n\n" + (b"A" * 76 + b"\n") * 15,
    "narrow base64": b"\n\n" + b"AAAAAAAAAAAAAAAA\n" * 70,
    "wide base64": b"\n\n" + (b"A" * 996 + b"\r\n") * 3,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(60)
def test_hostile_mail_takes_linear_time_and_bounded_memory(name: str) -> None:
    """4 MiB each: quadratic work would take hours; `split` looks at what is held."""
    unit = HOSTILE[name]
    if b"%d" in unit:
        message = HEADER + b"".join(unit % (i, i + 1) for i in range(70_000))
    else:
        message = HEADER + unit * (4 * 1024 * 1024 // len(unit))
    is_lawful(message, [70_001])


def test_small_feeds_are_not_joined_each_time() -> None:
    message = HEADER + TEXT * 700
    assert is_lawful(message, [3])
