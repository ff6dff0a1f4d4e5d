"""`check` is silent on a sound store and names every kind of fault."""

from __future__ import annotations

from pathlib import Path

from store.check import Checked, Finding, check
from store.store import Store
from tests.store.conftest import put_message

MESSAGES = [b"Subject: %d\r\n\r\n" % n + b"text of %d\r\n" % n * 50 for n in range(5)]


def found(store: Store, *, read_data: bool = False) -> tuple[list[Finding], Checked]:
    checked = Checked()
    return list(check(store, checked, read_data=read_data)), checked


def test_a_sound_store_while_it_is_written_to(store: Store) -> None:
    for message in MESSAGES:
        put_message(store, message)
    findings, checked = found(store, read_data=True)
    assert findings == []
    assert (checked.deliveries, checked.contents) == (5, 5)
    assert checked.message_bytes == sum(map(len, MESSAGES))


def test_every_kind_of_flip_is_found(store: Store, path: Path) -> None:
    for message in MESSAGES:
        put_message(store, message)
    store.settle_index()
    pack = next((path / "streams/host").glob("*.pack"))
    whole = pack.read_bytes()
    for at in range(0, len(whole), 11):
        pack.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert found(store, read_data=True)[0], at
    pack.write_bytes(whole)
    assert found(store)[0] == []


def test_a_missing_pack_is_found(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host", pack_bytes=1000)
        for message in MESSAGES:
            put_message(store, message)
    packs = sorted((path / "streams/host").glob("*.pack"))
    packs[1].unlink()
    with Store.open(path) as store:
        assert any("does not follow" in finding.what for finding in found(store)[0])
