"""What is captured is in the replica, round by round, whatever happens to host, files and network."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from store.check import check
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.errors import DamagedError, StoreError
from store.findings import Checked
from store.index_copy import IndexCopy, copy_of
from store.notes import SignKey
from store.replicas import ship
from store.replicas.chain import RivalError
from store.replicas.errors import DiffersError
from store.replicas.fetch import Fetching
from store.replicas.layout import decode_round
from store.replicas.prune import prune
from store.replicas.reader import Replica
from store.replicas.ship import ShipOptions, Shipper
from store.replicas.source import Listed, Target
from store.retention import erase
from store.store import Store
from tests.store.conftest import put_message
from tests.store.test_replica_fetch import Shelf
from tests.store.test_store import big_message


class Bucket(Shelf):
    """A shelf on which objects can be put, once; `fail` so many requests from now."""

    def __init__(self) -> None:
        super().__init__()
        self.puts = 0
        self.put_bytes = 0
        self.fail = -1

    def create(self, name: str, data: bytes) -> bool:
        if self.fail == 0:
            raise StoreError("the bucket does not answer")
        self.fail -= self.fail > 0
        self.puts += 1
        if name in self.objects:
            if self.objects[name] != data:
                raise DiffersError(f"{name} is there with other bytes")
            return False
        self.put_bytes += len(data)
        self.objects[name] = data
        return True

    def holds(self, name: str, data: bytes) -> bool:
        return self.objects.get(name) == data

    def listed(self, prefix: str) -> Iterator[Listed]:
        return (Listed(name, size, 0) for name, size in self.list(prefix))

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            del self.objects[name]


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


def shipper(path: Path, target: Target, host: str = "host", **how: Any) -> Shipper:
    return Shipper(path, target, host, ShipOptions(**how))


def mails(path: Path) -> set[bytes]:
    with Store.open(path) as opened:
        assert opened.damage == []
        assert list(check(opened, Checked(), read_data=True)) == []
        return {b"".join(opened.read(found.delivery.content)) for found in opened.deliveries(Query())}


def restored(bucket: Bucket, where: Path) -> set[bytes]:
    shutil.rmtree(where, ignore_errors=True)
    fetched = Fetching(Replica(bucket), where).run()
    assert fetched.faults == []
    return mails(where)


def test_rounds(store: Store, path: Path, bucket: Bucket, tmp_path: Path) -> None:
    shipping = shipper(path, bucket)
    assert shipping.round().full
    expected: set[bytes] = set()
    for number in range(5):
        mail = b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(number * 1000)
        put_message(store, mail)
        expected.add(mail)
        puts = bucket.puts
        shipped = shipping.round()
        assert (bucket.puts - puts, shipped.objects, shipped.full) == (1, 1, False)
        assert (shipping.lag_bytes, shipping.lag_s()) == (0, 0.0)
        assert restored(bucket, tmp_path / "again") == expected
    puts = bucket.puts
    assert shipping.round().objects == 0
    assert bucket.puts == puts, "nothing new, nothing sent"


def test_large_mail_goes_in_pieces(store: Store, path: Path, bucket: Bucket, tmp_path: Path,
                                   ) -> None:  # fmt: skip
    mail = b"Subject: x\r\n\r\n" + random.Random(1).randbytes(3 << 20)
    put_message(store, mail)
    shipping = shipper(path, bucket, piece_bytes=1 << 20)
    shipping.round()
    put_message(store, mail + b"more")
    put_message(store, b"Subject: y\r\n\r\n" + random.Random(2).randbytes(3 << 20))
    shipping.round()
    assert max(map(len, bucket.objects.values())) <= (1 << 20) + 5000
    assert len(restored(bucket, tmp_path / "again")) == 3


def test_it_goes_on_after_a_restart(store: Store, path: Path, bucket: Bucket, tmp_path: Path) -> None:
    for number in range(6):
        put_message(store, b"Subject: %d\r\n\r\n" % number)
        shipping = shipper(path, bucket, rounds_between=2)
        shipping.round()
    assert len(restored(bucket, tmp_path / "again")) == 6
    assert shipping.contents.number > 6, "full rounds in between"


def test_a_bucket_that_fails_anywhere(store: Store, path: Path, bucket: Bucket, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(ship, "INLINE_BYTES", 0)
    shipping = shipper(path, bucket, rounds_between=2)
    expected = set()
    for number in range(12):
        mail = b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(5000)
        put_message(store, mail)
        expected.add(mail)
        bucket.fail = number % 4
        try:
            shipping.round()
        except StoreError:
            sent = bucket.put_bytes
            bucket.fail = -1
            shipping.round()
            assert bucket.put_bytes > sent
        bucket.fail = -1
        assert restored(bucket, tmp_path / "again") == expected


def test_through_compaction_and_erasure(store: Store, path: Path, bucket: Bucket, tmp_path: Path) -> None:
    shipping = shipper(path, bucket)
    kept = {put_message(store, big_message(30_000, seed)).content for seed in range(6)}
    gone = put_message(store, b"Subject: to be forgotten\r\n\r\nsecret words")
    shipping.round()
    erase(store, [gone.id], owner="o", reason="r")
    store.writer.roll()
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=1)).run()
    shipping.round()
    contents = shipping.contents.stream("host")
    assert contents.segments
    assert 1 not in contents.packs, "the segment stands for it"
    assert len(restored(bucket, tmp_path / "again")) == len(kept)
    shipping.round(full=True)
    shipping.round(full=True)
    assert prune(bucket, "host") > 0
    assert len(restored(bucket, tmp_path / "again")) == len(kept)
    packs = {file.name: file.read_bytes() for file in path.glob("streams/*/*.pack")}
    pieces = b"".join(data for name, data in bucket.objects.items() if name.startswith("packs/"))
    assert len(pieces) <= sum(map(len, packs.values())), "nothing of what compaction replaced is left"


def test_two_hosts_under_one_name(store: Store, path: Path, bucket: Bucket, tmp_path: Path) -> None:
    put_message(store, b"Subject: 1\r\n\r\n")
    one, two = shipper(path, bucket), shipper(path, bucket)
    one.round()
    put_message(store, b"Subject: 2\r\n\r\n")
    with pytest.raises(RivalError, match="somebody else"):
        two.round()
    with Store.open(tmp_path / "other", create=True) as other:
        other.start_writing("host")
        with pytest.raises(RivalError, match="another store"):
            shipper(tmp_path / "other", bucket)


def test_a_damaged_piece_is_replaced_beside(store: Store, path: Path, bucket: Bucket, tmp_path: Path) -> None:
    mail = b"Subject: 1\r\n\r\n" + random.Random(1).randbytes(2 << 20)
    put_message(store, mail)
    shipper(path, Bucket()).round()
    first = Bucket()
    shipper(path, first).round()
    (name,) = (name for name in first.objects if name.startswith("packs/"))
    bucket.objects[name] = b"rotten"
    shipper(path, bucket).round()
    assert restored(bucket, tmp_path / "again") == {mail}


def test_signed(store: Store, path: Path, bucket: Bucket) -> None:
    key = SignKey.generate("host")
    put_message(store, b"Subject: 1\r\n\r\n")
    shipper(path, bucket, sign=key.sign).round()
    rounds = [data for name, data in bucket.objects.items() if name.startswith("hosts/")]
    assert [decode_round(data, key.verify_key).host for data in rounds] == ["host", "host"]


def test_a_torn_tail_stays_at_home(store: Store, path: Path, bucket: Bucket, tmp_path: Path) -> None:
    put_message(store, b"Subject: 1\r\n\r\n")
    store.settle_index()
    (pack,) = path.glob("streams/host/*.pack")
    whole = pack.stat().st_size
    with pack.open("ab") as file:
        file.write(b"MK\xa7\x01 half a record")
    shipping = shipper(path, bucket)
    shipping.round()
    assert shipping.contents.stream("host").end(int(pack.stem)) == whole
    assert len(restored(bucket, tmp_path / "again")) == 1


def test_a_lost_pack_takes_nothing_away(path: Path, bucket: Bucket, tmp_path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        put_message(store, b"Subject: 1\r\n\r\n")
        store.writer.roll()
        put_message(store, b"Subject: 2\r\n\r\n")
    shipping = shipper(path, bucket)
    shipping.round()
    min(path.glob("streams/host/*.pack")).unlink()
    shipping.round(full=True)
    assert len(restored(bucket, tmp_path / "again")) == 2


_WRITE = """
import sys
from pathlib import Path
from store.store import Store
from tests.store.conftest import put_message
with Store.open(Path(sys.argv[1]), create=True) as store:
    store.start_writing("host", pack_bytes=200_000)
    number = 0
    while True:
        put_message(store, b"Subject: %d\\r\\n\\r\\n" % number + bytes(range(256)) * (number % 50))
        print(number, flush=True)
        number += 1
"""


@pytest.fixture
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", _WRITE, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.crash
def test_the_host_is_killed_and_its_disk_is_gone(
    path: Path, bucket: Bucket, tmp_path: Path, writing: subprocess.Popen[str]
) -> None:
    """What was acknowledged before the last round began is in the replica."""
    shipping = shipper(path, bucket, rounds_between=5)
    acknowledged = 0
    assert writing.stdout
    for _ in range(12):
        acknowledged = int(writing.stdout.readline())
        shipping.round()
        time.sleep(0.05)
    os.kill(writing.pid, signal.SIGKILL)
    writing.wait()
    shutil.rmtree(path)
    there = {
        int(mail.split(b"\r\n")[0].removeprefix(b"Subject: ")) for mail in restored(bucket, tmp_path / "a")
    }
    assert set(range(acknowledged + 1)) <= there


def test_an_index_that_cannot_be_read_holds_up_nothing(
    store: Store, path: Path, bucket: Bucket, tmp_path: Path
) -> None:
    sent = {put_message(store, b"Subject: %d\r\n\r\nx" % number).id for number in range(20)}
    store.settle_index()

    def damaged() -> IndexCopy:
        raise DamagedError("the index is damaged")

    shipping = shipper(path, bucket, index=damaged)
    shipping.round()
    shipping.round(full=True)
    assert not shipping.round().more
    restored(bucket, tmp_path / "again")
    with Store.open(tmp_path / "again") as again:
        assert {found.delivery.id for found in again.deliveries(Query())} == sent


def test_a_run_that_is_cut_short_holds_up_nothing(store: Store, path: Path, bucket: Bucket) -> None:
    for number in range(400):
        put_message(store, b"Subject: %d\r\n\r\nx" % number)
    store.settle_index()
    copy = copy_of(store.index, store.view.names())
    for run in copy.runs:
        os.truncate(run.path, 0)
    assert copy.runs
    shipping = shipper(path, bucket, index=lambda: copy)
    assert shipping.round(full=True).full
    assert shipping.contents.index is None


def test_readers_do_not_wait_for_an_index_that_does_not_come(
    store: Store, path: Path, bucket: Bucket
) -> None:
    index: list[IndexCopy | None] = []
    shipping = shipper(path, bucket, index=lambda: index[-1])
    gone = [put_message(store, b"Subject: %d\r\n\r\nx" % number).id for number in range(20)]
    store.settle_index()
    index.append(copy_of(store.index, store.view.names()))
    shipping.round(full=True)
    assert shipping.contents.index
    index.append(None)  # sealed from now on, say
    erase(store, gone[:5], owner="o", reason="r")
    store.writer.roll()
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=1)).run()
    shipping.round()
    assert shipping.contents.regrouped
    assert shipping.round().full
    assert shipping.contents.index is None
    assert not shipping.round().full


def test_while_a_first_copy_is_on_its_way_each_round_is_one_object(
    store: Store, path: Path, bucket: Bucket
) -> None:
    """The index comes when all else is there; until then nothing is prepared for it."""
    for number in range(12):
        put_message(store, random.Random(number).randbytes(50_000))
        store.writer.roll()
    store.settle_index()
    shipping = shipper(
        path, bucket, index=lambda: copy_of(store.index, store.view.names()), piece_bytes=10_000, pieces_s=0.0
    )
    shipping.round()
    shipping.round()
    for _ in range(20):
        put_message(store, b"Subject: x\r\n\r\nx")
        shipped = shipping.round()
        assert shipped.more
        assert shipped.objects == 2, "a piece of what is old, and the round"


@pytest.mark.parametrize("is_full_due", [False, True])
def test_an_index_that_is_never_at_one_is_not_copied_again_and_again(
    store: Store, path: Path, bucket: Bucket, *, is_full_due: bool
) -> None:
    """It knows of a pack that is not here, and so never comes to be there."""
    copies = 0

    def copied() -> IndexCopy:
        nonlocal copies
        copies += 1
        return copy_of(store.index, store.view.names())

    def put() -> None:
        put_message(store, b"Subject: x\r\n\r\nx")
        store.settle_index()

    put()
    store.writer.roll()
    put()
    lost = min(path.glob("streams/host/*.pack"))
    lost.rename(path / "lost")
    shipping = shipper(path, bucket, index=copied, rounds_between=40 if is_full_due else 1000)
    fulls: list[int] = []
    for number in range(200):
        put()
        before = copies
        shipped = shipping.round()
        if copies == before:
            assert shipped.objects == 1, "nothing is prepared for a full round that does not come"
        if shipped.full:
            fulls.append(number)
    assert copies < 16
    assert len(fulls) == (3 if is_full_due else 1), "without an index, and late"
    (path / "lost").rename(lost)
    for _ in range(64):
        put()
        shipping.round()
    assert shipping.contents.index
    before = copies
    put()
    shipping.round()
    assert copies == before
