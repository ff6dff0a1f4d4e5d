"""Several stores as one: each mail once, whoever has it, and what one host removed is removed."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from sidecar.select import Selection, select
from store.about import About
from store.compact import CompactOptions, Compactor
from store.deliveries import Query, RemovedError, Told
from store.errors import AmbiguousIdError, DamagedError, NotFoundError, SealedError
from store.fleet import Fleet
from store.ids import DeliveryId, content_id
from store.index_copy import copy_of
from store.records import EntryType, Replay, ReplayRun
from store.replicas.errors import UnreachableError
from store.replicas.fetch import Fetching
from store.replicas.fleet import open_fleet
from store.replicas.layout import in_name, parse_piece
from store.replicas.reader import NoReplicaError, Replica
from store.replicas.ship import ShipOptions, Shipper
from store.retention import erase
from store.rows import Term
from store.sealing import new_identity, parse_identities
from store.store import Store
from store.writer import Submission
from tests.store.conftest import put_message
from tests.store.test_replica_ship import Bucket

ANNA, BERT = b"anna@example.org", b"bert@example.org"


class Dark(Bucket):
    """A bucket whose network may go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_dark = False
        self.gets = 0

    def _look(self) -> None:
        if self.is_dark:
            raise UnreachableError("the bucket does not answer")

    def get(self, name: str) -> bytes:
        self._look()
        self.gets += 1
        return super().get(name)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        self._look()
        return super().get_range(name, start, length)

    def list(self, prefix: str, after: str = "") -> Iterator[tuple[str, int]]:
        self._look()
        return super().list(prefix, after)

    def folders(self, prefix: str) -> list[str]:
        self._look()
        return super().folders(prefix)


class Host:
    """A mail host: a store of its own, that ships to a bucket all share."""

    def __init__(self, path: Path, bucket: Bucket, name: str, **how: object) -> None:
        self.store = Store.open(path, create=True, **how)  # type: ignore[arg-type]  # a test's own keywords
        self.store.start_writing(name)
        index = copy_of if not self.store.keyring.seals else None
        self.shipper = Shipper(
            path, bucket, name,
            ShipOptions(index=lambda: index(self.store.index, self.store.view.names()) if index else None),
        )  # fmt: skip
        self.mails: dict[bytes, bytes] = {}

    def put(self, count: int, to: bytes = ANNA) -> None:
        for _ in range(count):
            mail = b"Subject: m\r\n\r\n" + random.randbytes(5000)
            self.mails[put_message(self.store, mail, to=(to,)).id] = mail

    def ship(self, *, full: bool = False) -> None:
        self.store.settle_index()
        self.shipper.round(full=full)


Make = Callable[..., Host]


@pytest.fixture
def bucket() -> Dark:
    return Dark()


@pytest.fixture
def host(bucket: Dark, tmp_path: Path) -> Iterator[Make]:
    made: list[Host] = []

    def make(name: str, *, at: Path | None = None, **how: object) -> Host:
        made.append(Host(at or tmp_path / name, bucket, name, **how))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


@pytest.fixture
def view(bucket: Dark, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    opened: list[Fleet] = []

    def open_(**how: object) -> Fleet:
        opened.append(open_fleet(Replica(bucket), tmp_path / "view", **how))  # type: ignore[arg-type]  # as above
        return opened[-1]

    yield open_
    for fleet in opened:
        fleet.close()


def all_of(fleet: Fleet, query: Query | None = None) -> dict[bytes, bytes]:
    assert fleet.damage == []
    found = [stored.delivery for stored in fleet.deliveries(query or Query())]
    assert len({delivery.id for delivery in found}) == len(found), "each once"
    times = [delivery.time_us for delivery in found]
    assert times == sorted(times, reverse=True)
    return {delivery.id: b"".join(fleet.read(delivery.content)) for delivery in found}


def test_all_hosts_as_one(host: Make, view: Callable[..., Fleet]) -> None:
    hosts = [host(f"mx{number}") for number in range(3)]
    for number in range(12):
        hosts[number % 3].put(2, ANNA if number % 2 else BERT)
    for one in hosts:
        one.ship(full=True)
        one.put(2)
        one.ship()
    mails = {id_: mail for one in hosts for id_, mail in one.mails.items()}
    fleet = view()
    assert all_of(fleet) == mails
    some = all_of(fleet, Query(terms=((Term.RECIPIENT, BERT),)))
    assert len(some) == 12
    for id_, mail in mails.items():
        assert fleet.resolve(id_.hex()) == id_
        assert fleet.read_small(fleet.delivery(fleet.resolve(id_.hex())).delivery.content) == mail
        assert fleet.with_content(content_id(mail)) == [id_]
    digits = [id_.hex()[0] for id_ in mails]
    with pytest.raises(AmbiguousIdError):
        fleet.resolve(max(digits, key=digits.count))
    with pytest.raises(NotFoundError):
        fleet.delivery(bytes(16))
    hosts[1].put(3)
    hosts[1].ship()
    assert all_of(fleet) == mails, "as of the last look"
    fleet.refresh()
    assert all_of(fleet) == mails | hosts[1].mails


def test_a_host_that_vanished_and_what_took_its_place(
    host: Make, bucket: Dark, view: Callable[..., Fleet], tmp_path: Path
) -> None:
    old = host("mx1")
    old.put(20)
    old.ship(full=True)
    old.put(5)
    old.ship()
    old.store.close()
    shutil.rmtree(tmp_path / "mx1")
    Fetching(Replica(bucket), tmp_path / "mx2").run()
    new = host("mx2", at=tmp_path / "mx2")
    assert new.store.id == old.store.id, "it has the old one's store, and its streams"
    new.put(10)
    gone = list(old.mails)[3]
    new.store.settle_index()
    erase(new.store, [gone], owner="o", reason="r")
    new.ship(full=True)
    mails = old.mails | new.mails
    erased = mails.pop(gone)
    fleet = view()
    assert all_of(fleet) == mails
    with pytest.raises(RemovedError):
        fleet.delivery(gone)
    assert fleet.was_erased(content_id(erased)), "though the old host's part still has it"


def test_what_is_damaged_in_one_is_read_from_the_other(
    host: Make, bucket: Dark, view: Callable[..., Fleet], tmp_path: Path
) -> None:
    old = host("mx1")
    old.put(20)
    old.ship(full=True)
    Fetching(Replica(bucket), tmp_path / "mx2").run()
    host("mx2", at=tmp_path / "mx2").ship(full=True)
    mails = dict(old.mails)
    fleet = view()
    for path in (tmp_path / "view" / "hosts" / "mx1" / "streams").glob("*/*.pack"):
        data = bytearray(path.read_bytes())
        data[200:] = random.randbytes(len(data) - 200)
        path.write_bytes(data)
    here = tmp_path / "view" / "hosts" / "mx1" / "here"
    for page in here.glob("streams*"):
        page.write_bytes(b"\1" * page.stat().st_size)
    assert all_of(fleet) == mails


def test_a_host_that_cannot_be_read_does_not_hide_the_others(
    host: Make, bucket: Dark, view: Callable[..., Fleet]
) -> None:
    good, bad = host("mx1"), host("mx2")
    for one in (good, bad):
        one.put(5)
        one.ship(full=True)
    for name in [name for name in bucket.objects if name.startswith("hosts/mx2/full/")]:
        bucket.objects[name] = bucket.objects[name][:-1] + b"?"
    told: list[str] = []
    assert all_of(view(tell=told.append)) == good.mails
    assert any("mx2" in text for text in told)


def test_without_the_network_what_was_fetched_is_there(
    host: Make, bucket: Dark, view: Callable[..., Fleet]
) -> None:
    one = host("mx1")
    one.put(30)
    one.ship(full=True)
    fleet = view()
    assert all_of(fleet) == one.mails
    fleet.close()
    bucket.is_dark = True
    told: list[str] = []
    again = view(tell=told.append)
    assert all_of(again) == one.mails
    assert any("as it was" in text for text in told)


def test_nothing_is_there(bucket: Dark, view: Callable[..., Fleet]) -> None:
    with pytest.raises(NoReplicaError):
        view()
    bucket.is_dark = True
    with pytest.raises(UnreachableError):
        view()


def test_what_is_put_back_is_on_record(host: Make, view: Callable[..., Fleet]) -> None:
    one = host("mx1")
    one.put(3)
    one.ship(full=True)
    fleet = view()
    (id_, *_) = one.mails
    writer = fleet.start_writing_beside("operator")
    run = ReplayRun(run="1", time_us=1, selection=b"s" * 16, owner="o", messages=0, finished=False)
    fact = Replay(delivery=id_, time_us=2, run="1", recipient=ANNA, downstream="x", reply=b"250 ok")
    writer.submit(Submission(entries=[run, fact], done=lambda _error: None))
    fleet.close()
    again = view()
    assert again.last_run(b"s" * 16) == ("1", False)
    assert again.replays_in("1", id_) == {ANNA: fact}
    assert again.delivery(id_).replays == (fact,)
    assert all_of(again) == one.mails


def test_a_sealed_host_is_read_with_an_identity_alone(
    host: Make, bucket: Dark, view: Callable[..., Fleet], tmp_path: Path
) -> None:
    secret, public = new_identity()
    (identity,) = parse_identities(secret.encode(), "key", "")
    one = host("mx1", recipients=[public])
    one.put(10)
    one.ship(full=True)
    one.put(2)
    one.ship()
    assert not [name for name in bucket.objects if "/index/" in name], "its index would tell of addresses"
    with pytest.raises(SealedError):
        view()
    assert all_of(view(identities=[identity])) == one.mails
    record = tmp_path / "view" / "record"
    assert ANNA not in b"".join(path.read_bytes() for path in record.rglob("*") if path.is_file())
    assert in_name("mx1") == "mx1"


def test_what_is_put_on_record_stays_sealed_whatever_cannot_be_looked_at(
    host: Make, bucket: Dark, view: Callable[..., Fleet], tmp_path: Path
) -> None:
    secret, public = new_identity()
    identities = parse_identities(secret.encode(), "key", "")
    sealed, open_ = host("mx1", recipients=[public]), host("mx2")
    for one in (sealed, open_):
        one.put(3)
        one.ship(full=True)
    whole = dict(bucket.objects)
    spoilt = {name: b"?" if name.startswith("hosts/mx1/full/") else data for name, data in whole.items()}

    def look(objects: dict[str, bytes], **how: object) -> tuple[str, ...]:
        shutil.rmtree(tmp_path / "view" / "hosts", ignore_errors=True)
        bucket.objects = objects
        view(**how).close()
        return About.read(tmp_path / "view" / "record").recipients

    assert look(spoilt) == (), "nobody who could read the sealed one"
    shutil.rmtree(tmp_path / "view")
    assert look(spoilt, identities=identities) == (public,)
    assert look(whole, identities=identities) == (public,)
    assert look(spoilt, identities=identities) == (public,)
    assert look(spoilt) == (public,)
    gone = {name: data for name, data in whole.items() if not name.startswith("hosts/mx1/")}
    assert look(gone, identities=identities) == (public,)
    assert look(gone) == (public,)


def test_what_was_removed_stays_so_though_the_word_of_it_is_damaged(
    host: Make, bucket: Dark, view: Callable[..., Fleet], tmp_path: Path
) -> None:
    old = host("mx1")
    old.put(20)
    old.ship(full=True)
    Fetching(Replica(bucket), tmp_path / "mx2").run()
    new = host("mx2", at=tmp_path / "mx2")
    gone = next(iter(old.mails))
    new.store.settle_index()
    erase(new.store, [gone], owner="o", reason="r")
    new.ship(full=True)
    fleet = view()
    (mx2,) = [member for member in fleet.members if member.path.name == "mx2"]
    with mx2.index.read() as snapshot:
        (where,) = [where for kind, where in snapshot.delivery(gone) if kind == EntryType.ERASURE]
    assert gone not in all_of(fleet)
    fleet.close()
    shutil.rmtree(tmp_path / "view" / "hosts" / "mx2")
    at = where.offset + 60
    for name in [name for name in bucket.objects if name.startswith("packs/mx2/")]:
        piece = parse_piece(name)
        assert piece
        _, number, extent = piece
        if number == where.pack and extent.offset <= at < extent.end:
            data = bytearray(bucket.objects[name])
            data[at - extent.offset] ^= 1
            bucket.objects[name] = bytes(data)
    again = view()
    with pytest.raises(DamagedError):
        again.delivery(gone)
    assert gone not in {found.delivery.id for found in again.deliveries(Query())}


def test_another_process_takes_up_what_compaction_did(
    host: Make, view: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look into the index and that into the pack."""
    one = host("mx1")
    one.put(40)
    one.ship(full=True)
    fleet = view()
    mails = dict(one.mails)
    one.store.writer.roll()
    one.put(3)
    one.store.settle_index()
    Compactor(one.store, CompactOptions(everything=True, level=1)).run()
    one.ship()
    one.ship(full=True)
    (member,) = fleet.members
    told, looked = member.told, list[DeliveryId]()

    def look(delivery: DeliveryId) -> list[Told]:
        entries = told(delivery)
        if not looked:
            looked.append(delivery)
            fleet.refresh()
            member._packs.close()  # what it had open of the packs that are gone
        return entries

    monkeypatch.setattr(member, "told", look)
    assert all_of(fleet) == mails, "as of the look at the index"


def test_what_is_at_hand_is_read_where_the_bucket_answers_half(
    host: Make, bucket: Dark, view: Callable[..., Fleet]
) -> None:
    one = host("mx1")
    one.put(10)
    one.ship(full=True)
    fleet = view()
    assert all_of(fleet) == one.mails
    fleet.close()
    mails = dict(one.mails)
    one.put(2)
    one.ship(full=True)
    for name in [name for name in bucket.objects if "/full/" in name or "/rounds/" in name]:
        bucket.objects[name] = b"<Error>SlowDown</Error>"
    told: list[str] = []
    assert all_of(view(tell=told.append)) == mails
    assert any("as it was" in text for text in told)


class Held(Dark):
    """A bucket that answers nobody more for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.answers.set()
        self.held = threading.Semaphore(0)
        self.ranges = 0

    def get_range(self, name: str, start: int, length: int) -> bytes:
        self.ranges += 1
        if not self.answers.is_set():
            self.held.release()
            assert self.answers.wait(60)
        time.sleep(0.003)  # from afar
        return super().get_range(name, start, length)


class Far(Dark):
    """A bucket that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.asked = self.most = 0

    def get_range(self, name: str, start: int, length: int) -> bytes:
        with self.lock:
            self.asked += 1
            self.most = max(self.most, self.asked)
        time.sleep(0.02)
        with self.lock:
            self.asked -= 1
        return super().get_range(name, start, length)


def test_what_is_selected_is_asked_for_ahead(tmp_path: Path) -> None:
    bucket = Far()
    host = Host(tmp_path / "mx1", bucket, "mx1")
    mails = [put_message(host.store, b"Subject: m\r\n\r\n" + random.randbytes(150_000)) for _ in range(60)]
    host.ship(full=True)
    host.store.close()
    with open_fleet(Replica(bucket), tmp_path / "view") as fleet:
        bucket.most = 0
        found = [stored.delivery.id for stored in select(fleet, Selection())]
    assert found == [mail.id for mail in reversed(mails)]
    assert bucket.most > 4


def test_who_goes_does_not_wait_for_all_that_is_fetched_ahead(tmp_path: Path) -> None:
    bucket = Held()
    host = Host(tmp_path / "mx1", bucket, "mx1")
    for _ in range(30):
        put_message(host.store, b"Subject: m\r\n\r\n" + random.randbytes(6_000_000))
    host.ship(full=True)
    host.store.close()
    fleet = open_fleet(Replica(bucket), tmp_path / "view")
    coming = fleet.coming(fleet.deliveries(Query()), lambda stored: stored.delivery.content)
    for _ in range(6):
        next(coming)
    bucket.answers.clear()

    def go_on() -> None:
        with contextlib.suppress(RuntimeError, CancelledError):  # it is closed meanwhile
            next(coming, None)

    going_on = threading.Thread(target=go_on)
    going_on.start()
    assert bucket.held.acquire(timeout=60)
    leaving = threading.Thread(target=fleet.close)
    leaving.start()
    while not fleet._ahead.closing:
        time.sleep(0.005)
    asked = bucket.ranges
    bucket.answers.set()
    for thread in (leaving, going_on):
        thread.join(60)
    assert bucket.ranges - asked <= 16, "no message's rest"
