"""`python -m tests.bench proof`: heads and proofs over the history of ten million deliveries.

A store with a few real deliveries, whose index is then made that of a stream of 20 million facts: the hashes
above the real ones are made up, which changes neither what is read nor what is computed. Proofs of real
deliveries are made and verified; nothing is cached between two of them but what the kernel has.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from store import tree
from store.compact import CompactOptions, Compactor, close_open_packs
from store.evidence import continuation, head_of, prove
from store.merkle import HASH_BYTES, TILE
from store.notes import SignKey
from store.places import stream_number
from store.proofs import parse
from store.records import Delivery
from store.store import Store
from tests.bench.table import Line, conditions, percentile, show, spread
from tests.support.mailstore import Filler

DELIVERIES = 10_000_000
FACTS = 2 * DELIVERIES + 201
"""a delivery and its replies; the last block is not complete"""
REAL = 3328
"""whole blocks, and about as many entries as compaction puts into one group"""
_ATTRIBUTES = {
    "helo": b"mail-ed1-f48.example.com",
    "client_addr": b"203.0.113.48",
    "client_port": b"41522",
    "proto": b"ESMTP",
    "source": b"REMOTE",
}
PROOFS = 300
PROGRAM_ROUNDS = 10
_SIZE_BYTES = 4096
_MS = 100.0
_INDEX_BYTES = 2.0
SCRIPT = Path(__file__).parents[2] / "deploy" / "verify_proof.py"


def _fill(store: Store) -> list[Delivery]:
    """Deliveries as Postfix hands them over, to one recipient, two facts each."""
    fill = Filler(store)
    return [
        fill.put(
            b"Subject: The minutes of the meeting, number %d\r\n\r\nSee below.\r\n" % n,
            sender=b"list-bounces+anna=example.org@lists.example.com",
            to=(b"anna.svensson@example.org",),
            replies=(b"250 2.0.0 <anna.svensson@example.org> %032x Saved" % n,),
            queue_id=b"4Qx1Yz0abcz9sW",
            subject=b"[project-devel] The minutes of the meeting of last Tuesday, number %d" % n,
            message_id=b"CAJ8f9=+%032x@mail.gmail.com" % n,
            header_from=b'"Bert Andersson" <bert.andersson@example.com>',
            attributes=dict(_ATTRIBUTES),
        )
        for n in range(REAL)
    ]  # fmt: skip


def _grow(store: Store) -> int:
    """Make the index that of a stream of `FACTS` facts; what that took on disk."""
    chance = random.Random(1)
    before = store.index.bytes_on_disk()
    number = stream_number("host")
    with store.index.update() as update:
        state, own = update.state("host"), update.tree("host")
        assert state is not None
        assert (own.size, own.edge) == (2 * REAL, b""), "whole blocks"
        for block in range(own.size // TILE, FACTS // TILE):
            tree._add(update, number, 1, block, chance.randbytes(HASH_BYTES))
        own.size, own.edge = FACTS, chance.randbytes(HASH_BYTES * (FACTS % TILE))
        update.put_state("host", replace(state, facts=FACTS))
    store.index.merge(everything=True)
    # Where each block begins takes 19 bytes and compresses well; that of the real ones is in `before`.
    return store.index.bytes_on_disk() - before + FACTS // TILE * 19


def _program(*arguments: str | Path) -> float:
    """Seconds that a whole program takes, its start included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Make the store, prove, verify, show."""
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as directory:
        path = Path(directory) / "store"
        with Store.open(path, create=True) as store:
            store.start_writing("host")
            deliveries = _fill(store)
            store.settle_index()
            old = head_of(store).text()
        with Store.open(path) as store:
            index_bytes = _grow(store)
        captured = _made(path, deliveries)
        with Store.open(path) as store:
            close_open_packs(store)
            assert Compactor(store, CompactOptions(everything=True, level=3)).run().units == 1
        _measure(path, Path(directory), deliveries, old, index_bytes, captured)


def _made(path: Path, deliveries: list[Delivery]) -> list[float]:
    """The time that each proof takes, in a store that was opened for it alone."""
    seconds = []
    for delivery in random.Random(3).sample(deliveries, PROOFS):
        with Store.open(path) as store:
            began = time.perf_counter()
            prove(store, delivery.id)
            seconds.append(time.perf_counter() - began)
    return seconds


def _measure(
    path: Path,
    directory: Path,
    deliveries: list[Delivery],
    old: str,
    index_bytes: int,
    captured: list[float],
) -> None:
    signing = SignKey.generate("mx1.example.org")
    key, proof_file, head_file = (directory / name for name in ("key", "proof.json", "head.txt"))
    key.write_text(str(signing))
    made: list[float] = []
    verified: list[float] = []
    sizes: list[int] = []
    for delivery in random.Random(2).sample(deliveries, PROOFS):
        with Store.open(path) as store:  # a fresh one: no block of a run or pack is at hand
            began = time.perf_counter()
            text = prove(store, delivery.id, sign=signing.sign).text()
            made.append(time.perf_counter() - began)
        began = time.perf_counter()
        found, _ = parse(text).verify()
        signing.verify_key.verify(parse(text).head)
        verified.append(time.perf_counter() - began)
        assert found.id == delivery.id
        sizes.append(len(text))
    proof_file.write_text(text)
    heads, compared = [], []
    for _ in range(PROGRAM_ROUNDS):
        with Store.open(path) as store:
            began = time.perf_counter()
            head_file.write_text(signing.sign(head_of(store).text()))
            heads.append(time.perf_counter() - began)
        with Store.open(path) as store:
            began = time.perf_counter()
            assert continuation(store, old).faults() == []
            compared.append(time.perf_counter() - began)
    head_file.write_text(parse(text).head)
    cli = ("-m", "sidecar.cli")
    command = [
        _program(
            *cli, "prove", deliveries[n].id.hex(), "--store", path, "--sign", key, "--output", directory / "x"
        )
        for n in range(PROGRAM_ROUNDS)
    ]
    shown = [_program(*cli, "show", d.id.hex(), "--store", path) for d in deliveries[:PROGRAM_ROUNDS]]
    plain = [_program("-I", SCRIPT, proof_file, "--head", head_file) for _ in range(PROGRAM_ROUNDS)]
    public = str(signing.verify_key)
    signed = [_program("-I", SCRIPT, proof_file, "--key", public) for _ in range(PROGRAM_ROUNDS)]
    idle = [_program("-I", "-c", "pass") for _ in range(PROGRAM_ROUNDS)]
    many = index_bytes / DELIVERIES
    show(
        "proof",
        f"Proofs over {DELIVERIES:,} deliveries, {FACTS:,} facts ({conditions()}); p50 / p99 / max",
        [
            _bound("a proof, signed", f"{max(sizes):,} bytes at most", max(sizes), _SIZE_BYTES, " bytes"),
            _ms("made, as captured", captured),
            _ms("made and signed, after compaction", made),
            _ms("verified, signature too", verified),
            _ms("a head made and signed", heads),
            _ms("compared with an earlier head", compared),
            Line(
                what="`mailkeep prove`, its start included",
                ours=spread(command),
                peer=f"`mailkeep show` {spread(shown)}",
                ratio=statistics.median(command) / statistics.median(shown),
            ),
            _ms("`verify_proof.py --head`, its start included", plain),
            _ms("`verify_proof.py --key`, its start included", signed),
            _bound("the tree in the index, a delivery", f"{many:.2f} bytes", many, _INDEX_BYTES, " bytes"),
        ],
        [f"Python alone takes {statistics.median(idle) * 1e3:.0f} ms to start and end"],
    )


def _bound(what: str, ours: str, figure: float, target: float, unit: str) -> Line:
    return Line(what=what, ours=ours, ratio=figure, target=target, unit=unit)


def _ms(what: str, seconds: list[float]) -> Line:
    return _bound(what, spread(seconds), percentile(seconds, 50) * 1e3, _MS, " ms")
