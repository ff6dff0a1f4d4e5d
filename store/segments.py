"""Segments: what compaction has made of a stretch of a stream, and which files of a stream count.

A segment is a set of packs that stand in place of the packs `first` to `last`: all facts, in order, and every
chunk and recipe that is still needed. It counts from the moment its manifest has its name, for that is one
rename; then whatever it covers (packs, smaller segments, an earlier segment of the same range) does not
count any more and may be removed at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from store.files import write_whole
from store.layout import FIRST_COMPACTED
from store.places import StreamState

SUFFIX = ".segment"


@dataclass(frozen=True, slots=True)
class Segment:
    """Packs that stand for the packs `first` to `last` of a stream, whose state before and after was `start`
    and `end`. `records_end` is the number of the record after the last in the segment's own packs;
    `replaces` are the packs of earlier segments that it was made from."""

    first: int
    last: int
    packs: tuple[int, ...]
    start: StreamState
    end: StreamState
    records_end: int
    replaces: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The manifest's file name."""
        return f"{self.first:010d}-{self.last:010d}{SUFFIX}"

    def covers(self, first: int, last: int) -> bool:
        """Whether the packs `first` to `last` are within this segment's range."""
        return self.first <= first and last <= self.last


Part = Segment | int
"""What a stream is made of: segments, and packs by their number."""


def first_of(part: Part) -> int:
    """The first pack that a part is or stands for."""
    return part if isinstance(part, int) else part.first


def last_of(part: Part) -> int:
    """The last pack that a part is or stands for."""
    return part if isinstance(part, int) else part.last


def packs_of(part: Part) -> tuple[int, ...]:
    """The packs that a part is made of."""
    return (part,) if isinstance(part, int) else part.packs


@dataclass(frozen=True, slots=True)
class Files:
    """A stream's files: `parts` in order, what counts no longer, and manifests that cannot be read."""

    parts: tuple[Part, ...]
    superseded: tuple[Path, ...]
    damaged: tuple[tuple[Path, str], ...]

    @property
    def whole(self) -> bool:
        """Whether every manifest can be read and no pack is missing between two parts."""
        return not self.damaged and all(
            first_of(after) == last_of(before) + 1 for before, after in itertools.pairwise(self.parts)
        )

    @property
    def newest(self) -> int | None:
        """The newest pack, if no segment stands for it: the one that may be open."""
        newest = self.parts[-1] if self.parts else None
        return newest if isinstance(newest, int) else None

    def packs(self) -> set[int]:
        """The numbers of all packs that count."""
        return {number for part in self.parts for number in packs_of(part)}


def pack_path(directory: Path, number: int) -> Path:
    """The file of pack `number` of the stream in `directory`."""
    return directory / f"{number:010d}.pack"


def all_packs(directory: Path) -> list[int]:
    """The numbers of all pack files, those of segments too."""
    return sorted(int(path.stem) for path in directory.glob("*.pack") if path.stem.isdigit())


def written_packs(directory: Path) -> list[int]:
    """The numbers of the packs that the stream's writer wrote and that are still there."""
    return [number for number in all_packs(directory) if number < FIRST_COMPACTED]


def stream_files(directory: Path) -> Files:
    """What a stream is made of now."""
    while True:
        before = _manifests(directory)
        files = _files(directory, before)
        if _manifests(directory) == before:  # else compaction has replaced something while we looked
            return files


def _manifests(directory: Path) -> list[tuple[Path, int]]:
    found = []
    for path in directory.glob("*" + SUFFIX):
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            found.append((path, path.stat().st_ino))
    return sorted(found)


def _files(directory: Path, manifests: list[tuple[Path, int]]) -> Files:
    segments: list[Segment] = []
    damaged: list[tuple[Path, str]] = []
    superseded: list[Path] = []
    for path, _ in manifests:
        try:
            segments.append(read(path))
        except FileNotFoundError:  # replaced by a wider one while we looked
            continue
        except (OSError, ValueError) as exc:
            damaged.append((path, str(exc)))
    kept: list[Segment] = []
    for segment in segments:
        if any(other.covers(segment.first, segment.last) for other in segments if other is not segment):
            superseded.append(directory / segment.name)
        else:
            kept.append(segment)
    parts: list[Part] = list(kept)
    listed = {number for segment in kept for number in segment.packs}
    for number in all_packs(directory):
        if number >= FIRST_COMPACTED:
            if number not in listed and not damaged:
                superseded.append(pack_path(directory, number))
        elif any(segment.covers(number, number) for segment in kept):
            superseded.append(pack_path(directory, number))
        else:
            parts.append(number)
    parts.sort(key=first_of)
    return Files(tuple(parts), tuple(superseded), tuple(damaged))


def read(path: Path) -> Segment:
    """A manifest. Raises `ValueError` when it is damaged, `OSError`."""
    text, _, total = path.read_bytes().partition(b"\n")
    if blake3(text).hexdigest().encode() != total.strip():
        raise ValueError("segment manifest is damaged")
    told = json.loads(text)
    try:
        return Segment(
            told["first"], told["last"], tuple(told["packs"]), _state(told["start"]), _state(told["end"]),
            told["records_end"], tuple(told.get("replaces", ())),
        )  # fmt: skip
    except (KeyError, TypeError) as exc:
        raise ValueError(f"segment manifest lacks something: {exc!r}") from exc


def _state(told: list[int | str]) -> StreamState:
    pack, offset, next_record, commits, facts, chain, last_commit_us = told
    return StreamState(
        int(pack), int(offset), int(next_record), int(commits), int(facts), bytes.fromhex(str(chain)),
        int(last_commit_us),
    )  # fmt: skip


def write(directory: Path, segment: Segment) -> None:
    """Make a segment count: its packs must be durable. One rename, then durable itself. Raises OSError."""
    told = {
        "first": segment.first,
        "last": segment.last,
        "packs": list(segment.packs),
        "start": _told(segment.start),
        "end": _told(segment.end),
        "records_end": segment.records_end,
        "replaces": list(segment.replaces),
    }
    text = json.dumps(told).encode()
    write_whole(directory / segment.name, text + b"\n" + blake3(text).hexdigest().encode() + b"\n")


def may_count(directory: Path, segment: Segment) -> bool:
    """Whether `write`, which did not come to its end, may have made it count."""
    try:
        return read(directory / segment.name) == segment
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # nobody knows
        return True


def _told(state: StreamState) -> list[int | str]:
    return [part.hex() if isinstance(part, bytes) else part for part in dataclasses.astuple(state)]
