"""A mirror whose host's index cannot be taken: all is found all the same."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store import index_copy
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.ids import FOREVER_US
from store.index import SCHEMA, Index
from store.index_copy import copy_of
from store.replicas.errors import MissingObjectError
from store.replicas.hollow import PAGE_BYTES
from store.replicas.layout import RoundError, index_piece_name
from store.replicas.mirror import Mirror
from store.replicas.mirror_index import Kept, MirrorIndex
from store.replicas.reader import Replica
from store.replicas.ship import ShipOptions, Shipper
from store.store import Store
from store.update import Update
from store.view import CaughtUp, View
from tests.store.conftest import put_message
from tests.store.test_replica_mirror import Counting, all_of, fill


@pytest.fixture
def bucket() -> Counting:
    return Counting()


@pytest.fixture
def shipping(store: Store, path: Path, bucket: Counting) -> Shipper:
    return Shipper(path, bucket, "mx1", ShipOptions(index=lambda: copy_of(store.index, store.view.names())))


@pytest.fixture
def mirror(bucket: Counting, tmp_path: Path) -> Iterator[Mirror]:
    made = Mirror(Replica(bucket), "mx1", tmp_path / "mirror")
    yield made
    made.close()


def states(shipping: Shipper) -> list[str]:
    """The objects that hold all of the last index but its runs."""
    assert shipping.contents.index
    return [index_piece_name("mx1", extent) for extent in shipping.contents.index.state]


def spoil(bucket: Counting, names: list[str], how: str) -> dict[str, bytes]:
    """What they were."""
    whole = {name: bucket.objects[name] for name in names}
    for name, data in whole.items():
        if how == "missing":
            del bucket.objects[name]
        else:
            bucket.objects[name] = data[:-1] + b"?"
    return whole


HOW = pytest.mark.parametrize("how", ["missing", "damaged"])


@HOW
def test_one_of_an_earlier_full_round_does(
    store: Store,
    bucket: Counting,
    shipping: Shipper,
    mirror: Mirror,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mails = fill(store, range(300))
    shipping.round(full=True)
    mails |= fill(store, range(300, 320))
    shipping.round(full=True)
    (state,) = states(shipping)
    whole = spoil(bucket, [state], how)
    mirror.follow()
    bucket.asked = 0
    with caplog.at_level(logging.WARNING), mirror.open() as opened:
        assert bucket.asked < bucket.size() / 4, "all was fetched"
        assert all_of(opened) == mails
    assert state in caplog.text
    assert "is read without that index" in caplog.text
    mails |= fill(store, range(320, 330))
    shipping.round()
    mirror.follow()
    with mirror.open() as opened:
        assert all_of(opened) == mails
    bucket.objects |= whole
    caplog.clear()
    with caplog.at_level(logging.WARNING), mirror.open() as opened:
        assert all_of(opened) == mails
    assert caplog.text == ""


@HOW
def test_where_there_is_no_other_packs_are_read(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror, how: str
) -> None:
    mails = fill(store, range(60))
    shipping.round(full=True)
    spoil(bucket, states(shipping), how)
    mirror.follow()
    with mirror.open() as opened:
        assert all_of(opened) == mails
        mails |= fill(store, range(60, 70))
        shipping.round(full=True)
        mirror.refresh(opened)
        assert all_of(opened) == mails


def with_pieces(
    store: Store, shipping: Shipper, monkeypatch: pytest.MonkeyPatch, count: int = 2500
) -> set[bytes]:
    """Ship an index of which a run is in several pieces; the ids of all deliveries."""
    monkeypatch.setattr("store.replicas.index_files._PIECE_BYTES", (PAGE_BYTES, PAGE_BYTES))
    for number in range(count):
        put_message(store, b"%d" % number, to=(b"a@example.org",))
    store.settle_index()
    with store.index.update() as update:
        update.fold()
    store.index.merge(everything=True)
    shipping.round(full=True)
    return {found.delivery.id for found in store.deliveries(Query())}


@HOW
@pytest.mark.parametrize("earlier", [True, False])
def test_what_shows_to_be_wrong_only_when_it_is_read(
    store: Store,
    bucket: Counting,
    shipping: Shipper,
    mirror: Mirror,
    how: str,
    earlier: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a run the end is read when it is taken, and the rest when somebody looks for what is there."""
    if earlier:
        fill(store, range(20))
        shipping.round(full=True)
    mails = with_pieces(store, shipping, monkeypatch)
    assert shipping.contents.index
    (run,) = shipping.contents.index.runs
    whole = spoil(bucket, [index_piece_name("mx1", extent) for extent in run[:-1]], how)
    mirror.follow()
    with mirror.open() as opened, pytest.raises((RoundError, MissingObjectError)):
        list(opened.deliveries(Query()))
    with mirror.open() as opened:
        assert all_of(opened).keys() == mails
        mirror.refresh(opened)
        assert all_of(opened).keys() == mails
    bucket.objects |= whole
    mirror.follow()
    with mirror.open() as opened:
        assert all_of(opened).keys() == mails
    assert not (mirror.path / "wrong").exists()


def test_who_reads_on_has_the_index_that_was_there_when_he_began(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mails = with_pieces(store, shipping, monkeypatch, 7000)
    mirror.follow()
    with mirror.open() as opened:
        with opened.index.read() as snapshot:
            found = snapshot.by_time(0, FOREVER_US, newest_first=True)
            first = next(found)
            put_message(store, b"and one more")
            store.settle_index()
            shipping.round(full=True)
            for _ in range(3):
                mirror.refresh(opened)
            assert {first, *found} == mails
        assert len(list(opened.deliveries(Query()))) == 7001
        for _ in range(2):
            put_message(store, b"and another")
            store.settle_index()
            shipping.round(full=True)
            mirror.refresh(opened)
    assert len(list((mirror.path / "index").glob("*.run"))) <= 2, "what nobody reads is removed"


def test_what_shows_to_be_wrong_is_done_without_once(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while somebody reads, for whom the files of the runs before stay."""
    makes: list[str] = []
    make = MirrorIndex._make

    def counted(self: MirrorIndex, index: Index, kept: Kept, store_id: bytes) -> None:
        makes.append(self._host)
        make(self, index, kept, store_id)

    monkeypatch.setattr(MirrorIndex, "_make", counted)
    mails = with_pieces(store, shipping, monkeypatch)
    assert shipping.contents.index
    ((piece, _),) = shipping.contents.index.runs
    spoil(bucket, [index_piece_name("mx1", piece)], "missing")
    mirror.follow()
    with mirror.open() as opened, opened.index.read():
        with pytest.raises(MissingObjectError):
            list(opened.deliveries(Query()))
        for _ in range(3):
            mirror.refresh(opened)
            assert all_of(opened).keys() == mails
    assert makes == ["mx1"]


def test_what_is_here_already_stays_and_follows_compaction(
    store: Store, bucket: Counting, shipping: Shipper, mirror: Mirror
) -> None:
    mails = fill(store, range(60))
    shipping.round(full=True)
    mirror.follow()
    opened = mirror.open()
    mails |= fill(store, range(60, 90))
    store.writer.roll()
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=1)).run()
    mails |= fill(store, range(90, 100))
    shipping.round()
    shipping.round(full=True)
    spoil(bucket, states(shipping), "damaged")
    mirror.refresh(opened)
    assert all_of(opened) == mails
    opened.close()
    with mirror.open() as again:
        assert all_of(again) == mails


# -- whoever reads meanwhile


_READER = """
import sys
from pathlib import Path
from store.ids import FOREVER_US
from store.index import Index
index = Index(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
for _ in sys.stdin:
    with index.read() as snapshot:
        print(len(list(snapshot.by_time(0, FOREVER_US, newest_first=True))), flush=True)
"""


class Reader:
    """Another process that looks at a mirror's index whenever it is asked to."""

    def __init__(self, index: Path, store_id: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READER, str(index), store_id.hex()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.seen: list[int] = []

    def look(self) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self.seen.append(int(self._process.stdout.readline()))
        return self.seen[-1]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def reader(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Reader]]:
    """Looks before each step of what puts packs into an index."""
    made: list[Reader] = []

    def make() -> Reader:
        made.append(Reader(tmp_path / "mirror" / "index", store.id))
        made[-1].look()
        scan = View._scan

        def looking(view: View, stream: str, *arguments: Any) -> CaughtUp | None:
            if view.index.path.is_relative_to(tmp_path / "mirror"):
                made[-1].look()
            return scan(view, stream, *arguments)

        monkeypatch.setattr(View, "_scan", looking)
        return made[-1]

    yield make
    for one in made:
        one.close()


def slowly(store: Store, path: Path, bucket: Counting) -> tuple[Shipper, dict[bytes, bytes]]:
    """The newest of some packs is there, and the rest comes by and by."""
    mails = fill(store, range(100, 110))
    store.writer.roll()
    mails |= fill(store, range(110, 130))
    store.writer.roll()
    mails |= fill(store, range(130, 134))
    slow = Shipper(path, bucket, "mx1", ShipOptions(piece_bytes=30_000, pieces_s=0.0))
    assert slow.round().more
    return slow, mails


@pytest.mark.parametrize("is_killed", [False, True])
def test_nobody_sees_less_while_what_was_missing_is_taken_in(
    store: Store, path: Path, bucket: Counting, mirror: Mirror, reader: Callable[[], Reader],
    monkeypatch: pytest.MonkeyPatch, *, is_killed: bool,
) -> None:  # fmt: skip
    slow, mails = slowly(store, path, bucket)
    mirror.follow()
    mirror.open().close()
    other = reader()
    assert 0 < (before := other.seen[0]) < len(mails)
    while slow.round().more:
        pass
    mirror.follow()
    if is_killed:
        with monkeypatch.context() as patch:
            patch.setattr(Update, "take_over", killed)
            with pytest.raises(KeyboardInterrupt):
                mirror.open()
        assert other.look() == before
        assert (mirror.path / "index.new").exists()
    with mirror.open() as opened:
        assert all_of(opened) == mails
        assert other.look() == len(mails)
    assert min(other.seen) == before
    assert not (mirror.path / "index.new").exists()


def killed(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_nobody_sees_less_while_compaction_is_taken_up(
    store: Store, path: Path, bucket: Counting, mirror: Mirror, reader: Callable[[], Reader]
) -> None:
    """Of the pack in which the mirror's index stands."""
    mails = fill(store, range(20))
    shipping = Shipper(path, bucket, "mx1")
    shipping.round()
    mirror.follow()
    mirror.open().close()
    other = reader()
    mails |= fill(store, range(20, 30))
    store.writer.roll()
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=1)).run()
    shipping.round()
    shipping.round()
    assert shipping.contents.stream("host").segments
    mirror.follow()
    with mirror.open() as opened:
        assert all_of(opened) == mails
    assert min(other.seen) == 20
    mails |= fill(store, range(30, 40))
    store.writer.roll()
    store.settle_index()
    opened = mirror.open()
    mails |= fill(store, range(40, 45))
    Compactor(store, CompactOptions(everything=True, level=1)).run()
    shipping.round()
    shipping.round()
    mirror.refresh(opened)
    assert all_of(opened) == mails
    assert min(other.seen) == 20
    opened.close()


def test_an_index_of_another_version_keeps_nothing_from_being_found(
    store: Store, path: Path, bucket: Counting, mirror: Mirror, monkeypatch: pytest.MonkeyPatch,
    reader: Callable[[], Reader],
) -> None:  # fmt: skip
    mails = fill(store, range(10))
    copied = ShipOptions(index=lambda: copy_of(store.index, store.view.names()))
    with monkeypatch.context() as patch:
        patch.setattr(index_copy, "SCHEMA", SCHEMA + 1)
        Shipper(path, bucket, "mx1", copied).round(full=True)
    mirror.follow()
    with mirror.open() as opened:
        assert all_of(opened) == mails
    store.writer.roll()
    slow, more = slowly(store, path, bucket)
    mails |= more
    mirror.follow()
    mirror.open().close()
    other = reader()
    assert 10 < (before := other.seen[0]) < len(mails)
    while slow.round().more:
        pass
    mirror.follow()
    with mirror.open() as opened:
        assert all_of(opened) == mails
    assert min(other.seen) == before
