"""What of a store's files may be shipped: whole groups that are on the disk. Reads record headers alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from store import layout
from store.layout import FIRST_COMPACTED, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, RecordType
from store.scan import key_of_pack
from store.segments import Segment, pack_path, stream_files


@dataclass(slots=True)
class LocalStream:
    """A stream's packs that count, with how far each may be shipped, and its segments' manifests by name.

    `whole`: nothing is missing between two parts; only then may what is not here be taken for gone.
    """

    directory: Path
    ends: dict[int, int] = field(default_factory=dict)
    segments: dict[str, str] = field(default_factory=dict)
    covered: list[Segment] = field(default_factory=list)
    whole: bool = True

    def stands_for(self, pack: int) -> bool:
        """Whether a segment that counts here stands for a pack that the stream's writer wrote."""
        return any(segment.covers(pack, pack) for segment in self.covered)


class Local:
    """The streams of one store, looked at again and again; remembers how far it had walked."""

    def __init__(self, path: Path, store_id: bytes) -> None:
        self._streams = path / "streams"
        self._store_id = store_id
        self._walked: dict[Path, tuple[int, int]] = {}
        """of each pack: how far it was walked, and the file's size then"""

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
                    continue
        return found

    def _stream(self, directory: Path) -> LocalStream:
        files = stream_files(directory)
        stream = LocalStream(directory, whole=files.whole)
        for pack in sorted(files.packs()):
            try:
                stream.ends[pack] = self._end(pack_path(directory, pack), pack)
            except FileNotFoundError:  # lost, or compaction has replaced it since we looked
                stream.whole = False
        for part in files.parts:
            if isinstance(part, Segment) and all(pack in stream.ends for pack in part.packs):
                stream.segments[part.name] = (directory / part.name).read_text()
                stream.covered.append(part)
        return stream

    def _end(self, path: Path, pack: int) -> int:
        """How far a pack is made of whole groups; of one that compaction made, all of it."""
        size = path.stat().st_size
        if pack >= FIRST_COMPACTED:
            return size
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
            data = os.pread(fd, 4096, at)
            header = layout.decode_record_header(data, key)
            if header is None:
                return end
            at += RECORD_HEADER_BYTES + header.length
            if header.type == RecordType.COMMIT:
                payload = data[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + header.length]
                if not layout.payload_is_sound(header, payload, key):
                    return end
                end = at


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
