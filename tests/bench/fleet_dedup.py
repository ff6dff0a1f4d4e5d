"""`python -m tests.bench fleet-dedup`: what deduplication across the hosts that share a bucket would give.

    a stream of mail --> dealt out to 10 hosts --> 10 stores of their own    against one store with all of it

Dealt out by recipient (a mailbox lives on one host; a message with several recipients reaches each host that
has one of them, as a delivery of its own) and by chance (hosts that share the load). One store gets the very
deliveries that the ten get, in the same order; so it has what a bucket could have at best in which any host
refers to every other's chunks. Compaction compresses better what it sees together, and a bucket that only
deduplicates would not have that: distinct chunks, before any compression, say what deduplication alone gives.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from store.store import Store
from tests.bench import compacting
from tests.bench.capture import Captures, Mail
from tests.bench.corpus import prepare
from tests.bench.stream import Stream
from tests.bench.table import Line, show

HOSTS = 10
MESSAGES = int(os.environ.get("MAILKEEP_BENCH_MESSAGES", "5000"))
IN_FLIGHT = 32

Deal = Callable[[Mail], Iterator[tuple[int, Mail]]]


def by_recipient(mail: Mail) -> Iterator[tuple[int, Mail]]:
    """To each host that has one of the mailboxes."""
    hosts: dict[int, list[bytes]] = {}
    for address in mail.recipients:
        hosts.setdefault(crc32(address.lower()) % HOSTS, []).append(address)
    for host, addresses in hosts.items():
        yield host, mail._replace(recipients=tuple(addresses))


def by_chance() -> Deal:
    """To any host, all recipients together."""
    rng = random.Random(8)

    def deal(mail: Mail) -> Iterator[tuple[int, Mail]]:
        yield rng.randrange(HOSTS), mail

    return deal


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Bytes of one store, or of several: of messages, of distinct chunks uncompressed, of packs."""

    message: int = 0
    chunk: int = 0
    captured: int = 0
    compacted: int = 0

    def __add__(self, other: Taken) -> Taken:
        return Taken(
            message=self.message + other.message, chunk=self.chunk + other.chunk,
            captured=self.captured + other.captured, compacted=self.compacted + other.compacted,
        )  # fmt: skip


def keep(path: Path, mails: Iterable[Mail]) -> Taken:
    """Capture and compact, and remove it again."""
    with Store.open(path, create=True) as store:
        store.start_writing("bench")
        captures = Captures(store, IN_FLIGHT)
        for mail in mails:
            captures.put(mail)
        captures.drain()
        store.settle_index(60)
        counters, captured = store.stats().counters, store.pack_bytes()
    with Store.open(path) as store:
        store.start_writing("bench")
        compacting.compact(store)
        compacted = store.pack_bytes()
    shutil.rmtree(path)
    return Taken(
        message=counters.message_bytes, chunk=counters.chunk_bytes, captured=captured, compacted=compacted
    )


def compare(scratch: Path, what: str, mails: Callable[[], Iterable[Mail]], deal: Deal) -> list[Line]:
    """The lines for one way of dealing out."""
    dealt = [(host, mail) for mail in mails() for host, mail in deal(mail)]
    one = keep(scratch / "one", (mail for _, mail in dealt))
    own = Taken()
    for host in range(HOSTS):
        own += keep(scratch / f"{host}", (mail for to, mail in dealt if to == host))
    reached = Counter(mail.queue_id for _, mail in dealt)
    mean = len(dealt) / len(reached)
    largest = max(Counter(host for host, _ in dealt).values()) / len(dealt)
    return [
        Line(what=f"{what}: {name}", ours=f"{ours / 1e6:.1f} MB", peer=f"{peer / 1e6:.1f} MB",
             ratio=peer / ours)
        for name, ours, peer in (
            (
                f"distinct chunks of {own.message / 1e6:.0f} MB ({mean:.2f} hosts a message, "
                f"{largest:.0%} on the busiest)",
                own.chunk,
                one.chunk,
            ),
            ("packs as captured", own.captured, one.captured),
            ("packs after compaction", own.compacted, one.compacted),
        )
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    if not compacting.available():
        raise RuntimeError(compacting.MISSING)
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as temporary:
        scratch = Path(temporary)
        corpus = prepare(scratch / "corpus")

        def stream() -> list[Mail]:
            return Stream(9, divisor=4).take(MESSAGES)

        lines: list[Line] = []
        for name, mails in (("stream", stream), ("corpus", corpus.mails)):
            for how, deal in (("by recipient", by_recipient), ("by chance", by_chance())):
                lines += compare(scratch, f"{name}, {how}", mails, deal)
    notes = [
        f"stream: {MESSAGES} made-up messages; corpus: {corpus.title}, each with the one recipient that its "
        "header tells",
        "compaction of one store has a longer window over like mail as well: that is not deduplication",
    ]
    show(
        "fleet-dedup",
        f"{HOSTS} stores of their own (mailkeep) against one with all of it (peer)",
        lines,
        notes,
    )
