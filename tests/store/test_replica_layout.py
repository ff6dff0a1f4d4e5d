"""A round says what was meant, in whatever form; a bit that differs is found; names go both ways."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.notes import SignKey
from store.replicas.contents import Contents
from store.replicas.layout import (
    INLINE,
    NO_ROUND,
    Extent,
    Round,
    RoundError,
    StreamChange,
    decode_round,
    encode_round,
    extent_of,
    in_name,
    out_of_name,
    parse_piece,
    piece_name,
    round_name,
)

STORE = bytes(range(16))
NAMES = st.text(string.printable + "ü=/%", min_size=1, max_size=20)
STREAMS = NAMES.filter(lambda name: "/" not in name and bool(name.strip(".")))


def inline(offset: int, data: bytes) -> Extent:
    return extent_of(offset, data, copy=INLINE)


def a_round(number: int = 1, before: bytes = NO_ROUND, **streams: StreamChange) -> Round:
    return Round(STORE, "mx1", number, 17, before, "cafe0123", streams=streams)


@given(NAMES)
def test_names_go_both_ways(name: str) -> None:
    assert out_of_name(in_name(name)) == name
    assert in_name(name).isascii()
    assert not set(in_name(name)) & set("/%?# \\")


@given(
    NAMES, st.integers(0, 10**10 - 1), st.integers(0, 10**12 - 1), st.binary(max_size=9), st.integers(0, 3)
)
def test_a_pieces_name_tells_what_it_is(stream: str, pack: int, at: int, data: bytes, copy: int) -> None:
    extent = extent_of(at, data, copy=copy)
    assert parse_piece(piece_name(stream, pack, extent)) == (stream, pack, extent)


def test_names_sort_as_numbers_do() -> None:
    names = [round_name("mx", number, full=False) for number in (1, 9, 10, 99, 10**11)]
    assert sorted(names) == names
    assert parse_piece("packs/mx/0000000001/readme") is None
    assert parse_piece("hosts/mx/rounds/000000000001") is None


@settings(max_examples=50)
@given(
    st.dictionaries(
        STREAMS,
        st.tuples(
            st.dictionaries(
                st.integers(1, 1 << 32), st.lists(st.binary(max_size=40), max_size=4), max_size=3
            ),
            st.dictionaries(STREAMS.map(lambda name: f"{name}.segment"), st.text(max_size=50), max_size=2),
            st.lists(st.integers(1, 1 << 32), max_size=3),
            st.lists(NAMES, max_size=2),
        ),
        max_size=3,
    ),
    st.booleans(),
)
def test_what_is_encoded_is_decoded(
    told: dict[str, tuple[dict[int, list[bytes]], dict[str, str], list[int], list[str]]], signed: bool
) -> None:
    data: list[bytes] = []
    streams = {}
    for name, (packs, segments, gone, gone_segments) in told.items():
        change = StreamChange(segments=segments, gone=gone, gone_segments=gone_segments)
        for pack, parts in packs.items():
            at = 0
            for number, part in enumerate(parts):
                if number % 2:
                    change.packs.setdefault(pack, []).append(extent_of(at, part, copy=number))
                else:
                    change.packs.setdefault(pack, []).append(inline(at, part))
                    data.append(part)
                at += len(part)
        streams[name] = change
    key = SignKey.generate("mx1")
    made = Round(STORE, "mx1", 7, 17, NO_ROUND, "cafe", streams=streams)
    whole = encode_round(made, data, key.sign if signed else str)
    read = decode_round(whole, key.verify_key if signed else None)
    assert (read.streams, read.digest, read.size) == (made.streams, made.digest, len(whole))
    for change in read.streams.values():
        for extents in change.packs.values():
            for extent in extents:
                if extent.inline:
                    there = whole[read.data_at + extent.at :][: extent.length]
                    assert extent_of(extent.offset, there, copy=INLINE).digest == extent.digest


def test_every_byte_counts() -> None:
    data = [b"the bytes of a pack", b"and more of them"]
    change = StreamChange({1: [inline(0, data[0]), inline(19, data[1])]}, {"1-1.segment": "{}"}, [3], ["x"])
    whole = encode_round(a_round(mx1=change), data)
    decode_round(whole)
    for at in range(len(whole)):
        for flip in (1, 0x80):
            spoiled = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
            with pytest.raises(RoundError):
                decode_round(spoiled)
    for end in range(len(whole)):
        with pytest.raises(RoundError):
            decode_round(whole[:end])
    with pytest.raises(RoundError):
        decode_round(whole + b"x")


def test_a_digest_of_ones_own_making_is_not_enough() -> None:
    """Whoever can write the bucket makes a round that is sound; only a signature keeps him out."""
    data = [b"x"]
    made = a_round(mx1=StreamChange({1: [inline(0, b"y")]}))
    with pytest.raises(RoundError, match="not what it says"):
        decode_round(encode_round(made, data))
    ours, theirs = SignKey.generate("mx1"), SignKey.generate("mx1")
    whole = encode_round(a_round(), [], theirs.sign)
    with pytest.raises(RoundError, match="not signed by mx1"):
        decode_round(whole, ours.verify_key)
    with pytest.raises(RoundError, match="not signed by mx1"):
        decode_round(encode_round(a_round(), []), ours.verify_key)


def test_contents_follow_the_rounds() -> None:
    contents = Contents(STORE, "mx1")

    def take(full: bool = False, **streams: StreamChange) -> None:
        made = a_round(contents.number + 1, contents.digest, **streams)
        made.full = full
        data = [
            bytes(e.length)
            for c in streams.values()
            for extents in c.packs.values()
            for e in extents
            if e.inline
        ]
        encode_round(made, data)
        contents.apply(made)

    take(full=True)
    take(mx=StreamChange({1: [inline(0, bytes(10))], 2: [extent_of(0, bytes(4))]}))
    take(mx=StreamChange({1: [inline(15, bytes(5))]}))
    stream = contents.stream("mx")
    assert (stream.end(1), stream.has_hole(1), stream.has_hole(2)) == (10, True, False)
    take(mx=StreamChange({1: [inline(8, bytes(7))]}))
    assert (stream.end(1), stream.has_hole(1)) == (20, False)
    assert contents.inline_bytes == 22
    take(mx=StreamChange({2147483648: [extent_of(0, bytes(9))]}, {"1-1.segment": "text"}, gone=[1]))
    assert (sorted(stream.packs), stream.segments) == ([2, 2147483648], {"1-1.segment": "text"})
    assert len(contents.pieces()) == 2
    take(mx=StreamChange(gone_segments=["1-1.segment", "never"], gone=[77]))
    assert stream.segments == {}
    before = contents.as_changes()
    take(full=True, **before)
    assert contents.as_changes() == before
    assert (contents.full_number, contents.inline_bytes) == (contents.number, 0)


@pytest.mark.parametrize(
    "streams",
    [
        {"../../etc": StreamChange()},
        {"..": StreamChange()},
        {"a/b": StreamChange()},
        {"a": StreamChange(segments={"../x.segment": ""})},
        {"a": StreamChange(segments={"0000000001.pack": ""})},
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(streams: dict[str, StreamChange]) -> None:
    round_ = a_round()
    round_.streams = streams
    with pytest.raises(RoundError, match=r"no (stream|segment)'s name"):
        decode_round(encode_round(round_, []))
