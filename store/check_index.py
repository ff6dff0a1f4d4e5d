"""Compare the index with what checking the streams has summed up, both ways, in passes over its sorted rows.

The rows of CHUNK, CONTENT, DELIVERY and BLOCK are added up for each pack and must come to the sums of the
log: then every chunk, recipe and fact is in the index at its place, and no row names a place where it is not.
Rows of ID and TERM name no pack. If all of them add up to what the records say, as they do where nothing was
removed and nothing comes meanwhile, that is it. Else each must be of a moment in which a delivery was
captured, and those of deliveries whose record is there must add up; what is left of removed ones is passed
over. In memory are the sums, a block of each run, and the times of some million deliveries. The runs are held
open, no transaction is: nobody waits for it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
_ROWS_AT_ONCE = 100_000
_NAMED = 20
"""findings of one pack that are told one by one"""
_OF_DELIVERIES = frozenset(map(int, set(Term) - {Term.REPLAY_RUN, Term.ERASED}))
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

    def blocks(self, table: Table) -> Iterator[list[bytes]]:
        """All rows of a table, each once, in order, some at a time."""
        for block in merged([run.blocks(table) for run in self._runs]):
            if block:
                self._step(len(block[0]) * len(block))
                yield block

    def placed(self, table: Table, packs: set[Pack]) -> Iterator[tuple[Pack, list[bytes]]]:
        """The rows of a table that name one of the packs, many at a time, without the pack's number."""
        at = PLACE_AT[table]
        of: dict[bytes, list[bytes]] = {
            self.numbers[pack].to_bytes(3, "big"): [] for pack in packs if pack in self.numbers
        }
        count = 0
        for block in self.blocks(table):
            for row in block:
                some = of.get(row[at : at + 3])
                if some is not None:
                    some.append(row[:at] + row[at + 3 :])
            count += len(block)
            if count >= _ROWS_AT_ONCE:
                yield from self._below_limits(of, at)
                count = 0
        yield from self._below_limits(of, at)

    def _below_limits(self, of: dict[bytes, list[bytes]], at: int) -> Iterator[tuple[Pack, list[bytes]]]:
        """What has been gathered; afterwards nothing is."""
        for number, some in of.items():
            pack = self.packs[int.from_bytes(number, "big")]
            limit = self.limits.get(pack)
            if limit is not None:
                some[:] = [row for row in some if int.from_bytes(row[at : at + 4], "big") < limit]
            if some:
                yield pack, some
                some.clear()

    def sums(self, packs: set[Pack]) -> Sums:
        """What the rows of each pack come to."""
        found: Sums = {pack: {} for pack in packs}
        for table in PLACE_AT:
            for pack, some in self.placed(table, packs):
                found[pack].setdefault(int(table), Sum()).add(some)
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
        for row in (row for _, some in view.placed(table, {pack}) for row in some):
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


@dataclass(slots=True)
class _Stretch:
    """Deliveries of a stretch of time."""

    low: int
    known: array[int] = field(default_factory=lambda: array("Q"))
    """the moments in which deliveries were captured"""
    alone: bytearray = field(default_factory=bytearray)
    """for each of them: 1 where it is of one delivery, whose record is there"""
    shared: dict[int, list[Location]] = field(default_factory=dict)
    """the moments that several share, with where the records lie"""
    high: int = (1 << 64) - 1


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
        ids, terms = Sum(), Sum()
        for result in results:
            ids.include(result.ids)
            terms.include(result.terms)
        if sums_hold and self._all_of_deliveries() == (ids, terms):
            if any(self._of_others()):
                for stretch in self._stretches():
                    yield from self._strange(Table.TERM, self._of_others(), stretch)
            return
        for stretch in self._stretches():
            for table, total in ((Table.ID, self._ids), (Table.TERM, self._terms)):
                yield from self._strange(table, self._view.blocks(table), stretch, total)
            sums_hold &= self._count_shared(stretch.shared)
        for of_log, of_index, what in ((ids, self._ids, "ids"), (terms, self._terms, "search terms")):
            if sums_hold and of_log != of_index:
                told = f"the log has {of_log.count} of them, the index {of_index.count}"
                yield Finding("index", "index", f"the {what} of deliveries are not those of the log: {told}")

    def _all_of_deliveries(self) -> tuple[Sum, Sum]:
        """What all ID rows come to, and all TERM rows by which deliveries are found."""
        ids, terms = Sum(), Sum()
        for block in self._view.blocks(Table.ID):
            ids.add(block)
        for block in self._view.blocks(Table.TERM):
            terms.add(block if _kinds(block) <= _OF_DELIVERIES else _of_deliveries(block))
        return ids, terms

    def _of_others(self) -> Iterator[list[bytes]]:
        """The other TERM rows: of replays and erasures."""
        for block in self._view.blocks(Table.TERM):
            if not _kinds(block) <= _OF_DELIVERIES:
                some = [row for row in block if row[0] not in _OF_DELIVERIES]
                if some:
                    yield some

    def _stretches(self) -> Iterator[_Stretch]:
        """All deliveries, in stretches of time."""
        stretch = _Stretch(0)
        last, first_at, dropped = b"", None, False
        for row in (row for block in self._view.blocks(Table.DELIVERY) for row in block):
            time = int.from_bytes(row[:8], "big")
            number, offset, inner = rows.split_place(row, PLACE_AT[Table.DELIVERY])
            pack = self._view.packs.get(number)
            if not stretch.known or stretch.known[-1] != time:
                if len(stretch.known) >= TIMES_AT_ONCE:
                    stretch.high = stretch.known[-1]
                    yield stretch
                    stretch = _Stretch(stretch.high + 1)
                stretch.known.append(time)
                stretch.alone.append(0)
                last, first_at, dropped = b"", None, False
            if row[16] != EntryType.DELIVERY and row[:16] != last:
                # What compaction has left of one whose record is dropped: its look-ups are of this moment.
                dropped = True
                if first_at is not None:
                    _share(stretch, time, first_at)
            if pack is None or number not in self._live or row[16] != EntryType.DELIVERY:
                continue
            if offset >= self._view.limits.get(pack, rows.MAX_OFFSET + 1):
                continue
            if row[:16] == last:
                continue  # recorded twice
            where = Location(*pack, offset, inner, 0)
            if first_at is None:
                first_at = where
                stretch.alone[-1] = 1
                if dropped:
                    _share(stretch, time, where)
            else:
                _share(stretch, time, first_at).append(where)
            last = row[:16]
        yield stretch

    def _strange(
        self, table: Table, blocks: Iterator[list[bytes]], stretch: _Stretch, total: Sum | None = None
    ) -> Iterator[Finding]:
        """Rows of a moment in which no delivery was captured. What is of a delivery, and of no other too, is
        added to `total`."""
        strange = 0
        known, alone = stretch.known, stretch.alone
        for block in blocks:
            own: list[bytes] = []
            for row in block:
                time = int.from_bytes(row[8:], "big")
                if not stretch.low <= time <= stretch.high:
                    continue
                at = bisect_left(known, time)
                if at == len(known) or known[at] != time:
                    strange += 1
                elif alone[at]:
                    own.append(row)
            if total is not None:
                total.add(own if table == Table.ID else _of_deliveries(own))
        if strange:
            yield Finding("index", "index", f"{strange} rows of {table.name} are of no delivery")

    def _count_shared(self, shared: dict[int, list[Location]]) -> bool:
        """Terms of one moment cannot be told apart: take them from the records. False if one is gone."""
        for places in shared.values():
            for where in places:
                try:
                    entry = self._reader.entry(where)
                except DamagedError:
                    return False
                if isinstance(entry, Delivery):
                    self._ids.add([entry.id])
                    self._terms.add(term_rows(entry))
        return True


def _share(stretch: _Stretch, time: int, first: Location) -> list[Location]:
    """Where the records lie that are of this moment, the last of the stretch."""
    stretch.alone[-1] = 0
    return stretch.shared.setdefault(time, [first])


def _kinds(block: list[bytes]) -> set[int]:
    """The kinds of terms that may be in a block, which is in order."""
    return set(range(block[0][0], block[-1][0] + 1))


def _of_deliveries(block: list[bytes]) -> list[bytes]:
    """Those of some TERM rows by which deliveries are found."""
    return [row for row in block if row[0] in _OF_DELIVERIES]
