"""Every byte of a pack matters: one that is flipped is found, a stream that is cut keeps what was before."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from store.check import Checked, check
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.errors import DamagedError, NotFoundError
from store.places import Damage, Group
from store.scan import initial_state, scan_groups, scan_segment
from store.segments import Segment, pack_path, stream_files
from store.store import Store
from tests.store.conftest import put_message

MESSAGES = [
    b"Subject: %d\r\nMessage-ID: <%d@x>\r\n\r\nbody of number %d\r\n" % (n, n, n) + b"and more\r\n" * n
    for n in range(4)
]


@dataclass
class Built:
    """A closed store, what is in it, and its packs."""

    path: Path
    contents: dict[bytes, bytes]

    def packs(self) -> list[Path]:
        return sorted(path for path in self.path.glob("streams/*/*.pack"))


def build(path: Path, messages: list[bytes], *, compacted: bool, after: bytes = b"after\r\n") -> Built:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        contents = {bytes(put_message(store, message).content): message for message in messages}
        if compacted:
            store.writer.roll()
            store.settle_index()
            Compactor(store, CompactOptions(everything=True)).run()
            assert any(not isinstance(part, int) for part in stream_files(path / "streams/host").parts)
            contents[bytes(put_message(store, after).content)] = after
    return Built(path, contents)


@pytest.fixture(params=["packs", "segment"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Built:
    return build(tmp_path / "small", MESSAGES, compacted=request.param == "segment")


def flipped(path: Path, at: int) -> Iterator[None]:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1 << at % 8]))
        file.flush()
        yield
        file.seek(at)
        file.write(byte)


def reads_only_what_was_written(store: Store, built: Built) -> None:
    for content, message in built.contents.items():
        try:
            assert b"".join(store.read(content)) == message  # type: ignore[arg-type]  # a test's bytes
        except (DamagedError, NotFoundError):
            continue


def test_every_flipped_byte_is_found_and_never_returned(small: Built) -> None:
    unnoticed = []
    with Store.open(small.path) as store:
        for pack in small.packs():
            for at in range(pack.stat().st_size):
                for _ in flipped(pack, at):
                    store._packs.close()
                    reads_only_what_was_written(store, small)
                    if next(check(store, Checked(), read_data=True), None) is None:
                        unnoticed.append((pack.name, at))
        assert unnoticed == []
        assert list(check(store, Checked(), read_data=True)) == []


def test_a_flip_before_the_store_is_opened(small: Built) -> None:
    """With the index lost, too, all but the last group is found: that may be a torn tail (FORMAT.md)."""
    with Store.open(small.path) as store:
        *_, before, last = _groups(small.path, store.id)
    for pack in small.packs():
        end = pack.stat().st_size
        if pack == pack_path(pack.parent, last.state.pack):
            end = before.state.offset if before.state.pack == last.state.pack else 176
        for at in range(0, end, 97):
            for _ in flipped(pack, at):
                shutil.rmtree(small.path / "index", ignore_errors=True)
                with Store.open(small.path) as store:
                    assert list(check(store, Checked(), read_data=True)), (pack, at)
                    reads_only_what_was_written(store, small)
            shutil.rmtree(small.path / "index")  # it has seen the damage


def _groups(path: Path, store_id: bytes) -> Iterator[Group]:
    directory = path / "streams/host"
    for found in scan_groups(directory, store_id, "host", initial_state(store_id, "host")):
        if isinstance(found, Segment):
            yield from (g for g in scan_segment(directory, store_id, "host", found) if isinstance(g, Group))
        elif isinstance(found, Group):
            yield found


@pytest.mark.parametrize("compacted", [False, True])
def test_random_flips_of_a_larger_store(tmp_path: Path, *, compacted: bool) -> None:
    rng = random.Random(5)
    messages = [
        b"Subject: %d\r\n\r\n" % n + rng.randbytes(rng.choice([10, 3000, 60_000])).hex().encode() + b"\r\n"
        for n in range(60)
    ]
    built = build(tmp_path / "large", messages, compacted=compacted)
    with Store.open(built.path) as store:
        for _ in range(120):
            pack = rng.choice(built.packs())
            at = rng.randrange(pack.stat().st_size)
            for _ in flipped(pack, at):
                assert next(check(store, Checked(), read_data=True), None), (pack, at)
        assert list(check(store, Checked(), read_data=True)) == []


def test_the_index_and_the_segment_manifest_are_covered_too(tmp_path: Path) -> None:
    built = build(tmp_path / "small", MESSAGES, compacted=True)
    manifest = next(built.path.glob("streams/host/*.segment"))
    with Store.open(built.path) as store:
        for at in range(manifest.stat().st_size - 1):  # the last byte is a line end
            for _ in flipped(manifest, at):
                assert next(check(store, Checked()), None), at


def test_cut_at_every_byte(tmp_path: Path) -> None:
    path, ends = tmp_path / "cut", []
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        pack = next(path.glob("streams/host/*.pack"))
        for message in MESSAGES:
            put_message(store, message)
            ends.append((pack.stat().st_size, message))
    whole = pack.read_bytes()
    store_id = bytes.fromhex(json.loads((path / "mailkeep.store").read_text())["id"])
    shutil.rmtree(path / "index")
    for cut in range(len(whole)):
        pack.write_bytes(whole[:cut])
        kept = [message for end, message in ends if end <= cut]
        found = list(scan_groups(path / "streams/host", store_id, "host", initial_state(store_id, "host")))
        assert sum(isinstance(g, Group) for g in found) == len(kept), cut
        assert not any(isinstance(g, Damage) for g in found), cut
        if cut % 29 == 0:
            with Store.open(path) as store:
                assert mails(store) == kept, cut
                assert list(check(store, Checked(), read_data=True)) == [], cut
            shutil.rmtree(path / "index")


def mails(store: Store) -> list[bytes]:
    return [b"".join(store.read(s.delivery.content)) for s in store.deliveries(Query(newest_first=False))]


def readable(store: Store) -> set[bytes]:
    found = set()
    for stored in store.deliveries(Query()):
        try:
            found.add(b"".join(store.read(stored.delivery.content)))
        except (DamagedError, NotFoundError):
            continue
    return found


def test_a_segment_cut_at_every_byte_is_damage_and_costs_no_other_mail(tmp_path: Path) -> None:
    built = build(tmp_path / "cut", MESSAGES, compacted=True)
    pack = built.packs()[-1]
    assert int(pack.stem) >= 1 << 31
    whole = pack.read_bytes()
    with Store.open(built.path) as store:
        for cut in range(len(whole)):
            pack.write_bytes(whole[:cut])
            assert next(check(store, Checked()), None), cut
            if cut % 41 == 0:
                store._packs.close()
                assert b"after\r\n" in readable(store), cut
        pack.write_bytes(whole)
        assert list(check(store, Checked(), read_data=True)) == []
    for cut in range(0, len(whole), 173):  # and where the index is built from what is left
        pack.write_bytes(whole[:cut])
        shutil.rmtree(built.path / "index")
        with Store.open(built.path) as store:
            assert store.damage, cut
            assert b"after\r\n" in readable(store), cut


def test_one_pack_of_a_segment_cut_leaves_what_lies_in_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.compact._COMMIT_BYTES", 50_000)
    rng = random.Random(3)
    messages = [b"Subject: %d\r\n\r\n" % n + rng.randbytes(9000).hex().encode() for n in range(20)]
    path = tmp_path / "several"
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for message in messages:
            put_message(store, message)
        store.writer.roll()
        store.settle_index()
        Compactor(store, CompactOptions(everything=True, block_bytes=20_000, pack_bytes=50_000)).run()
    first, second, *others = sorted(path.glob("streams/host/2*.pack"))
    assert first
    assert others, "the texts' heads lie together in the first, the facts in the last"
    os.truncate(second, second.stat().st_size // 2)
    with Store.open(path) as store:
        assert 5 <= len(readable(store)) < len(messages)
        assert readable(store) <= set(messages)
        found = list(check(store, Checked(), read_data=True))
        assert {finding.kind for finding in found} >= {"damage", "content"}
        lost = [finding for finding in found if finding.kind == "content"]
        assert len(lost) == len(messages) - len(readable(store))
