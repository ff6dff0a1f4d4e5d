"""How much of a store is not known to be in its replica, told without asking that.

The shipper leaves in `jobs/` what there was here at its last round, and how much of it the replica lacked
then. What is here beyond that has come since.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from store.layout import FIRST_COMPACTED
from store.segments import pack_path, stream_files

Mark = tuple[int, int, int]
"""of a stream: the newest pack that its writer wrote, how far that was, and the newest of all"""


def mark(ends: Mapping[int, int]) -> Mark:
    """The mark of packs with these ends."""
    written = max((pack for pack in ends if pack < FIRST_COMPACTED), default=0)
    return written, ends.get(written, 0), max(ends, default=0)


def behind_bytes(path: Path, lacking: int, marks: Mapping[str, Mark]) -> int:
    """Bytes of the packs of the store at `path` that are not known to be there, where `lacking` were not when
    its streams stood at `marks`. Raises `OSError`."""
    total = 0
    for directory in (path / "streams").iterdir():
        if not directory.is_dir():
            continue
        written, end, newest = marks.get(directory.name, (0, 0, 0))
        for pack in stream_files(directory).packs():
            with contextlib.suppress(FileNotFoundError):  # lost, or compaction has just replaced it
                size = pack_path(directory, pack).stat().st_size
                total += size
                if pack == written:
                    lacking += max(0, size - end)
                elif pack > (written if pack < FIRST_COMPACTED else newest):
                    lacking += size
    return min(lacking, total)  # compaction may have replaced what was lacking
