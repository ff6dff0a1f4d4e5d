"""What kinds of jobs there are, how they are to run, and what the metrics may watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sidecar.scheduler.context import JobContext
from sidecar.scheduler.schedule import Schedule
from sidecar.scheduler.window import Window

Run = Callable[[JobContext], str]
"""a job: does its work, calling `yield_` between small steps, and returns one line about it"""


@dataclass(frozen=True, slots=True)
class JobKind:
    """One kind of job. Of several that wait, the lowest `priority` runs first."""

    run: Run
    priority: int = 50
    arguments: frozenset[str] = frozenset()
    """the names that `mailkeep jobs run --arg` may give"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The part of the configuration that the scheduler needs."""

    threads: int = 1
    nice: int = 10
    io_class: str = "idle"
    io_rate_bytes: int = 0
    """a second; 0 for as many as there are"""
    window: Window = field(default_factory=Window)
    busy_latency_s: float = 0.2
    schedules: Mapping[str, Schedule] = field(default_factory=dict)

    def schedule(self, kind: str) -> Schedule:
        """When a kind of job is due."""
        return self.schedules.get(kind, Schedule())


@dataclass(frozen=True, slots=True)
class JobEvents:
    """What the metrics want to know. Called from any thread; must be quick and never raise."""

    ended: Callable[[str, str], None] = lambda _kind, _result: None
    """kind and result: ok, failed, interrupted"""
    backed_off: Callable[[float], None] = lambda _seconds: None
