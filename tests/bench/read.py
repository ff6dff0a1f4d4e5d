"""`python -m tests.bench read`: single messages at random, and 25 MB ones, as captured and after compaction.

In a store opened anew, files in a warm cache; a message is its delivery looked up by id, then its bytes,
which the store compares with their BLAKE3.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from store.ids import DeliveryId
from store.store import Store
from tests.bench import compacting
from tests.bench.capture import Captures
from tests.bench.corpus import as_mail, prepare
from tests.bench.load import large
from tests.bench.size import keep
from tests.bench.table import Line, percentile, show, skipped, spread

READS = int(os.environ.get("MAILKEEP_BENCH_READS", "2000"))
LARGE = 5
P99_TARGET_MS = 20
LARGE_TARGET_MB_S = 300


def timed_read(store: Store, delivery: DeliveryId) -> tuple[float, int]:
    """(seconds, bytes) for one message."""
    began = time.perf_counter()
    size = sum(map(len, store.read(store.delivery(delivery).delivery.content)))
    return time.perf_counter() - began, size


def _measure(
    state: str, path: Path, small: list[DeliveryId], big: list[DeliveryId], *, aim: bool
) -> list[Line]:
    rng = random.Random(7)
    with Store.open(path) as store:
        for delivery in rng.choices(small, k=READS // 10):
            timed_read(store, delivery)
        seconds = [timed_read(store, delivery)[0] for delivery in rng.choices(small, k=READS)]
        rates = []
        for _ in range(2):
            for delivery in big:
                took, size = timed_read(store, delivery)
                rates.append(size / took / 1e6)
    return [
        Line(
            what=f"{state}: {READS} messages at random, p50 / p99 / max",
            ours=spread(seconds),
            ratio=percentile(seconds, 99) * 1e3,
            target=P99_TARGET_MS if aim else None,
            unit=" ms",
        ),
        Line(
            what=f"{state}: a message of 25 MB, median of {len(rates)} (worst {min(rates):.0f} MB/s)",
            ours=f"{statistics.median(rates):.0f} MB/s",
            ratio=statistics.median(rates),
            target=LARGE_TARGET_MB_S,
            at_least=True,
            unit=" MB/s",
        ),
    ]


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as temporary:
        scratch = Path(temporary)
        corpus = prepare(scratch / "corpus")
        path = scratch / "store"
        rng = random.Random(9)
        with Store.open(path, create=True) as store:
            store.start_writing("bench")
            small = keep(store, corpus)
            captures = Captures(store, 1)
            big = [captures.put(as_mail(n, large(n, rng))).id for n in range(LARGE)]
            captures.drain()
        lines = _measure("as captured", path, small, big, aim=False)
        notes = []
        if compacting.available():
            with Store.open(path) as store:
                store.start_writing("bench")
                notes.append(compacting.told(compacting.compact(store)))
            lines += _measure("compacted", path, small, big, aim=True)
        else:
            skipped("read", compacting.MISSING)
        show("read", f"Read: {corpus.title}", lines, notes)
