"""`python -m tests.bench.find_engines ENGINE write|search|query PATH N`: one engine in a process of its own.

Both get the same made-up documents: words by Zipf's law out of 300,000, texts of 150 words on average with a
long tail, subjects and addresses, and in each a word that no other has. Prints lines of JSON.

    ours      `sidecar.search.index`, as `find` and `serve` use it
    tantivy   one index, one thread, 30 MB of heap, a commit for each 10,000 documents (`pip install tantivy`)
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sidecar.search.files import Cursor, Document
from sidecar.search.index import IndexWriter
from sidecar.search.query import expression, parse
from sidecar.search.reader import IndexReader
from sidecar.search.text import Text
from store.ids import FOREVER_US, DeliveryId, delivery_time_us

STORE_ID = b"bench" * 3 + b"!"
START_US = 1_451_606_400_000_000
STEP_US = 60_000_000
STEP = 200
COMMIT = 10_000


class Words(NamedTuple):
    """The vocabulary, most frequent first, and texts of ten words to be put together."""

    vocabulary: list[str]
    tens: list[str]


def words() -> Words:
    """The same for every process."""
    rng = random.Random(1)
    letters, weights = "etaoinshrdlucmfwypvbgkjqxz", [1 / (n + 2) for n in range(26)]
    made = (rng.choices(letters, weights, k=2 + int(rng.random() ** 1.5 * 11)) for _ in range(300_000))
    vocabulary = ["".join(letters) + ("" if n < 60_000 else f"{n}") for n, letters in enumerate(made)]
    pool = rng.choices(
        vocabulary, cum_weights=list(accumulate(1 / (n + 1) for n in range(len(vocabulary)))), k=2_000_000
    )
    return Words(vocabulary, [" ".join(pool[at : at + 10]) for at in range(0, len(pool), 10)])


def documents(known: Words, count: int) -> Iterator[Document]:
    """In order of time."""
    rng = random.Random(2)
    for number in range(count):
        tens = min(max(2, int(rng.lognormvariate(2.1, 0.9))), 400)
        body = " ".join(rng.choices(known.tens, k=tens)) + f" only{number}"
        people = f"user{rng.randrange(5000)}@example.org "
        people += f"{rng.choice(known.vocabulary)}@host{rng.randrange(3000)}.example"
        id_ = DeliveryId(rng.randbytes(8) + (START_US + number * STEP_US).to_bytes(8, "big"))
        yield Document(id_, Text(" ".join(rng.choice(known.tens).split()[:5]), people, "", body))


def queries(known: Words) -> dict[str, str]:
    """What is asked, by what it is called."""
    most = known.vocabulary
    return {
        "in nine of ten": most[1],
        "in half of them": most[12],
        "two of them": f"{most[12]} {most[300]}",
        "rare": most[40_000],
        "in one alone": "only7",
        "a phrase": f'"{known.tens[77].split()[3]} {known.tens[77].split()[4]}"',
        "a beginning": f"{most[2000][:4]}*",
        "nowhere": "nosuchwordatall",
    }


class Engine(Protocol):
    """What is measured."""

    def add(self, some: list[Document]) -> None:
        """Documents in order of time."""

    def finish(self) -> None:
        """All is on disk and merged."""

    def first(self, typed: str) -> list[bytes]:
        """The ids of the newest 50."""


class Ours:
    """`sidecar.search.index`."""

    def __init__(self, path: Path, *, write: bool) -> None:
        path.mkdir(exist_ok=True)
        self._writer = IndexWriter.take(path, STORE_ID) if write else None
        self._path = path

    def add(self, some: list[Document]) -> None:
        assert self._writer
        for at in range(0, len(some), STEP):
            ids = [document.id for document in some[at : at + STEP]]
            self._writer.note("bench", Cursor(at), ids, ())
            self._writer.take_in(some[at : at + STEP])
        self._writer.tidy()

    def finish(self) -> None:
        assert self._writer
        self._writer.close()

    def first(self, typed: str) -> list[bytes]:
        with IndexReader(self._path, STORE_ID) as reader:
            return list(islice(reader.search(expression(parse(typed)), 0, FOREVER_US), 50))


class Tantivy:
    """Its Python binding."""

    def __init__(self, path: Path, *, write: bool) -> None:
        import tantivy

        self._library: Any = tantivy
        path.mkdir(exist_ok=True)
        if write:
            schema = tantivy.SchemaBuilder()
            schema.add_bytes_field("id", stored=True)
            schema.add_unsigned_field("time", fast=True)
            for name in ("subject", "people", "files", "body"):
                schema.add_text_field(name, tokenizer_name="mail")
            self._index = tantivy.Index(schema.build(), str(path))
        else:
            self._index = tantivy.Index.open(str(path))
        build = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.lowercase())
        self._index.register_tokenizer("mail", build.filter(tantivy.Filter.ascii_fold()).build())
        self._writer = self._index.writer(heap_size=30_000_000, num_threads=1) if write else None

    def add(self, some: list[Document]) -> None:
        assert self._writer
        for document in some:
            made = self._library.Document()
            made.add_bytes("id", document.id)
            made.add_unsigned("time", delivery_time_us(document.id))
            for name in ("subject", "people", "files", "body"):
                made.add_text(name, getattr(document.text, name))
            self._writer.add_document(made)
        self._writer.commit()

    def finish(self) -> None:
        assert self._writer
        self._writer.wait_merging_threads()

    def first(self, typed: str) -> list[bytes]:
        self._index.reload()
        searcher = self._index.searcher()
        fields = ["subject", "people", "files", "body"]
        if typed.endswith("*"):
            each = [
                self._library.Query.regex_query(self._index.schema, name, typed[:-1] + ".*")
                for name in fields
            ]
            asked = self._library.Query.boolean_query([(self._library.Occur.Should, one) for one in each])
        else:
            asked = self._index.parse_query(typed, fields, conjunction_by_default=True)
        found = searcher.search(asked, 50, order_by_field="time", count=False)
        return [bytes(searcher.doc(address)["id"][0]) for _, address in found.hits]


ENGINES: dict[str, type[Ours | Tantivy]] = {"ours": Ours, "tantivy": Tantivy}


def size_of(path: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _status(name: str) -> float:
    """A line of /proc/self/status, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def write(engine: Engine, count: int) -> None:
    """Build it; a line for each commit, the last with the sums. The maker of the text is taken off."""
    known = words()
    maker_mb = _status("VmRSS")
    made, maker_s = documents(known, count), 0.0
    began, cpu = time.perf_counter(), time.process_time()
    done = 0
    while True:
        start = time.thread_time()
        some = list(islice(made, COMMIT))
        maker_s += time.thread_time() - start
        if not some:
            break
        engine.add(some)
        done += len(some)
        print(json.dumps({"done": done}), flush=True)
    engine.finish()
    print(
        json.dumps(
            {
                "cpu_s": time.process_time() - cpu - maker_s,
                "wall_s": time.perf_counter() - began - maker_s,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - maker_mb,
                "anon_mb": _status("RssAnon"),
            }
        ),
        flush=True,
    )


def search(make: type[Ours | Tantivy], path: Path) -> None:
    """Every query: the first answer of a process that has asked nothing yet, and the 10th."""
    asked = queries(words())
    for name, typed in asked.items():
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:  # so that each begins cold, but for what the system has in memory
            began = time.perf_counter()
            engine = make(path, write=False)
            found = len(engine.first(typed))
            first = time.perf_counter() - began
            for _ in range(9):
                began = time.perf_counter()
                engine.first(typed)
                later = time.perf_counter() - began
            told = {"query": name, "found": found, "first_ms": first * 1e3, "later_ms": later * 1e3}
            print(json.dumps(told), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


def query(make: type[Ours | Tantivy], path: Path) -> None:
    """Ask without end beside a writer; a line for each second."""
    typed = list(queries(words()).values())
    engine = make(path, write=False)
    while True:
        seconds: list[float] = []
        faults: dict[str, int] = {}
        until = time.perf_counter() + 1
        while time.perf_counter() < until:
            began = time.perf_counter()
            try:
                engine.first(typed[len(seconds) % len(typed)])
            except Exception as exc:  # noqa: BLE001 - whatever a library raises is what is counted
                faults[str(exc)[:80]] = faults.get(str(exc)[:80], 0) + 1
            seconds.append(time.perf_counter() - began)
            time.sleep(0.02)
        print(json.dumps({"seconds": seconds, "faults": faults}), flush=True)


if __name__ == "__main__":
    kind = ENGINES[sys.argv[1]]
    match sys.argv[2]:
        case "write":
            write(kind(Path(sys.argv[3]), write=True), int(sys.argv[4]))
        case "search":
            search(kind, Path(sys.argv[3]))
        case "query":
            query(kind, Path(sys.argv[3]))
