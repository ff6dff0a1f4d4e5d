"""A store made again from a replica: whole, verified, gone on with; what is wrong with the replica told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.about import About
from store.check import check
from store.deliveries import Query
from store.errors import SealedError, StoreError
from store.findings import Checked
from store.notes import SignKey
from store.replicas.errors import MissingObjectError
from store.replicas.fetch import Fetching, FetchOptions
from store.replicas.layout import (
    INLINE,
    NO_ROUND,
    Extent,
    Round,
    RoundError,
    StreamChange,
    encode_round,
    extent_of,
    piece_name,
)
from store.replicas.reader import NoReplicaError, Replica
from store.replicas.told import about_of, told_of
from store.sealing import Identity, new_identity, parse_identities
from store.store import Store
from tests.store.conftest import put_message


class Shelf:
    """Objects in a dictionary, as a bucket would hold them."""

    url = "shelf://"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.got = 0

    def get(self, name: str) -> bytes:
        if name not in self.objects:
            raise MissingObjectError(f"{self.url}: {name} is missing")
        return self.objects[name]

    def get_range(self, name: str, start: int, length: int) -> bytes:
        self.got += length
        return self.get(name)[start : start + length]

    def list(self, prefix: str, after: str = "") -> Iterator[tuple[str, int]]:
        found = sorted(self.objects.items())
        return iter([(n, len(data)) for n, data in found if n.startswith(prefix) and n > after])

    def folders(self, prefix: str) -> list[str]:
        rest = (name.removeprefix(prefix) for name in self.objects if name.startswith(prefix))
        return sorted({name.partition("/")[0] for name in rest if "/" in name})


class Shipping:
    """Ships a store's files as REPLICA.md says, the shortest way."""

    def __init__(self, shelf: Shelf, path: Path, host: str = "mx1", key: SignKey | None = None) -> None:
        self.shelf, self.path, self.host, self.key = shelf, path, host, key
        self.number, self.digest, self.time_us = 0, NO_ROUND, 0
        self.shipped: dict[tuple[str, int], int] = {}

    def ship(self, *, full: bool = False, inline: bool = False, time_us: int | None = None) -> Round:
        about = About.read(self.path)
        self.number += 1
        self.time_us = self.number * 1_000_000 if time_us is None else time_us
        round_ = Round(about.id, self.host, self.number, self.time_us, self.digest, "w", full=full)
        round_.about = told_of(about) if full else None
        data = []
        for pack in sorted(self.path.glob("streams/*/*.pack")):
            stream, number, whole = pack.parent.name, int(pack.stem), pack.read_bytes()
            start = 0 if full else self.shipped.get((stream, number), 0)
            if start == len(whole):
                continue
            self.shipped[stream, number] = len(whole)
            extent = extent_of(start, whole[start:], copy=INLINE if inline else 0)
            if inline:
                data.append(whole[start:])
            else:
                self.shelf.objects[piece_name(stream, number, extent)] = whole[start:]
            round_.streams.setdefault(stream, StreamChange()).packs[number] = [extent]
        self.shelf.objects[round_.name] = encode_round(round_, data, self.key.sign if self.key else str)
        self.digest = round_.digest
        return round_


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def shipping(shelf: Shelf, store: Store, path: Path) -> Shipping:
    """A replica with a full round and two after it, one with bytes in it."""
    shipping = Shipping(shelf, path)
    for number in range(3):
        put_message(store, b"Subject: %d\r\n\r\n" % number + bytes(range(256)) * 40 * (number + 1))
        shipping.ship(full=number == 0, inline=number == 2)
    return shipping


def contents(path: Path, identities: tuple[Identity, ...] = ()) -> set[bytes]:
    with Store.open(path, identities=identities) as opened:
        assert opened.damage == []
        assert list(check(opened, Checked(), read_data=True)) == []
        return {b"".join(opened.read(found.delivery.content)) for found in opened.deliveries(Query())}


def test_all_of_it_comes_back(shelf: Shelf, shipping: Shipping, path: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    fetching = Fetching(Replica(shelf), tmp_path / "again")
    fetched = fetching.run(seen.append)
    assert fetched.faults == []
    assert fetched.hosts == ["mx1"]
    assert sum(seen) == fetched.bytes == fetching.total_bytes
    packs = {file.relative_to(path): file.read_bytes() for file in path.glob("streams/*/*.pack")}
    again = tmp_path / "again"
    assert packs == {file.relative_to(again): file.read_bytes() for file in again.glob("streams/*/*.pack")}
    assert About.read(again) == About.read(path)
    assert len(contents(again)) == 3


def test_as_of_a_round(shelf: Shelf, shipping: Shipping, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        options = FetchOptions(as_of_us=number * 1_000_000)
        assert Fetching(Replica(shelf), tmp_path / f"{number}", options).run().faults == []
        assert len(contents(tmp_path / f"{number}")) == number
    with pytest.raises(NoReplicaError, match="of that time"):
        Fetching(Replica(shelf), tmp_path / "0", FetchOptions(as_of_us=1))


def test_interrupted_it_keeps_what_is_right(shelf: Shelf, shipping: Shipping, tmp_path: Path) -> None:
    whole = dict(shelf.objects)
    gone = max((name for name in shelf.objects if name.startswith("packs/")), key=lambda n: len(whole[n]))
    del shelf.objects[gone]
    again = tmp_path / "again"
    with pytest.raises(StoreError, match="is missing"):
        Fetching(Replica(shelf), again).run()
    with pytest.raises(StoreError, match="no store"):
        Store.open(again)
    shelf.objects = whole
    shelf.got = 0
    fetched = Fetching(Replica(shelf), again).run()
    assert fetched.kept_bytes > 0
    assert shelf.got + fetched.kept_bytes <= fetched.bytes, "what was there is not fetched again"
    assert len(contents(again)) == 3


def test_damage_is_told_and_the_rest_is_there(shelf: Shelf, shipping: Shipping, tmp_path: Path) -> None:
    name = next(name for name in shelf.objects if name.startswith("packs/") and "/000000000000-" not in name)
    flipped = bytearray(shelf.objects[name])
    flipped[-1] ^= 1
    shelf.objects[name] = bytes(flipped)
    fetched = Fetching(Replica(shelf), tmp_path / "again").run()
    assert any(name in fault for fault in fetched.faults)
    with Store.open(tmp_path / "again") as opened:
        assert len(list(opened.deliveries(Query()))) >= 1


@pytest.mark.parametrize("number", [2, 3])
def test_a_round_that_is_altered_ends_the_chain(
    shelf: Shelf, shipping: Shipping, tmp_path: Path, number: int
) -> None:
    name = next(n for n in shelf.objects if n.endswith(f"rounds/{number:012d}"))
    shelf.objects[name] = shelf.objects[name].replace(b'"writer":"w"', b'"writer":"x"')
    reading = Replica(shelf).read("mx1")
    assert reading.contents.number == number - 1
    assert [name in fault for fault in reading.faults] == [True]


def test_a_round_that_was_replaced_does_not_follow(shelf: Shelf, shipping: Shipping, path: Path) -> None:
    other = Shipping(Shelf(), path)
    other.number, other.digest = 1, bytes(31) + b"x"
    round_ = other.ship(time_us=2_000_000)
    shelf.objects[round_.name] = other.shelf.objects[round_.name]
    reading = Replica(shelf).read("mx1")
    assert reading.contents.number == 1
    assert "does not follow" in reading.faults[0]


def test_a_damaged_full_round_is_passed_over(shelf: Shelf, shipping: Shipping, tmp_path: Path) -> None:
    round_ = shipping.ship(full=True)
    shelf.objects[round_.name] = b"gone bad"
    fetched = Fetching(Replica(shelf), tmp_path / "again").run()
    assert len(fetched.faults) == 2, "when it is looked for, and when it is followed"
    assert len(contents(tmp_path / "again")) == 3


def test_signed_rounds(shelf: Shelf, store: Store, path: Path) -> None:
    key = SignKey.generate("mx1")
    put_message(store, b"Subject: x\r\n\r\n")
    Shipping(shelf, path, key=key).ship(full=True)
    assert Replica(shelf, key.verify_key).read("mx1").faults == []
    with pytest.raises(NoReplicaError, match="mx1"):
        Replica(shelf, SignKey.generate("mx1").verify_key).read("mx1")


def test_a_sealed_store(shelf: Shelf, path: Path, tmp_path: Path) -> None:
    secret, public = new_identity()
    (identity,) = parse_identities(secret.encode(), "key", lambda: None)
    with Store.open(path, create=True, recipients=[public]) as store:
        store.start_writing("host")
        put_message(store, b"Subject: secret\r\n\r\n")
        Shipping(shelf, path).ship(full=True)
    key = About.read(path).key
    assert not any(key in data or key.hex().encode() in data for data in shelf.objects.values())
    with pytest.raises(SealedError, match="no identity"):
        Fetching(Replica(shelf), tmp_path / "again")
    Fetching(Replica(shelf), tmp_path / "again", FetchOptions(identities=(identity,))).run()
    assert contents(tmp_path / "again", (identity,)) == {b"Subject: secret\r\n\r\n"}


def test_two_hosts_of_one_store(shelf: Shelf, shipping: Shipping, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "streams").mkdir(parents=True)
    About.read(path).write(other)
    with Store.open(other) as store:
        store.start_writing("mx2")
        put_message(store, b"Subject: of the other\r\n\r\n")
        Shipping(shelf, other, "mx2").ship(full=True)
    fetched = Fetching(Replica(shelf), tmp_path / "again").run()
    assert fetched.hosts == ["mx1", "mx2"]
    assert len(contents(tmp_path / "again")) == 4


def test_two_stores_are_not_mixed(shelf: Shelf, shipping: Shipping, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other", create=True) as store:
        store.start_writing("mx2")
        put_message(store, b"Subject: of the other\r\n\r\n")
        Shipping(shelf, tmp_path / "other", "mx2").ship(full=True)
    with pytest.raises(StoreError, match="several stores"):
        Fetching(Replica(shelf), tmp_path / "again")
    Fetching(Replica(shelf), tmp_path / "again", FetchOptions(hosts=("mx1",))).run()
    assert len(contents(tmp_path / "again")) == 3


def test_nothing_is_written_over(shelf: Shelf, shipping: Shipping, path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a store already"):
        Fetching(Replica(shelf), path).run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="is not empty"):
        Fetching(Replica(shelf), tmp_path / "mine").run()
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_no_replica_at_all(tmp_path: Path) -> None:
    with pytest.raises(NoReplicaError):
        Fetching(Replica(Shelf()), tmp_path / "again")


def test_what_it_says_of_the_store_is_looked_at() -> None:
    for told in ({}, {"id": "00", "key": "zz", "created_us": 1}, {"id": "00", "key": "00", "created_us": 1}):
        with pytest.raises(RoundError):
            about_of(json.loads(json.dumps(told)))


def test_extents_that_overlap_are_fetched_once(shelf: Shelf, shipping: Shipping, tmp_path: Path) -> None:
    """A pack whose beginning came in rounds, and then as one piece."""
    stream, pack = next(iter(shipping.shipped))
    shipping.shipped.clear()
    shipping.ship()
    fetching = Fetching(Replica(shelf), tmp_path / "again")
    size = sum(file.stat().st_size for file in shipping.path.glob("streams/*/*.pack"))
    assert fetching.total_bytes == size, (stream, pack)
    assert fetching.run().faults == []
    assert len(contents(tmp_path / "again")) == 3


def test_a_hole_is_told() -> None:
    change = StreamChange({1: [Extent(0, 10, bytes(32)), Extent(20, 5, bytes(32))]})
    round_ = Round(bytes(16), "mx1", 1, 1, NO_ROUND, "w", full=True, about={}, streams={"s": change})
    shelf = Shelf()
    shelf.objects[round_.name] = encode_round(round_, [])
    stream = Replica(shelf).read("mx1").contents.stream("s")
    assert stream.has_hole(1)
    assert stream.end(1) == 10
