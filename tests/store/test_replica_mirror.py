"""A replica read where it lies: every message right, and only what is read fetched."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from store.compact import CompactOptions, Compactor
from store.deliveries import Query, RemovedError
from store.errors import DamagedError, StoreError
from store.index_copy import copy_of
from store.replicas import hollow, index_files
from store.replicas.errors import MissingObjectError
from store.replicas.layout import index_under, round_name
from store.replicas.mirror import Mirror
from store.replicas.reader import Replica
from store.replicas.ship import ShipOptions, Shipper
from store.retention import erase
from store.store import Store
from store.update import Update
from tests.store.conftest import put_message
from tests.store.test_replica_ship import Bucket


class Counting(Bucket):
    """Counts the bytes that were asked for, whole objects too."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def get(self, name: str) -> bytes:
        data = super().get(name)
        self.asked += len(data)
        return data

    def get_range(self, name: str, start: int, length: int) -> bytes:
        if name not in self.objects:
            raise MissingObjectError(name)
        data = self.objects[name][start : start + length]
        assert len(data) == length
        self.asked += length
        return data

    def size(self) -> int:
        return sum(map(len, self.objects.values()))


@pytest.fixture
def bucket() -> Counting:
    return Counting()


@pytest.fixture
def shipping(store: Store, path: Path, bucket: Counting) -> Shipper:
    return Shipper(path, bucket, "mx1", ShipOptions(index=lambda: copy_of(store.index, store.view.names())))


@pytest.fixture
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that not all of a small file is fetched at once."""
    monkeypatch.setattr(hollow, "PAGE_BYTES", 4096)
    monkeypatch.setattr(index_files, "_PIECE_BYTES", (4096, 16 << 20))


@pytest.fixture
def mirror(bucket: Counting, tmp_path: Path) -> Iterator[Mirror]:
    made = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    yield made
    made.close()


def fill(store: Store, numbers: range) -> dict[bytes, bytes]:
    """Random mails; by delivery id."""
    mails = {}
    for number in numbers:
        mail = b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(20_000)
        mails[put_message(store, mail).id] = mail
    store.settle_index()
    return mails


def all_of(store: Store) -> dict[bytes, bytes]:
    assert store.damage == []
    return {
        found.delivery.id: b"".join(store.read(found.delivery.content)) for found in store.deliveries(Query())
    }


def test_one_of_many_is_read_by_a_few_ranges(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror
) -> None:
    mails = fill(store, range(600))
    assert shipping.round(full=True).full
    wanted = random.Random(1).choice(list(mails))
    bucket.asked = 0
    assert mirror.follow() == []
    with mirror.open() as opened:
        found = opened.delivery(opened.resolve(wanted.hex()[:12]))
        assert b"".join(opened.read(found.delivery.content)) == mails[wanted]
        assert bucket.asked < bucket.size() / 8, "the whole was fetched for one message"
        assert all_of(opened) == mails


def test_what_comes_after_the_index(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror
) -> None:
    mails = fill(store, range(50))
    shipping.round(full=True)
    mirror.follow()
    opened = mirror.open()
    for step in range(3):
        mails |= fill(store, range(50 + 10 * step, 60 + 10 * step))
        big = random.Random(f"big {step}").randbytes(3_000_000)
        mails[put_message(store, big).id] = big
        assert not shipping.round().full
        assert mirror.refresh(opened) == []
        assert all_of(opened) == mails
    opened.close()
    with mirror.open() as again:
        assert all_of(again) == mails
    assert shipping.round(full=True).full
    again = mirror.open()
    mirror.refresh(again)
    bucket.asked = 0
    assert all_of(again) == mails
    assert bucket.asked < bucket.size() / 4, "what was fetched is not fetched again"
    again.close()


def test_compaction_is_seen_with_the_index_that_knows_it(
    store: Store, path: Path, shipping: Shipper, mirror: Mirror
) -> None:
    mails = fill(store, range(60))
    shipping.round(full=True)
    mirror.follow()
    opened = mirror.open()
    gone = list(mails)[::3]
    erase(store, gone, owner="anna", reason="a request")
    for delivery in gone:
        del mails[delivery]
    store.writer.roll()
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=1)).run()
    shipping.round()
    assert shipping.contents.stream("host").segments
    mirror.refresh(opened)
    before = all_of(opened)
    assert set(before) == set(mails) | set(gone), "as it was before, until there is an index for what is now"
    assert shipping.round().full
    mirror.refresh(opened)
    assert all_of(opened) == mails
    for delivery in gone:
        with pytest.raises(RemovedError):
            opened.delivery(delivery)
    opened.close()
    with mirror.open() as again:
        assert all_of(again) == mails


def test_without_an_index_all_is_fetched(store: Store, path: Path, bucket: Counting, mirror: Mirror) -> None:
    shipping = Shipper(path, bucket, "mx1")
    mails = fill(store, range(60))
    shipping.round()
    mails |= fill(store, range(60, 80))
    shipping.round()
    assert not [name for name in bucket.objects if name.startswith(index_under("mx1"))]
    mirror.follow()
    with mirror.open() as opened:
        assert all_of(opened) == mails


def test_two_at_one_directory(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror, tmp_path: Path
) -> None:
    mails = fill(store, range(100))
    shipping.round(full=True)
    other = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    mirror.follow()
    other.follow()
    one = mirror.open()
    mails |= fill(store, range(100, 140))
    shipping.round()
    shipping.round(full=True)
    mirror.refresh(one)
    assert all_of(one) == mails
    one.close()
    with other.open() as opened:
        assert all_of(opened) == mails
    other.close()


def test_many_threads_read_at_once(store: Store, shipping: Shipper, mirror: Mirror) -> None:
    mails = fill(store, range(120))
    shipping.round(full=True)
    mirror.follow()
    failed: list[BaseException] = []
    with mirror.open() as opened:

        def read(some: list[bytes]) -> None:
            try:
                for delivery in some:
                    content = opened.delivery(delivery).delivery.content
                    assert opened.read_small(content) == mails[delivery]
            except BaseException as exc:  # noqa: BLE001 - told below
                failed.append(exc)

        ids = list(mails)
        threads = [threading.Thread(target=read, args=(random.Random(n).sample(ids, 40),)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_a_replica_that_was_begun_anew_is_read_anew(
    store: Store, path: Path, bucket: Counting, shipping: Shipper, tmp_path: Path
) -> None:
    fill(store, range(30))
    for _ in range(5):
        shipping.round(full=True)
    first = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    first.follow()
    first.open().close()
    bucket.objects.clear()
    with Store.open(tmp_path / "other", create=True) as other:
        other.start_writing("mx1")
        again = Shipper(
            tmp_path / "other", bucket, "mx1",
            ShipOptions(index=lambda: copy_of(other.index, other.view.names())),
        )  # fmt: skip
        again.round()
        with pytest.raises(StoreError, match="begins anew"):
            first.follow()  # whoever has it open would go on with the old one's index
        first.close()
        mails = fill(other, range(100, 120))
        for _ in range(8):
            again.round(full=True)
        second = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
        second.follow()
        with second.open() as opened:
            assert all_of(opened) == mails
        second.close()


def test_a_map_of_an_earlier_boot_is_not_believed(
    store: Store, bucket: Counting, shipping: Shipper, tmp_path: Path
) -> None:
    mails = fill(store, range(50))
    shipping.round(full=True)
    first = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    first.follow()
    with first.open() as opened:
        assert all_of(opened) == mails
    first.close()
    for file in (tmp_path / "mirror" / "streams").glob("*/*.pack"):  # what a crash may leave of it
        size = file.stat().st_size
        file.write_bytes(b"")
        with file.open("r+b") as emptied:
            emptied.truncate(size)
    (tmp_path / "mirror" / "here" / "boot").write_text("another")
    second = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    second.follow()
    with second.open() as opened:
        assert all_of(opened) == mails
    second.close()


@pytest.mark.usefixtures("_small_pages")
def test_an_index_that_is_lost_or_damaged_here_is_fetched_anew(
    store: Store, bucket: Counting, shipping: Shipper, tmp_path: Path
) -> None:
    mails = fill(store, range(400))
    shipping.round(full=True)
    for damage in ("data.mdb", "run"):
        first = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
        first.follow()
        with first.open() as opened:
            assert opened.delivery(next(iter(mails)))
        first.close()
        index = tmp_path / "mirror" / "index"
        (path, *_) = [index / damage] if "." in damage else sorted(index.glob("*.run"))
        path.write_bytes(b"\xff" * path.stat().st_size)
        second = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
        second.follow()
        with second.open() as opened:
            assert all_of(opened) == mails
        second.close()


@pytest.mark.usefixtures("_small_pages")
def test_what_an_earlier_version_had_kept_is_fetched_anew(
    store: Store, bucket: Counting, shipping: Shipper, tmp_path: Path
) -> None:
    mails = fill(store, range(600))
    shipping.round(full=True)
    first = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    first.follow()
    first.open().close()
    first.close()
    (tmp_path / "mirror" / "contents").write_bytes(b"of another version")
    second = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    second.follow()
    with second.open() as opened:
        assert all_of(opened) == mails
    second.close()


@pytest.mark.usefixtures("_small_pages")
def test_an_index_that_could_not_be_taken_up_leaves_nothing_that_is_believed(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mails = fill(store, range(900))
    store.index.merge(everything=True)  # a large one
    shipping.round(full=True)
    mirror.follow()
    with monkeypatch.context() as patch:
        patch.setattr(Update, "become", _fails_after(Update.become))
        with pytest.raises(StoreError, match="killed"):
            mirror.open()
    store.view.clear()
    store.view.catch_up_all()  # smaller ones
    shipping.round(full=True)
    mirror.follow()
    with mirror.open() as opened:
        assert all_of(opened) == mails


def _fails_after(do: Callable[..., None]) -> Callable[..., None]:
    def failing(*arguments: Any) -> None:
        do(*arguments)
        raise StoreError("killed")

    return failing


def test_what_cannot_be_read_for_a_moment_takes_nothing_back(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror
) -> None:
    mails = fill(store, range(30))
    shipping.round(full=True)
    store.writer.roll()
    mails |= fill(store, range(30, 60))
    shipping.round()
    mirror.follow()
    opened = mirror.open()
    assert all_of(opened) == mails
    shipping.round(full=True)
    last = mirror.contents
    assert last
    names = (
        round_name("mx1", last.number, full=False),
        round_name("mx1", shipping.contents.number, full=True),
    )
    lost = {name: bucket.objects[name] for name in names}
    for name in lost:
        bucket.objects[name] = b"an error"
    assert mirror.refresh(opened) != []
    assert all_of(opened) == mails
    opened.close()
    opened = mirror.open()
    assert all_of(opened) == mails
    bucket.objects |= lost
    assert mirror.refresh(opened) == []
    assert all_of(opened) == mails
    opened.close()


@pytest.mark.parametrize("with_index", [True, False])
def test_what_is_shipped_after_what_came_later(
    store: Store,
    path: Path,
    bucket: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    with_index: bool,
) -> None:
    """The newest goes first, and the rest by and by."""
    mails = fill(store, range(10))
    options = ShipOptions(piece_bytes=30_000, pieces_s=0.0)
    if with_index:
        options = replace(options, index=lambda: copy_of(store.index, store.view.names()))
        Shipper(path, bucket, "mx1", replace(options, pieces_s=5.0)).round(full=True)
    store.writer.roll()
    mails |= fill(store, range(10, 30))
    store.writer.roll()
    mails |= fill(store, range(30, 34))
    slow = Shipper(path, bucket, "mx1", options)
    assert slow.round().more
    mirror = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    mirror.follow()
    opened = mirror.open()
    assert set(mails) > {found.delivery.id for found in opened.deliveries(Query())} >= set(list(mails)[-4:])
    while slow.round().more:
        mirror.follow()
    if with_index:
        mirror.refresh(opened)
    else:
        opened.close()
        mirror.follow()
        opened = mirror.open()
    assert all_of(opened) == mails
    opened.close()
    mirror.close()


def test_a_history_that_was_set_back_and_went_on_otherwise(
    store: Store, path: Path, bucket: Counting, tmp_path: Path
) -> None:
    fill(store, range(30))
    options = ShipOptions(index=lambda: copy_of(store.index, store.view.names()))
    Shipper(path, bucket, "mx1", options).round(full=True)
    then = dict(bucket.objects)
    store.close()
    shutil.copytree(path, tmp_path / "then")
    with Store.open(path) as lost:
        lost.start_writing("host")
        going = Shipper(
            path, bucket, "mx1", ShipOptions(index=lambda: copy_of(lost.index, lost.view.names()))
        )
        fill(lost, range(30, 60))
        going.round()
        mirror = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
        mirror.follow()
        with mirror.open() as opened:
            assert len(all_of(opened)) == 60
        mirror.close()
    bucket.objects = then
    with Store.open(tmp_path / "then") as other:
        other.start_writing("host")
        mails = all_of(other) | fill(other, range(100, 130))
        again = Shipper(
            tmp_path / "then",
            bucket,
            "mx1",
            ShipOptions(index=lambda: copy_of(other.index, other.view.names())),
        )
        again.round()
        again.round(full=True)
        mirror = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
        mirror.follow()
        with mirror.open() as opened:
            assert all_of(opened) == mails
        mirror.close()


@pytest.mark.parametrize("at", [100, 30_000])
def test_what_was_damaged_there_is_right_here_once_it_is_mended(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror, at: int
) -> None:
    mails = fill(store, range(50))
    shipping.round(full=True)
    pieces = [name for name in bucket.objects if name.startswith("packs/")]
    whole = {name: bucket.objects[name] for name in pieces}
    for name in pieces:
        bucket.objects[name] = whole[name][:at] + bytes(20_000) + whole[name][at + 20_000 :]
    mirror.follow()
    with mirror.open() as opened:
        damaged = 0
        for delivery in mails:
            try:
                opened.read_small(opened.delivery(delivery).delivery.content)
            except DamagedError:
                damaged += 1
        assert damaged
        bucket.objects |= whole
        assert {id_: opened.read_small(opened.delivery(id_).delivery.content) for id_ in mails} == mails


def test_compaction_of_what_was_compacted_between_two_looks(
    store: Store, path: Path, bucket: Counting, mirror: Mirror
) -> None:
    """Without an index of the host's, which would know."""
    shipping = Shipper(path, bucket, "mx1")
    mails = fill(store, range(40))
    store.writer.roll()
    mails |= fill(store, range(40, 45))

    def compact() -> None:
        gone = next(iter(mails))
        erase(store, [gone], owner="anna", reason="a request")
        del mails[gone]
        store.settle_index()
        Compactor(store, CompactOptions(everything=True, level=1)).run()
        shipping.round()
        shipping.round()

    compact()
    mirror.follow()
    opened = mirror.open()
    assert all_of(opened) == mails
    for _ in range(3):
        compact()
    mirror.refresh(opened)
    assert all_of(opened) == mails
    opened.close()
    with mirror.open() as again:
        assert all_of(again) == mails


def test_what_another_process_follows_meanwhile_is_not_set_back(
    store: Store, bucket: Counting, shipping: Shipper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the rounds and that at the index."""
    mails = fill(store, range(20))
    shipping.round(full=True)
    mirror, other = (Mirror(Replica(bucket), "mx1", tmp_path / "mirror") for _ in range(2))
    mirror.follow()
    opened = mirror.open()
    follow = mirror.follow

    def overtaken() -> list[str]:
        faults = follow()
        mails.update(fill(store, range(20, 40)))
        store.writer.roll()
        mails.update(fill(store, range(40, 50)))
        shipping.round()
        other.follow()
        return faults

    monkeypatch.setattr(mirror, "follow", overtaken)
    mirror.refresh(opened)
    opened.close()
    bucket.objects = {name: data for name, data in bucket.objects.items() if name.startswith("packs/")}
    third = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    assert third.contents
    assert third.contents.number == shipping.contents.number
    with third.open() as again:
        assert all_of(again) == mails
    for one in (mirror, other, third):
        one.close()
