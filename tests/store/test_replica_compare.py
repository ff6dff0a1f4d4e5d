"""A store and its replica compared both ways, with one thing wrong at a time; and mended from there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from store.about import About
from store.check import check
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.findings import Checked, Finding
from store.rebuild import rebuild
from store.replicas.compare import Compared, compare, repair
from store.replicas.reader import Replica
from store.sample import Sample
from store.store import Store
from tests.store.conftest import put_message
from tests.store.test_replica_ship import Bucket, shipper
from tests.store.test_store import big_message


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def shipped(path: Path, bucket: Bucket) -> Path:
    """A closed store of several packs, all of it in the replica."""
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for number in range(3):
            put_message(store, b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(2 << 20))
            store.writer.roll()
        put_message(store, b"Subject: last\r\n\r\n")
    shipping = shipper(path, bucket)
    shipping.round()
    return path


def found(bucket: Bucket, path: Path, **how: Sample) -> list[Finding]:
    with Store.open(path) as store:
        id_ = store.id
    return list(compare(Replica(bucket), path, id_, **how))


def test_nothing_is_wrong(shipped: Path, bucket: Bucket) -> None:
    compared = Compared()
    with Store.open(shipped) as store:
        found_ = list(compare(Replica(bucket), shipped, store.id, read_data=Sample(), compared=compared))
        assert found_ == []
        assert compared.bytes == store.pack_bytes()
    assert (compared.hosts, compared.behind_bytes, compared.unnamed) == (1, 0, 0)


def test_what_waits_is_no_finding(shipped: Path, bucket: Bucket) -> None:
    with Store.open(shipped) as store:
        store.start_writing("host")
        put_message(store, b"Subject: later\r\n\r\n")
    compared = Compared()
    with Store.open(shipped) as store:
        assert list(compare(Replica(bucket), shipped, store.id, compared=compared)) == []
    assert compared.behind_bytes > 0


def test_a_piece_that_is_gone_or_short_there(shipped: Path, bucket: Bucket) -> None:
    first, second, *_ = (name for name in bucket.objects if name.startswith("packs/"))
    del bucket.objects[first]
    bucket.objects[second] = bucket.objects[second][:-1]
    kinds = [(finding.kind, finding.what) for finding in found(bucket, shipped)]
    assert ("replica", f"{first} is missing") in kinds
    assert any(kind == "replica" and second in what and "bytes" in what for kind, what in kinds)


def test_a_flipped_bit_there_is_seen_when_it_is_read(shipped: Path, bucket: Bucket) -> None:
    name = next(name for name in bucket.objects if name.startswith("packs/"))
    data = bytearray(bucket.objects[name])
    data[len(data) // 2] ^= 1
    bucket.objects[name] = bytes(data)
    assert found(bucket, shipped) == []
    (finding,) = found(bucket, shipped, read_data=Sample())
    assert finding.kind == "replica"
    assert name in finding.what


@pytest.mark.parametrize("what", ["flipped", "cut", "gone"])
def test_damage_here_is_found_and_mended(shipped: Path, bucket: Bucket, what: str) -> None:
    pack = min(shipped.glob("streams/host/*.pack"))
    whole = pack.read_bytes()
    if what == "gone":
        pack.unlink()
    elif what == "cut":
        pack.write_bytes(whole[: len(whole) // 2])
    else:
        pack.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    findings = found(bucket, shipped)
    assert {finding.kind for finding in findings} == {"local"}
    assert all(str(pack) in finding.where for finding in findings)
    told: list[str] = []
    assert repair(Replica(bucket), shipped, findings, told.append) == 1
    assert pack.read_bytes() == whole
    assert found(bucket, shipped) == []
    with Store.open(shipped) as store:
        rebuild(store)
        assert list(check(store, Checked(), read_data=True)) == []
        assert len(list(store.deliveries(Query()))) == 4


def test_it_is_not_mended_with_what_is_damaged_there(shipped: Path, bucket: Bucket) -> None:
    pack = min(shipped.glob("streams/host/*.pack"))
    kept = pack.read_bytes()[:500]
    pack.write_bytes(kept)
    findings = found(bucket, shipped)
    for name in bucket.objects:
        if name.startswith("packs/"):
            bucket.objects[name] = bytes(len(bucket.objects[name]))
    told: list[str] = []
    assert repair(Replica(bucket), shipped, findings, told.append) == 0
    assert pack.read_bytes() == kept
    assert any("damaged" in text for text in told)


def test_compaction_that_the_replica_has_not_seen_is_no_damage(path: Path, bucket: Bucket) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for seed in range(4):
            put_message(store, big_message(50_000, seed))
        shipper(path, bucket).round()
        store.writer.roll()
        store.settle_index()
        Compactor(store, CompactOptions(everything=True, level=1)).run()
        assert not list(path.glob("streams/host/0000000001.pack"))
        assert list(compare(Replica(bucket), path, store.id)) == []


def test_another_hosts_streams_need_not_be_here(shipped: Path, bucket: Bucket, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "streams").mkdir(parents=True)
    About.read(shipped).write(other)
    with Store.open(other) as store:
        store.start_writing("mx2")
        put_message(store, b"Subject: of the other\r\n\r\n")
        shipper(other, bucket, "mx2").round()
    assert found(bucket, shipped) == []


def test_hosts_with_stores_of_their_own_are_no_finding(shipped: Path, bucket: Bucket, tmp_path: Path) -> None:
    for name, host in (("other", "mx2"), ("rival", "host-2")):
        with Store.open(tmp_path / name, create=True) as store:
            store.start_writing(host)
            put_message(store, b"Subject: of the other\r\n\r\n")
            shipper(tmp_path / name, bucket, host).round()
    assert found(bucket, shipped) == []
    (shipped / "streams" / "host-2").mkdir()
    (finding,) = found(bucket, shipped)
    assert finding.what.startswith("host-2 ships another store")


def test_where_nothing_of_this_store_is(shipped: Path, bucket: Bucket, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other", create=True) as store:
        store.start_writing("mx2")
        put_message(store, b"Subject: of the other\r\n\r\n")
    (finding,) = found(bucket, tmp_path / "other")
    assert finding.what == "nothing of this store is there, but of host"
