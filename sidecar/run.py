"""`mailkeep serve` from its configuration to its exit code: one process, or a supervisor and its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidecar import log as logging_setup
from sidecar.config import Config
from sidecar.interpreter import loop_factory, spare_the_collector, take_turns
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
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(Service(config, load, worker).run())
