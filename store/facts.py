"""Read the facts of packs in order, past all message bytes: by the thousand for a check, a few for a proof.

Every record's header and the payload of what is read are proved by their checksums; chunks are stepped over.
What is damaged is passed over, too, and shows as facts that are missing, by their number: whether the facts
are those that were recorded is told by the hashes over them alone.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from store import layout, records
from store.errors import DamagedError, StoreError
from store.files import Fill, all_here
from store.layout import FIRST_COMPACTED, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, Commit, RecordType
from store.places import Damage, Location, Place
from store.scan import key_of_pack, pack_seal, read_pack_header, scan_records
from store.sealing import Keyring, PackSeal
from store.segments import Part, Segment, first_of, pack_path, packs_of

log = logging.getLogger(__name__)

_WINDOW = 16 << 10


class _Piece(NamedTuple):
    """A sound record; its payload is left out where it is chunks."""

    type: int
    number: int
    offset: int
    header: bytes
    payload: bytes


class Fact(NamedTuple):
    """A fact's leaf, and its bytes as they stand in the log: None if it is sealed and nothing opens it."""

    leaf: bytes
    data: bytes | None


class FactGroup(NamedTuple):
    """The facts that a COMMIT made durable, and the COMMIT."""

    commit: Commit
    facts: list[Fact]

    @property
    def first(self) -> int:
        """The number of the first of them in the stream."""
        return self.commit.facts - len(self.facts)


def fact_groups(
    path: Path, store_id: bytes, keyring: Keyring, goes_on: int | None = None
) -> Iterator[FactGroup]:
    """The groups of a pack, in order. `goes_on` is what `following` says: groups from that record on were
    never acknowledged. Raises `OSError`, `ValueError` when the pack cannot be read or is not the one that
    belongs there."""
    key = key_of_pack(path, store_id)
    try:
        header = read_pack_header(path)
    except ValueError:
        pass  # a commit has told the key, so store, stream and number are right
    else:
        if (header.store_id, header.stream, header.number) != (store_id, path.parent.name, int(path.stem)):
            raise ValueError(f"belongs to stream {header.stream!r}, pack {header.number}, not here")
    headers: list[bytes] = []
    facts: list[Fact] = []
    start = PACK_HEADER_BYTES
    doubtful: FactGroup | None = None
    for piece in _pieces(path, key, start):
        if piece.type == RecordType.COMMIT:
            if goes_on is not None and piece.number >= goes_on:
                return
            commit = layout.decode_commit(piece.payload)
            whole = commit.start == start and commit.digest == layout.group_digest(headers, key)
            if doubtful is not None:  # the writer had gone on behind it, so it had been durable
                yield doubtful
            group = FactGroup(commit, facts)
            doubtful = None if whole else group
            if whole:
                yield group
            start = piece.offset + RECORD_HEADER_BYTES + len(piece.payload)
            headers, facts = [], []
            continue
        headers.append(piece.header)
        if piece.type in layout.ENTRY_RECORDS:
            seal = pack_seal(path, key, keyring) if piece.type in layout.SEALED_RECORDS else None
            facts += _facts_in(piece, seal)


def following(directory: Path, parts: Sequence[Part], number: int) -> int | None:
    """The number of the record with which a stream goes on behind its pack `number`; None where that is not
    known, or where no crash can have left anything: behind the packs of a segment."""
    if number >= FIRST_COMPACTED:
        return None
    after = next((part for part in parts if first_of(part) > number), None)
    if isinstance(after, Segment):
        return after.start.next_record
    try:
        return None if after is None else read_pack_header(pack_path(directory, after)).next_record
    except ValueError:
        return None


def numbered(path: Path, store_id: bytes, keyring: Keyring, where: Location) -> tuple[int, bytes]:
    """The fact at a place: its number in the stream, which the next COMMIT tells, and its bytes.

    Raises `DamagedError`, `SealedError`, `OSError`."""
    found, after = b"", 0
    try:
        key = key_of_pack(path, store_id)
        for piece in _pieces(path, key, where.offset):
            if piece.type == RecordType.COMMIT and found:
                return layout.decode_commit(piece.payload).facts - after, found
            if piece.offset == where.offset and piece.type in layout.ENTRY_RECORDS:
                seal = pack_seal(path, key, keyring) if piece.type in layout.SEALED_RECORDS else None
                for inner, data in _entries_in(piece, seal):
                    if inner == where.inner:
                        found = data
                    after += bool(found) and records.is_fact(data)
            elif piece.type in layout.ENTRY_RECORDS:
                after += _count_in(piece)
    except ValueError as exc:
        raise DamagedError(f"{path}: {exc}") from exc
    raise DamagedError(f"{path} at byte {where.offset}: the record, or the commit after it, is damaged")


def leaves_from(
    directory: Path, store_id: bytes, parts: Sequence[Part], where: Location, count: int
) -> list[bytes]:
    """The leaves of `count` facts, or of fewer where there are no more, from a record on (without the first
    `where.inner` of it), to be compared with what is known of them: whether the last was ever committed is
    not looked at. `parts` are those of the stream, in order. Raises `OSError`, `ValueError`."""
    leaves: list[bytes] = []
    skipped, at = where.inner, where.offset
    packs = [number for part in parts for number in packs_of(part)]
    for number in packs[packs.index(where.pack) :]:
        path = pack_path(directory, number)
        waiting: list[bytes] = []
        goes_on = following(directory, parts, number)
        for piece in _pieces(path, key_of_pack(path, store_id), at):
            if goes_on is not None and piece.number >= goes_on:
                break
            if piece.type in layout.ENTRY_RECORDS:
                waiting += _leaves_in(piece)
                if len(leaves) + len(waiting) - skipped >= count:
                    return (leaves + waiting[skipped:])[:count]
            elif piece.type == RecordType.COMMIT:
                leaves += waiting[skipped:]
                waiting, skipped = [], 0
        at = PACK_HEADER_BYTES
    return leaves


def groups_from(
    directory: Path,
    store_id: bytes,
    keyring: Keyring,
    parts: Sequence[Part],
    place: Place,
    fill: Fill = all_here,
) -> Iterator[FactGroup]:
    """The groups of a stream from a record on that begins at (pack, offset): of the first only what comes
    from there on. For who wants what there is, and knows how far it is acknowledged: nothing is proved that
    checksums do not, and what cannot be read is left out. `parts` are those of the stream, in order. Raises
    `FileNotFoundError` for a pack that is gone, `OSError`."""
    packs = [number for part in parts for number in packs_of(part)]
    left = packs[packs.index(place[0]) :]
    for number, after in zip_longest(left, left[1:]):
        path = pack_path(directory, number)
        try:
            fill(path, 0, path.stat().st_size)
            if after is not None:
                fill(pack_path(directory, after), 0, PACK_HEADER_BYTES)
            key = key_of_pack(path, store_id)
        except (ValueError, StoreError) as exc:
            log.error("%s cannot be read: %s", path, exc)
            continue
        goes_on = following(directory, parts, number)
        facts: list[Fact] = []
        for piece in _pieces(path, key, place[1] if number == place[0] else PACK_HEADER_BYTES):
            try:
                if piece.type == RecordType.COMMIT:
                    if goes_on is not None and piece.number >= goes_on:
                        break
                    group = FactGroup(layout.decode_commit(piece.payload), facts)
                elif piece.type in layout.ENTRY_RECORDS:
                    seal = pack_seal(path, key, keyring) if piece.type in layout.SEALED_RECORDS else None
                    facts += _facts_in(piece, seal)
                    continue
                else:
                    continue
            except (ValueError, struct.error) as exc:
                log.error("%s at byte %d: %s", path, piece.offset, exc)
                continue
            yield group
            facts = []


def _facts_in(piece: _Piece, seal: PackSeal | None) -> list[Fact]:
    """The facts of an ENTRIES record. Raises `ValueError`."""
    if piece.type in layout.SEALED_RECORDS and seal is None:
        return [Fact(leaf, None) for leaf in _leaves_in(piece)]
    found = [Fact(records.leaf(data), data) for _, data in _entries_in(piece, seal) if records.is_fact(data)]
    if piece.type in layout.SEALED_RECORDS and [fact.leaf for fact in found] != _leaves_in(piece):
        raise ValueError(f"record at byte {piece.offset}: the leaves beside sealed facts are not theirs")
    return found


def _leaves_in(piece: _Piece) -> list[bytes]:
    """The leaves of the facts of an ENTRIES record, sealed or not. Raises `ValueError`."""
    try:
        if piece.type in layout.SEALED_RECORDS:
            return layout.sealed_leaves(piece.payload)
        return [records.leaf(data) for _, data in _entries_in(piece, None) if records.is_fact(data)]
    except struct.error as exc:
        raise ValueError(f"record at byte {piece.offset} cannot be read: {exc}") from exc


def _count_in(piece: _Piece) -> int:
    """How many facts an ENTRIES record has: after compaction thousands come before the next commit."""
    if piece.type in layout.SEALED_RECORDS:
        return len(_leaves_in(piece))
    return sum(records.is_fact(data) for _, data in _entries_in(piece, None))


def _entries_in(piece: _Piece, seal: PackSeal | None) -> list[tuple[int, bytes]]:
    """(offset in the raw block, entry) for each entry of an ENTRIES record. Raises `ValueError`,
    `SealedError`."""
    try:
        raw = layout.block_bytes(piece.type, piece.payload, seal=seal, number=piece.number)
        entries = list(layout.entries_in(raw))
    except struct.error as exc:
        raise ValueError(f"record at byte {piece.offset} cannot be read: {exc}") from exc
    if not all(data for _, data in entries):
        raise ValueError(f"record at byte {piece.offset} has an entry without a type")
    return entries


def _pieces(path: Path, key: bytes, at: int) -> Iterator[_Piece]:
    """The sound records from `at` on."""
    with path.open("rb") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        window, base = b"", at
        while at < size:
            if not base <= at <= base + len(window) - RECORD_HEADER_BYTES:
                window, base = os.pread(fd, _WINDOW, at), at
            head = window[at - base : at - base + RECORD_HEADER_BYTES]
            header = layout.decode_record_header(head, key)
            start = at + RECORD_HEADER_BYTES
            if header is None or start + header.length > size:
                break
            if header.type in layout.CHUNK_RECORDS:
                yield _Piece(header.type, header.number, at, head, b"")
            else:
                payload = window[start - base : start - base + header.length]
                if len(payload) < header.length:
                    payload = os.pread(fd, header.length, start)
                if not layout.payload_is_sound(header, payload, key):
                    break
                yield _Piece(header.type, header.number, at, head, payload)
            at = start + header.length
        else:
            return
    for found in scan_records(path, key, at):
        if not isinstance(found, Damage):
            yield _Piece(found.type, found.number, found.offset, found.header, found.payload)
