"""Read messages back, each put together and compared with its BLAKE3, in the order in which they lie.

After compaction the chunks of one message lie in several blocks of a few megabytes. Messages are read in the
order of the block that most of their bytes are in, through a cache that holds the smaller classes of
blocks whole: so each block is unpacked about once and not once for each message.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from store import content, records
from store.errors import DamagedError, NotFoundError, SealedError
from store.findings import Finding
from store.ids import ChunkId, ContentId, chunk_id
from store.packs import PackReader
from store.places import Group, Location, Record
from store.records import Content
from store.sample import Sample
from store.store import Store

_NOWHERE: Record = (1 << 33, 0, 0)
_TRIES = 3


class Reading:
    """The messages of one part. Holds where its chunks lie and its recipes, as they stand in the log."""

    def __init__(
        self, store: Store, sample: Sample, step: Callable[[int], None], *, cache_bytes: int
    ) -> None:
        self.messages = 0
        self.message_bytes = 0
        self.sealed = 0
        """messages that no identity at hand opens"""
        self._store = store
        self._sample = sample
        self._step = step
        self._reader = PackReader(
            store.path / "streams", store.id, keyring=store.keyring, cache_bytes=cache_bytes
        )
        self._chunks: dict[ChunkId, Location] = {}
        self._used: set[ChunkId] = set()
        self._recipes: dict[ContentId, tuple[Record, bytes]] = {}

    def note(self, group: Group) -> None:
        """Take in what is to be read of a group."""
        self._chunks.update(group.chunks)
        for entry, _ in group.entries:
            if isinstance(entry, Content):
                chunks = [chunk for run in entry.runs for chunk in run.chunks]
                self._used.update(chunk for chunk in chunks if chunk in self._chunks)
                if self._sample.takes(entry.id):
                    self._recipes[entry.id] = (self._most_in(chunks), records.encode(entry))

    def _most_in(self, chunks: list[ChunkId]) -> Record:
        sizes: Counter[Record] = Counter()
        for chunk in chunks:
            where = self._chunks.get(chunk)
            if where is not None:
                sizes[where.record] += where.size
        return max(sizes, key=lambda record: sizes[record], default=_NOWHERE)

    def read(self) -> Iterator[Finding]:
        """What does not come back as it was captured."""
        with contextlib.closing(self._reader):
            for name in sorted(self._recipes, key=lambda name: self._recipes[name][0]):
                recipe = records.decode(self._recipes.pop(name)[1])
                assert isinstance(recipe, Content)  # noqa: S101 - `note` took nothing else; for mypy
                yield from self._message(recipe)
            # What no recipe here is made of may be what the next message is deduplicated against.
            for chunk, where in self._chunks.items():
                if chunk not in self._used and self._sample.takes(chunk):
                    yield from self._chunk(chunk, where)

    def _message(self, recipe: Content) -> Iterator[Finding]:
        try:
            for piece in content.assemble(recipe, self._fetch, self._store.key):
                self.message_bytes += len(piece)
                self._step(len(piece))
            self.messages += 1
        except SealedError:
            self.sealed += 1
        except (DamagedError, NotFoundError) as exc:
            yield Finding("content", recipe.id.hex(), str(exc))

    def _chunk(self, chunk: ChunkId, where: Location) -> Iterator[Finding]:
        try:
            self._fetch(chunk)
        except SealedError:
            pass
        except DamagedError as exc:
            yield Finding("content", chunk.hex(), f"a chunk: {exc} ({where.pack}:{where.offset})")
        self._step(where.size)

    def _fetch(self, chunk: ChunkId) -> bytes:
        """A chunk as it lies here, else wherever else it lies."""
        why = f"chunk {chunk.hex()} is missing"
        where = self._chunks.get(chunk)
        bad: set[Record] = set()
        sealed: SealedError | None = None
        for _ in range(_TRIES):
            if where is None:
                with self._store.index.read() as snapshot:
                    where = snapshot.chunk(chunk, snapshot.bad() | bad)
            if where is None or where.record in bad:
                break
            try:
                data = self._reader.chunk(where)
                if chunk_id(data, self._store.key) == chunk:
                    return data
                why = f"chunk {chunk.hex()} is not what it was"
            except SealedError as exc:
                sealed = exc
            except DamagedError as exc:
                why = str(exc)
            bad.add(where.record)
            where = None
        if sealed is not None:
            raise sealed
        raise DamagedError(why)
