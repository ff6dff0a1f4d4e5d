"""How far a check has come, in a file: an interrupted check goes on behind what it has finished.

What was finished counts only for files that have kept their size and time of change, and for a week: a disk
that has gone bad since changes neither.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Literal

import msgspec

from store.check_part import PartResult
from store.files import adopt
from store.sample import Sample

_FRESH_S = 7 * 86_400


class _Saved(msgspec.Struct):
    sample: Sample | None
    parts: dict[str, PartResult]
    sums: Literal["squares"]
    """how a `Sum` is made: what was saved by a version that made it otherwise does not count"""


class Bookmark:
    """The file `jobs/check.json` of a store. Where it cannot be written the check does without."""

    def __init__(self, store: Path) -> None:
        self._path = store / "jobs" / "check.json"

    def load(self, sample: Sample | None) -> tuple[Sample | None, dict[str, PartResult]]:
        """What an interrupted check had finished, if it was to read the same; a random share stays drawn."""
        try:
            if time.time() - self._path.stat().st_mtime > _FRESH_S:
                return sample, {}
            saved = msgspec.json.decode(self._path.read_bytes(), type=_Saved)
        except (OSError, ValueError):
            return sample, {}
        if str(saved.sample) != str(sample):
            return sample, {}
        return saved.sample, saved.parts

    def save(self, sample: Sample | None, parts: dict[str, PartResult]) -> None:
        """Note what is finished."""
        fresh = self._path.with_name(f"check.json.{os.getpid()}")
        with contextlib.suppress(OSError):  # a check on a read-only medium cannot be resumed, that is all
            if not self._path.parent.exists():
                self._path.parent.mkdir(mode=0o700)
                adopt(self._path.parent)
            fresh.write_bytes(msgspec.json.encode(_Saved(sample, parts, "squares")))
            adopt(fresh)
            fresh.rename(self._path)

    def clear(self) -> None:
        """The check is over."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
