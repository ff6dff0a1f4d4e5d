"""What nobody needs any more in a unit of compaction: messages whose every delivery was removed, and chunks
that no message is made of.

A new message may come to share a chunk while we decide that nobody needs it. So what may go is first
*condemned*: from that transaction on the index does not offer it for deduplication, and whoever wrote on the
strength of an earlier look has committed before that look ends. When no look is left that is older,
the streams hold every reference that there will ever be; only then is counted what is still referred to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from store.filters import held_by
from store.ids import ChunkId, ContentId, DeliveryId
from store.places import Damage, Group
from store.plan import in_force
from store.records import Content, Delivery, EntryType, Hold
from store.rows import Term
from store.scan import key_of_pack, recipes
from store.segments import first_of, last_of, pack_path, stream_files
from store.snapshot import Snapshot

if TYPE_CHECKING:
    from store.plan import Unit
    from store.store import Store

log = logging.getLogger(__name__)

_READERS_WAIT_S = 30.0
_FOREVER_US = (1 << 63) - 1


class Garbage:
    """What of one unit is to go: `removed` deliveries, their `contents`, and `chunks`."""

    def __init__(self, store: Store, stream: str, unit: Unit) -> None:
        self.removed: set[DeliveryId] = set()
        self.contents: set[ContentId] = set()
        self.chunks: set[ChunkId] = set()
        self._store = store
        self._stream = stream
        self._unit = unit
        self._held: set[DeliveryId] = set()
        self._dropped: list[Content] = []
        self._condemned = False

    def find(self, chunks: Iterable[ChunkId], groups: Callable[[], Iterator[Group | Damage]]) -> None:
        """Find what may go, condemn it, and keep what turns out to be needed. Does nothing where nothing
        was removed."""
        if not self._unit.wasted:
            return
        used: set[ChunkId] = set()
        dead: dict[ContentId, Content] = {}
        with self._store.index.read() as snapshot:
            holds = [hold for hold in snapshot.holds().values() if not hold.released]
            for group in groups():
                if isinstance(group, Group):
                    self._look(snapshot, holds, group, used, dead)
        names: set[ChunkId] = set(chunks) - used
        with self._store.index.update() as update:
            update.condemn([*names, *dead])
        self._condemned = True
        if not self._store.index.wait_for_readers(self._store.index.last_transaction(), _READERS_WAIT_S):
            log.warning("somebody looks at the index for long: what nobody needs is kept until next time")
            self.removed = set()
            self.pardon()
            return
        self._store.settle_index(_READERS_WAIT_S)
        for name in self._store.view.names():
            self._store.view.catch_up(name)
        with self._store.index.read() as snapshot:
            for content in [c for c in dead if not self._all_removed(snapshot, holds, c)]:
                names -= _chunks_of(dead.pop(content))
        for recipe in self._recipes_elsewhere():
            if not names:
                break
            names -= _chunks_of(recipe)
        self.contents = set(dead)
        self.chunks = names
        self._dropped = list(dead.values())

    def _look(
        self,
        snapshot: Snapshot,
        holds: list[Hold],
        group: Group,
        used: set[ChunkId],
        dead: dict[ContentId, Content],
    ) -> None:
        """What a group says: which deliveries are removed, and what the recipes of the others use."""
        for entry, _ in group.entries:
            if isinstance(entry, Delivery) and snapshot.is_removed(entry.id):
                (self._held if held_by(holds, entry) else self.removed).add(entry.id)
        for entry, _ in group.entries:
            if isinstance(entry, Content):
                if self._all_removed(snapshot, holds, entry.id):
                    dead[entry.id] = entry
                else:
                    used |= _chunks_of(entry)

    def _all_removed(self, snapshot: Snapshot, holds: list[Hold], content: ContentId) -> bool:
        """Whether every delivery of a message was removed and none is held."""
        found = False
        every = snapshot.by_term(Term.CONTENT, content, 0, _FOREVER_US, newest_first=True, removed=True)
        for delivery in every:
            fact = self._store.fact(snapshot, delivery)
            if fact is not None and fact.content != content:
                continue  # one that shares a microsecond with a delivery of this message
            found = True
            gone = fact is None or snapshot.is_removed(delivery)
            if not gone or (fact is not None and held_by(holds, fact)):
                return False
        return found

    def _recipes_elsewhere(self) -> Iterator[Content]:
        """The recipes that may refer to the unit's chunks: of its own stream those that came later."""
        last = last_of(self._unit.parts[-1])
        for name in self._store.view.names():
            directory = self._store.path / "streams" / name
            for part in stream_files(directory).parts:
                if name == self._stream and first_of(part) <= last:
                    continue
                for number in (part,) if isinstance(part, int) else part.packs:
                    path = pack_path(directory, number)
                    try:
                        yield from recipes(path, key_of_pack(path, self._store.id))
                    except ValueError as exc:
                        log.error("%s: %s", path, exc)

    def note_outside(self) -> None:
        """What was dropped may have been all that referred to chunks in other packs: these are due now."""
        with self._store.index.update() as update:
            noted = set()
            for chunk in set().union(*(_chunks_of(recipe) for recipe in self._dropped)) - self.chunks:
                where = update.chunk(chunk)
                if where is not None and (where.stream, where.pack) not in noted:
                    noted.add((where.stream, where.pack))
                    update.add_waste(where, erased=True)

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
                update.pardon()


def _chunks_of(recipe: Content) -> set[ChunkId]:
    return {chunk for run in recipe.runs for chunk in run.chunks}
