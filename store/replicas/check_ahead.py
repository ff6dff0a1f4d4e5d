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
from store.segments import last_of, stream_files
from store.store import Store


def check_ahead(store: Store, stream: str, done: dict[str, PartResult]) -> None:
    """Check what is new in a stream. Raises `StoreError`, `OSError`."""
    directory = store.path / "streams" / stream
    with store.index.read() as snapshot:
        state = snapshot.state(stream)
    if state is None:
        return
    for task in tasks(directory, stream_files(directory), state.place, ()):
        indexed = last_of(task.parts[-1]) <= state.pack
        if indexed and task.following is not None and task.name not in done:
            done[task.name] = PartCheck(store, task, lambda _size: None).run()


def main() -> None:
    """Until the input ends."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    path = Path(sys.argv[1])
    id_, key = (bytes.fromhex(word) for word in sys.stdin.readline().split())
    done: dict[str, PartResult] = {}
    with Store(path, id_, key) as store:
        for line in sys.stdin:
            check_ahead(store, line.removesuffix("\n"), done)
    clean = {name: result for name, result in done.items() if not result.findings and not result.damage}
    Bookmark(path).save(None, clean)


if __name__ == "__main__":
    main()
