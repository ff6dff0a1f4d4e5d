"""The writing process of the scale bench: `PATH DELIVERIES SEED`. Says what it finds in lines of JSON.

After the last checkpoint it goes on writing until it is killed, and says which was acknowledged last.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import sys
import time
from pathlib import Path

from sidecar.interpreter import spare_the_collector, take_turns
from store.deliveries import Query
from store.ids import DeliveryId, now_us
from store.rows import Term
from store.store import Store
from tests.bench.capture import Captures
from tests.bench.stream import DAY_US, START_US, Stream
from tests.bench.table import percentile

IN_FLIGHT = 64
BATCH = 50
YEARS_US = 10 * 365 * DAY_US
CHECKPOINTS = (100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000)
LARGEST_WINDOW = 500_000
LOOKUPS = 200
READS = 200
PAGE = 50
MONTH_US = 30 * DAY_US
SAMPLE = 5000
WARM_UP = 100_000
FLOOR_BYTES = 3 << 30
"""free space at which the run ends early"""


def say(event: str, **facts: object) -> None:
    """One line to whoever started us."""
    print(json.dumps({"event": event, **facts}), flush=True)


def memory() -> dict[str, float]:
    """What is resident, in MB: all, the process's own, and what files (the index's map) take."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"rss_mb": "VmRSS", "anon_mb": "RssAnon", "file_mb": "RssFile"}
    return {key: int(fields[name].split()[0]) * 1024 / 1e6 for key, name in names.items()}


def checkpoints(deliveries: int) -> list[tuple[int, int]]:
    """(where a window begins, where it ends) for each checkpoint; multiples of BATCH."""
    ends = [end for end in CHECKPOINTS if end < deliveries]
    if not ends:  # a small run, to try it out
        ends = [deliveries // 4]
    ends = [end - end % BATCH for end in [*ends, deliveries]]
    return [(end - min(end // 2, LARGEST_WINDOW) // BATCH * BATCH, end) for end in ends]


class Run:
    """The store, its load, and what has been measured."""

    def __init__(self, store: Store, stream: Stream) -> None:
        self._store = store
        self._stream = stream
        self._captures = Captures(store, IN_FLIGHT)
        self._rng = random.Random(4)
        self._written = 0
        self._maker_s = 0.0
        self._sample: list[DeliveryId] = []

    def write(self, until: int) -> None:
        """Capture until so many have been handed over."""
        put, take, sample = self._captures.put, self._stream.take, self._sample
        thread_time = time.thread_time
        while self._written < until:
            began = thread_time()
            mails = take(BATCH)
            self._maker_s += thread_time() - began
            deliveries = [put(mail) for mail in mails]
            self._written += BATCH
            # One of each batch, and all batches alike likely to be in the sample.
            if len(sample) < SAMPLE:
                sample.append(deliveries[0].id)
            elif (at := int(self._rng.random() * self._written / BATCH)) < SAMPLE:
                sample[at] = deliveries[0].id

    def settle(self) -> None:
        """Until all is durable and in the index."""
        self._captures.drain()
        while True:
            self._store.settle_index(60)
            if not self._store.index_lag:
                return

    def last(self) -> str:
        """The latest delivery known to be durable."""
        return self._captures.last.hex() if self._captures.last else ""

    def window(self, begin: int, end: int) -> dict[str, float]:
        """Costs from here to there."""
        self.write(begin)
        self.settle()
        cpu, wall, maker = time.process_time(), time.perf_counter(), self._maker_s
        self.write(end)
        self.settle()
        maker = self._maker_s - maker
        count = (end - begin) / 1e6
        return {
            "window": end - begin,
            "cpu_us": (time.process_time() - cpu - maker) / count,
            "wall_us": (time.perf_counter() - wall) / count,
            "maker_us": maker / count,
        }

    def figures(self) -> dict[str, float]:
        """Memory, sizes, lookups and reads now; memory first, before the lookups bring the index in."""
        resident = memory()
        stats = self._store.stats()
        count = sum(stats.counters.deliveries.values())
        finds = [self._find() for _ in range(LOOKUPS)]
        reads = [self._read(delivery) for delivery in self._rng.choices(self._sample, k=READS)]
        return {
            "deliveries": count,
            **resident,
            "index_bytes": stats.index_bytes / count,
            "pack_bytes": stats.pack_bytes / count,
            "message_bytes": stats.counters.message_bytes / count,
            "contents": stats.counters.contents,
            "chunks": stats.counters.chunks,
            "find_p50_ms": percentile([seconds for seconds, _ in finds], 50) * 1e3,
            "find_p99_ms": percentile([seconds for seconds, _ in finds], 99) * 1e3,
            "found": sum(found for _, found in finds) / LOOKUPS,
            "read_p50_ms": percentile(reads, 50) * 1e3,
            "read_p99_ms": percentile(reads, 99) * 1e3,
        }

    def _find(self) -> tuple[float, int]:
        address = self._stream.mailbox()
        since = self._rng.randrange(START_US, max(self._stream.now_us - MONTH_US, START_US + 1))
        query = Query(since_us=since, until_us=since + MONTH_US, terms=((Term.RECIPIENT, address),))
        began = time.perf_counter()
        with contextlib.closing(self._store.deliveries(query)) as found:
            count = sum(1 for _ in itertools.islice(found, PAGE))
        return time.perf_counter() - began, count

    def _read(self, delivery: DeliveryId) -> float:
        began = time.perf_counter()
        for _ in self._store.read(self._store.delivery(delivery).delivery.content):
            pass
        return time.perf_counter() - began


def main() -> None:
    """Write, tell, and go on until killed."""
    path, deliveries, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    start_us = START_US if deliveries else now_us()
    stream = Stream(seed, start_us=start_us, step_us=YEARS_US // (deliveries or 10_000_000))
    for _ in range(
        WARM_UP // BATCH
    ):  # as many threads and known files at the first checkpoint as at the last
        stream.take(BATCH)
    stream.now_us = start_us
    spare_the_collector()  # as `serve` does
    take_turns()
    say("started", **memory())
    with Store.open(path, create=True) as store:
        store.start_writing("bench")
        run = Run(store, stream)
        if deliveries:
            for begin, end in checkpoints(deliveries):
                costs = run.window(begin, end)
                say("checkpoint", **costs, **run.figures())
                if (free := shutil.disk_usage(path).free) < FLOOR_BYTES:
                    say("stopped", why=f"{free / 1e9:.1f} GB free on the disk after {end:,} deliveries")
                    return
        for number in itertools.count(1):
            run.write(deliveries + number * 40 * BATCH)
            say("going on", last=run.last())


if __name__ == "__main__":
    main()
