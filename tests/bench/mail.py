"""`python -m tests.bench mail`: the mail path against named peers, in turns, in one run.

    load --> aiosmtpd that discards          load --> mailkeep --> a sink that discards
    load --> Dovecot                         load --> mailkeep --> Dovecot

What counts are the ratios. mailkeep makes every message durable (fdatasync) before it is answered; the
discarding peer keeps nothing. Load, mailkeep and what is behind it share the machine's cores, so the cost of
the load and of the sink is in every figure.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.ports import free_port
from tests.support.serving import Serving

ROUNDS = int(os.environ.get("MAILKEEP_BENCH_ROUNDS", "5"))
SMALL, LARGE = 6000, 12
SMALL_DOVECOT, LARGE_DOVECOT = 2000, 8
LARGE_BYTES = 25e6
_mailboxes = itertools.count()


@dataclass
class Contender:
    """Somebody who takes mail at an address; `cpu_s` is the CPU time it has used so far, if it tells."""

    name: str
    address: str
    cpu_s: Callable[[], float] | None = None


def measure(contender: Contender, kind: str, count: int, sessions: int) -> tuple[float, float]:
    """(messages a second, CPU µs a message or 0)."""
    before = contender.cpu_s() if contender.cpu_s else 0.0
    # A mailbox of its own for each round: a Maildir gets slower as it fills.
    what = [contender.address, kind, str(count), str(sessions), f"u{next(_mailboxes)}@example.org"]
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench.load", *what],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(f"{contender.name}: {run.stderr[-500:]}")
    used = (contender.cpu_s() - before) if contender.cpu_s else 0.0
    return count / float(run.stdout), used / count * 1e6


def table(title: str, contenders: list[Contender], kind: str, count: int, sessions: int) -> None:
    """Measure in turns and print a line for each, with its ratio to the first, round by round."""
    results: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        measure(contender, kind, max(count // 10, sessions), sessions)  # warm up
    for _ in range(ROUNDS):
        for contender in contenders:
            results[contender.name].append(measure(contender, kind, count, sessions))
    print(f"\n{title}: {count} messages, {sessions} sessions, median of {ROUNDS} rounds in turns")
    base = [rate for rate, _ in results[contenders[0].name]]
    for name, rounds in results.items():
        rates = [rate for rate, _ in rounds]
        ratio = statistics.median(rate / first for rate, first in zip(rates, base, strict=True))
        rate = statistics.median(rates)
        shown = f"{rate:8.0f} msg/s" if kind == "small" else f"{rate * LARGE_BYTES / 1e6:8.0f} MB/s "
        cpu = statistics.median(used for _, used in rounds)
        spread = f"{min(rates) / rate:.2f}-{max(rates) / rate:.2f}"
        per_message = f"{cpu:8.0f} µs CPU/msg" if cpu and kind == "small" else ""
        print(f"  {name:<40} {shown}  x {ratio:5.2f}  spread {spread}  {per_message}", flush=True)


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[None]:
    """A helper process, until the block ends."""
    process = subprocess.Popen([sys.executable, "-m", *arguments])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port: int) -> None:
    """Until somebody listens."""
    import socket

    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nobody listens on port {port}")


@contextlib.contextmanager
def mailkeep(directory: Path, downstream: str) -> Iterator[Contender]:
    """`mailkeep serve` in front of `downstream`."""
    directory.mkdir()
    serving = Serving(directory, downstream)
    serving.start()
    stat = Path(f"/proc/{serving.pid}/stat")
    ticks = os.sysconf("SC_CLK_TCK")

    def cpu_s() -> float:
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    try:
        yield Contender("mailkeep", f"127.0.0.1:{serving.port}", cpu_s)
    finally:
        serving.stop()


def flush_cost(directory: Path) -> float:
    """Milliseconds for an append of 4 kB with fdatasync here, the median of 200."""
    fd = os.open(directory / "probe", os.O_CREAT | os.O_WRONLY)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        os.write(fd, b"x" * 4096)
        os.fdatasync(fd)
        times.append(time.perf_counter() - began)
    os.close(fd)
    return statistics.median(times) * 1e3


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as scratch, contextlib.ExitStack() as stack:
        where = Path(scratch).resolve()
        where.chmod(0o755)
        print(
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"append + fdatasync of 4 kB: {flush_cost(where):.2f} ms"
        )
        ports = [free_port() for _ in range(3)]
        stack.enter_context(program("tests.bench.null_server", str(ports[0])))
        stack.enter_context(program("tests.bench.null_server", str(ports[1]), "uvloop"))
        stack.enter_context(program("tests.bench.sink", str(ports[2])))
        for port in ports:
            wait_for(port)
        peers = [
            Contender("aiosmtpd + uvloop, discarding", f"127.0.0.1:{ports[1]}"),
            Contender("aiosmtpd, discarding", f"127.0.0.1:{ports[0]}"),
        ]
        with mailkeep(where / "null", f"127.0.0.1:{ports[2]}") as durable:
            durable.name = "mailkeep, durable, in front of a sink"
            table("4 kB messages", [*peers, durable], "small", SMALL, 20)
        with mailkeep(where / "null25", f"127.0.0.1:{ports[2]}") as durable:
            durable.name = "mailkeep, durable, in front of a sink"
            table("25 MB messages", [*peers, durable], "large", LARGE, 4)
        dovecot = stack.enter_context(PrivateDovecot(where / "dovecot"))
        behind = f"127.0.0.1:{dovecot.lmtp_port}"
        alone = Contender("Dovecot alone", behind)
        with mailkeep(where / "front", behind) as front:
            front.name = "mailkeep in front of Dovecot"
            for sessions in (1, 10):
                table(
                    f"4 kB messages, {sessions} session(s)", [alone, front], "small", SMALL_DOVECOT, sessions
                )
            table("25 MB messages", [alone, front], "large", LARGE_DOVECOT, 2)
