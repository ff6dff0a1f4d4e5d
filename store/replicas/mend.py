"""Mend a replica from the store that it is a copy of: what is missing or damaged there, and right here.

Nothing is ever written over. A piece that is missing is created again under its name, by whoever finds it.
One that is damaged gets a copy beside it, which only a full round can name, and a round that is missing or
damaged gets a full one behind it: that the shipper does, since nobody else may go on with the rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from store.replicas.asked import Asked, Place, Wish, Wrong
from store.replicas.chain import Memory
from store.replicas.compare import counts_here
from store.replicas.contents import Contents
from store.replicas.errors import DamagedUploadError, DiffersError, ReplicaError
from store.replicas.layout import Extent, piece_name
from store.replicas.local import slices
from store.replicas.source import Target
from store.segments import pack_path

log = logging.getLogger(__name__)

Create = Callable[[str, int, int, bytes, int], Extent]
"""creates a piece: stream, pack, offset, bytes, and the first copy to try"""


class BeginAnewError(ReplicaError):
    """Nothing of what was shipped is there any more."""

    hint = "All is shipped anew."


@dataclass(slots=True)
class Mended:
    """What came of it: pieces that were created again, what the shipper was asked to mend, and what cannot
    be mended from here, in words."""

    created: int = 0
    asked: int = 0
    left: list[str] = field(default_factory=list)


def right_bytes(path: Path, place: Place) -> bytes | None:
    """What was shipped of an extent, if the pack here still has just that."""
    stream, pack, extent = place
    try:
        parts = slices(pack_path(path / "streams" / stream, pack), extent.offset, extent.end, extent.length)
        data = b"".join(part for _, part in parts)
    except OSError:
        return None
    return data if blake3(data).digest() == extent.digest else None


def mend(
    target: Target, path: Path, wrongs: Iterable[Wrong], step: Callable[[int], None] = lambda _size: None
) -> Mended:
    """Create again what is missing, and ask the shipper for the rest. Raises `StoreError`, `OSError`."""
    mended = Mended()
    for wrong in wrongs:
        damaged = dict(wrong.damaged)
        for name, place in wrong.missing.items():
            data = _wanted(path, name, place, mended)
            if data is None:
                continue
            try:
                target.create(name, data)
            except (DiffersError, DamagedUploadError):
                damaged[name] = place
            else:
                mended.created += 1
            step(len(data))
        ask(path, target.url, replace(wrong, missing={}, damaged=damaged), mended, step)
    return mended


def ask(
    path: Path, url: str, wrong: Wrong, mended: Mended, step: Callable[[int], None] = lambda _size: None
) -> None:
    """Ask the shipper for all that is wrong, if it ships from here, and the bytes are right here. Raises
    `OSError`."""
    if not wrong:
        return
    if Memory(path, url, wrong.host).last() is None:
        wrong_names = (*wrong.missing, *wrong.damaged, *wrong.index)
        mended.left += [f"{name}: not shipped from here" for name in wrong_names]
        if wrong.rounds or wrong.anew:
            mended.left.append(f"the rounds of {wrong.host}: not shipped from here")
        return
    wish = Wish(index=wrong.index, full_after=wrong.last if wrong.rounds else 0, anew=wrong.anew)
    for places, names in ((wrong.missing, wish.missing), (wrong.damaged, wish.damaged)):
        for name, place in places.items():
            data = _wanted(path, name, place, mended)
            if data is not None:
                names.append(name)
                step(len(data))
    if wish:
        Asked(path, url, wrong.host).ask(wish)
    mended.asked += len(wish.missing) + len(wish.damaged) + len(wish.index) + wrong.rounds + wrong.anew


def _wanted(path: Path, name: str, place: Place, mended: Mended) -> bytes | None:
    """The bytes of a piece. None where compaction has replaced the pack, as a round will say soon, and where
    they are not right here, which is told."""
    data = right_bytes(path, place)
    if data is None and counts_here(path / "streams" / place[0], place[1]):
        mended.left.append(f"{name}: the bytes that were shipped are not here")
    return data


class Mending:
    """The shipper's side: what it was asked for, done a few pieces with each round."""

    def __init__(self, path: Path, url: str, host: str) -> None:
        self._path = path
        self._url = url
        self._asked = Asked(path, url, host)
        self._todo: dict[str, Place] = {}
        self._damaged: set[str] = set()
        self._copies: dict[str, Extent] = {}
        """what stands for a damaged piece in the next full round"""
        self.index: set[str] = set()
        """pieces of the index that are missing or damaged, and that the last full round names"""
        self._settled: set[str] = set()
        """of what the notes ask for: created again, or not to be mended from here"""

    @property
    def waits(self) -> bool:
        """Whether something is left to do."""
        return bool(self._todo or self._copies)

    @property
    def due_full(self) -> bool:
        """Whether the copies are all there that the next full round is to name."""
        return bool(self._copies) and not self._todo

    def look(self, contents: Contents) -> bool:
        """What is asked for now; whether a full round is due at once. Takes away notes with nothing left to
        do. Raises `BeginAnewError`."""
        notes = self._asked.notes()
        self.index = set()
        if not notes and not self.waits:
            return False
        pieces = contents.pieces()
        self._copies = {name: copy for name, copy in self._copies.items() if name in pieces}
        self._todo = {}
        self._damaged = {name for wish in notes.values() for name in wish.damaged}
        named_by_index = set(contents.index.pieces(contents.host)) if contents.index else set()
        full_due = False
        asked_for: set[str] = set()
        for note, wish in notes.items():
            if wish.anew:
                self._asked.done(note)
                raise BeginAnewError(f"{self._url} has nothing any more of what was shipped")
            named = {name for name in (*wish.missing, *wish.damaged) if name in pieces} - self._settled
            # A number beyond ours is of a chain that is no more.
            due = bool(wish.full_after) and contents.full_number <= wish.full_after <= contents.number
            of_index = (named_by_index & set(wish.index)) - self._settled
            self.index |= of_index
            if not named and not due and not of_index:
                self._asked.done(note)
            else:
                asked_for.update(wish.missing, wish.damaged, wish.index)
            full_due |= due
            self._todo |= {name: pieces[name] for name in sorted(named - self._copies.keys())}
        self._settled &= asked_for
        return full_due

    def index_sent(self) -> None:
        """The index was shipped anew: what was missing is there under its name, and of what was damaged
        there is a copy."""
        self._settled |= self.index

    def go_on(self, create: Create, late: Callable[[], bool]) -> None:
        """Create what is asked for, until it is late; one piece at least. Raises `StoreError`, `OSError`."""
        while self._todo:
            name, place = next(iter(self._todo.items()))
            stream, pack, extent = place
            data = right_bytes(self._path, place)
            if data is None:
                log.error("replica: %s cannot be mended: what was shipped is not here (any more)", name)
                self._settled.add(name)
            else:
                made = create(stream, pack, extent.offset, data, extent.copy + (name in self._damaged))
                if made.copy == extent.copy:
                    self._settled.add(name)
                else:
                    self._copies[name] = made
                log.info("replica: %s was mended by %s", name, piece_name(stream, pack, made))
            del self._todo[name]
            if late():
                return

    def instead(self, stream: str, pack: int, extents: list[Extent]) -> list[Extent]:
        """The extents of a pack with copies in the place of what is damaged."""
        if not self._copies:
            return extents
        return [
            extent if extent.inline else self._copies.get(piece_name(stream, pack, extent), extent)
            for extent in extents
        ]
