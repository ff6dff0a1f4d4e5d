"""Ship a store to a replica, a round at a time. REPLICA.md has the format, and why it is so.

A round is at most one object, plus pieces for what is large; each is created once. What a round says goes
out after all the bytes that it names, so that a replica is a store at every moment. Nothing here waits for
mail, or is waited for by it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from store.about import About
from store.errors import StoreError
from store.ids import now_us
from store.layout import FIRST_COMPACTED
from store.replicas.contents import Contents
from store.replicas.layout import (
    INLINE,
    Extent,
    Round,
    StreamChange,
    encode_round,
    extent_of,
    piece_name,
)
from store.replicas.local import Local, LocalStream, slices
from store.replicas.reader import NoReplicaError, Replica
from store.replicas.source import Source
from store.replicas.told import told_of

log = logging.getLogger(__name__)
INLINE_BYTES = 1 << 20
"""what is new in a round goes into the round up to so many bytes, and into pieces beyond"""
PIECE_BYTES = 32 << 20
"""of a piece, at most: so much of a pack is in memory at once"""
ROUNDS_BETWEEN = 720
FULL_INLINE_BYTES = 64 << 20
"""bytes in rounds after which there is a full one before its time"""


class Target(Source, Protocol):
    """What a shipper needs of a bucket or directory besides reading."""

    def create(self, name: str, data: bytes) -> bool:
        """Make an object; False when the very same was there. Raises `DiffersError` when another one was,
        `StoreError`."""

    def delete(self, names: list[str]) -> None:
        """Remove objects."""


class RivalError(StoreError):
    """Another host ships under our name, or ours has gone back in time."""

    hint = (
        "Give this host a [store] stream of its own; if its disk was set back to an earlier day, restore the "
        "store from the replica first."
    )
    exit_code = 53


@dataclass(frozen=True, slots=True)
class Shipped:
    """What one round came to. `new_bytes` of packs, `sent_bytes` with what was sent again as pieces."""

    new_bytes: int = 0
    sent_bytes: int = 0
    objects: int = 0
    full: bool = False
    time_us: int = 0


class Shipper:
    """Ships the store at `path` as `host`; for one thread. `differs` is the error by which `create` says that
    another object is there. `sign` makes a signed note of a text."""

    def __init__(
        self,
        path: Path,
        target: Target,
        host: str,
        *,
        differs: type[StoreError],
        sign: Callable[[str], str] = str,
        rounds_between: int = ROUNDS_BETWEEN,
    ) -> None:
        """Takes up where the replica stands. Raises `StoreError`, `RivalError`."""
        self._path = path
        self._about = About.read(path)
        self._target = target
        self._host = host
        self._differs = differs
        self._sign = sign
        self._between = rounds_between
        self._writer = secrets.token_hex(4)
        self._local = Local(path, self._about.id)
        self._contents = self._standing()
        self._due_full = self._contents.number == 0
        self._sent = 0
        self._objects = 0
        self._created: set[str] = set()
        """pieces that are there, and that no round names yet"""

    @property
    def contents(self) -> Contents:
        """What counts in the replica now."""
        return self._contents

    def _standing(self) -> Contents:
        try:
            reading = Replica(self._target).read(self._host)
        except NoReplicaError:
            return Contents(self._about.id, self._host)
        if reading.contents.store_id != self._about.id:
            raise RivalError(
                f"{self._target.url} has another store under the name {self._host}: "
                f"{reading.contents.store_id.hex()}, not {self._about.id.hex()}"
            )
        if reading.faults:
            log.error("%s: %s", self._target.url, "; ".join(reading.faults))
        return reading.contents

    def waiting(self) -> int:
        """Bytes of packs here that the replica has not got. Raises `OSError`."""
        return sum(
            max(0, end - self._contents.stream(name).end(pack))
            for name, stream in self._local.look().items()
            for pack, end in stream.ends.items()
        )

    def round(self, *, full: bool = False) -> Shipped:
        """Ship what is new; nothing new, nothing sent. Raises `StoreError`, `RivalError`, `OSError`; what had
        been sent by then is not sent again."""
        self._sent = self._objects = 0
        local = self._local.look()
        contents = self._contents
        round_ = Round(
            self._about.id, self._host, contents.number + 1, now_us(), contents.digest, self._writer
        )
        new = {name: self._missing(name, stream) for name, stream in local.items()}
        new_bytes = sum(end - start for packs in new.values() for start, end in packs.values())
        as_pieces = new_bytes > INLINE_BYTES
        data: list[bytes] = []
        for name, stream in local.items():
            change = self._change(name, stream, new[name], data, as_pieces=as_pieces)
            if change:
                round_.streams[name] = change
        since_full = contents.number - contents.full_number
        worth_it = contents.inline_bytes > FULL_INLINE_BYTES or since_full >= self._between
        if not round_.streams and not (full or self._due_full) and not (worth_it and since_full):
            return Shipped(time_us=round_.time_us)
        if round_.streams and not self._due_full:
            self._put(round_, data)
        if full or self._due_full or worth_it:
            self._put_full(round_, local)
        is_full = self._contents.number == self._contents.full_number
        return Shipped(new_bytes, self._sent, self._objects, is_full, round_.time_us)

    def _missing(self, name: str, stream: LocalStream) -> dict[int, tuple[int, int]]:
        """Of each pack, what the replica has not got: from, to."""
        there = self._contents.stream(name)
        ends = {pack: there.end(pack) for pack in stream.ends}
        return {pack: (ends[pack], end) for pack, end in stream.ends.items() if end > ends[pack]}

    def _change(
        self, name: str, stream: LocalStream, new: dict[int, tuple[int, int]], data: list[bytes], *,
        as_pieces: bool,
    ) -> StreamChange:  # fmt: skip
        change = StreamChange()
        own: list[bytes] = []
        try:
            for pack, (start, end) in new.items():
                change.packs[pack] = self._extents(name, stream, pack, start, end, None if as_pieces else own)
        except FileNotFoundError:  # compaction has replaced it: its segment goes with the next round
            log.debug("%s: a pack went while it was read", name)
            return StreamChange()
        data += own
        there = self._contents.stream(name)
        change.segments = {
            segment: text for segment, text in stream.segments.items() if there.segments.get(segment) != text
        }
        if stream.whole:
            change.gone = [
                pack for pack in there.packs
                if pack not in stream.ends and (pack >= FIRST_COMPACTED or stream.stands_for(pack))
            ]  # fmt: skip
            change.gone_segments = [segment for segment in there.segments if segment not in stream.segments]
        return change

    def _extents(
        self, name: str, stream: LocalStream, pack: int, start: int, end: int, data: list[bytes] | None
    ) -> list[Extent]:
        """The extents for a stretch of a pack: inline, added to `data`, or as pieces, sent now."""
        path = stream.directory / f"{pack:010d}.pack"
        extents = []
        for at, piece in slices(path, start, end, PIECE_BYTES):
            if data is not None:
                data.append(piece)
                extents.append(extent_of(at, piece, copy=INLINE))
            else:
                extents.append(self._piece(name, pack, at, piece))
        return extents

    def _piece(self, name: str, pack: int, at: int, data: bytes) -> Extent:
        """Create a piece. Where one of that name is damaged, and may not be removed, beside it."""
        for copy in range(100):
            extent = extent_of(at, data, copy=copy)
            piece = piece_name(name, pack, extent)
            if piece not in self._created:
                try:
                    self._target.create(piece, data)
                except self._differs as exc:
                    log.error("%s", exc)
                    continue
                self._created.add(piece)
                self._objects += 1
                self._sent += len(data)
            return extent
        raise StoreError(f"{self._target.url}: pack {pack} of {name}: a hundred pieces of it are damaged")

    def _put(self, round_: Round, data: list[bytes]) -> None:
        whole = encode_round(round_, data, self._sign)
        try:
            self._target.create(round_.name, whole)
        except self._differs as exc:
            raise RivalError(f"{self._target.url}: somebody else has shipped {round_.name}") from exc
        self._created.clear()
        self._objects += 1
        self._sent += len(whole)
        self._contents.apply(round_)

    def _put_full(self, before: Round, local: dict[str, LocalStream]) -> None:
        """A round that says all that counts, with every byte in pieces."""
        contents = self._contents
        first = contents.number == 0
        streams = before.streams if first else contents.as_changes()
        for name, change in streams.items():
            for pack, extents in change.packs.items():
                if any(extent.inline for extent in extents):
                    change.packs[pack] = self._as_pieces(name, pack, extents, local)
        full = Round(
            self._about.id, self._host, contents.number + 1, now_us(), contents.digest, self._writer,
            full=True, about=told_of(About.read(self._path)), streams=streams,
        )  # fmt: skip
        self._put(full, [])
        self._due_full = False

    def _as_pieces(
        self, name: str, pack: int, extents: list[Extent], local: dict[str, LocalStream]
    ) -> list[Extent]:
        """The extents of a pack with what is in rounds made into pieces, read here, else from the rounds."""
        kept = [extent for extent in extents if not extent.inline]
        replica = Replica(self._target)
        stretches: list[list[int]] = []
        for extent in extents:
            if extent.inline and not any(k.offset <= extent.offset and extent.end <= k.end for k in kept):
                if stretches and stretches[-1][1] >= extent.offset:
                    stretches[-1][1] = max(stretches[-1][1], extent.end)
                else:
                    stretches.append([extent.offset, extent.end])
        for start, end in stretches:
            try:
                kept += self._extents(name, local[name], pack, start, end, None)
            except (FileNotFoundError, KeyError):
                for extent in extents:
                    if extent.inline and start <= extent.offset < end:
                        data = b"".join(replica.extent(self._host, name, pack, extent))
                        kept.append(self._piece(name, pack, extent.offset, data))
        return sorted(kept, key=lambda extent: (extent.offset, -extent.length))


def prune(target: Target, host: str) -> int:
    """Remove what no reader needs any more: rounds of a host before its last full one but one, and pieces of
    its streams that nothing which is left names. How many objects. Needs the right to delete. Raises
    `StoreError`."""
    replica = Replica(target)
    full = replica.full_rounds(host)
    if len(full) < 2:
        return 0
    named: set[str] = set()
    streams: set[str] = set()
    for other in replica.hosts():
        kept = replica.full_rounds(other)[-2:]
        for round_ in replica.rounds(other, kept[0]):
            for stream, change in round_.streams.items():
                if other == host:
                    streams.add(stream)
                for pack, extents in change.packs.items():
                    named.update(piece_name(stream, pack, extent) for extent in extents if not extent.inline)
    gone = replica.round_names(host, before=full[-2])
    gone += [name for stream in sorted(streams) for name in replica.piece_names(stream) if name not in named]
    target.delete(gone)
    return len(gone)
