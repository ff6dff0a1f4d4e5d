"""A replica looked over: all of it by name and size, its bytes a part at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from store.replicas.errors import ReplicaError, UnreachableError
from store.replicas.mend import Mended, ask
from store.replicas.reader import NoReplicaError, Replica
from store.replicas.remote import Remote
from store.replicas.scrub import Scrubbed, ScrubOptions, scrub
from store.store import Store
from tests.store.test_replica_mend import Shipped, cut, flip


class Scrubbing:
    """Runs that go on from each other."""

    def __init__(self, shipped: Shipped) -> None:
        self.shipped = shipped
        self.after = ""
        self.read: list[str] = []

    def run(self, portion: int, remote: Remote | None = None) -> Scrubbed:
        def reached(name: str) -> None:
            self.after = name
            self.read.append(name)

        shipped = self.shipped
        options = ScrubOptions(portion=lambda _: portion, after=self.after, reached=reached)
        replica = Replica(remote or shipped.remote)
        return scrub(replica, shipped.path, shipped.store.id, "host", options)


@pytest.fixture
def shipped(store: Store, path: Path, tmp_path: Path) -> Shipped:
    return Shipped(store, path, tmp_path)


@pytest.fixture
def scrubbing(shipped: Shipped) -> Scrubbing:
    return Scrubbing(shipped)


def names(shipped: Shipped) -> list[str]:
    return [str(file.relative_to(shipped.files)) for file in shipped.pieces()]


def test_each_piece_has_its_turn(shipped: Shipped, scrubbing: Scrubbing) -> None:
    pieces = names(shipped)
    total = sum(file.stat().st_size for file in shipped.pieces())
    scrubbed = scrubbing.run(0)
    assert (scrubbed.pieces, scrubbed.bytes, scrubbed.read_pieces) == (len(pieces), total, 0)
    runs = 0
    while set(scrubbing.read) != set(pieces):
        assert scrubbing.run(total // 5).read_bytes >= total // 5
        runs += 1
    assert 1 < runs <= 5
    assert scrubbing.read[: len(pieces)] == pieces, "in order, and none twice before all were read"
    assert scrubbing.run(total).read_bytes == total
    received = shipped.remote.counted.received_bytes
    scrubbing.run(1)
    assert shipped.remote.counted.received_bytes - received < total / 2


def test_lists_show_what_is_missing_or_short(shipped: Shipped, scrubbing: Scrubbing) -> None:
    missing, damaged, flipped, *_ = names(shipped)
    first, second, third, *_ = shipped.pieces()
    first.unlink()
    cut(second)
    flip(third)
    scrubbed = scrubbing.run(0)
    assert list(scrubbed.wrong.missing) == [missing]
    assert list(scrubbed.wrong.damaged) == [damaged]
    assert len(scrubbed.findings) == 2
    scrubbed = scrubbing.run(1)
    assert list(scrubbed.wrong.damaged) == [damaged, flipped]
    assert any(flipped in finding.what for finding in scrubbed.findings)
    assert len(scrubbed.findings) == 3


@pytest.mark.parametrize("how", [flip, Path.unlink])
def test_the_index_has_its_turn_and_is_mended(
    shipped: Shipped, scrubbing: Scrubbing, tmp_path: Path, how: Callable[[Path], None]
) -> None:
    of_index = sorted(shipped.ship_index().pieces("host"))
    pieces = [*of_index, *names(shipped)]
    total = sum((shipped.files / name).stat().st_size for name in pieces)
    scrubbed = scrubbing.run(0)
    assert (scrubbed.pieces, scrubbed.bytes, scrubbed.findings) == (len(pieces), total, [])
    runs = 0
    while set(scrubbing.read) != set(pieces):
        assert not scrubbing.run(total // 5).wrong
        runs += 1
    assert 1 < runs <= 5
    assert scrubbing.read[: len(pieces)] == pieces, "in order, and none twice before all were read"
    for name in of_index:
        how(shipped.files / name)
    scrubbing.after = ""
    scrubbed = scrubbing.run(total)
    assert sorted(scrubbed.wrong.index) == of_index
    assert len(scrubbed.findings) == len(of_index)
    mended = Mended()
    ask(shipped.path, shipped.remote.url, scrubbed.wrong, mended)
    assert (mended.asked, mended.left) == (len(of_index), [])
    shipped.ship()
    assert shipped.notes() == [], "nothing of it is left to do"
    assert scrubbing.run(total).findings == []
    assert shipped.is_right(tmp_path / "again")


def test_an_index_that_counts_no_more_meanwhile_is_no_damage(
    shipped: Shipped, scrubbing: Scrubbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_index = shipped.ship_index().pieces("host")
    get = shipped.remote.get

    def slow(name: str) -> bytes:
        if name in of_index:
            monkeypatch.undo()
            shipped.put(9)
            shipped.store.settle_index()
            shipped.shipper.round(full=True)
            now = shipped.shipper.contents.index
            assert now
            for gone in of_index.keys() - now.pieces("host"):
                (shipped.files / gone).unlink()
        return get(name)

    monkeypatch.setattr(shipped.remote, "get", slow)
    scrubbed = scrubbing.run(1 << 30)
    assert (scrubbed.findings, bool(scrubbed.wrong)) == ([], False)


def test_rounds(shipped: Shipped, scrubbing: Scrubbing) -> None:
    flip(shipped.rounds("rounds")[-1])
    scrubbed = scrubbing.run(0)
    assert (scrubbed.wrong.rounds, scrubbed.wrong.anew) == (1, False)
    assert scrubbed.wrong.last == shipped.shipper.contents.number
    for file in shipped.rounds("full"):
        flip(file)
    scrubbed = scrubbing.run(0)
    assert scrubbed.wrong.rounds > 1
    assert scrubbed.wrong.last == shipped.shipper.contents.number
    assert len(scrubbed.findings) == 1
    shutil.rmtree(shipped.files / "hosts")
    scrubbed = scrubbing.run(0)
    assert (scrubbed.wrong.rounds, scrubbed.wrong.anew) == (0, True)


def test_what_was_removed_meanwhile_is_no_damage(
    shipped: Shipped, scrubbing: Scrubbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two full rounds and a prune go by while a long scrub reads."""
    scrubbing.after = names(shipped)[1]
    get_range = shipped.remote.get_range

    def slow(name: str, start: int, length: int) -> bytes:
        monkeypatch.undo()
        contents = shipped.shipper.contents
        contents.stream("host").packs.pop(1)
        shipped.shipper.round(full=True)
        for file in shipped.files.glob("packs/host/0000000001/*"):
            file.unlink()
        return get_range(name, start, length)

    monkeypatch.setattr(shipped.remote, "get_range", slow)
    scrubbed = scrubbing.run(1 << 30)
    assert scrubbed.findings == []
    assert not scrubbed.wrong


def test_what_cannot_be_told(shipped: Shipped, scrubbing: Scrubbing, tmp_path: Path) -> None:
    class Silent(Remote):
        def get_range(self, name: str, start: int, length: int) -> bytes:
            raise UnreachableError(f"{name}: no answer")

    silent = Silent.open(shipped.remote.url)
    assert scrubbing.run(0, silent).findings == []
    with pytest.raises(ReplicaError, match="no answer"):
        scrubbing.run(1, silent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoReplicaError):
        scrubbing.run(0, Remote.open(f"file://{tmp_path}/empty"))


def test_another_store_under_the_same_name(shipped: Shipped) -> None:
    with pytest.raises(ReplicaError, match="another store"):
        scrub(Replica(shipped.remote), shipped.path, bytes(8), "host", ScrubOptions())
