"""Apply the log to the index: crash recovery, rebuild and everyday indexing are this one mechanism.

Any process may do it at any time: how far a stream has been applied stands in the same transaction as what
was applied, so work done twice is skipped and work never done is caught up from the stream itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from store.index import Index, Term, Update
from store.records import Content, Delivery, EntryType, Erasure, Hold, Outcomes, Replay, ReplayRun, Uncaptured
from store.scan import (
    Damage,
    Group,
    StreamState,
    TornTail,
    initial_state,
    pack_path,
    scan_groups,
)

log = logging.getLogger(__name__)
_GROUPS_PER_UPDATE = 2000


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
        """Apply whatever the index has not seen of this stream; start over if the stream is behind it."""
        directory = self._streams / stream
        with self.index.read() as snapshot:
            known = snapshot.state(stream)
        if known is not None and not _reaches(directory, known):
            log.error("stream %s ends before what the index has seen of it: rebuilding the index", stream)
            self.clear()
            for other in self.names():
                if other != stream:
                    self.catch_up(other)
            caught = self._scan(stream, None)
            caught.rebuilt = True
            caught.damage.append(Damage(directory, known.offset, f"bytes of pack {known.pack} are missing"))
            return caught
        return self._scan(stream, known)

    def _scan(self, stream: str, known: StreamState | None) -> CaughtUp:
        caught = CaughtUp(known or initial_state(self._store_id, stream))
        groups: list[Group] = []
        for found in scan_groups(self._streams / stream, self._store_id, stream, caught.state):
            if isinstance(found, Group):
                groups.append(found)
                caught.state = found.state
                if len(groups) >= _GROUPS_PER_UPDATE:
                    self._apply_found(groups)
                    groups = []
            elif isinstance(found, Damage):
                log.error("damage: %s", found)
                caught.damage.append(found)
            else:
                caught.torn = found
        self._apply_found(groups)
        return caught

    def _apply_found(self, groups: list[Group]) -> None:
        if groups:
            with self.index.update() as update:
                for group in groups:
                    known = update.state(group.stream)
                    if known is None or known.commits < group.state.commits:
                        apply_group(update, group)

    def apply(self, groups: Iterable[Group]) -> None:
        """Apply groups that have just been committed, in order."""
        missed = set()
        with self.index.update() as update:
            for group in groups:
                known = update.state(group.stream)
                commits = known.commits if known else 0
                if group.state.commits == commits + 1:
                    apply_group(update, group)
                elif group.state.commits > commits:
                    missed.add(group.stream)
        for stream in missed:  # somebody emptied the index meanwhile: take it from the stream
            self.catch_up(stream)

    def clear(self) -> None:
        """Empty the index, to be caught up from nothing."""
        with self.index.update() as update:
            update.clear()


def _reaches(directory: Path, known: StreamState) -> bool:
    try:
        return pack_path(directory, known.pack).stat().st_size >= known.offset
    except FileNotFoundError:
        return False


def apply_group(update: Update, group: Group) -> None:
    """Put one group into the index."""
    counters = update.counters()
    for chunk, where in group.chunks:
        if update.put_chunk(chunk, where):
            counters.chunks += 1
            counters.chunk_bytes += where.size
    for entry, where in group.entries:
        match entry:
            case Content():
                counters.contents += update.put_content(entry.id, where)
            case Delivery():
                update.put_delivery(entry.id, where, terms(entry))
                counters.deliveries[entry.leg] = counters.deliveries.get(entry.leg, 0) + 1
                counters.message_bytes += entry.size
            case ReplayRun():
                update.put_run(entry.selection, entry.run, finished=entry.finished)
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


def terms(delivery: Delivery) -> set[tuple[Term, bytes]]:
    """What a delivery is looked up by; addresses in lower case."""
    found = {(Term.RECIPIENT, recipient.address.lower()) for recipient in delivery.envelope.recipients}
    found.add((Term.SENDER, delivery.envelope.sender.lower()))
    if delivery.queue_id:
        found.add((Term.QUEUE_ID, delivery.queue_id))
    if delivery.message_id:
        found.add((Term.MESSAGE_ID, delivery.message_id))
    return found
