"""One run: targets from a stream, several lanes at once, an intent before each message and a record after it.

Targets are looked up while others are sent, a few ahead and no more, so a run of a million needs no more
memory than one of a hundred, and the first message goes out at once. Their order is kept as they are begun:
with one lane exactly, with several nearly.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from sidecar.replay.journal import Journal
from sidecar.replay.road import Lane, Looks, LostError, Road, StoppedError
from sidecar.replay.targets import Item, Outcome, Result, Target
from store.deliveries import RemovedError
from store.errors import StoreError
from store.fleet import Archive
from store.ids import FOREVER_US, ContentId, DeliveryId, now_us
from store.records import Replay

_BACK_OFF_S = (0.1, 5.0)
_TRIES = 3
"""connections that one message may cost, when it seems to be the message that ends them"""
_AHEAD_S = 0.05
_MOST_AT_ONCE = 64
LOOK_BACK_US = 60_000_000
"""how far the mailbox server's clock may be behind ours; what it received so shortly before the run may pass
for what the run put back, and is there in any case"""
_STALE_S = 5.0
"""after which a target is looked up again: it may have been erased while it waited"""
_Work = tuple[Target, "asyncio.Future[None]", float]
"""a target, when its intent is durable, and when it was looked up"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to send. `looks` finds out about what is in doubt; None: nobody can."""

    lanes: int = 4
    rate: float = 0.0
    """messages a second, over all lanes; 0: as fast as the server takes them"""
    patience_s: float = 60.0
    """how long a server may be away before the rest is given up"""
    as_of_us: int = FOREVER_US
    """what has expired since then may be put back all the same; what was erased never is"""
    looks: Looks | None = None
    look_since_us: int = 0
    """what the mailbox received before that is none of this run's"""
    send_doubtful: bool = False


@dataclass(slots=True)
class _Outage:
    """For how long the server has been away, for all lanes."""

    since: float = 0.0
    pause_s: float = _BACK_OFF_S[0]
    given_up: str = ""
    code: int = 0

    def over(self) -> None:
        self.since, self.pause_s = 0.0, _BACK_OFF_S[0]

    async def wait(self, why: str, patience_s: float, code: int = 0) -> None:
        """A while; then `given_up` may be set."""
        now = time.monotonic()
        self.since = self.since or now
        if now - self.since + self.pause_s > patience_s:
            if not self.given_up:
                self.given_up, self.code = why, code
            return
        await asyncio.sleep(self.pause_s)
        self.pause_s = min(self.pause_s * 1.5, _BACK_OFF_S[1])


class _Pace:
    """How many intents are written in one group: about what is sent in a twentieth of a second, so that a
    flush and a look-up are shared by many, and few are in doubt after a kill. The first goes out at once."""

    def __init__(self, lanes: int, rate: float) -> None:
        self.at_once = 1
        self._least = 2 * lanes
        self._most = max(1, min(_MOST_AT_ONCE, int(rate * _AHEAD_S))) if rate else _MOST_AT_ONCE
        self._last = time.monotonic()

    def went(self, messages: int) -> None:
        """So many went since it was said last."""
        now = time.monotonic()
        fast = int(messages / max(now - self._last, 1e-3) * _AHEAD_S)
        self._last = now
        self.at_once = min(2 * self.at_once, max(fast, self._least), self._most)


@dataclass(slots=True)
class Ended:
    """How a run ended. `gave_up` says why it did not go to its end, if it did not."""

    targets: int = 0
    back: int = 0
    in_doubt: int = 0
    gave_up: str = ""
    stopped: bool = False
    codes: set[int] = field(default_factory=set)
    """`Result.code` of all that is not back"""
    saw_all: bool = False
    """whether everything selected was looked at; else there may be more than `targets`"""

    @property
    def complete(self) -> bool:
        """Whether everything is back."""
        return self.back == self.targets and not self.gave_up and not self.stopped


def _last_word(store: Archive, journal: Journal, target: Target) -> Replay | None:
    """What the run said last of a target. The same bytes for the same recipient go once, and which of their
    deliveries stands for all may be another one now: the first has expired, or an import brought an older."""
    content, own = target.delivery.content, target.delivery.id
    last = store.replays_in(journal.run, own).get(target.recipient)
    if last is None:
        others = (store.replays_in(journal.run, id_) for id_ in store.with_content(content) if id_ != own)
        said = [words[target.recipient] for words in others if target.recipient in words]
        last = max(said, key=lambda word: (word.reply[:1] == b"2", word.is_intent), default=None)
    if last is not None:
        journal.heard(last)
    return last


def resume(store: Archive, journal: Journal, targets: Iterable[Target]) -> Iterator[Item]:
    """What is left of a run: a result for what is back already or was erased, `begun_us` for what is in
    doubt."""
    for target in targets:
        delivery = target.delivery
        last = _last_word(store, journal, target) if journal.resumed else None
        if last is not None and last.reply.startswith(b"2"):
            yield Result(target, Outcome.EARLIER, reply=last.reply)
        elif store.was_erased(delivery.content):
            yield Result(target, Outcome.REFUSED, why="this message was erased")
        else:
            yield replace(target, begun_us=last.time_us) if last is not None and last.is_intent else target


class Run:
    """Sends, over one road. `tell` is told of each target once, in the event loop's thread."""

    def __init__(
        self, store: Archive, road: Road, journal: Journal, options: RunOptions,
        tell: Callable[[Result], None], stop: threading.Event,
    ) -> None:  # fmt: skip
        """Once `stop` is set, what is being sent is finished, and no more begun."""
        self._store = store
        self._road = road
        self._journal = journal
        self._options = options
        self._tell_other = tell
        self._stop = stop
        self._room = asyncio.Event()
        self._outage = _Outage()
        self._doubts: list[Target] = []
        self._due = 0.0
        self.ended = Ended()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    async def put_back(self, source: Iterator[Item]) -> Ended:
        """Everything; see `resume` for what an earlier part of the run did. Raises `StoreError` when nothing
        can be recorded any more, or selected."""
        self._journal.begin()
        try:
            await self._send(self._coming(source))
            for _ in range(_TRIES):
                if not self._doubts or self.stopped or self._outage.given_up or not self._can_settle:
                    break
                await self._settle_doubts()
            for target in self._doubts:
                self._tell(Result(target, Outcome.IN_DOUBT, why="it was begun, and no reply is known"))
        finally:
            self._road.close()
        self.ended.gave_up = self._outage.given_up
        self.ended.stopped = self.stopped
        if self.ended.complete:
            self._journal.end(self.ended.targets)  # what waits for a group goes with it
        await self._journal.flush()
        return self.ended

    @property
    def _can_settle(self) -> bool:
        return self._options.looks is not None or self._options.send_doubtful

    def _known(self, items: Iterator[Item], open_: dict[tuple[DeliveryId, bytes], Target]) -> Iterator[Item]:
        """The items; what was looked for is no longer open."""
        for item in items:
            target = item.target if isinstance(item, Result) else item
            open_.pop((target.delivery.id, target.recipient), None)
            yield item

    async def _settle_doubts(self) -> None:
        """Look for what is in doubt, and send what is not there; or send it all, as told."""
        doubts, self._doubts = self._doubts, []
        left = {(doubt.delivery.id, doubt.recipient): doubt for doubt in doubts}
        found: Iterator[Item] = (replace(doubt, begun_us=0) for doubt in doubts)
        if self._options.looks is not None and not self._options.send_doubtful:
            # The clock may have been set back since the run began.
            since_us = min(self._options.look_since_us, *(doubt.begun_us - LOOK_BACK_US for doubt in doubts))
            found = self._options.looks.sift(doubts, since_us=max(since_us, 0))
        await self._send(self._known(self._coming(found), left))
        # It was stopped: those that were not come to, if only fetched ahead, are in doubt and must be told.
        self._doubts += left.values()

    # -- sending

    def _coming(self, source: Iterator[Item]) -> Iterator[Item]:
        return self._store.coming(source, self._to_be_read)

    def _to_be_read(self, item: Item) -> ContentId | None:
        """The message that is to be fetched, if it is to be sent."""
        if self.stopped or self._outage.given_up or not isinstance(item, Target) or item.begun_us:
            return None
        return item.delivery.content

    async def _send(self, source: Iterator[Item]) -> None:
        lanes = self._options.lanes
        queue: asyncio.Queue[_Work | None] = asyncio.Queue()  # `_feed` keeps it short
        tasks = [asyncio.create_task(self._work(queue)) for _ in range(lanes)]
        tasks.append(asyncio.create_task(self._feed(source, queue)))
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            self._stop.set()  # the thread that looks up targets, too
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _feed(self, source: Iterator[Item], queue: asyncio.Queue[_Work | None]) -> None:
        pace = _Pace(self._options.lanes, self._options.rate)
        while items := await asyncio.to_thread(self._take, source, pace.at_once):
            targets = [target for item in items if (target := self._to_send(item)) is not None]
            if self._outage.given_up:
                for target in targets:
                    self._tell(
                        Result(
                            target, Outcome.NOT_ATTEMPTED, why=self._outage.given_up, code=self._outage.code
                        )
                    )
            elif targets:
                if self._options.rate:
                    await self._wait_turn(len(targets))
                durable = self._journal.intend(targets)
                for target in targets:
                    queue.put_nowait((target, durable, time.monotonic()))
                while queue.qsize() > len(targets) // 2:
                    self._room.clear()
                    await self._room.wait()
                pace.went(len(targets))
        for _ in range(self._options.lanes):
            queue.put_nowait(None)

    def _take(self, source: Iterator[Item], number: int) -> list[Item]:
        if self.stopped:
            return []
        items: list[Item] = []
        try:
            items += islice(source, number)
        except StoppedError:  # what came before it is taken
            return items
        self.ended.saw_all = self.ended.saw_all or len(items) < number
        return items

    def _to_send(self, item: Item) -> Target | None:
        """What is left to do for it."""
        if isinstance(item, Target):
            if not item.begun_us:
                return item
            self._doubts.append(item)
            return None
        if item.target.begun_us and item.outcome is Outcome.THERE:
            self._journal.settle(item.target, f"250 2.0.0 Found in {item.folder}".encode("utf-8", "replace"))
        self._tell(item)
        return None

    async def _work(self, queue: asyncio.Queue[_Work | None]) -> None:
        lane = self._road.lane()
        try:
            work = await queue.get()
            while work is not None:
                batch = [work]
                work = None
                # More than one at once where there are enough for all lanes.
                while len(batch) < self._road.depth and queue.qsize() > self._options.lanes:
                    batch += filter(None, [queue.get_nowait()])
                self._room.set()
                await self._send_batch(lane, batch)
                work = await queue.get()
        finally:
            await lane.close()

    async def _send_batch(self, lane: Lane, batch: list[_Work]) -> None:
        for _, durable, _ in batch:
            if not durable.done():
                await asyncio.wait((durable,))
            durable.result()
        if self._journal.failure:
            raise self._journal.failure
        left = []
        for target, _, since in batch:
            if why := self._removed(target, since):
                self._not_sent(target, Outcome.REFUSED, why)
            else:
                left.append(target)
        await self._put(lane, left)

    async def _wait_turn(self, messages: int) -> None:
        turn = max(self._due, time.monotonic())
        self._due = turn + messages / self._options.rate
        while (left := turn - time.monotonic()) > 0 and not self.stopped:  # noqa: ASYNC110 - time is meant
            await asyncio.sleep(min(left, 0.2))

    async def _put(self, lane: Lane, left: list[Target]) -> None:
        def answered(target: Target, reply: bytes) -> None:
            left.remove(target)
            self._outage.over()
            self._journal.settle(target, reply)
            done = reply.startswith(b"2")
            self._tell(Result(target, Outcome.RESTORED if done else Outcome.REFUSED, reply=reply))

        def failed(target: Target, why: str, code: int = 0) -> None:
            left.remove(target)
            self._not_sent(target, Outcome.REFUSED, why, code)

        lost = 0
        while left:
            if self.stopped or self._outage.given_up:
                for target in left:
                    self._not_sent(
                        target, Outcome.NOT_ATTEMPTED, self._outage.given_up or "stopped", self._outage.code
                    )
                return
            first = left[0]
            try:
                await lane.put(tuple(left), answered, failed)
            except LostError as exc:
                if exc.in_doubt:
                    self._doubts += [replace(target, begun_us=now_us()) for target in left]
                    return
                lost = lost + exc.connected if first in left else 0
                if lost >= _TRIES:
                    failed(first, str(exc))
                    lost = 0
                else:
                    await self._outage.wait(str(exc), self._options.patience_s, exc.code)

    def _removed(self, target: Target, since: float) -> str:
        """Why it must not come back, if it must not: a run may last for days."""
        if self._store.was_erased(target.delivery.content):
            return "this message was erased"
        if time.monotonic() - since > _STALE_S:
            try:
                self._store.delivery(target.delivery.id, self._options.as_of_us)
            except RemovedError as exc:
                return str(exc)
            except StoreError:
                return ""  # damage of its records; the message may be sound, and proves itself
        return ""

    def _not_sent(self, target: Target, outcome: Outcome, why: str, code: int = 0) -> None:
        # The intent must not stay as the last word: it would be in doubt.
        self._journal.settle(target, f"451 4.3.0 Not sent: {why}"[:500].encode("utf-8", "replace"))
        self._tell(Result(target, outcome, why=why, code=code))

    def _tell(self, result: Result) -> None:
        self.ended.targets += 1
        self.ended.back += result.is_back
        if not result.is_back:
            self.ended.codes.add(result.code)
        self.ended.in_doubt += result.outcome is Outcome.IN_DOUBT
        self._tell_other(result)
