"""Apply the log to the index: crash recovery, rebuild and everyday indexing are this one mechanism.

Any process may do it at any time: how far a stream has been applied stands in the same transaction as what
was applied, so work done twice is skipped and work never done is caught up from the stream itself. A segment
that compaction has put in place of packs is applied in the same way: where things lie now.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from store import records, rows
from store.errors import DamagedError, IndexFailedError, SealedError
from store.files import Fill, all_here, settle
from store.ids import DeliveryId
from store.index import Index
from store.layout import FIRST_COMPACTED, PACK_HEADER_BYTES
from store.places import Damage, Group, Location, StreamState, TornTail, stream_number
from store.records import (
    Content,
    Delivery,
    EntryType,
    Erasure,
    Expiry,
    Hold,
    Outcomes,
    Replay,
    ReplayRun,
    Stub,
    Uncaptured,
)
from store.rows import Table, Term
from store.scan import initial_state, read_pack_header, scan_groups, scan_segment
from store.sealing import NO_KEYS, Keyring
from store.segments import Files, Part, Segment, last_of, pack_path, packs_of, stream_files
from store.snapshot import Counters, Snapshot
from store.tree import block_begins, grow
from store.update import Update

log = logging.getLogger(__name__)
_ENTRIES_PER_UPDATE = 5000
_TRIES = 5
_FILL_BYTES = 4 << 20
_MANY_RUNS = 48

Advance = Callable[[int], None]
"""told the bytes of each pack that has been read"""


@dataclass(slots=True)
class CaughtUp:
    """Where a stream stands after catching up, and what was found on the way."""

    state: StreamState
    damage: list[Damage] = field(default_factory=list)
    torn: TornTail | None = None
    rebuilt: bool = False


class View:
    """One index over all the streams of a store."""

    def __init__(
        self,
        index: Index,
        streams: Path,
        store_id: bytes,
        keyring: Keyring = NO_KEYS,
        fill: Fill = all_here,
    ) -> None:
        self.index = index
        self._fill = fill
        self._streams = streams
        self._store_id = store_id
        self._keyring = keyring

    def names(self) -> list[str]:
        """The streams there are."""
        return sorted(path.name for path in self._streams.iterdir() if path.is_dir())

    def behind(self) -> int:
        """Bytes of packs that the index has not seen."""
        total = 0
        for name in self.names():
            directory = self._streams / name
            with self.index.read() as snapshot:
                known = snapshot.state(name)
            place = known.place if known else (0, 0)
            for part in stream_files(directory).parts:
                if isinstance(part, Segment):
                    unseen = part.packs if part.end.place > place else ()
                else:
                    unseen = (part,) if part >= place[0] else ()
                for number in unseen:
                    with contextlib.suppress(FileNotFoundError):  # compaction has just replaced it
                        size = pack_path(directory, number).stat().st_size
                        if size > PACK_HEADER_BYTES:  # else it was begun, and that is all
                            total += size - (place[1] if number == place[0] else 0)
        return total

    def catch_up(self, stream: str, advance: Advance = lambda _size: None) -> CaughtUp:
        """Apply whatever the index has not seen of this stream; start over if a pack it has seen is gone."""
        rebuilt = False
        for _ in range(_TRIES):
            try:
                rebuilt |= self._start_over_if_behind(stream)
                caught = self._scan(stream, advance)
                if caught is not None and self._keyring.identities:
                    self._read_sealed(stream, caught)
            except FileNotFoundError:  # compaction has replaced a pack between two looks
                continue
            if caught is not None:
                caught.rebuilt = rebuilt
                return caught
        raise IndexFailedError(f"stream {stream} cannot be indexed: it changes again and again meanwhile")

    def catch_up_all(self) -> None:
        """The same for every stream there is, those of this process too."""
        for stream in self.names():
            self.catch_up(stream)

    def has_lost(self, stream: str) -> bool:
        """Whether there is less of a stream than the index has seen, or compaction has replaced the pack in
        which it stands: then catching up starts over."""
        with self.index.read() as snapshot:
            return _is_behind(snapshot, self._streams / stream, stream)

    def _start_over_if_behind(self, stream: str) -> bool:
        directory = self._streams / stream
        if not self.has_lost(stream):
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

    def _scan(self, stream: str, advance: Advance) -> CaughtUp | None:
        """None when somebody emptied the index meanwhile."""
        directory = self._streams / stream
        files = stream_files(directory)
        with self.index.read() as snapshot:
            known = snapshot.state(stream)
            durable = snapshot.durable(stream)
            present = set(snapshot.packs(stream_number(stream)))
        caught = CaughtUp(known or initial_state(self._store_id, stream))
        for part in files.parts:
            if isinstance(part, Segment) and known and part.end.place <= known.place:
                if not present.issuperset(part.packs):
                    try:
                        caught.damage += self.adopt(stream, part)
                    except SealedError as exc:  # the packs before it are there until somebody else does it
                        log.warning("%s", exc)
            elif last_of(part) >= caught.state.pack:
                self._have(directory, part, caught.state.offset if part == caught.state.pack else 0)
                settle_all(directory, [part])  # what was never flushed must not be believed
        batch: list[Group] = []
        waiting = 0
        for found in scan_groups(
            directory, self._store_id, stream, caught.state, durable, files=files, keyring=self._keyring
        ):
            match found:
                case Group():
                    batch.append(found)
                    waiting += len(found.entries) + len(found.chunks)
                    if waiting >= _ENTRIES_PER_UPDATE:
                        if not self._apply_found(directory, batch, caught, advance):
                            return None
                        batch, waiting = [], 0
                case Segment():
                    if not self._apply_found(directory, batch, caught, advance):
                        return None
                    batch, waiting = [], 0
                    damage = self._take_segment(stream, found, caught.state, advance)
                    if damage is None:
                        return None
                    caught.damage += damage
                    caught.state = found.end
                case Damage():
                    log.error("damage: %s", found)
                    caught.damage.append(found)
                case TornTail():
                    caught.torn = found
        if not self._apply_found(directory, batch, caught, advance):
            return None
        self.note_damage(caught.damage, all_of_it=False)
        return caught

    def catch_up_within(self, update: Update, stream: str) -> None:
        """Apply within a transaction what comes next of a stream, as far as it is whole groups: the rest is
        for `catch_up`."""
        directory = self._streams / stream
        state = update.state(stream) or initial_state(self._store_id, stream)
        files = stream_files(directory)
        for part in files.parts:
            if not isinstance(part, Segment) and part >= state.pack:
                self._have(directory, part, state.offset if part == state.pack else 0)
        for found in scan_groups(
            directory, self._store_id, stream, state, files=files, keyring=self._keyring
        ):
            if not isinstance(found, Group) or not apply_group(update, found, self._store_id):
                return

    def _read_sealed(self, stream: str, caught: CaughtUp) -> None:
        """Put into the index what is sealed and could not be read when it was found, now that an identity is
        here. What this one does not open either stays noted."""
        with self.index.read() as snapshot:
            stretches = snapshot.unread(stream)
        for stretch in stretches:
            gathered = _Gathered(self, stream, stretch.start)
            for found in scan_groups(
                self._streams / stream, self._store_id, stream, stretch.start, stretch.end,
                keyring=self._keyring,
            ):  # fmt: skip
                if isinstance(found, Damage | TornTail):
                    caught.damage += [found] if isinstance(found, Damage) else []
                    continue
                if isinstance(found, Segment):
                    inner = scan_segment(self._streams / stream, self._store_id, stream, found, self._keyring)
                    groups, state = [group for group in inner if isinstance(group, Group)], found.end
                else:
                    groups, state = [found], found.state
                if state.place > stretch.end:
                    break
                gathered.take(groups, state)
            gathered.put()

    def _apply_found(self, directory: Path, groups: list[Group], caught: CaughtUp, advance: Advance) -> bool:
        """Apply groups found by scanning. False when the index is not where they go on."""
        if not groups:
            return True
        settle_all(directory, {group.state.pack for group in groups})  # a writer may be about to flush them
        self._merge_if_many()
        with self.index.update() as update:
            if not all(apply_group(update, group, self._store_id) for group in groups):
                return False
        last = groups[-1].state
        advance(last.offset - (caught.state.offset if caught.state.pack == last.pack else 0))
        caught.state = last
        return True

    def _merge_if_many(self) -> None:
        """Each run is an open file, and catching up makes them faster than anybody else merges them."""
        if self.index.run_count() > _MANY_RUNS:
            self.index.merge()

    def _take_segment(
        self, stream: str, segment: Segment, since: StreamState, advance: Advance
    ) -> list[Damage] | None:
        """Apply a segment that the index has seen nothing of, in one transaction; it stands at `since`, which
        is not where the segment begins if what comes before is lost. None as in `_scan`."""
        directory = self._streams / stream
        damage: list[Damage] = []
        self._merge_if_many()
        with self.index.update() as update:
            known = update.state(stream) or initial_state(self._store_id, stream)
            if known.place != since.place:
                return None
            counters = update.counters()
            for number in segment.packs:
                update.pack_number((stream_number(stream), number))
            sealed = False
            for found in scan_segment(directory, self._store_id, stream, segment, self._keyring):
                if isinstance(found, Damage):
                    log.error("damage: %s", found)
                    damage.append(found)
                else:
                    sealed = sealed or found.sealed
                    apply_entries(update, found, counters)
            if sealed:
                update.note_sealed(stream, known, segment.end.place)
            update.put_counters(counters)
            update.put_state(stream, segment.end)
        for number in segment.packs:
            with contextlib.suppress(FileNotFoundError):
                advance(pack_path(directory, number).stat().st_size)
        return damage

    def damage_in(self, stream: str, segment: Segment) -> list[Damage]:
        """What is wrong with a segment's packs, read from the disk."""
        directory = self._streams / stream
        self._have(directory, segment)
        settle_all(directory, [segment])
        found = scan_segment(directory, self._store_id, stream, segment, self._keyring)
        return [damage for damage in found if isinstance(damage, Damage)]

    def _have(self, directory: Path, part: Part, since: int = 0) -> None:
        """See to it that a part can be read, with the header of its packs and from `since` on."""
        for number in packs_of(part):
            path = pack_path(directory, number)
            with contextlib.suppress(FileNotFoundError):  # the scan reports what is missing
                size = path.stat().st_size
                try:
                    self._fill(path, 0, PACK_HEADER_BYTES)
                    self._fill(path, since, size)
                except DamagedError as exc:
                    log.warning("%s", exc)
                    for start in range(since, size, _FILL_BYTES):  # the rest of it is there
                        with contextlib.suppress(DamagedError):
                            self._fill(path, start, min(start + _FILL_BYTES, size))

    def adopt(
        self, stream: str, segment: Segment, *, verified: bool = False, pardon: bytes = b""
    ) -> list[Damage]:
        """Take up where things lie now that a segment stands for packs that the index has seen.

        Damage in it is returned, and then nothing is changed; `verified` says that there is none. What
        `pardon` had condemned is gone with it, and so are its condemnations.
        """
        directory = self._streams / stream
        owner = stream_number(stream)
        damage = [] if verified else self.damage_in(stream, segment)
        if damage:
            return damage
        with self.index.update() as update:
            if pardon:
                update.pardon(pardon)
            before = set(update.packs(owner))
            if before.issuperset(segment.packs):  # somebody else was quicker
                return []
            count = 0
            for number in segment.packs:
                update.pack_number((owner, number))
            for found in scan_segment(directory, self._store_id, stream, segment, self._keyring):
                if isinstance(found, Group):
                    if found.sealed:
                        raise SealedError(f"{directory / segment.name}: where its facts lie now is sealed")
                    count += add_places(update, found)
            update.settle()
            # Only what this one replaces: others that no manifest names may have lost theirs.
            gone = {pack for pack in before if segment.covers(pack, pack) or pack in segment.replaces}
            update.drop_packs(((owner, pack) for pack in gone), count)
        return []

    def apply(self, groups: Iterable[Group]) -> None:
        """Apply groups that have just been committed, in order."""
        with self.index.update() as update:
            missed = {group.stream for group in groups if not apply_group(update, group, self._store_id)}
        for stream in missed:  # somebody emptied the index meanwhile: take it from the stream
            self.catch_up(stream)

    def note_damage(self, damage: Iterable[Damage], *, all_of_it: bool) -> None:
        """Remember which records are damaged, so that the next message with the same parts is stored anew
        and not merely referred there. With `all_of_it` what was remembered before is forgotten."""
        with self.index.read() as snapshot:
            known = snapshot.bad()
        bad = {found.record for found in damage if found.path.suffix == ".pack"}
        bad |= frozenset() if all_of_it else known
        if bad != known:
            with self.index.update() as update:
                update.put_bad(bad)

    def clear(self) -> None:
        """Empty the index, to be caught up from nothing."""
        with self.index.update() as update:
            update.clear()


class _Gathered:
    """Sealed groups that can be read now, on their way into the index."""

    def __init__(self, view: View, stream: str, start: StreamState) -> None:
        self._view = view
        self._stream = stream
        self._since = self._upto = start
        self._groups: list[Group] = []
        self._waiting = 0

    def take(self, groups: list[Group], state: StreamState) -> None:
        """The next groups, up to `state`; what does not open stays as it is noted."""
        if any(group.sealed for group in groups):
            self.put()
            self._since = self._upto = state
            return
        self._groups += groups
        self._upto = state
        self._waiting += sum(len(group.entries) for group in groups)
        if self._waiting >= _ENTRIES_PER_UPDATE:
            self.put()

    def put(self) -> None:
        """Put in what there is, unless somebody else was quicker."""
        if self._groups:
            with self._view.index.update() as update:
                if update.take_unread(self._stream, self._since.place, self._upto):
                    counters = update.counters()
                    for group in self._groups:
                        apply_facts(update, group, counters)
                    update.put_counters(counters)
        self._since, self._groups, self._waiting = self._upto, [], 0


def find_end(directory: Path, store_id: bytes, parts: Sequence[Part] | None = None) -> CaughtUp:
    """Where a stream ends, found from the last packs alone: enough to go on writing it. Of `parts`, if they
    are given, the end of the last group."""
    name = directory.name
    all_parts = stream_files(directory).parts if parts is None else ()
    parts = list(all_parts if parts is None else parts)
    for count in range(1, len(parts) + 1):
        tail = parts[-count:]
        first = tail[0]
        since = first.end if isinstance(first, Segment) else _begin_of(directory, first)
        if since is None:
            continue
        caught = CaughtUp(since)
        settle_all(directory, tail)
        found_group = isinstance(tail[0], Segment)
        for found in scan_groups(directory, store_id, name, since, files=Files(tuple(tail), (), ())):
            match found:
                case Group():
                    caught.state, found_group = found.state, True
                case Damage():
                    caught.damage.append(found)
                case TornTail():
                    caught.torn = found
        if found_group:
            return caught
    # No commit anywhere: nothing was ever written, or what was is lost, and the newest header tells the rest.
    begun = [_begin_of(directory, part) for part in all_parts if not isinstance(part, Segment)]
    return CaughtUp(next((state for state in reversed(begun) if state), initial_state(store_id, name)))


def _begin_of(directory: Path, number: int) -> StreamState | None:
    """The state at the beginning of a pack as its header tells it. How many commits and facts there were
    stands only in a commit, of which the scan then finds the next."""
    try:
        header = read_pack_header(pack_path(directory, number))
    except ValueError:
        return None
    return StreamState(number, PACK_HEADER_BYTES, header.next_record, 0, 0, header.chain)


def settle_all(directory: Path, parts: Iterable[Part]) -> None:
    """See `store.files.settle`, for all packs of some parts of a stream."""
    for part in parts:
        for number in packs_of(part):
            with contextlib.suppress(FileNotFoundError):  # the scan reports what is missing
                settle(pack_path(directory, number))


def _is_behind(snapshot: Snapshot, directory: Path, stream: str) -> bool:
    """Whether something is gone that the index has seen: a pack, or the end of the newest; or whether the
    index stands in the middle of what a segment stands for."""
    known = snapshot.state(stream)
    if known is None:
        return False
    files = stream_files(directory)
    segments = [part for part in files.parts if isinstance(part, Segment)]
    if any(part.first <= known.pack and known.place < part.end.place for part in segments):
        return True
    if any(part.covers(known.pack, known.pack) for part in segments):
        return False
    try:
        size = pack_path(directory, known.pack).stat().st_size
    except FileNotFoundError:
        return True
    return size < known.offset or _lost(snapshot, files, stream)


def _lost(snapshot: Snapshot, files: Files, stream: str) -> bool:
    """Whether the index knows packs that are neither there nor stood for by a segment."""
    covering = [part for part in files.parts if isinstance(part, Segment)]
    return any(
        # Packs of a segment that is itself replaced, or whose manifest is lost, say nothing.
        pack < FIRST_COMPACTED and not any(part.covers(pack, pack) for part in covering)
        for pack in set(snapshot.packs(stream_number(stream))) - files.packs()
    )


def apply_group(update: Update, group: Group, store_id: bytes) -> bool:
    """Put one group into the index, unless it is there. False when the one before it is not there yet."""
    known = update.state(group.stream)
    place = known.place if known else (0, 0)
    if place >= group.state.place:
        # Somebody who cannot read it may have been quicker.
        if not group.sealed and update.take_unread(group.stream, group.before, group.state):
            counters = update.counters()
            apply_facts(update, group, counters)
            update.put_counters(counters)
        return True
    if place != group.before:
        return False
    counters = update.counters()
    if group.sealed:
        update.note_sealed(group.stream, known or initial_state(store_id, group.stream), group.state.place)
    apply_entries(update, group, counters)
    update.put_counters(counters)
    update.put_state(group.stream, group.state)
    return True


def apply_entries(update: Update, group: Group, counters: Counters) -> None:
    """All that a group says: where things lie, and what happened. Of a sealed one only where chunks lie."""
    counters.chunks += len(group.chunks)
    counters.chunk_bytes += sum(where.size for _, where in group.chunks)
    add_chunks(update, group)
    add_blocks(update, group)
    grow(update, group)
    if not group.sealed:
        apply_facts(update, group, counters)


def apply_facts(update: Update, group: Group, counters: Counters) -> None:
    """What a group's entries say, and where they lie."""
    add_entries(update, group)
    for entry, _ in group.entries:
        match entry:
            case Content():
                counters.contents += 1
            case Delivery():
                update.add(Table.ID, entry.id)
                if update.take_gone(entry.id):
                    _note_waste(update, entry.id, erased=True)
                for kind, value in terms(entry):
                    update.add(Table.TERM, rows.term_row(kind, value, entry.id))
                counters.deliveries[entry.leg] = counters.deliveries.get(entry.leg, 0) + 1
                counters.message_bytes += entry.size
            case ReplayRun():
                update.put_run(entry.selection, entry.run, entry.time_us, finished=entry.finished)
            case Uncaptured():
                counters.uncaptured += 1
            case Replay():
                counters.replays += not entry.is_intent
                update.add(Table.TERM, rows.term_row(Term.REPLAY_RUN, entry.run.encode(), entry.delivery))
            case Hold():
                update.put_hold(entry)
            case Stub() if entry.type == EntryType.DELIVERY:
                update.add(Table.ID, entry.delivery)  # its tombstone can still be asked for
                update.take_gone(entry.delivery)
            case Erasure():
                counters.erased += 1
                update.add(Table.TERM, rows.term_row(Term.ERASED, entry.content, entry.delivery))
                _note_waste(update, entry.delivery, erased=True)
            case Expiry():
                counters.expired += len(entry.deliveries)
                for delivery in entry.deliveries:
                    _note_waste(update, delivery, erased=False)


def _note_waste(update: Update, delivery: DeliveryId, *, erased: bool) -> None:
    update.settle()
    found = [where for kind, where in update.delivery(delivery) if kind == EntryType.DELIVERY]
    for where in found:
        update.add_waste(where, erased=erased)
    if not found and not update.has_id(delivery):  # its stream is yet to be read
        update.put_gone(delivery)


def add_places(update: Update, group: Group) -> int:
    """Where a group's chunks, recipes, facts and blocks of facts lie; about how many rows that makes."""
    add_chunks(update, group)
    add_blocks(update, group)
    add_entries(update, group)
    return len(group.chunks) + len(group.entries)


def _too_far(group: Group, last: Sequence[tuple[object, Location]]) -> bool:
    if any(where.offset > rows.MAX_OFFSET for _, where in last):
        # No version writes such packs any more; mail in them is found again by nobody, but the rest must be.
        log.error("stream %s, pack %d: beyond 4 GiB nothing can be indexed", group.stream, group.state.pack)
        return True
    return False


def add_chunks(update: Update, group: Group) -> None:
    """Where a group's chunks lie."""
    if not _too_far(group, group.chunks[-1:]):
        place = update.placer()
        for chunk, where in group.chunks:
            update.add(Table.CHUNK, rows.chunk_row(chunk, place(where), where.size))


def add_blocks(update: Update, group: Group) -> None:
    """Where each 256 facts begin."""
    if not _too_far(group, group.leaves[-1:]):
        place = update.placer()
        for number, where in block_begins(group):
            update.add(Table.BLOCK, rows.block_row(where.stream, number, place(where)))


def add_entries(update: Update, group: Group) -> None:
    """Where a group's recipes and facts lie."""
    if _too_far(group, group.entries[-1:]):
        return
    place = update.placer()
    for entry, where in group.entries:
        match entry:
            case Content():
                update.add(Table.CONTENT, rows.content_row(entry.id, place(where)))
            case Delivery():
                update.add(Table.DELIVERY, rows.delivery_row(entry.id, EntryType.DELIVERY, place(where)))
            case Outcomes() | Replay() | Erasure():
                kind = records.type_of(entry)
                update.add(Table.DELIVERY, rows.delivery_row(entry.delivery, kind, place(where)))
            case Expiry():
                for delivery in entry.deliveries:
                    update.add(Table.DELIVERY, rows.delivery_row(delivery, EntryType.EXPIRY, place(where)))


def terms(delivery: Delivery) -> list[tuple[Term, bytes]]:
    """What a delivery is looked up by; addresses in lower case. One may be there twice."""
    found = [(Term.RECIPIENT, recipient.address.lower()) for recipient in delivery.envelope.recipients]
    found += ((Term.SENDER, delivery.envelope.sender.lower()), (Term.CONTENT, delivery.content))
    if delivery.queue_id:
        found.append((Term.QUEUE_ID, delivery.queue_id))
    if delivery.message_id:
        found.append((Term.MESSAGE_ID, delivery.message_id))
    return found
