"""The index: one answer from LMDB and runs, for every process, whatever is folded, merged or removed.

What would break these: a run file removed while somebody still reads by it, or left for ever; a look that
sees half of an update; a block kept in memory of a run that never came to be; a row lost or come back in a
merge; damage that ends in anything but `DamagedError`, so that the index is not built anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import lmdb
import pytest
from blake3 import blake3

from store import rows
from store.check import Checked, check
from store.deliveries import Query
from store.errors import DamagedError
from store.ids import ChunkId, ContentId, DeliveryId, now_us
from store.index import SCHEMA, Index
from store.places import Location, StreamState
from store.records import EntryType, Erasure
from store.rows import Table, Term
from store.snapshot import Snapshot
from store.store import Store
from store.update import MERGE_RUNS, TIER_ROWS, Update
from store.writer import Submission
from tests.support.mailstore import MESSAGE, mailkeep, written

STORE_ID = b"s" * 16
PACK = (7, 1)
OTHER_PACK = (7, 2)
FRESH_ROWS = 64


class BreakError(Exception):
    """What a test lets an update fail by."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path / "index", STORE_ID, fresh_rows=FRESH_ROWS)
    yield opened
    opened.close()


def chunk(number: int) -> ChunkId:
    return ChunkId(blake3(b"%d" % number).digest(12))


def add(update: Update, numbers: Iterable[int], pack: tuple[int, int] = PACK, *, shift: int = 0) -> None:
    place = update.pack_number(pack)
    for n in numbers:
        update.add(Table.CHUNK, rows.chunk_row(chunk(n), rows.place(place, n + shift, 0), 1))


def put(index: Index, numbers: Iterable[int], pack: tuple[int, int] = PACK, *, shift: int = 0) -> None:
    with index.update() as update:
        add(update, numbers, pack, shift=shift)


def missing(
    snapshot: Snapshot, numbers: Iterable[int], pack: tuple[int, int] = PACK, shift: int = 0
) -> list[int]:
    """The chunks that are not found where they lie."""
    return [n for n in numbers if snapshot.chunk(chunk(n)) != Location(*pack, n + shift, 0, 1)]


def files(index: Index, suffix: str = ".run") -> set[str]:
    return {path.name for path in index.path.glob("*" + suffix)}


def live(index: Index) -> set[str]:
    with index.read() as snapshot:
        return {index.run_path(run.number).name for run in snapshot.known.catalogue.runs}


# -- rows


def test_fresh_rows_become_a_run(index: Index) -> None:
    put(index, range(FRESH_ROWS - 1))
    assert (index.fresh_count(), files(index)) == (FRESH_ROWS - 1, set())
    with index.read() as snapshot:
        assert missing(snapshot, range(FRESH_ROWS - 1)) == []
        assert list(snapshot._find_settled(Table.CHUNK, chunk(1))) == []
    put(index, [FRESH_ROWS])
    assert (index.fresh_count(), len(files(index))) == (0, 1)
    with index.read() as snapshot:
        assert missing(snapshot, [*range(FRESH_ROWS - 1), FRESH_ROWS]) == []
        assert snapshot.chunk(chunk(9999)) is None
        assert snapshot.rows() == FRESH_ROWS


def test_more_rows_than_fit_go_straight_into_a_run(index: Index) -> None:
    put(index, range(10))
    put(index, range(10, 10 + 20 * FRESH_ROWS))
    assert index.fresh_count() == 0
    with index.read() as snapshot:
        assert missing(snapshot, range(10 + 20 * FRESH_ROWS)) == []


def test_what_is_put_is_seen_within_the_update_once_settled(index: Index) -> None:
    for numbers in (range(5), range(5, 5 + 3 * FRESH_ROWS)):
        with index.update() as update:
            add(update, numbers)
            update.settle()
            assert missing(update, numbers) == []
            with index.read() as snapshot:
                assert missing(snapshot, numbers) == list(numbers), "seen before it was committed"


def test_tiers(index: Index) -> None:
    """However much is put, few runs stay, and nothing is lost: against a plain dict."""
    rng = random.Random(5)
    known: set[int] = set()
    for _ in range(60):
        some = [rng.randrange(20_000) for _ in range(rng.randrange(1, 5 * FRESH_ROWS))]
        put(index, some)
        known |= set(some)
        index.merge()
        with index.read() as snapshot:
            tiers = [run.tier for run in snapshot.known.catalogue.runs]
        assert all(tiers.count(tier) < MERGE_RUNS for tier in tiers)
    assert files(index) == live(index)
    with index.read() as snapshot:
        assert missing(snapshot, known) == []
        assert {run.tier for run in snapshot.known.catalogue.runs} >= {1}, f"more than {TIER_ROWS} rows"
        assert all(snapshot.chunk(chunk(n)) is None for n in range(20_000, 20_500))
    index.merge(everything=True)
    with index.read() as snapshot:
        assert missing(snapshot, known) == []
        assert snapshot.rows() == len(known)
    assert index.merge(everything=True) == 0, "there is nothing more to merge"


def test_the_newest_place_wins_and_a_bad_one_loses(index: Index) -> None:
    put(index, range(100))
    put(index, range(100), OTHER_PACK, shift=5)
    with index.read() as snapshot:
        assert missing(snapshot, range(100), OTHER_PACK, 5) == []
        bad = frozenset(Location(*OTHER_PACK, n + 5, 0, 1).record for n in range(100))
        assert snapshot.chunk(chunk(3), bad) == Location(*PACK, 3, 0, 1)
        assert snapshot.chunk(chunk(3), bad | {(*PACK, 3)}) is not None, "better than none"


# -- packs that count no longer


def test_rows_of_dead_packs_vanish(index: Index) -> None:
    put(index, range(500))
    put(index, range(250, 800), OTHER_PACK)
    with index.update() as update:
        update.drop_packs([PACK], 500)
    with index.read() as snapshot:
        assert missing(snapshot, range(250, 800), OTHER_PACK) == []
        assert all(snapshot.chunk(chunk(n)) is None for n in range(250))
        assert snapshot.rows() == 1050
    index.merge(everything=True)
    with index.read() as snapshot:
        assert missing(snapshot, range(250, 800), OTHER_PACK) == []
        assert (snapshot.rows(), snapshot.known.catalogue.dead_rows) == (550, 0)
    assert files(index) == live(index)


def test_rows_that_die_before_they_are_in_a_run(index: Index) -> None:
    put(index, range(FRESH_ROWS // 2))
    with index.update() as update:
        update.drop_packs([PACK], FRESH_ROWS // 2)
    put(index, range(10), OTHER_PACK)
    index.merge(everything=True)
    with index.read() as snapshot:
        assert missing(snapshot, range(10), OTHER_PACK) == []
        assert snapshot.rows() == 10


def test_when_all_packs_are_dead_nothing_is_left(index: Index) -> None:
    put(index, range(300))
    with index.update() as update:
        update.drop_packs([PACK], 300)
    index.merge(everything=True)
    assert (files(index), files(index, ".tmp")) == (set(), set())
    put(index, range(300))
    with index.read() as snapshot:
        assert missing(snapshot, range(300)) == []


def test_a_pack_that_comes_again_has_a_number_of_its_own(index: Index) -> None:
    """Rows of its first life must not count in its second."""
    put(index, range(100))
    with index.update() as update:
        update.drop_packs([PACK], 100)
    put(index, range(50, 60), shift=9)
    with index.read() as snapshot:
        assert missing(snapshot, range(50, 60), PACK, 9) == []
        assert all(snapshot.chunk(chunk(n)) is None for n in range(50))


# -- who looks while others write


def test_an_open_look_sees_the_same_through_merges(index: Index) -> None:
    for start in range(0, 600, 100):
        put(index, range(start, start + 100))
    index.merge(everything=True)
    with index.read() as old:
        before = live(index)
        faults: list[BaseException] = []

        def work() -> None:
            try:
                for start in range(600, 1500, 100):
                    put(index, range(start, start + 100), OTHER_PACK)
                    index.merge(everything=True)
            except BaseException as exc:  # noqa: BLE001 - whatever it is must fail the test
                faults.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        looks = 0
        while thread.is_alive() or not looks:
            assert missing(old, range(0, 600, 7)) == []
            assert old.chunk(chunk(600)) is None
            assert old.rows() == 600
            looks += 1
        thread.join()
        assert faults == []
        assert missing(old, range(600)) == []
        assert before <= files(index)
        with index.read() as new:
            assert missing(new, range(600)) == []
            assert missing(new, range(600, 1500), OTHER_PACK) == []
    with index.update():
        pass
    assert files(index) == live(index)


def test_doomed_files_wait_for_the_oldest_look(index: Index) -> None:
    def merged_into() -> set[str]:
        put(index, range(100))
        index.merge(everything=True)
        return live(index)

    first = merged_into()
    looks = [index.read() for _ in range(2)]
    looks[0].__enter__()
    second = merged_into()
    done = threading.Event()
    entered = threading.Event()

    def look() -> None:  # LMDB wants a thread of its own for each look
        with looks[1] as snapshot:
            snapshot.rows()
            entered.set()
            done.wait(60)

    thread = threading.Thread(target=look)
    thread.start()
    assert entered.wait(60)
    third = merged_into()
    assert first | second | third <= files(index)
    looks[0].__exit__(None, None, None)
    put(index, [1])
    assert not first & files(index), "nobody sees the first any more"
    assert second | third <= files(index)
    done.set()
    thread.join()
    put(index, [2])
    assert files(index) == live(index)


def hold_a_look(path: str, ready: str) -> None:
    """Run in a process of its own: look at the index until killed."""
    index = Index(Path(path), STORE_ID)
    with index.read() as snapshot:
        snapshot.rows()
        Path(ready).touch()
        time.sleep(60)


def test_a_look_of_another_process_counts_until_it_dies(index: Index, tmp_path: Path) -> None:
    put(index, range(100))
    index.merge(everything=True)
    first = live(index)
    ready = tmp_path / "ready"
    code = f"from tests.store.test_index import hold_a_look; hold_a_look({str(index.path)!r}, {str(ready)!r})"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        end = time.monotonic() + 60
        while not ready.exists():
            assert other.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        put(index, range(100, 200))
        index.merge(everything=True)
        assert first <= files(index)
        assert not index.wait_for_readers(index.last_transaction(), 0.1)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert index.wait_for_readers(index.last_transaction(), 5)
    put(index, [1])
    assert files(index) == live(index)


def test_wait_for_readers(index: Index) -> None:
    assert index.wait_for_readers(index.last_transaction() + 100, 0), "nobody looks"
    entered, leave = threading.Event(), threading.Event()

    def look() -> None:
        with index.read() as snapshot:
            snapshot.rows()
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=look)
    thread.start()
    assert entered.wait(60)
    seen = index.last_transaction()
    assert index.wait_for_readers(seen, 0), "who sees that transaction need not be waited for"
    put(index, [1])
    assert index.last_transaction() > seen
    began = time.monotonic()
    assert not index.wait_for_readers(index.last_transaction(), 0.2)
    assert time.monotonic() - began >= 0.2
    threading.Timer(0.2, leave.set).start()
    assert index.wait_for_readers(index.last_transaction(), 20)
    thread.join()


BATCH, BATCHES, LOOKS = 20, 50, 10


def read_until_told(path: str, stop: str, looked: str, faults: str) -> None:
    """Run in a process of its own: every look must be whole, that is have all rows of as many batches as it
    says there are. Says in `looked` when it has had a few."""
    index = Index(Path(path), STORE_ID, fresh_rows=FRESH_ROWS)
    rng = random.Random(os.getpid())
    looks = last = 0
    try:
        while not Path(stop).exists():
            with index.read() as snapshot:
                batches = int(snapshot.meta(b"batches") or b"0")
                assert batches >= last
                last = batches
                some = [rng.randrange(batches * BATCH) for _ in range(10)] if batches else []
                assert missing(snapshot, some) == []
                assert snapshot.chunk(chunk(batches * BATCH + rng.randrange(BATCH))) is None
                if looks % 10 == 0:
                    found = list(snapshot._range(Table.CHUNK, b"", b"\xff" * 30, newest_first=False))
                    assert len(set(found)) == batches * BATCH
                    assert found == sorted(found)
            looks += 1
            if looks == LOOKS:
                Path(looked).joinpath(f"{os.getpid()}").touch()
    except BaseException as exc:
        Path(faults).joinpath(f"{os.getpid()}").write_text(repr(exc))
        raise
    finally:
        index.close()


def test_many_processes_read_while_one_writes(index: Index, tmp_path: Path) -> None:
    faults, looked, stop = (tmp_path / name for name in ("faults", "looked", "stop"))
    faults.mkdir()
    looked.mkdir()
    put(index, [])
    spawn = multiprocessing.get_context("spawn")
    readers = [
        spawn.Process(target=read_until_told, args=(str(index.path), str(stop), str(looked), str(faults)))
        for _ in range(3)
    ]
    for reader in readers:
        reader.start()
    try:
        began = time.monotonic()
        batches = 0

        def is_enough() -> bool:
            took_s = time.monotonic() - began
            all_did = batches > BATCHES and len(list(looked.iterdir())) == len(readers)
            return took_s > 120 or (took_s > 6 and all_did)

        while not is_enough() and not any(faults.iterdir()):
            with index.update() as update:
                add(update, range(batches * BATCH, (batches + 1) * BATCH))
                update.put_meta(b"batches", b"%d" % (batches + 1))
            batches += 1
            index.merge(everything=batches % 40 == 0)
            time.sleep(0.002)
    finally:
        stop.touch()
        for reader in readers:
            reader.join(60)
    assert [path.read_text() for path in faults.iterdir()] == []
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    assert len(list(looked.iterdir())) == len(readers)
    assert batches > BATCHES
    put(index, [0])
    assert files(index) == live(index)


# -- updates that fail


def test_an_update_that_raises_leaves_nothing(index: Index) -> None:
    put(index, range(70))
    before = live(index)
    for numbers in (range(100, 110), range(100, 100 + 3 * FRESH_ROWS)):

        def broken(numbers: range = numbers) -> None:
            with index.update() as update:
                add(update, numbers)
                update.put_meta(b"what", b"ever")
                update.settle()
                update.fold()
                raise BreakError

        with pytest.raises(BreakError):
            broken()
        with index.read() as snapshot:
            assert missing(snapshot, range(70)) == []
            assert snapshot.chunk(chunk(100)) is None
            assert snapshot.meta(b"what") is None
            assert snapshot.rows() == 70
    assert live(index) == before
    with index.update() as update:
        update.sweep()
    assert (files(index), files(index, ".tmp")) == (before, set())
    put(index, range(70, 200))
    with index.read() as snapshot:
        assert missing(snapshot, range(200)) == []


def test_a_run_that_never_came_to_be_is_forgotten(index: Index) -> None:
    """The next run takes its number: nothing that was read of the first may be taken for the second."""

    def broken() -> None:
        with index.update() as update:
            add(update, range(1000, 1000 + 2 * FRESH_ROWS))
            update.settle()  # into a run
            assert missing(update, range(1000, 1010)) == []  # as `_note_waste` looks
            raise BreakError

    with pytest.raises(BreakError):
        broken()
    numbers = range(2 * FRESH_ROWS)
    put(index, numbers)
    with index.read() as snapshot:
        assert missing(snapshot, numbers) == []
        assert snapshot.chunk(chunk(1000)) is None


def test_sweep(index: Index) -> None:
    put(index, range(100))
    put(index, range(100, 200))
    with index.read() as snapshot:
        snapshot.rows()
        index.merge(everything=True)  # its sources are doomed, and still looked at
        kept = files(index)
        ended = subprocess.Popen(["/bin/true"])
        ended.wait()
        (index.path / "0000004711.run").write_bytes(b"of an update that was killed")
        (index.path / f"{ended.pid}-abc.tmp").write_bytes(b"of a process that is gone")
        mine = index.path / f"{os.getpid()}-abc.tmp"
        mine.write_bytes(b"of somebody who merges right now")
        with index.update() as update:
            update.sweep()
        assert files(index) == kept
        assert missing(snapshot, range(200)) == []
        assert files(index, ".tmp") == {mine.name}


def test_a_merge_that_is_stopped_leaves_nothing(index: Index) -> None:
    for start in range(0, 1600, 100):
        put(index, range(start, start + 100))
    before = live(index)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    assert index.merge(stop=stop) == 0
    assert (live(index), files(index, ".tmp")) == (before, set())
    assert index.merge() > 0
    with index.read() as snapshot:
        assert missing(snapshot, range(1600)) == []


def test_a_merge_of_an_index_that_is_emptied_meanwhile(index: Index) -> None:
    for start in range(0, 400, 100):
        put(index, range(start, start + 100))
    emptied = False

    def stop() -> bool:
        nonlocal emptied
        if not emptied:
            emptied = True
            with index.update() as update:
                update.clear()
        return False

    assert index.merge(stop=stop) == 0
    with index.read() as snapshot:
        assert snapshot.rows() == 0
        assert snapshot.chunk(chunk(1)) is None
    put(index, [1])
    assert (files(index), files(index, ".tmp")) == (live(index), set())


# -- all of it


STATE = StreamState(3, 4711, 12, 5, 7, b"c" * 32, 99)


def test_clear_keeps_what_was_durable(index: Index) -> None:
    put(index, range(300))
    with index.update() as update:
        update.put_state("host", STATE)
        update.put_meta(b"counters", b"\x80")
    with index.update() as update:
        update.clear()
    with index.read() as snapshot:
        assert snapshot.rows() == 0
        assert snapshot.state("host") is None
        assert snapshot.meta(b"counters") is None
        assert snapshot.durable("host") == STATE.place
        assert snapshot.mark() == b"%d:%s" % (SCHEMA, STORE_ID)
        assert snapshot.chunk(chunk(1)) is None
    with index.update() as update:
        update.put_state("host", StreamState(2, 5, 1, 1, 1, b"c" * 32))
        update.clear()  # what was caught up since is less than what had been seen before
    with index.read() as snapshot:
        assert snapshot.durable("host") == STATE.place
    put(index, range(300), OTHER_PACK)
    with index.read() as snapshot:
        assert missing(snapshot, range(300), OTHER_PACK) == []
    assert files(index) == live(index)


def test_take_over(index: Index, tmp_path: Path) -> None:
    put(index, range(1000))
    with index.update() as update:
        update.put_state("host", STATE)
        update.condemn([chunk(1)], b"t" * 8, "host")
    other = Index(tmp_path / "other", STORE_ID, fresh_rows=FRESH_ROWS)
    put(other, [], (9, 9))  # so that the packs' numbers differ
    put(other, range(500, 2000), OTHER_PACK)
    put(other, range(2000, 2010), OTHER_PACK)
    newer = StreamState(4, 1, 13, 6, 8, b"d" * 32, 100)
    with other.update() as update:
        update.put_state("host", newer)
    try:
        with index.read() as old:
            thread = threading.Thread(target=_take_over, args=(index, other))
            thread.start()
            thread.join()
            assert missing(old, range(1000)) == [], "who looks at the old one sees it whole"
        with index.read() as snapshot:
            assert missing(snapshot, range(500, 2010), OTHER_PACK) == []
            assert all(snapshot.chunk(chunk(n)) is None for n in range(500))
            assert snapshot.state("host") == newer
            assert snapshot.has_condemned(), "a compaction that is under way relies on it"
            assert snapshot.rows() == 1510
        put(index, range(500), PACK)
        index.merge(everything=True)
        with index.read() as snapshot:
            assert missing(snapshot, range(500)) == []
            assert missing(snapshot, range(500, 2010), OTHER_PACK) == []
        assert files(index) == live(index)
    finally:
        other.close()


def _take_over(index: Index, other: Index) -> None:
    with index.update() as update:
        update.take_over(other)


def test_it_is_there_when_opened_again(tmp_path: Path) -> None:
    for turn in range(3):
        index = Index(tmp_path / "index", STORE_ID, fresh_rows=FRESH_ROWS)
        put(index, range(turn * 150, turn * 150 + 150))
        with index.read() as snapshot:
            assert missing(snapshot, range(turn * 150 + 150)) == []
        index.close()


# -- deliveries


def delivery(number: int, time_us: int) -> DeliveryId:
    return DeliveryId(blake3(b"d%d" % number).digest(8) + time_us.to_bytes(8, "big"))


def put_delivery(
    index: Index, id_: DeliveryId, terms: Iterable[bytes] = (), kind: EntryType = EntryType.DELIVERY
) -> None:
    with index.update() as update:
        place = rows.place(update.pack_number(PACK), id_[0], 0)
        update.add(Table.DELIVERY, rows.delivery_row(id_, kind, place))
        if kind == EntryType.DELIVERY:
            update.add(Table.ID, id_)
        for term in terms:
            update.add(Table.TERM, rows.term_row(Term.RECIPIENT, term, id_))


@pytest.mark.parametrize("settled", ["fresh", "runs", "both"])
def test_several_deliveries_in_one_microsecond(index: Index, settled: str) -> None:
    times = [1_000, 1_001, 1_001, 1_001, 1_002, 1_002, 1_005]
    ids = [delivery(n, time_us) for n, time_us in enumerate(times)]
    for number, id_ in enumerate(ids):
        put_delivery(index, id_, [b"anna", b"anna"] if number % 2 else [b"anna", b"bert"])
        put_delivery(index, id_, kind=EntryType.OUTCOMES)
        if settled == "runs" or (settled == "both" and number == 3):
            with index.update() as update:
                update.fold()
    put_delivery(index, ids[2], kind=EntryType.ERASURE)
    put_delivery(index, ids[4], kind=EntryType.EXPIRY)
    put_delivery(index, ids[4], kind=EntryType.EXPIRY)
    order = sorted(ids, key=lambda id_: (id_[8:], id_[:8]))
    there = [id_ for id_ in order if id_ not in {ids[2], ids[4]}]
    with index.read() as snapshot:
        for newest_first in (False, True):
            turn = -1 if newest_first else 1
            how = {"newest_first": newest_first}
            assert list(snapshot.by_time(0, 9_999, **how)) == there[::turn]
            assert list(snapshot.by_time(0, 9_999, removed=True, **how)) == order[::turn]
            assert (
                list(snapshot.by_time(1_001, 1_002, **how))
                == [i for i in there if i[-2:] == b"\x03\xe9"][::turn]
            )
            assert list(snapshot.by_time(1_005, 1_005, **how)) == []
            found = list(snapshot.by_term(Term.RECIPIENT, b"anna", 0, 9_999, **how))
            assert found == there[::turn], "each once, in order"
            assert (
                list(snapshot.by_term(Term.RECIPIENT, b"anna", 0, 9_999, removed=True, **how))
                == order[::turn]
            )
            # Those of the same moment come along; all that have the term must.
            found = list(snapshot.by_term(Term.RECIPIENT, b"bert", 0, 9_999, **how))
            assert set(found) >= {ids[0], ids[6]}
            assert len(found) == len(set(found))
            assert list(snapshot.by_term(Term.SENDER, b"anna", 0, 9_999, **how)) == []
        assert snapshot.is_removed(ids[2])
        assert snapshot.is_removed(ids[4])
        assert not snapshot.is_removed(ids[3])
        assert [kind for kind, _ in snapshot.delivery(ids[2])] == [1, 2, 5]
        assert snapshot.delivery(delivery(99, 1_001)) == []
        assert snapshot.has_term(Term.RECIPIENT, b"bert", ids[6])
        assert not snapshot.has_term(Term.RECIPIENT, b"carl", ids[6])
        for id_ in ids:
            assert snapshot.resolve(id_.hex()[:9]) == [id_]
            assert snapshot.resolve(id_.hex()) == [id_]


def test_one_busy_term_over_many_runs(index: Index) -> None:
    ids = [delivery(n, 5_000 + n // 3) for n in range(300)]
    with index.update() as update:
        place = rows.place(update.pack_number(PACK), 0, 0)
        for id_ in ids:
            update.add(Table.DELIVERY, rows.delivery_row(id_, EntryType.DELIVERY, place))
            update.add(Table.TERM, rows.term_row(Term.CONTENT, ContentId(b"c" * 32), id_))
    order = sorted(ids, key=lambda id_: (id_[8:], id_[:8]))
    with index.read() as snapshot:
        found = snapshot.by_term(Term.CONTENT, b"c" * 32, 5_010, 5_020, newest_first=True)
        assert list(found) == [i for i in order if 5_010 <= int.from_bytes(i[8:], "big") < 5_020][::-1]


# -- what another version, another store or a bad disk has left


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "store"
    with written(path) as fill:
        for n in range(600):
            fill.put(MESSAGE + b"%d" % n, to=(b"user%d@example.org" % n,))
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


def whole(path: Path) -> None:
    """Everything is there and nothing is wrong."""
    with Store.open(path) as store:
        assert store.damage == []
        assert len(list(store.deliveries(Query()))) == 600
        assert list(check(store, Checked(), read_data=True)) == []


@pytest.mark.parametrize("marked", [True, False])
def test_an_index_of_the_schema_before(path: Path, marked: bool) -> None:
    """Six tables, and one of a name that is used today with values that mean something else."""
    shutil.rmtree(path / "index")
    (path / "index").mkdir()
    env = lmdb.open(str(path / "index"), map_size=1 << 30, max_dbs=6, lib_version=0)
    names = (b"meta", b"chunks", b"contents", b"deliveries", b"times", b"terms")
    tables = {name: env.open_db(name, create=True) for name in names}
    with env.begin(write=True) as txn:
        for name, table in tables.items():
            for n in range(500):
                txn.put(b"%s-%d" % (name, n), b"x" * 100, db=table)
        if marked:
            store_id = json.loads((path / "mailkeep.store").read_text())["id"]
            txn.put(b"mark", b"1:" + bytes.fromhex(store_id), db=tables[b"meta"])
    env.close()
    whole(path)
    whole(path)


def test_the_index_of_another_store(path: Path, tmp_path: Path) -> None:
    """As after a copy that went wrong. What had been seen of the other's streams is nothing to this one."""
    with written(tmp_path / "other") as fill:
        for n in range(2000):
            fill.put(MESSAGE + b"other %d" % n)
    shutil.rmtree(path / "index")
    shutil.copytree(tmp_path / "other/index", path / "index")
    whole(path)


def runs_of(path: Path) -> list[Path]:
    found = sorted((path / "index").glob("*.run"))
    assert found, "the test wants a run"
    return found


def test_a_run_that_is_missing(path: Path) -> None:
    runs_of(path)[0].unlink()
    whole(path)
    assert list(path.glob("index.damaged-*"))


@pytest.mark.parametrize("size", [0, 27, 1000, 1001, 1002, 1003, -1])
def test_a_run_that_is_cut_short(path: Path, size: int) -> None:
    run = runs_of(path)[0]
    data = run.read_bytes()
    run.write_bytes(data[:size])
    whole(path)
    assert list(path.glob("index.damaged-*"))


@pytest.mark.parametrize("byte", [0, 6, 7, 8, 11, 12, 27])
def test_a_run_whose_last_bytes_are_damaged(path: Path, byte: int) -> None:
    run = runs_of(path)[0]
    data = bytearray(run.read_bytes())
    data[byte - 28] ^= 0xC1
    run.write_bytes(data)
    whole(path)
    assert list(path.glob("index.damaged-*"))


def spoil_blocks(path: Path) -> None:
    for run in runs_of(path):
        data = bytearray(run.read_bytes())
        for at in range(8, len(data) * 3 // 4, 40):
            data[at] ^= 0x55
        run.write_bytes(data)


def test_a_block_that_is_damaged_is_told_in_words(path: Path) -> None:
    """Nobody notices at the start; who comes upon it says what is wrong, and a rebuild mends it."""
    spoil_blocks(path)
    ran = mailkeep("list", "--store", path, "--json", "--limit", "0")
    assert ran.code == DamagedError.exit_code, ran.err
    assert "index" in ran.err
    assert mailkeep("check", "--store", path).code == 1
    assert mailkeep("rebuild", "--store", path).code == 0
    whole(path)


def test_a_damaged_block_does_not_end_the_indexer(path: Path) -> None:
    """Mail goes on being captured and indexed, whatever a run that is asked about what was removed says."""
    with Store.open(path) as store:
        old = next(store.deliveries(Query(newest_first=False))).delivery
    spoil_blocks(path)
    with written(path) as fill:
        erasure = Erasure(
            delivery=old.id, time_us=now_us(), owner="dpo", reason="asked",
            content=fill.store.tombstone(old.content),
        )  # fmt: skip
        fill.store.writer.submit(Submission(entries=[erasure]))
        found = fill.put(MESSAGE + b"601")
        fill.store.settle_index(5)
        indexer = fill.store._indexer
        assert indexer is not None
        assert indexer._thread.is_alive(), "nobody would ever index again"
        assert indexer._merger.is_alive()
        assert fill.store.delivery(found.id).delivery == found
