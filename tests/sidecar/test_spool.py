"""The spool: what was let through waits there, beside a sealed store sealed as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.spool import Spool
from store.errors import DamagedError, SealedError
from store.ids import ContentId, new_delivery_id, now_us
from store.records import Delivery, Envelope, Leg, Recipient
from store.sealing import Identity, Keyring, new_identity, parse_identities, recipients_of

SECRET, PUBLIC = new_identity()
IDENTITIES: list[Identity] = parse_identities(SECRET.encode(), "identity", lambda: None)
WORD = b"Zaunkoenig"
LENGTHS = [10, 700 << 10, 3 << 20]
"""in memory; in a nameless file; of several pieces"""


def keep(spool: Spool, length: int) -> tuple[Delivery, bytes]:
    """One message put aside."""
    message = b"Subject: " + WORD + b"\r\n\r\n" + WORD * (length // len(WORD))
    waiting = spool.begin()
    for at in range(0, len(message), 50_000):
        waiting.write(message[at : at + 50_000])
    now = now_us()
    delivery = Delivery(
        id=new_delivery_id(now), time_us=now, leg=Leg.LMTP, content=ContentId(b""), size=len(message),
        envelope=Envelope(WORD + b"@example.com", (Recipient(b"anna@example.org"),)), queue_id=b"4bX",
    )  # fmt: skip
    assert waiting.keep(delivery)
    return delivery, message


def taken(spool: Spool) -> list[tuple[Delivery, bytes]]:
    """What can be read of it."""
    return [(delivery, b"".join(spool.read(path))) for delivery, path in spool.messages()]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("keyring", [Keyring(), Keyring(recipients_of([PUBLIC]))], ids=["open", "sealed"])
def test_what_was_kept_comes_back_in_the_same_process(tmp_path: Path, keyring: Keyring, length: int) -> None:
    spool = Spool(tmp_path, keyring)
    kept = keep(spool, length)
    assert spool.waiting() == 1
    assert taken(spool) == [kept]
    for _, path in list(spool.messages()):
        spool.remove(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", LENGTHS)
def test_sealed_it_says_nothing_and_another_process_needs_the_identity(tmp_path: Path, length: int) -> None:
    kept = keep(Spool(tmp_path, Keyring(recipients_of([PUBLIC]))), length)
    assert [path for path in tmp_path.iterdir() if WORD in path.read_bytes()] == []
    blind = Spool(tmp_path, Keyring(recipients_of([PUBLIC])))
    assert taken(blind) == []
    assert blind.waiting() == 1
    with pytest.raises(SealedError):
        list(blind.read(next(tmp_path.glob("*.eml"))))
    assert taken(Spool(tmp_path, Keyring(recipients_of([PUBLIC]), IDENTITIES))) == [kept]


def test_a_sealed_message_on_its_way_leaves_no_word_in_its_nameless_file(tmp_path: Path) -> None:
    waiting = Spool(tmp_path, Keyring(recipients_of([PUBLIC]))).begin()
    for _ in range(100):
        waiting.write(WORD * 2000)
    file = waiting._file
    assert file is not None
    file.seek(0)
    data = file.read()
    assert len(data) > 1 << 20
    assert WORD not in data
    waiting.discard()


def test_what_was_cut_or_altered_is_told(tmp_path: Path) -> None:
    keyring = Keyring(recipients_of([PUBLIC]), IDENTITIES)
    keep(Spool(tmp_path, keyring), 3 << 20)
    path = next(tmp_path.glob("*.eml"))
    sound = path.read_bytes()
    for bad in (sound[:-1], sound[: len(sound) // 2], sound[:-1] + bytes([sound[-1] ^ 1])):
        path.write_bytes(bad)
        with pytest.raises(DamagedError):
            list(Spool(tmp_path, keyring).read(path))
