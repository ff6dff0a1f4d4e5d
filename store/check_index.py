"""Compare the index with what checking the streams has summed up, both ways, in passes over its sorted rows.

The rows of CHUNK, CONTENT, DELIVERY and BLOCK are added up for each pack and must come to the sums of the
log: then every chunk, recipe and fact is in the index at its place, and no row names a place where it is not.
Rows of ID and TERM name no pack. Each must be of a moment in which a delivery was captured, and those of
deliveries whose record is there must add up to what their records say; what is left of removed ones is passed
over. In memory are the sums, a block of each run, and the times of some million deliveries. The runs are held
open, no transaction is: nobody waits for it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from store import rows
from store.check_part import PartResult, term_rows
from store.errors import DamagedError
from store.findings import Finding, Sum
from store.index import Index
from store.packs import PackReader
from store.places import Location
from store.records import Delivery, EntryType
from store.rows import PLACE_AT, Table, Term
from store.runs import merged

TIMES_AT_ONCE = 4_000_000
_NAMED = 20
"""findings of one pack that are told one by one"""
_OF_DELIVERIES = frozenset({Term.RECIPIENT, Term.SENDER, Term.QUEUE_ID, Term.MESSAGE_ID, Term.CONTENT})
_WHAT = {
    Table.CHUNK: "chunk",
    Table.CONTENT: "recipe",
    Table.DELIVERY: "delivery",
    Table.BLOCK: "block of facts",
}

Pack = tuple[int, int]
"""stream number, pack"""
Sums = dict[Pack, dict[int, Sum]]


class IndexView:
    """The index at one moment, all of it in runs."""

    def __init__(self, index: Index, limits: Mapping[Pack, int], step: Callable[[int], None]) -> None:
        """`limits`: the offset in a pack from which on rows are passed over, being newer than the check."""
        with index.update() as update:
            update.fold()
            known = update.known
        self.packs = known.catalogue.packs
        self.numbers = known.numbers
        self._runs = known.runs
        self.limits = limits
        self._step = step

    def rows(self, table: Table) -> Iterator[bytes]:
        """All rows of a table, each once, in order."""
        for block in merged([run.blocks(table) for run in self._runs]):
            self._step(sum(map(len, block[:1])) * len(block))
            yield from block

    def placed(self, table: Table, packs: set[Pack]) -> Iterator[tuple[Pack, bytes]]:
        """The rows of a table that name one of the packs, with the pack; the row without its number."""
        at = PLACE_AT[table]
        wanted = {self.numbers[pack].to_bytes(3, "big"): pack for pack in packs if pack in self.numbers}
        for row in self.rows(table):
            pack = wanted.get(row[at : at + 3])
            if pack is not None:
                limit = self.limits.get(pack)
                if limit is None or int.from_bytes(row[at + 3 : at + 7], "big") < limit:
                    yield pack, row[:at] + row[at + 3 :]

    def sums(self, packs: set[Pack]) -> Sums:
        """What the rows of each pack come to."""
        found: Sums = {pack: {} for pack in packs}
        for table in PLACE_AT:
            for pack, row in self.placed(table, packs):
                found[pack].setdefault(int(table), Sum()).add(row)
        return found


def difference(
    view: IndexView, pack: Pack, path: Path, expected: dict[Table, set[bytes]], *, damaged: bool
) -> Iterator[Finding]:
    """What the index says of one pack, and what it should. Where the pack is damaged only the deliveries
    whose record is gone are told."""
    lacking: list[Finding] = []
    beyond: list[Finding] = []
    for table in PLACE_AT:
        left = expected.get(table, set())
        for _, row in view.placed(table, {pack}):
            if row in left:
                left.remove(row)
                continue
            name, offset = _name(table, row)
            if not damaged:
                what = f"the index has a {_WHAT[table]} here that is not there: {name}"
                beyond.append(Finding("index", f"{path}:{offset}", what))
            elif table == Table.DELIVERY and row[16] == EntryType.DELIVERY:
                what = f"its record is in what is damaged of {path}"
                beyond.append(Finding("missing", name, what))
        for row in sorted(left):
            name, offset = _name(table, row)
            what = f"{_WHAT[table]} is not in the index ({path}:{offset})"
            lacking.append(Finding("index", name, what))
    for findings, what in ((lacking, "more are not in the index"), (beyond, "more rows of the index")):
        yield from findings[:_NAMED]
        if len(findings) > _NAMED:
            yield Finding(findings[0].kind, str(path), f"{len(findings) - _NAMED} {what}")


def _name(table: Table, row: bytes) -> tuple[str, int]:
    """The name in a row without its pack's number, and the offset of the record."""
    at = PLACE_AT[table]
    name = rows.id_in(row) if table == Table.DELIVERY else row[:at]
    return name.hex(), int.from_bytes(row[at : at + 4], "big")


class Lookups:
    """The check of ID and TERM rows against the deliveries that there are."""

    def __init__(self, view: IndexView, packs: set[Pack], reader: PackReader) -> None:
        self._view = view
        self._live = {view.numbers[pack] for pack in packs if pack in view.numbers}
        self._reader = reader
        self._ids = Sum()
        self._terms = Sum()

    def check(self, results: list[PartResult], *, sums_hold: bool) -> Iterator[Finding]:
        """`sums_hold`: nothing was wrong so far, so that the sums must come out right."""
        for low, high, known, live, shared in self._stretches():
            yield from self._compare(low, high, known, live, shared)
            sums_hold &= self._count_shared(shared)
        ids, terms = Sum(), Sum()
        for result in results:
            ids.include(result.ids)
            terms.include(result.terms)
        for of_log, of_index, what in ((ids, self._ids, "ids"), (terms, self._terms, "search terms")):
            if sums_hold and of_log != of_index:
                told = f"the log has {of_log.count} of them, the index {of_index.count}"
                yield Finding("index", "index", f"the {what} of deliveries are not those of the log: {told}")

    def _stretches(
        self,
    ) -> Iterator[tuple[int, int, array[int], array[int], dict[int, list[Location]]]]:
        """Stretches of time: first and last moment, the times of its deliveries, those of deliveries whose
        record is there, and the moments that several share, with where these lie."""
        known, live = array("Q"), array("Q")
        shared: dict[int, list[Location]] = {}
        low, last, first_at, dropped = 0, b"", None, False
        for row in self._view.rows(Table.DELIVERY):
            time = int.from_bytes(row[:8], "big")
            number, offset, inner = rows.split_place(row, PLACE_AT[Table.DELIVERY])
            pack = self._view.packs.get(number)
            if not known or known[-1] != time:
                if len(known) >= TIMES_AT_ONCE:
                    yield low, known[-1], known, live, shared
                    low = known[-1] + 1
                    known, live, shared = array("Q"), array("Q"), {}
                known.append(time)
                last, first_at, dropped = b"", None, False
            if row[16] != EntryType.DELIVERY and row[:16] != last:
                # What compaction has left of one whose record is dropped: its look-ups are of this moment.
                dropped = True
                if first_at is not None:
                    shared.setdefault(time, [first_at])
            if pack is None or number not in self._live or row[16] != EntryType.DELIVERY:
                continue
            if offset >= self._view.limits.get(pack, rows.MAX_OFFSET + 1):
                continue
            if row[:16] == last:
                continue  # recorded twice
            where = Location(*pack, offset, inner, 0)
            if first_at is None:
                live.append(time)
                first_at = where
                if dropped:
                    shared[time] = [where]
            else:
                shared.setdefault(time, [first_at]).append(where)
            last = row[:16]
        yield low, (1 << 64) - 1, known, live, shared

    def _compare(
        self,
        low: int,
        high: int,
        known: array[int],
        live: array[int],
        shared: dict[int, list[Location]],
    ) -> Iterator[Finding]:
        strange = {Table.ID: 0, Table.TERM: 0}
        for table, total in ((Table.ID, self._ids), (Table.TERM, self._terms)):
            for row in self._view.rows(table):
                time = int.from_bytes(row[8:], "big")
                if not low <= time <= high:
                    continue
                if not _is_in(known, time):
                    strange[table] += 1
                elif (
                    (table == Table.ID or row[0] in _OF_DELIVERIES)
                    and _is_in(live, time)
                    and time not in shared
                ):
                    total.add(row)
        for table, count in strange.items():
            if count:
                what = f"{count} rows of {table.name} are of no delivery"
                yield Finding("index", "index", what)

    def _count_shared(self, shared: dict[int, list[Location]]) -> bool:
        """Terms of one moment cannot be told apart: take them from the records. False if one is gone."""
        for places in shared.values():
            for where in places:
                try:
                    entry = self._reader.entry(where)
                except DamagedError:
                    return False
                if isinstance(entry, Delivery):
                    self._ids.add(entry.id)
                    for row in term_rows(entry):
                        self._terms.add(row)
        return True


def _is_in(times: array[int], time: int) -> bool:
    at = bisect_left(times, time)
    return at < len(times) and times[at] == time
