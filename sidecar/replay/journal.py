"""What a run puts on record: that it is going to send, durable before; what came of it, soon after.

Both ride the writer's group commit, so a run waits for no flush of its own as long as intents are written a
little ahead. After a kill at any moment an intent without a result names what the server may or may not have.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from sidecar.replay.targets import Target
from store.errors import StoreError
from store.fleet import Archive
from store.ids import now_us
from store.records import Entry, Replay, ReplayRun
from store.writer import Submission

_RECORD_TIMEOUT_S = 60.0


class Journal:
    """The record of one run. `selection` is any bytes that name the request: an earlier run of it that did
    not put back everything is gone on with, unless `anew`. To be used from one event loop, after `begin`."""

    def __init__(
        self, store: Archive, selection: bytes, *, road: str, owner: str, anew: bool = False
    ) -> None:
        self._store = store
        self.selection = selection
        self._road = road
        self._owner = owner
        self._last = store.last_run(selection)
        earlier = self._last[0] if self._last and not self._last[1] and not anew else None
        self.run = earlier or f"{now_us():x}"
        self.resumed = self._is_known = earlier is not None
        self.failure: StoreError | None = None
        """the record of something is not durable, and will not be"""
        self._heard_us = self._said_us = 0
        self._waiting = 0
        self._quiet: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def began_us(self) -> int:
        """When the run began."""
        try:
            return int(self.run, 16)
        except ValueError:
            return now_us()

    @property
    def is_current(self) -> bool:
        """Whether no run of this request was begun or ended, by another process, since this was made."""
        self._store.refresh()
        return self._store.last_run(self.selection) == self._last

    def heard(self, word: Replay) -> None:
        """What an earlier part of the run said. The last word counts, so what is said from now on is dated
        later, though the clock may have been set back since. From any thread."""
        self._heard_us = max(self._heard_us, word.time_us)

    def begin(self) -> None:
        """To be called in the event loop, before the others. Writes nothing yet."""
        self._loop = asyncio.get_running_loop()
        self._quiet = asyncio.Event()

    def end(self, messages: int) -> None:
        """That everything is back. Raises `StoreError`."""
        if self._is_known:
            self._write(self._run_fact(messages, finished=True))

    def intend(self, targets: Sequence[Target]) -> asyncio.Future[None]:
        """They are going to be sent; the future is done when that is durable. It raises `StoreError`."""
        assert self._loop  # noqa: S101 - begin comes first; mypy does not see it
        loop, future = self._loop, self._loop.create_future()

        def done(error: StoreError | None) -> None:
            loop.call_soon_threadsafe(_resolve, future, error)

        entries: list[Entry] = [self._fact(target, b"") for target in targets]
        if not self._is_known:
            entries.insert(0, self._run_fact(0, finished=False))
            self._is_known = True
        self._store.writer.submit(Submission(entries=entries, done=done))
        return future

    def settle(self, target: Target, reply: bytes) -> None:
        """What came of it. Durable within a moment, see `flush`; `failure` tells when not."""
        assert self._loop  # noqa: S101 - as above
        assert self._quiet  # noqa: S101 - as above
        loop = self._loop
        self._waiting += 1
        self._quiet.clear()

        def done(error: StoreError | None) -> None:
            loop.call_soon_threadsafe(self._settled, error)

        self._store.writer.submit(Submission(entries=[self._fact(target, reply)], lazy=True, done=done))

    async def flush(self) -> None:
        """Until everything is durable. Raises `StoreError`."""
        assert self._quiet  # noqa: S101 - as above
        if self._waiting:
            try:
                await asyncio.wait_for(self._quiet.wait(), _RECORD_TIMEOUT_S)
            except TimeoutError as exc:
                raise StoreError("the record of a replay was not written in time") from exc
        if self.failure:
            raise self.failure

    def _settled(self, error: StoreError | None) -> None:
        self._waiting -= 1
        self.failure = self.failure or error
        if not self._waiting and self._quiet:
            self._quiet.set()

    def _fact(self, target: Target, reply: bytes) -> Replay:
        self._said_us = max(now_us(), self._heard_us + 1, self._said_us + 1)
        return Replay(
            delivery=target.delivery.id, time_us=self._said_us, run=self.run, recipient=target.recipient,
            downstream=self._road, reply=reply,
        )  # fmt: skip

    def _run_fact(self, messages: int, *, finished: bool) -> ReplayRun:
        return ReplayRun(
            run=self.run, time_us=now_us(), selection=self.selection, owner=self._owner,
            messages=messages, finished=finished,
        )  # fmt: skip

    def _write(self, fact: Entry) -> None:
        written = threading.Event()
        errors: list[StoreError | None] = []

        def done(error: StoreError | None) -> None:
            errors.append(error)
            written.set()

        self._store.writer.submit(Submission(entries=[fact], done=done))
        if not written.wait(_RECORD_TIMEOUT_S):
            raise StoreError("the record of a replay was not written in time")
        if errors[0] is not None:
            raise errors[0]


def _resolve(future: asyncio.Future[None], error: StoreError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
