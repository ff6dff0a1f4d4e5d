"""Put messages back: deliver them again through LMTP, one recipient at a time, with a record of each.

The bytes are read from the store while they are sent, and the end is released only after the whole message
has proved right. After each reply the record of it is durable before the next message goes out, so a run that
was killed or met refusals goes on with what is missing; at most one message in between may come twice.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sidecar.downstream import Downstream, DownstreamError
from sidecar.units import Address
from store.errors import DamagedError, StoreError
from store.ids import ContentId, now_us
from store.records import Delivery, Replay, ReplayRun
from store.rows import Term
from store.store import FOREVER_US, Query, RemovedError, Store, StoredDelivery
from store.writer import Submission

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 300.0
_RECORD_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """One message for one recipient."""

    delivery: Delivery
    recipient: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a target: the reply, or why there was none (`error`). `already`: an earlier part of
    this run had put it back."""

    target: Target
    reply: bytes = b""
    error: str = ""
    already: bool = False

    @property
    def restored(self) -> bool:
        """Whether the message is where it was to go."""
        return self.already or self.reply.startswith(b"2")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How to put back. `sender` None: as captured; b"": the null sender, which nothing answers to."""

    downstream: Address
    sender: bytes | None = b""
    rate: float = 0.0
    """messages a second; 0: as fast as the server takes them"""
    owner: str = ""
    """who asked, for the record"""
    as_of_us: int = FOREVER_US
    """what has expired since then may be put back all the same; what was erased never is"""


@dataclass(slots=True)
class Summary:
    """The end of a run."""

    run: str
    results: list[Result] = field(default_factory=list)

    @property
    def restored(self) -> int:
        """How many are back, with those of the run's earlier part."""
        return sum(result.restored for result in self.results)


def targets(
    found: Iterable[StoredDelivery], *, recipient: bytes | None, wanted: Callable[[bytes], bool] | None = None
) -> Iterator[Target]:
    """What to put back to whom: to `recipient`, else to everyone who got it then.

    Of a delivery through LMTP that is each recipient without a 4xx or 5xx; `wanted` narrows it further. The
    same bytes for the same recipient are put back once.
    """
    seen: set[tuple[ContentId, bytes]] = set()
    for stored in found:
        delivery = stored.delivery
        addresses = [
            place.address
            for number, place in enumerate(delivery.envelope.recipients)
            if not (number in stored.outcomes and stored.outcomes[number].reply[:1] in (b"4", b"5"))
            and (wanted is None or wanted(place.address))
        ]
        for address in [recipient] if recipient is not None and addresses else addresses:
            if (delivery.content, address) not in seen:
                seen.add((delivery.content, address))
                yield Target(delivery, address)


class Replayer:
    """One run. `selection` is any bytes that name the request: an earlier run of it that did not put back
    everything is gone on with, unless `anew`."""

    def __init__(self, store: Store, options: ReplayOptions, selection: bytes, *, anew: bool = False) -> None:
        self._anew = anew
        self._store = store
        self._options = options
        self._selection = selection
        self._connection: Downstream | None = None
        self._hostname = socket.gethostname().encode("ascii", "replace")

    async def run(self, todo: list[Target], progress: Callable[[Result], None]) -> Summary:
        """Send everything; `progress` is told of each. Raises `StoreError` when nothing can be recorded."""
        earlier = None if self._anew else self._store.run(self._selection)
        done = self._done(earlier) if earlier else set()
        run = earlier or f"{now_us():x}"
        summary = Summary(run)
        if not earlier:
            self._record(self._run_fact(run, len(todo), finished=False))
        pause = 1.0 / self._options.rate if self._options.rate else 0.0
        due = time.monotonic()
        try:
            for target in todo:
                if (target.delivery.content, target.recipient) in done:
                    result = Result(target, already=True)
                else:
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    due = max(due, time.monotonic() - 1.0) + pause
                    result = await self._put_back(run, target)
                summary.results.append(result)
                progress(result)
        finally:
            if self._connection:
                self._connection.close()
        if all(result.restored for result in summary.results):
            self._record(self._run_fact(run, len(todo), finished=True))
        return summary

    def _done(self, run: str) -> set[tuple[ContentId, bytes]]:
        done = set()
        query = Query(terms=((Term.REPLAY_RUN, run.encode()),))
        for stored in self._store.deliveries(query):
            for replay in stored.replays:
                if replay.run == run and replay.reply.startswith(b"2"):
                    done.add((stored.delivery.content, replay.recipient))
        return done

    async def _put_back(self, run: str, target: Target) -> Result:
        try:
            # A run may last for days: what was erased since it began must not come back.
            self._store.delivery(target.delivery.id, self._options.as_of_us)
        except RemovedError as exc:
            return Result(target, error=str(exc))
        except DamagedError as exc:  # of its records; the message may be sound, and proves itself
            log.error("%s", exc)
        try:
            reply = await self._deliver(target)
        except DownstreamError as exc:
            self._drop()
            return Result(target, error=str(exc))
        except StoreError as exc:
            self._drop()  # the end was not sent: the server keeps nothing of it
            return Result(target, error=str(exc))
        fact = Replay(
            delivery=target.delivery.id, time_us=now_us(), run=run, recipient=target.recipient,
            downstream=str(self._options.downstream), reply=reply,
        )  # fmt: skip
        self._record(fact)
        return Result(target, reply=reply)

    async def _deliver(self, target: Target) -> bytes:
        now = asyncio.get_running_loop().time
        if self._connection is None or self._connection.lost:
            self._connection = await Downstream.connect(
                self._options.downstream, hostname=self._hostname, deadline=now() + CONNECT_TIMEOUT_S
            )
        connection = self._connection
        mail, rcpt = self._envelope(target, connection)
        for reply in await connection.begin(mail, [rcpt], REPLY_TIMEOUT_S):
            if not reply.positive:
                await connection.reset(now() + REPLY_TIMEOUT_S)
                return reply.text
        refusal = await connection.open_body(now() + REPLY_TIMEOUT_S)
        if refusal is None:
            # The iterator's end is the proof of the whole message; `finish` comes after it.
            for piece in self._store.read(target.delivery.content):
                refusal = connection.body(piece)
                if refusal is not None:
                    break
                await connection.drain(now() + REPLY_TIMEOUT_S)
            else:
                refusal = await connection.finish(1, now() + REPLY_TIMEOUT_S)
        if refusal is not None:
            self._drop()
            return refusal.text
        return (await connection.reply(now() + REPLY_TIMEOUT_S)).text

    def _envelope(self, target: Target, connection: Downstream) -> tuple[bytes, bytes]:
        envelope = target.delivery.envelope
        sender = envelope.sender if self._options.sender is None else self._options.sender
        mail = b"MAIL FROM:<%s>" % sender
        if b"8BITMIME" in connection.capabilities.keywords and b"8BITMIME" in envelope.sender_params.upper():
            mail += b" BODY=8BITMIME"
        if b"SMTPUTF8" in connection.capabilities.keywords and not (sender + target.recipient).isascii():
            mail += b" SMTPUTF8"
        return mail + b"\r\n", b"RCPT TO:<%s>\r\n" % target.recipient

    def _drop(self) -> None:
        if self._connection:
            self._connection.abort()
            self._connection = None

    def _run_fact(self, run: str, messages: int, *, finished: bool) -> ReplayRun:
        return ReplayRun(
            run=run, time_us=now_us(), selection=self._selection, owner=self._options.owner,
            messages=messages, finished=finished,
        )  # fmt: skip

    def _record(self, fact: Replay | ReplayRun) -> None:
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
