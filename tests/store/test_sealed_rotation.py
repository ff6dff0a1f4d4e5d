"""Sealed stores whose keys change, are lost or are not all at hand: nothing goes unnoticed."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from store import layout, records
from store.compact import CompactOptions, Compactor, close_open_packs
from store.deliveries import Query
from store.errors import HeldError, IdentityError, SealedError
from store.filters import Filter
from store.retention import Rule, erase, expire, place_hold, release_hold
from store.sealing import new_identity, recipients_of
from store.store import Store
from tests.store.conftest import put_message
from tests.store.test_sealed import (
    IDENTITIES,
    OTHER_IDENTITIES,
    OTHER_PUBLIC,
    PUBLIC,
    STREAM,
    fill,
    mail,
    packs,
    read_back,
)

BOTH = [*IDENTITIES, *OTHER_IDENTITIES]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_what_others_alone_can_read_is_stored_anew(path: Path) -> None:
    """After a rotation: a message, and a part of one, that the old key alone opens."""
    whole = b"Subject: the same\r\n\r\n" + random.Random(5).randbytes(9000).hex().encode() + b"\r\n"
    forwarded = b"X-Forwarded: yes\r\n" + whole
    with Store.open(path, create=True, recipients=(PUBLIC,)) as store:
        store.start_writing(STREAM)
        put_message(store, whole)
    for recipients in ((OTHER_PUBLIC,), (OTHER_PUBLIC, PUBLIC)):
        with Store.open(path, recipients=recipients) as store:
            store.start_writing(STREAM)
            again = [put_message(store, whole), put_message(store, forwarded)]
        with Store.open(path, identities=OTHER_IDENTITIES) as store:
            assert b"".join(store.read(store.delivery(again[0].id).delivery.content)) == whole
            assert b"".join(store.read(again[1].content)) == forwarded
    size = sum(p.stat().st_size for p in packs(path))
    with Store.open(path) as store:  # now it is there for both
        store.start_writing(STREAM)
        put_message(store, forwarded)
    assert sum(p.stat().st_size for p in packs(path)) - size < 2500


def test_across_a_rotation_each_key_takes_in_its_own(path: Path) -> None:
    """The index was lost and rebuilt by somebody who can read nothing of it."""
    old = fill(path, 5)
    new = fill(path, 5, start=5, recipients=(OTHER_PUBLIC,))
    shutil.rmtree(path / "index")
    Store.open(path).close()
    read_back(path, new, OTHER_IDENTITIES, 5)
    with Store.open(path, identities=OTHER_IDENTITIES) as store:
        assert store.stats().counters.deliveries == {"lmtp": 5}
        assert store.hidden == [STREAM]
        with pytest.raises(SealedError, match="sealed for others"):
            store.require_whole()
    read_back(path, old, IDENTITIES)
    with Store.open(path, identities=OTHER_IDENTITIES) as store:
        assert store.stats().counters.deliveries == {"lmtp": 10}
        store.require_whole()


def test_who_cannot_read_takes_nothing_from_who_can(path: Path) -> None:
    """A blind look at the store between a commit and its indexing."""
    fill(path, 0)
    look = f"from pathlib import Path; from store.store import Store; Store.open(Path({str(path)!r})).close()"
    with Store.open(path, identities=IDENTITIES) as store:
        store.start_writing(STREAM)
        deliveries = []
        for number in range(6):
            deliveries.append(put_message(store, mail(number)))
            if number % 2:
                subprocess.run([sys.executable, "-c", look], check=True, timeout=60)
        store.settle_index()
        for delivery in deliveries:
            assert store.delivery(delivery.id).delivery == delivery
        assert store.hidden == []
        assert store.stats().counters.deliveries == {"lmtp": 6}


def test_nothing_goes_while_holds_may_be_hidden(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing(STREAM)
        delivery = put_message(store, mail(1))
    with Store.open(path, recipients=(PUBLIC,), identities=IDENTITIES) as store:
        store.start_writing_beside("operator")
        place_hold(store, "all", Filter(to="*"), owner="carla", reason="lawsuit")
    shutil.rmtree(path / "index")
    Store.open(path).close()
    rules = (Rule(keep_us=1),)
    for recipients, identities in ((None, []), ((OTHER_PUBLIC,), OTHER_IDENTITIES)):
        with Store.open(path, recipients=recipients, identities=identities) as store:
            store.start_writing_beside("other")
            with pytest.raises(SealedError):
                expire(store, rules, owner="serve")
            with pytest.raises(SealedError):
                erase(store, [delivery.id], owner="carla", reason="asked")
            with pytest.raises(SealedError):
                place_hold(store, "all", Filter(to="nobody@example.org"), owner="x", reason="y")
    with Store.open(path, identities=BOTH) as store:
        store.start_writing_beside("other")
        assert expire(store, rules, owner="serve").held == 1
        with pytest.raises(HeldError):
            erase(store, [delivery.id], owner="carla", reason="asked")


def test_compaction_does_not_write_what_it_cannot_read_back(path: Path) -> None:
    fill(path, 20)
    fill(path, 1, start=20, recipients=(OTHER_PUBLIC,))
    before = {p: p.read_bytes() for p in packs(path)}
    with Store.open(path, identities=IDENTITIES) as store:  # the old key alone
        assert store.blind
        with pytest.raises(SealedError):
            Compactor(store, CompactOptions(everything=True)).run()
    assert before == {p: p.read_bytes() for p in packs(path)}


def test_compaction_drops_nothing_while_deliveries_may_be_hidden(path: Path) -> None:
    """Two deliveries of one message, for two keys: the one that is seen is erased."""
    first = fill(path, 1)
    second = fill(path, 1, recipients=(OTHER_PUBLIC,))
    with Store.open(path, identities=BOTH) as store:
        store.start_writing_beside("operator")
        erase(store, [second[0].id], owner="carla", reason="asked")
    shutil.rmtree(path / "index")
    Store.open(path).close()
    with Store.open(path, identities=OTHER_IDENTITIES) as store:
        close_open_packs(store)
        report = Compactor(store, CompactOptions(everything=True)).run()
        assert report.dropped_messages == 0
        assert report.skipped
    read_back(path, first, BOTH)


def test_holds_go_over_to_the_new_key(path: Path) -> None:
    fill(path, 3)
    with Store.open(path, identities=IDENTITIES) as store:
        store.start_writing_beside("operator")
        place_hold(store, "case", Filter(subject="number 1"), owner="carla", reason="lawsuit")
    fill(path, 1, start=3, recipients=(OTHER_PUBLIC,))
    with Store.open(path, identities=BOTH) as store:
        close_open_packs(store)
        Compactor(store, CompactOptions(reseal=True)).run()
    with Store.open(path, identities=OTHER_IDENTITIES) as store:
        with store.index.read() as snapshot:
            holds = [(hold.name, hold.matches) for hold in snapshot.holds().values()]
        assert holds == [("case", {"subject": "number 1"})]
        assert Compactor(store, CompactOptions(everything=True)).run().units
        store.start_writing_beside("operator")
        assert release_hold(store, "case", owner="carla", reason="settled").matches


def test_a_flipped_byte_costs_one_record_also_where_the_keys_are(path: Path) -> None:
    deliveries = fill(path, 30)
    pack = packs(path)[0]
    sound = pack.read_bytes()
    at = layout.PACK_HEADER_BYTES + layout.RECORD_HEADER_BYTES + 30
    pack.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
    shutil.rmtree(path / "index")
    with Store.open(path, identities=IDENTITIES) as store:
        found = {stored.delivery.id for stored in store.deliveries(Query())}
    assert found >= {delivery.id for delivery in deliveries[1:]}


def test_damage_behind_sealed_groups_does_not_hide_them(path: Path) -> None:
    deliveries = fill(path, 10)
    shutil.rmtree(path / "index")
    Store.open(path).close()
    pack = packs(path)[0]
    data = pack.read_bytes()
    pack.write_bytes(data[:-300] + bytes([data[-300] ^ 1]) + data[-299:])
    with Store.open(path, identities=IDENTITIES) as store:
        found = {stored.delivery.id for stored in store.deliveries(Query())}
        assert found >= {delivery.id for delivery in deliveries[:9]}
        assert store.damage


def test_a_leaf_confirms_no_guess(path: Path) -> None:
    """A fact of which somebody knows every word is not found by its leaf, which stands in the clear."""
    fill(path, 1)
    with Store.open(path, identities=IDENTITIES) as store:
        store.start_writing_beside("operator")
        hold = place_hold(store, "case", Filter(subject="x"), owner="carla", reason="lawsuit")
    data = b"".join(pack.read_bytes() for pack in packs(path))
    assert records.leaf(records.encode(hold)) not in data
    with Store.open(path, identities=IDENTITIES) as store, store.index.read() as snapshot:
        assert snapshot.holds()["case"] == hold


def test_a_secret_is_not_repeated_by_an_error() -> None:
    secret, _ = new_identity()
    with pytest.raises(IdentityError) as told:
        recipients_of([secret])
    assert secret not in str(told.value)
