"""Apply the log to the index: crash recovery, rebuild and everyday indexing are this one mechanism.

Any process may do it at any time: how far a stream has been applied stands in the same transaction as what
was applied, so work done twice is skipped and work never done is caught up from the stream itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from store.errors import IndexFailedError
from store.files import settle
from store.index import Index, Snapshot, Term, Update
from store.records import Content, Delivery, EntryType, Erasure, Hold, Outcomes, Replay, ReplayRun, Uncaptured
from store.scan import (
    Damage,
    Group,
    StreamState,
    TornTail,
    initial_state,
    pack_numbers,
    pack_path,
    scan_groups,
)

log = logging.getLogger(__name__)
_ENTRIES_PER_UPDATE = 5000
_TRIES = 5


@dataclass(slots=True)
class CaughtUp:
    """Where a stream stands after catching up, and what was found on the way."""

    state: StreamState
    damage: list[Damage] = field(default_factory=list)
    torn: TornTail | None = None
    rebuilt: bool = False


class View:
    """One index over all the streams of a store."""

    def __init__(self, index: Index, streams: Path, store_id: bytes) -> None:
        self.index = index
        self._streams = streams
        self._store_id = store_id

    def names(self) -> list[str]:
        """The streams there are."""
        return sorted(path.name for path in self._streams.iterdir() if path.is_dir())

    def catch_up(self, stream: str) -> CaughtUp:
        """Apply whatever the index has not seen of this stream; start over if a pack it has seen is gone."""
        rebuilt = self._start_over_if_behind(stream)
        for _ in range(_TRIES):
            caught = self._scan(stream)
            if caught is not None:
                caught.rebuilt = rebuilt
                return caught
        raise IndexFailedError(f"stream {stream} cannot be indexed: the index is emptied again and again")

    def _start_over_if_behind(self, stream: str) -> bool:
        directory = self._streams / stream
        with self.index.read() as snapshot:
            if not _is_behind(snapshot, directory, stream):
                return False
        with self.index.update() as update:
            if not _is_behind(update, directory, stream):  # somebody else was quicker
                return False
            log.error("stream %s has less than the index has seen of it: rebuilding the index", stream)
            update.clear()
        for other in self.names():
            if other != stream:
                self.catch_up(other)
        return True

    def _scan(self, stream: str) -> CaughtUp | None:
        """None when somebody emptied the index meanwhile."""
        directory = self._streams / stream
        with self.index.read() as snapshot:
            known = snapshot.state(stream)
            durable = snapshot.durable(stream)
        caught = CaughtUp(known or initial_state(self._store_id, stream))
        packs = [pack_path(directory, number) for number in pack_numbers(directory)]
        packs = packs if known is None else [path for path in packs if int(path.stem) >= known.pack]
        for path in packs:
            settle(path)  # what was written and never flushed must not be believed
        groups: list[Group] = []
        waiting = 0
        for found in scan_groups(directory, self._store_id, stream, caught.state, durable):
            if isinstance(found, Group):
                groups.append(found)
                caught.state = found.state
                waiting += len(found.entries) + len(found.chunks)
                if waiting >= _ENTRIES_PER_UPDATE:
                    if not self._apply_found(directory, groups):
                        return None
                    groups, waiting = [], 0
            elif isinstance(found, Damage):
                log.error("damage: %s", found)
                caught.damage.append(found)
            else:
                caught.torn = found
        if not self._apply_found(directory, groups):
            return None
        self.note_damage(caught.damage, all_of_it=False)
        return caught

    def _apply_found(self, directory: Path, groups: list[Group]) -> bool:
        if not groups:
            return True
        for number in {group.state.pack for group in groups}:
            settle(pack_path(directory, number))  # a writer may be about to flush what we have read
        with self.index.update() as update:
            return all(apply_group(update, group) for group in groups)

    def apply(self, groups: Iterable[Group]) -> None:
        """Apply groups that have just been committed, in order."""
        with self.index.update() as update:
            missed = {group.stream for group in groups if not apply_group(update, group)}
        for stream in missed:  # somebody emptied the index meanwhile: take it from the stream
            self.catch_up(stream)

    def note_damage(self, damage: Iterable[Damage], *, all_of_it: bool) -> None:
        """Remember which records are damaged, so that the next message with the same parts is stored anew
        and not merely referred there. With `all_of_it` what was remembered before is forgotten."""
        with self.index.read() as snapshot:
            known = snapshot.bad()
        bad = {found.record for found in damage} | (frozenset() if all_of_it else known)
        if bad != known:
            with self.index.update() as update:
                update.put_bad(bad)

    def clear(self) -> None:
        """Empty the index, to be caught up from nothing."""
        with self.index.update() as update:
            update.clear()


def _is_behind(snapshot: Snapshot, directory: Path, stream: str) -> bool:
    """Whether something is gone that the index has seen: a pack, or the end of the newest."""
    known = snapshot.state(stream)
    if known is None:
        return False
    path = pack_path(directory, known.pack)
    gone = set(snapshot.packs(stream)) - set(pack_numbers(directory))
    return bool(gone) or not path.exists() or path.stat().st_size < known.offset


def apply_group(update: Update, group: Group) -> bool:
    """Put one group into the index, unless it is there. False when the one before it is not there yet."""
    known = update.state(group.stream)
    place = known.place if known else (0, 0)
    if place >= group.state.place:
        return True
    if place != group.before:
        return False
    counters = update.counters()
    bad = update.bad()
    for chunk, where in group.chunks:
        if update.put_chunk(chunk, where, bad):
            counters.chunks += 1
            counters.chunk_bytes += where.size
    for entry, where in group.entries:
        match entry:
            case Content():
                counters.contents += update.put_content(entry.id, where, bad)
            case Delivery():
                update.put_delivery(entry.id, where, terms(entry))
                counters.deliveries[entry.leg] = counters.deliveries.get(entry.leg, 0) + 1
                counters.message_bytes += entry.size
            case ReplayRun():
                update.put_run(entry.selection, entry.run, entry.time_us, finished=entry.finished)
            case Uncaptured():
                counters.uncaptured += 1
            case Outcomes():
                update.add_to_delivery(entry.delivery, EntryType.OUTCOMES, where)
            case Replay():
                counters.replays += 1
                update.put_term(Term.REPLAY_RUN, entry.run.encode(), entry.delivery)
                update.add_to_delivery(entry.delivery, EntryType.REPLAY, where)
            case Hold():
                update.add_to_delivery(entry.delivery, EntryType.HOLD, where)
            case Erasure():
                update.add_to_delivery(entry.delivery, EntryType.ERASURE, where)
    update.put_counters(counters)
    update.put_state(group.stream, group.state)
    return True


def terms(delivery: Delivery) -> set[tuple[Term, bytes]]:
    """What a delivery is looked up by; addresses in lower case."""
    found = {(Term.RECIPIENT, recipient.address.lower()) for recipient in delivery.envelope.recipients}
    found.add((Term.SENDER, delivery.envelope.sender.lower()))
    if delivery.queue_id:
        found.add((Term.QUEUE_ID, delivery.queue_id))
    if delivery.message_id:
        found.add((Term.MESSAGE_ID, delivery.message_id))
    return found
