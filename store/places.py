"""Where things lie in the streams, and what is known of a stream: words that all rooms of the store share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from store import records
from store.ids import ChunkId

if TYPE_CHECKING:
    from store.segments import Segment

Place = tuple[int, int]
"""(pack, offset) where a group ends."""
Record = tuple[int, int, int]
"""A record's place: stream, pack, offset."""


class Location(NamedTuple):
    """Where a chunk or entry lies: stream, pack and record, then offset and length in the record's raw block.

    `size` is 0 for entries, whose length stands in the block.
    """

    stream: int
    pack: int
    offset: int
    inner: int
    size: int

    @property
    def record(self) -> Record:
        """The record it lies in."""
        return self[:3]


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

    @property
    def place(self) -> tuple[int, int]:
        """(pack, offset)."""
        return self.pack, self.offset


@dataclass(frozen=True, slots=True)
class Unread:
    """A stretch of a stream that is sealed, and in the index without its facts: from a state to a place."""

    start: StreamState
    end: Place


@dataclass(slots=True)
class Group:
    """What one COMMIT made durable, with where everything lies, and the stream's state after it.

    `before` is the (pack, offset) where the group before it ended: what an index must have seen to take it.
    `leaves` has, of each fact in order, its leaf and the record that it lies in; none where damage keeps the
    facts from being counted. `segment` is the segment it was read from, if it was. `kinds` (of the chunks, as
    the splitter names them) and `encoded` (all entries as they stand in the log, unknown ones too) are filled
    in by scanning alone. `sealed` says that it has entries which no identity at hand opens.
    """

    stream: str
    state: StreamState
    before: tuple[int, int] = (0, 0)
    chunks: list[tuple[ChunkId, Location]] = field(default_factory=list)
    entries: list[tuple[records.Entry, Location]] = field(default_factory=list)
    leaves: list[tuple[bytes, Location]] = field(default_factory=list)
    segment: Segment | None = None
    kinds: list[int] = field(default_factory=list)
    encoded: list[bytes] = field(default_factory=list)
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Damage:
    """A place whose bytes are not what was written."""

    path: Path
    offset: int
    what: str

    @property
    def record(self) -> Record:
        """The place as a record's."""
        return stream_number(self.path.parent.name), int(self.path.stem or "0"), self.offset

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
