"""What a restore has fetched is indexed, and checked, while the rest comes; in whatever order it comes."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import pytest

from store import view
from store.about import About
from store.check import Checker, CheckOptions
from store.check_bookmark import Bookmark
from store.check_part import PartResult
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.errors import StoreError
from store.index import Index
from store.replicas import fetch
from store.replicas.arrivals import Arrivals, on_its_way
from store.replicas.check_ahead import check_ahead
from store.replicas.fetch import Fetching, FetchOptions
from store.replicas.reader import Replica
from store.sealing import NO_KEYS
from store.segments import stream_files
from store.store import Store
from tests.store.conftest import put_message
from tests.store.test_replica_fetch import Shelf, Shipping, contents

PACKS = 4


@pytest.fixture
def mails(store: Store) -> set[bytes]:
    """Four packs, in each of which there is mail with parts that an earlier one has."""
    found = set()
    common = random.Random(0).randbytes(50_000)
    for number in range(3 * PACKS):
        found.add(b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(5000) + common)
        put_message(store, max(found, key=lambda mail: mail.startswith(b"Subject: %d\r" % number)))
        if number % 3 == 2 and number < 3 * PACKS - 1:
            store.writer.roll()
    return found


def fetched_files(path: Path, again: Path) -> dict[str, str]:
    """A stream's packs as a restore has them before they have their names; its manifests' texts."""
    shutil.copytree(path / "streams", again / "streams", ignore=shutil.ignore_patterns("lock", "*.lock"))
    manifests = {}
    for file in (again / "streams/host").iterdir():
        if file.suffix == ".segment":
            manifests[file.name] = file.read_text()
            file.unlink()
        elif file.suffix == ".pack":
            file.rename(on_its_way(file))
        else:
            file.unlink()
    return manifests


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
def test_in_any_order(
    store: Store, mails: set[bytes], path: Path, tmp_path: Path, order: tuple[int, ...], *, compacted: bool
) -> None:
    if compacted:
        store.settle_index()
        Compactor(store, CompactOptions(everything=True, pack_bytes=40_000, unit_bytes=60_000)).run()
        assert any((path / "streams/host").glob("*.segment"))
    store.settle_index()
    again = tmp_path / "again"
    manifests = fetched_files(path, again)
    packs = sorted(file.with_suffix("") for file in (again / "streams/host").glob("*.part"))
    about = About.read(path)
    arrivals = Arrivals(again, about, NO_KEYS, ahead=False)
    arrivals.expect("host", packs, manifests)
    arrivals.start()
    for place in order:
        for pack in packs[place::3]:
            arrivals.arrived(pack)
            files = stream_files(again / "streams/host")
            assert files.whole, "at every moment the stream is one"
            assert not files.parts or files.parts[0] == 1 or manifests
    assert arrivals.finish() == []
    assert not list(again.glob("**/*.part"))
    about.write(again)
    index = Index(again / "index", about.id)
    with index.read() as snapshot:
        assert sum(snapshot.counters().deliveries.values()) == len(mails), "before anybody opens the store"
    index.close()
    assert contents(again) == mails


@pytest.fixture
def many(shelf: Shelf, mails: set[bytes], path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A replica of the four packs, which is large enough to be checked ahead."""
    monkeypatch.setattr(fetch, "_AHEAD_BYTES", 0)
    Shipping(shelf, path).ship(full=True)
    return shelf


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_what_is_there_is_checked_ahead(many: Shelf, tmp_path: Path, mails: set[bytes]) -> None:
    again = tmp_path / "again"
    fetched = Fetching(Replica(many), again, FetchOptions(check_ahead=True)).run()
    assert (fetched.faults, fetched.damage) == ([], [])
    _, done = Bookmark(again).load(None)
    assert len(done) == PACKS - 1, "all but the last, which may go on"
    with Store.open(again) as opened:
        checker = Checker(opened, CheckOptions(resume=True))
        assert list(checker.run()) == []
        assert checker.checked.deliveries == len(mails)
    assert contents(again) == mails


class StoppedError(Exception):
    pass


def test_a_part_that_is_half_in_the_index_waits(
    store: Store, mails: set[bytes], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "_ENTRIES_PER_UPDATE", 1)
    again = tmp_path / "again"
    (again / "streams").mkdir(parents=True)
    about = About.read(path)
    with Store(again, about.id, about.key) as other:
        shutil.copytree(path / "streams/host", again / "streams/host")

        def stop(_size: int) -> None:
            with other.index.read() as snapshot:
                state = snapshot.state("host")
            if state and state.pack == 2:
                raise StoppedError

        with pytest.raises(StoppedError):
            other.view.catch_up("host", stop)
        done: dict[str, PartResult] = {}
        check_ahead(other, "host", done)
        assert list(done) == ["host/0000000001"]
        other.view.catch_up("host")
        check_ahead(other, "host", done)
        assert len(done) == PACKS - 1
        Bookmark(again).save(None, done)
        assert list(Checker(other, CheckOptions(resume=True)).run()) == []


@pytest.mark.parametrize("pack", [1, PACKS])
def test_damage_comes_out_of_the_check(many: Shelf, tmp_path: Path, pack: int) -> None:
    name = next(name for name in many.objects if f"/{pack:010d}/" in name)
    flipped = bytearray(many.objects[name])
    flipped[len(flipped) // 2] ^= 1
    many.objects[name] = bytes(flipped)
    again = tmp_path / "again"
    fetched = Fetching(Replica(many), again, FetchOptions(check_ahead=True)).run()
    assert any(name in fault for fault in fetched.faults)
    assert fetched.damage
    with Store.open(again) as opened:
        found = list(Checker(opened, CheckOptions(resume=True)).run())
        assert any(f"{pack:010d}.pack" in one.where for one in found)
        assert len(list(opened.deliveries(Query()))) >= 3 * (PACKS - 1)


def test_a_check_ahead_that_dies_is_made_up_for(
    many: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    again = tmp_path / "again"
    Fetching(Replica(many), again, FetchOptions(check_ahead=True)).run()
    with Store.open(again) as opened:
        checker = Checker(opened, CheckOptions(resume=True))
        assert list(checker.run()) == []
        assert checker.checked.deliveries == 3 * PACKS


def test_an_earlier_run_had_more(shelf: Shelf, store: Store, path: Path, tmp_path: Path) -> None:
    shipping = Shipping(shelf, path)
    for number in range(3):
        put_message(store, b"Subject: %d\r\n\r\n" % number + bytes(range(256)) * 40)
        shipping.ship(full=number == 0)
    again = tmp_path / "again"
    fetching = Fetching(Replica(shelf), again)

    def interrupt() -> None:
        raise StoreError("interrupted")

    with pytest.raises(StoreError, match="interrupted"):
        fetching.run(all_there=interrupt)
    with pytest.raises(StoreError, match="no store"):
        Store.open(again)
    fetched = Fetching(Replica(shelf), again, FetchOptions(as_of_us=2_000_000)).run()
    assert fetched.kept_bytes == fetched.bytes
    assert len(contents(again)) == 2, "what came after the moment that is wanted is not in it"


def test_the_index_cannot_be_made(shelf: Shelf, store: Store, path: Path, tmp_path: Path) -> None:
    put_message(store, b"Subject: x\r\n\r\n")
    Shipping(shelf, path).ship(full=True)
    fetching = Fetching(Replica(shelf), tmp_path / "again")

    def block() -> None:
        raise AssertionError

    with pytest.raises(AssertionError):
        fetching.run(all_there=block)
    (tmp_path / "again" / "index").rename(tmp_path / "aside")
    (tmp_path / "again" / "index").write_bytes(b"")
    with pytest.raises((OSError, StoreError)):
        Fetching(Replica(shelf), tmp_path / "again").run()
    assert not (tmp_path / "again" / "mailkeep.store").exists()
