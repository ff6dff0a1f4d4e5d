"""Which files of a stream count: segments, what they stand for, and manifests that cannot be read.

What would break these: a pack that counts twice or not at all, a file called superseded that something still
needs (it would be removed), a damaged manifest that makes anything go, a listing that fails or mixes two
states while compaction puts one manifest in the place of another.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from store import segments
from store.check import Checked, check
from store.compact import CompactOptions, Compactor, close_open_packs
from store.deliveries import Query
from store.layout import FIRST_COMPACTED
from store.places import StreamState
from store.rebuild import rebuild
from store.segments import Segment, all_packs, pack_path, stream_files, written_packs
from store.store import Store
from tests.support.mailstore import MESSAGE, written

C = FIRST_COMPACTED


def state(pack: int, offset: int = 500) -> StreamState:
    return StreamState(pack, offset, pack * 10, pack, pack * 3, bytes([pack]) * 32, pack * 1000)


def segment(first: int, last: int, *packs: int) -> Segment:
    before = state(first - 1) if first > 1 else StreamState(0, 0, 0, 0, 0, b"s" * 32)
    return Segment(first, last, tuple(C + pack for pack in packs), before, state(last), last * 10)


def make(directory: Path, packs: list[int], *some: Segment) -> None:
    """Empty packs with these numbers, those that the segments name, and the segments."""
    for number in [*packs, *(number for one in some for number in one.packs)]:
        pack_path(directory, number).touch()
    for one in some:
        segments.write(directory, one)


def names(paths: tuple[Path, ...]) -> set[str]:
    return {path.name for path in paths}


def test_without_segments(tmp_path: Path) -> None:
    assert stream_files(tmp_path) == segments.Files((), (), ())
    make(tmp_path, [3, 1, 2])
    files = stream_files(tmp_path)
    assert (files.parts, files.superseded, files.damaged) == ((1, 2, 3), (), ())
    assert files.packs() == {1, 2, 3}


def test_a_manifest_reads_as_it_was_written(tmp_path: Path) -> None:
    one = segment(1, 17, 0, 1, 2)
    segments.write(tmp_path, one)
    assert segments.read(tmp_path / one.name) == one
    assert [path.name for path in tmp_path.iterdir()] == ["0000000001-0000000017.segment"]


def test_a_segment_stands_for_its_packs(tmp_path: Path) -> None:
    one = segment(2, 4, 0, 1)
    make(tmp_path, [1, 2, 3, 4, 5], one)
    files = stream_files(tmp_path)
    assert files.parts == (1, one, 5)
    assert names(files.superseded) == {"0000000002.pack", "0000000003.pack", "0000000004.pack"}
    assert files.packs() == {1, C, C + 1, 5}
    assert written_packs(tmp_path) == [1, 2, 3, 4, 5]
    assert all_packs(tmp_path) == [1, 2, 3, 4, 5, C, C + 1]


def test_nested_segments(tmp_path: Path) -> None:
    """The widest counts, whatever order they were written in and however deep they nest."""
    wide, middle, inner, beside = segment(1, 9, 5), segment(2, 6, 4), segment(3, 4, 2), segment(7, 8, 3)
    for number, order in enumerate(itertools.permutations((wide, middle, inner, beside))):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        make(directory, [1, 5, 10], *order)
        files = stream_files(directory)
        assert files.parts == (wide, 10)
        assert names(files.superseded) == {
            middle.name, inner.name, beside.name, "0000000001.pack", "0000000005.pack",
            *(f"{C + n:010d}.pack" for n in (2, 3, 4)),
        }  # fmt: skip


def test_one_that_begins_or_ends_where_a_wider_one_does(tmp_path: Path) -> None:
    wide, first, last = segment(1, 6, 9), segment(1, 3, 1), segment(4, 6, 2)
    make(tmp_path, [7], first, last, wide)
    files = stream_files(tmp_path)
    assert files.parts == (wide, 7)
    assert {first.name, last.name} < names(files.superseded)


def test_neighbours_both_count(tmp_path: Path) -> None:
    first, second = segment(1, 3, 0), segment(4, 6, 1)
    make(tmp_path, [7, 8], second, first)
    assert stream_files(tmp_path).parts == (first, second, 7, 8)
    assert stream_files(tmp_path).superseded == ()


def test_a_segment_that_replaces_one_of_the_same_range(tmp_path: Path) -> None:
    """As when a message in it was erased: the packs of the one before count no longer."""
    make(tmp_path, [4], segment(1, 3, 0, 1))
    fresh = segment(1, 3, 2)
    make(tmp_path, [], fresh)
    files = stream_files(tmp_path)
    assert files.parts == (fresh, 4)
    assert names(files.superseded) == {f"{C:010d}.pack", f"{C + 1:010d}.pack"}


def test_what_a_killed_run_wrote_counts_for_nothing(tmp_path: Path) -> None:
    make(tmp_path, [1, 2, C, C + 1])
    (tmp_path / (segment(1, 2).name + ".new")).write_text("half a manifest")
    files = stream_files(tmp_path)
    assert files.parts == (1, 2)
    assert names(files.superseded) == {f"{C:010d}.pack", f"{C + 1:010d}.pack"}


# -- manifests that cannot be read

SPOILS: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b'"first": 1', b'"first": 2')),
    "without its sum": lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[0]),
    "garbage": lambda path: path.write_bytes(b"\xff\x00" * 50),
}


@pytest.mark.parametrize("how", SPOILS)
def test_a_damaged_manifest_lets_nothing_go(tmp_path: Path, how: str) -> None:
    """Its packs are not known to be anybody's, nor is what it covered: all stay."""
    one, other = segment(1, 3, 0, 1), segment(4, 5, 2)
    make(tmp_path, [1, 2, 3, 6], one, other)
    before = stream_files(tmp_path)
    SPOILS[how](tmp_path / one.name)
    files = stream_files(tmp_path)
    assert files.parts == (1, 2, 3, other, 6)
    assert files.superseded == ()
    assert [(path.name, bool(what)) for path, what in files.damaged] == [(one.name, True)]
    segments.write(tmp_path, one)
    assert stream_files(tmp_path) == before


def test_every_changed_byte_of_a_manifest_is_damage(tmp_path: Path) -> None:
    one = segment(1, 3, 0, 1)
    segments.write(tmp_path, one)
    path = tmp_path / one.name
    data = path.read_bytes()
    for at in range(len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(ValueError):  # noqa: PT011 - any words will do
            segments.read(path)


def test_a_damaged_wider_manifest_leaves_the_one_within(tmp_path: Path) -> None:
    wide, inner = segment(1, 5, 3), segment(1, 3, 0)
    make(tmp_path, [4, 5, 6], wide, inner)
    (tmp_path / wide.name).write_bytes(b"damaged")
    files = stream_files(tmp_path)
    assert files.parts == (inner, 4, 5, 6)
    assert files.superseded == ()


@pytest.fixture
def compacted(tmp_path: Path) -> Path:
    """A store with a segment of packs 1 to 3 and an empty pack after it."""
    with written(tmp_path / "store") as fill:
        for n in range(30):
            fill.put(MESSAGE + b"%d" % n)
            if n % 10 == 9:
                fill.store.writer.roll()
    with Store.open(tmp_path / "store") as store:
        close_open_packs(store)
        Compactor(store, CompactOptions(everything=True, level=3)).run()
    return tmp_path / "store"


def test_what_a_segment_holds_is_not_behind(compacted: Path) -> None:
    """Else a service with much compacted mail would take its index for lost at every start."""
    with Store.open(compacted) as store:
        assert store.view.behind() == 0
    with written(compacted) as fill:
        fill.put(MESSAGE + b"new")
    with Store.open(compacted) as store:
        assert store.view.behind() == 0
        store.view.clear()
        assert store.view.behind() == store.pack_bytes(), "all of it"


@pytest.mark.parametrize("follows", ["mail", "nothing"])
def test_a_damaged_manifest_is_a_finding_and_nothing_goes(compacted: Path, follows: str) -> None:
    """Whatever is done with the store meanwhile; with a good copy of it all is well again, also where the
    pack after it was empty, so that only its header tells where the chain stood."""
    (manifest,) = compacted.glob("streams/host/*.segment")
    count = 30
    if follows == "mail":
        with written(compacted) as fill:
            fill.put(MESSAGE + b"follows")
        count += 1
    good = manifest.read_bytes()
    packs = {path.name: path.read_bytes() for path in manifest.parent.glob("*.pack")}
    manifest.write_bytes(good[:40] + b"~" + good[41:])
    with Store.open(compacted) as store:
        assert any("manifest is damaged" in text for text in store.damage)
        findings = list(check(store, Checked(), read_data=True))
        assert any(manifest.name in finding.where for finding in findings)
        close_open_packs(store)
        Compactor(store, CompactOptions(everything=True, level=3)).run()
    with written(compacted) as fill:
        fill.put(MESSAGE + b"new")
        fill.store.writer.roll()
        fill.store.settle_index()
        Compactor(fill.store, CompactOptions(everything=True, level=3)).run()
    assert {name: (manifest.parent / name).read_bytes() for name in packs} == packs
    manifest.write_bytes(good)
    with Store.open(compacted) as store:
        rebuild(store)
    with Store.open(compacted) as store:
        assert store.damage == []
        assert len(list(store.deliveries(Query()))) == count + 1
        assert list(check(store, Checked(), read_data=True)) == []


# -- while compaction replaces


def test_listing_while_manifests_come_and_go(tmp_path: Path) -> None:
    """A stream grows, and compaction makes ever wider segments of it: whoever lists it sees each pack stood
    for exactly once, and no file called superseded that the listing itself needs."""
    faults: list[BaseException] = []
    end = 0

    def compacting() -> None:
        nonlocal end
        rng = random.Random(1)
        fresh = itertools.count()
        try:
            for base in range(0, 200, 8):
                make(tmp_path, list(range(base + 1, base + 9)))
                end = base + 8
                small = [segment(base + a, base + b, next(fresh)) for a, b in ((1, 3), (4, 6), (7, 8))]
                middle = [segment(base + a, base + b, next(fresh)) for a, b in ((1, 6), (7, 8))]
                for wave in (small, middle, [segment(1, end, next(fresh), next(fresh))]):
                    for one in rng.sample(wave, len(wave)):
                        make(tmp_path, [], one)
                        for path in stream_files(tmp_path).superseded:
                            path.unlink()
        except BaseException as exc:  # noqa: BLE001 - whatever it is must fail the test
            faults.append(exc)

    thread = threading.Thread(target=compacting)
    thread.start()
    listings = 0
    try:
        while thread.is_alive():
            least = end
            files = stream_files(tmp_path)
            stood_for = [
                number
                for part in files.parts
                for number in (range(part.first, part.last + 1) if isinstance(part, Segment) else (part,))
            ]
            assert stood_for == list(range(1, len(stood_for) + 1))
            assert len(stood_for) >= least
            needed = {pack_path(tmp_path, number).name for number in files.packs()}
            assert not needed & names(files.superseded)
            assert files.damaged == ()
            listings += 1
    finally:
        thread.join()
    assert faults == []
    assert end == 200
    assert listings > 50


def test_a_manifest_that_goes_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction removes what a wider segment covers while somebody lists."""
    small, wide = segment(1, 3, 0), segment(1, 6, 1)
    make(tmp_path, [7], small, wide)
    real = Path.stat

    def stat(self: Path, **how: bool) -> object:
        found = real(self, **how)
        if self.name == small.name:
            self.unlink()  # at once after that look
        return found

    monkeypatch.setattr(Path, "stat", stat)
    assert stream_files(tmp_path).parts == (wide, 7)


def test_reading_a_store_that_is_compacted_again_and_again(compacted: Path) -> None:
    """In one process: `catch_up`, `behind` and the check list the stream while its files are replaced."""
    stop = threading.Event()
    faults: list[BaseException] = []
    with Store.open(compacted) as store:

        def compacting() -> None:
            try:
                while not stop.is_set():
                    Compactor(store, CompactOptions(everything=True, level=1)).run()
            except BaseException as exc:  # noqa: BLE001 - whatever it is must fail the test
                faults.append(exc)

        thread = threading.Thread(target=compacting)
        thread.start()
        try:
            for _ in range(25):
                assert store.view.behind() >= 0
                assert store.state("host").facts == 30
                assert store.stats().pack_bytes > 0
                found = list(store.deliveries(Query()))
                assert len(found) == 30
                assert b"".join(store.read(found[7].delivery.content)).startswith(MESSAGE)
                assert list(check(store, Checked(), read_data=True)) == []
        finally:
            stop.set()
            thread.join()
    assert faults == []
