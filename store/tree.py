"""The tree over each stream's facts as the index keeps it, so that proofs are quick whatever its size.

    TILE rows   hashes of complete subtrees of 256, 65,536 … facts; they never change, wherever packs go
    BLOCK rows  where each 256 facts begin; they go and come with the packs
    meta        how many facts there are, and the leaves of the last block

Everything comes from the groups of the streams, as all of the index does. Leaves are taken from the group and
never made from its entries. Where facts were lost the tree stops, for good: the leaves after a gap have a
number, but the hash over them would be of another history.
"""

from __future__ import annotations

from collections.abc import Iterator

from store import rows
from store.errors import DamagedError
from store.merkle import HASH_BYTES, TILE, TILE_BITS, fold
from store.places import Group, Location, stream_number
from store.rows import Table
from store.update import Update


def block_begins(group: Group) -> Iterator[tuple[int, Location]]:
    """The blocks that begin in a group: number, and the record with how many of its facts come before."""
    first = group.state.facts - len(group.leaves)
    for at in range(-first % TILE, len(group.leaves), TILE):
        where = group.leaves[at][1]
        begin = at
        while begin and group.leaves[begin - 1][1].offset == where.offset:
            begin -= 1
        yield (first + at) >> TILE_BITS, where._replace(inner=at - begin)


def grow(update: Update, group: Group) -> None:
    """Put a group's facts into the tree of its stream, or note that some before them were lost."""
    tree = update.tree(group.stream)
    first = group.state.facts - len(group.leaves)
    if not tree.whole or first != tree.size:
        tree.whole = False
        return
    if not group.leaves:
        return
    edge = tree.edge + b"".join([leaf for leaf, _ in group.leaves])
    tree.size = group.state.facts
    full = TILE * HASH_BYTES
    number, at = first >> TILE_BITS, 0
    while len(edge) - at >= full:
        leaves = [edge[i : i + HASH_BYTES] for i in range(at, at + full, HASH_BYTES)]
        _add(update, stream_number(group.stream), 1, number, fold(leaves))
        number, at = number + 1, at + full
    tree.edge = edge[at:]


def _add(update: Update, stream: int, level: int, number: int, found: bytes) -> None:
    """One more complete subtree, and with every 256th the one above."""
    update.add(Table.TILE, rows.tile_prefix(stream, level, number) + found)
    if number % TILE == TILE - 1:
        update.settle()
        below = update.tiles(stream, level, number + 1 - TILE, TILE)
        if len(below) != TILE:
            raise DamagedError(f"the index lacks hashes of stream {stream:08x}, level {level}")
        _add(update, stream, level + 1, number >> TILE_BITS, fold(below))
