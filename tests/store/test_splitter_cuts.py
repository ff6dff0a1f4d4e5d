"""Where bodies and header blocks are cut, and that this never changes unseen."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfastcdc import FastCDC

from store.cutting import AVG_CUT, MAX_CUT, MIN_CUT, MIN_STRETCH, cut_body, cut_header
from store.splitter import MAX_HEADER, Kind, Piece
from tests.store.test_splitter import FEED, HEADER, TEXT, attachment, data_of, is_lawful, part, split


def noise(size: int, seed: bytes = b"mailkeep") -> bytes:
    """Bytes that look random and are the same for ever, whatever becomes of Python's `random`."""
    return hashlib.shake_256(seed).digest(size)


# --- bodies: the cuts are frozen --------------------------------------------------------------------------

GOLDEN = [
    114_506,
    375_469,
    518_997,
    932_760,
    1_259_891,
    1_416_259,
    1_653_237,
    1_804_686,
    1_985_361,
    2_162_020,
    2_375_072,
    2_478_260,
    2_710_910,
    2_856_052,
    3_058_579,
    3_134_857,
    3_145_728,
]
"""Where 3 MiB of noise are cut. Other values mean that every large attachment would be stored once more."""

GOLDEN_TEXT = [166_615, 448_061, 584_436, 739_756, 996_177, 1_215_272]


def numbered_lines(count: int) -> bytes:
    return b"".join(b"%d: a line of a long text, %d words\r\n" % (i, i * i % 977) for i in range(count))


def test_cuts_are_the_golden_ones() -> None:
    assert (MIN_CUT, AVG_CUT, MAX_CUT) == (65_536, 131_072, 524_288)
    assert cut_body(noise(3 << 20), final=True) == GOLDEN
    assert cut_body(numbered_lines(30_000), final=True) == GOLDEN_TEXT


def test_the_library_without_its_compiled_part_cuts_alike() -> None:
    slow = pytest.importorskip("pyfastcdc.py").FastCDC
    options = {"min_size": 256, "max_size": 4096, "normalized_chunking": 1, "seed": 0}
    data = noise(200_000) + b"\0" * 10_000 + TEXT * 10
    lengths = [[chunk.length for chunk in cdc(1024, **options).cut_buf(data)] for cdc in (FastCDC, slow)]
    assert len(lengths[0]) > 100
    assert lengths[0] == lengths[1]


def test_pieces_of_a_message_are_cut_there() -> None:
    body = noise(3 << 20)
    pieces = is_lawful(HEADER + part(TEXT) + attachment(body), [100_003], [FEED - 1])
    ends = list(itertools.accumulate(len(data) for data in data_of(pieces, Kind.ATTACHMENT)))
    assert ends == GOLDEN
    text = numbered_lines(30_000)
    pieces = is_lawful(HEADER + part(text) + b"\r\n--=_b--\r\n", [100_003], [FEED - 1])
    ends = list(itertools.accumulate(len(data) for data in data_of(pieces, Kind.TEXT)))
    assert [end - ends[0] for end in ends[1:-1]] == GOLDEN_TEXT


@pytest.mark.parametrize("size", [1, MIN_CUT - 1, MIN_CUT])
def test_small_bodies_stay_whole(size: int) -> None:
    assert cut_body(noise(size), final=True) == [size]
    assert cut_body(noise(size), final=False) == []


def test_no_body_is_no_piece() -> None:
    assert cut_body(b"", final=True) == []


@pytest.mark.parametrize("body", [b"\0" * (2 * MAX_CUT + 1), b"ab" * MAX_CUT])
def test_where_content_gives_no_cut_length_does(body: bytes) -> None:
    ends = cut_body(body, final=True)
    assert [b - a for a, b in itertools.pairwise([0, *ends])][:-1] == [MAX_CUT] * (len(ends) - 1)


@given(st.integers(0, 4 * MAX_CUT), st.lists(st.integers(0, 4 * MAX_CUT), max_size=4))
@settings(max_examples=50, deadline=None)
def test_what_is_not_yet_seen_changes_no_cut(size: int, seen: list[int]) -> None:
    body = noise(size)
    ends = cut_body(body, final=True)
    for upto in seen:
        early = cut_body(body[:upto], final=False)
        assert early == ends[: len(early)]


def shared(one: list[Piece], other: list[Piece]) -> float:
    """How much of the other's bytes is in pieces that the one has, too."""
    known = {piece.data for piece in one}
    return sum(len(p.data) for p in other if p.data in known) / sum(len(p.data) for p in other)


@pytest.mark.parametrize("where", [0, 1_000_000])
@pytest.mark.parametrize("kind", ["base64", "text"])
def test_six_bytes_put_in_leave_nearly_all_chunks_as_they_were(kind: str, where: int) -> None:
    body = noise(3 << 20) if kind == "base64" else numbered_lines(60_000)
    changed = body[:where] + b"6bytes" + body[where:]
    one, other = (
        split(HEADER + (attachment(b) if kind == "base64" else part(b) + b"\r\n--=_b--\r\n"))
        for b in (body, changed)
    )
    assert shared(one, other) > 0.8
    assert shared(other, one) > 0.8


# --- header blocks ----------------------------------------------------------------------------------------

TRACE = (
    b"Return-Path: <a@example.org>\r\n"
    b"Delivered-To: b@example.net\r\n"
    b"Received: from mx.example.net (mx.example.net [192.0.2.1])\r\n"
    b"\tby mail.example.net (Postfix) with LMTP id 0123456789AB\r\n"
    b"\tfor <b@example.net>; Mon, 1 Jan 2024 00:00:00 +0000 (UTC)\r\n"
    b"ARC-Seal: i=1; a=rsa-sha256;\r\n b=abc\r\n"
    b"DKIM-Signature: v=1; b=xyz\r\n"
)
OTHER = (
    b"X-Original-To: c@example.net\r\nrEcEiVeD : from a\r\nX-Spam-Status: No\r\n\tscore=1\r\n" + TRACE[31:]
)
FIELDS = b"".join(b"X-Field-%d: value %d,\r\n folded\r\n" % (i, i * i) for i in range(25))


def kinds(pieces: list[Piece]) -> list[tuple[Kind, bytes]]:
    return [(piece.kind, piece.data) for piece in pieces]


@pytest.mark.parametrize("eol", [b"\r\n", b"\n"])
def test_trace_on_top_and_the_rest_are_two_pieces(eol: bytes) -> None:
    trace, fields = TRACE.replace(b"\r\n", eol), FIELDS.replace(b"\r\n", eol)
    assert kinds(is_lawful(trace + fields + eol + b"body", [1], [7])) == [
        (Kind.TRACE, trace),
        (Kind.HEADER, fields + eol),
        (Kind.TEXT, b"body"),
    ]


def test_another_way_to_the_reader_changes_the_trace_alone() -> None:
    rest = FIELDS + b"X-Spam-Flag: NO\r\n" + FIELDS + b"\r\n" + part(TEXT) + attachment(noise(5000))
    one, other = is_lawful(TRACE + rest, [999]), is_lawful(OTHER + rest, [999])
    assert [p for p in one if p.kind is not Kind.TRACE] == [p for p in other if p.kind is not Kind.TRACE]
    assert kinds(one)[1:5] == [
        (Kind.HEADER, FIELDS),
        (Kind.TRACE, b"X-Spam-Flag: NO\r\n"),
        (Kind.HEADER, FIELDS + b"\r\n"),
        (Kind.TEXT, part(b"")),
    ]


def test_a_short_stretch_is_no_piece() -> None:
    short = b"Subject: " + b"x" * (MIN_STRETCH - 12) + b"\r\n"
    assert len(short) == MIN_STRETCH - 1
    header = TRACE + short + TRACE
    assert kinds(is_lawful(header + short[:-4] + b"\r\n\r\n")) == [
        (Kind.TRACE, header + short[:-4] + b"\r\n\r\n")
    ]
    assert kinds(is_lawful(TRACE + b"x" + short + TRACE + b"\r\n")) == [
        (Kind.TRACE, TRACE),
        (Kind.HEADER, b"x" + short),
        (Kind.TRACE, TRACE + b"\r\n"),
    ]


@pytest.mark.parametrize(
    ("name", "trace"),
    [
        (b"Received", True),
        (b"RECEIVED-SPF", True),
        (b"arc-authentication-results", True),
        (b"X-Spam-Checker-Version", True),
        (b"X-MS-Exchange-Organization-SCL", True),
        (b"Return-Path \t", True),
        (b"Receivedd", False),
        (b"X-Received-By", False),
        (b" Received", False),
        (b"Subject: x\r\n Received", False),
        (b"Status-Code", False),
        (b"Message-ID", False),
        (b"List-Id", False),
    ],
)
def test_what_counts_as_trace(name: bytes, trace: bool) -> None:
    assert cut_header(name + b": x\r\n", len(name) + 5) == [(trace, len(name) + 5)]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\r\n",
        b"Received",
        b"Received:",
        b"\nReceived: x\n",
        b"From a@b Mon Jan 1\n" + TRACE,
        b" \n\t\n:\n::\nReceived\n: x\nReceived:\n \n",
        b"\0\xff\r\r\rReceived: x\r\r\n" * 50,
        TRACE[:-2],
        b"Received: x\n" * (MAX_HEADER // 12 + 5),
        (b"Received: x\nA: " + b"b" * MIN_STRETCH + b"\n") * (MAX_HEADER // 500),
        b"x" * (MAX_HEADER + 5),
        b"Received: " + b"x" * (MAX_HEADER + 5),
        b"Received: x\n" + b"\t\n" * MAX_HEADER,
    ],
)
def test_odd_headers_come_back(header: bytes) -> None:
    for tail in (b"", b"\n", b"\r\n\r\nbody\r\n"):
        pieces = is_lawful(header + tail, [60_001])
        if len(header) > MAX_HEADER:
            assert sum(len(p.data) for p in pieces if p.kind in (Kind.HEADER, Kind.TRACE)) == MAX_HEADER


lines = st.lists(
    st.sampled_from(
        [TRACE, FIELDS, b"Received: x\r\n", b"Subject: x\r\n", b" \r\n", b"x" * 300 + b"\n", b"\r", b":"]
    )
)


@given(lines.map(b"".join), st.integers(0, 3000))
@settings(deadline=None)
def test_header_pieces_follow_each_other_and_are_few(header: bytes, end: int) -> None:
    end = min(end, len(header))
    pieces = cut_header(header, end)
    ends = [0, *(stop for _, stop in pieces)]
    assert ends[-1] == end
    assert all(a < b for a, b in itertools.pairwise(ends))
    assert len(pieces) <= 1 + 2 * (end // MIN_STRETCH)
    assert all(a or b for (a, _), (b, _) in itertools.pairwise(pieces))
    for (trace, stop), start in zip(pieces, ends, strict=False):
        assert trace or len(pieces) == 1 or stop - start >= MIN_STRETCH


@given(st.lists(st.sampled_from([TRACE, OTHER, FIELDS, b"To: x\r\n"]), max_size=8))
@settings(deadline=None)
def test_a_further_hop_changes_the_first_piece_at_most(fields: list[bytes]) -> None:
    rest = b"".join(fields) + b"\r\n" + TEXT
    _, *same = (p.data for p in is_lawful(rest))
    assert [p.data for p in is_lawful(OTHER + rest)][-len(same) :] == same
