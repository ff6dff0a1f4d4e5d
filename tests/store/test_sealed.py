"""Sealed stores: captured with public keys alone, read with an identity, and closed to everybody else."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
import zstandard

from store import layout
from store.check import Checked, check
from store.compact import CompactOptions, Compactor, close_open_packs
from store.deliveries import Query, RemovedError
from store.errors import IdentityError, SealedError
from store.filters import Filter
from store.ids import DeliveryId
from store.rebuild import rebuild
from store.records import Delivery
from store.retention import erase, place_hold
from store.scan import key_of_pack, keys_record
from store.sealing import Identity, Keyring, new_identity, parse_identities, protect, recipients_of
from store.segments import all_packs, pack_path
from store.store import Store

from .conftest import put_message


def made() -> tuple[str, list[Identity]]:
    """A public key and its identity."""
    secret, public = new_identity()
    return public, parse_identities(secret.encode(), "identity", lambda: None)


PUBLIC, IDENTITIES = made()
OTHER_PUBLIC, OTHER_IDENTITIES = made()
STREAM = "host"


def mail(number: int, word: str = "") -> bytes:
    """A message with an attachment of its own."""
    noise = random.Random(number).randbytes(600).hex()
    return (
        f"From: bert@example.com\r\nTo: anna@example.org\r\nSubject: number {number} {word}\r\n"
        f"Message-ID: <{number}@example.com>\r\n\r\n{word} body of {number}\r\n{noise}\r\n"
    ).encode()


def fill(
    path: Path, count: int, *, start: int = 0, recipients: tuple[str, ...] = (PUBLIC,)
) -> list[Delivery]:
    """Capture messages as `serve` does on a host that has the public key alone."""
    with Store.open(path, create=True, recipients=recipients) as store:
        store.start_writing(STREAM)
        return [put_message(store, mail(number)) for number in range(start, start + count)]


def read_back(path: Path, deliveries: list[Delivery], identities: list[Identity], start: int = 0) -> None:
    """Every message, through a store opened anew."""
    with Store.open(path, identities=identities) as store:
        for number, delivery in enumerate(deliveries, start):
            found = store.delivery(delivery.id).delivery
            assert found == delivery
            assert b"".join(store.read(found.content)) == mail(number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def packs(path: Path) -> list[Path]:
    """All pack files."""
    return [pack_path(d, n) for d in sorted((path / "streams").iterdir()) for n in all_packs(d)]


def test_what_is_captured_with_the_public_key_is_read_with_the_identity(path: Path) -> None:
    read_back(path, fill(path, 20), IDENTITIES)


def test_without_an_identity_nothing_is_read(path: Path) -> None:
    deliveries = fill(path, 3)
    with Store.open(path) as store:
        assert store.blind
        with pytest.raises(SealedError, match="no identity at hand"):
            store.delivery(deliveries[0].id)
        with pytest.raises(SealedError):
            next(store.deliveries(Query()))
        with pytest.raises(SealedError):
            store.recipe(deliveries[0].content)


def test_a_wrong_identity_is_told_and_nothing_changes(path: Path) -> None:
    fill(path, 3)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and "index" not in p.parts}
    with pytest.raises(SealedError, match="no identity given opens anything") as told:
        Store.open(path, identities=OTHER_IDENTITIES)
    assert PUBLIC in str(told.value)
    assert before == {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and "index" not in p.parts}


def test_duplicates_are_found_without_an_identity(path: Path) -> None:
    first = fill(path, 5)
    size = sum(p.stat().st_size for p in packs(path))
    again = fill(path, 5)
    assert sum(p.stat().st_size for p in packs(path)) - size < size / 2
    read_back(path, first, IDENTITIES)
    read_back(path, again, IDENTITIES)


def test_with_two_recipients_each_reads(path: Path) -> None:
    deliveries = fill(path, 4, recipients=(PUBLIC, OTHER_PUBLIC))
    read_back(path, deliveries, IDENTITIES)
    read_back(path, deliveries, OTHER_IDENTITIES)


def test_after_a_rotation_each_reads_what_was_sealed_for_it(path: Path) -> None:
    old = fill(path, 3)
    new = fill(path, 3, start=3, recipients=(OTHER_PUBLIC,))
    read_back(path, old, IDENTITIES)
    read_back(path, new, OTHER_IDENTITIES, 3)
    with Store.open(path, identities=OTHER_IDENTITIES) as store, pytest.raises(SealedError):
        store.delivery(old[0].id)
    read_back(path, old, [*IDENTITIES, *OTHER_IDENTITIES])


def test_compaction_seals_for_the_present_recipients(path: Path) -> None:
    old = fill(path, 30)
    fill(path, 1, start=30, recipients=(OTHER_PUBLIC,))
    both = [*IDENTITIES, *OTHER_IDENTITIES]
    with Store.open(path, identities=both) as store:
        close_open_packs(store)
        report = Compactor(store, CompactOptions(everything=True)).run()
        assert report.units
        assert not report.skipped
    read_back(path, old, OTHER_IDENTITIES)
    with pytest.raises(SealedError):
        Store.open(path, identities=IDENTITIES)


def test_reseal_rewrites_what_others_can_read_and_nothing_else(path: Path) -> None:
    old = fill(path, 10)
    fill(path, 1, start=10, recipients=(OTHER_PUBLIC,))
    both = [*IDENTITIES, *OTHER_IDENTITIES]
    with Store.open(path, identities=both) as store:
        assert Compactor(store).plan() == []
        close_open_packs(store)
        assert [unit.why for unit in Compactor(store, CompactOptions(reseal=True)).plan()] == [
            "not sealed for the present recipients"
        ]
        Compactor(store, CompactOptions(reseal=True)).run()
        assert Compactor(store, CompactOptions(reseal=True)).plan() == []
    read_back(path, old, OTHER_IDENTITIES)


def test_an_index_that_is_gone_comes_back_when_an_identity_is_there(path: Path) -> None:
    deliveries = fill(path, 12)
    shutil.rmtree(path / "index")
    with Store.open(path) as store:
        assert store.stats().counters.deliveries == {}
        assert store.stats().counters.chunks
        with store.index.read() as snapshot:
            assert len(snapshot.unread(STREAM)) == 1
    more = fill(path, 3, start=12)  # capture goes on meanwhile, and dedup with it
    read_back(path, deliveries + more, IDENTITIES)
    with Store.open(path) as store:
        assert store.stats().counters.deliveries == {"lmtp": 15}
        with store.index.read() as snapshot:
            assert snapshot.unread(STREAM) == []


def test_an_index_built_blind_from_compacted_packs_comes_back_too(path: Path) -> None:
    deliveries = fill(path, 25)
    with Store.open(path, identities=IDENTITIES) as store:
        close_open_packs(store)
        Compactor(store, CompactOptions(everything=True)).run()
    shutil.rmtree(path / "index")
    more = fill(path, 3, start=25)
    read_back(path, deliveries + more, IDENTITIES)
    with Store.open(path) as store:
        assert store.stats().counters.deliveries == {"lmtp": 28}


@pytest.mark.parametrize("identities", [(), IDENTITIES], ids=["blind", "with the identity"])
def test_check_finds_a_sealed_store_sound(path: Path, identities: list[Identity]) -> None:
    fill(path, 12)
    checked = Checked()
    with Store.open(path, identities=identities) as store:
        assert list(check(store, checked, read_data=bool(identities))) == []
    assert checked.commits == 12
    assert checked.deliveries == (12 if identities else 0)
    assert (checked.sealed > 0) == (not identities)


@pytest.mark.parametrize("identities", [(), IDENTITIES], ids=["blind", "with the identity"])
def test_check_finds_every_flipped_byte(path: Path, identities: list[Identity]) -> None:
    fill(path, 2)
    pack = packs(path)[0]
    sound = pack.read_bytes()
    for at in range(0, len(sound), 41):
        pack.write_bytes(sound[:at] + bytes([sound[at] ^ 0x40]) + sound[at + 1 :])
        with Store.open(path, identities=identities) as store:
            assert list(check(store, Checked(), read_data=bool(identities))), at
    pack.write_bytes(sound)


def test_a_sealed_block_opens_only_where_it_was_written() -> None:
    seal, _ = Keyring(recipients_of([PUBLIC])).new_seal()
    sealed = seal.seal(7, 5, b"clear", b"body")
    assert seal.open(7, 5, b"clear", sealed) == b"body"
    for kind, number, clear in ((6, 5, b"clear"), (7, 6, b"clear"), (7, 5, b"other")):
        with pytest.raises(ValueError, match="does not open"):
            seal.open(kind, number, clear, sealed)


def test_the_data_key_is_found_again_where_its_first_record_is_lost(path: Path) -> None:
    with Store.open(path, create=True, recipients=(PUBLIC,)) as store:
        store.start_writing(STREAM)
        deliveries = [put_message(store, os.urandom(1 << 20)) for _ in range(20)]
    pack = packs(path)[0]
    key = key_of_pack(pack, Store.open(path).id)
    assert keys_record(pack, key)
    data = bytearray(pack.read_bytes())
    at = layout.PACK_HEADER_BYTES + layout.RECORD_HEADER_BYTES + 20
    data[at] ^= 1
    pack.write_bytes(data)
    with Store.open(path, identities=IDENTITIES) as store:
        assert len(b"".join(store.read(deliveries[-1].content))) == 1 << 20


def test_packs_in_which_nothing_was_committed_are_no_loss(path: Path) -> None:
    """Each start begins a new pack; compaction comes when some of them are empty."""
    deliveries = fill(path, 3)
    fill(path, 0)
    fill(path, 0)
    deliveries += fill(path, 2, start=3)
    for _ in range(2):
        with Store.open(path, identities=IDENTITIES) as store:
            assert Compactor(store, CompactOptions(everything=True)).run().skipped == []
            assert list(check(store, Checked(), read_data=True)) == []
        fill(path, 0)
        deliveries += fill(path, 1, start=len(deliveries))
    shutil.rmtree(path / "index")
    read_back(path, deliveries, IDENTITIES)
    with Store.open(path, identities=IDENTITIES) as store:
        assert store.damage == []
        assert list(check(store, Checked(), read_data=True)) == []


def test_holds_and_erasures_work_on_a_sealed_store(path: Path) -> None:
    deliveries = fill(path, 6)
    with Store.open(path, identities=IDENTITIES) as store:
        store.start_writing_beside("operator")
        place_hold(store, "Mueller-case", Filter(subject="number 1"), owner="carla", reason="lawsuit Maier")
        erase(store, [deliveries[3].id], owner="carla", reason="asked by Schulze")
        store.settle_index()
    with Store.open(path) as store, store.index.read() as snapshot, pytest.raises(SealedError):
        snapshot.holds()
    with Store.open(path, identities=IDENTITIES) as store:
        with store.index.read() as snapshot:
            assert set(snapshot.holds()) == {"Mueller-case"}
        close_open_packs(store)
        Compactor(store, CompactOptions(everything=True)).run()
        with pytest.raises(RemovedError):
            store.delivery(deliveries[3].id)
        rebuild(store)
        with store.index.read() as snapshot:
            assert set(snapshot.holds()) == {"Mueller-case"}
        assert list(check(store, Checked(), read_data=True)) == []
    for name in (b"Mueller", b"Maier", b"Schulze", b"carla"):
        assert [p for p in path.rglob("*") if p.is_file() and name in p.read_bytes()] == []


def test_blind_nothing_is_compacted_or_read_by_check(path: Path) -> None:
    fill(path, 2)
    with Store.open(path) as store:
        with pytest.raises(SealedError):
            Compactor(store, CompactOptions(everything=True)).run()
        with pytest.raises(SealedError):
            list(check(store, Checked(), read_data=True))


def test_a_passphrase_opens_its_file_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """age takes a machine for too slow when the millisecond by which it judges was somebody else's."""
    monkeypatch.setattr("store.sealing._PAUSE_S", 0)
    secret, _ = new_identity()
    file = protect(secret.encode(), "horse")
    name, salt, work = re.search(rb"-> (scrypt) (\S+) (\d+)\n", file).groups()  # type: ignore[union-attr]
    too_much = file.replace(b"%b %b %b" % (name, salt, work), b"%b %b 60" % (name, salt))
    with pytest.raises(IdentityError, match="by more work than this machine"):
        parse_identities(too_much, "key", lambda: "horse")

    decrypt, tried = pyrage.passphrase.decrypt, []

    def busy(data: bytes, passphrase: str) -> bytes:
        tried.append(passphrase)
        opened: bytes = decrypt(too_much if len(tried) < 3 else data, passphrase)
        return opened

    monkeypatch.setattr(pyrage.passphrase, "decrypt", busy)
    assert len(parse_identities(file, "key", lambda: "horse")) == 1
    assert len(tried) >= 3
    with pytest.raises(IdentityError, match="does not open with this passphrase"):
        parse_identities(file, "key", lambda: "mule")


def test_as_of_reads_a_sealed_store_as_it_was(path: Path) -> None:
    first = fill(path, 2)
    time.sleep(0.01)
    second = fill(path, 2, start=2)
    with Store.open(path, identities=IDENTITIES) as store:
        query = Query(as_of_us=(first[-1].time_us + second[0].time_us) // 2)
        assert {found.delivery.id for found in store.deliveries(query)} == {d.id for d in first}


def test_an_open_store_becomes_a_sealed_one(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing(STREAM)
        first = [put_message(store, mail(number)) for number in range(20)]
    second = fill(path, 3, start=20)
    read_back(path, first + second, IDENTITIES)
    with Store.open(path, identities=IDENTITIES) as store:
        close_open_packs(store)
        Compactor(store, CompactOptions(everything=True)).run()
        rebuild(store)
    assert [p for p in packs(path) if not layout.decode_pack_header(p.read_bytes()[:176]).suite] == []
    read_back(path, first + second, IDENTITIES)
    with Store.open(path) as store, pytest.raises(SealedError):
        store.delivery(first[0].id)


def test_what_is_no_recipient_is_refused(path: Path) -> None:
    with pytest.raises(IdentityError, match="no age recipient"):
        Store.open(path, create=True, recipients=("age1nonsense",))


ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
WORDS = [f"Zaunkoenig{number:03d}" for number in range(200)]


def planted() -> Iterator[bytes]:
    """200 words, each in one place that people read: subject, address, body, name and text of a file."""
    for number in range(0, 200, 5):
        subject, name, body, file, inside = WORDS[number : number + 5]
        yield (
            f"From: {name}@example.com\r\nTo: anna@example.org\r\nSubject: {subject}\r\n"
            "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
            f"--b\r\nContent-Type: text/plain\r\n\r\n{body}\r\n"
            f"--b\r\nContent-Type: application/x-thing; name={file}.txt\r\n\r\n{inside}\r\n--b--\r\n"
        ).encode()


def unpacked(path: Path) -> bytes:
    """A file, and whatever in it is compressed."""
    data = path.read_bytes()
    parts = [data]
    at = data.find(ZSTD_MAGIC)
    while at >= 0:
        with contextlib.suppress(zstandard.ZstdError):
            parts.append(zstandard.ZstdDecompressor().decompressobj().decompress(data[at:]))
        at = data.find(ZSTD_MAGIC, at + 1)
    return b"".join(parts)


@pytest.mark.parametrize("recipients", [(), (PUBLIC,)], ids=["open", "sealed"])
def test_no_planted_word_is_on_disk(path: Path, recipients: tuple[str, ...]) -> None:
    """In an open store the same look finds all of them."""
    with Store.open(path, create=True, recipients=recipients) as store:
        store.start_writing(STREAM)
        for number, message in enumerate(planted()):
            put_message(
                store,
                message,
                to=(f"{WORDS[number]}-to@example.org".encode(),),
                queue_id=WORDS[-number].encode(),
            )
        store.settle_index()

        def found() -> list[str]:
            files = {p: unpacked(p) for p in path.rglob("*") if p.is_file()}
            assert any(p.suffix == ".run" or p.name == "data.mdb" for p in files)
            return [w for w in WORDS if any(w.encode() in data for data in files.values())]

        assert found() == ([] if recipients else WORDS)
    with Store.open(path, identities=IDENTITIES) as store:
        listed = list(store.deliveries(Query()))
        assert len(listed) == 40
        close_open_packs(store)
        Compactor(store, CompactOptions(everything=True)).run()
        rebuild(store)
    assert found() == ([] if recipients else WORDS)


def test_ids_are_bytes_of_deliveries(path: Path) -> None:
    """The leaves that stand in the clear name no fact to whoever cannot open it."""
    deliveries = fill(path, 2)
    for pack in packs(path):
        data = pack.read_bytes()
        for delivery in deliveries:
            assert DeliveryId(delivery.id) not in data
            assert delivery.content not in data
