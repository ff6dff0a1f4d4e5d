"""A copy of an index, for another one over the same packs elsewhere: its runs as they are, the rest in one.

What is true of this disk alone stays here: what is damaged, what a removal wastes, what compaction is about
to drop, how far packs were seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zstandard

from store import codec
from store.index import SCHEMA, Index
from store.places import Place, stream_number
from store.runs import Run
from store.snapshot import Catalogue
from store.update import CONDEMNING, Update

_OF_HERE = (*CONDEMNING, b"catalogue", b"mark", b"bad", b"waste:", b"durable:")
_LEVEL = 3


class _State(msgspec.Struct, array_like=True, frozen=True):
    """All of an index but its runs."""

    schema: int
    catalogue: Catalogue
    meta: dict[bytes, bytes]
    fresh: list[bytes]


@dataclass(frozen=True, slots=True)
class IndexCopy:
    """An index at one moment. `runs` can be read for as long as the copy is kept. `places` says how far each
    stream had been applied, `packs` in which of its packs something lies."""

    state: bytes
    runs: tuple[Run, ...]
    places: dict[str, Place]
    packs: dict[str, frozenset[int]]


def copy_of(index: Index, streams: Iterable[str]) -> IndexCopy:
    """A copy of what `index` is now. Raises `StoreError`."""
    with index.read() as snapshot:
        known = snapshot.known
        meta = {key: value for key, value in snapshot.meta_range(b"") if not key.startswith(_OF_HERE)}
        fresh = snapshot.fresh()
        states = {name: state for name in streams if (state := snapshot.state(name))}
        packs = {name: frozenset(snapshot.packs(stream_number(name))) for name in states}
    catalogue = msgspec.structs.replace(known.catalogue, doomed=())
    told = msgspec.msgpack.encode(_State(SCHEMA, catalogue, meta, fresh))
    return IndexCopy(
        zstandard.ZstdCompressor(level=_LEVEL).compress(told),
        tuple(reversed(known.runs)),
        {name: state.place for name, state in states.items()},
        packs,
    )


def take_copy(update: Update, state: bytes, lay_out: Callable[[int, int], Path]) -> bool:
    """Make an index what a copy's `state` says. `lay_out` puts a run's file (its place in the copy, the
    number that it gets) where the index has it. False, and nothing is changed, for one of another version
    of mailkeep. Raises `ValueError` when it is none."""
    try:
        told = msgspec.msgpack.decode(codec.unpack(state), type=list)
        if not told or told[0] != SCHEMA:
            return False
        copied = msgspec.convert(told, _State)
    except (zstandard.ZstdError, msgspec.MsgspecError) as exc:
        raise ValueError(f"it is no copy of an index: {exc}") from exc
    first = update.known.catalogue.next_run
    runs = [(lay_out(at, first + at), info.rows) for at, info in enumerate(copied.catalogue.runs)]
    update.become(copied.catalogue, runs, copied.meta.items(), copied.fresh)
    return True
