"""Read records from packs by location, each checked before a byte of it is believed.

Keeps a few files open and a few megabytes of unpacked blocks, so that neighbours cost nothing. Thread-safe.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from store import layout, records
from store.errors import DamagedError, PackGoneError, SealedError
from store.files import Fill, all_here
from store.layout import RecordType
from store.places import Location, stream_number
from store.scan import key_of_pack, pack_seal, read_pack_header
from store.sealing import NO_KEYS, Keyring
from store.segments import pack_path

_MAX_OPEN_PACKS = 64
_CACHE_BYTES = 8 << 20
_FIRST_READ_BYTES = 12 << 10


class PackReader:
    """All the packs below a store's `streams` directory."""

    def __init__(
        self,
        streams: Path,
        store_id: bytes,
        *,
        keyring: Keyring = NO_KEYS,
        cache_bytes: int = _CACHE_BYTES,
        fill: Fill = all_here,
    ) -> None:
        self._streams = streams
        self._fill = fill
        self._cache_bytes = cache_bytes
        self._store_id = store_id
        self._keyring = keyring
        self._lock = threading.Lock()
        self._names: dict[int, Path] = {}
        self._open: OrderedDict[tuple[int, int], tuple[int, bytes]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._cached = 0

    def chunk(self, where: Location) -> bytes:
        """The bytes of a chunk. Raises `DamagedError`."""
        end = where.inner + where.size
        raw = self._block(where, layout.CHUNK_RECORDS, end)
        return raw[where.inner : end]

    def entry(self, where: Location) -> records.Entry:
        """The entry at a location. Raises `DamagedError`."""
        try:
            return records.decode(self.encoded(where))
        except ValueError as exc:
            raise DamagedError(f"{self._path(where)} at byte {where.offset}: {exc}") from exc

    def have(self, where: Location) -> None:
        """See to it that what lies there can be read without a fetch. Raises `StoreError`, `OSError`."""
        if self._fill is not all_here and where.record not in self._blocks:
            self._have(where)

    def encoded(self, where: Location) -> bytes:
        """The same as it stands in the log."""
        return layout.entry_at(self._block(where, layout.ENTRY_RECORDS), where.inner)

    def let_go(self) -> None:
        """Close packs whose files are removed."""
        with self._lock:
            for name, (fd, _) in list(self._open.items()):
                if os.fstat(fd).st_nlink == 0:
                    os.close(fd)
                    del self._open[name]

    def close(self) -> None:
        """Close the files; the reader may be used again."""
        with self._lock:
            for fd, _ in self._open.values():
                os.close(fd)
            self._open.clear()
            self._blocks.clear()
            self._cached = 0

    def _block(
        self, where: Location, kinds: frozenset[RecordType], upto: int | None = None, *, again: bool = False
    ) -> bytes:
        """A record's raw block; of a large one that is asked for the first time, only its first `upto` bytes
        may be unpacked: on average half of what a single message costs."""
        name = (where.stream, where.pack, where.offset)
        self.have(where)
        with self._lock:
            cached = self._blocks.get(name)
            if cached is not None and upto is not None and len(cached) < upto:
                self._cached -= len(self._blocks.pop(name))
                cached, upto = None, None  # a second chunk of it: there will be more
            if cached is not None:
                self._blocks.move_to_end(name)
                return cached
            fd, key = self._pack(where)
            try:
                data = os.pread(fd, _FIRST_READ_BYTES, where.offset)
                header = layout.decode_record_header(data, key)
                size = layout.RECORD_HEADER_BYTES + header.length if header else 0
                if size > len(data):
                    data += os.pread(fd, size - len(data), where.offset + len(data))
            except OSError as exc:
                raise DamagedError(f"{self._path(where)} at byte {where.offset}: {exc.strerror}") from exc
        payload = memoryview(data)[layout.RECORD_HEADER_BYTES : size]
        if not header or header.type not in kinds or not layout.payload_is_sound(header, payload, key):
            if self._fill is not all_here and not again:  # perhaps it has been mended there since
                end = where.offset + max(size, _FIRST_READ_BYTES)
                self._fill(self._path(where), where.offset, end, again=True)
                return self._block(where, kinds, upto, again=True)
            raise DamagedError(f"{self._path(where)} at byte {where.offset}: record is damaged")
        try:
            seal = None
            if header.type in layout.SEALED_RECORDS:
                seal = pack_seal(self._path(where), key, self._keyring)
            raw = layout.block_bytes(header.type, payload, upto, seal, header.number)
        except SealedError as exc:
            raise SealedError(f"{self._path(where)}: {exc}") from exc
        except FileNotFoundError as exc:
            raise PackGoneError(f"{self._path(where)} is missing") from exc
        except (ValueError, OSError) as exc:
            raise DamagedError(f"{self._path(where)} at byte {where.offset}: {exc}") from exc
        with self._lock:
            if name not in self._blocks:
                self._blocks[name] = raw
                self._cached += len(raw)
            while self._cached > self._cache_bytes and len(self._blocks) > 1:
                self._cached -= len(self._blocks.popitem(last=False)[1])
        return raw

    def _have(self, where: Location) -> None:
        """See to it that a record can be read: without the lock, so that several are fetched at once."""
        path = self._path(where)
        try:
            self._have_header(path)
            self._fill(path, where.offset, where.offset + _FIRST_READ_BYTES)
            with self._lock:
                fd, key = self._pack(where)
                header = layout.decode_record_header(os.pread(fd, _FIRST_READ_BYTES, where.offset), key)
            if header:
                self._fill(path, where.offset, where.offset + layout.RECORD_HEADER_BYTES + header.length)
        except FileNotFoundError as exc:  # another process knows that it counts no more
            raise PackGoneError(f"{path} is missing") from exc

    def _have_header(self, path: Path) -> None:
        self._fill(path, 0, layout.PACK_HEADER_BYTES)
        try:
            read_pack_header(path)
        except ValueError:
            self._fill(path, 0, layout.PACK_HEADER_BYTES, again=True)

    def _pack(self, where: Location) -> tuple[int, bytes]:
        found = self._open.get((where.stream, where.pack))
        if found:
            self._open.move_to_end((where.stream, where.pack))
            return found
        path = self._path(where)
        try:
            key = key_of_pack(path, self._store_id)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise PackGoneError(f"{path} is missing") from exc
        except (OSError, ValueError) as exc:
            raise DamagedError(f"{path}: {exc}") from exc
        self._open[where.stream, where.pack] = (fd, key)
        if len(self._open) > _MAX_OPEN_PACKS:
            os.close(self._open.popitem(last=False)[1][0])
        return fd, key

    def _path(self, where: Location) -> Path:
        if where.stream not in self._names:
            self._names = {
                stream_number(path.name): path for path in self._streams.iterdir() if path.is_dir()
            }
        directory = self._names.get(where.stream)
        if directory is None:
            raise DamagedError(f"{self._streams}: stream number {where.stream:08x} is missing")
        return pack_path(directory, where.pack)
