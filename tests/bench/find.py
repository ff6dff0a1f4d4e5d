"""`python -m tests.bench find`: mail by its words, in our index (SQLite's FTS5) and in tantivy.

Each engine in processes of its own (`find_engines.py`): the writer, a process that asks each query first and
then again, two readers beside a writer, and a writer that is killed. Then a store with so many deliveries,
asked by the command as a whole; and real mail, followed from the store.

    MAILKEEP_FIND_MESSAGES   how many made-up messages (100,000; the README's figures are of 1,000,000)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from sidecar.search.files import DIRECTORY, Cursor, Document
from sidecar.search.follow import Follower
from sidecar.search.index import IndexWriter
from store.ids import chunk_id, content_id, new_delivery_id
from store.later import facts_since
from store.layout import NewChunk
from store.records import Content, Delivery, Entry, Envelope, Leg, Recipient, Run
from store.store import Store
from store.writer import Submission
from tests.bench.corpus import prepare
from tests.bench.find_engines import START_US, STEP_US, documents, queries, size_of, words
from tests.bench.size import keep
from tests.bench.table import Line, conditions, record, show, skipped, spread
from tests.support.service import COMMAND

MESSAGES = int(os.environ.get("MAILKEEP_FIND_MESSAGES", "100000"))
FIRST_TARGET_MS = 100
COMMANDS = 5


def _start(engine: str, what: str, path: Path, count: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.find_engines", engine, what, str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout
    for line in process.stdout:
        yield json.loads(line)


def _built(engine: str, path: Path) -> dict[str, Any]:
    process = _start(engine, "write", path, MESSAGES)
    *_, last = _lines(process)
    if process.wait():
        raise RuntimeError(f"the writer of {engine} ended with {process.returncode}")
    return {**last, "bytes": size_of(path) / MESSAGES}


def _beside(engine: str, path: Path) -> tuple[list[float], dict[str, int], float, int]:
    """Two readers beside a writer: their seconds and faults; then the writer is killed: seconds until the
    next one has opened what is left, and whether what was committed is found."""
    writer = _start(engine, "write", path, 10_000_000)
    lines = _lines(writer)
    next(lines)
    readers = [_start(engine, "query", path) for _ in range(2)]
    try:
        done = 0
        for said in lines:
            done = said["done"]
            if done >= min(MESSAGES, 100_000):
                break
        writer.kill()
        writer.wait()
        seconds: list[float] = []
        faults: dict[str, int] = {}
        for reader in readers:
            reader.kill()
            for said in _lines(reader):
                seconds += said["seconds"]
                for what, count in said["faults"].items():
                    faults[what] = faults.get(what, 0) + count
            reader.wait()
        began = time.perf_counter()
        again = _start(engine, "write", path, 0)
        *_, _ = _lines(again)
        again.wait()
        opened = time.perf_counter() - began
        found = sum(
            1
            for said in _lines(_start(engine, "search", path))
            if said["query"] == "in one alone" and said["found"]
        )
        return seconds, faults, opened, found
    finally:
        for process in (writer, *readers):
            process.kill()
            process.wait()


def _after_kill(found: tuple[list[float], dict[str, int], float, int]) -> str:
    return f"{found[2]:.1f} s, {'all there' if found[3] else 'LOST'}"


def _store_of(path: Path) -> None:
    """A store with so many deliveries of one message, and words of their own in its search index."""
    message = b"Subject: made up\r\n\r\nfor the bench\r\n"
    with Store.open(path, create=True) as store:
        store.start_writing("bench")
        chunk = chunk_id(message, store.key)
        content = Content(content_id(message), len(message), (Run((chunk,)),))
        envelope = Envelope(b"a@example.org", (Recipient(b"b@example.org"),))
        store.writer.submit(
            Submission(chunks=[NewChunk(chunk, message)], entries=[content], done=lambda _error: None)
        )
        for at in range(0, MESSAGES, 1000):
            entries: list[Entry] = []
            for number in range(at, min(at + 1000, MESSAGES)):
                time_us = START_US + number * STEP_US
                entries.append(
                    Delivery(
                        id=new_delivery_id(time_us), time_us=time_us, leg=Leg.LMTP, content=content.id,
                        size=len(message), envelope=envelope, subject=b"made up %d" % number,
                    )
                )  # fmt: skip
            store.writer.submit(Submission(entries=entries, done=lambda _error: None))
            store.settle_index(60)
    with Store.open(path) as store:
        _, fact = next(facts_since(store, "bench", store.state("bench").facts - 1))
        cursor = Cursor(store.state("bench").facts, fact.leaf)
        index = IndexWriter.take(path, store.id)
        assert index
        made = documents(words(), MESSAGES)
        with index, store.index.read() as snapshot:
            ids = snapshot.by_time(0, START_US * 2, newest_first=False)
            while some := list(islice(made, 200)):
                own = [
                    Document(id_, document.text)
                    for id_, document in zip(islice(ids, len(some)), some, strict=True)
                ]
                index.note("bench", cursor, (document.id for document in own), ())
                index.take_in(own)
            index.tidy()


def _commands(path: Path) -> list[Line]:
    """`mailkeep find` from a shell, its start included."""
    lines = []
    for name, typed in queries(words()).items():
        command = [*COMMAND, "find", "--store", str(path), typed]
        seconds = []
        for _ in range(COMMANDS):
            began = time.perf_counter()
            ran = subprocess.run(command, capture_output=True, check=True)
            seconds.append(time.perf_counter() - began)
        count = max(len(ran.stdout.splitlines()) - 1, 0)
        lines.append(
            Line(
                what=f"`mailkeep find`, a word {name}: {count} lines, median of {COMMANDS}",
                ours=f"{statistics.median(seconds) * 1e3:.0f} ms",
            )
        )
    began = time.perf_counter()
    subprocess.run([*COMMAND, "list", "--store", str(path)], capture_output=True, check=True)
    lines.append(
        Line(what="for comparison `mailkeep list`", ours=f"{(time.perf_counter() - began) * 1e3:.0f} ms")
    )
    return lines


def _real(scratch: Path) -> Line:
    corpus = prepare(scratch / "corpus")
    path = scratch / "real"
    with Store.open(path, create=True) as store:
        store.start_writing("bench")
        keep(store, corpus)
    with Store.open(path) as store:
        index = IndexWriter.take(path, store.id)
        assert index
        cpu = time.process_time()
        with index:
            reached = Follower(store, index).run()
        took = time.process_time() - cpu
        size, packs = size_of(path / DIRECTORY), store.pack_bytes()
    each = f"{took / reached.messages * 1e3:.2f} ms of CPU and {size / reached.messages:.0f} bytes"
    share = f"{size / packs:.0%} of the packs as captured, {size / corpus.size:.0%} of the mail"
    return Line(what=f"from the store: {corpus.title}", ours=f"{each} a message, {share}")


def main() -> None:
    """Print the tables."""
    engines = ["ours", *(["tantivy"] if find_spec("tantivy") else [])]
    if len(engines) == 1:
        skipped("find", "tantivy is not installed (pip install tantivy), so there is no peer")
    with tempfile.TemporaryDirectory(prefix="mailkeep-find-") as temporary:
        scratch = Path(temporary)
        built = {engine: _built(engine, scratch / engine) for engine in engines}
        asked = {engine: list(_lines(_start(engine, "search", scratch / engine))) for engine in engines}
        beside = {engine: _beside(engine, scratch / f"{engine}-beside") for engine in engines}
        for engine in engines:
            record("find", engine=engine, **built[engine], asked=asked[engine])
        lines = []
        for what, name, form in (
            ("CPU to build", "cpu_s", "{:.0f} s"), ("wall", "wall_s", "{:.0f} s"),
            ("memory at the peak, without the maker's", "rss_mb", "{:.0f} MB"),
            ("on disk, a message", "bytes", "{:.0f} bytes"),
        ):  # fmt: skip
            ours, *peer = (form.format(built[engine][name]) for engine in engines)
            lines.append(Line(what=what, ours=ours, peer="".join(peer)))
        for number, ours_said in enumerate(asked["ours"]):
            told = [asked[engine][number] for engine in engines]
            ours, *peer = (
                f"{said['first_ms']:.1f} / {said['later_ms']:.1f} ms, {said['found']}" for said in told
            )
            lines.append(
                Line(
                    what=f"newest 50, a word {ours_said['query']}: first of a process / 10th, found",
                    ours=ours, peer="".join(peer),
                    ratio=ours_said["first_ms"], target=FIRST_TARGET_MS, unit=" ms",
                )
            )  # fmt: skip
        for what, tell in (
            ("two readers beside a writer, p50 / p99 / max", lambda found: spread(found[0])),
            ("their faults", lambda found: str(found[1] or "none")),
            ("after SIGKILL of the writer: the next one starts and ends", _after_kill),
        ):
            ours, *peer = (tell(beside[engine]) for engine in engines)
            lines.append(Line(what=what, ours=ours, peer="".join(peer)))
        _store_of(scratch / "store")
        lines += _commands(scratch / "store")
        lines.append(_real(scratch))
        show("find", f"Find: {MESSAGES:,} made-up messages, {conditions()}; peer: tantivy", lines)
