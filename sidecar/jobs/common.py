"""What the jobs share: the configuration as it is now, and small steps."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.config import Config
from sidecar.scheduler.context import JobContext

FINDINGS_TOLD = 20
"""of what a job finds so many are logged one by one"""

Current = Callable[[], Config]
"""the configuration as it is now: SIGHUP changes it"""


def step_of(context: JobContext) -> Callable[[int], None]:
    """What a job calls between small steps, with the bytes that it has read or written."""

    def step(size: int) -> None:
        context.spent(size)
        context.yield_()

    return step


def is_true(text: str) -> bool:
    """A job's argument. Raises `ValueError` for what is neither yes nor no."""
    if text.lower() in {"true", "yes", "1", ""}:
        return True
    if text.lower() in {"false", "no", "0"}:
        return False
    raise ValueError(f"{text!r} is neither true nor false")
