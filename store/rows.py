"""The rows of the index: what is known of chunks, contents and deliveries, as fixed-width bytes that sort.

| table | row |
|---|---|
| CHUNK | chunk id (12), place, length (3) |
| CONTENT | first 12 bytes of the content id, place |
| DELIVERY | time (8), random part of the id (8), type, place: one for each entry about a delivery |
| ID | delivery id: random part (8), time (8) |
| TERM | kind, hash (7), time of the delivery (8) |
| TILE | stream number (4), level (1), number (5), hash (32) of a complete subtree of 256 ** level facts |
| BLOCK | stream number (4), number (5), place of its first fact: one for each 256 facts |

A place is (pack, offset of the record, offset in the record's raw block) in 3 + 4 + 3 bytes, where packs
go by the index's own small numbers; in that of a BLOCK the last part is how many facts of that record come
before it. All numbers are big-endian. Names are cut to 96 bits here, which keeps
accidents out (2⁻³¹ at ten billion chunks); what is read is compared with the whole name all the same.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from blake3 import blake3

from store.ids import ChunkId, ContentId, DeliveryId
from store.records import EntryType

NAME_BYTES = 12
PLACE_BYTES = 10
MAX_INNER = (1 << 24) - 1
MAX_OFFSET = (1 << 32) - 1


_KIND = [bytes([kind]) for kind in range(256)]


class Table(enum.IntEnum):
    """The tables; each has rows of one width."""

    CHUNK = 1
    CONTENT = 2
    DELIVERY = 3
    ID = 4
    TERM = 5
    TILE = 6
    BLOCK = 7


PLACE_AT = {Table.CHUNK: 12, Table.CONTENT: 12, Table.DELIVERY: 17, Table.BLOCK: 9}
"""where the place stands in the rows of the tables that have one"""

PREFIX = {table: bytes([table]) for table in Table}
"""what stands before a row where the rows of all tables are together"""

FILTERED = frozenset({int(Table.CHUNK), int(Table.CONTENT)})
"""tables that are mostly asked for what is not there"""


class Term(enum.IntEnum):
    """What a delivery can be looked up by."""

    RECIPIENT = 1
    SENDER = 2
    QUEUE_ID = 3
    MESSAGE_ID = 4
    REPLAY_RUN = 5
    CONTENT = 6
    """the content id: all deliveries of one message"""
    ERASED = 7
    """the keyed content id in an erasure's tombstone"""


def place(pack: int, offset: int, inner: int) -> bytes:
    """A place, `pack` by the index's number. Raises `OverflowError` beyond the widths."""
    return pack.to_bytes(3, "big") + offset.to_bytes(4, "big") + inner.to_bytes(3, "big")


def split_place(row: bytes, at: int) -> tuple[int, int, int]:
    """(pack by the index's number, offset, inner) in a row."""
    return (
        int.from_bytes(row[at : at + 3], "big"),
        int.from_bytes(row[at + 3 : at + 7], "big"),
        int.from_bytes(row[at + 7 : at + 10], "big"),
    )


def pack_of(row: bytes, at: int) -> int:
    """The index's number of the pack in a row."""
    return int.from_bytes(row[at : at + 3], "big")


def chunk_row(chunk: ChunkId, where: bytes, size: int) -> bytes:
    """A CHUNK row."""
    return chunk[:NAME_BYTES] + where + size.to_bytes(3, "big")


def content_row(content: ContentId, where: bytes) -> bytes:
    """A CONTENT row."""
    return content[:NAME_BYTES] + where


def delivery_row(delivery: DeliveryId, kind: EntryType, where: bytes) -> bytes:
    """A DELIVERY row."""
    return delivery[8:] + delivery[:8] + _KIND[kind] + where


def term_prefix(kind: Term, value: bytes) -> bytes:
    """The first 8 bytes of the TERM rows for a value."""
    return _KIND[kind] + blake3(value).digest(7)


def term_row(kind: Term, value: bytes, delivery: DeliveryId) -> bytes:
    """A TERM row."""
    return term_prefix(kind, value) + delivery[8:]


def tile_prefix(stream: int, level: int, number: int) -> bytes:
    """What the TILE row of a subtree begins with, and is sorted by."""
    return stream.to_bytes(4, "big") + level.to_bytes(1, "big") + number.to_bytes(5, "big")


def block_row(stream: int, number: int, where: bytes) -> bytes:
    """A BLOCK row."""
    return stream.to_bytes(4, "big") + number.to_bytes(5, "big") + where


def id_in(row: bytes) -> DeliveryId:
    """The delivery that a DELIVERY row speaks of."""
    return DeliveryId(row[8:16] + row[:8])


def live(rows: Iterable[bytes], table: int, dead: frozenset[int]) -> list[bytes]:
    """The rows whose pack is not among `dead`."""
    at = PLACE_AT[Table(table)]
    gone = {number.to_bytes(3, "big") for number in dead}
    return [row for row in rows if row[at : at + 3] not in gone]
