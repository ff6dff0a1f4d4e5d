"""Cut and flipped bytes: never a wrong message, never a lost one before the cut, damage never cut away."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from store.check import Checked, check
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.errors import DamagedError, NotFoundError, StoreError, StoreFullError
from store.places import Damage, Group, TornTail
from store.records import Envelope, Leg
from store.retention import erase
from store.scan import initial_state, scan_groups
from store.store import Store
from tests.store.conftest import put_message

MESSAGES = [b"Subject: %d\r\n\r\nbody of number %d\r\n" % (n, n) for n in range(4)]


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, list[tuple[int, bytes]]]:
    """A store without index, and for each message the pack's size once it was durable."""
    path = tmp_path / "built"
    ends = []
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for message in MESSAGES:
            put_message(store, message)
            ends.append((pack_of(path).stat().st_size, message))
    shutil.rmtree(path / "index")
    return path, ends


def pack_of(path: Path) -> Path:
    return next((path / "streams" / "host").glob("*.pack"))


def messages_in(path: Path) -> list[bytes]:
    with Store.open(path) as store:
        return [b"".join(store.read(s.delivery.content)) for s in store.deliveries(Query(newest_first=False))]


def test_cut_at_every_byte(built: tuple[Path, list[tuple[int, bytes]]], tmp_path: Path) -> None:
    path, ends = built
    whole = pack_of(path).read_bytes()
    for cut in range(len(whole)):
        pack_of(path).write_bytes(whole[:cut])
        kept = [message for end, message in ends if end <= cut]
        store_id = bytes.fromhex(_identity(path)["id"])
        start = initial_state(store_id, "host")
        groups = list(scan_groups(path / "streams/host", store_id, "host", start))
        assert sum(isinstance(g, Group) for g in groups) == len(kept), cut
        assert not any(isinstance(g, Damage) for g in groups), cut
        if cut % 37 == 0:  # the whole way through LMDB now and then: it is the slow part
            assert messages_in(path) == kept, cut
            with Store.open(path) as store:  # and it can be written to again
                store.start_writing("host")
                put_message(store, b"after")
            shutil.rmtree(path / "index")
            assert messages_in(path) == [*kept, b"after"], cut
            shutil.rmtree(path / "index")
            for extra in sorted((path / "streams/host").glob("*.pack"))[1:]:
                extra.unlink()


def _identity(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((path / "mailkeep.store").read_text())
    return found


def test_every_flipped_byte_is_found_and_none_returned(built: tuple[Path, list[tuple[int, bytes]]]) -> None:
    path, _ = built
    whole = pack_of(path).read_bytes()
    identity = _identity(path)
    store_id = bytes.fromhex(identity["id"])
    last = (1, len(whole))
    for at in range(len(whole)):
        pack_of(path).write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        start = initial_state(store_id, "host")
        found = list(scan_groups(path / "streams/host", store_id, "host", start, last))
        assert any(isinstance(item, Damage) for item in found), at
        assert not any(isinstance(item, TornTail) for item in found), at


def test_a_flip_after_indexing_is_never_returned_as_mail(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        contents = {put_message(store, message).content: message for message in MESSAGES}
    whole = pack_of(path).read_bytes()
    for at in range(0, len(whole), 13):
        pack_of(path).write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        with Store.open(path) as store:
            for content, message in contents.items():
                try:
                    assert b"".join(store.read(content)) == message
                except (DamagedError, NotFoundError):
                    continue


def test_damage_before_an_acknowledged_message_is_kept_and_written_around(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        sizes = []
        for message in MESSAGES:
            put_message(store, message)
            sizes.append(pack_of(path).stat().st_size)
    shutil.rmtree(path / "index")
    whole = pack_of(path).read_bytes()
    hurt = whole[: sizes[0] + 60] + b"\0\0\0\0" + whole[sizes[0] + 64 :]
    pack_of(path).write_bytes(hurt)
    with Store.open(path) as store:
        assert store.damage
        store.start_writing("host")
        put_message(store, b"later")
    assert pack_of(path).read_bytes()[: len(hurt)] == hurt, "damage is evidence; it is never cut"
    with Store.open(path) as store:
        found = [s.delivery.subject for s in store.deliveries(Query(newest_first=False))]
        assert found[-1] == b""
        assert {b"0", b"2", b"3"} <= set(found)


def test_a_stream_cut_behind_the_index_is_noticed(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for message in MESSAGES:
            put_message(store, message)
    pack = pack_of(path)
    pack.write_bytes(pack.read_bytes()[:-10])
    with Store.open(path) as store:
        assert any("missing" in damage for damage in store.damage)
        assert len(list(store.deliveries(Query()))) == len(MESSAGES) - 1


def test_a_pack_of_another_store_is_refused(path: Path, tmp_path: Path) -> None:
    for where in (path, tmp_path / "other"):
        with Store.open(where, create=True) as store:
            store.start_writing("host")
            put_message(store, MESSAGES[0])
    shutil.copy(pack_of(tmp_path / "other"), pack_of(path))
    shutil.rmtree(path / "index")
    with Store.open(path) as store:
        assert any("belongs to" in damage for damage in store.damage)
        assert not list(store.deliveries(Query()))


def test_a_zeroed_page_of_a_group_that_was_never_acknowledged(path: Path) -> None:
    """Within one flush nothing orders the pages: the COMMIT may be on disk, and what it vouches for not."""
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        put_message(store, MESSAGES[0])
        end = pack_of(path).stat().st_size
        put_message(store, MESSAGES[1])
    shutil.rmtree(path / "index")
    pack = pack_of(path)
    data = bytearray(pack.read_bytes())
    data[end + 40 : end + 60] = bytes(20)
    pack.write_bytes(data)
    for _ in range(2):
        with Store.open(path) as store:
            assert not store.damage
            store.start_writing("host")
            put_message(store, MESSAGES[2])
            assert list(check(store, Checked(), read_data=True)) == []
            subjects = {s.delivery.subject for s in store.deliveries(Query())}
        assert subjects <= {b"0", b"2"}
        shutil.rmtree(path / "index")


def test_nothing_is_written_twice_in_one_place(path: Path) -> None:
    """A reader may have seen what a rollback takes back; new bytes there would be taken for the old."""
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        put_message(store, MESSAGES[0])
        half = store.begin()
        half.feed(b"Subject: half\r\n\r\n" + os.urandom(2_500_000))
        taken = threading.Event()
        half.hand_over(lambda _error: taken.set())
        assert taken.wait(60)
        seen = pack_of(path).read_bytes()
        store.writer._reserve_bytes = 1 << 60
        with pytest.raises(StoreFullError):
            put_message(store, MESSAGES[1])
        store.writer._reserve_bytes = 0
        put_message(store, MESSAGES[2])
        first, second = sorted((path / "streams/host").glob("*.pack"))
        assert seen.startswith(first.read_bytes()), "what was taken back is gone, and nothing stands there"
        assert second.stat().st_size > 176
    shutil.rmtree(path / "index")
    assert messages_in(path) == [MESSAGES[0], MESSAGES[2]]


def test_a_message_on_its_way_through_a_rollback_is_refused(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        half = store.begin()
        half.feed(b"Subject: half\r\n\r\n" + os.urandom(2_500_000))
        half.hand_over()
        store.writer._reserve_bytes = 1 << 60
        with pytest.raises(StoreFullError):
            put_message(store, MESSAGES[1])
        store.writer._reserve_bytes = 0
        errors: list[StoreError | None] = []
        answered = threading.Event()

        def done(error: StoreError | None) -> None:
            errors.append(error)
            answered.set()

        half.commit(Leg.LMTP, Envelope(b"", ()), queue_id=b"", attributes={}, done=done)
        assert answered.wait(60)
        assert isinstance(errors[0], StoreFullError)


def test_a_damaged_header_costs_no_mail(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for message in MESSAGES:
            put_message(store, message)
    pack = pack_of(path)
    data = bytearray(pack.read_bytes())
    data[40] ^= 1  # in the salt, without which no checksum can be told
    pack.write_bytes(data)
    shutil.rmtree(path / "index")
    with Store.open(path) as store:
        assert any("header" in damage for damage in store.damage)
    assert messages_in(path) == MESSAGES


def test_what_is_damaged_is_stored_anew(path: Path) -> None:
    message = b"Subject: rot\r\n\r\n" + os.urandom(50_000).hex().encode() + b"\r\n"
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        first = put_message(store, message)
    pack = pack_of(path)
    data = bytearray(pack.read_bytes())
    data[5000] ^= 1
    pack.write_bytes(data)
    with Store.open(path) as store:
        store.start_writing("host")
        assert list(check(store, Checked()))
        put_message(store, message)
        store.settle_index()
        assert b"".join(store.read(first.content)) == message


def test_an_index_that_is_emptied_beside_a_reader_has_no_hole(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for message in MESSAGES[:3]:
            put_message(store, message)
        store.settle_index()
        store.view.clear()  # as another process that found it behind would
        put_message(store, MESSAGES[3])
        store.settle_index()
        assert len(list(store.deliveries(Query()))) == len(MESSAGES)


def test_a_lost_pack_keeps_its_number(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host", pack_bytes=1000)
        for message in MESSAGES:
            put_message(store, message)
    packs = sorted((path / "streams/host").glob("*.pack"))
    packs[-1].unlink()
    with Store.open(path) as store:
        assert store.damage
        store.start_writing("host", pack_bytes=1000)
        put_message(store, b"after\r\n")
    assert not packs[-1].exists(), "a replica may have the real one under this name"


def test_what_is_lost_before_a_segment(store: Store, path: Path) -> None:
    """What is behind it is there all the same, in an index that is made anew, too."""
    mails = []
    for number in range(4):
        mails.append([put_message(store, b"Subject: %d\r\n\r\n%d" % (number, n)).id for n in range(5)])
        store.writer.roll()
    store.settle_index()
    erase(store, mails[3][:1], owner="o", reason="r")
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=1, unit_bytes=1)).run()
    store.close()
    assert (path / "streams" / "host" / "0000000004-0000000004.segment").exists()
    (path / "streams" / "host" / "0000000003-0000000003.segment").unlink()
    shutil.rmtree(path / "index")
    with Store.open(path) as again:
        assert again.damage
        found = {found.delivery.id for found in again.deliveries(Query())}
        assert found == {*mails[0], *mails[1], *mails[3][1:]}
