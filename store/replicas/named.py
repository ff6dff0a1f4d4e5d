"""Which segments a round may name, what it lets go of then, and what is in rounds alone. Pure.

A segment is named when all its packs are there, and what it stands for goes in the same round. Nothing else
takes anything away: what is lost or damaged here stays there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from store.layout import FIRST_COMPACTED
from store.replicas.contents import StreamContents
from store.replicas.layout import Extent, StreamChange
from store.replicas.local import LocalStream
from store.segments import SUFFIX


def segments_to_name(there: StreamContents, stream: LocalStream, change: StreamChange) -> dict[str, str]:
    """The texts, by name, of segments that are there whole with `change`, and not named yet."""
    found = {}
    for name, (segment, text) in stream.segments.items():
        if there.segments.get(name) != text and all(
            _end(there, change, pack) >= stream.ends[pack] for pack in segment.packs
        ):
            found[name] = text
    return found


def what_goes(
    there: StreamContents, stream: LocalStream, change: StreamChange
) -> tuple[list[int], list[str]]:
    """The packs and the segments that nobody needs once `change` counts, which names its segments."""
    named = there.segments | change.segments
    standing = [
        segment for name, (segment, text) in stream.segments.items() if named.get(name) == text
    ]  # named, and counting here
    gone_segments = []
    for name in there.segments:
        if name not in stream.segments:
            first, last = map(int, name.removesuffix(SUFFIX).split("-"))
            if any(segment.covers(first, last) for segment in standing):
                gone_segments.append(name)
    listed = {pack for name, text in named.items() if name not in gone_segments for pack in packs_of(text)}
    gone = []
    for pack in there.packs:
        if pack >= FIRST_COMPACTED:
            # One that is on its way, and whose segment counts here, is named by and by.
            if pack not in listed and pack not in stream.ends:
                gone.append(pack)
        elif any(segment.covers(pack, pack) for segment in standing):
            gone.append(pack)
    return gone, gone_segments


def packs_of(text: str) -> list[int]:
    """The packs of a segment, from its manifest."""
    return [int(pack) for pack in json.loads(text.partition("\n")[0])["packs"]]


def _end(there: StreamContents, change: StreamChange, pack: int) -> int:
    end = there.end(pack)
    for extent in change.packs.get(pack, ()):
        if extent.offset <= end:
            end = max(end, extent.end)
    return end


def stretches(extents: Iterable[Extent]) -> list[tuple[int, int]]:
    """What of a pack is in rounds and in no piece: from, to. It begins and ends where extents do."""
    pieces = _joined((e.offset, e.end) for e in extents if not e.inline)
    return _joined(
        (e.offset, e.end)
        for e in extents
        if e.inline and not any(start <= e.offset and e.end <= end for start, end in pieces)
    )


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same in order, with those that touch made one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and found[-1][1] >= start:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found
