"""What nobody needs any more in a unit of compaction: messages whose every delivery was removed, and chunks
that no message is made of.

A new message may come to share a chunk while we decide that nobody needs it. So what may go is first
*condemned*: from that transaction on the index does not offer it for deduplication, and whoever wrote on the
strength of an earlier look has committed before that look ends. When no look is left that is older,
the streams hold every reference that there will ever be; only then is counted what is still referred to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from store.errors import SealedError
from store.filters import held_by
from store.ids import FOREVER_US, ChunkId, ContentId, DeliveryId
from store.layout import PACK_HEADER_BYTES
from store.places import Damage, Group, Location, stream_number
from store.plan import in_force
from store.records import (
    LEAF_NAME_BYTES,
    Content,
    Delivery,
    Entry,
    EntryType,
    Erasure,
    Expiry,
    Hold,
    removed_with,
)
from store.rows import Table, Term
from store.scan import key_of_pack, recipes
from store.segments import first_of, pack_path, packs_of, stream_files
from store.snapshot import REMOVED, Snapshot

if TYPE_CHECKING:
    from store.plan import Unit
    from store.store import Store

_READERS_WAIT_S = 30.0


class Garbage:
    """What of one unit is to go: `removed` deliveries, their `contents`, and `chunks`."""

    def __init__(self, store: Store, stream: str, unit: Unit) -> None:
        self.removed: set[DeliveryId] = set()
        self.contents: set[ContentId] = set()
        self.chunks: set[ChunkId] = set()
        self.token = os.urandom(8)
        """under which it is condemned"""
        self._store = store
        self._stream = stream
        self._unit = unit
        self._names: dict[DeliveryId, frozenset[bytes] | None] = {}
        self._removals: dict[Location, Entry] = {}
        self._held: set[DeliveryId] = set()
        self._holds = ""
        self._outside: set[ChunkId] = set()
        self._erased = False
        self._elsewhere: set[ContentId] = set()
        self._condemned = False

    def find(self, chunks: Iterable[ChunkId], groups: Callable[[], Iterator[Group | Damage]]) -> str:
        """Find what may go, condemn it, and keep what turns out to be needed. Returns why that cannot be
        told now, in which case the unit must be left as it is; "" if all is well."""
        if not self._unit.wasted:
            return ""
        index = self._store.index
        used: set[ChunkId] = set()
        dead: dict[ContentId, Content] = {}
        named: set[ContentId] = set()
        with index.read() as snapshot:
            holds = [hold for hold in snapshot.holds().values() if not hold.released]
            self._holds = in_force(snapshot.holds())
            for group in groups():
                if isinstance(group, Group):
                    self._look(snapshot, holds, group, used, dead, named)
        names: set[ChunkId] = set(chunks) - used
        if not self.removed and not dead and not names:
            return ""
        with index.update() as update:
            update.condemn([*names, *dead], self.token, self._stream)
        self._condemned = True
        if not index.wait_for_readers(index.last_transaction(), _READERS_WAIT_S):
            return "somebody looks at the index for long; it is tried again next time"
        self._store.settle_index(_READERS_WAIT_S)
        if why := self._not_whole():
            return why
        with index.read() as snapshot:
            for content in [c for c in dead if not self._all_removed(snapshot, holds, c)]:
                names -= _chunks_of(dead.pop(content))
        outside = set().union(*map(_chunks_of, dead.values()))
        try:
            for recipe in self._recipes_elsewhere():
                if not names and not outside:
                    break
                if recipe.id in dead:  # a second copy, which nobody needs either
                    continue
                needed = _chunks_of(recipe)
                names -= needed
                outside -= needed
        except (ValueError, OSError, SealedError) as exc:
            return f"what other packs need cannot be told: {exc}"
        self.contents = set(dead)
        self.chunks = names
        self._outside = outside - used
        self._elsewhere = named - set(dead)
        return ""

    def _not_whole(self) -> str:
        """Why it cannot be told what is needed: something is damaged or missing that may yet be restored."""
        for name in self._store.view.names():
            caught = self._store.view.catch_up(name)
            if caught.damage or not stream_files(self._store.path / "streams" / name).whole:
                return f"stream {name} is damaged, and what it needs cannot be told: run `mailkeep check`"
        try:
            self._store.require_whole()
        except SealedError as exc:
            return str(exc)
        with self._store.index.read() as snapshot:
            if snapshot.bad():
                return "the store is damaged, and what is needed cannot be told: run `mailkeep check`"
        return ""

    def still_stands(self) -> str:
        """Why what was found may have changed meanwhile; "" if it has not. Asked before the manifest."""
        if not self._unit.wasted:
            return ""
        with self._store.index.read() as snapshot:
            if in_force(snapshot.holds()) != self._holds:
                return "a hold was placed or released meanwhile"
            if self._condemned and self.token not in snapshot.condemners():
                return "the index was made anew meanwhile"
        return ""

    def _look(
        self,
        snapshot: Snapshot,
        holds: list[Hold],
        group: Group,
        used: set[ChunkId],
        dead: dict[ContentId, Content],
        named: set[ContentId],
    ) -> None:
        """What a group says: which deliveries are removed, and what the recipes of the others use."""
        for entry, _ in group.entries:
            if isinstance(entry, Delivery) and snapshot.is_removed(entry.id):
                if held_by(holds, entry):
                    self._held.add(entry.id)
                else:
                    self.removed.add(entry.id)
                    self._names[entry.id] = self._named(snapshot, entry.id)
                self._erased |= any(kind == EntryType.ERASURE for kind, _ in snapshot.delivery(entry.id))
                named.add(entry.content)
        for entry, _ in group.entries:
            if isinstance(entry, Content):
                if self._all_removed(snapshot, holds, entry.id):
                    dead[entry.id] = entry
                else:
                    used |= _chunks_of(entry)

    def _named(self, snapshot: Snapshot, delivery: DeliveryId) -> frozenset[bytes] | None:
        """The facts that go with a removed delivery; None for all there are."""
        names: set[bytes] = set()
        for kind, where in snapshot.delivery(delivery):
            if kind in REMOVED:
                if where not in self._removals:
                    self._removals = {where: self._store.entry(where)}  # of many that expired together
                removal = self._removals[where]
                assert isinstance(removal, Erasure | Expiry)  # noqa: S101 - its row says so; for mypy
                found = removed_with(removal, delivery)
                if found is None:
                    return None
                names |= found
        return frozenset(names)

    def goes(self, delivery: DeliveryId, leaf: bytes) -> bool:
        """Whether a fact about a delivery is dropped. What was recorded after the removal stays, for no stub
        of it would be accounted for."""
        if delivery not in self.removed:
            return False
        names = self._names.get(delivery)
        return names is None or leaf[:LEAF_NAME_BYTES] in names

    def _all_removed(self, snapshot: Snapshot, holds: list[Hold], content: ContentId) -> bool:
        """Whether every delivery of a message was removed and none is held."""
        every = snapshot.by_term(Term.CONTENT, content, 0, FOREVER_US, newest_first=True, removed=True)
        for delivery in every:
            fact = self._store.fact(snapshot, delivery)
            if fact is not None and fact.content != content:
                continue  # one that shares a microsecond with a delivery of this message
            if not snapshot.is_removed(delivery) or (fact is not None and held_by(holds, fact)):
                return False
        return True  # none is left, or there is but the stub of one: a recipe never stands in the log alone

    def _recipes_elsewhere(self) -> Iterator[Content]:
        """All recipes that are not in the unit."""
        own = {first_of(part) for part in self._unit.parts}
        for name in self._store.view.names():
            directory = self._store.path / "streams" / name
            for part in stream_files(directory).parts:
                if name == self._stream and first_of(part) in own:
                    continue
                for number in packs_of(part):
                    path = pack_path(directory, number)
                    if path.stat().st_size > PACK_HEADER_BYTES:  # else its header may never have come to be
                        yield from recipes(path, key_of_pack(path, self._store.id), self._store.keyring)

    def note_outside(self) -> None:
        """What is dropped may have been all that needed chunks or recipes in other packs: these are due then.
        Noted before the manifest, since one mark too many costs a rewrite, and one too few is for ever."""
        if not self._outside and not self._elsewhere and not self.contents:
            return
        with self._store.index.update() as update:
            holds = [hold for hold in update.holds().values() if not hold.released]
            places = [where for chunk in self._outside for where in update.all_places(Table.CHUNK, chunk)]
            places += [place for c in self.contents for place in update.all_places(Table.CONTENT, c)]
            for content in self._elsewhere:
                if self._all_removed(update, holds, content):
                    places += update.all_places(Table.CONTENT, content)
            for where in {where.record[:2]: where for where in places}.values():
                if not self._is_own(where):
                    update.add_waste(where, erased=self._erased)

    def _is_own(self, where: Location) -> bool:
        own = (number for part in self._unit.parts for number in packs_of(part))
        return where.stream == stream_number(self._stream) and where.pack in own

    def note_held(self) -> None:
        """What a hold keeps is due again when other holds are in force."""
        if self._held:
            with self._store.index.update() as update:
                holds = in_force(update.holds())
                for delivery in self._held:
                    for kind, where in update.delivery(delivery):
                        if kind == EntryType.DELIVERY:
                            update.add_held(where, holds)

    def pardon(self) -> None:
        """Nothing of it goes after all."""
        if self._condemned:
            self._condemned = False
            with self._store.index.update() as update:
                update.pardon(self.token)


def _chunks_of(recipe: Content) -> set[ChunkId]:
    return {chunk for run in recipe.runs for chunk in run.chunks}
