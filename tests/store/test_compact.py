"""Compaction: everything is still there afterwards, what nobody needs is not, and nobody had to wait.

What would break these: a segment that loses or reorders a fact (the chain), an old pack removed before its
successor is indexed (reads fail), a chunk dropped while a new message comes to share it (reads fail), bytes
of an erased message left in some pack (`stored_bytes` finds them).
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from store import layout
from store.check import Checked, check
from store.compact import CompactOptions, Compactor, CompactReport, close_open_packs
from store.deliveries import Query, RemovedError
from store.errors import NotFoundError, StoreError
from store.filters import Filter
from store.ids import DeliveryId, now_us
from store.log import StreamLog
from store.records import Delivery, Envelope, Erasure, Expiry, Hold, Leg, Recipient
from store.rows import Term
from store.scan import read_pack_header, scan_records
from store.segments import Segment, all_packs, pack_path, packs_of, stream_files
from store.store import Store
from store.writer import Submission

ALL = CompactOptions(everything=True, block_bytes=64 << 10)


class Mailbox:
    """A store, and what was put into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store.open(path, create=True)
        self.store.start_writing("host", reserve_bytes=0, pack_bytes=64 << 10)
        self.mails: dict[DeliveryId, bytes] = {}

    @property
    def directory(self) -> Path:
        return self.path / "streams" / "host"

    def put(self, message: bytes, **fields: object) -> Delivery:
        done = threading.Event()
        errors: list[StoreError | None] = []
        ingest = self.store.begin()
        ingest.feed(message)
        delivery = ingest.commit(
            Leg.LMTP, Envelope(b"list@example.org", (Recipient(b"anna@example.org"),)), queue_id=b"Q",
            attributes={}, done=lambda error: (errors.append(error), done.set())[1],
        )  # fmt: skip
        assert done.wait(60)
        assert errors == [None]
        self.mails[delivery.id] = message
        return delivery

    def fact(self, *facts: Erasure | Expiry | Hold) -> None:
        done = threading.Event()
        self.store.writer.submit(Submission(entries=list(facts), done=lambda _e: done.set()))
        assert done.wait(60)
        self.store.settle_index()

    def erase(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            self.fact(
                Erasure(
                    delivery=delivery.id, time_us=now_us(), owner="dpo", reason="asked",
                    content=self.store.tombstone(delivery.content), facts=self.store.traces(delivery.id),
                )
            )  # fmt: skip
            del self.mails[delivery.id]

    def compact(self, options: CompactOptions = ALL) -> CompactReport:
        self.store.settle_index()
        self.store.writer.roll()
        self.store.settle_index()
        return Compactor(self.store, options).run()

    def verify(self) -> None:
        """Everything is there, byte for byte, once, and the check finds nothing."""
        self.store.settle_index()
        found = {stored.delivery.id: stored for stored in self.store.deliveries(Query())}
        assert found.keys() == self.mails.keys()
        for id_, message in self.mails.items():
            assert b"".join(self.store.read(found[id_].delivery.content)) == message
        assert list(check(self.store, Checked(), read_data=True)) == []

    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.path)
        self.store.start_writing("host", reserve_bytes=0, pack_bytes=64 << 10)
        assert self.store.damage == []

    def stored_bytes(self) -> bytes:
        """All that is in the packs, unpacked."""
        found = []
        for path in self.path.glob("streams/*/*.pack"):
            for record in scan_records(path, read_pack_header(path).key(), layout.PACK_HEADER_BYTES):
                assert not hasattr(record, "what")
                if record.type != layout.RecordType.COMMIT:
                    found.append(layout.block_bytes(record.type, record.payload))
        return b"\0".join(found)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Mailbox]:
    mailbox = Mailbox(tmp_path / "store")
    yield mailbox
    mailbox.store.close()


def mail(number: int, text: bytes = b"") -> bytes:
    body = b"".join(
        b"line %d of mail %d, of no great interest to anybody\r\n" % (n, number) for n in range(30)
    )
    return (
        b"Received: from a by b with ESMTP id ABC%d; now\r\nFrom: anna@example.org\r\n"
        b"Subject: Re: [list] subject %d\r\nMessage-ID: <%d@example.org>\r\n\r\n"
        % (number, number % 7, number)
    ) + (text or body)


def test_everything_is_there_and_smaller(box: Mailbox) -> None:
    for number in range(400):
        box.put(mail(number))
    before = box.store.pack_bytes()
    report = box.compact()
    assert report.units >= 1
    assert report.skipped == []
    assert box.store.pack_bytes() < before / 2
    box.verify()
    parts = stream_files(box.directory).parts
    assert isinstance(parts[0], Segment)
    assert all_packs(box.directory) == sorted(stream_files(box.directory).packs())
    box.put(mail(1000))
    box.put(mail(5))  # known to the segment: only the delivery is new
    box.verify()
    box.reopen()
    box.verify()


def test_lookups_after_compaction_and_after_a_rebuild(box: Mailbox) -> None:
    for number in range(50):
        box.put(mail(number))
    box.compact()
    for _ in range(2):
        terms = ((Term.MESSAGE_ID, b"<7@example.org>"),)
        assert [s.delivery.message_id for s in box.store.deliveries(Query(terms=terms))] == [terms[0][1]]
        terms = ((Term.RECIPIENT, b"anna@example.org"),)
        assert len(list(box.store.deliveries(Query(terms=terms)))) == 50
        stats = box.store.stats().counters
        assert (stats.deliveries, stats.contents) == ({"lmtp": 50}, 50)
        box.store.close()
        shutil.rmtree(box.path / "index")
        box.store = Store.open(box.path)
        box.store.start_writing("host", reserve_bytes=0)


def test_again_and_again(box: Mailbox) -> None:
    """Segments are merged into larger ones, and the stream goes on behind each."""
    for turn in range(4):
        for number in range(40):
            box.put(mail(100 * turn + number))
        box.compact()
        box.verify()
    segments = [part for part in stream_files(box.directory).parts if isinstance(part, Segment)]
    assert len(segments) == 1
    box.reopen()
    box.verify()


def test_small_packs_wait_until_there_is_more(box: Mailbox) -> None:
    box.put(mail(1))
    box.store.writer.roll()
    box.store.settle_index()
    assert Compactor(box.store).plan() == []


def test_a_dry_run_changes_nothing(box: Mailbox) -> None:
    for number in range(20):
        box.put(mail(number))
    box.store.writer.roll()
    box.store.settle_index()
    before = all_packs(box.directory)
    units = Compactor(box.store, ALL).plan()
    assert [unit.range() for unit in units] == [(1, 1)]
    assert all_packs(box.directory) == before


def test_what_was_erased_is_gone_and_nothing_else(box: Mailbox) -> None:
    shared = b"a text that two mails share, long enough to be a piece of its own\r\n" * 20
    secret = b"the very secret words of this one mail, said over and over again\r\n" * 20
    both = b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n'
    kept = [box.put(mail(n)) for n in range(20)]
    first = box.put(mail(90, shared) + secret)
    other = box.put(b"Subject: other\r\n" + both + shared + b"\r\n--b--\r\n")
    box.compact()
    assert b"very secret words" in box.stored_bytes()
    box.erase(first)
    assert b"very secret words" in box.stored_bytes()  # until compaction
    with pytest.raises(RemovedError, match="was erased"):
        box.store.delivery(first.id)
    assert box.store.was_erased(first.content)
    report = box.compact(CompactOptions())  # an erasure makes its pack due
    assert report.dropped_messages == 1
    stored = box.stored_bytes()
    assert b"very secret words" not in stored
    assert b"two mails share" in stored
    assert b"<90@example.org>" not in stored
    box.verify()
    with pytest.raises(NotFoundError):
        b"".join(box.store.read(first.content))
    box.erase(other, kept[3])
    box.compact(CompactOptions())
    assert b"two mails share" not in box.stored_bytes()
    assert b"<3@example.org>" not in box.stored_bytes()
    box.verify()
    box.reopen()
    box.verify()
    assert box.store.was_erased(first.content)
    shutil.rmtree(box.path / "index")
    box.reopen()
    box.verify()


def test_a_chunk_in_an_older_segment_goes_with_its_last_message(box: Mailbox) -> None:
    """Shared between two segments: the later one's compaction makes the older one due again."""
    text = b"shared between an older and a later mail, and then by nobody at all\r\n" * 20
    first = box.put(mail(1, text))
    box.put(mail(2))
    box.compact(CompactOptions(everything=True, unit_bytes=1))
    later = box.put(mail(3, text))
    for number in range(4, 200):
        box.put(mail(number))
    box.compact(CompactOptions(everything=True, unit_bytes=1))
    assert len([p for p in stream_files(box.directory).parts if isinstance(p, Segment)]) > 1
    box.erase(first)
    box.compact(CompactOptions(unit_bytes=1))
    assert b"then by nobody" in box.stored_bytes()
    box.verify()
    box.erase(later)
    box.compact(CompactOptions(unit_bytes=1))
    assert b"then by nobody" not in box.stored_bytes()
    box.verify()


def test_one_of_two_deliveries_of_a_message_is_erased(box: Mailbox) -> None:
    first, second = box.put(mail(1)), box.put(mail(1))
    assert first.content == second.content
    box.erase(first)
    report = box.compact()
    assert report.dropped_messages == 0
    box.verify()


def test_what_was_erased_and_comes_again_is_there_again(box: Mailbox) -> None:
    box.put(mail(0))
    first = box.put(mail(1))
    box.erase(first)
    box.put(mail(1))  # before compaction: shares the recipe
    box.compact()
    box.verify()
    box.erase(*[d.delivery for d in box.store.deliveries(Query()) if d.delivery.content == first.content])
    box.compact()
    box.put(mail(1))  # after: stored anew
    box.verify()
    box.reopen()
    box.verify()


def test_expired_mail_goes_and_its_facts_keep_their_leaves(box: Mailbox) -> None:
    deliveries = [box.put(mail(n)) for n in range(30)]
    old = deliveries[:10]
    box.fact(Expiry(time_us=now_us(), rule="1d", owner="serve", deliveries=tuple(d.id for d in old)))
    for delivery in old:
        del box.mails[delivery.id]
    box.compact(CompactOptions(everything=True))
    stored = box.stored_bytes()
    assert b"<5@example.org>" not in stored
    assert b"<15@example.org>" in stored
    box.verify()
    with pytest.raises(RemovedError, match="has expired"):
        box.store.delivery(old[0].id)
    assert box.store.stats().counters.expired == 10


def test_what_is_held_stays(box: Mailbox) -> None:
    """A hold wins over what had expired before it, as long as compaction has not been there."""
    delivery = box.put(mail(1))
    box.put(mail(2))
    box.fact(Expiry(time_us=now_us(), rule="1d", owner="serve", deliveries=(delivery.id,)))
    told = Filter(to="anna@example.org").told()
    box.fact(Hold(name="case", time_us=now_us(), owner="legal", reason="court", matches=told))
    box.compact()
    assert b"<1@example.org>" in box.stored_bytes()
    box.fact(Hold(name="case", time_us=now_us(), owner="legal", reason="over", released=True))
    box.compact()
    assert b"<1@example.org>" not in box.stored_bytes()


def test_a_message_on_its_way_does_not_share_what_is_condemned(box: Mailbox) -> None:
    """Its first part was taken as known before the part was condemned: it must fail, not be torn."""
    text = b"x" * 300_000
    box.put(b"Subject: a\r\n\r\n" + text)
    chunks = _chunks_of(box)
    ingest = box.store.begin()
    ingest.feed(b"Subject: a\r\n\r\n" + text)
    ingest.finish()
    taken = threading.Event()
    ingest.hand_over(lambda _e: taken.set())
    assert taken.wait(60)
    with box.store.index.update() as update:
        update.condemn(chunks, b"t" * 8, "host")
    outcome: list[StoreError | None] = []
    done = threading.Event()
    ingest.commit(
        Leg.LMTP, Envelope(b"", (Recipient(b"a@b"),)), queue_id=b"", attributes={},
        done=lambda error: (outcome.append(error), done.set())[1],
    )  # fmt: skip
    assert done.wait(60)
    assert isinstance(outcome[0], StoreError)
    box.put(b"Subject: a\r\n\r\n" + text)  # the next try stores it anew
    box.verify()


def _chunks_of(box: Mailbox) -> list[bytes]:
    box.store.settle_index()
    (delivery,) = box.mails
    recipe = box.store.recipe(box.store.delivery(delivery).delivery.content)
    return [*(chunk for run in recipe.runs for chunk in run.chunks), recipe.id]


def test_who_looks_for_long_keeps_garbage_from_going(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.garbage._READERS_WAIT_S", 0.2)
    monkeypatch.setattr("store.compact._READERS_WAIT_S", 0.2)
    box.erase(box.put(mail(1)))
    box.put(mail(2))
    box.store.settle_index()
    with box.store.index.read():
        report = box.compact()
    assert report.dropped_messages == 0
    assert "looks at the index" in report.skipped[0]
    assert box.compact(CompactOptions()).dropped_messages == 1, "it is due still"
    with box.store.index.read() as snapshot:
        assert not list(snapshot.meta_range(b"condemned:"))
    box.verify()


def test_a_damaged_pack_is_left_as_it_is(box: Mailbox) -> None:
    for number in range(20):
        box.put(mail(number))
    box.store.writer.roll()
    box.store.settle_index()
    path = pack_path(box.directory, 1)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    report = Compactor(box.store, ALL).run()
    assert report.units == 0
    assert len(report.skipped) == 1
    assert path.exists()
    assert all_packs(box.directory) == [1, 2]


def test_what_a_killed_run_left_is_cleared_away(box: Mailbox) -> None:
    for number in range(20):
        box.put(mail(number))
    box.compact()
    left = pack_path(box.directory, layout.FIRST_COMPACTED + 77)
    left.write_bytes(b"half a pack")
    manifest = box.directory / ".0000000001-0000000009.segment.new"
    earlier = box.directory / "0000000001-0000000008.segment.new"  # an earlier version's
    for path in (manifest, earlier):
        path.write_bytes(b"half a manifest")
    box.verify()
    box.compact()
    assert not left.exists()
    assert not manifest.exists()
    assert not earlier.exists()
    box.verify()


def test_a_run_that_was_killed_before_the_index_knew(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest has its name and nothing else has happened: the next look at the store finishes it."""
    for number in range(30):
        box.put(mail(number))

    def killed(*_args: object, **_how: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("store.view.View.adopt", killed)
        with pytest.raises(KeyboardInterrupt):
            box.compact()
    assert pack_path(box.directory, 1).exists()
    box.reopen()
    box.verify()
    assert not set(all_packs(box.directory)) <= stream_files(box.directory).packs()
    box.compact()
    assert set(all_packs(box.directory)) == stream_files(box.directory).packs()
    box.verify()


def test_stopped_at_every_step(box: Mailbox) -> None:
    """Whatever step it is stopped at: nothing lost, nothing left over, and the next run ends well."""
    for number in range(60):
        box.put(mail(number))
    steps = 0

    class StopError(Exception):
        pass

    for stop_at in range(100):
        steps = 0

        def step(_size: int, stop_at: int = stop_at) -> None:
            nonlocal steps
            steps += 1
            if steps > stop_at:
                raise StopError

        try:
            box.compact(CompactOptions(everything=True, block_bytes=16 << 10, step=step))
            break
        except StopError:
            assert set(all_packs(box.directory)) == stream_files(box.directory).packs()
    else:
        pytest.fail("never came to an end")
    assert stop_at > 5
    box.verify()


@pytest.mark.parametrize("again", [False, True], ids=["packs", "a segment"])
def test_stopped_when_it_counts_already(box: Mailbox, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """Ctrl-C, or an error of the disk, between the manifest's rename and its sync: its packs stay."""
    gone = [box.put(mail(number)) for number in range(60)]
    if again:
        box.compact()
    box.erase(*gone[:5])

    def interrupted(_directory: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("store.files.sync_directory", interrupted)
        with pytest.raises(KeyboardInterrupt):
            box.compact()
    assert stream_files(box.directory).whole
    for part in stream_files(box.directory).parts:
        assert set(packs_of(part)) <= set(all_packs(box.directory))
    box.put(mail(0))  # shares what was dropped
    box.compact()
    assert set(all_packs(box.directory)) == stream_files(box.directory).packs()
    box.verify()


def test_stopped_when_its_first_pack_has_just_been_made(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(StreamLog):
        def __init__(self, *arguments: Any, **how: Any) -> None:
            super().__init__(*arguments, **how)
            self.close()
            raise KeyboardInterrupt

    for number in range(60):
        box.put(mail(number))
    with monkeypatch.context() as patched:
        patched.setattr("store.compact.StreamLog", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            box.compact()
    assert set(all_packs(box.directory)) == stream_files(box.directory).packs()
    box.compact()
    box.verify()


def test_capture_and_reading_go_on(box: Mailbox) -> None:
    """Two threads: one captures and reads what it finds at random, the other compacts again and again."""
    for number in range(100):
        box.put(mail(number))
    stop = threading.Event()
    faults: list[BaseException] = []

    def compacting() -> None:
        try:
            while not stop.is_set():
                box.compact()
        except BaseException as exc:  # noqa: BLE001 - whatever it is must fail the test
            faults.append(exc)

    thread = threading.Thread(target=compacting)
    thread.start()
    try:
        for number in range(100, 400):
            box.put(mail(number % 250))
            box.store.settle_index()
            for id_ in list(box.mails)[:: max(1, len(box.mails) // 5)]:
                content = box.store.delivery(id_).delivery.content
                assert b"".join(box.store.read(content)) == box.mails[id_]
    finally:
        stop.set()
        thread.join()
    assert faults == []
    box.verify()


def test_streams_that_nobody_writes_can_be_compacted_whole(tmp_path: Path) -> None:
    box = Mailbox(tmp_path / "store")
    for number in range(20):
        box.put(mail(number))
    box.store.close()
    with Store.open(box.path) as store:
        close_open_packs(store)
        report = Compactor(store, ALL).run()
        assert report.packs_before == 1
        close_open_packs(store)  # the open pack is empty: nothing to end
        assert len(all_packs(box.directory)) == 2
    box.store = Store.open(box.path)
    box.verify()
    box.store.start_writing("host", reserve_bytes=0)
    box.put(mail(77))
    box.verify()
    box.store.close()


def test_the_content_of_every_message_is_proved(box: Mailbox) -> None:
    delivery = box.put(mail(1))
    box.compact()
    assert blake3(b"".join(box.store.read(delivery.content))).digest() == delivery.content


# -- what a hostile review found


def test_what_one_condemned_another_does_not_pardon(box: Mailbox) -> None:
    delivery = box.put(mail(1))
    box.store.settle_index()
    with box.store.index.update() as update:
        update.condemn([delivery.content], b"a" * 8, "other")
    box.put(mail(2))
    box.compact()
    with box.store.index.read() as snapshot:
        assert snapshot.is_condemned(delivery.content)
    with box.store.index.update() as update:
        update.clear()
        assert update.is_condemned(delivery.content), "an index made anew forgets what is relied on"


def test_nothing_is_dropped_while_a_stream_is_damaged(box: Mailbox) -> None:
    """What the damaged pack needs cannot be told, and the pack may come back from a copy."""
    shared = b"said in the mail that is erased and in one of another stream, too\r\n" * 20
    erased = box.put(mail(1, shared))
    box.put(mail(2))
    box.store.settle_index()
    box.store.close()
    with Store.open(box.path) as store:
        store.start_writing("other", reserve_bytes=0)
        done = threading.Event()
        ingest = store.begin()
        ingest.feed(mail(3, shared))
        kept = ingest.commit(
            Leg.LMTP, Envelope(b"", (Recipient(b"carl@example.org"),)), queue_id=b"", attributes={},
            done=lambda _e: done.set(),
        )  # fmt: skip
        assert done.wait(60)
        store.writer.roll()
    pack = pack_path(box.path / "streams" / "other", 1)
    whole = pack.read_bytes()
    pack.unlink()
    box.store = Store.open(box.path)
    box.store.start_writing("host", reserve_bytes=0)
    box.mails[erased.id] = b""
    box.erase(erased)
    report = box.compact(CompactOptions())
    assert report.units == 0
    assert "damaged" in report.skipped[0]
    pack.write_bytes(whole)
    box.store.close()
    box.store = Store.open(box.path)
    assert b"".join(box.store.read(kept.content)) == mail(3, shared)


def test_a_lost_manifest_takes_nothing_with_it(box: Mailbox) -> None:
    for number in range(20):
        box.put(mail(number))
    box.compact()
    for number in range(20, 40):
        box.put(mail(number))
    (manifest,) = box.directory.glob("*.segment")
    whole = manifest.read_bytes()
    manifest.unlink()
    box.compact()
    assert pack_path(box.directory, layout.FIRST_COMPACTED).exists()
    manifest.write_bytes(whole)
    box.store.close()
    box.store = Store.open(box.path)
    for id_, message in box.mails.items():
        assert b"".join(box.store.read(box.store.delivery(id_).delivery.content)) == message


def test_killed_before_the_index_knew_of_a_segment_made_again(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is not emptied for it: the old segment's packs are stood for as those of the writer are."""
    for number in range(30):
        box.put(mail(number))
    box.compact()

    def killed(*_args: object, **_how: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("store.view.View.adopt", killed)
        with pytest.raises(KeyboardInterrupt):
            box.compact()
    with monkeypatch.context() as patch:
        patch.setattr("store.update.Update.clear", killed)
        box.reopen()
    box.verify()


def test_a_recipe_in_another_segment_goes_too(box: Mailbox) -> None:
    """The same mail to two people: its recipe lies with the first delivery, which is erased first."""
    secret = b"to two people the same words, and a great many of them indeed\r\n" * 20
    first = box.put(mail(1, secret))
    box.put(mail(2))
    box.compact(CompactOptions(everything=True, unit_bytes=1))
    second = box.put(mail(1, secret))
    box.put(mail(3))
    box.erase(first)
    box.compact(CompactOptions(unit_bytes=1))
    assert b"two people the same" in box.stored_bytes()
    box.erase(second)
    box.compact(CompactOptions(unit_bytes=1))
    assert b"two people the same" not in box.stored_bytes()
    box.verify()


def test_an_erasure_read_before_its_mail(box: Mailbox) -> None:
    """When the index is made anew, a stream whose name sorts first may tell of mail that is yet to come."""
    secret = b"erased by an operator, whose stream is read before that of the mail\r\n" * 20
    delivery = box.put(mail(1, secret))
    box.put(mail(2))
    box.compact()
    box.store.close()
    with Store.open(box.path) as store:
        store.start_writing("a-operator", reserve_bytes=0)
        done = threading.Event()
        tombstone = store.tombstone(delivery.content)
        erasure = Erasure(
            delivery=delivery.id, time_us=now_us(), owner="dpo", reason="asked", content=tombstone
        )
        store.writer.submit(Submission(entries=[erasure], done=lambda _e: done.set()))
        assert done.wait(60)
    del box.mails[delivery.id]
    shutil.rmtree(box.path / "index")
    box.store = Store.open(box.path)
    box.store.start_writing("host", reserve_bytes=0)
    box.compact(CompactOptions())
    assert b"erased by an operator" not in box.stored_bytes()
    box.verify()


def test_no_room_for_a_second_copy(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        box.put(mail(number))
    monkeypatch.setattr("store.compact._ROOM_BYTES", 1 << 60)
    report = box.compact()
    assert "not enough free space" in report.skipped[0]
    box.verify()


def test_a_failed_run_leaves_nothing(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        box.put(mail(number))
    box.compact()
    box.erase(box.put(mail(50)))

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("store.segments.write", full)
        with pytest.raises(OSError, match="No space"):
            box.compact()
    assert set(all_packs(box.directory)) == stream_files(box.directory).packs()
    with box.store.index.read() as snapshot:
        assert not snapshot.has_condemned()
    box.compact()
    box.verify()


def test_a_pack_ends_within_a_group(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of large messages on their way must not make a pack that the index cannot name places in."""
    monkeypatch.setattr("store.writer._MOST_BYTES", 100_000)
    noise = [bytes(range(256)) * 4 * (n + 1) + blake3(b"%d" % n).digest(length=700_000) for n in range(4)]
    for body in noise:
        box.put(b"Subject: large\r\n\r\n" + body)
    box.verify()
    assert max(pack_path(box.directory, n).stat().st_size for n in all_packs(box.directory)) < 1_500_000
    box.compact()
    box.verify()
    box.reopen()
    box.verify()
