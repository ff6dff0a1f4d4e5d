"""What compaction would rewrite together: a plan, from file sizes and what was removed. Changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from store.places import Place, stream_number
from store.records import Hold
from store.segments import Part, Segment, first_of, last_of, pack_path, packs_of, stream_files
from store.snapshot import Waste

_WORTH_BYTES = 1 << 20
"""packs that come to less are left until there is more of them"""
_EXPIRED_SHARE = 0.1
"""of a segment's facts, at which what has expired is worth rewriting the rest"""


@dataclass(frozen=True, slots=True)
class Unit:
    """Parts of one stream, in order and without a gap, that become one segment."""

    stream: str
    parts: tuple[Part, ...]
    packs: int
    size: int
    why: str
    wasted: bool

    def range(self) -> tuple[int, int]:
        """The first and last pack it stands for."""
        return first_of(self.parts[0]), last_of(self.parts[-1])

    def __str__(self) -> str:
        first, last = self.range()
        return f"{self.stream}, packs {first} to {last} ({self.why})"


def in_force(holds: Mapping[str, Hold]) -> str:
    """What names the holds in force, to tell whether they are still the same; "" when there are none."""
    names = sorted(f"{name} {hold.time_us}" for name, hold in holds.items() if not hold.released)
    return blake3("\n".join(names).encode()).hexdigest()[:32] if names else ""


def plan(
    directory: Path,
    waste: Mapping[tuple[int, int], Waste],
    holds: str,
    indexed: Place,
    *,
    unit_bytes: int,
    everything: bool,
    stale: Callable[[Part], bool] = lambda _part: False,
) -> list[Unit]:
    """The units of a stream that are due. The newest pack is never among them: it may be open; nor is what
    lies behind the place up to which the stream is `indexed`.

    What was removed but is held is tried again once other holds are in force (`in_force`). Parts that are
    `stale` are due whatever is in them."""
    parts = list(stream_files(directory).parts)
    if parts and not isinstance(parts[-1], Segment):
        parts.pop()
    parts = [part for part in parts if _end_of(directory, part) <= indexed]
    owner = stream_number(directory.name)
    sizes = {part: _size(directory, part) for part in parts}
    units: list[Unit] = []
    for stretch in _stretches(parts, sizes, unit_bytes, everything=everything):
        packs = [number for part in stretch for number in packs_of(part)]
        wastes = [waste[owner, n] for n in packs if (owner, n) in waste]
        removed = sum(w.deliveries + (w.held if w.holds != holds else 0) for w in wastes)
        erased = any(w.erased for w in wastes)
        size = sum(sizes[part] for part in stretch)
        fresh = [part for part in stretch if not isinstance(part, Segment)]
        why = ""
        if erased or (removed and removed >= _EXPIRED_SHARE * _facts(stretch)):
            why = f"{removed} deliveries were removed"
        elif everything:
            why = "asked for"
        elif any(stale(part) for part in stretch):
            why = "not sealed for the present recipients"
        elif fresh and sum(sizes[part] for part in fresh) >= _WORTH_BYTES:
            why = f"{len(fresh)} new packs"
        elif len(stretch) > 1 and not fresh:
            why = f"{len(stretch)} small segments"
        if why:
            units.append(
                Unit(directory.name, tuple(stretch), len(packs), size, why, bool(removed) or everything)
            )
    return units


def _end_of(directory: Path, part: Part) -> Place:
    if isinstance(part, Segment):
        return part.end.place
    return part, pack_path(directory, part).stat().st_size


def _size(directory: Path, part: Part) -> int:
    total = 0
    for number in packs_of(part):
        with contextlib.suppress(FileNotFoundError):  # missing: whoever reads the unit will say so
            total += pack_path(directory, number).stat().st_size
    return total


def _facts(stretch: list[Part]) -> int:
    return sum(part.end.facts - part.start.facts for part in stretch if isinstance(part, Segment))


def _stretches(
    parts: list[Part], sizes: Mapping[Part, int], unit_bytes: int, *, everything: bool
) -> Iterator[list[Part]]:
    """Neighbours that would be rewritten together: new packs, with the segments before them that are no
    larger, as far as `unit_bytes` go. So a byte is rewritten a few times, until it lies in a large one."""
    stretch: list[Part] = []
    size = 0
    for part in reversed(parts):
        joins = everything or not isinstance(part, Segment) or sizes[part] <= size
        if stretch and (size + sizes[part] > unit_bytes or not joins):
            yield stretch[::-1]
            stretch, size = [], 0
        stretch.append(part)
        size += sizes[part]
    if stretch:
        yield stretch[::-1]
