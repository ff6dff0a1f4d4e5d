"""What the last drills came to: a small file beside the state of the jobs, read by `serve` at each scrape.

So a drill from the command line reaches /metrics, and what was proven outlives a restart.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from sidecar.scheduler import channel
from store.files import write_whole

FILE = "drill.json"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds since 1970; 0 for never. `reasons`: why the last drill proved nothing, if so."""

    last_drill: float = 0.0
    last_proven: float = 0.0
    failures: int = 0
    reasons: list[str] = []


def load_proof(store: Path) -> Proof:
    """What is on record for the store in this directory; nothing where the file is not there or damaged.
    Raises OSError."""
    try:
        return msgspec.json.decode((store / channel.DIRECTORY / FILE).read_bytes(), type=Proof)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return Proof()


def record(store: Path, time_s: float, reasons: list[str]) -> Proof:
    """A drill is over, proven if there are no `reasons`. Durable when it returns. Raises OSError."""
    directory = store / channel.DIRECTORY
    channel.make_directories(directory)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two drills at once must not lose each other's count
        before = load_proof(store)
        proof = Proof(
            last_drill=time_s,
            # A clock that was ahead then would have it that all is well until that time has come.
            last_proven=min(before.last_proven, time_s) if reasons else time_s,
            failures=before.failures + bool(reasons),
            reasons=reasons[:20],
        )
        write_whole(directory / FILE, msgspec.json.format(msgspec.json.encode(proof)) + b"\n")
    finally:
        os.close(lock)
    return proof
