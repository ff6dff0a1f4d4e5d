"""Heads and proofs from the index, through all that may happen to packs: they stay what they were.

What would break these: a tree that counts a fact twice or not at all when groups come from the writer, a
scan, a segment or a rebuild; a block whose place is lost when packs are replaced; a proof of what was erased.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from pathlib import Path

import pytest

from store import heads, merkle, records
from store.check import Checked, check
from store.check_history import HistoryCheck
from store.compact import Compactor, close_open_packs
from store.deliveries import Query, RemovedError
from store.errors import DamagedError, NotFoundError
from store.evidence import GapError, NotUnderHeadError, StreamTree, continuation, head_of, prove
from store.facts import fact_groups
from store.heads import Head
from store.ids import DeliveryId
from store.notes import SignKey
from store.proofs import parse, parse_continuation
from store.rebuild import rebuild
from store.records import Envelope, Leg, Uncaptured
from store.retention import erase
from store.sealing import new_identity, parse_identities
from store.segments import pack_path, packs_of, stream_files
from store.store import Store
from store.writer import Submission
from tests.store.test_compact import ALL, Mailbox
from tests.support.mailstore import Filler


def facts_of(store: Store, name: str) -> list[bytes]:
    """All facts of a stream, read from its packs."""
    directory = store.path / "streams" / name
    found: list[bytes] = []
    for part in stream_files(directory).parts:
        for number in packs_of(part):
            for group in fact_groups(pack_path(directory, number), store.id, store.keyring):
                assert group.first == len(found)
                found += [fact.data for fact in group.facts if fact.data is not None]
    return found


def agrees(store: Store) -> Head:
    """The head from the index is that of the leaves in the packs, block by block."""
    store.settle_index()
    head = head_of(store)
    assert head.gaps == ()
    for stream in head.streams:
        leaves = [records.leaf(fact) for fact in facts_of(store, stream.name)]
        assert stream.facts == len(leaves)
        assert stream.root == merkle.root(len(leaves), merkle.of_leaves(leaves))
        with store.index.read() as snapshot:
            tree = StreamTree(store, snapshot, stream.name)
            for block in range(len(leaves) // 256 + 1):
                size = min(256, len(leaves) - 256 * block)
                if size:
                    assert list(tree.hashes(0, 256 * block, size)) == leaves[256 * block : 256 * block + size]
    assert list(HistoryCheck(store, head).run()) == []
    return head


def all_proved(store: Store, note: str, *, every: int = 1) -> int:
    """How many deliveries are proved under a head; each proof verifies, and says what the store says."""
    count = 0
    for number, stored in enumerate(store.deliveries(Query(newest_first=False))):
        if number % every:
            continue
        try:
            proof = prove(store, stored.delivery.id, under=note)
        except NotUnderHeadError:
            continue
        delivery, head = parse(proof.text()).verify()
        assert delivery == stored.delivery
        assert head.text() == note
        assert len(proof.text()) < 4096
        count += 1
    return count


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path / "store")


def test_through_compaction_erasure_rebuild_and_restart(mailbox: Mailbox) -> None:
    rng = random.Random(1)
    path = mailbox.path
    deliveries = [mailbox.put(b"Subject: %d\r\n\r\n" % n + rng.randbytes(200)) for n in range(700)]
    head = agrees(mailbox.store)
    note = head.text()
    assert all_proved(mailbox.store, note, every=7) == 100
    assert mailbox.compact().packs_before > 1
    assert agrees(mailbox.store).streams == head.streams, "compaction changes nothing in it"
    assert all_proved(mailbox.store, note, every=7) == 100
    erased = [deliveries[n] for n in (0, 255, 256, 300, 650)]
    mailbox.erase(*erased)
    mailbox.compact()
    later = agrees(mailbox.store)
    assert later.streams[0].facts == head.streams[0].facts + 5
    assert continuation(mailbox.store, note).faults() == []
    assert all_proved(mailbox.store, note, every=1) == 695
    with pytest.raises(RemovedError, match="was erased"):
        prove(mailbox.store, erased[1].id)
    check_ = HistoryCheck(mailbox.store, head)
    assert list(check_.run()) == []
    assert (check_.report.stubs, check_.report.facts) == (5, later.facts)
    (removed,) = check_.report.removed
    assert (removed.what, removed.owner, removed.reason, removed.deliveries) == ("erased", "dpo", "asked", 5)
    rebuild(mailbox.store)
    assert agrees(mailbox.store).streams == later.streams
    assert all_proved(mailbox.store, note, every=7) > 90
    mailbox.store.close()
    shutil.rmtree(path / "index")
    with Store.open(path) as store:
        assert agrees(store).streams == later.streams
        assert all_proved(store, later.text(), every=7) > 90
        assert list(check(store, Checked(), read_data=True)) == []


def test_a_head_in_the_middle_of_a_block_and_proofs_under_it(mailbox: Mailbox) -> None:
    notes = []
    for n in range(530):
        mailbox.put(b"Subject: %d\r\n\r\nbody\r\n" % n)
        if n in {0, 1, 254, 255, 256, 300, 511, 512}:
            mailbox.store.settle_index()
            notes.append((n + 1, head_of(mailbox.store).text()))
    agrees(mailbox.store)
    newest = None
    for count, note in notes:
        assert heads.parse(note).facts == count
        assert all_proved(mailbox.store, note, every=5) == -(-count // 5)
        made = continuation(mailbox.store, note)
        assert parse_continuation(made.text()).faults() == []
        newest = made.new
    mailbox.compact()
    assert newest is not None
    for count, note in notes:
        assert all_proved(mailbox.store, note, every=5) == -(-count // 5)
        assert continuation(mailbox.store, note).faults() == []
    with pytest.raises(NotUnderHeadError, match="came later"):
        prove(mailbox.store, list(mailbox.mails)[-1], under=notes[0][1])


def test_several_streams(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        put = Filler(store).put
        first = [put(b"a%d" % n, replies=(b"250 ok",)) for n in range(300)]
        store.settle_index()
    with Store.open(tmp_path / "store") as store:
        store.start_writing("other host %")
        put = Filler(store).put
        second = [put(b"b%d" % n) for n in range(40)]
        head = agrees(store)
        assert [(s.name, s.facts) for s in head.streams] == [("host", 600), ("other host %", 40)]
        assert heads.parse(head.text()) == head
        for delivery in (first[0], first[-1], second[0], second[-1]):
            assert prove(store, delivery.id).verify()[0].id == delivery.id
        close_open_packs(store)
        Compactor(store, ALL).run()
        assert agrees(store).streams == head.streams


def test_many_levels(tmp_path: Path) -> None:
    """Complete subtrees of 65,536 facts and above come from those below."""
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        put_facts(store, 66_000)
        head = agrees(store)
        assert head.facts == 66_000
        with store.index.read() as snapshot:
            number = int.from_bytes(records.blake3(b"host").digest(4), "big")
            assert [len(snapshot.tiles(number, level, 0, 300)) for level in (1, 2, 3)] == [257, 1, 0]


def put_facts(store: Store, count: int) -> None:
    """So many small facts, quickly."""
    left = count
    while left:
        some = min(left, 2000)
        facts = [
            Uncaptured(time_us=n, leg=Leg.LMTP, envelope=Envelope(b"", ()), queue_id=b"", reason="")
            for n in range(some)
        ]
        done = threading.Event()
        store.writer.submit(Submission(entries=list(facts), done=lambda _e, done=done: done.set()))  # type: ignore[misc]
        assert done.wait(60)
        left -= some


def test_signed(mailbox: Mailbox) -> None:
    delivery = mailbox.put(b"Subject: x\r\n\r\n")
    mailbox.store.settle_index()
    key = SignKey.generate("mx1.example.org")
    proof = parse(prove(mailbox.store, delivery.id, sign=key.sign).text())
    assert proof.verify()[0] == delivery
    assert heads.parse(key.verify_key.verify(proof.head)).facts == 1
    assert all_proved(mailbox.store, heads.parse(key.verify_key.verify(proof.head)).text()) == 1


def test_nothing_there_yet(mailbox: Mailbox) -> None:
    assert head_of(mailbox.store).streams == ()
    assert continuation(mailbox.store, head_of(mailbox.store).text()).faults() == []
    with pytest.raises(NotFoundError):
        prove(mailbox.store, DeliveryId(b"x" * 16))


def test_a_gap_is_told(mailbox: Mailbox) -> None:
    """A pack is lost and the index with it: what came after cannot be vouched for."""
    for n in range(200):
        mailbox.put(b"Subject: %d\r\n\r\n" % n + random.Random(n).randbytes(2000))
    mailbox.store.settle_index()
    before = head_of(mailbox.store)
    last = list(mailbox.mails)[-1]
    mailbox.store.close()
    shutil.rmtree(mailbox.path / "index")
    lost = pack_path(mailbox.directory, 2)
    kept = lost.read_bytes()
    lost.unlink()
    with Store.open(mailbox.path) as store:
        assert head_of(store).gaps == ("host",)
        assert heads.parse(head_of(store).text()).gaps == ("host",)
        with pytest.raises(GapError, match="lost facts"):
            prove(store, last)
        (fault,) = continuation(store, before.text()).faults()
        assert "has lost facts" in fault
        found = list(HistoryCheck(store, before).run())
        assert any("missing or damaged" in finding.what for finding in found)
    lost.write_bytes(kept)
    shutil.rmtree(mailbox.path / "index")
    with Store.open(mailbox.path) as store:
        assert head_of(store).streams == before.streams
        assert prove(store, last).verify()


def test_a_damaged_commit_is_a_gap(mailbox: Mailbox) -> None:
    for n in range(3):
        mailbox.put(b"Subject: %d\r\n\r\n" % n)
    mailbox.store.settle_index()
    before = head_of(mailbox.store)
    mailbox.store.close()
    pack = pack_path(mailbox.directory, 1)
    whole = pack.read_bytes()
    kinds = set()
    for at in range(176, len(whole), 41):
        shutil.rmtree(mailbox.path / "index")
        pack.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with Store.open(mailbox.path) as store:
            head = head_of(store)
            # A chunk may be damaged while all facts are there; of these none may be lost in silence.
            same = head.streams == before.streams
            assert bool(continuation(store, before.text()).faults()) != same, at
            found = list(HistoryCheck(store, before).run())
            # Without its commit the index cannot number a group, while the next commit vouches for both.
            assert found == [] if same else found or head.gaps, at
            kinds.add((same, bool(head.gaps)))
            for stored in store.deliveries(Query()):
                try:
                    prove(store, stored.delivery.id).verify()
                except (GapError, DamagedError):
                    continue
                assert not head.gaps
    assert kinds == {(True, False), (False, True), (False, False)}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_in_whatever_order(tmp_path: Path, seed: int) -> None:
    """Mail in two streams, erasures, compaction, rebuilds, restarts and lost indexes: every head that was
    taken on the way is continued, and proves what it proved."""
    rng = random.Random(seed)
    path = tmp_path / "store"
    kept: list[str] = []
    alive: set[DeliveryId] = set()
    stream = "one"
    for _ in range(12):
        with Store.open(path, create=True) as store:
            store.start_writing(stream, pack_bytes=32 << 10)
            put = Filler(store).put
            for _ in range(rng.randrange(1, 120)):
                replies = (b"250 ok",) * rng.randrange(2)
                alive.add(put(rng.randbytes(rng.randrange(1, 300)), replies=replies).id)
            store.settle_index()
            for _ in range(rng.randrange(3)):
                gone = rng.choice(sorted(alive))
                alive.discard(gone)
                erase(store, [gone], owner="dpo", reason="asked")
            kept.append(agrees(store).text())
            match rng.randrange(4):
                case 0:
                    close_open_packs(store)
                    store.writer.roll()
                    store.settle_index()
                    Compactor(store, ALL).run()
                case 1:
                    rebuild(store)
                case 2:
                    stream = rng.choice(["one", "two"])
            for note in rng.sample(kept, min(3, len(kept))):
                made = continuation(store, note)
                assert parse_continuation(made.text()).faults() == []
                assert list(HistoryCheck(store, heads.parse(note)).run()) == []
                for delivery in rng.sample(sorted(alive), min(4, len(alive))):
                    with contextlib.suppress(NotUnderHeadError):
                        assert parse(prove(store, delivery, under=note).text()).verify()[0].id == delivery
        if rng.randrange(4) == 0:
            shutil.rmtree(path / "index")
    with Store.open(path) as store:
        agrees(store)
        assert list(check(store, Checked(), read_data=True)) == []
        assert all(prove(store, delivery).verify() for delivery in rng.sample(sorted(alive), 10))


def test_while_mail_comes_and_packs_are_replaced(mailbox: Mailbox) -> None:
    for n in range(300):
        mailbox.put(b"Subject: %d\r\n\r\n" % n + random.Random(n).randbytes(500))
    mailbox.store.settle_index()
    note = head_of(mailbox.store).text()
    ids = list(mailbox.mails)
    ended = threading.Event()
    faults: list[BaseException] = []

    def look() -> None:
        rng = random.Random(1)
        while not ended.is_set():
            try:
                assert prove(mailbox.store, rng.choice(ids), under=note).verify()
                assert prove(mailbox.store, rng.choice(ids)).verify()
                assert continuation(mailbox.store, note).faults() == []
                assert list(HistoryCheck(mailbox.store, heads.parse(note)).run()) == []
            except BaseException as exc:  # noqa: BLE001 - told below
                faults.append(exc)
                return

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for n in range(4):
            for m in range(30):
                mailbox.put(b"Subject: later %d %d\r\n\r\n" % (n, m) + random.Random(m).randbytes(300))
            mailbox.compact()
    finally:
        ended.set()
        looking.join()
    assert faults == []
    agrees(mailbox.store)


def test_a_sealed_store(tmp_path: Path) -> None:
    """The history is vouched for and compared without any identity; a proof opens what it shows."""
    secret, public = new_identity()
    key = parse_identities(secret.encode(), "test", lambda: None)
    path = tmp_path / "store"
    with Store.open(path, create=True, recipients=(public,), identities=key) as store:
        store.start_writing("host", pack_bytes=64 << 10)
        put = Filler(store).put
        ids = [put(b"%d" % n * 50, replies=(b"250 ok",)).id for n in range(300)]
        store.settle_index()
        opened = agrees(store)
        assert prove(store, ids[7]).verify()[0].id == ids[7]
    for keep_index in (True, False):
        if not keep_index:
            shutil.rmtree(path / "index")
        with Store.open(path) as store:
            assert store.blind
            assert head_of(store).streams == opened.streams
            blind = HistoryCheck(store, opened)
            assert list(blind.run()) == []
            assert (blind.report.facts, blind.report.sealed) == (600, 600)
            assert continuation(store, opened.text()).faults() == []
            assert list(check(store, Checked())) == []
    with Store.open(path, identities=key) as store:
        assert agrees(store).streams == opened.streams
        assert prove(store, ids[299], under=opened.text()).verify()[0].id == ids[299]
        store.start_writing("operator")
        erase(store, [ids[3]], owner="dpo", reason="asked")
        store.settle_index()
        close_open_packs(store)
        assert Compactor(store, ALL).run().dropped_messages == 1
        later = agrees(store)
        check_ = HistoryCheck(store, opened)
        assert list(check_.run()) == []
        assert check_.report.stubs == 2
        assert list(check(store, Checked(), read_data=True)) == []
    shutil.rmtree(path / "index")
    with Store.open(path) as store:
        assert head_of(store).streams == later.streams
        assert list(HistoryCheck(store, opened).run()) == []
