"""What a stream has recorded since somebody looked last, by the numbers of its facts.

A fact keeps its number for ever, wherever compaction puts it and however old the mail is that it tells of: so
a number, and the leaf of the last fact seen, are all that a follower has to remember of a stream. The index
knows where each 256 facts begin, so that what is new is found without reading what is known.
"""

from __future__ import annotations

from collections.abc import Iterator

from store.errors import StoreError
from store.facts import Fact, groups_from
from store.layout import PACK_HEADER_BYTES
from store.merkle import TILE_BITS
from store.places import stream_number
from store.segments import pack_path, packs_of, stream_files
from store.store import Store


class OtherHistoryError(StoreError):
    """The stream is not the one that was followed: it was rolled back, or made anew."""


def facts_since(
    store: Store, stream: str, since: int, leaf: bytes = b"", *, without: bool = False
) -> Iterator[tuple[int, Fact]]:
    """(number, fact) for the facts of a stream from number `since` on, up to what is in the index now; what
    is damaged is left out. `leaf` is that of the fact before.

    Raises `OtherHistoryError` where the stream is shorter than that or the fact before is another one;
    `FileNotFoundError` when compaction replaces a pack meanwhile: begin again where you are (and when it is
    lost: `without` goes on without those that are); `OSError`.
    """
    upto = store.state(stream).facts
    if since > upto:
        raise OtherHistoryError(f"stream {stream} has {upto} facts, and had {since}")
    first = since - 1 if leaf else since
    if first >= upto:
        return
    directory = store.path / "streams" / stream
    parts = stream_files(directory).parts
    if without:
        parts = tuple(part for part in parts if all(pack_path(directory, n).exists() for n in packs_of(part)))
    packs = [number for part in parts for number in packs_of(part)]
    if not packs:
        return
    with store.index.read() as snapshot:
        where = snapshot.block(stream_number(stream), first >> TILE_BITS)
    if where is not None and where.pack in packs:
        place = where.pack, where.offset
    else:  # facts were lost near there: look through all that there is
        place = packs[0], PACK_HEADER_BYTES
    for group in groups_from(directory, store.id, store.keyring, parts, place, store.fill):
        for number, fact in enumerate(group.facts, group.first):
            if number == since - 1 and leaf and fact.leaf != leaf:
                raise OtherHistoryError(f"fact {number} of stream {stream} is not the one that it was")
            if since <= number < upto:
                yield number, fact
        if group.commit.facts >= upto:
            return
