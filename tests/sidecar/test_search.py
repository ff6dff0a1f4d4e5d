"""`find`: what is in the store is found by its words, what is gone is not, and nothing is ever missed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sidecar.demo.ports import wait_until
from sidecar.scheduler.context import JobContext, JobInterrupted
from sidecar.search.files import DIRECTORY, Cursor, Document, connect
from sidecar.search.follow import Follower, Reached, forget_removed
from sidecar.search.index import SHARD_MESSAGES, IndexWriter
from sidecar.search.query import QueryError, expression, parse, remarks
from sidecar.search.reader import IndexReader
from sidecar.search.text import Text
from store.compact import CompactOptions, Compactor, close_open_packs
from store.deliveries import Query
from store.ids import FOREVER_US, DeliveryId, delivery_time_us, new_delivery_id, now_us, order
from store.records import Leg
from store.retention import erase, expire
from store.sealing import new_identity
from store.store import Store
from tests.support.lmtp_sink import LmtpSink
from tests.support.mailstore import NOON_US, SECOND_US, Filler, mailkeep, written
from tests.support.service import COMMAND
from tests.support.serving import Client, Serving
from tests.support.sink_thread import SinkThread

DAY_US = 86_400 * SECOND_US
ROOT = Path(__file__).parents[2]


def mail(subject: str, body: str = "nothing", **fields: str) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"Subject: {subject}\r\n{head}\r\n{body}\r\n".encode()


def found(path: Path, *words: str) -> list[str]:
    """The subjects that `find` prints, newest first."""
    ran = mailkeep("find", "--store", path, "--json", "--limit", "0", *words)
    assert ran.code == 0, ran.err
    return [one["subject"] for one in ran.objects]


def put(fill: Filler, subject: str, body: str = "nothing", **how: object) -> DeliveryId:
    return fill.put(mail(subject, body), subject=subject.encode(), **how).id  # type: ignore[arg-type]


def follow(store: Store, shard_messages: int = SHARD_MESSAGES) -> Reached:
    index = IndexWriter.take(store.path, store.id, shard_messages=shard_messages)
    assert index is not None
    with index:
        return Follower(store, index).run()


def hits(store: Store, typed: str) -> list[DeliveryId]:
    with IndexReader(store.path, store.id) as reader:
        return list(reader.search(expression(parse(typed)), 0, FOREVER_US))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("find") / "store"
    with written(path) as fill:
        put(fill, "one", "the annual report of Zürich", sender=b"bert@example.com")
        put(fill, "two", "report, annual", to=[b"carl@sub.example.net"], replies=[b"250 ok"])
        put(fill, "three", "Müllabfuhr und Straße", leg=Leg.MILTER)
        put(fill, "four", "来週の会議資料です")
        pdf = b"Content-Type: application/pdf; name=plan.pdf\r\n\r\nx"
        fill.put(b"Subject: five\r\nFrom: Dora Ex <dora@example.net>\r\n" + pdf, subject=b"five")
    return path


@pytest.mark.parametrize(
    ("words", "subjects"),
    [
        ("report", "two one"),
        ("REPORT annual", "two one"),
        ('"annual report"', "one"),
        ('"annual rep*"', "one"),
        ('"annual rep"*', "one"),
        ("rep* -zürich", "two"),
        ("report -\"annual report\"", "two"),
        ("zurich", "one"),
        ("ZÜRICH", "one"),
        ("mull*", "three"),
        ("strasse", "three"),
        ("会議", "four"),
        ("議会", ""),
        ("plan.pdf", "five"),
        ("file:plan", "five"),
        ("body:plan", ""),
        ("subject:two", "two"),
        ("address:dora", "five"),
        ("dora@example.net", "five"),
        ("carl", "two"),
        ("report --to carl@sub.example.net", "two"),
        ("report --from bert@example.com --status delivered", "two"),
        ("report --to nobody@example.org", ""),
        ("straße --leg milter", "three"),
        ("straße --leg lmtp", ""),
        ("report --since 2026-03-31T12:00:01Z", "two"),
        ("report --until 2026-03-31T12:00:01Z", "one"),
        ("report --subject ONE", "one"),
        ("report --as-of 2026-03-31T12:00:00Z", "one"),
        ("nosuchword", ""),
    ],
)  # fmt: skip
def test_words_and_filters(store: Path, words: str, subjects: str) -> None:
    typed, *options = words.split(" --")
    arguments = [part for option in options for part in f"--{option}".split(" ", 1)]
    assert found(store, typed, *arguments) == subjects.split()


def test_words_that_must_not_be_there_are_no_options(store: Path) -> None:
    assert found(store, "report", "-zürich") == ["two"]
    assert found(store, "report", "-carl") == ["one"]
    ran = mailkeep("find", "report", "-c", store / "none.toml")
    assert ran.code == 2
    assert "none.toml" in ran.err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("from:you", "from: is a filter: --from; here it is looked for as a word"),
        ('-as-of:"last week"', "as-of: is a filter: --as-of"),
        ("Subjekt:foo", "subjekt: is no place (subject, address, file, body), and looked for as a word"),
        ("an*al", "an*al: * counts at the end of a word alone"),
        ('"an* report"', '"an* report": * counts at the end'),
        ('annual "report', "a quote has no end"),
    ],
)
def test_what_means_less_than_one_may_think_is_told(store: Path, typed: str, said: str) -> None:
    follow_once(store)
    ran = mailkeep("find", "--store", store, "report", typed)
    assert ran.code == 0
    assert f"mailkeep: {said}" in ran.err


def test_what_is_well_said_is_not_remarked_on() -> None:
    for typed in (
        "Re: invoice",
        'annu* subject:a* "annual rep*" file:"a b"*',
        "http://a.example/x*",
        "10:30",
        "-a",
    ):
        assert remarks(typed) == []


def test_what_looks_like_an_option_comes_after_two_dashes(store: Path) -> None:
    ran = mailkeep("find", "--store", store, "report", "-x")
    assert ran.code == 2
    assert "No such option: -x. Words that begin with - and look like an option come after --" in ran.err
    assert found(store, "report", "--", "-x") == ["two", "one"]


def test_output_and_limit(store: Path) -> None:
    ran = mailkeep("find", "--store", store, "report", "--limit", "1")
    assert ran.lines[0].split() == mailkeep("list", "--store", store).lines[0].split()
    assert len(ran.lines) == 2
    assert "more than 1" in ran.err
    assert "nothing matches" in mailkeep("find", "--store", store, "nosuchword").err


ODD = [
    '"', '""', '" "', "*", "**", "-", "--", "-*", 'a"', '"a', 'a "b', "a*b*", "NEAR(a b)", "a AND", "OR",
    "NOT a", "{x}:a", "subject:", "subject:*", "^a", "a+b", "(a", "a)", "a\0b", "\x1b[31m", "\ud800", "'",
    "rowid:1", "; drop table words", "words:a", "-a", "-a -b", "a" * 9999, "a " * 99, "a " * 101,
    "é\u0301", "\u0301", "𐍈", "👍", "👍 a", "a\u200bb", "%", "_", "..", "a\nb",
]  # fmt: skip


@pytest.mark.parametrize("typed", ODD)
def test_no_query_is_too_odd(store: Path, typed: str) -> None:
    follow_once(store)
    try:
        terms = parse(typed)
    except QueryError:
        assert mailkeep("find", "--store", store, "--", typed).code == 2
        return
    with Store.open(store) as opened:
        hits(opened, typed)
    with IndexReader(store, opened.id) as reader:
        list(reader.search(expression(terms), 0, FOREVER_US))


def follow_once(path: Path) -> None:
    if not (path / DIRECTORY).exists():
        with Store.open(path) as opened:
            follow(opened)


def test_random_queries_raise_nothing(store: Path) -> None:
    follow_once(store)
    rng = random.Random(5)
    with Store.open(store) as opened, IndexReader(store, opened.id) as reader:
        for _ in range(500):
            typed = "".join(rng.choices("ab \"-*:(){}^+,.'\\subject:", k=rng.randrange(1, 20)))
            try:
                terms = parse(typed)
            except QueryError:
                continue
            list(reader.search(expression(terms), 0, FOREVER_US))


def test_the_files_are_the_owners_alone(store: Path) -> None:
    follow_once(store)
    directory = store / DIRECTORY
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


# -- keeping up


_WRITE = """
import sys
from pathlib import Path
from store.neighbours import Neighbours
from store.store import Store
from tests.support.mailstore import Filler
with Store.open(Path(sys.argv[1])) as store:
    store.among_others(Neighbours(), ["host", "host-2"])
    store.start_writing(sys.argv[2])
    fill = Filler(store)
    for line in sys.stdin:
        turn, time_us = map(int, line.split())
        subject = f"number {turn}".encode()
        raw = b"Subject: " + subject + b"\\r\\n\\r\\n" + f"word{turn} ".encode()
        print(fill.put(raw, subject=subject, time_us=time_us).id.hex(), flush=True)
"""


class Worker:
    """Another process that writes a stream, a message at each `put`."""

    def __init__(self, path: Path, stream: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITE, str(path), stream], cwd=ROOT, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def put(self, turn: int, time_us: int) -> DeliveryId:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{turn} {time_us}\n")
        return DeliveryId(bytes.fromhex(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()


def test_two_streams_written_by_turns_and_imported_mail_of_years_ago(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rng = random.Random(1)
    with Store.open(path, create=True) as store:
        workers = [Worker(path, "host"), Worker(path, "host-2")]
        expected: list[DeliveryId] = []
        for turn in range(120):
            time_us = NOON_US + turn * SECOND_US
            if turn % 3 == 0:  # imported
                time_us = rng.randrange(NOON_US - 4000 * DAY_US, NOON_US)
            expected.append(workers[turn % 2].put(turn, time_us))
            if turn % 7 == 0:
                reached = follow(store, shard_messages=20)
                assert reached == Reached(turn + 1, 0, followed=True)
        for worker in workers:
            worker.close()
        assert follow(store, shard_messages=20) == Reached(120, 0, followed=True)
        assert hits(store, "number") == sorted(expected, key=order, reverse=True)
        for turn, id_ in enumerate(expected):
            assert hits(store, f"word{turn}") == [id_]
        assert len(list((path / DIRECTORY).glob("0*.db"))) >= 6


def test_workers_write_while_it_follows(tmp_path: Path) -> None:
    path = tmp_path / "store"
    ids: list[DeliveryId] = []
    with Store.open(path, create=True) as store:
        workers = [Worker(path, "host"), Worker(path, "host-2")]

        def write(worker: Worker) -> None:
            ids.extend(worker.put(turn, now_us()) for turn in range(150))

        threads = [threading.Thread(target=write, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            follow(store, shard_messages=50)
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.close()
        follow(store, shard_messages=50)
        assert hits(store, "number") == sorted(ids, key=order, reverse=True)


def test_compaction_moves_facts_and_nothing_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        store = fill.store
        for number in range(600):
            put(fill, f"number {number}")
        store.settle_index()
        follow(store)
        for number in range(600, 650):
            put(fill, f"number {number}")
    with Store.open(path) as store:
        close_open_packs(store)
        Compactor(store, CompactOptions(everything=True, level=3)).run()
        follow(store)
        assert len(hits(store, "number")) == 650
        assert len(set(hits(store, "number"))) == 650


def test_thrown_away_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        for number in range(30):
            put(fill, f"number {number}")
    assert len(found(path, "number")) == 30
    for how in ("gone", "version", "rubbish", "no shard", "no table"):
        state, shard = path / DIRECTORY / "state.db", path / DIRECTORY / "00000001.db"
        match how:
            case "gone":
                for file in (path / DIRECTORY).iterdir():
                    file.unlink()
                (path / DIRECTORY).rmdir()
            case "version":
                with sqlite3.connect(state) as db:
                    db.execute("update meta set value = '0 x'")
                db.close()
            case "rubbish":
                state.write_bytes(os.urandom(9000))
            case "no shard":
                shard.unlink()
            case "no table":
                with sqlite3.connect(shard) as db:
                    db.execute("drop table words")
                db.close()
        assert len(found(path, "number")) == 30, how


def test_a_flipped_shard_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        for number in range(200):
            put(fill, f"number {number}", f"some text {number} with words {number * 7}")
    assert len(found(path, "number")) == 200
    shard = path / DIRECTORY / "00000001.db"
    data = bytearray(shard.read_bytes())
    data[8192:] = os.urandom(len(data) - 8192)
    shard.write_bytes(data)
    assert len(found(path, "number")) == 200


@pytest.mark.parametrize("name", ["state.db", "00000001.db"])
def test_damaged_names_of_tables_are_damage(tmp_path: Path, name: str) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        put(fill, "one")
    assert found(path, "one") == ["one"]
    file = path / DIRECTORY / name
    data = file.read_bytes()
    assert data.lower().count(b"create table") > 1
    file.write_bytes(data.replace(b"CREATE TABLE", b"CRE\xe6TE TABLE"))
    assert found(path, "one") == ["one"]


def test_another_history_is_followed_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        for number in range(5):
            put(fill, f"number {number}")
    follow_once(path)
    for name in ("streams/host", "index"):
        for file in (path / name).iterdir():
            file.unlink()
    with written(path) as fill:
        for number in range(9):
            put(fill, f"other {number}")
    assert len(found(path, "other")) == 9
    assert found(path, "number") == []


def test_order_is_that_of_time_whatever_comes_when(tmp_path: Path) -> None:
    rng = random.Random(2)
    index = IndexWriter.take(tmp_path, b"x" * 16, shard_messages=40)
    assert index is not None
    with index:
        ids = [new_delivery_id(rng.randrange(1, 10_000)) for _ in range(500)]
        for at in range(0, 500, 10):
            some = sorted(ids[at : at + 10], key=order)
            index.note("s", Cursor(at), some, ())
            index.take_in([Document(id_, Text(subject="word")) for id_ in some])
        index.tidy()
    with IndexReader(tmp_path, b"x" * 16) as reader:
        assert list(reader.search('"word"', 0, FOREVER_US)) == sorted(ids, key=order, reverse=True)
        some = [id_ for id_ in sorted(ids, key=order, reverse=True) if 2000 <= delivery_time_us(id_) < 3000]
        assert list(reader.search('"word"', 2000, 3000)) == some


def test_backfill_is_newest_first_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        ids = [put(fill, f"number {number}") for number in range(500)]
    with Store.open(path) as store:
        index = IndexWriter.take(path, store.id)
        assert index is not None
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > 120

        with index:
            reached = Follower(store, index, stop=stop).run()
        assert not reached.is_complete
        assert 0 < reached.messages < 500
        assert reached.messages + reached.waiting == 500
        assert hits(store, "number") == ids[::-1][: reached.messages]
    ran = mailkeep("find", "--build", "--store", path)
    assert ran.code == 0
    assert "500 messages" in ran.err
    assert len(found(path, "number")) == 500


def test_an_incomplete_index_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        for number in range(50):
            put(fill, f"number {number}")
    monkeypatch.setattr("sidecar.commands.find._CATCH_UP_S", 0.0)
    ran = mailkeep("find", "--store", path, "number")
    assert "--build" in ran.err
    assert ran.code == 0


def test_one_writer_at_a_time_and_readers_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        put(fill, "one")
    with Store.open(path) as store:
        index = IndexWriter.take(path, store.id)
        assert index is not None
        with index:
            assert IndexWriter.take(path, store.id) is None
            Follower(store, index).run()
            assert len(hits(store, "one")) == 1
            assert not forget_removed(store)
            command = [*COMMAND, "find", "--store", str(path)]
            beside = subprocess.run([*command, "one"], cwd=ROOT, capture_output=True, text=True, check=False)
            assert beside.returncode == 0, beside.stderr
            assert "one" in beside.stdout
            refused = subprocess.run(
                [*command, "--build"], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert refused.returncode == 1
            assert "another process" in refused.stderr


# -- what is gone


def _bytes_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_what_was_erased_is_not_found_and_its_words_leave_the_files(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        victim = put(fill, "victim", "xyzzysecretword")
        for number in range(20):
            put(fill, f"number {number}", f"harmless text {number}")
    assert found(path, "xyzzysecretword") == ["victim"]
    assert b"xyzzysecretword" in _bytes_of(path / DIRECTORY)
    ran = mailkeep("erase", "--store", path, victim.hex(), "--reason", "r", "--yes")
    assert ran.code == 0
    assert b"xyzzy" not in _bytes_of(path / DIRECTORY)
    assert found(path, "xyzzysecretword") == []
    assert len(found(path, "harmless")) == 20


def test_erased_words_leave_also_what_somebody_killed_had_just_put_in(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        put(fill, "before")
        fill.store.settle_index()
        follow(fill.store)
        victim = put(fill, "victim", "xyzzysecretword")
        fill.store.settle_index()
        with IndexWriter.take(path, fill.store.id) or pytest.fail("the lock is held") as index:
            Follower(fill.store, index).forget()
            index._fill(1, [Document(victim, Text(body="xyzzysecretword"))])  # and here it is killed
        assert b"xyzzy" in _bytes_of(path / DIRECTORY)
        erase(fill.store, [victim], owner="o", reason="r")
        assert forget_removed(fill.store)
        assert b"xyzzy" not in _bytes_of(path / DIRECTORY)
        assert follow(fill.store) == Reached(1, 0, followed=True)


def test_erased_by_another_stream_before_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        victim = put(fill, "victim")
        put(fill, "other")
    with Store.open(path) as store:
        store.start_writing("a-first")
        erase(store, [victim], owner="o", reason="r")
    with Store.open(path) as store:
        assert follow(store) == Reached(1, 0, followed=True)
        assert hits(store, "victim") == []


def test_what_has_expired_goes_with_the_next_look(tmp_path: Path) -> None:
    from store.retention import Rule

    path = tmp_path / "store"
    with written(path) as fill:
        put(fill, "old", "xyzzysecretword", to=[b"old@example.org"])
        put(fill, "kept", "harmless")
        fill.store.settle_index()
        follow(fill.store)
        expire(fill.store, (Rule(to="old@example.org", keep_us=DAY_US),), owner="test")
    assert found(path, "xyzzysecretword") == []
    assert b"xyzzy" not in _bytes_of(path / DIRECTORY)
    assert found(path, "harmless") == ["kept"]


# -- sealed, and off


def test_a_sealed_store_has_no_words_on_disk(tmp_path: Path) -> None:
    path, key = tmp_path / "store", tmp_path / "key"
    secret, public = new_identity()
    key.write_text(secret)
    with Store.open(path, create=True) as opened:
        opened.start_writing("host")
        put(Filler(opened), "lunch", "xyzzysecretword")
        opened.settle_index()
        follow(opened)
    with Store.open(path, recipients=[public]) as opened:
        opened.start_writing("host")
        put(Filler(opened), "dinner with anna", "more", to=[b"dora@example.org"])
    ran = mailkeep("find", "--store", path, "dinner")
    assert ran.code == 21
    ran = mailkeep("find", "--store", path, "--identity", key, "dinner", "anna", "-bert*")
    assert [ran.code, ran.out] == [0, ""]
    ran = mailkeep("find", "--store", path, "--identity", key, "din*", "dora@example.org", "--json")
    assert [one["subject"] for one in ran.objects] == ["dinner with anna"]
    assert "sealed" in ran.err
    ran = mailkeep("find", "--store", path, "--identity", key, "--build")
    assert ran.code == 1
    assert "sealed" in ran.err
    assert "Without --build" in ran.err
    assert "remove" not in ran.err
    assert b"xyzzysecretword" not in _bytes_of(path / DIRECTORY)


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    path, config = tmp_path / "store", tmp_path / "c.toml"
    config.write_text(f'[store]\npath = "{path}"\n[lmtp]\n[search]\nenabled = false\n')
    with written(path) as fill:
        put(fill, "lunch", "at noon")
    ran = mailkeep("find", "--config", config, "lunch", "--json")
    assert [one["subject"] for one in ran.objects] == ["lunch"]
    assert "enabled" in ran.err
    assert mailkeep("find", "--config", config, "noon").out == ""
    assert not (path / DIRECTORY).exists()


# -- the job


def job(store: Store, text: str = "") -> str:
    from sidecar.config import Config
    from sidecar.jobs.search import search_job

    config = Config.parse(f"[lmtp]\n{text}", "x")
    return search_job(store, lambda: config)(JobContext({}))


def test_the_job_takes_in_and_takes_away(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        put(fill, "one")
        fill.store.settle_index()
        assert job(fill.store) == "1 messages can be found by their words"
        assert len(hits(fill.store, "one")) == 1
        assert "off" in job(fill.store, "[search]\nenabled = false\n")
        assert [file.name for file in (path / DIRECTORY).iterdir()] == ["lock"]
        assert "reserve" in job(fill.store, '[store]\nreserve = "1000TiB"\n')


def test_a_job_that_is_stopped_keeps_what_it_has_read(tmp_path: Path) -> None:
    from sidecar.config import Config
    from sidecar.jobs.search import search_job

    path = tmp_path / "store"
    with written(path) as fill:
        for number in range(300):
            put(fill, f"number {number}")
        fill.store.settle_index()
        context = JobContext({})
        steps = 0

        class Stopping(JobContext):
            def yield_(self) -> None:
                nonlocal steps
                steps += 1
                if steps == 100:
                    self.stop("enough")
                super().yield_()

        context = Stopping({})
        config = Config.parse("[lmtp]\n", "x")
        with pytest.raises(JobInterrupted):
            search_job(fill.store, lambda: config)(context)
        assert 90 <= len(hits(fill.store, "number")) < 300
        job(fill.store)
        assert len(hits(fill.store, "number")) == 300


_FOLLOW = """
import sys
from pathlib import Path
from sidecar.search.follow import Follower
from sidecar.search.index import IndexWriter
from store.store import Store
with Store.open(Path(sys.argv[1])) as store:
    with IndexWriter.take(store.path, store.id, shard_messages=100) as index:
        print("on", flush=True)
        Follower(store, index).run()
"""


def test_killed_at_any_moment_nothing_is_missed_or_doubled(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        ids = [put(fill, f"number {number}", f"text {number} " * 50) for number in range(1000)]
    rng = random.Random(4)
    for _ in range(int(os.environ.get("MAILKEEP_KILLS", "6"))):
        process = subprocess.Popen([sys.executable, "-c", _FOLLOW, str(path)], stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"on\n"
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if (path / DIRECTORY / "state.db").exists():
            with Store.open(path) as store:
                some = hits(store, "number")
                assert len(set(some)) == len(some)
    with Store.open(path) as store:
        follow(store, shard_messages=100)
        assert hits(store, "number") == ids[::-1]


_HALF_WRITTEN = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
assert db.execute("pragma journal_mode").fetchone() == ("delete",)
db.execute("pragma cache_size=1")  # pages go to the file before the end
db.execute("begin immediate")
db.execute("update ids set id = randomblob(5000)")
os._exit(0)
"""


def test_what_a_killed_writer_had_begun_is_undone_by_who_reads(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        ids = [put(fill, f"number {number}") for number in range(20)]
        follow(fill.store, shard_messages=10)
    shard = path / DIRECTORY / "00000001.db"
    subprocess.run([sys.executable, "-c", _HALF_WRITTEN, str(shard)], check=True)
    assert shard.with_name("00000001.db-journal").stat().st_size > 0
    with Store.open(path) as store:
        assert hits(store, "number") == ids[::-1]
    assert not shard.with_name("00000001.db-journal").exists()


def test_an_index_is_there_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `find` beside a `serve` that makes it would take it for damaged."""

    def interrupted(path: Path, *, write: bool) -> sqlite3.Connection:
        raise KeyboardInterrupt

    path = tmp_path / "store"
    with written(path) as fill:
        id_ = put(fill, "one")
    with Store.open(path) as store:
        with monkeypatch.context() as patched:
            patched.setattr("sidecar.search.files.connect", interrupted)
            with pytest.raises(KeyboardInterrupt):
                IndexWriter.take(store.path, store.id)
        with pytest.raises(FileNotFoundError):
            IndexReader(store.path, store.id)
        follow(store)
        assert hits(store, "one") == [id_]
    assert not list((path / DIRECTORY).glob("*.new*"))


def test_a_shard_that_goes_before_it_is_opened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        for _ in range(2):
            ids = [put(fill, f"number {number}") for number in range(10)]
            follow(fill.store, shard_messages=10)

    def late(shard: Path, *, write: bool) -> sqlite3.Connection:
        if shard.name == "00000001.db":
            shard.unlink()
        return connect(shard, write=write)

    monkeypatch.setattr("sidecar.search.reader.connect", late)
    with Store.open(path) as store:
        assert hits(store, "number") == ids[::-1]


def test_who_reads_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        put(fill, "one")
        follow(fill.store)
    db = connect(path / DIRECTORY / "state.db", write=False)
    with contextlib.closing(db), pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("delete from shards")


@pytest.fixture(autouse=True)
def _nothing_from_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAILKEEP_CONFIG", raising=False)
    monkeypatch.setattr("sidecar.commands.find._CATCH_UP_S", 60.0)  # on a busy machine, too


def test_lost_and_damaged_packs_keep_nothing_else_from_being_found(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        for number in range(40):
            put(fill, f"number {number}")
            if number % 10 == 9:
                fill.store.writer.roll()
    first, second, *_ = sorted((path / "streams/host").glob("*.pack"))
    first.unlink()
    second.write_bytes(b"\0" * 64 + second.read_bytes()[64:])
    with Store.open(path) as store:
        reached = follow(store)
        assert reached.is_complete
        there = {stored.delivery.id for stored in store.deliveries(Query())}
        assert set(hits(store, "number")) == there
        assert len(there) in (20, 30)


def test_a_real_serve_keeps_it(tmp_path: Path) -> None:
    with SinkThread(LmtpSink()) as sink:
        serving = Serving(tmp_path, sink.address, '[scheduler]\nsearch = ""\n')
        serving.start()
        try:
            asyncio.run(_send(serving.port, b"Subject: plum\r\n\r\nxyzzyword\r\n"))
            config = ("--config", serving.config_file)
            ran = mailkeep("jobs", "run", "search", "--wait", *config)
            assert ran.code == 0, ran.err
            assert "1 messages" in mailkeep("jobs", *config).out
            assert b"zzyword" in _bytes_of(serving.store / DIRECTORY)
            asyncio.run(_send(serving.port, b"Subject: pear\r\n\r\nxyzzyword\r\n"))
            shown = mailkeep("find", "xyzzy*", "--json", *config).objects
            assert [one["subject"] for one in shown] == ["pear", "plum"]
            mailkeep("erase", shown[0]["id"], "--reason", "r", "--yes", *config)
            shown = mailkeep("find", "xyzzyword", "--json", *config).objects
            assert [one["subject"] for one in shown] == ["plum"]
        finally:
            assert serving.stop() == 0


async def _send(port: int, message: bytes) -> None:
    client = await Client.connect(port)
    await client.send(message)
    await client.close()


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with written(path) as fill:
        for number in range(1000):
            put(fill, f"number {number}", f"text {number} " * 200)
    command = [*COMMAND, "find", "--build", "--store", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    shard = path / DIRECTORY / "00000001.db"
    assert wait_until(shard.exists, timeout_s=60)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told == "mailkeep: interrupted; what is done stays, the same command goes on\n"
    assert mailkeep("find", "--build", "--store", path).code == 0
    assert len(found(path, "number")) == 1000


def test_a_full_disk_gets_no_fuller(tmp_path: Path) -> None:
    path, config = tmp_path / "store", tmp_path / "c.toml"
    with written(path) as fill:
        put(fill, "one")
    assert found(path, "one") == ["one"]
    with written(path) as fill:
        put(fill, "two")
    config.write_text(f'[store]\npath = "{path}"\nreserve = "1000TiB"\n[lmtp]\n')
    ran = mailkeep("find", "bert", "--json", "--config", config)
    assert [one["subject"] for one in ran.objects] == ["one"]
    assert "reserve" in ran.err
    assert "--build" in ran.err
