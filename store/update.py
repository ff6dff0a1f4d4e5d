"""A write transaction on the index: new rows, what is true now, and which runs and packs count."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from store import rows
from store.errors import SealedError
from store.files import adopt, sync_directory
from store.ids import DeliveryId
from store.places import Location, Place, Record, StreamState, Unread
from store.records import Hold
from store.rows import FILTERED, Table
from store.runs import RunWriter
from store.snapshot import (
    SEALED,
    Catalogue,
    Counters,
    RunInfo,
    Snapshot,
    TreeState,
    Waste,
    condemned_key,
    hold_key,
    run_key,
)

if TYPE_CHECKING:
    from store.index import Index

CONDEMNING = (b"condemned:", b"condemner:", b"condemnations")
"""what keys in LMDB begin with that say what compaction is about to drop"""
_SPILL_ROWS = 131_072
TIER_ROWS = 2048
"""rows of a run of the lowest tier, at most"""
MERGE_RUNS = 4
"""runs of a tier at which they become one of the next"""


class Update(Snapshot):
    """A write transaction: what has been put is seen by nobody until it commits."""

    def __init__(self, txn: Any, index: Index) -> None:
        super().__init__(txn, index)
        self._added: list[bytes] = []
        self._changed = False
        self._has_gone: bool | None = None
        self._trees: dict[str, TreeState] = {}

    def put_meta(self, key: bytes, value: bytes) -> None:
        """Something that is true now."""
        self._txn.put(key, value, db=self._index.meta)

    # -- rows

    def add(self, table: Table, row: bytes) -> None:
        """One more row; look-ups see it after `settle`."""
        self._added.append(rows.PREFIX[table] + row)
        if len(self._added) >= _SPILL_ROWS:
            self.settle()

    def settle(self) -> None:
        """Make what was added visible to look-ups in this transaction."""
        self._looked_up = {}
        if len(self._added) >= self._index.fresh_rows:
            self._fold()  # LMDB's file would grow with them and never shrink
        elif self._added:
            self._added.sort()
            with self._txn.cursor(db=self._index.fresh) as cursor:
                cursor.putmulti([(row, b"") for row in self._added])
        self._added = []

    def fold(self) -> None:
        """Write the rows in LMDB out as a run."""
        self.settle()
        self._fold()

    def _fold(self) -> None:
        self._write_run(self.fresh() + self._added)
        self._txn.drop(self._index.fresh, delete=False)
        self._added = []

    def _write_run(self, found: list[bytes]) -> None:
        by_table: dict[int, list[bytes]] = {}
        for row in dict.fromkeys(sorted(found)):
            by_table.setdefault(row[0], []).append(row[1:])
        if not by_table:
            return
        path = self._index.scratch_path()
        expected = {table: len(some) for table, some in by_table.items()}
        with RunWriter(path, filtered=FILTERED, expected=expected) as writer:
            for table, some in by_table.items():
                writer.table(table, [some])
            writer.finish()
        self.adopt_runs([(path, writer.rows)])

    def adopt_runs(
        self, written: list[tuple[Path, int]], *, instead_of: frozenset[int] = frozenset()
    ) -> None:
        """Take run files (path, rows) into the index, in place of the runs named."""
        catalogue = self.known.catalogue
        number = catalogue.next_run
        fresh: list[RunInfo] = []
        for path, count in written:
            target = self._index.run_path(number)
            path.rename(target)
            adopt(target)
            fresh.append(RunInfo(number, _tier(count), count))
            number += 1
        sync_directory(self._index.path)
        kept = [run for run in catalogue.runs if run.number not in instead_of]
        gone = [(run.number, self._txn.id()) for run in catalogue.runs if run.number in instead_of]
        self._set(
            replace(
                catalogue, runs=(*kept, *fresh), next_run=number, doomed=(*catalogue.doomed, *gone),
                dead_rows=0 if instead_of and not kept else catalogue.dead_rows,
            )
        )  # fmt: skip

    # -- packs

    def pack_number(self, pack: tuple[int, int]) -> int:
        """The index's number for a pack (stream number, pack), which gets one if it has none."""
        number = self.known.numbers.get(pack)
        if number is None:
            catalogue = self.known.catalogue
            number = catalogue.next_pack
            self._set(replace(catalogue, packs={**catalogue.packs, number: pack}, next_pack=number + 1))
        return number

    def placer(self) -> Callable[[Location], bytes]:
        """Makes the places that rows hold."""
        packs: dict[tuple[int, int], bytes] = {}

        def place(where: Location) -> bytes:
            pack = packs.get(where[:2])
            if pack is None:
                pack = packs[where[:2]] = self.pack_number(where[:2]).to_bytes(3, "big")
            return pack + where.offset.to_bytes(4, "big") + where.inner.to_bytes(3, "big")

        return place

    def drop_packs(self, packs: Iterable[tuple[int, int]], rows_in_them: int) -> None:
        """What lies in these packs (stream number, pack) counts no longer: it now lies elsewhere."""
        gone = set(packs)
        catalogue = self.known.catalogue
        kept = {number: pack for number, pack in catalogue.packs.items() if pack not in gone}
        for number in catalogue.packs.keys() - kept.keys():
            self._txn.delete(b"waste:" + number.to_bytes(4, "big"), db=self._index.meta)
        if any(record[:2] in gone for record in self.bad()):
            self.put_bad(record for record in self.bad() if record[:2] not in gone)
        self._set(replace(catalogue, packs=kept, dead_rows=catalogue.dead_rows + rows_in_them))

    def add_waste(self, where: Location, *, erased: bool) -> None:
        """One more delivery of this pack was removed."""
        key, waste = self._waste_of(where)
        waste.deliveries += 1
        waste.erased += erased
        self.put_meta(key, msgspec.msgpack.encode(waste))

    def add_held(self, where: Location, holds: str) -> None:
        """One more delivery of this pack was removed and is kept by one of the holds in force."""
        key, waste = self._waste_of(where)
        waste.held += 1
        waste.holds = holds
        self.put_meta(key, msgspec.msgpack.encode(waste))

    def _waste_of(self, where: Location) -> tuple[bytes, Waste]:
        key = b"waste:" + self.pack_number((where.stream, where.pack)).to_bytes(4, "big")
        value = self.meta(key)
        return key, Waste() if value is None else msgspec.msgpack.decode(value, type=Waste)

    # -- what is true now

    def put_mark(self, mark: bytes) -> None:
        """Note what this index is made for."""
        self.put_meta(b"mark", mark)

    def put_state(self, stream: str, state: StreamState) -> None:
        """How far this stream has now been applied."""
        row = dataclasses.astuple(state)
        self.put_meta(b"stream:" + stream.encode(), msgspec.msgpack.encode(row))

    def note_sealed(self, stream: str, since: StreamState, end: Place) -> None:
        """What was committed from `since` up to `end` is sealed, and its facts are not in the index."""
        known = self.unread(stream)
        if known and known[-1].end == since.place:
            known[-1] = Unread(known[-1].start, end)
        else:
            known.append(Unread(since, end))
        self._put_unread(stream, known)

    def take_unread(self, stream: str, since: Place, upto: StreamState) -> bool:
        """What was committed from `since` up to `upto` is being put in after all. False when it is not noted,
        or not any more."""
        known = self.unread(stream)
        for at, stretch in enumerate(known):
            if stretch.start.place <= since and upto.place <= stretch.end:
                before = [Unread(stretch.start, since)] if stretch.start.place < since else []
                after = [Unread(upto, stretch.end)] if upto.place < stretch.end else []
                self._put_unread(stream, [*known[:at], *before, *after, *known[at + 1 :]])
                return True
        return False

    def _put_unread(self, stream: str, stretches: list[Unread]) -> None:
        rows = [[dataclasses.astuple(s.start), s.end] for s in stretches]
        self.put_meta(b"unread:" + stream.encode(), msgspec.msgpack.encode(rows))

    def tree(self, stream: str) -> TreeState:
        """How far the tree over a stream's facts has grown; what is changed in it is kept at the commit."""
        found = self._trees.get(stream)
        if found is None:
            found = self._trees[stream] = super().tree(stream)
        return found

    def put_bad(self, records: Iterable[Record]) -> None:
        """These records are damaged, and no others."""
        self.put_meta(b"bad", msgspec.msgpack.encode(sorted(records)))

    def put_counters(self, counters: Counters) -> None:
        """The totals."""
        self.put_meta(b"counters", msgspec.msgpack.encode(counters))

    def put_run(self, selection: bytes, run: str, time_us: int, *, finished: bool) -> None:
        """How the replay run for this selection stands; the latest word wins, whatever order they come in."""
        known = self.meta(run_key(selection))
        if known is None or msgspec.msgpack.decode(known)[1] <= time_us:
            self.put_meta(run_key(selection), msgspec.msgpack.encode([run, time_us, finished]))

    def put_hold(self, hold: Hold) -> None:
        """How a hold stands; the latest word wins. A release names no filter: that of the hold is kept."""
        key = hold_key(hold.name)
        known = self.meta(key)
        if known is not None:
            time_us = (
                msgspec.msgpack.decode(known[len(SEALED) :])[0]
                if known.startswith(SEALED)
                else msgspec.msgpack.decode(known, type=Hold).time_us
            )
            if time_us > hold.time_us:
                return
            if hold.released:
                with contextlib.suppress(SealedError):  # then what was held is in the log alone
                    hold = replace(hold, matches=self._hold(known).matches)
        value = msgspec.msgpack.encode(hold)
        keyring = self._index.keyring
        if keyring.seals:
            told = [hold.time_us, hold.released, keyring.fingerprints, keyring.wrap(value)]
            value = SEALED + msgspec.msgpack.encode(told)
        self.put_meta(key, value)

    def condemn(self, names: Iterable[bytes], token: bytes, stream: str) -> None:
        """These chunks and contents are no longer offered for deduplication, until `token` is pardoned."""
        for name in names:
            self.put_meta(condemned_key(name) + token, b"")
        self.put_meta(b"condemner:" + token, stream.encode())
        self.put_meta(b"condemnations", (self.condemnations() + 1).to_bytes(8, "big"))

    def pardon(self, token: bytes) -> None:
        """Nothing is condemned by this one any more; what others condemned still is."""
        for key in [key for key, _ in self.meta_range(b"condemned:") if key.endswith(token)]:
            self._txn.delete(b"condemned:" + key, db=self._index.meta)
        self._txn.delete(b"condemner:" + token, db=self._index.meta)

    def put_gone(self, delivery: DeliveryId) -> None:
        """A delivery was removed that is not in the index yet."""
        self.put_meta(b"gone:" + delivery, b"")

    def take_gone(self, delivery: DeliveryId) -> bool:
        """Whether a delivery that now comes was removed; it is noted once."""
        if self._has_gone is None:
            self._has_gone = next(self.meta_range(b"gone:"), None) is not None
        return self._has_gone and bool(self._txn.delete(b"gone:" + delivery, db=self._index.meta))

    # -- all of it

    def clear(self, *, keep_durable: bool = True) -> None:
        """Empty the index, to be filled again from the streams; how far each had been seen is kept."""
        seen: dict[bytes, tuple[int, int]] = {}
        for prefix in (b"stream:", b"durable:") if keep_durable else ():
            for name, value in self.meta_range(prefix):
                pack, offset = msgspec.msgpack.decode(value)[:2]
                seen[name] = max(seen.get(name, (0, 0)), (pack, offset))
        mark = self.mark()
        # A compaction that is under way relies on what it has condemned.
        kept = [(prefix + key, value) for prefix in CONDEMNING for key, value in self.meta_range(prefix)]
        catalogue = self.known.catalogue
        gone = [(run.number, self._txn.id()) for run in catalogue.runs]
        self._txn.drop(self._index.meta, delete=False)
        self._txn.drop(self._index.fresh, delete=False)
        self._added, self._trees = [], {}
        self._set(
            Catalogue(
                next_run=catalogue.next_run, next_pack=catalogue.next_pack,
                doomed=(*catalogue.doomed, *gone),
            )
        )  # fmt: skip
        if mark is not None:
            self.put_mark(mark)
        for key, value in kept:
            self.put_meta(key, value)
        for name, place in seen.items():
            self.put_meta(b"durable:" + name, msgspec.msgpack.encode(place))

    def take_over(self, other: Index) -> None:
        """Become what `other`, an index built beside this one that nobody else uses, has come to be."""
        with other.update() as update:
            update.fold()
        with other.read() as built:
            theirs = built.known.catalogue
            runs = [(other.run_path(run.number), run.rows) for run in theirs.runs]
            self.become(theirs, runs, built.meta_range(b""))

    def become(
        self,
        theirs: Catalogue,
        runs: list[tuple[Path, int]],
        meta: Iterable[tuple[bytes, bytes]],
        fresh: Iterable[bytes] = (),
    ) -> None:
        """Become another index over the same streams: its catalogue's packs, its runs (path, rows), what it
        says now, and rows that are in no run, each behind its table's prefix."""
        self.clear()
        # Their packs keep their numbers, since rows name them; of ours no row is left.
        next_pack = max(self.known.catalogue.next_pack, theirs.next_pack)
        self._set(
            replace(self.known.catalogue, packs=theirs.packs, next_pack=next_pack, dead_rows=theirs.dead_rows)
        )
        self.adopt_runs(runs)
        for key, value in meta:
            if key != b"catalogue" and not key.startswith(CONDEMNING):
                self.put_meta(key, value)
        self._added += fresh

    def sweep(self) -> None:
        """Remove files that transactions left which never came to be. Nobody else can be in the middle of
        one: this is one itself."""
        catalogue = self.known.catalogue
        known = {run.number for run in catalogue.runs} | {run for run, _ in catalogue.doomed}
        for path in self._index.path.iterdir():
            left = path.suffix == ".run" and int(path.stem) not in known
            if path.suffix == ".tmp":
                writer = path.name.partition("-")[0]
                left = not Path(f"/proc/{writer}").exists()
            if left:
                path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write out what is due; the last step before the commit."""
        for stream, tree in self._trees.items():
            self.put_meta(b"tree:" + stream.encode(), msgspec.msgpack.encode(tree))
        self.settle()
        if int(self._txn.stat(self._index.fresh)["entries"]) >= self._index.fresh_rows:
            self.fold()
        if self.known.catalogue.doomed:
            self._remove_doomed()
        if self._changed:
            self.put_meta(b"catalogue", msgspec.msgpack.encode(self.known.catalogue))

    def _remove_doomed(self) -> None:
        oldest = self._index.oldest_reader()
        catalogue = self.known.catalogue
        kept = []
        for run, txn in catalogue.doomed:
            # What this transaction itself takes out counts again should it fail.
            if txn >= self._txn.id() or (oldest is not None and oldest < txn):
                kept.append((run, txn))
            else:
                self._index.run_path(run).unlink(missing_ok=True)
        if len(kept) < len(catalogue.doomed):
            self._set(replace(catalogue, doomed=tuple(kept)))

    def _set(self, catalogue: Catalogue) -> None:
        self._known = self._index.known(msgspec.msgpack.encode(catalogue))
        self._changed = True


def _tier(count: int) -> int:
    """The size class of a run: each is `MERGE_RUNS` times the one below."""
    tier, most = 0, TIER_ROWS
    while count > most:
        tier, most = tier + 1, most * MERGE_RUNS
    return tier
