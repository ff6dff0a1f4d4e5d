"""The sink in an event loop of its own thread, for tests that wait for commands and processes meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from sidecar.units import Address


class Sink(Protocol):
    """LmtpSink, or another that starts and stops as it does."""

    address: Address

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


S = TypeVar("S", bound=Sink)


class SinkThread(Generic[S]):
    """A context manager around a sink; its scripts may be set before it is entered, its gates at any time."""

    def __init__(self, sink: S) -> None:
        self.sink = sink
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self.sink.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self.sink.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        return str(self.sink.address)

    def open(self, gate: asyncio.Event) -> None:
        """Let through whoever waits at the gate, and all who come."""
        self._loop.call_soon_threadsafe(gate.set)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)
