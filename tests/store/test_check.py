"""`check` is silent on a sound store, whatever goes on beside it, and names every kind of fault."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from store import layout, records, rows
from store.check import Checked, Checker, CheckOptions, Finding, Sample, check
from store.check_bookmark import Bookmark
from store.compact import CompactOptions, Compactor
from store.ids import new_delivery_id, now_us
from store.records import Delivery, EntryType, Expiry, Outcome, Outcomes, Stub
from store.rows import Table, Term
from store.store import Store
from store.update import Update
from store.writer import Submission
from tests.store.conftest import put_message

MESSAGES = [b"Subject: %d\r\n\r\n" % n + b"text of %d\r\n" % n * 50 for n in range(5)]


def found(store: Store, *, read_data: bool = False) -> tuple[list[Finding], Checked]:
    checked = Checked()
    return list(check(store, checked, read_data=read_data)), checked


def fill(store: Store, count: int = 5, *, what: bytes = b"") -> list[Delivery]:
    deliveries = [
        put_message(store, MESSAGES[n % 5] + what + b"%d" % n, queue_id=b"Q%d" % n) for n in range(count)
    ]
    store.settle_index()
    return deliveries


def submit(store: Store, *entries: records.Entry) -> None:
    done = threading.Event()
    store.writer.submit(Submission(entries=list(entries), done=lambda _error: done.set()))
    assert done.wait(60)
    store.settle_index()


def compact(store: Store, **how: int) -> None:
    store.writer.roll()
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=3, **how)).run()  # type: ignore[arg-type]  # a test's


def fold(store: Store) -> None:
    with store.index.update() as update:
        update.fold()


def test_a_sound_store_while_it_is_written_to(store: Store) -> None:
    for message in MESSAGES:
        put_message(store, message)
    findings, checked = found(store, read_data=True)
    assert findings == []
    assert (checked.deliveries, checked.contents, checked.messages_read) == (5, 5, 5)
    assert checked.message_bytes == sum(map(len, MESSAGES))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_compacted_store_with_erased_and_expired_mail(store: Store, threads: int) -> None:
    deliveries = fill(store, 12)
    submit(store, Outcomes(delivery=deliveries[0].id, time_us=now_us(), outcomes=(Outcome(0, b"250 ok"),)))
    gone = tuple(delivery.id for delivery in deliveries[:6])
    submit(store, Expiry(time_us=now_us(), rule="30d", owner="o", deliveries=gone))
    assert found(store, read_data=True)[0] == []
    compact(store)
    fill(store, 3, what=b"other")
    compact(store)
    with store.index.read() as snapshot:
        assert snapshot.counters().expired == 6
    options = CheckOptions(read_data=Sample(), threads=threads)
    assert list(Checker(store, options).run()) == []
    store.view.clear()  # rebuilt, the index knows less of what is gone
    for name in store.view.names():
        store.view.catch_up(name)
    assert found(store, read_data=True)[0] == []


def test_what_comes_again_after_it_was_dropped_is_stored_anew(store: Store) -> None:
    (first,) = fill(store, 1)
    submit(store, Expiry(time_us=now_us(), rule="30d", owner="o", deliveries=(first.id,)))
    compact(store)
    (again,) = fill(store, 1)
    assert found(store, read_data=True)[0] == []
    assert b"".join(store.read(again.content)).endswith(b"0")


def test_deliveries_of_one_moment(store: Store) -> None:
    time_us = now_us()
    first = put_message(store, MESSAGES[0])
    for _ in range(4):
        again = replace(first, id=new_delivery_id(time_us), time_us=time_us, queue_id=b"same")
        submit(store, again)
    assert found(store)[0] == []


def test_times_are_looked_at_in_stretches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.check_index.TIMES_AT_ONCE", 3)
    (first, *_) = fill(store, 10)
    submit(store, Expiry(time_us=now_us(), rule="30d", owner="o", deliveries=(first.id,)))
    compact(store)  # leaves look-ups of what is gone, so that the sums alone do not tell
    assert found(store)[0] == []
    with store.index.update() as update:
        update.add(Table.ID, new_delivery_id(5))
        update.add(Table.ID, new_delivery_id(1 << 60))
    assert len([f for f in found(store)[0] if "of no delivery" in f.what]) == 2


# -- references


def _delete(table: Table, update: Update, store: Store) -> None:
    with update._txn.cursor(db=store.index.fresh) as cursor:
        assert cursor.set_range(rows.PREFIX[table])
        assert cursor.key()[:1] == rows.PREFIX[table]
        cursor.delete()


def _move(table: Table, update: Update, store: Store) -> None:
    at = rows.PLACE_AT[table]
    with update._txn.cursor(db=store.index.fresh) as cursor:
        assert cursor.set_range(rows.PREFIX[table])
        row = bytearray(cursor.key())
        row[at + 7] ^= 1  # in the offset
        cursor.delete()
    update.add(table, bytes(row[1:]))


@pytest.mark.parametrize("spoil", [_delete, _move])
@pytest.mark.parametrize("table", [Table.CHUNK, Table.CONTENT, Table.DELIVERY])
def test_rows_that_are_not_what_the_log_says(
    store: Store, table: Table, spoil: Callable[[Table, Update, Store], None]
) -> None:
    fill(store)
    with store.index.update() as update:
        spoil(table, update, store)
    findings = found(store)[0]
    assert any(f.kind == "index" and "is not in the index" in f.what for f in findings)
    assert (spoil is _move) == any("that is not there" in f.what for f in findings)
    store.view.clear()
    store.view.catch_up("host")
    assert found(store)[0] == []


@pytest.mark.parametrize("table", [Table.CHUNK, Table.CONTENT, Table.DELIVERY])
def test_rows_that_have_exchanged_their_places(store: Store, table: Table) -> None:
    fill(store)
    at = rows.PLACE_AT[table]
    with store.index.update() as update, update._txn.cursor(db=store.index.fresh) as cursor:
        two: list[bytes] = []
        assert cursor.set_range(rows.PREFIX[table])
        while len(two) < 2:
            two.append(cursor.key()[1:])
            assert cursor.delete()
        for row, other in (two, reversed(two)):
            update.add(table, row[:at] + other[at : at + 10] + row[at + 10 :])
    assert {f.kind for f in found(store)[0]} == {"index"}


@pytest.mark.parametrize("table", [Table.ID, Table.TERM])
def test_a_delivery_that_cannot_be_looked_up(store: Store, table: Table) -> None:
    fill(store)
    with store.index.update() as update:
        _delete(table, update, store)
    (finding,) = found(store)[0]
    assert (finding.kind, "are not those of the log" in finding.what) == ("index", True)


def test_rows_twice_and_of_packs_that_count_no_longer_are_no_finding(store: Store) -> None:
    fill(store)
    with store.index.read() as snapshot:
        again = list(snapshot._fresh_range(Table.CHUNK, b"", b"\xff" * 30, newest_first=False))
    fold(store)
    with store.index.update() as update:
        for row in again:
            update.add(Table.CHUNK, row)
            update.add(Table.CHUNK, row[:12] + b"\xff\xff\xff" + row[15:])
    assert found(store)[0] == []


def test_a_term_of_no_delivery(store: Store) -> None:
    fill(store)
    with store.index.update() as update:
        update.add(Table.TERM, rows.term_row(Term.RECIPIENT, b"x@y", new_delivery_id(77)))
    (finding,) = found(store)[0]
    assert "1 rows of TERM are of no delivery" in finding.what


def test_a_replay_of_no_delivery(store: Store) -> None:
    (first, *_) = fill(store)
    replay = records.Replay(
        delivery=first.id, time_us=now_us(), run="r", recipient=b"a@b", downstream="d", reply=b"250 ok"
    )
    submit(store, replay)
    assert found(store)[0] == []
    with store.index.update() as update:
        update.add(Table.TERM, rows.term_row(Term.REPLAY_RUN, b"r", new_delivery_id(77)))
    (finding,) = found(store)[0]
    assert "1 rows of TERM are of no delivery" in finding.what


def test_recipes_and_deliveries_that_refer_to_nothing(store: Store) -> None:
    first = put_message(store, MESSAGES[0])
    chunk = records.Run((layout.ChunkId(bytes(layout.CHUNK_ID_BYTES)),))
    content = records.Content(records.ContentId(os.urandom(32)), 5, (chunk,))

    def delivery(of: records.ContentId) -> Delivery:
        time_us = now_us()
        return replace(first, id=new_delivery_id(time_us), time_us=time_us, content=of)

    lost = delivery(records.ContentId(os.urandom(32)))
    reply = Outcomes(delivery=new_delivery_id(9), time_us=now_us(), outcomes=())
    submit(store, content, delivery(content.id), lost, reply)
    findings = {(f.kind, f.where): f.what for f in found(store)[0]}
    assert findings.keys() == {
        ("missing", content.id.hex()), ("missing", lost.id.hex()), ("missing", reply.delivery.hex()),
    }  # fmt: skip
    assert "1 of its chunks" in findings["missing", content.id.hex()]
    submit(store, Expiry(time_us=now_us(), rule="r", owner="o", deliveries=(lost.id,)))
    assert ("missing", lost.id.hex()) not in {(f.kind, f.where) for f in found(store)[0]}


def test_a_stub_that_nobody_asked_for(store: Store) -> None:
    (delivery,) = fill(store, 1)
    leaf = records.leaf(records.encode(delivery))
    stub = Stub(leaf=leaf, delivery=new_delivery_id(4), type=EntryType.DELIVERY)
    submit(store, stub)
    (finding,) = [finding for finding in found(store)[0] if finding.kind == "history"]
    assert finding.where == stub.delivery.hex()
    assert "stub without erasure" in finding.what


def test_a_message_whose_chunks_are_sound_and_yet_another(store: Store) -> None:
    """A wrong recipe, under checksums that are right: only putting the message together tells."""
    first = put_message(store, MESSAGES[0])
    recipe = store.recipe(first.content)
    wrong = records.Content(records.ContentId(os.urandom(32)), recipe.size, recipe.runs)
    submit(store, wrong)
    assert found(store)[0] == []
    (finding,) = found(store, read_data=True)[0]
    assert (finding.kind, finding.where) == ("content", wrong.id.hex())


# -- damage


def test_damage_names_the_mail_that_is_lost(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        deliveries = fill(store)
        place = store.state("host").place
        pack = next(path.glob("streams/host/*.pack"))
        data = bytearray(pack.read_bytes())
        with store.index.read() as snapshot:
            ((_, where),) = snapshot.delivery(deliveries[2].id)
        data[where.offset + 40] ^= 1
        pack.write_bytes(data)
        findings = found(store)[0]
    assert place[1] == len(data)
    assert {(f.kind, f.where) for f in findings} >= {("missing", deliveries[2].id.hex())}
    assert {f.kind for f in findings} == {"damage", "missing"}


def test_a_missing_pack_is_found(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host", pack_bytes=1000)
        for message in MESSAGES:
            put_message(store, message)
    packs = sorted((path / "streams/host").glob("*.pack"))
    packs[1].unlink()
    with Store.open(path) as store:
        whats = [finding.what for finding in found(store)[0]]
    assert any("does not follow" in what for what in whats)
    assert "pack is missing" in whats


@pytest.mark.parametrize("threads", [1, 4])
def test_headers_that_are_damaged_cost_no_more_than_a_finding_each(path: Path, threads: int) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host", pack_bytes=1000)
        for message in MESSAGES:
            put_message(store, message)
        for pack in sorted(path.glob("streams/host/*.pack"))[1:3]:
            data = bytearray(pack.read_bytes())
            data[50] ^= 1
            pack.write_bytes(data)
        findings = list(Checker(store, CheckOptions(read_data=Sample(), threads=threads)).run())
    assert ["header is damaged" in finding.what for finding in findings] == [True, True]


# -- what is read, and how often


def test_parts_are_all_together_and_shares_are_about_that() -> None:
    names = [os.urandom(32) for _ in range(2000)]
    samples = [Sample.parse(f"{n}/5") for n in range(1, 6)]
    assert all(sum(sample.takes(name) for sample in samples) == 1 for name in names)
    taken = sum(map(Sample.parse("10%").takes, names))
    assert 120 < taken < 290
    assert all(map(Sample.parse("all").takes, names))
    for wrong in ("0%", "101%", "0/5", "6/5", "5/0", "x", "", "10", "-1%"):
        with pytest.raises(ValueError, match="neither"):
            Sample.parse(wrong)


def test_parts_read_every_message_once(store: Store) -> None:
    fill(store, 30)
    read = 0
    for n in range(1, 4):
        checker = Checker(store, CheckOptions(read_data=Sample(part=n, parts=3)))
        assert list(checker.run()) == []
        read += checker.checked.messages_read
    assert read == 30


def test_blocks_are_unpacked_about_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a message is made of lies in several large blocks, and thousands of messages share each."""
    rng = random.Random(1)
    unpacked: Counter[int] = Counter()
    real = layout.block_bytes

    def counting(kind: int, payload: bytes, *more: Any, **how: Any) -> Any:
        if kind == layout.RecordType.CHUNKS:
            unpacked[hash(bytes(payload))] += 1
        return real(kind, payload, *more, **how)

    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for n in range(150):
            body = b"Subject: %d\r\n\r\n" % n + rng.randbytes(4000).hex().encode() + b"\r\n"
            put_message(store, body)
        compact(store, block_bytes=64_000)
        monkeypatch.setattr("store.check._CACHE_BYTES", 200_000)
        monkeypatch.setattr("store.layout.block_bytes", counting)
        assert found(store, read_data=True)[0] == []
    assert len(unpacked) > 10
    assert sum(unpacked.values()) <= 2 * len(unpacked)


# -- beside others


def test_beside_a_writer_and_compaction(store: Store) -> None:
    ended = threading.Event()
    errors: list[BaseException] = []

    def write() -> None:
        n = 0
        try:
            while not ended.is_set():
                put_message(store, b"Subject: %d\r\n\r\n" % n + os.urandom(500).hex().encode())
                n += 1
                if n % 40 == 0:
                    store.writer.roll()
                    Compactor(store, CompactOptions(everything=n % 80 == 0, level=1)).run()
        except BaseException as exc:  # noqa: BLE001 - told by the test
            errors.append(exc)

    fill(store, 20)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        began, rounds = time.monotonic(), 0
        while rounds < 6 or time.monotonic() - began < 4:
            options = CheckOptions(read_data=Sample(), threads=2)
            assert list(Checker(store, options).run()) == [], rounds
            rounds += 1
    finally:
        ended.set()
        thread.join()
    assert errors == []


class _StopError(Exception):
    pass


def test_interrupted_and_resumed(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host", pack_bytes=1000)
        fill(store, 12)
        packs = sorted(path.glob("streams/host/*.pack"))
        spoiled = bytearray(packs[0].read_bytes())
        spoiled[300] ^= 1
        packs[0].write_bytes(spoiled)
        expected = found(store, read_data=True)[0]
        assert not Bookmark(path)._path.exists(), "a check that ended leaves nothing"

        def run(stop_after: int, *, resume: bool = True) -> tuple[list[Finding], Checker, int]:
            stepped = 0

            def step(size: int) -> None:
                nonlocal stepped
                stepped += size
                if stepped > stop_after:
                    raise _StopError

            checker = Checker(store, CheckOptions(read_data=Sample(), resume=resume, step=step))
            findings = []
            try:
                for finding in checker.run():
                    findings.append(finding)  # noqa: PERF402 - what came before the stop counts
            except _StopError:
                pass
            return findings, checker, stepped

        _, _, whole = run(1 << 60, resume=False)
        first, _, _ = run(whole // 2, resume=False)
        assert first
        saved = Bookmark(path).load(Sample())[1]
        assert 1 <= len(saved) < len(packs)
        os.utime(packs[1])  # what has changed is checked again
        findings, checker, stepped = run(1 << 60)
        assert stepped < whole
        assert (findings, checker.checked.deliveries) == (expected, found(store)[1].deliveries)
        run(whole // 2, resume=False)
        assert Bookmark(path).load(Sample(part=1, parts=2))[1] == {}, "it was to read something else"
        text = Bookmark(path)._path.read_text()
        Bookmark(path)._path.write_text(text.replace('"squares"', '"hashes"'))
        assert Bookmark(path).load(Sample())[1] == {}, "another version adds up otherwise"
        Bookmark(path)._path.write_text(text)
        assert Bookmark(path).load(Sample())[1] != {}
        os.utime(Bookmark(path)._path, (1e9, 1e9))
        assert Bookmark(path).load(Sample())[1] == {}, "long ago is not now"


def test_what_stops_one_thread_stops_all(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host", pack_bytes=1000)
        fill(store, 12)

        def step(_size: int) -> None:
            raise _StopError

        with pytest.raises(_StopError):
            list(Checker(store, CheckOptions(threads=3, step=step)).run())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]
