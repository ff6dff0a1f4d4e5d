"""A mirror whose host's index cannot be taken: all is found all the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.compact import CompactOptions, Compactor
from store.index_copy import copy_of
from store.replicas.layout import index_piece_name
from store.replicas.mirror import Mirror
from store.replicas.reader import Replica
from store.replicas.ship import ShipOptions, Shipper
from store.store import Store
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
