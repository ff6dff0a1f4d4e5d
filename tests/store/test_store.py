"""What is put in comes out, is found, and survives: closing, reopening, a lost index, a second reader."""

from __future__ import annotations

import base64
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from store.deliveries import Query
from store.errors import (
    AmbiguousIdError,
    NotFoundError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreNotFoundError,
)
from store.ids import content_id, now_us
from store.records import Leg, Outcome, Outcomes, ReplayRun
from store.rows import Term
from store.store import Store
from store.writer import Submission
from tests.store.conftest import put_message

SMALL = b"Subject: lunch\r\nMessage-ID: <1@x>\r\nFrom: Bert <bert@example.com>\r\n\r\nAt noon?\r\n"


def big_message(size: int, seed: int = 1) -> bytes:
    body = base64.encodebytes(random.Random(seed).randbytes(size)).replace(b"\n", b"\r\n")
    head = b'Subject: file\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
    return head + b"Content-Transfer-Encoding: base64\r\n\r\n" + body + b"--b--\r\n"


@pytest.mark.parametrize("message", [SMALL, b"", b"\r\n", b"\0\xff\n\r", big_message(3_000_000)])
@pytest.mark.parametrize("step", [7919, 1 << 20])
def test_bytes_come_back(store: Store, message: bytes, step: int) -> None:
    delivery = put_message(store, message, step=step)
    assert delivery.content == content_id(message)
    assert b"".join(store.read(delivery.content)) == message


def test_bytes_come_back_after_reopening(path: Path) -> None:
    messages = [SMALL, big_message(400_000), SMALL.replace(b"noon", b"one")]
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        ids = [put_message(store, message).id for message in messages]
    with Store.open(path) as store:
        for name, message in zip(ids, messages, strict=True):
            assert b"".join(store.read(store.delivery(name).delivery.content)) == message


def test_equal_messages_take_no_more_room(store: Store) -> None:
    message = big_message(500_000)
    put_message(store, message)
    before = store.pack_bytes()
    put_message(store, message)
    assert store.pack_bytes() - before < 1000


def test_facts_of_the_header(store: Store) -> None:
    trace = b"received: from a\r\n by b\r\n with ESMTP id 4ABCdef123\r\n"
    folded = trace + b"SUBJECT: one\r\n two\r\n\r\nSubject: no\r\n"
    ingest = store.begin()
    ingest.feed(folded)
    assert ingest.top_received_id() == b"4ABCdef123"
    delivery = put_message(store, folded)
    assert delivery.subject == b"one\r\n two"
    assert delivery.message_id == b""


def test_finding(store: Store) -> None:
    first = put_message(store, SMALL, to=(b"Anna@Example.org", b"carl@example.org"), queue_id=b"4Q1")
    middle = now_us()
    second = put_message(store, SMALL.replace(b"noon", b"one"), queue_id=b"4Q2", leg=Leg.MILTER)
    store.settle_index()

    def found(**how: object) -> list[bytes]:
        return [s.delivery.id for s in store.deliveries(Query(**how))]  # type: ignore[arg-type]  # keywords

    assert found() == [second.id, first.id]
    assert found(newest_first=False) == [first.id, second.id]
    assert found(since_us=middle) == [second.id]
    assert found(until_us=middle) == [first.id]
    assert found(terms=((Term.RECIPIENT, b"anna@example.org"),)) == [second.id, first.id]
    assert found(terms=((Term.RECIPIENT, b"carl@example.org"),)) == [first.id]
    assert found(terms=((Term.QUEUE_ID, b"4Q2"), (Term.MESSAGE_ID, b"<1@x>"))) == [second.id]
    assert found(terms=((Term.QUEUE_ID, b"4Q1"), (Term.MESSAGE_ID, b"<2@x>"))) == []


def test_ids_may_be_abbreviated(store: Store) -> None:
    delivery = put_message(store, SMALL)
    put_message(store, SMALL)
    store.settle_index()
    assert store.resolve(delivery.id.hex()[:9].upper()) == delivery.id
    assert store.resolve(delivery.id.hex()) == delivery.id
    for wrong in ("", "xyz", "0" * 40, "f" * 32):
        with pytest.raises(NotFoundError):
            store.resolve(wrong)
    for _ in range(40):
        put_message(store, SMALL)
    store.settle_index()
    digits = {found.delivery.id.hex()[0] for found in store.deliveries(Query())}
    assert len(digits) < 42, "42 ids begin with 16 digits at most"
    ambiguous = 0
    for digit in digits:
        try:
            store.resolve(digit)
        except AmbiguousIdError:
            ambiguous += 1
    assert ambiguous


def test_outcomes_join_their_delivery(store: Store) -> None:
    delivery = put_message(store, SMALL, to=(b"a@x", b"b@x"))
    for number, reply in ((0, b"250 ok"), (1, b"452 4.2.2 full"), (1, b"250 later")):
        fact = Outcomes(delivery=delivery.id, time_us=now_us(), outcomes=(Outcome(number, reply),))
        store.writer.submit(Submission(entries=[fact], lazy=True))
    put_message(store, SMALL)
    store.settle_index()
    outcomes = store.delivery(delivery.id).outcomes
    assert {n: o.reply for n, o in outcomes.items()} == {0: b"250 ok", 1: b"250 later"}


def test_lazy_facts_need_no_company(store: Store) -> None:
    done = threading.Event()
    fact = ReplayRun(run="r", time_us=1, selection=b"s", owner="me", messages=1, finished=False)
    store.writer.submit(Submission(entries=[fact], lazy=True, done=lambda error: done.set()))
    assert done.wait(60)
    store.settle_index()
    assert store.run(b"s") == "r"


def test_a_second_process_sees_what_was_acknowledged(store: Store, path: Path) -> None:
    delivery = put_message(store, SMALL)
    subprocess.run([sys.executable, "-c", _READER, str(path), delivery.id.hex()], check=True, timeout=60)


_READER = """
import sys
from pathlib import Path
from store.store import Store
with Store.open(Path(sys.argv[1])) as store:
    found = store.delivery(store.resolve(sys.argv[2]))
    assert b"".join(store.read(found.delivery.content)).startswith(b"Subject: lunch")
"""


def test_a_lost_index_comes_back_from_the_streams(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        delivery = put_message(store, SMALL)
        before = store.stats().counters
    shutil.rmtree(path / "index")
    with Store.open(path) as store:
        assert b"".join(store.read(store.delivery(delivery.id).delivery.content)) == SMALL
        assert store.stats().counters.deliveries == before.deliveries or before.deliveries == {}


def test_a_damaged_index_is_put_aside_and_rebuilt(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        delivery = put_message(store, SMALL)
    data = path / "index" / "data.mdb"
    data.write_bytes(b"\x55" * data.stat().st_size)
    with Store.open(path) as store:
        assert store.delivery(delivery.id).delivery == delivery
    assert list(path.glob("index.damaged-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_who_may_only_look(store: Store, path: Path) -> None:
    delivery = put_message(store, SMALL)
    for entry in [path.parent, *path.rglob("*"), path]:
        entry.chmod(0o755 if entry.is_dir() else 0o644)
    for parent in path.parents:
        if parent.stat().st_uid == 0 and any("pytest" in part for part in parent.parts):
            parent.chmod(0o755)
    code = _READER.replace("with", "import os; os.setgid(65534); os.setuid(65534)\nwith", 1)
    subprocess.run([sys.executable, "-c", code, str(path), delivery.id.hex()], check=True, timeout=60)


def test_two_streams_one_index(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("one")
        first = put_message(store, big_message(100_000))
    with Store.open(path) as store:
        store.start_writing("two")
        before = store.pack_bytes()
        put_message(store, big_message(100_000))
        assert store.pack_bytes() - before < 2000, "dedup works across streams"
        store.settle_index()
        assert len(list(store.deliveries(Query()))) == 2
        assert store.delivery(first.id).delivery == first


def test_a_stream_has_one_writer(store: Store, path: Path) -> None:
    with pytest.raises(StoreLockedError):
        store.start_writing("host")


def test_packs_roll_over(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host", pack_bytes=50_000)
        ids = [put_message(store, big_message(30_000, seed)).id for seed in range(6)]
    assert len(list((path / "streams" / "host").glob("*.pack"))) > 2
    shutil.rmtree(path / "index")
    with Store.open(path) as store:
        assert not store.damage
        for seed, name in enumerate(ids):
            content = store.delivery(name).delivery.content
            assert b"".join(store.read(content)) == big_message(30_000, seed)


def test_reserve_defers_before_the_disk_is_full(path: Path) -> None:
    with Store.open(path, create=True) as store:
        free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        store.start_writing("host", reserve_bytes=free * 2)
        with pytest.raises(StoreFullError):
            put_message(store, SMALL)
        store.settle_index()
        assert not list(store.deliveries(Query()))


def test_a_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    with pytest.raises(StoreError, match="neither a store nor empty"):
        Store.open(tmp_path, create=True)
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "nothing")
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_nobody_else_may_look(store: Store, path: Path) -> None:
    put_message(store, SMALL)
    for entry in [path, *path.rglob("*")]:
        assert entry.stat().st_mode & 0o077 == 0, entry


def test_many_threads_one_writer(store: Store) -> None:
    messages = [b"Subject: %d\r\n\r\n" % n + os.urandom(2000) for n in range(200)]
    found: dict[bytes, bytes] = {}

    def work(mine: list[bytes]) -> None:
        for message in mine:
            found[put_message(store, message).content] = message

    threads = [threading.Thread(target=work, args=(messages[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    for content, message in found.items():
        assert b"".join(store.read(content)) == message  # type: ignore[arg-type]  # a ContentId


def test_a_stream_name_that_does_not_fit(path: Path) -> None:
    with Store.open(path, create=True) as store:
        for name in ("h" * 65, "a/b", "..", ""):
            with pytest.raises(StoreError, match="cannot name a stream"):
                store.start_writing(name)


def test_a_creation_that_was_cut_off_is_gone_on_with(path: Path) -> None:
    (path / "streams").mkdir(parents=True)
    (path / ".mailkeep.store.0a1b.new").write_text("{")
    (path / "mailkeep.store.new123").write_text("{")  # an earlier version's
    (path / "lost+found").mkdir()
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        put_message(store, SMALL)


def test_whoever_comes_after_the_end_is_answered(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        writer = store.writer
    errors: list[StoreError | None] = []
    writer.submit(Submission(done=errors.append))
    assert isinstance(errors[0], StoreError)


def test_a_selection_of_any_length(store: Store) -> None:
    for finished in (False, True):
        done = threading.Event()
        fact = ReplayRun(
            run="r", time_us=now_us(), selection=b"s" * 5000, owner="", messages=1, finished=finished
        )
        store.writer.submit(Submission(entries=[fact], done=lambda _error, done=done: done.set()))
        assert done.wait(60)
        store.settle_index()
        assert store.run(b"s" * 5000) == (None if finished else "r")


def test_a_message_that_drips_in(store: Store) -> None:
    message = SMALL + b"x" * 20_000 + b"\r\n"
    delivery = put_message(store, message, step=1)
    assert (delivery.size, b"".join(store.read(delivery.content))) == (len(message), message)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"Received: from a by b with ESMTP id 4ABCdef123; Mon\r\n", b"4ABCdef123"),
        (b"Received: from a by b\r\n\twith ESMTP id\r\n\t4ABCdef123 for <x>\r\n", b"4ABCdef123"),
        (b"Return-Path: <a>\r\nReceived: by b id 4ABCdef123\r\n", b"4ABCdef123"),
        (b"Received: from a by b with ESMTP id\r\nSubject: lunch\r\n", b""),
        (b"Received: from a by b\r\nReceived: from c by d id FOREIGN1\r\n", b""),
        (b"Subject: id 4ABCdef123\r\n", b""),
    ],
)
def test_the_id_of_the_top_received_field(store: Store, header: bytes, found: bytes) -> None:
    ingest = store.begin()
    ingest.feed(header + b"\r\nbody\r\n")
    assert ingest.top_received_id() == found
