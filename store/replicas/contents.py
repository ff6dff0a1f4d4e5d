"""What counts in a replica after some rounds: its packs, in extents, and the segments. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from store.replicas.layout import NO_ROUND, Extent, IndexFiles, Round, StreamChange, piece_name


@dataclass(slots=True)
class StreamContents:
    """A stream's packs, each as its extents in order, and the texts of its segments' manifests by name."""

    packs: dict[int, list[Extent]] = field(default_factory=dict)
    segments: dict[str, str] = field(default_factory=dict)

    def end(self, pack: int) -> int:
        """How far a pack is there without a hole."""
        end = 0
        for extent in self.packs.get(pack, ()):
            if extent.offset > end:
                break
            end = max(end, extent.end)
        return end

    def has_hole(self, pack: int) -> bool:
        """Whether something is there behind what is missing."""
        extents = self.packs.get(pack, ())
        return bool(extents) and max(extent.end for extent in extents) > self.end(pack)


@dataclass(slots=True)
class Contents:
    """All of a host's streams, and the round that they stand at."""

    store_id: bytes
    host: str
    number: int = 0
    digest: bytes = NO_ROUND
    time_us: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, StreamContents] = field(default_factory=dict)
    full_number: int = 0
    full_size: int = 0
    inline_bytes: int = 0
    """of the rounds since the last full one"""
    index: IndexFiles | None = None
    """as the last full round has it"""
    regrouped: bool = False
    """whether segments were named or let go of since then, of which that index knows nothing"""

    def stream(self, name: str) -> StreamContents:
        """One stream, made if new."""
        return self.streams.setdefault(name, StreamContents())

    def apply(self, round_: Round) -> None:
        """Take up what a round says."""
        self.number, self.digest, self.time_us = round_.number, round_.digest, round_.time_us
        if round_.about is not None:
            self.about = round_.about
        if round_.full:
            self.streams = {}
            self.full_number, self.full_size, self.inline_bytes = round_.number, round_.size, 0
            self.index, self.regrouped = round_.index, False
        else:
            self.regrouped = self.regrouped or regroups(round_)
        for name, change in round_.streams.items():
            stream = self.stream(name)
            for pack in change.gone:
                stream.packs.pop(pack, None)
            for segment in change.gone_segments:
                stream.segments.pop(segment, None)
            stream.segments.update(change.segments)
            for pack, extents in change.packs.items():
                merged = stream.packs.get(pack, []) + extents
                stream.packs[pack] = sorted(merged, key=lambda extent: (extent.offset, -extent.length))
                self.inline_bytes += sum(extent.length for extent in extents if extent.inline)

    def as_changes(self) -> dict[str, StreamChange]:
        """All of it, as a full round says it."""
        return {
            name: StreamChange(
                {pack: list(extents) for pack, extents in stream.packs.items()}, dict(stream.segments)
            )
            for name, stream in self.streams.items()
        }

    def extents(self) -> Iterator[tuple[str, int, Extent]]:
        """Stream, pack and extent, of all that counts."""
        for name, stream in self.streams.items():
            for pack, extents in sorted(stream.packs.items()):
                for extent in extents:
                    yield name, pack, extent

    def holes(self) -> Iterator[str]:
        """Where bytes are missing before others that are there, in words."""
        for name, stream in self.streams.items():
            for pack in stream.packs:
                if stream.has_hole(pack):
                    yield f"pack {pack} of {name} has a hole at byte {stream.end(pack)}"

    def pieces(self) -> dict[str, tuple[str, int, Extent]]:
        """The objects of pieces that count, by name."""
        return {
            piece_name(stream, pack, extent): (stream, pack, extent)
            for stream, pack, extent in self.extents()
            if not extent.inline
        }

    @property
    def size(self) -> int:
        """Bytes of all packs."""
        return sum(extent.length for _, _, extent in self.extents())


def regroups(round_: Round) -> bool:
    """Whether compaction comes to be seen with a round."""
    changes = round_.streams.values()
    return any(change.segments or change.gone or change.gone_segments for change in changes)
