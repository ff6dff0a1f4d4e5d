"""Heads and proofs of a store, made from the index in milliseconds however much there is.

The index is derived and may be wrong; so what is made here is verified before it is given away, and a root
that the streams do not come to is found by `check --since-head` (`store.check_history`), which reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from store import heads, merkle, notes
from store.errors import DamagedError, NotFoundError, PackGoneError, StoreError
from store.facts import leaves_from, numbered
from store.heads import Head, StreamHead
from store.ids import DeliveryId, now_us
from store.merkle import HASH_BYTES, TILE, TILE_BITS, fold
from store.places import stream_number
from store.proofs import Continuation, Proof, ProofError
from store.records import EntryType
from store.segments import pack_path, packs_of, stream_files
from store.snapshot import Snapshot
from store.store import Store

T = TypeVar("T")
_TRIES = 20
_WAIT_S = 0.05


class GapError(DamagedError):
    """Facts of a stream were lost, so that nothing vouches for it any more."""

    hint = "Run `mailkeep check`; restore what is damaged or missing from a copy, then `mailkeep rebuild`."


class NotUnderHeadError(NotFoundError):
    """The head does not vouch for this delivery."""

    hint = "Take a head of the same store that is newer than the delivery."


class StreamTree:
    """The tree over one stream's facts: hashes from the index, and leaves, a block at a time, from packs."""

    def __init__(self, store: Store, snapshot: Snapshot, name: str) -> None:
        state = snapshot.state(name)
        tree = snapshot.tree(name)
        self.size = tree.size
        self.chain = state.chain if state else b""
        self.whole = tree.whole and tree.size == (state.facts if state else 0)
        self._edge = tree.edge
        self._store = store
        self._snapshot = snapshot
        self._name = name
        self._number = stream_number(name)
        self._blocks: dict[int, Sequence[bytes]] = {}

    def hashes(self, level: int, first: int, count: int) -> Sequence[bytes]:
        """See `merkle.Hashes`. Raises `GapError`, `DamagedError`, `FileNotFoundError`."""
        if not self.whole:
            raise GapError(f"stream {self._name} has lost facts: nothing vouches for it any more")
        if level == 0:
            block = self._block(first >> TILE_BITS)
            return block[first % TILE : first % TILE + count]
        found = self._snapshot.tiles(self._number, level, first, count)
        if len(found) != count:
            raise DamagedError(f"the index lacks hashes of stream {self._name}; `mailkeep rebuild` helps")
        return found

    def _block(self, number: int) -> Sequence[bytes]:
        if number == self.size >> TILE_BITS:
            return [self._edge[at : at + HASH_BYTES] for at in range(0, len(self._edge), HASH_BYTES)]
        if number not in self._blocks:
            self._blocks[number] = self._read(number)
        return self._blocks[number]

    def _read(self, number: int) -> list[bytes]:
        where = self._snapshot.block(self._number, number)
        if where is None:
            raise DamagedError(f"the index lacks a place in stream {self._name}; `mailkeep rebuild` helps")
        directory = self._store.path / "streams" / self._name
        parts = stream_files(directory).parts
        if not any(where.pack in packs_of(part) for part in parts):
            raise PackGoneError(f"{pack_path(directory, where.pack)} is missing")
        try:
            leaves = leaves_from(directory, self._store.id, parts, where, TILE)
        except ValueError as exc:
            raise DamagedError(f"stream {self._name}: {exc}") from exc
        if len(leaves) != TILE or [fold(leaves)] != list(self.hashes(1, number, 1)):
            first = number << TILE_BITS
            raise DamagedError(
                f"stream {self._name}: facts {first} to {first + TILE - 1} are not what was recorded"
            )
        return leaves


def head_of(store: Store) -> Head:
    """What vouches for all that the index has seen. Streams that have lost facts are its gaps."""
    with store.index.read() as snapshot:
        return _head(store, snapshot)


def _head(store: Store, snapshot: Snapshot) -> Head:
    streams: list[StreamHead] = []
    gaps: list[str] = []
    for name in store.view.names():
        tree = StreamTree(store, snapshot, name)
        if not tree.whole:
            gaps.append(name)
        elif tree.size:
            streams.append(StreamHead(name, tree.size, merkle.root(tree.size, tree.hashes), tree.chain))
    return Head(store.id, now_us(), tuple(streams), tuple(gaps))


def prove(
    store: Store, delivery: DeliveryId, *, under: str = "", sign: Callable[[str], str] = lambda text: text
) -> Proof:
    """Prove a delivery under the head `under` (with its signatures), or under a new one that `sign` signs.

    Raises `NotFoundError` (as `RemovedError` for what was erased or has expired), `NotUnderHeadError`,
    `GapError`, `HeadError`, `DamagedError`."""
    store.delivery(delivery)  # what was removed is not proved, even while its bytes are there
    return _retried(store, lambda snapshot: _proof(store, snapshot, delivery, under, sign))


def _proof(
    store: Store, snapshot: Snapshot, delivery: DeliveryId, under: str, sign: Callable[[str], str]
) -> Proof:
    places = [where for kind, where in snapshot.delivery(delivery) if kind == EntryType.DELIVERY]
    if not places:
        raise NotFoundError(f"there is no delivery {delivery.hex()}")
    where = places[0]
    name = {stream_number(name): name for name in store.view.names()}[where.stream]
    tree = StreamTree(store, snapshot, name)
    if not tree.whole:
        raise GapError(f"stream {name} has lost facts: nothing vouches for it any more")
    note = under or sign(_head(store, snapshot).text())
    head = heads.parse(notes.split(note)[0])
    vouched = head.stream(name)
    pack = pack_path(store.path / "streams" / name, where.pack)
    number, fact = numbered(pack, store.id, store.keyring, where)
    if head.store_id != store.id:
        raise NotUnderHeadError(f"the head is of another store, {head.store_id.hex()}")
    if vouched is None or number >= vouched.facts:
        raise NotUnderHeadError(f"delivery {delivery.hex()[:10]} is not under that head: it came later")
    if vouched.facts > tree.size:
        raise DamagedError(f"stream {name} has {tree.size} facts, and the head vouches for {vouched.facts}")
    path = merkle.inclusion(number, vouched.facts, tree.hashes)
    proof = Proof(name, number, fact, tuple(path), note)
    try:
        proof.verify()
    except ProofError as exc:
        raise DamagedError(f"stream {name} is not what the head vouches for: {exc}") from exc
    return proof


def continuation(store: Store, old: str, *, sign: Callable[[str], str] = lambda text: text) -> Continuation:
    """What proves that the store's history still begins with that under the head `old`; where it does not,
    `Continuation.faults` tells. Raises `HeadError`, `DamagedError`."""

    def made(snapshot: Snapshot) -> Continuation:
        head = _head(store, snapshot)
        paths: dict[str, tuple[bytes, ...]] = {}
        for was in heads.parse(notes.split(old)[0]).streams:
            is_ = head.stream(was.name)
            if is_ is not None and was.facts <= is_.facts:
                tree = StreamTree(store, snapshot, was.name)
                paths[was.name] = tuple(merkle.consistency(was.facts, is_.facts, tree.hashes))
        return Continuation(old, sign(head.text()), paths)

    return _retried(store, made)


def _retried(store: Store, work: Callable[[Snapshot], T]) -> T:
    """What `work` makes of a look at the index; again when compaction replaces what it reads meanwhile."""
    for attempt in range(_TRIES):
        try:
            with store.index.read() as snapshot:
                return work(snapshot)
        except (FileNotFoundError, PackGoneError):
            if attempt == _TRIES - 1:
                raise
        store.view.catch_up_all()  # takes up what lies elsewhere now
        time.sleep(_WAIT_S * (attempt > 0))
    raise StoreError("compaction replaces packs faster than they can be read")
