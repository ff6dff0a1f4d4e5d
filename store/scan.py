"""Read a stream back, group by group, and tell what can be believed.

A stream is a directory of numbered packs with one writer. Nothing counts until the COMMIT record of its group
is on disk; reading stops believing where a checksum fails. What stands at the end of the last pack with no
COMMIT after it is a *torn tail*, the trace of a crash, and may be cut. A bad spot with a COMMIT after it, or
before a place already known to be durable, is *damage*: it is reported, left as it is, and read around.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from store import layout, records
from store.errors import FormatError
from store.ids import ChunkId
from store.layout import PackHeader, RecordType

_RESYNC_WINDOW = 1 << 20


class Location(NamedTuple):
    """Where a chunk or entry lies: stream, pack and record, then offset and length in the record's raw block.

    `size` is 0 for entries, whose length stands in the block.
    """

    stream: int
    pack: int
    offset: int
    length: int
    inner: int
    size: int


@dataclass(frozen=True, slots=True)
class StreamState:
    """How far a stream is known: the end of the last committed group, and what the next record needs."""

    pack: int
    offset: int
    next_record: int
    commits: int
    facts: int
    chain: bytes
    last_commit_us: int = 0


@dataclass(slots=True)
class Group:
    """What one COMMIT made durable, with where everything lies, and the stream's state after it."""

    stream: str
    state: StreamState
    chunks: list[tuple[ChunkId, Location]] = field(default_factory=list)
    entries: list[tuple[records.Entry, Location]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Damage:
    """A place whose bytes are not what was written."""

    path: Path
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.path} at byte {self.offset}: {self.what}"


@dataclass(frozen=True, slots=True)
class TornTail:
    """Bytes after the last COMMIT of a stream that no COMMIT made good: from `offset` to the file's end."""

    path: Path
    offset: int
    length: int


def stream_number(name: str) -> int:
    """The 32-bit number by which locations name a stream (from its name, so that every host agrees)."""
    return int.from_bytes(blake3(name.encode()).digest(4), "big")


def pack_path(directory: Path, number: int) -> Path:
    """The file of pack `number` of the stream in `directory`."""
    return directory / f"{number:010d}.pack"


def pack_numbers(directory: Path) -> list[int]:
    """The numbers of the packs in a stream's directory, in order."""
    return sorted(int(path.stem) for path in directory.glob("*.pack") if path.stem.isdigit())


def read_pack_header(path: Path) -> PackHeader:
    """Raises `ValueError` when it is damaged, `FormatError` when it is from a later version."""
    with path.open("rb") as file:
        header = layout.decode_pack_header(file.read(layout.PACK_HEADER_BYTES))
    if header.version > layout.FORMAT_VERSION:
        raise FormatError(f"{path} has format version {header.version}; this is {layout.FORMAT_VERSION}")
    return header


@dataclass(frozen=True, slots=True)
class _Record:
    type: int
    number: int
    offset: int
    end: int
    payload: bytes


def scan_records(path: Path, key: bytes, start: int) -> Iterator[_Record | Damage]:
    """Every sound record from `start` on; a `Damage` for each stretch that holds none."""
    with path.open("rb") as file:
        offset = start
        size = os.fstat(file.fileno()).st_size
        while offset < size:
            file.seek(offset)
            head = file.read(layout.RECORD_HEADER_BYTES)
            header = layout.decode_record_header(head, key)
            payload = file.read(header.length) if header else b""
            if header and layout.payload_is_sound(header, payload, key):
                end = offset + layout.RECORD_HEADER_BYTES + header.length
                yield _Record(header.type, header.number, offset, end, payload)
                offset = end
                continue
            yield Damage(path, offset, "payload fails its checksum" if header else "no record header")
            # A believable header still tells where the next record begins; else look for the next one.
            skip = layout.RECORD_HEADER_BYTES + header.length if header else 1
            offset = _next_record(file.fileno(), key, offset + skip, offset + 1, size)


def _next_record(fd: int, key: bytes, likely: int, earliest: int, size: int) -> int:
    if likely < size and layout.decode_record_header(os.pread(fd, layout.RECORD_HEADER_BYTES, likely), key):
        return likely
    at = earliest
    while at < size:
        window = os.pread(fd, _RESYNC_WINDOW, at)
        found = window.find(layout.RECORD_MAGIC)
        while found >= 0:
            candidate = os.pread(fd, layout.RECORD_HEADER_BYTES, at + found)
            if layout.decode_record_header(candidate, key):
                return at + found
            found = window.find(layout.RECORD_MAGIC, found + 1)
        if len(window) < _RESYNC_WINDOW:
            break
        at += len(window) - len(layout.RECORD_MAGIC) + 1
    return size


def initial_state(store_id: bytes, name: str) -> StreamState:
    """The state of a stream of which nothing is known yet."""
    return StreamState(0, 0, 0, 0, 0, layout.chain_start(store_id, name))


def scan_groups(
    directory: Path,
    store_id: bytes,
    name: str,
    since: StreamState,
    durable: tuple[int, int] = (0, 0),
) -> Iterator[Group | Damage | TornTail]:
    """Everything committed after `since`, in order; damage where it lies; at most one torn tail, last.

    `durable` is a (pack, offset) up to which all is known to have been on disk, so that what fails before it
    is damage even when no COMMIT follows.
    """
    state = since
    numbers = [n for n in pack_numbers(directory) if n >= since.pack]
    if since.pack and (not numbers or numbers[0] != since.pack):
        yield Damage(pack_path(directory, since.pack), 0, "pack is missing")
    for number in numbers:
        path = pack_path(directory, number)
        last = number == numbers[-1]
        try:
            header = read_pack_header(path)
        except ValueError as exc:
            # The newest pack may have been cut off by a crash before its header was on disk.
            if last and path.stat().st_size < layout.PACK_HEADER_BYTES:
                yield TornTail(path, 0, path.stat().st_size)
            else:
                yield Damage(path, 0, str(exc))
            continue
        if header.store_id != store_id or header.stream != name or header.number != number:
            yield Damage(path, 0, f"belongs to stream {header.stream!r}, pack {header.number}, not here")
            continue
        if number != state.pack:
            if (header.chain, header.next_record) != (state.chain, state.next_record):
                yield Damage(path, 0, "does not follow on the pack before it: something is missing")
            state = replace(
                state, pack=number, offset=layout.PACK_HEADER_BYTES,
                chain=header.chain, next_record=header.next_record,
            )  # fmt: skip
        elif path.stat().st_size < state.offset:
            yield Damage(path, path.stat().st_size, f"cut short: {state.offset} bytes were durable")
            continue
        for found in _scan_pack(path, header.key(), state, durable, last=last):
            if isinstance(found, Group):
                state = found.state
            yield found


def _scan_pack(
    path: Path, key: bytes, state: StreamState, durable: tuple[int, int], *, last: bool
) -> Iterator[Group | Damage | TornTail]:
    name = path.parent.name
    stream = stream_number(name)
    group = Group(name, state)
    facts: list[bytes] = []
    bad: list[Damage] = []  # since the last COMMIT; only a COMMIT after it makes it damage
    dirty = False
    for record in scan_records(path, key, state.offset):
        dirty = True
        if isinstance(record, Damage):
            bad.append(record)
            continue
        length = record.end - record.offset
        try:
            if record.type == RecordType.CHUNKS:
                group.chunks.extend(
                    (chunk, Location(stream, state.pack, record.offset, length, inner, size))
                    for chunk, inner, size in layout.chunk_table(record.payload)
                )
            elif record.type == RecordType.ENTRIES:
                for inner, data in layout.entries_in(layout.block_bytes(RecordType.ENTRIES, record.payload)):
                    where = Location(stream, state.pack, record.offset, length, inner, 0)
                    group.entries.append((records.decode(data), where))
                    if records.is_fact(data):
                        facts.append(data)
            elif record.type == RecordType.COMMIT:
                commit = layout.decode_commit(record.payload)
                yield from bad
                chain = state.chain
                for fact in facts:
                    chain = layout.chain_next(chain, fact)
                if chain != commit.chain:
                    yield Damage(
                        path, record.offset, "the history before this commit is not what it vouches for"
                    )
                state = StreamState(
                    state.pack, record.end, record.number + 1, commit.number, commit.facts, commit.chain,
                    commit.time_us,
                )  # fmt: skip
                group.state = state
                yield group
                group, facts, bad, dirty = Group(name, state), [], [], False
        except (ValueError, struct.error) as exc:
            bad.append(Damage(path, record.offset, f"record cannot be read: {exc}"))
    if dirty and last and (state.pack, state.offset) >= durable:
        yield TornTail(path, state.offset, path.stat().st_size - state.offset)
    elif dirty:
        yield from bad or [Damage(path, state.offset, "ends without the commit that was durable")]
