"""`python -m tests.bench ingest`: how fast mail is taken in, against borg on the same files.

mailkeep makes each message durable by itself, 32 in flight, from the first file read to the last flush; borg
flushes once at its end. Both read the files from a warm cache, in turns, each into a new store.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from store.store import Store
from tests.bench import peers
from tests.bench.capture import Captures
from tests.bench.corpus import Corpus, prepare
from tests.bench.size import IN_FLIGHT
from tests.bench.table import Line, show, skipped

ROUNDS = int(os.environ.get("MAILKEEP_BENCH_ROUNDS", "3"))


def _ours(corpus: Corpus, path: Path) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    with Store.open(path, create=True) as store:
        store.start_writing("bench")
        cpu, began = time.process_time(), time.perf_counter()
        captures = Captures(store, IN_FLIGHT)
        for mail in corpus.mails():
            captures.put(mail)
        captures.drain()
        wall = time.perf_counter() - began
        used = time.process_time() - cpu
    shutil.rmtree(path)
    return wall, used


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as temporary:
        scratch = Path(temporary)
        corpus = prepare(scratch / "corpus")
        with_borg = peers.here("borg")
        if not with_borg:
            skipped("ingest", "the peer borg is not installed")
        _ours(corpus, scratch / "store")  # warm up
        start_s = peers.borg(corpus, scratch, empty=True).seconds if with_borg else 0.0
        ours: list[tuple[float, float]] = []
        theirs: list[float] = []
        for _ in range(ROUNDS):
            if with_borg:
                theirs.append(peers.borg(corpus, scratch).seconds)
            ours.append(_ours(corpus, scratch / "store"))
        wall = statistics.median(seconds for seconds, _ in ours)
        cpu = statistics.median(seconds for _, seconds in ours)
        shown = f"{corpus.size / wall / 1e6:.1f} MB/s"
        what = f"durable one by one, {IN_FLIGHT} in flight, against {peers.BORG}"
        count = len(corpus.names)
        notes = [f"mailkeep: {count / wall:.0f} messages/s, {cpu / count * 1e6:.0f} µs CPU each"]
        if not with_borg:
            show("ingest", f"Ingest: {corpus.title}", [Line(what=what, ours=shown)], notes)
            return
        pairs = list(zip(ours, theirs, strict=True))
        lines = [
            Line(
                what=what,
                ours=shown,
                peer=f"{corpus.size / statistics.median(theirs) / 1e6:.1f} MB/s",
                ratio=statistics.median(peer / mine for (mine, _), peer in pairs),
                target=1.0,
                at_least=True,
            ),
            Line(
                what=f"the same, less the {start_s:.2f} s that borg takes for nothing",
                ours=shown,
                peer=f"{corpus.size / (statistics.median(theirs) - start_s) / 1e6:.1f} MB/s",
                ratio=statistics.median((peer - start_s) / mine for (mine, _), peer in pairs),
            ),
        ]
        show("ingest", f"Ingest: {corpus.title}, median of {ROUNDS} rounds in turns", lines, notes)
