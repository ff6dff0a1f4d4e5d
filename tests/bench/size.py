"""`python -m tests.bench size`: what the same mail takes in the store and with the peers.

Ours is the whole store directory with index, and the larger of the files' lengths and the blocks they
occupy; the peers' is the sum of the files' lengths. Every message is read back and compared, as captured and
once more after compaction.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from blake3 import blake3

from store.ids import DeliveryId
from store.store import Store
from tests.bench import compacting, peers
from tests.bench.capture import Captures
from tests.bench.corpus import Corpus, prepare
from tests.bench.table import Line, show, skipped

IN_FLIGHT = 32
TARGETS = {"restic": (0.58, 0.49), "tar": (None, 0.88), "borg": (None, None)}
"""as captured, after compaction"""


def keep(store: Store, corpus: Corpus) -> list[DeliveryId]:
    """Capture the corpus; the deliveries in its order."""
    captures = Captures(store, IN_FLIGHT)
    deliveries = [captures.put(mail).id for mail in corpus.mails()]
    captures.drain()
    store.settle_index(60)
    return deliveries


def verify(path: Path, corpus: Corpus, deliveries: list[DeliveryId]) -> int:
    """Read every message back in a store opened anew. Returns how many are not what was put in."""
    wrong = 0
    with Store.open(path) as store:
        for delivery, message in zip(deliveries, corpus.messages(), strict=True):
            digest = blake3()
            for piece in store.read(store.delivery(delivery).delivery.content):
                digest.update(piece)
            wrong += digest.digest() != blake3(message).digest()
        wrong += len(store.damage)
    return wrong


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as temporary:
        scratch = Path(temporary)
        corpus = prepare(scratch / "corpus")
        notes = [
            "ours: the whole directory, the larger of length and allocated; peers: the shorter of the two",
            "restic encrypts, borg (--encryption none) and tar do not; all keep each file's metadata",
        ]
        others: dict[str, peers.Taken] = {}
        if peers.here("restic"):
            others["restic"] = peers.restic(corpus, scratch)
        if peers.here("borg"):
            others["borg"] = peers.borg(corpus, scratch).size
        if peers.here("zstd"):
            others["tar"] = peers.tar(corpus, scratch)
        for missing in TARGETS.keys() - others.keys():
            skipped("size", f"the peer {missing} is not installed")

        path = scratch / "store"
        with Store.open(path, create=True) as store:
            store.start_writing("bench")
            deliveries = keep(store, corpus)
        lines = _lines("as captured", 0, path, others, notes)
        notes.append(f"as captured: {verify(path, corpus, deliveries)} of {len(deliveries)} not as put in")
        if compacting.available():
            with Store.open(path) as store:
                store.start_writing("bench")
                notes.append(compacting.told(compacting.compact(store)))
            lines += _lines("compacted", 1, path, others, notes)
            notes.append(f"compacted: {verify(path, corpus, deliveries)} of {len(deliveries)} not as put in")
        else:
            skipped("size", compacting.MISSING)
        show("size", f"Size: {corpus.title}", lines, notes)


def _lines(
    state: str, column: int, path: Path, others: dict[str, peers.Taken], notes: list[str]
) -> list[Line]:
    whole = peers.taken(path)
    packs = sum(file.stat().st_size for file in path.glob("streams/*/*"))
    index = peers.taken(path / "index")
    notes.append(f"{state}: packs {packs / 1e6:.2f} MB, index {index}")
    names = {"restic": peers.RESTIC, "borg": peers.BORG, "tar": peers.TAR}
    return [
        Line(
            what=f"{state}, against {names[name]}",
            ours=str(whole),
            peer=str(size),
            ratio=whole.larger / min(size.apparent, size.allocated),
            target=TARGETS[name][column],
        )
        for name, size in others.items()
    ]
