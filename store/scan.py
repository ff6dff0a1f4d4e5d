"""Read a stream back, group by group, and tell what can be believed.

A stream is a directory of numbered packs with one writer. Nothing counts until the COMMIT record of its group
is on disk, and a COMMIT vouches for every record of its group. A last group that is not whole is a *torn
tail*, the trace of a crash: the writer goes on in a new pack and leaves it where it is. A bad spot with a
whole group after it, or before a place already known to be durable, is *damage*: reported and read around.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from store import layout, records
from store.errors import FormatError
from store.layout import PackHeader, RecordType
from store.places import Damage, Group, Location, Place, StreamState, TornTail, stream_number
from store.sealing import NO_KEYS, Keyring, PackSeal, sealed_for
from store.segments import Files, Part, Segment, first_of, last_of, pack_path, stream_files

_NOT_FOLLOWING = "does not follow on what is before it: something is missing"
_HEADER_DAMAGED = "pack header is damaged; its records are read by what a commit says"
_RESYNC_WINDOW = 1 << 20
_SECTOR = 4096


def read_pack_header(path: Path) -> PackHeader:
    """Raises `ValueError` when it is damaged, `FormatError` when it is from a later version."""
    with path.open("rb") as file:
        header = layout.decode_pack_header(file.read(layout.PACK_HEADER_BYTES))
    if header.version > layout.FORMAT_VERSION:
        raise FormatError(f"{path} has format version {header.version}; this is {layout.FORMAT_VERSION}")
    return header


def key_of_pack(path: Path, store_id: bytes) -> bytes:
    """The key of a pack's checksums, also where its header is damaged: any COMMIT in it has the salt.

    Raises `ValueError` when neither tells it, `FormatError`, `OSError`.
    """
    try:
        return read_pack_header(path).key()
    except ValueError:
        with path.open("rb") as file:
            for at in _magic_from(file.fileno(), 0):
                record = os.pread(file.fileno(), 4096, at)
                salt = layout.salt_in(record)
                if salt is not None:
                    key = layout.pack_key(store_id, path.parent.name, int(path.stem), salt)
                    if layout.decode_record_header(record, key):
                        return key
        raise


def keys_record(path: Path, key: bytes) -> bytes | None:
    """The payload of the first sound KEYS record in a sealed pack: one is its first record, more follow now
    and then. None when there is none. Raises `OSError`."""
    with path.open("rb") as file:
        for at in _magic_from(file.fileno(), layout.PACK_HEADER_BYTES):
            head = os.pread(file.fileno(), layout.RECORD_HEADER_BYTES, at)
            header = layout.decode_record_header(head, key)
            if header and header.type == RecordType.KEYS:
                payload = os.pread(file.fileno(), header.length, at + layout.RECORD_HEADER_BYTES)
                if layout.payload_is_sound(header, payload, key):
                    return payload
    return None


def readers_of(path: Path, store_id: bytes) -> frozenset[bytes] | None:
    """The fingerprints of those for whom a pack is sealed, none while it has no record that says so; None
    when it is not sealed. Raises `ValueError`, `FormatError`, `OSError`."""
    if read_pack_header(path).suite == 0:
        return None
    payload = keys_record(path, key_of_pack(path, store_id))
    return sealed_for(payload) if payload else frozenset()


def pack_seal(path: Path, key: bytes, keyring: Keyring) -> PackSeal | None:
    """What opens the sealed records of a pack; None when no identity does. Raises `OSError`."""
    return keyring.open_seal(key, partial(keys_record, path, key))


class Suiting:
    """Which packs all present recipients can read: only what lies there may a new message refer to.

    Asked in the mail path; a pack is looked at once. Not thread-safe.
    """

    def __init__(self, streams: Path, store_id: bytes, keyring: Keyring) -> None:
        self._streams = streams
        self._store_id = store_id
        self._wanted = keyring.readers
        self._names: dict[int, str] = {}
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, where: Location) -> bool:
        """Whether what lies there can be read by all of them; False where that cannot be told."""
        if not self._wanted:
            return True
        pack = where[:2]
        if pack not in self._known:
            try:
                self._known[pack] = self._suits(where)
            except (OSError, ValueError, KeyError):  # gone or damaged: not to be relied on
                return False
        return self._known[pack]

    def _suits(self, where: Location) -> bool:
        if where.stream not in self._names:
            self._names = {stream_number(path.name): path.name for path in self._streams.iterdir()}
        path = pack_path(self._streams / self._names[where.stream], where.pack)
        readers = readers_of(path, self._store_id)
        if readers is None:
            return True
        if not readers:
            raise ValueError("no record of its key")
        return self._wanted <= readers


def _magic_from(fd: int, at: int) -> Iterator[int]:
    """The offsets from `at` on where a record may begin."""
    while window := os.pread(fd, _RESYNC_WINDOW, at):
        found = window.find(layout.RECORD_MAGIC)
        while found >= 0:
            yield at + found
            found = window.find(layout.RECORD_MAGIC, found + 1)
        if len(window) < _RESYNC_WINDOW:
            return
        at += len(window) - len(layout.RECORD_MAGIC) + 1


@dataclass(frozen=True, slots=True)
class _Record:
    type: int
    number: int
    offset: int
    end: int
    header: bytes
    payload: bytes


def scan_records(path: Path, key: bytes, start: int) -> Iterator[_Record | Damage]:
    """Every sound record from `start` on; a `Damage` for each stretch that holds none."""
    with path.open("rb") as file:
        offset = start
        size = os.fstat(file.fileno()).st_size
        while offset < size:
            try:
                head = os.pread(file.fileno(), layout.RECORD_HEADER_BYTES, offset)
                header = layout.decode_record_header(head, key)
                start = offset + layout.RECORD_HEADER_BYTES
                payload = os.pread(file.fileno(), header.length, start) if header else b""
            except OSError as exc:  # a bad sector
                yield Damage(path, offset, f"cannot be read: {exc.strerror}")
                offset = _after_bad_sector(file.fileno(), key, offset, size)
                continue
            if header and layout.payload_is_sound(header, payload, key):
                end = offset + layout.RECORD_HEADER_BYTES + header.length
                yield _Record(header.type, header.number, offset, end, head, payload)
                offset = end
                continue
            yield Damage(path, offset, "payload fails its checksum" if header else "no record header")
            # A believable header still tells where the next record begins; else look for the next one.
            skip = layout.RECORD_HEADER_BYTES + header.length if header else 1
            offset = _next_record(file.fileno(), key, offset + skip, offset + 1, size)


def _after_bad_sector(fd: int, key: bytes, offset: int, size: int) -> int:
    while offset < size:
        offset = (offset // _SECTOR + 1) * _SECTOR
        try:
            return _next_record(fd, key, offset, offset, size)
        except OSError:
            continue
    return size


def _next_record(fd: int, key: bytes, likely: int, earliest: int, size: int) -> int:
    if likely < size and layout.decode_record_header(os.pread(fd, layout.RECORD_HEADER_BYTES, likely), key):
        return likely
    for at in _magic_from(fd, earliest):
        if layout.decode_record_header(os.pread(fd, layout.RECORD_HEADER_BYTES, at), key):
            return at
    return size


def recipes(path: Path, key: bytes, keyring: Keyring = NO_KEYS) -> Iterator[records.Content]:
    """The recipes in a pack, without reading its chunks. What follows the last commit may be torn; else
    raises `ValueError` where a record is damaged, since nobody can tell what it named, and `SealedError`
    where no identity opens it. Raises `OSError`."""
    with path.open("rb") as file:
        fd, at, size = file.fileno(), layout.PACK_HEADER_BYTES, os.fstat(file.fileno()).st_size
        while at < size:
            header = layout.decode_record_header(os.pread(fd, layout.RECORD_HEADER_BYTES, at), key)
            start = at + layout.RECORD_HEADER_BYTES
            sound = header is not None and start + header.length <= size
            if header is not None and sound and header.type in layout.ENTRY_RECORDS:
                payload = os.pread(fd, header.length, start)
                sound = layout.payload_is_sound(header, payload, key)
                if sound:
                    seal = pack_seal(path, key, keyring) if header.type in layout.SEALED_RECORDS else None
                    yield from _recipes_in(
                        layout.block_bytes(header.type, payload, seal=seal, number=header.number)
                    )
            if header is None or not sound:
                if _has_commit(fd, key, at + 1, size):
                    raise ValueError(f"{path} at byte {at}: record is damaged")
                return
            at = start + header.length


def _recipes_in(raw: bytes) -> Iterator[records.Content]:
    for _, data in layout.entries_in(raw):
        if data[0] == records.EntryType.CONTENT:
            entry = records.decode(data)
            if isinstance(entry, records.Content):
                yield entry


def _has_commit(fd: int, key: bytes, at: int, size: int) -> bool:
    for found in _magic_from(fd, at):
        header = layout.decode_record_header(os.pread(fd, layout.RECORD_HEADER_BYTES, found), key)
        if header is not None and header.type == RecordType.COMMIT and found < size:
            return True
    return False


def initial_state(store_id: bytes, name: str) -> StreamState:
    """The state of a stream of which nothing is known yet."""
    return StreamState(0, 0, 0, 0, 0, layout.chain_start(store_id, name))


def scan_groups(
    directory: Path,
    store_id: bytes,
    name: str,
    since: StreamState,
    *durable: Place,
    files: Files | None = None,
    keyring: Keyring = NO_KEYS,
) -> Iterator[Group | Segment | Damage | TornTail]:
    """Everything committed after `since`, in order; damage where it lies; at most one torn tail, last.

    Segments are given as they are: `scan_segment` reads them.

    `durable` are places up to which their pack is known to have been good, so that what fails before them is
    damage even when nothing follows. `since` lies at the end of a segment or in a pack of its own, never
    within what a segment stands for. What no identity in `keyring` opens comes as `Group.sealed`.
    """
    state = since
    before = since.place
    files = files or stream_files(directory)
    yield from (Damage(path, 0, what) for path, what in files.damaged)
    parts = [part for part in files.parts if last_of(part) >= since.pack]
    if parts and isinstance(parts[0], Segment) and since.place >= parts[0].end.place:
        del parts[0]
    elif since.pack and (not parts or first_of(parts[0]) != since.pack):
        yield Damage(pack_path(directory, since.pack), 0, "pack is missing")
    for part, following in zip_longest(parts, parts[1:]):
        if state.pack and first_of(part) > state.pack + 1:
            yield Damage(pack_path(directory, state.pack + 1), 0, "pack is missing")
        if isinstance(part, Segment):
            if (part.start.chain, part.start.next_record) != (state.chain, state.next_record):
                yield Damage(directory / part.name, 0, _NOT_FOLLOWING)
            yield part
            state, before = part.end, part.end.place
            continue
        path = pack_path(directory, part)
        last = following is None
        try:
            key = key_of_pack(path, store_id)
            header = _header_or_none(path)
        except ValueError as exc:
            # The newest pack may have been cut off by a crash before its header was on disk.
            if last and path.stat().st_size <= layout.PACK_HEADER_BYTES:
                yield TornTail(path, 0, path.stat().st_size)
            else:
                yield Damage(path, 0, str(exc))
            continue
        if header is None:
            yield Damage(path, 0, _HEADER_DAMAGED)
        elif (header.store_id, header.stream, header.number) != (store_id, name, part):
            yield Damage(path, 0, f"belongs to stream {header.stream!r}, pack {header.number}, not here")
            continue
        if part != state.pack:
            if header is not None and (header.chain, header.next_record) != (state.chain, state.next_record):
                yield Damage(path, 0, _NOT_FOLLOWING)
                state = replace(state, chain=header.chain, next_record=header.next_record)
            state = replace(state, pack=part, offset=layout.PACK_HEADER_BYTES)
        elif path.stat().st_size < state.offset:
            yield Damage(path, path.stat().st_size, f"cut short: {state.offset} bytes were durable")
            continue
        upheld = max((offset for pack, offset in durable if pack == part), default=0)
        after = _after(directory, following)
        for found in _scan_pack(path, key, state, upheld, after, last=last, keyring=keyring):
            if isinstance(found, Group):
                state = found.state
                found.before, before = before, state.place
            yield found
    for place in durable:
        if place > state.place:
            what = f"bytes up to {place[1]} of pack {place[0]} were durable and are missing"
            yield Damage(pack_path(directory, state.pack), state.offset, what)


def _after(directory: Path, following: Part | None) -> tuple[bytes, int] | None:
    """The chain and record number with which what follows a pack goes on."""
    if isinstance(following, Segment):
        return following.start.chain, following.start.next_record
    header = _header_or_none(pack_path(directory, following)) if following else None
    return (header.chain, header.next_record) if header else None


def scan_segment(
    directory: Path, store_id: bytes, name: str, segment: Segment, keyring: Keyring = NO_KEYS
) -> Iterator[Group | Damage]:
    """Everything in a segment, in order; `state` of its groups is within the segment's own packs."""
    state = segment.start
    for number, following in zip_longest(segment.packs, segment.packs[1:]):
        path = pack_path(directory, number)
        try:
            key = key_of_pack(path, store_id)
            header = _header_or_none(path)
        except (ValueError, FileNotFoundError) as exc:
            yield Damage(path, 0, "pack is missing" if isinstance(exc, FileNotFoundError) else str(exc))
            continue
        if header is None:
            yield Damage(path, 0, _HEADER_DAMAGED)
        elif (header.store_id, header.stream, header.number) != (store_id, name, number):
            yield Damage(path, 0, f"belongs to stream {header.stream!r}, pack {header.number}, not here")
            continue
        elif (header.chain, header.next_record) != (state.chain, state.next_record):
            yield Damage(path, 0, _NOT_FOLLOWING)
            state = replace(state, chain=header.chain, next_record=header.next_record)
        state = replace(state, pack=number, offset=layout.PACK_HEADER_BYTES)
        after = (
            (segment.end.chain, segment.records_end) if following is None else _after(directory, following)
        )
        for found in _scan_pack(path, key, state, 0, after, last=False, keyring=keyring):
            if isinstance(found, Group):
                found.segment = segment
                state = found.state
            if not isinstance(found, TornTail):  # there is none where something follows
                yield found
    if (state.chain, state.facts) != (segment.end.chain, segment.end.facts):
        yield Damage(directory / segment.name, 0, "the history in its packs is not the one it stands for")


def _header_or_none(path: Path) -> PackHeader | None:
    try:
        return read_pack_header(path)
    except ValueError:
        return None


class _Gathering:
    """The records since the last COMMIT."""

    def __init__(self, path: Path, key: bytes, state: StreamState, keyring: Keyring) -> None:
        stream = path.parent.name
        self.group = Group(stream, state)
        self._path, self._key, self._keyring = path, key, keyring
        self.headers: list[bytes] = []
        self.bad: list[Damage] = []
        self._number = stream_number(stream)
        self._pack = state.pack

    @property
    def empty(self) -> bool:
        """Whether nothing at all came since the last COMMIT."""
        return not self.headers and not self.bad

    def take(self, record: _Record) -> None:
        """A CHUNKS or ENTRIES record. Raises `ValueError`, `struct.error`."""
        self.headers.append(record.header)
        if record.type in layout.CHUNK_RECORDS:
            stream, pack, offset = self._number, self._pack, record.offset
            for chunk, inner, size, kind in layout.chunk_table(record.type, record.payload):
                self.group.chunks.append((chunk, Location(stream, pack, offset, inner, size)))
                self.group.kinds.append(kind)
        elif record.type == RecordType.ENTRIES:
            self._take_entries(layout.block_bytes(RecordType.ENTRIES, record.payload), record.offset)
        elif record.type == RecordType.SEALED_ENTRIES:
            leaves = layout.sealed_leaves(record.payload)
            seal = pack_seal(self._path, self._key, self._keyring)
            if seal is None:
                self.group.sealed = True
                where = Location(self._number, self._pack, record.offset, 0, 0)
                self.group.leaves += [(leaf, where) for leaf in leaves]
                return
            raw = layout.block_bytes(record.type, record.payload, seal=seal, number=record.number)
            self._take_entries(raw, record.offset)
            known = self.group.leaves
            if leaves != [leaf for leaf, _ in known[len(known) - len(leaves) :]]:
                raise ValueError("the leaves beside sealed facts are not theirs")

    def _take_entries(self, raw: bytes, offset: int) -> None:
        group, stream, pack = self.group, self._number, self._pack
        record = Location(stream, pack, offset, 0, 0)
        for inner, data in layout.entries_in(raw):
            group.encoded.append(data)
            if records.is_known(data):
                group.entries.append((records.decode(data), Location(stream, pack, offset, inner, 0)))
            if records.is_fact(data):
                group.leaves.append((records.leaf(data), record))

    def cut(self, offset: int, leaves: int) -> tuple[Group, list[Damage]]:
        """What came before `offset`, with what is wrong there; the last `leaves` facts came after it."""
        group = self.group
        here = [number for number, (_, where) in enumerate(group.chunks) if where.offset < offset]
        group.chunks, group.kinds = [group.chunks[n] for n in here], [group.kinds[n] for n in here]
        group.entries = [(entry, where) for entry, where in group.entries if where.offset < offset]
        del group.leaves[len(group.leaves) - leaves :]
        group.state = replace(group.state, offset=offset, chain=self.chain(group.state.chain))
        group.leaves = []  # the commit that would number them is lost
        return group, self.bad

    def chain(self, chain: bytes) -> bytes:
        """The chain after these facts."""
        for leaf, _ in self.group.leaves:
            chain = layout.chain_next(chain, leaf)
        return chain


def _gather_again(
    path: Path, key: bytes, state: StreamState, start: int, end: int, keyring: Keyring
) -> _Gathering | None:
    """The records from `start` to `end`; None when they are not all sound."""
    gathering = _Gathering(path, key, state, keyring)
    for record in scan_records(path, key, start):
        if isinstance(record, Damage) or record.offset > end:
            return None
        if record.offset == end:
            return gathering
        try:
            gathering.take(record)
        except (ValueError, struct.error):
            return None
    return None


def _scan_pack(
    path: Path,
    key: bytes,
    state: StreamState,
    upheld: int,
    goes_on: tuple[bytes, int] | None,
    *,
    last: bool,
    keyring: Keyring,
) -> Iterator[Group | Damage | TornTail]:
    gathering = _Gathering(path, key, state, keyring)
    broken: tuple[Group, list[Damage]] | None = None  # a group that is not whole, until something follows
    for record in scan_records(path, key, state.offset):
        if isinstance(record, Damage):
            gathering.bad.append(record)
            continue
        try:
            if record.type != RecordType.COMMIT:
                gathering.take(record)
                continue
            commit = layout.decode_commit(record.payload)
        except (ValueError, struct.error) as exc:
            gathering.bad.append(Damage(path, record.offset, f"record cannot be read: {exc}"))
            continue
        if broken is None and gathering.bad and commit.start > state.offset:
            later = _gather_again(path, key, state, commit.start, record.offset, keyring)
            if later is not None and commit.digest == layout.group_digest(later.headers, key):
                # A COMMIT between the two is damaged, and what it had ended is a group of its own.
                broken = gathering.cut(commit.start, len(later.group.leaves))
                gathering = later
        start = broken[0].state.offset if broken else state.offset
        whole = (
            not gathering.bad
            and commit.start == start
            and commit.digest == layout.group_digest(gathering.headers, key)
        )
        if broken:  # a COMMIT after it: the writer had gone on, so it had been durable
            yield from broken[1]
            yield broken[0]
            state = broken[0].state
            broken = None
        if gathering.chain(state.chain) != commit.chain:
            gathering.group.leaves = []  # some are lost or others', so that none can be numbered
            if whole:
                yield Damage(path, record.offset, "the history before this commit is not what it vouches for")
        state_after = StreamState(
            state.pack, record.end, record.number + 1, commit.number, commit.facts, commit.chain,
            commit.time_us,
        )  # fmt: skip
        gathering.group.state = state_after
        if whole:
            state = state_after
            yield gathering.group
        else:
            what = Damage(path, start, "group is not what its commit vouches for")
            broken = (gathering.group, gathering.bad or [what])
        gathering = _Gathering(path, key, state_after, keyring)
    if gathering.empty and broken is None:
        return
    if last:
        was_good = state.offset < upheld
    else:  # the next pack tells whether the writer had gone on from here or from behind what is broken
        was_good = state.offset < upheld or not goes_on or (state.chain, state.next_record) != goes_on
    if was_good:
        bad = broken[1] if broken else gathering.bad
        yield from bad or [Damage(path, state.offset, "ends without the commit that was durable")]
        if broken:
            yield broken[0]
    elif last:
        yield TornTail(path, state.offset, path.stat().st_size - state.offset)
