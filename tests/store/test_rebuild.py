"""The index built anew while everything goes on: nothing is lost, and nobody ever sees half of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from store.check import Checked, check
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.errors import StoreError, StoreLockedError
from store.log import COMPACT_LOCK, lock_stream
from store.rebuild import RebuildOptions, rebuild
from store.store import Store
from tests.store.conftest import put_message

WRITER = """
import os, sys
from pathlib import Path
from store.store import Store
from tests.store.conftest import put_message
with Store.open(Path(sys.argv[1])) as store:
    store.start_writing(sys.argv[2], pack_bytes=200_000)
    print("ready", flush=True)
    n = 0
    while not os.path.exists(sys.argv[1] + "/stop"):
        message = b"Subject: %d\\r\\n\\r\\n" % n + os.urandom(300).hex().encode()
        print(put_message(store, message, queue_id=b"%d" % n).content.hex(), flush=True)
        n += 1
"""
KILLED = """
import sys, time
from pathlib import Path
from store.rebuild import RebuildOptions, rebuild
from store.store import Store
def step(size):
    print("begun", flush=True)
    time.sleep(60)
with Store.open(Path(sys.argv[1])) as store:
    rebuild(store, RebuildOptions(step=step))
"""


def message(n: int) -> bytes:
    return b"Subject: %d\r\n\r\n" % n + b"text of %d\r\n" % n * 20


def mails(store: Store) -> set[bytes]:
    return {b"".join(store.read(found.delivery.content)) for found in store.deliveries(Query())}


def leftovers(path: Path) -> list[Path]:
    return list(path.glob("index.new-*"))


def test_the_new_index_says_the_same_and_is_one_run(store: Store, path: Path) -> None:
    wanted = {message(n) for n in range(20)}
    for text in sorted(wanted):
        put_message(store, text)
    store.writer.roll()
    store.settle_index()
    Compactor(store, CompactOptions(everything=True, level=3)).run()
    put_message(store, b"after")
    store.settle_index()
    before = store.stats().counters
    seen: list[tuple[int, int]] = []
    report = rebuild(store, RebuildOptions(progress=lambda done, total, _what: seen.append((done, total))))
    assert report.damage == []
    assert (report.deliveries, report.contents) == (21, 21)
    assert seen
    assert all(done <= total for done, total in seen if total)
    assert store.stats().counters.deliveries == before.deliveries
    assert len(list(store.deliveries(Query()))) == 21
    put_message(store, b"later")
    store.settle_index()
    assert list(check(store, Checked(), read_data=True)) == []
    assert leftovers(path) == []
    with store.index.read() as snapshot:
        assert len(snapshot.known.catalogue.runs) <= 2
    store.close()
    with Store.open(path) as again:
        assert mails(again) == {*wanted, b"after", b"later"}


def test_what_was_wrong_in_the_index_is_right_again(store: Store) -> None:
    for n in range(5):
        put_message(store, message(n))
    store.settle_index()
    with store.index.update() as update, update._txn.cursor(db=store.index.fresh) as cursor:
        while cursor.first():
            cursor.delete()
    assert {finding.kind for finding in check(store, Checked())} >= {"index"}
    assert list(store.deliveries(Query())) == []
    rebuild(store)
    assert list(check(store, Checked(), read_data=True)) == []
    assert len(list(store.deliveries(Query()))) == 5


def _rebuild_again_and_again(store: Store, acknowledged: list[str]) -> None:
    rounds = 0
    while rounds < 4 or len(acknowledged) < 200:
        known = len(acknowledged)
        report = rebuild(store, RebuildOptions(step=lambda _size: time.sleep(0.002)))
        assert report.damage == []
        assert report.deliveries >= 300 + known
        found = {stored.delivery.content.hex() for stored in store.deliveries(Query())}
        assert found >= set(acknowledged[:known]), "what was there before is there after, at once"
        rounds += 1


def test_while_another_process_captures(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("old")
        for n in range(300):
            put_message(store, message(n))
    acknowledged: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path, "host"], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as writer:
        assert writer.stdout is not None
        out = writer.stdout
        assert out.readline() == "ready\n"
        reader = threading.Thread(target=lambda: acknowledged.extend(line.strip() for line in out))
        reader.start()
        try:
            with Store.open(path) as store:
                _rebuild_again_and_again(store, acknowledged)
        finally:
            (path / "stop").touch()
            reader.join()
        assert writer.wait(60) == 0
    (path / "stop").unlink()
    with Store.open(path) as store:
        found = {stored.delivery.content.hex() for stored in store.deliveries(Query())}
        assert found >= set(acknowledged)
        assert len(mails(store)) == 300 + len(acknowledged)
        assert list(check(store, Checked(), read_data=True)) == []


def test_readers_and_the_writer_in_this_process_never_miss_anything(store: Store) -> None:
    """What was indexed before the switch is to be found at every moment."""
    contents = [put_message(store, message(n)).content for n in range(50)]
    ended = threading.Event()
    errors: list[BaseException] = []

    def run(work: object) -> None:
        n = 0
        try:
            while not ended.is_set():
                work(n)  # type: ignore[operator]  # one of the two below
                n += 1
        except BaseException as exc:  # noqa: BLE001 - told by the test
            errors.append(exc)

    def read(n: int) -> None:
        assert b"".join(store.read(contents[n % 50])) == message(n % 50)
        assert len(list(store.deliveries(Query()))) >= 50

    captured: list[bytes] = []

    def write(n: int) -> None:
        text = b"Subject: w%d\r\n\r\n" % n + os.urandom(100).hex().encode()
        put_message(store, text)
        captured.append(text)

    store.settle_index()
    threads = [threading.Thread(target=run, args=(work,)) for work in (read, write)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        rebuild(store)
    ended.set()
    for thread in threads:
        thread.join()
    assert errors == []
    store.settle_index()
    assert mails(store) == {*captured, *(message(n) for n in range(50))}


def test_killed_in_the_middle(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for n in range(30):
            put_message(store, message(n))
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        with Store.open(path) as store, pytest.raises(StoreLockedError, match="another process rebuilds"):
            rebuild(store)
        process.send_signal(signal.SIGKILL)
    assert len(leftovers(path)) == 1
    with Store.open(path) as store:
        assert mails(store) == {message(n) for n in range(30)}, "the old index is whole"
        rebuild(store)
        assert leftovers(path) == []
        assert mails(store) == {message(n) for n in range(30)}
        assert list(check(store, Checked())) == []


class _StopError(Exception):
    pass


def test_told_to_stop(store: Store, path: Path) -> None:
    for n in range(10):
        put_message(store, message(n))

    def stop(_size: int) -> None:
        raise _StopError

    with pytest.raises(_StopError):
        rebuild(store, RebuildOptions(step=stop))
    assert leftovers(path) == []
    store.settle_index()
    assert len(list(store.deliveries(Query()))) == 10
    rebuild(store)


def test_compaction_is_waited_for(store: Store, path: Path) -> None:
    put_message(store, message(1))
    lock = lock_stream(path / "streams/host", COMPACT_LOCK)
    waited: list[str] = []

    def progress(_done: int, _total: int, what: str) -> None:
        waited.append(what)
        lock.release()

    rebuild(store, RebuildOptions(progress=progress))
    assert waited[0] == "waits for the compaction of host"
    lock_stream(path / "streams/host", COMPACT_LOCK).release()


def test_damage_is_told_and_read_around(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for n in range(10):
            put_message(store, message(n))
    pack = next(path.glob("streams/host/*.pack"))
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    with Store.open(path) as store:
        report = rebuild(store)
        assert report.damage
        assert len(list(store.deliveries(Query()))) >= 8


def test_a_store_that_cannot_be_written_to(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path, create=True).close()
    monkeypatch.setattr("store.store.os.access", lambda *_args: False)
    with Store.open(path) as store, pytest.raises(StoreError, match="cannot be written to"):
        rebuild(store)


def test_a_lost_index_and_a_service_that_starts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture begins at once, the index catches up behind it, and a rebuild may do so too."""
    monkeypatch.setattr("store.store._MUCH_BYTES", 1000)
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for n in range(100):
            put_message(store, message(n))
    shutil.rmtree(path / "index")
    held = threading.Event()
    real = Store.open(path).view.__class__._scan
    shutil.rmtree(path / "index")

    def slow(self: object, stream: str, advance: object) -> object:
        held.wait(60)
        return real(self, stream, advance)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr("store.view.View._scan", slow)
    with Store.open(path, wait=False) as store:
        store.start_writing("host")
        put_message(store, b"while it catches up")  # durable at once
        assert list(store.deliveries(Query())) == []
        held.set()
        store.settle_index(60)
        end = time.monotonic() + 60
        while len(list(store.deliveries(Query()))) < 101 and time.monotonic() < end:
            time.sleep(0.02)
        assert mails(store) == {b"while it catches up", *(message(n) for n in range(100))}
        rebuild(store)
        put_message(store, b"and after")
        store.settle_index()
        assert list(check(store, Checked(), read_data=True)) == []
        assert len(mails(store)) == 102
