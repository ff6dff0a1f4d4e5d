"""What the scheduler remembers, and the file that it survives a restart in.

A few kilobytes, whatever the store's size: one entry for each kind, what waits, and the last few runs. The
file is replaced whole and is durable before anything that depends on it; one that cannot be read is put
aside and all begins anew, for what is lost is only when jobs ran last.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from store.files import write_whole

log = logging.getLogger(__name__)

STATE_FILE = "state.json"
PROGRESS_FILE = "progress.json"
_HISTORY = 20
_ANSWERS = 32


class Job(msgspec.Struct, kw_only=True):
    """Work that was asked for and is not done. Two with the same kind and arguments are one."""

    id: int
    kind: str
    arguments: dict[str, str] = {}
    manual: bool = False
    """asked for by a person, who waits"""
    force: bool = False
    """runs outside the window too"""
    again: bool = False
    """asked for once more while it ran"""
    interrupted: bool = False
    crashes: int = 0
    """how often the service died under it"""
    bookmark: str = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is over. Times in seconds since 1970."""

    id: int
    kind: str
    started: float
    ended: float
    result: str
    """ok, failed, interrupted"""
    text: str


class KindState(msgspec.Struct, kw_only=True):
    """What is remembered of one kind."""

    schedule: str = ""
    counted_from: float = 0.0
    """the last time it was due, or first seen"""
    next: float | None = None
    paused: bool = False
    last: Ended | None = None
    last_success: float = 0.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request."""

    request: str
    text: str
    job: int = 0
    refused: bool = False


class Running(msgspec.Struct, kw_only=True):
    """The job at work, and since when."""

    job: Job
    started: float


class State(msgspec.Struct, kw_only=True):
    """All of it."""

    version: int = 1
    next_id: int = 1
    kinds: dict[str, KindState] = {}
    window: str = ""
    queue: list[Job] = []
    running: Running | None = None
    history: list[Ended] = []
    answers: list[Answer] = []

    def remember(self, ended: Ended) -> None:
        """Keep a run among the last few."""
        self.history = [*self.history, ended][-_HISTORY:]

    def answer(self, answer: Answer) -> None:
        """Keep an answer among the last few."""
        self.answers = [*self.answers, answer][-_ANSWERS:]


class Far(msgspec.Struct, frozen=True, kw_only=True):
    """How far the running job is: a file of its own, which is not worth a flush."""

    job: int
    done: int = 0
    total: int = 0
    text: str = ""
    waiting: str = ""


def load_state(directory: Path) -> State:
    """What was saved; a new state where nothing was, or where it cannot be read. Raises OSError."""
    path = directory / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return State()
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        aside = path.with_name(f"{STATE_FILE}.damaged")
        path.rename(aside)
        log.error("%s cannot be read (%s): put aside as %s, jobs begin anew", path, exc, aside.name)
        return State()


def look_at_state(directory: Path) -> State:
    """What was saved, for whoever only looks: an empty state where it cannot be read. Raises OSError."""
    try:
        return msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=State)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return State()


def save_state(directory: Path, state: State) -> None:
    """Durable when it returns. Raises OSError, and then the old state is still there."""
    write_whole(directory / STATE_FILE, msgspec.json.format(msgspec.json.encode(state)) + b"\n")


def load_progress(directory: Path) -> Far | None:
    """How far the running job said it is, if it did."""
    try:
        return msgspec.json.decode((directory / PROGRESS_FILE).read_bytes(), type=Far)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def save_progress(directory: Path, far: Far) -> None:
    """Not durable, and need not be. Raises OSError."""
    write_whole(directory / PROGRESS_FILE, msgspec.json.encode(far), durable=False)
