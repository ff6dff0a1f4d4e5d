"""What may be removed from a replica, and how. REPLICA.md says why."""

from __future__ import annotations

from collections.abc import Sequence

from store.ids import now_us
from store.replicas.layout import in_name, index_under, piece_name
from store.replicas.reader import Replica
from store.replicas.source import Target

KEEP_US = 86_400_000_000


def removable(target: Target, host: str, *, keep_us: int = KEEP_US) -> list[str]:
    """What no reader needs any more: rounds of a host before its last full one but one, and pieces of its
    index and its streams that nothing which is left names, and that are older than `keep_us`: the next round
    may name the others. In the order in which they may go. Raises `StoreError`, also when a round cannot be
    read that might name something."""
    replica = Replica(target)
    full = replica.full_rounds(host)
    if len(full) < 2:
        return []
    named: set[str] = set()
    streams: set[str] = set()
    for other in replica.hosts():
        kept = replica.full_rounds(other)[-2:]
        for round_ in replica.rounds(other, kept[0]):
            named.update(round_.index.pieces(other) if round_.index else ())
            for stream, change in round_.streams.items():
                if other == host:
                    streams.add(stream)
                for pack, extents in change.packs.items():
                    named.update(piece_name(stream, pack, extent) for extent in extents if not extent.inline)
    # What stops half-way leaves pieces that nothing names, never names without their pieces.
    gone = replica.round_names(host, before=full[-2])
    before_us = now_us() - keep_us
    for under in (index_under(host), *(f"packs/{in_name(stream)}" for stream in sorted(streams))):
        gone += [
            found.name
            for found in target.listed(f"{under}/")
            if found.name not in named and found.time_us < before_us
        ]
    return gone


def remove(target: Target, names: Sequence[str]) -> None:
    """Remove them. Needs the right to delete. Raises `StoreError`."""
    if names:
        target.delete(names)


def prune(target: Target, host: str, *, keep_us: int = KEEP_US) -> int:
    """Remove what may be; how many objects. Raises `StoreError`."""
    names = removable(target, host, keep_us=keep_us)
    remove(target, names)
    return len(names)
