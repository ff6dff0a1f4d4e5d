"""`python -m tests.bench compaction`: how long a commit takes while the store is being compacted.

    the same store, copied for every round:   quiet -> compacting -> quiet -> compacting ...

Mail comes at half the rate that the store takes at most, 16 in flight; a message's latency runs from the
moment it was due to its flush, so a stall is charged to all whom it kept waiting. Compaction runs in a
thread of the same process, and as the `mailkeep compact` command beside it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sidecar.scheduler.niceness import stand_back
from store.store import Store
from tests.bench import compacting
from tests.bench.capture import Captures, Mail, timed
from tests.bench.stream import Stream
from tests.bench.table import Line, percentile, record, show, skipped, spread
from tests.support.service import COMMAND

ROUNDS = int(os.environ.get("MAILKEEP_BENCH_ROUNDS", "3"))
STORE_MB = int(os.environ.get("MAILKEEP_BENCH_STORE_MB", "400"))
PHASE_S = float(os.environ.get("MAILKEEP_BENCH_PHASE_S", "15"))
PACK_BYTES = 32 << 20
IN_FLIGHT = 16
P99_TARGET = 1.5


def _build(path: Path) -> None:
    """A store with many closed packs."""
    stream = Stream(2, divisor=4)
    with Store.open(path, create=True) as store:
        store.start_writing("bench", pack_bytes=PACK_BYTES)
        captures = Captures(store, 64)
        while store.pack_bytes() < STORE_MB * 1_000_000:
            for mail in stream.take(200):
                captures.put(mail)
        captures.drain()


def _paced(store: Store, mails: list[Mail], rate: float, until: Callable[[], bool]) -> list[float]:
    """Seconds of latency for each message sent until the time is over; `mails` is emptied from its end."""
    captures = Captures(store, IN_FLIGHT)
    latencies: list[float] = []
    due = time.perf_counter()
    while mails and not until():
        now = time.perf_counter()
        if now < due:
            time.sleep(due - now)
        captures.put(mails.pop(), lambda due=due: latencies.append(time.perf_counter() - due))
        due += 1 / rate
    captures.drain()
    return latencies


def _for(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def _in_thread(store: Store, mails: list[Mail], rate: float) -> list[float]:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            stand_back(10, "idle")  # as the job in `serve` does by default
            compacting.compactor(store, threads=1).run()
        except BaseException as exc:  # noqa: BLE001 - told in the main thread
            failed.append(exc)

    thread = threading.Thread(target=work, name="compaction")
    thread.start()
    latencies = _paced(store, mails, rate, lambda: not thread.is_alive())
    thread.join()
    if failed:
        raise failed[0]
    return latencies


def _beside(store: Store, mails: list[Mail], rate: float) -> list[float]:
    config = store.path.with_suffix(".toml")
    config.write_text(f'[store]\npath = "{store.path}"\nstream = "bench"\n[lmtp]\n')
    log = store.path.with_suffix(".log")
    with log.open("wb") as out:
        command = [*COMMAND, "compact"]
        environment = {**os.environ, "MAILKEEP_CONFIG": str(config)}
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            latencies = _paced(store, mails, rate, lambda: process.poll() is not None)
            code = process.wait(600)
        finally:
            process.kill()
            process.wait()
    if code:
        raise RuntimeError(f"mailkeep compact: {log.read_text()[-1000:]}")
    return latencies


def _most(path: Path) -> float:
    """Messages a second when each of 16 sends the next as soon as it is answered."""
    mails = Stream(3).take(int(400 * PHASE_S))
    with Store.open(path) as store:
        store.start_writing("bench", pack_bytes=PACK_BYTES)
        return len(mails) / timed(store, mails, IN_FLIGHT)


def _rounds(
    scratch: Path, compaction: Callable[[Store, list[Mail], float], list[float]], rate: float
) -> Line:
    quiet: list[float] = []
    busy: list[float] = []
    ratios = []
    for number in range(ROUNDS):
        path = scratch / "round"
        shutil.copytree(scratch / "built", path)
        # Enough for both phases, made before either, and new to the store.
        mails = Stream(100 + number).take(int(rate * PHASE_S * 4))
        mails.reverse()
        with Store.open(path) as store:
            store.start_writing("bench", pack_bytes=PACK_BYTES)
            _paced(store, mails, rate, _for(PHASE_S / 10))  # warm up
            store.writer.roll()
            before = _paced(store, mails, rate, _for(PHASE_S))
            during = compaction(store, mails, rate)
        shutil.rmtree(path)
        quiet += before
        busy += during
        ratios.append(percentile(during, 99) / percentile(before, 99))
        record("compaction", round=number, before=spread(before), during=spread(during), messages=len(during))
    how = "in a thread" if compaction is _in_thread else "as mailkeep compact beside"
    return Line(
        what=f"compaction {how}, {len(busy)} messages during it",
        ours=spread(busy),
        peer=spread(quiet),
        ratio=statistics.median(ratios),
        target=P99_TARGET,
    )


def main() -> None:
    """Print the table."""
    if not compacting.available():
        skipped("compaction", compacting.MISSING)
        return
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as temporary:
        scratch = Path(temporary)
        _build(scratch / "built")
        shutil.copytree(scratch / "built", scratch / "most")
        most = _most(scratch / "most")
        shutil.rmtree(scratch / "most")
        lines = [_rounds(scratch, _in_thread, most / 2)]
        if compacting.has_command():
            lines.append(_rounds(scratch, _beside, most / 2))
        else:
            skipped("compaction", "this version has no `mailkeep compact`")
        title = (
            f"Commit latency, p50 / p99 / max, while {STORE_MB} MB of packs are compacted (mailkeep) "
            f"and while not (peer): {most / 2:.0f} messages/s, half of what is possible, {ROUNDS} rounds"
        )
        show("compaction", title, lines, ["ratio: of the p99, median of the rounds"])
