"""What of a store's files may be shipped: whole groups that are on the disk. Reads record headers alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from store import layout
from store.layout import PACK_HEADER_BYTES, RECORD_HEADER_BYTES, RecordType
from store.scan import key_of_pack
from store.segments import Segment, pack_path, stream_files

_SLICE_BYTES = 8 << 20
_SETTLED_NS = 1_000_000_000
"""a directory that changed less long ago may have changed again within the same tick of its clock"""


@dataclass(slots=True)
class LocalStream:
    """A stream's packs that count, with how far each may be shipped, and its segments, with their
    manifests' texts, by name. `newest` is the pack that may be open."""

    directory: Path
    newest: int | None = None
    ends: dict[int, int] = field(default_factory=dict)
    segments: dict[str, tuple[Segment, str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Seen:
    """A stream as it was found, and when its directory had changed last by then."""

    stream: LocalStream
    changed_ns: int
    looked_ns: int


class Local:
    """The streams of one store, looked at again and again; remembers what cannot have changed."""

    def __init__(self, path: Path, store_id: bytes) -> None:
        self._streams = path / "streams"
        self._store_id = store_id
        self._seen: dict[Path, _Seen] = {}
        self._walked: dict[Path, tuple[int, int]] = {}
        """of each newest pack: how far it was walked, and the file's size then"""

    def look(self) -> dict[str, LocalStream]:
        """What there is now. A stream in which compaction replaces files meanwhile is left out: next time.

        Raises `OSError`.
        """
        found = {}
        for directory in sorted(self._streams.iterdir()):
            if directory.is_dir():
                try:
                    found[directory.name] = self._stream(directory)
                except FileNotFoundError:
                    self._seen.pop(directory, None)
        return found

    def _stream(self, directory: Path) -> LocalStream:
        changed_ns, now_ns = directory.stat().st_mtime_ns, time.time_ns()
        seen = self._seen.get(directory)
        if seen and seen.changed_ns == changed_ns and seen.looked_ns - changed_ns > _SETTLED_NS:
            stream = seen.stream
        else:
            stream = self._read(directory)
            self._seen[directory] = _Seen(stream, changed_ns, now_ns)
        if stream.newest is not None:
            stream.ends[stream.newest] = self._end(pack_path(directory, stream.newest))
        return stream

    def _read(self, directory: Path) -> LocalStream:
        files = stream_files(directory)
        stream = LocalStream(directory, files.newest)
        for pack in sorted(files.packs()):
            try:
                stream.ends[pack] = pack_path(directory, pack).stat().st_size
            except FileNotFoundError:  # lost: what is there of it elsewhere stays there
                continue
        for part in files.parts:
            if isinstance(part, Segment) and all(pack in stream.ends for pack in part.packs):
                stream.segments[part.name] = part, (directory / part.name).read_text()
        return stream

    def _end(self, path: Path) -> int:
        """How far the newest pack is made of whole groups; the others are taken as they are."""
        size = path.stat().st_size
        end, seen = self._walked.get(path, (0, -1))
        if size == seen:
            return end
        with path.open("rb") as file:
            fd = file.fileno()
            at = self._walk(path, fd, end)
            if at > end:
                # What a crash could still take from us must not be in the replica: the writer would go on
                # without it, and the two histories would part.
                os.fdatasync(fd)
        self._walked[path] = max(end, at), size
        return max(end, at)

    def _walk(self, path: Path, fd: int, start: int) -> int:
        """The end of the last group that is whole, from the end of one on."""
        try:
            key = key_of_pack(path, self._store_id)
        except ValueError:
            return 0
        end, at = start, start or PACK_HEADER_BYTES
        while True:
            data = os.pread(fd, RECORD_HEADER_BYTES, at)
            header = layout.decode_record_header(data, key)
            if header is None:
                return end
            at += RECORD_HEADER_BYTES
            if header.type == RecordType.COMMIT:
                payload = os.pread(fd, header.length, at)
                if not layout.payload_is_sound(header, payload, key):
                    return end
                end = at + header.length
            at += header.length


def digest_of(path: Path, start: int, end: int) -> bytes:
    """BLAKE3 of the bytes of a file from `start` to `end`. Raises `OSError`, also when it is shorter."""
    hasher = blake3()
    for _, data in slices(path, start, end, _SLICE_BYTES):
        hasher.update(data)
    return hasher.digest()


def slices(path: Path, start: int, end: int, most: int) -> Iterator[tuple[int, bytes]]:
    """The bytes of a file from `start` to `end`, at most so many at once. Raises `OSError`, also when the
    file is shorter."""
    with path.open("rb") as file:
        at = start
        while at < end:
            data = os.pread(file.fileno(), min(most, end - at), at)
            if not data:
                raise FileNotFoundError(f"{path} has only {at} bytes of {end}")
            yield at, data
            at += len(data)
