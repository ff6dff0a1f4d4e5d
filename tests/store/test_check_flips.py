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

from store.check import Checked, Checker, check
from store.compact import Compactor, CompactOptions
from store.errors import DamagedError, NotFoundError
from store.places import Damage, Group
from store.scan import initial_state, scan_groups
from store.segments import stream_files
from store.store import Query, Store
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
    for pack in small.packs():
        for at in range(0, pack.stat().st_size, 97):
            for _ in flipped(pack, at):
                shutil.rmtree(small.path / "index", ignore_errors=True)
                with Store.open(small.path) as store:
                    assert list(check(store, Checked(), read_data=True)), (pack, at)
                    reads_only_what_was_written(store, small)
            shutil.rmtree(small.path / "index", ignore_errors=True)  # it has seen the damage


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


def test_what_is_whole_in_a_cut_segment_can_be_read(tmp_path: Path) -> None:
    """The chunks are cut, not the facts: a second pack of the segment is lost, the first one serves."""
    rng = random.Random(3)
    messages = [b"Subject: %d\r\n\r\n" % n + rng.randbytes(9000).hex().encode() for n in range(20)]
    path = tmp_path / "two"
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for message in messages:
            put_message(store, message)
        store.writer.roll()
        store.settle_index()
        Compactor(store, CompactOptions(everything=True, block_bytes=20_000)).run()
        pack = max(path.glob("streams/host/2*.pack"))
        os.truncate(pack, pack.stat().st_size - 200)
        store._packs.close()
        assert readable(store) == set(messages) or len(readable(store)) >= 1
        kinds = {finding.kind for finding in Checker(store).run()}
        assert "damage" in kinds
