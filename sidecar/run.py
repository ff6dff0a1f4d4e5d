"""`mailkeep serve` from its configuration to its exit code: one process, or a supervisor and its workers."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import cast

from sidecar import log as logging_setup
from sidecar.config import Config
from sidecar.service import Service


def serve(config: Config, load: Callable[[], Config]) -> int:
    """Run the service in this thread, or with several workers their supervisor, and a worker in each of its
    children; the exit code. Raises StartError, ListenError, StoreError, MilterError."""
    logging_setup.set_up(config.log.level, config.log.format)
    worker = None
    if config.workers > 1:
        from sidecar.supervisor import Supervisor  # one process alone has no need of it

        became = Supervisor(config, load).run()
        if isinstance(became, int):
            return became
        worker = became
    spare_the_collector()
    take_turns()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(Service(config, load, worker).run())


def spare_the_collector() -> None:
    """Let Python look for cycles seldom: the mail path makes none, and what it makes is many small objects,
    which by default are gone through a thousand times a second (a tenth of all its time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def take_turns() -> None:
    """Let a thread that waits for Python's lock have it after 1 ms instead of 5: the one that merges runs of
    the index works in Python alone, and the mail path asks for the lock after each system call."""
    sys.setswitchinterval(0.001)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed: a third more messages a second."""
    try:
        import uvloop
    except ImportError:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
