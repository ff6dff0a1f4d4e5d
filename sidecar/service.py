"""`mailkeep serve`: wire the rooms together, run until told to stop, stop without losing anything.

SIGTERM and SIGINT: accept no more, finish what is in flight, commit, exit 0. SIGHUP: take up what can be
taken up. If the store fails for good, everything waiting has had its 451 and the process ends with 1, so
that whoever supervises starts it anew and start-up verifies what is on disk; with `on_failure = "accept"`
it stays, since mail is to go through.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from sidecar import jobs, notify
from sidecar import log as logging_setup
from sidecar.board import State
from sidecar.capture import CaptureEvents, Capturer
from sidecar.config import Config, ConfigError, reloadable_changes
from sidecar.drill.proof import load_proof
from sidecar.front import FrontServer
from sidecar.http import HttpEndpoint
from sidecar.identity import load_identities
from sidecar.metrics import Metrics
from sidecar.milter_front import MilterFront, import_pymilter
from sidecar.milter_session import MilterLimits
from sidecar.replication import Replicas
from sidecar.scheduler import channel
from sidecar.scheduler.latency import LatencyMeter
from sidecar.scheduler.scheduler import Scheduler
from sidecar.scheduler.watch import job_events, watch_jobs
from sidecar.settings import front_limits, job_settings
from sidecar.spool import Spool
from sidecar.watch import LmtpEvents, MilterWatch
from sidecar.worker import Worker
from store.store import Store
from store.writer import GroupFacts

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 30.0
_LOOK_S = 0.5
_SPOOL_S = 30.0
_SIZE_S = 30.0


class StartError(Exception):
    """The service cannot start; the text says which part and why."""

    hint = "Nothing was accepted. Mend what is named and start again."
    exit_code = 1


class Service:
    """All that runs in one `mailkeep serve`."""

    def __init__(self, config: Config, load: Callable[[], Config], worker: Worker | None = None) -> None:
        """`worker`: one of several that take mail, which the supervisor watches; None: all there is."""
        self._config = config
        self._loaded = config
        self._load = load
        self._worker = worker
        self._metrics = Metrics(
            version("mailkeep"),
            worker.board if worker else None,
            worker.number if worker else 0,
            replicas=[str(number) for number, replica in enumerate(config.replica, 1) if replica.url],
        )
        self._latency = LatencyMeter()
        self._scheduler: Scheduler | None = None
        self._replicas = Replicas(self._metrics)
        self._stop = asyncio.Event()
        self._exit_code = 0
        self._ready = False
        self._failure = ""

    async def run(self) -> int:
        """Serve until stopped; the exit code. Raises StartError, StoreError."""
        self._loop = asyncio.get_running_loop()
        if self._config.milter is not None:
            import_pymilter()
        encryption = self._config.encryption
        store = await asyncio.to_thread(
            Store.open, self._config.store.path, create=True, wait=False,
            recipients=encryption.recipients or None,
            identities=load_identities(encryption.identity) if encryption.identity else (),
        )  # fmt: skip
        if store.keyring.seals:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold mail and keys
        if self._worker:
            store.among_others(self._worker.neighbours, self._worker.other_streams())
        try:
            with store:
                await self._run(store)
        finally:
            log.info("stopped")
        return self._exit_code

    async def _run(self, store: Store) -> None:
        config = self._config
        metrics = self._metrics
        await asyncio.to_thread(
            store.start_writing,
            config.store.stream_of(self._worker.number if self._worker else 1),
            pack_bytes=config.store.pack_size_bytes,
            reserve_bytes=config.store.reserve_bytes,
            level=config.store.compression_level,
            on_group=self._group_committed,
        )
        for damage in store.damage:
            log.error("the store is damaged: %s (run `mailkeep check`)", damage)
        self._capturer = Capturer(
            store,
            accept=config.capture.on_failure == "accept",
            spool=Spool(config.spool_path, store.keyring),
            events=CaptureEvents(
                captured=lambda leg, receipt: metrics.message_captured(
                    leg, receipt.size, receipt.new_bytes, receipt.duplicate_bytes
                ),
                failed=metrics.capture_failed,
                uncaptured=metrics.message_uncaptured,
            ),
            others=self._worker,
        )
        self._store = store
        self._watch_store()
        endpoint = self._start_endpoint()
        front = milter = None
        try:
            front = await self._start_front()
            milter = self._start_milter()
            self._handle_signals(front, milter)
            if self._leads:
                for line in config.lines():
                    log.info("%s", line)
                self._start_scheduler()
                self._replicas.start(config, store)
            if self._worker and self._worker.latest != config:
                self._take_up(self._worker.latest, front, milter)
            self._now_ready()
            await self._look_after()
        finally:
            self._ready = False
            if self._worker:
                self._worker.tell(State.STOPPING)
            notify.stopping("finishing what is in flight")
            await self._drain(front, milter)
            if endpoint:
                await asyncio.to_thread(endpoint.stop)

    # -- starting

    @property
    def _leads(self) -> bool:
        return self._worker is None or self._worker.leads

    def _now_ready(self) -> None:
        self._ready = True
        if self._worker:
            self._worker.tell(State.READY)
            log.info("worker %d is ready", self._worker.number)
        else:
            notify.ready("capturing mail")
            log.info("ready")

    def _start_endpoint(self) -> HttpEndpoint | None:
        if self._config.metrics is None or not self._leads:
            return None
        try:
            endpoint = HttpEndpoint(self._config.metrics.listen, self._metrics.render, self._not_ready)
        except OSError as exc:
            raise StartError(f"[metrics] listen = {self._config.metrics.listen}: {exc}") from exc
        log.info("metrics at %s", endpoint.address)
        return endpoint

    async def _start_front(self) -> FrontServer | None:
        lmtp, worker = self._config.lmtp, self._worker
        if lmtp is None or (worker and not worker.listeners):
            return None
        front = FrontServer(
            self._capturer, listen=lmtp.listen, downstream=lmtp.downstream, limits=front_limits(lmtp),
            events=LmtpEvents(self._metrics), socket_mode=lmtp.socket_mode, socket_group=lmtp.socket_group,
            listeners=worker.listeners if worker else (), siblings=worker.connections if worker else tuple,
        )  # fmt: skip
        try:
            await front.start()
        except (OSError, ValueError) as exc:
            raise StartError(f"[lmtp] listen = {lmtp.listen}: {exc}") from exc
        if not worker:
            log.info("LMTP at %s, in front of %s", front.address, lmtp.downstream)
        return front

    def _start_milter(self) -> MilterFront | None:
        config = self._config.milter
        if config is None or (self._worker and not self._worker.milter):
            return None
        milter = MilterFront(
            config.listen, self._capturer, MilterLimits(commit_timeout_s=config.commit_timeout_s),
            MilterWatch(self._metrics, self._milter_died),
            socket_mode=config.socket_mode, socket_group=config.socket_group, shared=self._worker is not None,
        )  # fmt: skip
        milter.start()
        self._metrics.watch("in_flight_messages", lambda: milter.in_flight, "milter")
        if not self._worker:
            log.info("milter at %s", config.listen)
        return milter

    def _start_scheduler(self) -> None:
        self._scheduler = Scheduler(
            self._config.store.path / channel.DIRECTORY,
            jobs.job_kinds(
                self._store, lambda: self._loaded, self._worker, audited=self._metrics.audited
            ),
            job_settings(self._config),
            latency_s=self._latency_s, events=job_events(self._metrics),
        )  # fmt: skip
        watch_jobs(self._metrics, self._scheduler)
        jobs.watch_scrubs(self._metrics, self._config)
        self._scheduler.start()

    def _latency_s(self) -> float:
        """How long making mail durable takes of late, here or with another worker."""
        return max(self._latency(), self._worker.latency_s() if self._worker else 0.0)

    def _watch_store(self) -> None:
        store = self._store
        self._metrics.watch("index_lag_commits", lambda: store.index_lag)
        if not self._worker:
            self._metrics.watch("workers_running", lambda: self._ready)
        if not self._leads:
            return  # the rest is the same for all, and one tells it
        size = _Slow(store.pack_bytes, _SIZE_S)  # looks at every pack: not at each scrape
        self._metrics.watch("store_bytes", size)
        self._metrics.watch("store_free_bytes", lambda: _free_bytes(store.path))
        self._metrics.watch(
            "last_proven_restore_timestamp_seconds", lambda: load_proof(store.path).last_proven
        )
        self._metrics.watch("drill_failures_total", lambda: load_proof(store.path).failures)
        spool = self._capturer.spool
        self._metrics.watch("spool_messages", lambda: spool.waiting() if spool else 0)

    # -- running

    def _group_committed(self, group: GroupFacts) -> None:
        """Called in the writer's thread."""
        self._latency.note(group.seconds)
        self._metrics.group_committed(group.submissions, group.seconds, group.written_bytes)

    async def _look_after(self) -> None:
        """Until stopped: watchdog, a dead store, the spool, the other workers."""
        interval = min(_LOOK_S, notify.watchdog_interval_s() or _LOOK_S)
        spool_due = 0.0
        draining: asyncio.Task[None] | None = None
        rolling: asyncio.Task[None] | None = None
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), interval)
            except TimeoutError:
                notify.watchdog()
            if self._worker:
                self._worker.beat(self._latency())
                if not self._leads:
                    self._metrics.publish()
                if rolling is None or rolling.done():
                    rolling = self._roll_if_asked(self._worker)
            failure = self._store.writer.failure
            if failure is not None:
                self._failure = str(failure)
                if self._worker:
                    self._worker.failed()
                if not self._capturer.accept:
                    log.critical("the store has failed, ending: %s", failure)
                    self._exit_code = 1
                    self._stop.set()
            elif time.monotonic() >= spool_due and (draining is None or draining.done()):
                # Beside this loop: a long drain must keep neither the watchdog nor a stop waiting.
                draining = asyncio.create_task(self._drain_spool())
                spool_due = time.monotonic() + _SPOOL_S
        if draining is not None:
            await draining

    def _roll_if_asked(self, worker: Worker) -> asyncio.Task[None] | None:
        """The worker whose job compacts writes its own stream alone: ours is for us to end."""
        done = worker.asked_to_roll()
        if done is None:
            return None
        return asyncio.create_task(self._end_open_pack(everything=worker.roll_all, done=done))

    async def _end_open_pack(self, *, everything: bool, done: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(
                jobs.end_open_pack, self._store, self._loaded.store, everything=everything
            )
        except Exception:
            log.exception("the open pack could not be ended; what is in it is compacted later")
        done()

    async def _drain_spool(self) -> None:
        try:
            # Others than the first take in what nobody else could open.
            mine = self._leads or self._store.blind
            if mine and self._capturer.spool and self._capturer.spool.waiting():
                count = await asyncio.to_thread(
                    self._capturer.drain_spool, self._stop.is_set, own=not self._leads
                )
                if count:
                    log.info("%d messages came from the spool into the store", count)
        except Exception:
            log.exception("the spool could not be brought into the store; it stays")

    def _not_ready(self) -> list[str]:
        reasons = []
        if not self._ready:
            reasons.append("starting or stopping")
        elif self._worker:
            reasons += self._worker.not_ready()
        if self._failure:
            reasons.append(f"the store has failed: {self._failure}")
        if _free_bytes(self._config.store.path) < self._config.store.reserve_bytes:
            fate = "goes through WITHOUT a copy" if self._capturer.accept else "is being deferred"
            reasons.append(f"free space is below the reserve: mail {fate}")
        return reasons

    def _milter_died(self, reason: str) -> None:
        self._exit_code = 1
        self._loop.call_soon_threadsafe(self._stop.set)
        log.critical("the milter has ended by itself: %s", reason)

    # -- signals

    def _handle_signals(self, front: FrontServer | None, milter: MilterFront | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload, front, milter)
        if self._worker:
            self._loop.add_reader(self._worker.lifeline, self._supervisor_gone)

    def _supervisor_gone(self) -> None:
        log.critical("the supervisor is gone, ending")
        self._loop.remove_reader(self._worker.lifeline if self._worker else -1)
        self._exit_code = 1
        self._stop.set()

    def _reload(self, front: FrontServer | None, milter: MilterFront | None) -> None:
        notify.reloading()
        generation = self._worker.generation() if self._worker else 0
        try:
            fresh = self._load()
        except ConfigError as exc:
            log.error("not reloaded, all goes on as before: %s", exc)
            notify.ready("capturing mail; the last reload failed")
        else:
            self._take_up(fresh, front, milter)
            notify.ready("capturing mail")
        if self._worker:
            self._worker.reloaded(generation)

    def _take_up(self, fresh: Config, front: FrontServer | None, milter: MilterFront | None) -> None:
        changes, _ = reloadable_changes(self._loaded, fresh)
        _, restart = reloadable_changes(self._config, fresh)
        if restart:
            log.warning("these need a restart and stay as they were: %s", ", ".join(restart))
        logging_setup.set_level(fresh.log.level)
        self._capturer.accept = fresh.capture.on_failure == "accept"
        if front and fresh.lmtp:
            front.limits = front_limits(fresh.lmtp)
            front.downstream = fresh.lmtp.downstream
        if milter and fresh.milter:
            milter.limits = MilterLimits(commit_timeout_s=fresh.milter.commit_timeout_s)
        if self._scheduler:
            self._scheduler.settings = job_settings(fresh)
        self._replicas.take_up(fresh)
        self._loaded = fresh
        log.info("reloaded: %s", ", ".join(changes) or "nothing has changed")

    # -- stopping

    async def _drain(self, front: FrontServer | None, milter: MilterFront | None) -> None:
        stopping: list[asyncio.Task[object]] = []
        if front:
            stopping.append(asyncio.create_task(front.drain(DRAIN_TIMEOUT_S)))
        if milter:
            stopping.append(asyncio.create_task(asyncio.to_thread(milter.stop, DRAIN_TIMEOUT_S)))
        if self._scheduler:
            stopping.append(asyncio.create_task(asyncio.to_thread(self._stop_scheduler, self._scheduler)))
        for result in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("a front did not stop in order", exc_info=result)
        await asyncio.to_thread(self._replicas.stop)  # what came until now goes with a last round

    def _stop_scheduler(self, scheduler: Scheduler) -> None:
        if not scheduler.stop(DRAIN_TIMEOUT_S):
            log.error("a job did not stop in %.0f s; it is resumed at the next start", DRAIN_TIMEOUT_S)


class _Slow:
    """A reading that is taken anew only when it is older than `age_s`."""

    def __init__(self, read: Callable[[], float], age_s: float) -> None:
        self._read = read
        self._age_s = age_s
        self._value = 0.0
        self._due = 0.0

    def __call__(self) -> float:
        if time.monotonic() >= self._due:
            self._value = self._read()
            self._due = time.monotonic() + self._age_s
        return self._value


def _free_bytes(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize
