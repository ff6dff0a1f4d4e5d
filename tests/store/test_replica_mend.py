"""What is missing or damaged in a replica is mended from the store: one thing at a time, in a directory."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.findings import Finding
from store.index_copy import copy_of
from store.replicas import ship
from store.replicas.asked import Asked, Wish, Wrong
from store.replicas.compare import Compared, compare
from store.replicas.fetch import Fetching
from store.replicas.layout import IndexFiles, index_piece_name
from store.replicas.mend import BeginAnewError, Mended, ask, mend
from store.replicas.mirror import Mirror
from store.replicas.reader import Replica
from store.replicas.remote import Remote
from store.replicas.ship import ShipOptions, Shipper
from store.sample import Sample
from store.store import Store
from tests.store.conftest import put_message


class Shipped:
    """A store that is being written, its shipper, and a replica of pieces and rounds."""

    def __init__(self, store: Store, path: Path, directory: Path) -> None:
        self.store, self.path, self.files = store, path, directory / "replica"
        self.remote = Remote.open(f"file://{self.files}")
        self.mails: set[bytes] = set()
        for number in range(3):
            self.put(number, 40_000)
            store.writer.roll()
        self.shipper = self.start()
        self.shipper.round()
        self.put(3)
        self.shipper.round()
        self.shipper.round(full=True)
        for number in range(4, 7):
            self.put(number)
            self.shipper.round()

    def put(self, number: int, size: int = 3000) -> None:
        mail = b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(size)
        put_message(self.store, mail)
        self.mails.add(mail)

    def start(self, **how: object) -> Shipper:
        options = ShipOptions(**({"piece_bytes": 10_000} | how))  # type: ignore[arg-type]  # keywords
        return Shipper(self.path, self.remote, "host", options)

    def ship_index(self) -> IndexFiles:
        """From now on with the index, a run and the rest of it; as it is there then."""
        self.store.settle_index()
        with self.store.index.update() as update:
            update.fold()
        self.shipper = self.start(index=lambda: copy_of(self.store.index, self.store.view.names()))
        self.shipper.round(full=True)
        assert self.shipper.contents.index is not None
        return self.shipper.contents.index

    def check(self, **how: Sample) -> tuple[list[Finding], list[Wrong], Compared]:
        wrongs: list[Wrong] = []
        compared = Compared()
        findings = list(
            compare(Replica(self.remote), self.path, self.store.id, compared=compared, wrongs=wrongs, **how)
        )
        return findings, wrongs, compared

    def mend(self) -> Mended:
        _, wrongs, _ = self.check(read_data=Sample())
        return mend(self.remote, self.path, wrongs)

    def ship(self) -> int:
        rounds = 1
        while self.shipper.round().more:
            rounds += 1
        return rounds

    def notes(self) -> list[Path]:
        return list(self.path.glob("jobs/mend-*"))

    def is_right(self, again: Path) -> bool:
        """Nothing is wrong there, and it has everything."""
        assert self.check(read_data=Sample())[0] == []
        shutil.rmtree(again, ignore_errors=True)
        assert Fetching(Replica(self.remote), again).run().faults == []
        with Store.open(again) as opened:
            assert opened.damage == []
            mails = {b"".join(opened.read(one.delivery.content)) for one in opened.deliveries(Query())}
        return mails == self.mails

    def pieces(self) -> list[Path]:
        return sorted(self.files.glob("packs/host/*/*"))

    def rounds(self, kind: str) -> list[Path]:
        return sorted(self.files.glob(f"hosts/host/{kind}/*"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


HOW = [flip, Path.unlink]


@pytest.fixture
def shipped(store: Store, path: Path, tmp_path: Path) -> Shipped:
    return Shipped(store, path, tmp_path)


@pytest.fixture
def again(tmp_path: Path) -> Path:
    return tmp_path / "again"


def test_nothing_to_mend(shipped: Shipped, again: Path) -> None:
    assert shipped.mend() == Mended()
    assert shipped.notes() == []
    assert shipped.is_right(again)


def test_a_missing_piece_is_created_again_by_whoever_finds_it(shipped: Shipped, again: Path) -> None:
    before = {file: file.read_bytes() for file in shipped.pieces()}
    for file in shipped.pieces()[:3]:
        file.unlink()
    assert len(shipped.check()[0]) == 3
    assert shipped.mend() == Mended(created=3)
    assert {file: file.read_bytes() for file in shipped.pieces()} == before
    assert shipped.is_right(again)


@pytest.mark.parametrize("how", [flip, cut])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_damaged_piece_gets_a_copy_that_a_full_round_names(
    shipped: Shipped, again: Path, how: Callable[[Path], None], *, restarted: bool
) -> None:
    first, second, *_ = shipped.pieces()
    how(first)
    how(second)
    damaged = first.read_bytes()
    assert shipped.mend() == Mended(asked=2)
    assert len(shipped.notes()) == 1
    shipped.mend()
    assert len(shipped.notes()) == 1, "asked twice is asked once"
    if restarted:
        shipped.shipper = shipped.start()
    shipped.put(7)
    assert shipped.ship() < 4
    assert first.read_bytes() == damaged, "nothing is written over"
    assert first.with_name(f"{first.name}.1").exists()
    assert shipped.check()[2].unnamed == 2
    assert shipped.is_right(again)
    assert shipped.notes() == []
    full = len(shipped.rounds("full"))
    shipped.put(8)
    shipped.ship()
    assert len(shipped.rounds("full")) == full, "and then it goes on as ever"
    # The copy, in its turn, and a shipper that knows nothing of what was before.
    how(first.with_name(f"{first.name}.1"))
    shipped.shipper = shipped.start()
    assert shipped.mend() == Mended(asked=1)
    shipped.ship()
    assert first.with_name(f"{first.name}.2").exists()
    assert shipped.is_right(again)


def test_a_bucket_that_does_not_know_that_it_has_rotted(shipped: Shipped, again: Path) -> None:
    """It tells the ETag of what it was given: what was read is believed, not that."""

    class Rotten(Remote):
        def holds(self, name: str, data: bytes) -> bool:
            return self.size(name) == len(data)

    flip(shipped.pieces()[0])
    shipped.remote = Rotten.open(shipped.remote.url)
    shipped.shipper = shipped.start()
    assert shipped.mend() == Mended(asked=1)
    shipped.ship()
    assert shipped.is_right(again)


def test_asked_for_by_a_note_again_and_again(shipped: Shipped, again: Path) -> None:
    piece = shipped.pieces()[0]
    asked = Asked(shipped.path, shipped.remote.url, "host")
    for _ in range(3):
        piece.unlink()
        asked.ask(Wish(missing=[str(piece.relative_to(shipped.files))]))
        shipped.ship()
        assert piece.exists()
        shipped.ship()
        assert shipped.notes() == []
    assert len(shipped.rounds("full")) == 2, "no round is needed for that"
    assert shipped.is_right(again)


def test_what_is_shipped_while_it_is_compared_is_not_missing(
    shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = shipped.remote.list

    def slow(prefix: str, after: str = "") -> Iterator[tuple[str, int]]:
        if prefix.startswith("hosts/"):
            monkeypatch.undo()
            shipped.shipper.round(full=True)
        return listed(prefix, after)

    monkeypatch.setattr(shipped.remote, "list", slow)
    assert shipped.check()[0] == []


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("restarted", [False, True])
def test_a_round_since_the_last_full_one(
    shipped: Shipped, again: Path, how: Callable[[Path], None], which: int, *, restarted: bool
) -> None:
    how(shipped.rounds("rounds")[-3:][which])
    assert shipped.check()[0]
    full = len(shipped.rounds("full"))
    assert shipped.mend().left == []
    if restarted:
        shipped.shipper = shipped.start()
    shipped.ship()
    # One that starts makes a full round behind damage by itself, and cannot always tell that it was for that.
    assert full < len(shipped.rounds("full")) <= full + 1 + restarted
    full = len(shipped.rounds("full"))
    assert shipped.is_right(again)
    assert shipped.notes() == []
    shipped.put(8)
    shipped.ship()
    assert len(shipped.rounds("full")) == full
    assert shipped.is_right(again)


@pytest.mark.parametrize("how", HOW)
def test_the_last_full_round(shipped: Shipped, again: Path, how: Callable[[Path], None]) -> None:
    how(shipped.rounds("full")[-1])
    assert shipped.check()[0]
    assert shipped.mend().left == []
    shipped.ship()
    assert shipped.is_right(again)
    assert shipped.notes() == []


def test_all_at_once_and_mail_does_not_wait(
    shipped: Shipped, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "INLINE_BYTES", 1000)
    shipped.shipper = shipped.start(pieces_s=0.0)
    shipped.ship()
    pieces = shipped.pieces()
    for file in pieces[::2]:
        flip(file)
    for file in pieces[1::2]:
        file.unlink()
    flip(shipped.rounds("rounds")[-1])
    mended = shipped.mend()
    assert mended.created == len(pieces) // 2
    assert mended.left == []
    rounds = 0
    more = True
    while more:
        shipped.put(100 + rounds, 500)
        ended = shipped.shipper.round()
        more = ended.more
        assert shipped.shipper.lag_s() == 0
        assert rounds == 0 or ended.objects <= 4
        rounds += 1
    assert rounds >= len(pieces[::2])
    assert shipped.is_right(again)
    assert shipped.notes() == []


def test_what_is_not_right_here_is_not_shipped(shipped: Shipped, caplog: pytest.LogCaptureFixture) -> None:
    first, second, *_ = shipped.pieces()
    first.unlink()
    flip(second)
    pack = min(shipped.path.glob("streams/host/*.pack"))
    pack.write_bytes(bytes(pack.stat().st_size))
    mended = shipped.mend()
    assert (mended.created, mended.asked) == (0, 0)
    assert [text.partition(":")[0] for text in mended.left] == [
        str(file.relative_to(shipped.files)) for file in (first, second)
    ]
    assert shipped.notes() == []
    # It was right when it was asked for, and is so no more.
    Asked(shipped.path, shipped.remote.url, "host").ask(
        Wish(damaged=[str(second.relative_to(shipped.files))])
    )
    shipped.ship()
    shipped.ship()
    assert "cannot be mended" in caplog.text
    assert shipped.notes() == []


def test_what_compaction_has_replaced_is_left_alone(shipped: Shipped, again: Path) -> None:
    shipped.store.writer.roll()
    shipped.store.settle_index()
    Compactor(shipped.store, CompactOptions(everything=True, level=1)).run()
    first, second, *_ = shipped.pieces()
    first.unlink()
    flip(second)
    assert shipped.mend() == Mended()
    shipped.ship()
    assert shipped.is_right(again)


def test_what_another_ships_is_not_mended_from_here(shipped: Shipped) -> None:
    other = shipped.path.parent / "other"
    shutil.copytree(shipped.path, other)
    shutil.rmtree(other / "jobs")
    flip(shipped.pieces()[0])
    flip(shipped.rounds("rounds")[-1])
    _, wrongs, _ = shipped.check(read_data=Sample())
    mended = mend(shipped.remote, other, wrongs)
    assert len(mended.left) == 2
    assert all("not shipped from here" in text for text in mended.left)
    assert not (other / "jobs").exists()


def test_a_replica_that_was_emptied_while_it_is_shipped_to(shipped: Shipped, again: Path) -> None:
    shutil.rmtree(shipped.files)
    shipped.files.mkdir()
    ask(shipped.path, shipped.remote.url, Wrong("host", anew=True), Mended())
    with pytest.raises(BeginAnewError):
        shipped.ship()
    assert shipped.notes() == []
    shipped.shipper = shipped.start()
    # What was asked of the chain that is no more asks nothing of this one.
    ask(shipped.path, shipped.remote.url, Wrong("host", rounds=1, last=900), Mended())
    shipped.ship()
    assert shipped.notes() == []
    assert len(shipped.rounds("full")) == 1
    assert shipped.is_right(again)


def test_notes_that_cannot_be_read_and_old_ones(shipped: Shipped, caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked(shipped.path, shipped.remote.url, "host")
    assert asked.since_s() == 0.0
    asked.ask(Wish(missing=["packs/host/0000000099/000000000000-1-" + "0" * 64], full_after=1))
    (note,) = shipped.notes()
    assert 0 < asked.since_s() < 60
    note.with_name(note.name.replace(".json", "0.json")).write_text("{")
    sent = shipped.remote.counted.sent_bytes
    shipped.ship()
    assert shipped.remote.counted.sent_bytes == sent, "there is a full round since, and no such piece"
    assert shipped.notes() == []
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("how", [flip, cut, Path.unlink])
def test_the_index_is_shipped_anew(shipped: Shipped, how: Callable[[Path], None], tmp_path: Path) -> None:
    for name in shipped.ship_index().pieces("host"):
        how(shipped.files / name)
    findings, _, _ = shipped.check(read_data=Sample())
    assert len(findings) == 2
    assert shipped.mend().asked == 2
    shipped.ship()
    assert shipped.notes() == [], "nothing of it is left to do"
    assert shipped.is_right(tmp_path / "again")
    mirror = Mirror(Replica(shipped.remote), "host", tmp_path / "mirror")
    assert mirror.follow() == []
    with mirror.open() as opened:
        found = {b"".join(opened.read(one.delivery.content)) for one in opened.deliveries(Query())}
    mirror.close()
    assert found == shipped.mails


def test_a_damaged_index_is_told_and_not_believed(
    shipped: Shipped, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for run in shipped.ship_index().runs:
        for extent in run:
            flip(shipped.files / index_piece_name("host", extent))
    mirror = Mirror(Replica(shipped.remote), "host", tmp_path / "mirror")
    mirror.follow()
    with mirror.open() as opened:
        found = {b"".join(opened.read(one.delivery.content)) for one in opened.deliveries(Query())}
    mirror.close()
    assert found == shipped.mails
    assert re.search(r"index/.* is damaged: host is read without that index", caplog.text)
