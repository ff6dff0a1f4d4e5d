"""Notes in `jobs/` by which a check asks the shipper to mend a replica: only that may go on with the rounds.

Whoever finds damage leaves a note and goes; the shipper looks with each round, and takes a note away when
nothing of it is left to do. A note is named by what it says: asked twice is asked once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from store.files import adopt, sync_directory, write_all
from store.replicas.layout import Extent

log = logging.getLogger(__name__)

Place = tuple[str, int, Extent]
"""stream, pack and extent of a piece"""


@dataclass(slots=True)
class Wrong:
    """What is wrong with one host's part of a replica: pieces by name, those of its index, and how many
    rounds. `last`: the highest number of a round, there or remembered; `anew`: none is there."""

    host: str
    missing: dict[str, Place] = field(default_factory=dict)
    damaged: dict[str, Place] = field(default_factory=dict)
    index: list[str] = field(default_factory=list)
    rounds: int = 0
    last: int = 0
    anew: bool = False

    def __bool__(self) -> bool:
        return bool(self.missing or self.damaged or self.index or self.rounds or self.anew)

    def has(self, name: str) -> bool:
        """Whether something is wrong with a piece."""
        return name in self.missing or name in self.damaged or name in self.index


@dataclass(slots=True)
class Wish:
    """What is to be mended: pieces, by name, that are missing or damaged, and those of the index; a full
    round behind `full_after`, where a round is missing or damaged; `anew`: nothing of the host is there any
    more."""

    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    index: list[str] = field(default_factory=list)
    full_after: int = 0
    anew: bool = False

    def __bool__(self) -> bool:
        return bool(self.missing or self.damaged or self.index or self.full_after or self.anew)


class Asked:
    """The notes about one host's part of one replica."""

    def __init__(self, path: Path, url: str, host: str) -> None:
        self._directory = path / "jobs"
        self._told = {"url": url, "host": host}
        about = blake3(f"{url}\n{host}".encode()).hexdigest()[:16]
        self._prefix = f"mend-{about}-"

    def ask(self, wish: Wish) -> None:
        """Leave a note; durable when this returns. Raises `OSError`."""
        told: dict[str, object] = dict(self._told)
        told |= {
            "missing": sorted(wish.missing),
            "damaged": sorted(wish.damaged),
            "index": sorted(wish.index),
        }
        told |= {"full_after": wish.full_after, "anew": wish.anew}
        text = json.dumps(told).encode() + b"\n"
        if not self._directory.exists():
            self._directory.mkdir(mode=0o700)
            adopt(self._directory)
        note = self._directory / f"{self._prefix}{blake3(text).hexdigest()[:16]}.json"
        fresh = note.with_suffix(f".{os.getpid()}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, text, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        adopt(fresh)
        fresh.rename(note)
        sync_directory(self._directory)

    def notes(self) -> dict[Path, Wish]:
        """What is asked for; a note that cannot be read is taken away."""
        found: dict[Path, Wish] = {}
        for note in self._directory.glob(f"{self._prefix}*.json"):
            try:
                told = json.loads(note.read_bytes())
                found[note] = Wish(
                    [str(name) for name in told["missing"]], [str(name) for name in told["damaged"]],
                    [str(name) for name in told["index"]], int(told["full_after"]), bool(told["anew"]),
                )  # fmt: skip
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as exc:
                log.error("%s cannot be read: %r", note, exc)
                self.done(note)
        return found

    def done(self, note: Path) -> None:
        """Nothing of it is left to do."""
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)

    def since_s(self) -> float:
        """For how long the oldest note has waited; 0 where none does."""
        ages = [0.0]
        for note in self._directory.glob(f"{self._prefix}*.json"):
            with contextlib.suppress(OSError):
                ages.append(time.time() - note.stat().st_mtime)
        return max(ages)
