"""A host's index in its replica: sent with full rounds, so that a reader finds single messages by ranges.

It is worth something only where it says just what counts in the replica; else it is left out, and comes with
a later round. Runs are sent once, since they never change.
"""

from __future__ import annotations

from collections.abc import Callable

from store.index_copy import IndexCopy
from store.replicas.contents import Contents
from store.replicas.layout import Extent, IndexFiles
from store.replicas.named import packs_of
from store.runs import Run, RunDamagedError

_PIECE_BYTES = (256 << 10, 16 << 20)
_PIECES = 512


def _piece_bytes(size: int) -> int:
    """Of a file's pieces: readers fetch them whole, and full rounds name them all."""
    least, most = _PIECE_BYTES
    return min(most, least * max(1, size // (least * _PIECES)))


def is_at_one(copy: IndexCopy, contents: Contents) -> bool:
    """Whether all that the index knows of counts in the replica and lies there where it says; and whether it
    knows of all that compaction has put in place of something."""
    for name, place in copy.places.items():
        stream = contents.streams.get(name)
        if stream is None:
            return False
        known = copy.packs[name]
        if any(pack not in stream.packs or stream.has_hole(pack) for pack in known):
            return False
        if place[0] in known and stream.end(place[0]) < place[1]:
            return False
    for name, stream in contents.streams.items():
        known = copy.packs.get(name, frozenset())
        if not all(known.issuperset(packs_of(text)) for text in stream.segments.values()):
            return False
    return True


class IndexSender:
    """Sends copies of an index. `put` has some bytes of a file, from a place on, be in a piece."""

    def __init__(self, put: Callable[[int, bytes], Extent]) -> None:
        self._put = put
        self._sent: dict[tuple[int, int, bytes], list[Extent]] = {}

    def send(self, copy: IndexCopy, late: Callable[[], bool]) -> IndexFiles | None:
        """Have all of it be there. None when it became too `late` for that: the next call goes on. Raises
        `StoreError`, `OSError`, `RunDamagedError`."""
        names = [(run.number, run.size, run.digest) for run in copy.runs]
        self._sent = {name: self._sent[name] for name in names if name in self._sent}
        for name, run in zip(names, copy.runs, strict=True):
            if not self._send_run(run, self._sent.setdefault(name, []), late):
                return None
        size = _piece_bytes(len(copy.state))
        state = [self._put(at, copy.state[at : at + size]) for at in range(0, len(copy.state), size)]
        return IndexFiles(tuple(state), tuple(tuple(self._sent[name]) for name in names))

    def _send_run(self, run: Run, sent: list[Extent], late: Callable[[], bool]) -> bool:
        at = sent[-1].end if sent else 0
        while at < run.size:
            if late():
                return False
            size = min(_piece_bytes(run.size), run.size - at)
            data = run.pread(size, at)
            if len(data) != size:
                raise RunDamagedError(f"{run.path}: cut short")
            sent.append(self._put(at, data))
            at += len(data)
        return True

    def forget(self) -> None:
        """What was sent is not there any more, or not all of it."""
        self._sent = {}
