"""`python -m store.replicas.check_ahead PATH`: check the parts of a store that a restore has done with.

On its input are the store's id and key, and then, line by line, streams in which there is more. It checks
each part behind which there is another, as any check does, and leaves what came of it as the bookmark of a
check that was interrupted. Parts in which it has found anything it leaves to the check at the end, when all
is there.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from store.check_bookmark import Bookmark
from store.check_part import PartCheck, PartResult, tasks
from store.places import StreamState
from store.segments import Part, Segment, pack_path, stream_files
from store.store import Store


def check_ahead(store: Store, stream: str, done: dict[str, PartResult]) -> None:
    """Check what is new in a stream. Raises `StoreError`, `OSError`."""
    directory = store.path / "streams" / stream
    with store.index.read() as snapshot:
        state = snapshot.state(stream)
    if state is None:
        return
    for task in tasks(directory, stream_files(directory), state.place, ()):
        if task.following is None or task.name in done or not _is_indexed(directory, task.parts[-1], state):
            continue
        done[task.name] = PartCheck(store, task, lambda _size: None).run()


def _is_indexed(directory: Path, part: Part, state: StreamState) -> bool:
    """Whether all of a part is in the index; it may be in the middle of it."""
    if isinstance(part, Segment):
        return state.place >= part.end.place
    return state.place >= (part, pack_path(directory, part).stat().st_size)


def main() -> None:
    """Until the input ends."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    path = Path(sys.argv[1])
    id_, key = (bytes.fromhex(word) for word in sys.stdin.readline().split())
    done: dict[str, PartResult] = {}
    with Store(path, id_, key, catch_up=False) as store:
        for line in sys.stdin:
            check_ahead(store, line.removesuffix("\n"), done)
    clean = {name: result for name, result in done.items() if not result.findings and not result.damage}
    Bookmark(path).save(None, clean)


if __name__ == "__main__":
    main()
