"""The bytes on disk, pinned: a change here is a change of the format, and FORMAT.md says the same sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from store import layout
from store.ids import ChunkId, ContentId, DeliveryId, chunk_id
from store.layout import Commit, PackHeader, RecordType
from store.records import (
    Content,
    Delivery,
    Envelope,
    Leg,
    Outcome,
    Outcomes,
    Recipient,
    Run,
    Stub,
    decode,
    encode,
    leaf,
)

FORMAT = (Path(layout.__file__).parent / "FORMAT.md").read_text()
HEADER = PackHeader(
    number=7, store_id=b"S" * 16, salt=b"s" * 16, created_us=1, next_record=2, stream="host", chain=b"c" * 32
)
ENTRIES = [
    (
        Delivery(
            id=DeliveryId(b"d" * 16), time_us=5, leg=Leg.LMTP, content=ContentId(b"C" * 32), size=3,
            envelope=Envelope(b"a@b", (Recipient(b"c@d", b"NOTIFY=NEVER"),)), queue_id=b"4Q",
        ),
        "019cc41064646464646464646464646464646464"  # type, array of 12, id
        "05a46c6d7470c42043434343434343434343434343434343434343434343434343434343434343430393c40361406291"
        "92c403634064c40c4e4f544946593d4e45564552c400c4023451c400c400c4008090",
    ),
    (
        Outcomes(delivery=DeliveryId(b"d" * 16), time_us=5, outcomes=(Outcome(0, b"250 ok"),)),
        "0293c41064646464646464646464646464646464059193" "00c406323530206f6baa646f776e73747265616d",
    ),
    (
        Content(ContentId(b"C" * 32), 3, (Run((ChunkId(b"k" * 12),), 76, b"\r\n"),)),
        "4093c420" + "43" * 32 + "03919391c40c" + "6b" * 12 + "4cc4020d0a",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "expected"), ENTRIES, ids=lambda value: type(value).__name__)
def test_entries(entry: Delivery | Outcomes | Content, expected: str) -> None:
    assert encode(entry).hex() == expected
    assert decode(bytes.fromhex(expected)) == entry


def test_a_reader_takes_entries_with_more_fields() -> None:
    data = bytearray(encode(ENTRIES[1][0]))
    data[1] += 1  # one more element in the array
    assert decode(bytes(data) + b"\x2a") == ENTRIES[1][0]


def test_pack_header() -> None:
    data = HEADER.encode()
    assert layout.decode_pack_header(data) == HEADER
    assert data[:20].hex() == "4d4b5041434b0d0a020000000700000053535353"
    assert f"## Pack header: {len(data)} bytes" in FORMAT
    assert HEADER.key() == layout.pack_key(b"S" * 16, "host", 7, b"s" * 16)
    with pytest.raises(ValueError, match="damaged"):
        layout.decode_pack_header(data[:-1])


def test_record_and_commit() -> None:
    commit = Commit(1, 2, 3, b"c" * 32, 176, b"g" * 16, b"s" * 16)
    key = HEADER.key()
    record = layout.encode_record(RecordType.COMMIT, 9, commit.encode(), key)
    head = layout.decode_record_header(record, key)
    assert head is not None
    assert (head.type, head.number, head.length) == (3, 9, 96)
    assert layout.payload_is_sound(head, record[32:], key)
    assert layout.decode_commit(record[32:]) == commit
    assert layout.salt_in(record) == b"s" * 16
    assert layout.decode_record_header(record, b"x" * 32) is None
    assert f"### COMMIT payload: {head.length} bytes" in FORMAT
    assert f"## Record: {layout.RECORD_HEADER_BYTES} bytes of header" in FORMAT


def test_vectors() -> None:
    assert chunk_id(b"chunk", b"k" * 32).hex() == CHUNK
    start = layout.chain_start(b"S" * 16, "host")
    assert start.hex() == CHAIN_START
    assert layout.chain_next(start, leaf(b"\x02fact")).hex() == CHAIN_NEXT
    stub = Stub(leaf=leaf(b"\x02fact"), delivery=DeliveryId(b"d" * 16), type=2)
    assert layout.chain_next(start, leaf(encode(stub))).hex() == CHAIN_NEXT


CHUNK = "eccd65d8213f36ca9ee71586"
CHAIN_START = "767ac1a4ea0fe47e6cb936663b492e4e8247dbfdbd85599dd63fd0eb49902e2b"
CHAIN_NEXT = "eba1c8ca0f4b43802c202fe354adf16124b8bdb697b83310c30c839339c076b9"
