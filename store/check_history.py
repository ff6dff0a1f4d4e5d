"""Check the streams against a head that was taken earlier: is everything that it vouches for still so?

Reads every fact of every stream (no message bytes, and not the index) and comes to the root and chain over
as many facts as the head had. Then nothing of them was altered, removed, put elsewhere, or added in between.
The one exception is what was erased or has expired: its leaf stands in the history by a stub, and each stub
must be named by an erasure or expiry on record; what was removed since the head is told, by whom. Of sealed
facts only the leaves are known without an identity: then nothing is told of removals.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from store import layout, merkle, records
from store.evidence import StreamTree
from store.facts import Fact, FactGroup, fact_groups, following
from store.findings import Finding
from store.heads import Head, StreamHead
from store.ids import DELIVERY_ID_BYTES
from store.records import LEAF_NAME_BYTES, EntryType, Erasure, Expiry, Stub
from store.scan import initial_state
from store.segments import Part, Segment, last_of, pack_path, packs_of, stream_files
from store.store import Store

_TRIES = 5
_NAMED = 20
"""findings of a kind that are told one by one"""
_REMOVALS = frozenset({EntryType.ERASURE, EntryType.EXPIRY})
_DROPPED = frozenset({EntryType.DELIVERY, EntryType.OUTCOMES, EntryType.REPLAY})
_TELLING = _REMOVALS | {EntryType.STUB}
"""facts that tell of what is gone"""


@dataclass(slots=True)
class Removed:
    """What was removed since the head, for one reason by one person."""

    what: str
    """erased, or expired"""
    owner: str
    reason: str
    deliveries: int = 0
    facts: int = 0
    """the facts about them that are named: what each of them had, and no more, should be gone"""
    first_us: int = 0
    last_us: int = 0


@dataclass(slots=True)
class SinceHead:
    """What a check against a head has looked at, and what was removed since."""

    facts: int = 0
    sealed: int = 0
    """of these facts, of which without an identity only the leaves are known"""
    stubs: int = 0
    unnamed: int = 0
    """of these, that only a removal by an earlier version explains, which named no facts"""
    removed: list[Removed] = field(default_factory=list)


class HistoryCheck:
    """One check of a store against one head."""

    def __init__(self, store: Store, head: Head, step: Callable[[int], None] = lambda _facts: None) -> None:
        """`step` is told the facts read since the last call; it may wait, and raises to stop."""
        self.report = SinceHead()
        self._store = store
        self._head = head
        self._step = step
        self._stubs, self._named, self._unnamed = (_Heaps() for _ in range(3))
        self._blank = 0
        self._since: dict[tuple[str, str, str], Removed] = {}

    def run(self) -> Iterator[Finding]:
        """What is not as the head vouches. Raises `OSError`, and what `step` raises."""
        head, names = self._head, self._store.view.names()
        if head.store_id != self._store.id:
            what = f"the head is of another store, {head.store_id.hex()}; this one is {self._store.id.hex()}"
            yield Finding("history", str(self._store.path), what)
            return
        for name in head.gaps:
            yield Finding("history", name, "the head has a gap here: it does not vouch for this stream")
        for stream in head.streams:
            if stream.name not in names:
                what = f"stream is missing: the head vouches for {stream.facts} facts of it"
                yield Finding("history", stream.name, what)
        for name in names:
            yield from _Reading(self, self._store, name, head.stream(name), self._step).run()
        if not (self.report.sealed and self._store.blind):
            yield from self._unjustified()
        if self._blank:
            what = (
                f"{self._blank} removals since the head do not name what they removed, as this version does"
            )
            yield Finding("history", str(self._store.path), what)
        self.report.removed = sorted(self._since.values(), key=lambda one: one.first_us)

    @property
    def is_blind(self) -> bool:
        """Whether nothing sealed can be read here, as on a host that has the public key alone. Where an
        identity is given, or nothing is to be sealed, sealed facts that do not open are not as they should
        be: anybody can seal rubbish beside true leaves."""
        return self._store.keyring.seals and not self._store.keyring.identities

    def take(self, data: bytes, *, later: bool) -> None:
        """A fact that may tell of a removal; `later`: it came after the head. Raises `ValueError`."""
        match records.decode(data):
            case Stub() as stub:
                self.report.stubs += 1
                self._stubs.add(stub.leaf[:LEAF_NAME_BYTES] + _eight(stub.delivery) + bytes([stub.type]))
            case (Erasure() | Expiry()) as fact if later and not fact.facts:
                self._blank += 1  # who takes heads names facts: this would be a licence for anything
            case Erasure() as fact:
                count = self._removed((fact.facts,) if fact.facts else (), (fact.delivery,))
                if later:
                    self._note(Removed("erased", fact.owner, fact.reason), 1, count, fact.time_us)
            case Expiry() as fact:
                count = self._removed(fact.facts, fact.deliveries)
                if later:
                    what = Removed("expired", fact.owner, fact.rule)
                    self._note(what, len(fact.deliveries), count, fact.time_us)

    def _removed(self, facts: Sequence[bytes], deliveries: Sequence[bytes]) -> int:
        """How many facts a removal names. A stub is justified by its leaf *and* its delivery, both named by
        one removal: so what it counts is what is gone."""
        if not facts:  # by a version that named no facts: it justifies whatever is gone in its name
            for delivery in deliveries:
                self._unnamed.add(_eight(delivery))
            return 0
        if len(facts) != len(deliveries):
            raise ValueError("a removal that names the facts of other deliveries than it names")
        count = 0
        for delivery, names in zip(deliveries, facts, strict=True):
            for name in records.names_in(names):
                self._named.add(name + _eight(delivery))
                count += 1
        return count

    def _note(self, kind: Removed, deliveries: int, facts: int, time_us: int) -> None:
        known = self._since.setdefault((kind.what, kind.owner, kind.reason), kind)
        known.first_us = min(known.first_us or time_us, time_us)
        known.last_us = max(known.last_us, time_us)
        known.deliveries += deliveries
        known.facts += facts

    def _unjustified(self) -> Iterator[Finding]:
        """Stubs of facts that no removal names."""
        found = self._look()
        if found:  # a removal and compaction may have come while another stream was being read
            self._read_removals()
            found = self._look()
        for delivery in sorted(found)[:_NAMED]:
            readable = " that can be read here" if self.report.sealed else ""
            what = f"a fact is gone in the name of this delivery, and no erasure or expiry{readable} names it"
            yield Finding("history", delivery.hex(), what)
        if len(found) > _NAMED:
            yield Finding("history", str(self._store.path), f"the same for {len(found) - _NAMED} more")

    def _look(self) -> set[bytes]:
        """The deliveries in whose name facts are gone that no removal names."""
        rest, kinds = _Heaps(), _Heaps()
        for number in range(256):
            named = set(self._named.rows(number, LEAF_NAME_BYTES + 8))
            for row in self._stubs.rows(number, LEAF_NAME_BYTES + 9):
                kinds.add(row[LEAF_NAME_BYTES:])
                if row[:-1] not in named:
                    rest.add(row[LEAF_NAME_BYTES:])
        found: set[bytes] = set()
        self.report.unnamed = 0
        for number in range(256):
            for row, count in Counter(kinds.rows(number, 9)).items():
                # A delivery is recorded once, and facts of other types are never dropped.
                if row[8] not in _DROPPED or (row[8] == EntryType.DELIVERY and count > 1):
                    found.add(row[:8])
            unnamed = set(self._unnamed.rows(number, 8))
            for row in rest.rows(number, 9):
                if row[:8] in unnamed:
                    self.report.unnamed += 1
                else:
                    found.add(row[:8])
        return found

    def _read_removals(self) -> None:
        for name in self._store.view.names():
            directory = self._store.path / "streams" / name
            for part in stream_files(directory).parts:
                for number in packs_of(part):
                    with contextlib.suppress(ValueError, OSError):  # what is wrong with it has been told
                        path = pack_path(directory, number)
                        for group in fact_groups(path, self._store.id, self._store.keyring, None):
                            for fact in group.facts:
                                if fact.data and records.type_in(fact.data) in _REMOVALS:
                                    self.take(fact.data, later=False)
                            self._step(0)


class _Reading:
    """One stream, from its first fact to its last."""

    def __init__(
        self,
        check: HistoryCheck,
        store: Store,
        name: str,
        vouched: StreamHead | None,
        step: Callable[[int], None],
    ) -> None:
        self._check = check
        self._store = store
        self._name = name
        self._vouched = vouched
        self._step = step
        self._directory = store.path / "streams" / name
        self._tree = merkle.Growing()
        self._chain = initial_state(store.id, name).chain
        self._again = 0
        self._lost = False
        self._hidden = 0
        self._faults: list[Finding] = []
        self._readable = store.state(name).facts
        with store.index.read() as snapshot:
            indexed = StreamTree(store, snapshot, name)
            known = indexed.size if indexed.whole else 0
            self._indexed = (known, merkle.root(known, indexed.hashes) if known else b"")

    def run(self) -> Iterator[Finding]:
        done = tries = 0
        seen: Sequence[Part] = ()
        while parts := [p for p in stream_files(self._directory).parts if last_of(p) > done]:
            part, before = parts[0], self._tree.size
            if seen and part not in seen:
                self._again = before  # compaction has put it in place of what was there, read or not
            seen = parts
            try:
                self._part(part, following(self._directory, parts, last_of(part)))
            except FileNotFoundError as exc:
                self._again = self._tree.size
                tries += 1
                if tries < _TRIES or self._tree.size > before:
                    continue
                self._fault(Path(str(exc.filename)), "pack is missing")
            except ValueError as exc:
                self._fault(self._place(part), str(exc))
            done, tries, self._again = last_of(part), 0, 0
        if self._hidden and not self._check.is_blind:
            what = f"{self._hidden} facts under the head are sealed for others: only their leaves are there"
            self._faults.append(Finding("history", self._name, f"{what}, so what they say is not verified"))
        # A last group whose chunks are damaged has its facts, and passes for what a crash has left: nobody
        # but this check sees them.
        there = min(self._tree.size, self._readable)
        if self._vouched and not self._lost and there < self._vouched.facts:
            known = self._vouched.facts
            what = f"has {there} facts, and the head vouches for {known}: cut or rolled back"
            self._faults.append(Finding("history", self._name, what))
        yield from self._faults

    def _part(self, part: Part, goes_on: int | None) -> None:
        for number in packs_of(part):
            path = pack_path(self._directory, number)
            upto = None if isinstance(part, Segment) else goes_on
            for group in fact_groups(path, self._store.id, self._store.keyring, upto):
                self._group(group, path)
                self._step(len(group.facts))
        if isinstance(part, Segment) and self._tree.size < part.end.facts:
            raise ValueError(f"facts {self._tree.size} to {part.end.facts - 1} are missing or damaged")

    def _group(self, group: FactGroup, path: Path) -> None:
        size = self._tree.size
        if group.first > size:
            self._fault(path, f"facts {size} to {group.first - 1} are missing or damaged")
        elif group.first < size and not self._again:
            self._fault(path, f"facts come again that came before: {group.first} and on")
        for number, fact in enumerate(group.facts, group.first):
            if number >= self._again:
                self._fact(number, fact)
        if self._tree.size == group.commit.facts and self._chain != group.commit.chain:
            self._fault(path, f"the chain up to fact {self._tree.size} is not that of its facts")

    def _fact(self, number: int, fact: Fact) -> None:
        known = self._vouched
        if fact.data is None:
            self._check.report.sealed += 1
            self._hidden += known is not None and number < known.facts
        elif records.type_in(fact.data) in _TELLING:
            self._check.take(fact.data, later=known is None or number >= known.facts)
        if self._lost:
            return
        self._tree.add(fact.leaf)
        self._chain = layout.chain_next(self._chain, fact.leaf)
        self._check.report.facts += 1
        if known and self._tree.size == known.facts:
            if self._tree.root() != known.root:
                what = f"its first {known.facts} facts are not those that the head vouches for"
                self._faults.append(Finding("history", self._name, f"{what}: altered, removed or reordered"))
            elif self._chain != known.chain:
                what = f"the root that the head has over {known.facts} facts fits, and its chain does not"
                self._faults.append(Finding("history", self._name, what))
        if self._tree.size == self._indexed[0] and self._tree.root() != self._indexed[1]:
            # It was made from the streams once; so one of the two is not what it was then.
            what = f"the index remembers another history: its root over {self._tree.size} facts differs"
            self._faults.append(Finding("history", self._name, what))

    def _fault(self, path: Path, what: str) -> None:
        """The facts from here on have no place in the history; what they say of removals counts still."""
        if not self._lost:
            self._faults.append(Finding("history", f"{path}:0", what))
        self._lost = True

    def _place(self, part: Part) -> Path:
        return self._directory / part.name if isinstance(part, Segment) else pack_path(self._directory, part)


class _Heaps:
    """Rows of one width that begin with random bytes, in as many heaps as a byte has values: a set of all of
    them would take ten times the memory."""

    def __init__(self) -> None:
        self._heaps = [bytearray() for _ in range(256)]

    def add(self, row: bytes) -> None:
        """One row more."""
        self._heaps[row[0]] += row

    def rows(self, number: int, width: int) -> Iterator[bytes]:
        """The rows of one heap."""
        heap = bytes(self._heaps[number])
        return (heap[at : at + width] for at in range(0, len(heap), width))


def _eight(delivery: bytes) -> bytes:
    """The random bytes of a delivery id. Raises `ValueError`."""
    if len(delivery) != DELIVERY_ID_BYTES:
        raise ValueError("a delivery id of the wrong length")
    return delivery[:8]
