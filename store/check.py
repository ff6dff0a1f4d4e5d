"""Verify a store: every record's checksum, the chain of the history, and that everything named is there.

With `read_data` every message is put together and compared with its BLAKE3. Takes no lock and may run beside
the writer: it looks at what was durable when it began. Changes nothing but the index, which catches up and
no longer offers what is damaged for deduplication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from store.errors import DamagedError, NotFoundError
from store.ids import ChunkId, ContentId
from store.places import Damage, Group
from store.records import Content, Delivery
from store.scan import initial_state, scan_groups
from store.snapshot import Snapshot
from store.store import Store


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: what kind, where (file and byte, or an id), and in words."""

    kind: str
    where: str
    what: str


@dataclass(slots=True)
class Checked:
    """How much was looked at."""

    streams: int = 0
    commits: int = 0
    deliveries: int = 0
    contents: int = 0
    message_bytes: int = 0
    """bytes of messages put together (`read_data`)"""


def check(
    store: Store,
    checked: Checked,
    *,
    read_data: bool = False,
    progress: Callable[[Checked], None] = lambda _checked: None,
) -> Iterator[Finding]:
    """What is wrong with the store, as it is found; `checked` counts along."""
    damage: list[Damage] = []
    for name in store.view.names():
        state = store.state(name)
        checked.streams += 1
        directory = store.path / "streams" / name
        end = (state.pack, state.offset)
        start = initial_state(store.id, name)
        with store.index.read() as snapshot:
            before = snapshot.durable(name)
        for found in scan_groups(directory, store.id, name, start, end, before):
            if isinstance(found, Damage):
                damage.append(found)
                yield Finding("damage", f"{found.path}:{found.offset}", found.what)
            elif isinstance(found, Group):
                if found.state.commits > state.commits:
                    break  # written since we began
                checked.commits += 1
                yield from _check_group(store, found, checked, read_data=read_data)
                progress(checked)
    store.view.note_damage(damage, all_of_it=True)


def _check_group(store: Store, group: Group, checked: Checked, *, read_data: bool) -> Iterator[Finding]:
    with store.index.read() as snapshot:
        for entry, _ in group.entries:
            if isinstance(entry, Delivery):
                checked.deliveries += 1
                if not snapshot.delivery(entry.id):
                    yield Finding("index", entry.id.hex(), "delivery is not in the index")
                if snapshot.content(entry.content) is None:
                    yield Finding("missing", entry.id.hex(), "the recipe of its message is missing")
            elif isinstance(entry, Content):
                checked.contents += 1
                yield from _missing_chunks(snapshot, entry)
    if read_data:
        for entry, _ in group.entries:
            if isinstance(entry, Content):
                yield from _read(store, entry.id, checked)


def _missing_chunks(snapshot: Snapshot, content: Content) -> Iterator[Finding]:
    missing: list[ChunkId] = [
        chunk for run in content.runs for chunk in run.chunks if snapshot.chunk(chunk) is None
    ]
    if missing:
        yield Finding("missing", content.id.hex(), f"{len(missing)} of its chunks are missing")


def _read(store: Store, content: ContentId, checked: Checked) -> Iterator[Finding]:
    try:
        for piece in store.read(content):
            checked.message_bytes += len(piece)
    except (DamagedError, NotFoundError) as exc:
        yield Finding("content", content.hex(), str(exc))
