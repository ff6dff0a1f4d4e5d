"""The writing end of one stream: append records, make a group durable, undo what is not.

The only code that writes packs. Knows nothing of what the records mean beyond chunk, entry and commit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from store import layout, records
from store.errors import StoreError, StoreFailedError, StoreFullError, StoreLockedError
from store.files import adopt, make_directory, sync_directory, write_all
from store.ids import ChunkId, now_us
from store.layout import Commit, NewChunk, PackHeader, RecordType
from store.locks import Lock, take_lock
from store.places import Location, StreamState, stream_number
from store.scan import keys_record, pack_seal, read_pack_header
from store.sealing import NO_KEYS, SUITE, Keyring, PackSeal, sealed_for
from store.segments import pack_path, written_packs

DEFAULT_PACK_BYTES = 256 << 20
COMPACT_LOCK = "compact.lock"
_ENTRIES_BYTES = 1 << 20
_KEYS_EVERY_BYTES = 16 << 20
_TO_SEAL = frozenset({RecordType.CHUNKS, RecordType.ENTRIES})
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StreamLog:
    """The writing end of one stream. One per stream on the whole host (flock); not thread-safe.

    `append` puts records behind each other; `commit` ends the group and returns when it is on disk;
    `rollback` forgets what came since the last commit. No byte of a pack is ever written twice: after a
    crash or a rollback a new pack is begun, so that whoever reads along never mixes old and new. After
    `StoreFailedError` nothing may be written any more: the kernel may have dropped pages that a
    second fsync would call clean.
    """

    def __init__(
        self,
        directory: Path,
        store_id: bytes,
        state: StreamState,
        *,
        lock: Lock | None,
        new_pack: bool = False,
        last_pack: int = 0,
        pack_bytes: int = DEFAULT_PACK_BYTES,
        level: int = 3,
        entries_bytes: int = _ENTRIES_BYTES,
        keyring: Keyring = NO_KEYS,
    ) -> None:
        """`keyring` says for whom it is sealed. `last_pack`: the newest pack's number, also of packs that are
        gone. From `FIRST_COMPACTED` - 1 on it is compaction that writes, whose packs the stream's own writer
        does not count."""
        self.name = directory.name
        self.number = stream_number(self.name)
        self.state = state
        self.level = level
        self.written_bytes = 0
        self._directory = directory
        self._store_id = store_id
        self._pack_bytes = pack_bytes
        self._lock = lock
        self._buffer: list[bytes] = []
        self._fd = -1
        self._at = 0
        self._flushed = 0
        self._next_record = state.next_record
        self._leaves: list[tuple[bytes, Location]] = []
        self.leaves: list[tuple[bytes, Location]] = []
        """of the group that was committed last: see `Group.leaves`"""
        self._keyring = keyring
        self._seal: PackSeal | None = None
        self._keys = b""
        self._keys_due = 0
        self._headers: list[bytes] = []
        self._last_pack = last_pack
        self._entries_bytes = entries_bytes
        self._spent = False
        self.committed = state.place
        self.failed = False
        if new_pack or not self._reopen_pack():
            self._start_pack()

    def _reopen_pack(self) -> bool:
        """Go on in the newest pack, if it ends where the last commit ended. False when it does not."""
        newest = max(written_packs(self._directory), default=0)
        if newest == 0 or newest < self._last_pack:
            return False
        path = pack_path(self._directory, newest)
        at = self.state.offset if newest == self.state.pack else layout.PACK_HEADER_BYTES
        if path.stat().st_size != at:
            return False
        header = read_pack_header(path)
        if header.version != self._version or (header.suite != 0) != self._keyring.seals:
            return False  # what an earlier version began must stay readable by it
        if header.suite and not self._take_seal(path, header):
            return False  # to go on in it takes its key
        if newest != self.state.pack:  # begun before a crash, and nothing committed in it yet
            if (header.chain, header.next_record) != (self.state.chain, self.state.next_record):
                return False
            self.state = replace(self.state, pack=newest, offset=at)
        self._key, self._salt = header.key(), header.salt
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._at = self._flushed = at
        return True

    @property
    def _version(self) -> int:
        return layout.FORMAT_VERSION if self._keyring.seals else layout.OPEN_VERSION

    def _take_seal(self, path: Path, header: PackHeader) -> bool:
        """Whether a pack that is begun is sealed for the present recipients and can be gone on with."""
        key = header.key()
        payload = keys_record(path, key)
        self._seal = pack_seal(path, key, self._keyring)
        if payload is None or self._seal is None:
            return False
        self._keys, self._keys_due = payload, 0
        return sealed_for(payload) == self._keyring.readers

    def _start_pack(self) -> None:
        number = self._last_pack + 1
        if number <= layout.FIRST_COMPACTED:
            number = max(number, max(written_packs(self._directory), default=0) + 1)
        header = PackHeader(
            number=number, store_id=self._store_id, salt=os.urandom(16), created_us=now_us(),
            next_record=self.state.next_record, stream=self.name, chain=self.state.chain,
            version=self._version, suite=SUITE if self._keyring.seals else 0,
        )  # fmt: skip
        path = pack_path(self._directory, number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            adopt(path)
            write_all(fd, header.encode(), 0)
            os.fsync(fd)
            sync_directory(self._directory)
        except (OSError, ValueError):
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._last_pack = number
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._key, self._salt = fd, header.key(), header.salt
        self._at = self._flushed = layout.PACK_HEADER_BYTES
        self._spent = False
        if self._keyring.seals:
            self._seal, self._keys = self._keyring.new_seal()
            self._keys_due = 0
        self.state = replace(self.state, pack=number, offset=self._at)

    def append_chunks(self, chunks: list[NewChunk]) -> list[tuple[ChunkId, Location]]:
        """One CHUNKS record, handed to the kernel but not yet durable; where each chunk lies."""
        where = self._append(RecordType.CHUNKS, layout.encode_chunks(chunks, self.level))
        inner, located = 0, []
        for chunk in chunks:
            located.append((chunk.id, where._replace(inner=inner, size=len(chunk.data))))
            inner += len(chunk.data)
        self._flush()
        return located

    def append_block(self, payload: bytes) -> None:
        """One CHUNKS record from a payload that is made already (`layout.encode_chunks`)."""
        self._append(RecordType.CHUNKS, payload)
        self._flush()

    def encode(self, entry: records.Entry) -> bytes:
        """A new entry as it is to stand in this stream. Where it is sealed facts hold something that nobody
        can guess, since their leaves stand in the clear."""
        return records.encode(entry, os.urandom(records.SALT_BYTES) if self._keyring.seals else b"")

    def append_entries(self, entries: list[bytes]) -> list[Location]:
        """ENTRIES records, as many as keep each of bounded size; where each entry lies."""
        located: list[Location] = []
        while len(located) < len(entries):
            some: list[bytes] = []
            size = 0
            for entry in entries[len(located) :]:
                some.append(entry)
                size += len(entry)
                if size >= self._entries_bytes:
                    break
            leaves = [records.leaf(entry) for entry in some if records.is_fact(entry)]
            where = self._append(RecordType.ENTRIES, layout.encode_entries(some, self.level), leaves)
            located += [where._replace(inner=inner) for inner in layout.entry_offsets(some)]
            self._leaves += [(leaf, where) for leaf in leaves]
        return located

    def commit(self) -> StreamState:
        """End the group: COMMIT, then fdatasync. All of it is durable when this returns.

        Raises:
            StoreFullError: no room; the group is undone and the stream is as before it.
            StoreFailedError: the disk failed; nothing may be believed, the stream is dead.
        """
        state = self.state
        chain = state.chain
        for leaf, _ in self._leaves:
            chain = layout.chain_next(chain, leaf)
        commit = Commit(
            state.commits + 1, now_us(), state.facts + len(self._leaves), chain,
            start=state.offset, digest=layout.group_digest(self._headers, self._key), salt=self._salt,
        )  # fmt: skip
        self._append(RecordType.COMMIT, commit.encode())
        self._flush()
        try:
            os.fdatasync(self._fd)
        except OSError as exc:
            # Never fsync again and believe it: Linux marks failed pages clean.
            self._die(exc)
        self.written_bytes += self._at - state.offset
        self.leaves, self._leaves = self._leaves, []
        self._headers = []
        self.state = StreamState(
            state.pack, self._at, self._next_record, commit.number, commit.facts, chain, commit.time_us
        )
        self.committed = self.state.place
        return self.state

    @property
    def pack_bytes(self) -> int:
        """What the open pack has come to, its header not counted."""
        return self._at - layout.PACK_HEADER_BYTES

    def roll(self, *, now: bool = False) -> None:
        """Begin a new pack if this one has reached its size or was cut, or (`now`) if it is not empty. Does
        nothing within a group."""
        due = self._spent or self._at >= self._pack_bytes or (now and self.pack_bytes > 0)
        if self._at == self.state.offset and due:
            try:
                self._start_pack()
            except OSError as exc:
                if exc.errno not in _FULL:
                    self._die(exc)
                raise StoreFullError(f"no room for a new pack in {self._directory}") from exc

    def rollback(self) -> None:
        """Forget everything since the last commit."""
        self._buffer = []
        self._leaves = []
        self._headers = []
        self._next_record = self.state.next_record
        self._at = self.state.offset
        if self._flushed > self._at and not self.failed:
            self._spent = True  # a reader may have seen these bytes: they are not written over
            try:
                os.ftruncate(self._fd, self._at)
            except OSError as exc:
                self._die(exc)
        self._flushed = self._at
        self._keys_due = min(self._keys_due, self._at)  # it may have gone with the rest

    def close(self) -> None:
        """Undo what is not committed, and let another writer have the stream."""
        if self._fd >= 0:
            self.rollback()
            os.close(self._fd)
            self._fd = -1
        if self._lock:
            self._lock.release()

    def _append(self, kind: RecordType, payload: bytes, leaves: Sequence[bytes] = ()) -> Location:
        if self.failed:
            raise StoreFailedError(f"stream {self.name} has failed and takes no more")
        if self._seal and kind in _TO_SEAL:
            # Before the first two groups of a pack, and now and then again: all that it opens hangs on it.
            if self._at == self.state.offset and self._at >= self._keys_due:
                first = self._at == layout.PACK_HEADER_BYTES
                self._keys_due = self._at + (1 if first else _KEYS_EVERY_BYTES)
                self._append(RecordType.KEYS, self._keys)
            kind, payload = layout.seal_block(kind, self._next_record, payload, self._seal, leaves)
        try:
            record = layout.encode_record(kind, self._next_record, payload, self._key)
        except ValueError as exc:
            raise StoreError(str(exc)) from exc
        self._headers.append(record[: layout.RECORD_HEADER_BYTES])
        where = Location(self.number, self.state.pack, self._at, 0, 0)
        self._buffer.append(record)
        self._at += len(record)
        self._next_record += 1
        return where

    def _flush(self) -> None:
        data = b"".join(self._buffer)
        self._buffer = []
        try:
            write_all(self._fd, data, self._flushed)
        except OSError as exc:
            if exc.errno not in _FULL:
                self._die(exc)
            self._flushed += 1  # something of it may be on file
            self.rollback()
            raise StoreFullError(f"no room left in {self._directory}: {exc.strerror}") from exc
        self._flushed += len(data)

    def _die(self, exc: OSError) -> None:
        self.failed = True
        path = pack_path(self._directory, self.state.pack)
        raise StoreFailedError(f"writing {path} failed: {exc.strerror}") from exc


def lock_stream(directory: Path, name: str = "lock") -> Lock:
    """The right to write to one stream, which is made if it is not there. Raises `StoreLockedError` while
    another process has it, `OSError`."""
    make_directory(directory)
    lock = take_lock(directory / name)
    if lock is None:
        what = "compacts" if name == COMPACT_LOCK else "writes to"
        raise StoreLockedError(f"another process {what} stream {directory.name!r}")
    return lock
