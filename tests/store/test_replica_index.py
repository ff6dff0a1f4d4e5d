"""A restore takes the index that its replica has, and finds out when it is not right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from store.check import Checker, CheckOptions
from store.deliveries import Query
from store.index_copy import copy_of
from store.replicas.fetch import Fetched, Fetching, FetchOptions
from store.replicas.layout import index_under
from store.replicas.reader import Replica
from store.replicas.ship import ShipOptions, Shipper
from store.store import Store
from store.view import View
from tests.store.conftest import put_message
from tests.store.test_replica_ship import Bucket


@pytest.fixture
def mails(store: Store) -> set[bytes]:
    """Some packs of them, enough for runs."""
    found = set()
    for number in range(300):
        mail = b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(3000)
        put_message(store, mail)
        found.add(mail)
        if number % 100 == 99:
            store.writer.roll()
    store.settle_index()
    return found


@pytest.fixture
def bucket(store: Store, path: Path, mails: set[bytes]) -> Bucket:
    made = Bucket()
    options = ShipOptions(index=lambda: copy_of(store.index, store.view.names()))
    shipper = Shipper(path, made, "host", options)
    shipper.round(full=True)
    assert shipper.contents.index is not None
    assert shipper.contents.index.runs
    for number in range(5):  # and some that came after it
        mail = b"Subject: later %d\r\n\r\n" % number
        put_message(store, mail)
        mails.add(mail)
    store.settle_index()
    shipper.round()
    return made


def restored(bucket: Bucket, again: Path, mails: set[bytes]) -> Fetched:
    fetched = Fetching(Replica(bucket), again, FetchOptions(check_ahead=True)).run()
    with Store.open(again) as store:
        assert store.damage == []
        assert list(Checker(store, CheckOptions(resume=True)).run()) == []
        assert list(Checker(store, CheckOptions(read_data=None)).run()) == []
        found = {b"".join(store.read(one.delivery.content)) for one in store.deliveries(Query())}
    assert found == mails
    return fetched


def test_it_is_taken(
    bucket: Bucket, mails: set[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_scanned = 0
    caught_up = View.catch_up

    def counted(view: View, stream: str, advance: object = None) -> object:
        def step(size: int) -> None:
            nonlocal bytes_scanned
            bytes_scanned += size

        return caught_up(view, stream, step)

    monkeypatch.setattr(View, "catch_up", counted)
    assert restored(bucket, tmp_path / "again", mails).faults == []
    assert 0 < bytes_scanned < 50_000, "what the index knows was indexed again"


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_without_it_the_index_is_made(bucket: Bucket, mails: set[bytes], tmp_path: Path, how: str) -> None:
    for name in [name for name in bucket.objects if name.startswith(index_under("host"))]:
        if how == "missing":
            del bucket.objects[name]
        else:
            bucket.objects[name] = bucket.objects[name][:-1] + b"?"
    assert restored(bucket, tmp_path / "again", mails).faults == []


def test_a_pack_that_is_damaged_is_told(bucket: Bucket, tmp_path: Path) -> None:
    name = next(name for name in bucket.objects if name.startswith("packs/host/0000000002"))
    data = bytearray(bucket.objects[name])
    data[len(data) // 2] ^= 1
    bucket.objects[name] = bytes(data)
    fetched = Fetching(Replica(bucket), tmp_path / "again").run()
    assert len(fetched.faults) == 1
    with Store.open(tmp_path / "again") as store:
        found = [finding.kind for finding in Checker(store, CheckOptions()).run()]
        assert "damage" in found
        assert len(list(store.deliveries(Query()))) > 250, "the rest is there"


def test_a_pack_that_is_gone_is_told(bucket: Bucket, tmp_path: Path) -> None:
    for name in [name for name in bucket.objects if name.startswith("packs/host/0000000003")]:
        del bucket.objects[name]
    with pytest.raises(Exception, match="is missing"):
        Fetching(Replica(bucket), tmp_path / "again").run()
