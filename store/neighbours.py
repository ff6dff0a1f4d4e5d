"""What several processes that write to one store tell each other: chunks that have just become durable.

Writers look for duplicates in the index's runs, where they come a second or a thousand rows later. Until then
who looks here does not store again what a neighbour has just stored. A table of fixed size in memory, made
before the processes part; without locks. Each slot carries a checksum, so one that is written and read at the
same time counts for nothing; what is overwritten, or not found, is stored twice, which does no harm.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from zlib import crc32

from store.ids import CHUNK_ID_BYTES, ChunkId
from store.places import Location

_SLOT = struct.Struct("<I12sIIIII")
_SLOTS = 1 << 16
"""more chunks than are durable and not yet indexed in a flood of mail; 2.3 MB"""


class Neighbours:
    """The table; every process that is forked from the one that made it has the same."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOTS * _SLOT.size)

    def tell(self, chunks: Iterable[tuple[ChunkId, Location]]) -> None:
        """These are durable. A place whose numbers are too large for the table is not told."""
        memory = self._memory
        for chunk, where in chunks:
            at = _at(chunk)
            try:
                slot = _SLOT.pack(0, chunk, *where)
            except struct.error:
                continue
            memory[at : at + _SLOT.size] = crc32(slot[4:]).to_bytes(4, "little") + slot[4:]

    def find(self, chunk: ChunkId) -> Location | None:
        """Where a chunk was put, if somebody told so not long ago. It may have been moved since."""
        at = _at(chunk)
        slot = self._memory[at : at + _SLOT.size]
        if slot[4 : 4 + CHUNK_ID_BYTES] != chunk or crc32(slot[4:]) != int.from_bytes(slot[:4], "little"):
            return None
        _, _, *where = _SLOT.unpack(slot)
        return Location(*where)


def _at(chunk: ChunkId) -> int:
    return int.from_bytes(chunk[:4], "little") % _SLOTS * _SLOT.size
