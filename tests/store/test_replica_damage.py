"""What a shipper does about a replica that is damaged, emptied or somebody else's, and about lost answers."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.replicas import ship
from store.replicas.chain import RivalError
from store.replicas.errors import DamagedUploadError, DiffersError, ReplicaError, UnfitError, UnreachableError
from store.replicas.fetch import Fetching
from store.replicas.layout import decode_round, parse_piece
from store.replicas.probe import probe
from store.replicas.prune import prune
from store.replicas.reader import Replica
from store.replicas.remote import Remote, RemoteOptions
from store.replicas.ship import ShipOptions, Shipper
from store.sealing import new_identity
from store.store import Store
from tests.store.conftest import put_message


class Shaky(Remote):
    """A directory whose answers get lost: `lose` so many, after the object was made."""

    lose = 0
    spoil = 0

    def create(self, name: str, data: bytes) -> bool:
        if self.spoil and name.startswith("hosts/"):
            self.spoil -= 1
            super().create(name, data[:-1] + b"?")
            raise DamagedUploadError(f"{name} came to be something else")
        made = super().create(name, data)
        if self.lose and name.startswith("hosts/"):
            self.lose -= 1
            raise UnreachableError("the answer was lost")
        return made


@pytest.fixture
def remote(tmp_path: Path) -> Shaky:
    return Shaky.open(f"file://{tmp_path}/replica")  # type: ignore[return-value]  # made by its classmethod


@pytest.fixture
def put(store: Store) -> Callable[[int], bytes]:
    def make(number: int, size: int = 3000) -> bytes:
        mail = b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(size)
        put_message(store, mail)
        return mail

    return make


def shipper(path: Path, remote: Remote, **how: object) -> Shipper:
    return Shipper(path, remote, "host", ShipOptions(**how))  # type: ignore[arg-type]  # keywords


def restored(remote: Remote, where: Path) -> set[bytes]:
    shutil.rmtree(where, ignore_errors=True)
    Fetching(Replica(remote), where).run()
    with Store.open(where) as opened:
        assert opened.damage == []
        return {b"".join(opened.read(found.delivery.content)) for found in opened.deliveries(Query())}


def files(remote: Remote) -> Path:
    return Path(remote.url.removeprefix("file://"))


def reassembled(remote: Remote) -> dict[tuple[str, int], bytes]:
    """The packs from rounds and pieces, by nothing but REPLICA.md."""
    rounds = sorted(files(remote).glob("hosts/host/*/*"), key=lambda file: file.name)
    full = max(number for number, file in enumerate(rounds) if file.parent.name == "full")
    packs: dict[tuple[str, int], bytearray] = {}
    for file in rounds[full:]:
        whole = file.read_bytes()
        told = decode_round(whole)
        for stream, change in told.streams.items():
            for pack in change.gone:
                packs.pop((stream, pack), None)
            for pack, extents in change.packs.items():
                held = packs.setdefault((stream, pack), bytearray())
                for extent in extents:
                    if extent.inline:
                        data = whole[told.data_at + extent.at :][: extent.length]
                    else:
                        (piece,) = (
                            piece
                            for piece in files(remote).glob(f"packs/{stream}/{pack:010d}/*")
                            if parse_piece(str(piece.relative_to(files(remote)))) == (stream, pack, extent)
                        )
                        data = piece.read_bytes()
                    held[extent.offset : extent.end] = data
    return {where: bytes(held) for where, held in packs.items()}


def local(path: Path) -> dict[tuple[str, int], bytes]:
    return {(file.parent.name, int(file.stem)): file.read_bytes() for file in path.glob("streams/*/*.pack")}


def test_everything_is_there_byte_for_byte(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "INLINE_BYTES", 20_000)
    shipping = shipper(path, remote, rounds_between=3, piece_bytes=30_000)
    for number in range(12):
        put(number, 1000 * number**2)
        if number % 4 == 3:
            store.writer.roll()
        shipping.round()
        assert reassembled(remote) == {
            where: data for where, data in local(path).items() if len(data) > 176
        }, "all but a pack that nothing was committed in"
    put(99)
    store.writer.roll()
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=1)).run()
    shipping.round()
    shipping.round(full=True)
    assert reassembled(remote) == {where: data for where, data in local(path).items() if len(data) > 176}
    assert any(pack >= 1 << 31 for _, pack in reassembled(remote))


def test_compaction_while_it_ships(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], tmp_path: Path
) -> None:
    """The replica is a whole store after each round, with all mail that had been shipped before."""
    shipping = shipper(path, remote, piece_bytes=10_000, pieces_s=0.0)
    mails: set[bytes] = set()
    for number in range(4):
        mails |= {put(10 * number + n, 20_000) for n in range(3)}
        while shipping.round().more:
            pass
        assert restored(remote, tmp_path / "again") == mails
        store.writer.roll()
        store.settle_index()
        Compactor(store, CompactOptions(everything=True, level=1)).run()
        rounds = 0
        while shipping.round().more:  # one piece a round
            rounds += 1
            assert restored(remote, tmp_path / "again") == mails
        assert rounds > 3
    assert len(shipping.contents.stream("host").segments) == 1


def test_new_mail_does_not_wait_for_the_first_copy(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes]
) -> None:
    for number in range(5):
        put(number, 50_000)
    store.writer.roll()
    put(5)
    shipping = shipper(path, remote, piece_bytes=10_000, pieces_s=0.0)
    assert shipping.round().more
    put(6)
    assert shipping.round().more
    assert shipping.lag_s() == 0.0
    assert shipping.lag_bytes > 200_000
    newest = max(local(path))
    assert reassembled(remote)[newest] == local(path)[newest]
    again = shipper(path, remote, piece_bytes=10_000)
    sent = remote.counted.sent_bytes
    assert not again.round().more
    assert remote.counted.sent_bytes - sent < 245_000, "what had been sent was not sent again"
    assert reassembled(remote) == local(path)


def test_a_full_round_keeps_no_mail_waiting(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in rounds goes into pieces one at a time before it, with the rounds."""
    monkeypatch.setattr(ship, "INLINE_BYTES", 5_000)
    shipping = shipper(path, remote, piece_bytes=10_000, pieces_s=0.0, rounds_between=20)
    while shipping.contents.number < 20:
        put(shipping.contents.number, 3000)
        shipping.round()
    sent = []
    while len(sent) < 50 and (not sent or not sent[-1].full):
        put(100 + len(sent), 3000)
        sent.append(shipping.round())
    assert 3 < len(sent) < 50
    assert max(shipped.sent_bytes for shipped in sent) < 30_000
    assert reassembled(remote) == local(path)
    assert not any(extent.inline for _, _, extent in shipping.contents.extents())


def test_a_first_copy_that_was_killed_goes_on(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes]
) -> None:
    for number in range(5):
        put(number, 50_000)
    store.writer.roll()
    put(5)
    shipping = shipper(path, remote, piece_bytes=10_000)
    shipping._due_full = False
    # Killed before the round that names the pieces: they are there, and nothing says so.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "_put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shipping.round()
    sent = remote.counted.sent_bytes
    assert sent > 250_000
    assert not shipper(path, remote, piece_bytes=10_000).round().more
    assert remote.counted.sent_bytes - sent < 10_000
    assert reassembled(remote) == local(path)


def test_a_lost_answer_is_no_rival(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], tmp_path: Path
) -> None:
    shipping = shipper(path, remote, rounds_between=2)
    mails = set()
    for number in range(6):
        mails.add(put(number))
        remote.lose = 1
        with pytest.raises(UnreachableError):
            shipping.round()
        mails.add(put(100 + number))
        assert shipping.lag_s() > 0 or number
        shipping.round()
        assert shipping.lag_bytes == 0
        assert restored(remote, tmp_path / "again") == mails
    remote.lose = 1
    put(7)
    with pytest.raises(UnreachableError):
        shipping.round()
    shipper(path, remote).round()  # and it had been restarted before it knew
    assert reassembled(remote) == local(path)


def test_a_round_that_arrives_damaged_is_passed_over(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], tmp_path: Path
) -> None:
    shipping = shipper(path, remote)
    mails = {put(1)}
    shipping.round()
    mails.add(put(2))
    remote.spoil = 1
    with pytest.raises(DamagedUploadError):
        shipping.round()
    mails.add(put(3))
    shipping.round()
    assert restored(remote, tmp_path / "again") == mails
    mails.add(put(4))
    shipper(path, remote).round()
    assert restored(remote, tmp_path / "again") == mails


@pytest.mark.parametrize("how", ["flipped", "missing"])
@pytest.mark.parametrize("which", range(8))
def test_any_round_damaged_or_missing(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], tmp_path: Path, how: str, which: int
) -> None:
    """After a restart all is there again, and all mail can be restored."""
    shipping = shipper(path, remote, rounds_between=3)
    mails = set()
    for number in range(6):
        mails.add(put(number))
        shipping.round()
    rounds = sorted(files(remote).glob("hosts/host/*/*"), key=lambda file: file.name)
    assert len(rounds) >= 8
    if how == "missing":
        rounds[which].unlink()
    else:
        whole = bytearray(rounds[which].read_bytes())
        whole[len(whole) // 2] ^= 1
        rounds[which].write_bytes(whole)
    mails.add(put(6))
    again = shipper(path, remote, rounds_between=3)
    again.round()
    assert restored(remote, tmp_path / "again") == mails
    mails.add(put(7))
    again.round()
    assert restored(remote, tmp_path / "again") == mails


def test_a_pack_that_cannot_be_read_keeps_no_other_away(
    store: Store,
    path: Path,
    remote: Shaky,
    put: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(1)
    store.writer.roll()
    put(2)
    read = ship.slices

    def rotten(file: Path, *how: int) -> object:
        if file.stem == "0000000001":
            raise OSError(5, "Input/output error")
        return read(file, *how)

    monkeypatch.setattr(ship, "slices", rotten)
    shipping = shipper(path, remote)
    for _ in range(3):
        assert not shipping.round().more
        assert shipping.lag_bytes == len(local(path)["host", 1])
    assert reassembled(remote) == {("host", 2): local(path)["host", 2]}
    assert caplog.text.count("pack 1 of host cannot be read") == 1
    monkeypatch.undo()
    shipping.round()
    assert reassembled(remote) == local(path)


def test_what_rots_here_after_it_was_shipped_is_right_there(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], tmp_path: Path
) -> None:
    mails = {put(1), put(2)}
    shipping = shipper(path, remote)
    shipping.round()
    (pack,) = path.glob("streams/host/*.pack")
    whole = pack.read_bytes()
    with pack.open("r+b") as file:
        file.seek(len(whole) - 1000)
        file.write(b"rotten")
    shipping.round(full=True)
    assert reassembled(remote) == {("host", 1): whole}
    assert restored(remote, tmp_path / "again") == mails


def test_a_replica_that_was_emptied(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], tmp_path: Path
) -> None:
    mails = {put(1)}
    shipper(path, remote).round()
    shutil.rmtree(files(remote))
    files(remote).mkdir()
    shipper(path, remote).round()
    assert restored(remote, tmp_path / "again") == mails


def test_a_store_that_was_set_back_must_not_go_on(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], tmp_path: Path
) -> None:
    put(1)
    shutil.copytree(path, tmp_path / "earlier")
    put(2)
    shipper(path, remote).round()
    with pytest.raises(RivalError, match="set back to an earlier state"):
        shipper(tmp_path / "earlier", remote)
    with Store.open(tmp_path / "earlier") as earlier:
        earlier.start_writing("host")
        put_message(earlier, b"Subject: another\r\n\r\n" + random.Random(9).randbytes(9000))
    with pytest.raises(RivalError, match="another history"):
        shipper(tmp_path / "earlier", remote)


def test_a_restored_host_goes_on_and_the_old_one_does_not(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], tmp_path: Path
) -> None:
    put(1)
    shipper(path, remote).round()
    Fetching(Replica(remote), tmp_path / "new").run()
    with Store.open(tmp_path / "new") as new:
        new.start_writing("host")
        put_message(new, b"Subject: here\r\n\r\n")
        shipper(tmp_path / "new", remote).round()
    with pytest.raises(RivalError, match="somebody else has shipped as host"):
        shipper(path, remote)


def test_sealed_mail_is_shipped_unread(path: Path, remote: Shaky, tmp_path: Path) -> None:
    _, recipient = new_identity()
    with Store.open(path, create=True, recipients=(recipient,)) as store:
        store.start_writing("host")
        put_message(store, b"Subject: secret\r\n\r\nwords that nobody may read")
        assert store.blind
        shipper(path, remote).round()
    raw = b"".join(file.read_bytes() for file in files(remote).rglob("*") if file.is_file())
    assert b"words" not in raw
    key = path.joinpath("mailkeep.store").read_text().split('"key": "')[1][:64]
    assert key.encode() not in raw


def test_pieces_that_the_next_round_may_name_are_not_pruned(
    store: Store, path: Path, remote: Shaky, put: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "INLINE_BYTES", 0)
    shipping = shipper(path, remote)
    put(1)
    shipping.round()
    name = f"packs/host/0000000001/{'0' * 12}-1-{'0' * 64}"
    remote.create(name, b"?")
    for _ in range(3):
        shipping.round(full=True)
    assert prune(remote, "host") > 0
    assert remote.size(name) == 1
    assert len(list(files(remote).glob("hosts/host/full/*"))) == 2, "older rounds are gone"
    assert prune(remote, "host", keep_us=0) == 1
    assert remote.size(name) is None


# -- the directory itself


def test_a_directory_keeps_what_it_is_given(remote: Shaky, tmp_path: Path) -> None:
    probe(remote, "host")
    probe(remote, "host")
    assert remote.create("a/b=20c", b"data")
    assert not remote.create("a/b=20c", b"data")
    with pytest.raises(DiffersError):
        remote.create("a/b=20c", b"other")
    assert remote.get_range("a/b=20c", 1, 2) == b"at"
    (file,) = (files(remote) / "a").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert files(remote).stat().st_mode & 0o777 == 0o700
    (files(remote) / "a" / "c#123").write_bytes(b"what an upload that was broken off leaves")
    assert list(remote.list("a/")) == [("a/b=20c", 4)]
    remote.delete(["a/never", "a/b=20c"])
    assert list(remote.list("a/")) == []
    with pytest.raises(ReplicaError, match="a/b=20c is missing"):
        remote.get("a/b=20c")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReplicaError, match="No such file"):
        Remote.open(f"file://{tmp_path}/not/there")
    for url in ("http://bucket", "s3:///x", "file://host/x", "bucket"):
        with pytest.raises(ReplicaError, match=r"write s3://bucket/prefix or file:///path"):
            Remote.open(url)
    with pytest.raises(ReplicaError, match="in the clear"):
        Remote.open("s3://bucket", RemoteOptions(endpoint="http://s3.example.org"))
    with pytest.raises(ReplicaError, match="is no endpoint"):
        Remote.open("s3://bucket", RemoteOptions(endpoint="s3.example.org"))


def test_a_store_that_writes_over(tmp_path: Path) -> None:
    class Careless(Remote):
        def create(self, name: str, data: bytes) -> bool:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
            return True

    careless = Careless.open(f"file://{tmp_path}")
    for _ in range(2):
        with pytest.raises(UnfitError, match="lets an object be written over"):
            probe(careless, "host")


def test_bandwidth(remote: Shaky) -> None:
    remote.set_bandwidth(100_000)
    began = time.monotonic()
    for number in range(4):
        remote.create(f"a/{number}", bytes(10_000))
    assert 0.25 < time.monotonic() - began < 10
    remote.close()
    with pytest.raises(UnreachableError, match="closed"):
        remote.create("a/9", bytes(10_000))
