"""The bytes of a pack: its header, its records, and what stands in them. No files here; FORMAT.md explains.

Every checksum is BLAKE3 keyed with the pack's own key (from store id, stream, number and salt), so bytes left
over from another pack, or from an earlier use of the disk, never pass for a record of this one.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from store import codec
from store.errors import SealedError
from store.ids import CHUNK_ID_BYTES, ChunkId
from store.sealing import PackSeal

FORMAT_VERSION = 3
"""the latest that this version reads; FORMAT.md says what changed"""
OPEN_VERSION = 2
"""of packs that are not sealed: nothing in them has changed since, and who reads that reads them"""
PACK_MAGIC = b"MKPACK\r\n"
RECORD_MAGIC = b"MK\xa7\x01"
STREAM_NAME_BYTES = 64

_PACK_HEAD = struct.Struct("<8sHBBI16s16sQQ64s32s")
PACK_HEADER_BYTES = _PACK_HEAD.size + 16
_RECORD_HEAD = struct.Struct("<4sBBHQI8s")
_HEAD_SUM_BYTES = 4
RECORD_HEADER_BYTES = _RECORD_HEAD.size + _HEAD_SUM_BYTES
_BLOCK_HEAD = struct.Struct("<BBHII")
_CHUNK_ROW = struct.Struct(f"<{CHUNK_ID_BYTES}sBH")
_CHUNK_ROW_1 = struct.Struct("<16sI")
_ENTRY_LENGTH = struct.Struct("<I")
_COMMIT = struct.Struct("<QQQ32sQ16s16s")
_COMMIT_SALT_AT = _COMMIT.size - 16
_LARGE_BYTES = 1 << 20
MAX_CHUNK_BYTES = (1 << 20) - 1
MAX_PAYLOAD_BYTES = 1 << 30
FIRST_COMPACTED = 1 << 31
"""packs from this number on were written by compaction; those below by the stream's writer"""


class RecordType(enum.IntEnum):
    """What a record holds. Values are part of the format."""

    CHUNKS_1 = 1
    """as format 1 wrote them, with longer rows"""
    ENTRIES = 2
    COMMIT = 3
    CHUNKS = 4
    KEYS = 5
    """the data key of a sealed pack, for its recipients (`store.sealing`)"""
    SEALED_ENTRIES = 6
    SEALED_CHUNKS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class PackHeader:
    """The first bytes of a pack: which store, stream and place in it, and the chain where it begins."""

    number: int
    store_id: bytes
    salt: bytes
    created_us: int
    next_record: int
    stream: str
    chain: bytes
    version: int = OPEN_VERSION
    suite: int = 0
    """encryption suite; 0: none"""

    def key(self) -> bytes:
        """The 32-byte key of this pack's checksums."""
        return pack_key(self.store_id, self.stream, self.number, self.salt)

    def encode(self) -> bytes:
        """`PACK_HEADER_BYTES` bytes. Raises `ValueError` for a stream name that does not fit."""
        if len(self.stream.encode()) > STREAM_NAME_BYTES:
            raise ValueError(f"stream name {self.stream!r} is longer than {STREAM_NAME_BYTES} bytes")
        head = _PACK_HEAD.pack(
            PACK_MAGIC, self.version, self.suite, 0, self.number, self.store_id, self.salt, self.created_us,
            self.next_record, self.stream.encode(), self.chain,
        )  # fmt: skip
        return head + blake3(head).digest(16)


def pack_key(store_id: bytes, stream: str, number: int, salt: bytes) -> bytes:
    """The 32-byte key of the checksums in a pack."""
    return blake3(b"mailkeep pack" + store_id + salt + number.to_bytes(4, "big") + stream.encode()).digest()


def decode_pack_header(data: bytes) -> PackHeader:
    """Raises `ValueError` when `data` does not begin with a sound pack header."""
    head, total = data[: _PACK_HEAD.size], data[_PACK_HEAD.size : PACK_HEADER_BYTES]
    if len(total) != 16 or blake3(head).digest(16) != total:
        raise ValueError("pack header is damaged or cut short")
    magic, version, suite, _, number, store_id, salt, created, nxt, stream, chain = _PACK_HEAD.unpack(head)
    if magic != PACK_MAGIC:
        raise ValueError("not a mailkeep pack")
    return PackHeader(
        number=number, store_id=store_id, salt=salt, created_us=created, next_record=nxt,
        stream=stream.rstrip(b"\0").decode(), chain=chain, version=version, suite=suite,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """A record's kind, its number in the stream, and its payload's length and checksum."""

    type: int
    number: int
    length: int
    payload_sum: bytes


def encode_record(kind: RecordType, number: int, payload: bytes, key: bytes) -> bytes:
    """A whole record: header and payload. Raises `ValueError` beyond `MAX_PAYLOAD_BYTES`."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a record of {len(payload)} bytes is beyond {MAX_PAYLOAD_BYTES}")
    head = _RECORD_HEAD.pack(
        RECORD_MAGIC, kind, 0, 0, number, len(payload), blake3(payload, key=key).digest(8)
    )
    return head + blake3(head, key=key).digest(_HEAD_SUM_BYTES) + payload


def decode_record_header(data: bytes | memoryview, key: bytes) -> RecordHeader | None:
    """The header that `data` begins with, or None when there is none that can be believed."""
    if len(data) < RECORD_HEADER_BYTES or data[:4] != RECORD_MAGIC:
        return None
    head = bytes(data[: _RECORD_HEAD.size])
    if blake3(head, key=key).digest(_HEAD_SUM_BYTES) != data[_RECORD_HEAD.size : RECORD_HEADER_BYTES]:
        return None
    _, kind, _flags, _reserved, number, length, payload_sum = _RECORD_HEAD.unpack(head)
    return RecordHeader(kind, number, length, payload_sum) if length <= MAX_PAYLOAD_BYTES else None


def payload_is_sound(header: RecordHeader, payload: bytes | memoryview, key: bytes) -> bool:
    """Whether `payload` is what was written under `header`."""
    return len(payload) == header.length and blake3(payload, key=key).digest(8) == header.payload_sum


class NewChunk(NamedTuple):
    """A chunk on its way into a block; `kind` is the splitter's, 0 when it is not known."""

    id: ChunkId
    data: bytes
    kind: int = 0


CHUNK_RECORDS = frozenset({RecordType.CHUNKS_1, RecordType.CHUNKS, RecordType.SEALED_CHUNKS})
ENTRY_RECORDS = frozenset({RecordType.ENTRIES, RecordType.SEALED_ENTRIES})
SEALED_RECORDS = frozenset({RecordType.SEALED_CHUNKS, RecordType.SEALED_ENTRIES})
LEAF_BYTES = 32


def encode_chunks(chunks: Iterable[NewChunk], level: int) -> bytes:
    """A CHUNKS payload: how it is packed, a table of ids, kinds and lengths, and the chunks end to end.

    Raises `ValueError` for a chunk longer than `MAX_CHUNK_BYTES`.
    """
    rows, bodies = [], []
    for chunk, data, kind in chunks:
        size = len(data)
        if size > MAX_CHUNK_BYTES:
            raise ValueError(f"a chunk of {size} bytes is beyond {MAX_CHUNK_BYTES}")
        rows.append(_CHUNK_ROW.pack(chunk, kind << 4 | size >> 16, size & 0xFFFF))
        bodies.append(data)
    raw = bodies[0] if len(bodies) == 1 else b"".join(bodies)
    how, body = codec.compress(raw, level)
    return b"".join((_BLOCK_HEAD.pack(how, 0, 0, len(rows), len(raw)), *rows, body))


def chunk_table(record: int, payload: bytes | memoryview) -> list[tuple[ChunkId, int, int, int]]:
    """(id, offset in the raw block, length, kind) of each chunk in a payload of a CHUNKS record, of whatever
    format; nothing is unpacked."""
    _, _, _, count, _ = _BLOCK_HEAD.unpack_from(payload)
    row = _row_of(record)
    rows = payload[_BLOCK_HEAD.size : _BLOCK_HEAD.size + count * row.size]
    table, offset = [], 0
    if record != RecordType.CHUNKS_1:
        for chunk, high, low in row.iter_unpack(rows):
            length = (high & 0xF) << 16 | low
            table.append((ChunkId(chunk), offset, length, high >> 4))
            offset += length
    else:
        for chunk, length in row.iter_unpack(rows):
            table.append((ChunkId(chunk[:CHUNK_ID_BYTES]), offset, length, 0))
            offset += length
    return table


def _row_of(record: int) -> struct.Struct:
    return _CHUNK_ROW_1 if record == RecordType.CHUNKS_1 else _CHUNK_ROW


def _body_at(record: int, payload: bytes | memoryview) -> int:
    """Where the body of a block begins: behind its head and, of chunks, the table; of sealed entries, the
    leaves."""
    _, _, _, count, _ = _BLOCK_HEAD.unpack_from(payload)
    if record == RecordType.ENTRIES:
        return _BLOCK_HEAD.size
    row = LEAF_BYTES if record == RecordType.SEALED_ENTRIES else _row_of(record).size
    return int(_BLOCK_HEAD.size + count * row)


def block_bytes(
    record: int,
    payload: bytes | memoryview,
    upto: int | None = None,
    seal: PackSeal | None = None,
    number: int = 0,
) -> bytes:
    """The raw bytes of a CHUNKS or ENTRIES payload, or of a large one at least the first `upto`; what is
    sealed needs its pack's `seal` and the record's `number`. Raises `ValueError` when they do not come back,
    `SealedError` without a seal."""
    how, _, _, _, raw_bytes = _BLOCK_HEAD.unpack_from(payload)
    at = _body_at(record, payload)
    body: bytes | memoryview = memoryview(payload)[at:]
    if record in SEALED_RECORDS:
        if seal is None:
            raise SealedError("it is sealed, and no identity at hand opens it")
        body = seal.open(record, number, bytes(payload[:at]), bytes(body))
    if upto is not None and upto < raw_bytes and raw_bytes >= _LARGE_BYTES:
        return codec.decompress_begin(how, body, upto)
    return codec.decompress(how, body, raw_bytes)


def seal_block(
    record: RecordType, number: int, payload: bytes, seal: PackSeal, leaves: Sequence[bytes]
) -> tuple[RecordType, bytes]:
    """The sealed form of a CHUNKS or ENTRIES payload. What stays in the clear: the table of chunks, or the
    `leaves` of the facts among the entries, in order."""
    at = _body_at(record, payload)
    if record == RecordType.CHUNKS:
        kind, clear = RecordType.SEALED_CHUNKS, payload[:at]
    else:
        how, _, _, _, raw_bytes = _BLOCK_HEAD.unpack_from(payload)
        head = _BLOCK_HEAD.pack(how, 0, 0, len(leaves), raw_bytes)
        kind, clear = RecordType.SEALED_ENTRIES, b"".join((head, *leaves))
    return kind, clear + seal.seal(kind, number, clear, payload[at:])


def sealed_leaves(payload: bytes | memoryview) -> list[bytes]:
    """The leaves of the facts in a SEALED_ENTRIES payload."""
    end = _body_at(RecordType.SEALED_ENTRIES, payload)
    return [bytes(payload[at : at + LEAF_BYTES]) for at in range(_BLOCK_HEAD.size, end, LEAF_BYTES)]


def encode_entries(entries: list[bytes], level: int) -> bytes:
    """An ENTRIES payload: each entry after its length, all packed together."""
    raw = b"".join([part for entry in entries for part in (_ENTRY_LENGTH.pack(len(entry)), entry)])
    how, body = codec.compress(raw, level)
    return _BLOCK_HEAD.pack(how, 0, 0, len(entries), len(raw)) + body


def entries_in(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, entry) for each entry of a raw ENTRIES block."""
    offset = 0
    while offset < len(raw):
        (length,) = _ENTRY_LENGTH.unpack_from(raw, offset)
        yield offset, raw[offset + 4 : offset + 4 + length]
        offset += 4 + length


def entry_at(raw: bytes, offset: int) -> bytes:
    """The entry that begins at `offset` of a raw ENTRIES block."""
    (length,) = _ENTRY_LENGTH.unpack_from(raw, offset)
    return raw[offset + 4 : offset + 4 + length]


def entry_offsets(entries: list[bytes]) -> Iterator[int]:
    """The offset that each entry will have in the raw block made of `entries`."""
    offset = 0
    for entry in entries:
        yield offset
        offset += _ENTRY_LENGTH.size + len(entry)


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a group, which vouches for all of it.

    `start` is the offset of the group's first record in the pack, `digest` covers the headers (and so the
    payloads) of its records, `chain` the history up to here. `salt` is the pack's, so that a pack whose
    header is damaged can still be read.
    """

    number: int
    time_us: int
    facts: int
    chain: bytes
    start: int
    digest: bytes
    salt: bytes

    def encode(self) -> bytes:
        """A COMMIT payload."""
        return _COMMIT.pack(
            self.number, self.time_us, self.facts, self.chain, self.start, self.digest, self.salt
        )


def decode_commit(payload: bytes | memoryview) -> Commit:
    """Raises `ValueError` on a payload of another length."""
    if len(payload) != _COMMIT.size:
        raise ValueError("commit record has the wrong length")
    return Commit(*_COMMIT.unpack(payload))


def salt_in(record: bytes | memoryview) -> bytes | None:
    """The salt in what looks like a COMMIT record, for when the key that would prove it is not known yet."""
    size = RECORD_HEADER_BYTES + _COMMIT.size
    if len(record) < size or record[:4] != RECORD_MAGIC or record[4] != RecordType.COMMIT:
        return None
    return bytes(record[RECORD_HEADER_BYTES + _COMMIT_SALT_AT : size])


def group_digest(headers: Iterable[bytes], key: bytes) -> bytes:
    """16 bytes over the record headers of a group, its COMMIT not included."""
    return blake3(b"".join(headers), key=key).digest(16)


def chain_start(store_id: bytes, stream: str) -> bytes:
    """The chain of a stream that has no facts yet."""
    return blake3(b"mailkeep chain" + store_id + stream.encode()).digest()


def chain_next(chain: bytes, leaf: bytes) -> bytes:
    """The chain after one more fact, which stands in it by its leaf (`records.leaf`): so a fact's bytes may
    be erased and the chain still be checked."""
    return blake3(chain + leaf).digest()
