"""The writing end of one stream: append records, make a group durable, undo what is not.

The only code that writes packs. Knows nothing of what the records mean beyond chunk, entry and commit.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path

from store import layout, records
from store.errors import StoreFailedError, StoreFullError, StoreLockedError
from store.files import adopt, sync_directory
from store.ids import ChunkId, now_us
from store.layout import Commit, PackHeader, RecordType
from store.scan import Location, StreamState, pack_numbers, pack_path, read_pack_header, stream_number

DEFAULT_PACK_BYTES = 256 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StreamLog:
    """The writing end of one stream. One per stream on the whole host (flock); not thread-safe.

    `append` puts records behind each other; `commit` ends the group and returns when it is on disk;
    `rollback` forgets what came since the last commit. After `StoreFailedError` nothing may be
    written any more: the kernel may have dropped pages that a second fsync would call clean.
    """

    def __init__(
        self,
        directory: Path,
        store_id: bytes,
        state: StreamState,
        *,
        lock: StreamLock,
        new_pack: bool = False,
        pack_bytes: int = DEFAULT_PACK_BYTES,
        level: int = 3,
    ) -> None:
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
        self._facts: list[bytes] = []
        self.failed = False
        if new_pack or not pack_numbers(directory):
            self._start_pack()
        else:
            self._reopen_pack()

    def _reopen_pack(self) -> None:
        newest = pack_numbers(self._directory)[-1]
        if newest != self.state.pack:  # begun before a crash, and nothing committed in it yet
            self.state = replace(self.state, pack=newest, offset=layout.PACK_HEADER_BYTES)
        path = pack_path(self._directory, newest)
        self._key = read_pack_header(path).key()
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(self._fd).st_size != self.state.offset:
            os.ftruncate(self._fd, self.state.offset)  # the torn tail of a crash; never acknowledged
            os.fsync(self._fd)
        self._at = self._flushed = self.state.offset

    def _start_pack(self) -> None:
        number = max(pack_numbers(self._directory), default=0) + 1
        header = PackHeader(
            number=number, store_id=self._store_id, salt=os.urandom(16), created_us=now_us(),
            next_record=self.state.next_record, stream=self.name, chain=self.state.chain,
        )  # fmt: skip
        path = pack_path(self._directory, number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            adopt(path)
            os.write(fd, header.encode())
            os.fsync(fd)
            sync_directory(self._directory)
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._key = fd, header.key()
        self._at = self._flushed = layout.PACK_HEADER_BYTES
        self.state = replace(self.state, pack=number, offset=self._at)

    def append_chunks(self, chunks: list[tuple[ChunkId, bytes]]) -> list[tuple[ChunkId, Location]]:
        """One CHUNKS record, handed to the kernel but not yet durable; where each chunk lies."""
        where = self._append(RecordType.CHUNKS, layout.encode_chunks(chunks, self.level))
        inner, located = 0, []
        for chunk, data in chunks:
            located.append((chunk, where._replace(inner=inner, size=len(data))))
            inner += len(data)
        self._flush()
        return located

    def append_entries(self, entries: list[bytes]) -> list[Location]:
        """One ENTRIES record; where each entry lies."""
        where = self._append(RecordType.ENTRIES, layout.encode_entries(entries, self.level))
        self._facts.extend(entry for entry in entries if records.is_fact(entry))
        return [where._replace(inner=inner) for inner in layout.entry_offsets(entries)]

    def commit(self) -> StreamState:
        """End the group: COMMIT, then fdatasync. All of it is durable when this returns.

        Raises:
            StoreFullError: no room; the group is undone and the stream is as before it.
            StoreFailedError: the disk failed; nothing may be believed, the stream is dead.
        """
        state = self.state
        chain = state.chain
        for fact in self._facts:
            chain = layout.chain_next(chain, fact)
        commit = Commit(state.commits + 1, now_us(), state.facts + len(self._facts), chain)
        self._append(RecordType.COMMIT, commit.encode())
        self._flush()
        try:
            os.fdatasync(self._fd)
        except OSError as exc:
            # Never fsync again and believe it: Linux marks failed pages clean.
            self._die(exc)
        self.written_bytes += self._at - state.offset
        self._facts = []
        self.state = StreamState(
            state.pack, self._at, self._next_record, commit.number, commit.facts, chain, commit.time_us
        )
        return self.state

    def roll(self) -> None:
        """Begin a new pack if this one has reached its size. Only between groups."""
        if self.state.offset >= self._pack_bytes and self._at == self.state.offset:
            try:
                self._start_pack()
            except OSError as exc:
                if exc.errno not in _FULL:
                    self._die(exc)
                raise StoreFullError(f"no room for a new pack in {self._directory}") from exc

    def rollback(self) -> None:
        """Forget everything since the last commit."""
        self._buffer = []
        self._facts = []
        self._next_record = self.state.next_record
        self._at = self.state.offset
        if self._flushed > self._at and not self.failed:
            try:
                os.ftruncate(self._fd, self._at)
            except OSError as exc:
                self._die(exc)
        self._flushed = self._at

    def close(self) -> None:
        """Undo what is not committed, and let another writer have the stream."""
        if self._fd >= 0:
            self.rollback()
            os.close(self._fd)
            self._fd = -1
        self._lock.release()

    def _append(self, kind: RecordType, payload: bytes) -> Location:
        if self.failed:
            raise StoreFailedError(f"stream {self.name} has failed and takes no more")
        record = layout.encode_record(kind, self._next_record, payload, self._key)
        where = Location(self.number, self.state.pack, self._at, len(record), 0, 0)
        self._buffer.append(record)
        self._at += len(record)
        self._next_record += 1
        return where

    def _flush(self) -> None:
        data = memoryview(b"".join(self._buffer))
        self._buffer = []
        try:
            while data:
                written = os.pwrite(self._fd, data, self._flushed)
                self._flushed += written
                data = data[written:]
        except OSError as exc:
            if exc.errno not in _FULL:
                self._die(exc)
            self.rollback()
            raise StoreFullError(f"no room left in {self._directory}: {exc.strerror}") from exc

    def _die(self, exc: OSError) -> None:
        self.failed = True
        path = pack_path(self._directory, self.state.pack)
        raise StoreFailedError(f"writing {path} failed: {exc.strerror}") from exc


class StreamLock:
    """The right to write to one stream, held through flock until released or the process ends."""

    def __init__(self, directory: Path) -> None:
        if not directory.exists():
            directory.mkdir(mode=0o700)
            adopt(directory)
        self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        adopt(directory / "lock")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._fd)
            raise StoreLockedError(f"another process writes to stream {directory.name!r}") from exc

    def release(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
