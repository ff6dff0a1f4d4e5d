"""Check one part of a stream (a pack, or a segment) from its bytes alone, and sum up what it says.

Every record's checksum, every commit and the chain within the part are verified by scanning it. What the
index must have of it is added up (`Sum`) instead of looked up, for each pack and table, so that memory does
not grow with the store: `store.check_index` adds up the index in one pass and compares. Looked up are only
references out of the part: chunks of a recipe, the recipe of a delivery, the delivery that a reply is of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from store import records, rows
from store.check_read import Reading
from store.findings import Checked, Finding, Sum
from store.ids import FOREVER_US, ChunkId, ContentId, DeliveryId
from store.layout import PackHeader
from store.places import Damage, Group, Location, Place, StreamState
from store.records import Content, Delivery, EntryType, Erasure, Expiry, Outcomes, Replay, Stub
from store.rows import NAME_BYTES, Table, Term
from store.scan import initial_state, read_pack_header, scan_groups, scan_segment
from store.segments import Files, Part, Segment, first_of, last_of, pack_path
from store.snapshot import REMOVED
from store.store import Store
from store.tree import block_begins
from store.view import terms

_SEEN = 200_000
_STEP_ENTRIES = 500

RowSink = Callable[[int, Table, list[bytes]], None]
"""told of the rows that the index must have: pack, table, and the rows without their pack's number"""


class PartResult(msgspec.Struct, kw_only=True):
    """What came of one part; kept so that an interrupted check need not do it again."""

    files: list[tuple[str, int, int]]
    """name, size and time of change of every file"""
    start: tuple[str, int]
    """chain and number of the next record, as its beginning says"""
    end: tuple[str, int] = ("", 0)
    """the same at its end"""
    sums: dict[int, dict[int, Sum]] = {}
    """pack -> table -> rows"""
    ids: Sum = msgspec.field(default_factory=Sum)
    terms: Sum = msgspec.field(default_factory=Sum)
    findings: list[Finding] = []
    damage: list[tuple[str, int, str]] = []
    """file, offset and words"""
    commits: int = 0
    deliveries: int = 0
    contents: int = 0
    messages_read: int = 0
    message_bytes: int = 0
    sealed: int = 0
    """groups with entries that no identity at hand opens"""
    unread: int = 0
    """messages of which that holds"""

    def count(self, checked: Checked) -> None:
        """Add what was looked at here."""
        checked.commits += self.commits
        checked.deliveries += self.deliveries
        checked.contents += self.contents
        checked.messages_read += self.messages_read
        checked.message_bytes += self.message_bytes
        checked.sealed += self.sealed
        checked.unread += self.unread


@dataclass(frozen=True, slots=True)
class Task:
    """Parts of a stream to be checked in one go: one, and those behind it whose header is damaged, since
    only what is before them says how they begin. `end` is what was durable when the check began."""

    stream: str
    parts: tuple[Part, ...]
    following: Part | None
    end: Place
    durable: tuple[Place, ...] = ()

    def packs(self) -> list[int]:
        """The packs it reads, in order."""
        return [
            number for part in self.parts for number in ((part,) if isinstance(part, int) else part.packs)
        ]

    def limit(self, pack: int) -> int:
        """The offset in a pack from which on it is left alone: what came since the check began."""
        return self.end[1] if pack == self.end[0] else rows.MAX_OFFSET + 1

    @property
    def name(self) -> str:
        """A name for it, the same at the next check."""
        names = (
            # The same range may be compacted again, into other packs.
            f"{part:010d}" if isinstance(part, int) else "+".join((part.name, *map(str, part.packs)))
            for part in self.parts
        )
        return "/".join((self.stream, *names))


def tasks(directory: Path, files: Files, end: Place, durable: tuple[Place, ...]) -> list[Task]:
    """The tasks of a stream, in order: all that had begun by `end`."""
    groups: list[tuple[Part, ...]] = []
    parts = [part for part in files.parts if first_of(part) <= end[0]]
    for part in parts:
        if groups and isinstance(part, int) and _header(directory, part) is None:
            groups[-1] += (part,)
        else:
            groups.append((part,))
    following = [*(group[0] for group in groups[1:]), *files.parts[len(parts) : len(parts) + 1], None]
    return [
        Task(directory.name, group, next_, end, durable if number == len(groups) - 1 else ())
        for number, (group, next_) in enumerate(zip(groups, following, strict=False))
    ]


def _header(directory: Path, pack: int) -> PackHeader | None:
    try:
        return read_pack_header(pack_path(directory, pack))
    except (ValueError, FileNotFoundError):
        return None


def signature(directory: Path, task: Task) -> list[tuple[str, int, int]]:
    """What tells whether a task's files have changed. Raises `OSError`."""
    paths = [pack_path(directory, number) for number in task.packs()]
    paths += [directory / part.name for part in task.parts if isinstance(part, Segment)]
    return [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]


class PartCheck:
    """The check of one task. Knows no other task, so that several may run at once."""

    def __init__(
        self, store: Store, task: Task, step: Callable[[int], None], reading: Reading | None = None
    ) -> None:
        self._store = store
        self._task = task
        self._step = step
        self._reading = reading
        self._directory = store.path / "streams" / task.stream
        self._since = self._begin()
        self._chunks: set[ChunkId] = set()
        self._contents: set[ContentId] = set()
        self._deliveries: set[DeliveryId] = set()
        self._seen: set[bytes] = set()
        self._at: tuple[int, int] = (0, 0)
        self._result = PartResult(files=[], start=(self._since.chain.hex(), self._since.next_record))

    def run(self) -> PartResult:
        """All of it. Raises `FileNotFoundError` when compaction has replaced it meanwhile, `StoreError`."""
        result = self._result
        result.files = signature(self._directory, self._task)
        state = self._since
        for found in self._scan():
            if isinstance(found, Damage):
                result.damage.append((str(found.path), found.offset, found.what))
                result.findings.append(Finding("damage", f"{found.path}:{found.offset}", found.what))
            elif isinstance(found, Segment):
                state = found.end
            else:
                if found.segment is None:
                    state = found.state
                self._group(found)
        result.end = (state.chain.hex(), state.next_record)
        if self._reading:
            result.findings += self._reading.read()
            result.messages_read, result.message_bytes = self._reading.messages, self._reading.message_bytes
            result.unread += self._reading.sealed
        return result

    def expected(self, sink: RowSink) -> None:
        """Only tell `sink` what the index must have of it."""
        for found in self._scan():
            if isinstance(found, Group):
                _tell_rows(found, sink)
                self._step(0)

    # -- scanning

    def _begin(self) -> StreamState:
        first = self._task.parts[0]
        if isinstance(first, Segment):
            return replace(first.start, pack=0, offset=0)
        initial = initial_state(self._store.id, self._task.stream)
        header = _header(self._directory, first)
        return replace(initial, chain=header.chain, next_record=header.next_record) if header else initial

    def _scan(self) -> Iterator[Group | Damage | Segment]:
        """What the task's parts hold. A segment comes after what is in it."""
        task, name = self._task, self._task.stream
        following = () if task.following is None else (task.following,)
        files = Files((*task.parts, *following), (), ())
        own = {pack_path(self._directory, number) for number in task.packs()}
        own |= {self._directory / part.name for part in task.parts if isinstance(part, Segment)}
        last = last_of(task.parts[-1])
        found_here = scan_groups(
            self._directory,
            self._store.id,
            name,
            self._since,
            *task.durable,
            files=files,
            keyring=self._store.keyring,
        )
        for found in found_here:
            if isinstance(found, Segment):
                if found not in task.parts:
                    return
                yield from scan_segment(self._directory, self._store.id, name, found, self._store.keyring)
                yield found
            elif isinstance(found, Group):
                if found.state.pack > last or found.state.place > task.end:
                    return
                yield found
            elif isinstance(found, Damage):
                within = found.path in own or (found.path.stem.isdigit() and int(found.path.stem) <= last)
                if following and not within:
                    return
                yield found

    def _group(self, group: Group) -> None:
        result = self._result
        pack, offset = group.state.place
        self._step(offset - (self._at[1] if self._at[0] == pack else 0))
        self._at = (pack, offset)
        result.commits += 1
        result.sealed += group.sealed

        def add(pack: int, table: Table, some: list[bytes]) -> None:
            result.sums.setdefault(pack, {}).setdefault(int(table), Sum()).add(some)

        _tell_rows(group, add)
        self._chunks.update(chunk for chunk, _ in group.chunks)
        self._contents.update(entry.id for entry, _ in group.entries if isinstance(entry, Content))
        deliveries = [entry for entry, _ in group.entries if isinstance(entry, Delivery)]
        result.ids.add([delivery.id for delivery in deliveries])
        result.terms.add(row for delivery in deliveries for row in term_rows(delivery))
        if self._reading:
            self._reading.note(group)
        for number, (entry, where) in enumerate(group.entries):
            if number % _STEP_ENTRIES == _STEP_ENTRIES - 1:
                self._step(0)
            result.findings += self._entry(entry, where)

    # -- what one entry refers to

    def _entry(self, entry: records.Entry, where: Location) -> Iterator[Finding]:
        result = self._result
        match entry:
            case Content():
                result.contents += 1
                yield from self._recipe(entry)
            case Delivery():
                result.deliveries += 1
                self._deliveries.add(entry.id)
                if not self._knows(entry.content, self._contents, self._has_content):
                    with self._store.index.read() as snapshot:
                        removed = snapshot.is_removed(entry.id)
                    if not removed:
                        yield Finding("missing", entry.id.hex(), "the recipe of its message is missing")
            case Outcomes() | Replay():
                if not self._knows(entry.delivery, self._deliveries, self._has_delivery):
                    kind = "replies" if isinstance(entry, Outcomes) else "a replay"
                    what = f"there are {kind} of a delivery that is not there ({self._path(where)})"
                    yield Finding("missing", entry.delivery.hex(), what)
                if isinstance(entry, Replay):
                    yield from self._term(Term.REPLAY_RUN, entry.run.encode(), entry.delivery)
            case Erasure():
                yield from self._term(Term.ERASED, entry.content, entry.delivery)
            case Stub():
                if not self._knows(b"stub" + entry.delivery, set(), self._is_removed):
                    what = f"stub without erasure or expiry ({self._path(where)}): somebody replaced history"
                    yield Finding("history", entry.delivery.hex(), what)

    def _recipe(self, content: Content) -> Iterator[Finding]:
        missing = self._missing(content)
        if missing:  # perhaps another worker has made them durable, and is about to index them
            self._store.catch_up()
            missing = self._missing(content)
        if missing and self._is_needed(content.id):
            yield Finding("missing", content.id.hex(), f"{len(missing)} of its chunks are missing")

    def _missing(self, content: Content) -> list[ChunkId]:
        chunks = (chunk for run in content.runs for chunk in run.chunks)
        return [chunk for chunk in chunks if not self._knows(chunk, self._chunks, self._has_chunk)]

    def _knows(self, name: bytes, here: set[bytes] | set[ChunkId] | set[ContentId] | set[DeliveryId],
               look: Callable[[bytes], bool]) -> bool:  # fmt: skip
        if name in here or name in self._seen:
            return True
        if not look(name):
            return False
        if len(self._seen) >= _SEEN:
            self._seen.clear()
        self._seen.add(name)
        return True

    def _has_chunk(self, name: bytes) -> bool:
        with self._store.index.read() as snapshot:
            return snapshot.chunk(ChunkId(name)) is not None

    def _has_content(self, name: bytes) -> bool:
        with self._store.index.read() as snapshot:
            return snapshot.content(ContentId(name)) is not None

    def _has_delivery(self, name: bytes) -> bool:
        with self._store.index.read() as snapshot:
            return any(
                kind == EntryType.DELIVERY or kind in REMOVED
                for kind, _ in snapshot.delivery(DeliveryId(name))
            )

    def _is_removed(self, name: bytes) -> bool:
        with self._store.index.read() as snapshot:
            return snapshot.is_removed(DeliveryId(name.removeprefix(b"stub")))

    def _is_needed(self, content: ContentId) -> bool:
        """Whether a delivery of this content is there that was not removed."""
        with self._store.index.read() as snapshot:
            return any(
                not snapshot.is_removed(delivery)
                for delivery in snapshot.by_term(Term.CONTENT, content, 0, FOREVER_US, newest_first=True)
            )

    def _term(self, kind: Term, value: bytes, delivery: DeliveryId) -> Iterator[Finding]:
        with self._store.index.read() as snapshot:
            if not snapshot.has_term(kind, value, delivery):
                yield Finding("index", delivery.hex(), f"cannot be looked up by its {kind.name.lower()}")

    def _path(self, where: Location) -> str:
        return f"{pack_path(self._directory, where.pack)}:{where.offset}"


def _tell_rows(group: Group, sink: RowSink) -> None:
    pack = group.state.pack
    chunks = [
        chunk[:NAME_BYTES] + _place(where) + where.size.to_bytes(3, "big") for chunk, where in group.chunks
    ]
    contents: list[bytes] = []
    deliveries: list[bytes] = []
    for entry, where in group.entries:
        match entry:
            case Content():
                contents.append(entry.id[:NAME_BYTES] + _place(where))
            case Delivery():
                deliveries.append(rows.delivery_row(entry.id, EntryType.DELIVERY, _place(where)))
            case Outcomes() | Replay() | Erasure():
                deliveries.append(rows.delivery_row(entry.delivery, records.type_of(entry), _place(where)))
            case Expiry():
                deliveries += [
                    rows.delivery_row(delivery, EntryType.EXPIRY, _place(where))
                    for delivery in dict.fromkeys(entry.deliveries)
                ]
    blocks = [rows.block_row(where.stream, number, _place(where)) for number, where in block_begins(group)]
    for table, some in (
        (Table.CHUNK, [*dict.fromkeys(chunks)]),  # an empty chunk twice in a row is one row
        (Table.CONTENT, contents),
        (Table.DELIVERY, deliveries),
        (Table.BLOCK, blocks),
    ):
        if some:
            sink(pack, table, some)


def _place(where: Location) -> bytes:
    """A place without the pack's number."""
    return (where.offset << 24 | where.inner).to_bytes(7, "big")


def term_rows(delivery: Delivery) -> set[bytes]:
    """The TERM rows of a delivery."""
    return {rows.term_row(kind, value, delivery.id) for kind, value in terms(delivery)}
