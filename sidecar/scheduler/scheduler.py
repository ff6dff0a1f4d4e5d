"""The scheduler: one thread that looks once a second, and one more while a job runs.

One job runs at a time; jobs share the disk with the mail path, and two would only be in each other's way.
Nothing here may disturb capture: no event loop is touched, a fault is logged and looked at again later, and a
state that cannot be saved is kept in memory until it can.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sidecar.scheduler import channel
from sidecar.scheduler.channel import Request
from sidecar.scheduler.context import JobContext, JobInterrupted
from sidecar.scheduler.kinds import JobEvents, JobKind, Settings
from sidecar.scheduler.niceness import stand_back
from sidecar.scheduler.queue import JobQueue, JobRefusedError, hold
from sidecar.scheduler.state import (
    PROGRESS_FILE,
    Answer,
    Ended,
    Far,
    KindState,
    Running,
    State,
    load_state,
    save_progress,
    save_state,
)
from store.locks import Lock

log = logging.getLogger(__name__)

LOOK_S = 1.0
_AFTER_FAULT_S = 30.0
_BOOKMARK_S = 60.0
_TEXT_CHARACTERS = 500
_TRIES_BEFORE_WARNING = 3
"""an operator's command may have the lock for a moment"""


class _Work:
    """A job's thread and how it ended."""

    def __init__(
        self, kind: JobKind, context: JobContext, settings: Settings, wake: Callable[[], None]
    ) -> None:
        self.context = context
        self.failure: BaseException | None = None
        self.text = ""
        self.saved_at = time.monotonic()
        self._kind = kind
        self._settings = settings
        self._wake = wake
        self.thread = threading.Thread(target=self._run, name="job", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        stand_back(self._settings.nice, self._settings.io_class)
        try:
            self.text = self._kind.run(self.context)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it must not leave the job running for ever
            self.failure = exc
        finally:
            self._wake()


class Scheduler:
    """Runs jobs in the background. `start`, then `stop`; all else may be called from any thread."""

    def __init__(
        self,
        directory: Path,
        kinds: Mapping[str, JobKind],
        settings: Settings,
        *,
        latency_s: Callable[[], float] = lambda: 0.0,
        events: JobEvents | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self.kinds = kinds
        self._directory = directory
        self._settings = settings
        self._latency_s = latency_s
        self._events = events or JobEvents()
        self._look_s = look_s
        self._lock = threading.Lock()
        self._queue = JobQueue(State(), kinds)
        self._held: Lock | None = None
        self._tries = 0
        self._work: _Work | None = None
        self._shown: Far | None = None
        self._unsaved = False
        self._save_failed = False
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to look. Who asks for a job from now on is not told that nobody is there."""
        try:
            self._take_lock()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the thread meets it and tells
            log.debug("the jobs are not taken over yet: %s", exc)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask the running job to stop, and wait; False when it has not in time. It is resumed later."""
        self._stopping = True
        with self._lock:
            if self._work:
                self._work.context.stop("the service stops")
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def settings(self) -> Settings:
        """May be replaced at any time; niceness and the number of threads count for the next job."""
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings
        self._wake.set()

    def submit(self, kind: str, arguments: Mapping[str, str] | None = None, *, again: bool = False) -> int:
        """Ask for a job; its id, which is an earlier one's if that does the same. Raises JobRefusedError.

        May wait for a flush: not for the event loop.
        """
        with self._lock:
            job, _ = self._queue.submit(kind, arguments or {}, again=again)
            self._unsaved = True
        self._wake.set()
        return job.id

    # -- what the metrics read

    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._queue.state.queue)

    def is_running(self, kind: str) -> bool:
        """Whether a job of the kind is at work."""
        running = self._queue.state.running
        return running is not None and running.job.kind == kind

    def of_kind(self, kind: str) -> KindState:
        """What is remembered of a kind, for reading only."""
        return self._queue.state.kinds.get(kind) or KindState()

    # -- the thread

    def _run(self) -> None:
        while True:
            pause_s = self._look_s
            try:
                if self._take_lock():
                    self._look()
                    if self._stopping and self._work is None:
                        break
            except Exception:
                log.exception("the scheduler has stumbled; it looks again in %.0f s", _AFTER_FAULT_S)
                pause_s = _AFTER_FAULT_S
            if self._stopping and self._work is None:
                break
            self._wake.wait(pause_s)
            self._wake.clear()
        if self._held:
            self._held.release()

    def _take_lock(self) -> bool:
        if self._held is None and not self._stopping:
            held = channel.take_lock(self._directory)
            if held is None:
                self._tries += 1
                if self._tries == _TRIES_BEFORE_WARNING:
                    log.warning("another process runs the jobs of this store; should it end, they run here")
                return False
            try:
                self._begin()
            except BaseException:
                held.release()
                raise
            self._held = held
        return self._held is not None

    def _begin(self) -> None:
        state = load_state(self._directory)
        (self._directory / PROGRESS_FILE).unlink(missing_ok=True)
        with self._lock:
            early = self._queue.state.queue  # asked for by the service before the lock was here
            self._queue.state = state
            self._queue.recover()
            for job in early:
                self._queue.submit(job.kind, job.arguments)
            self._unsaved = True

    def _look(self) -> None:
        """One look at everything: a job that ended, requests, what is due, what makes way, what is next."""
        now = time.time()
        settings = self._settings
        if self._work and not self._work.thread.is_alive():
            self._finish(now, self._work)
        self._take_requests()
        with self._lock:
            self._unsaved |= self._queue.state.window != settings.window.text
            self._queue.state.window = settings.window.text
            self._unsaved |= self._queue.submit_due(now, settings)
            if self._work is None and not self._stopping:
                running = self._queue.take(now, settings)
                if running is not None:
                    self._save()  # first: should the job take the service down, the next one knows
                    self._begin_work(running, settings)
            elif self._work and (reason := self._queue.why_stop(now, settings)):
                self._work.context.stop(reason)
            if self._work:
                self._show(self._work)
            if self._unsaved:
                self._save()

    def _begin_work(self, running: Running, settings: Settings) -> None:
        job = running.job
        log.info("job %d, %s: %s", job.id, job.kind, "resumed" if job.interrupted else "begins")
        context = JobContext(
            dict(job.arguments), job.bookmark,
            threads=settings.threads,
            busy_latency_s=lambda: self._settings.busy_latency_s,
            io_rate_bytes=lambda: self._settings.io_rate_bytes,
            latency_s=self._latency_s,
            backed_off=self._events.backed_off,
        )  # fmt: skip
        self._work = _Work(self.kinds[job.kind], context, settings, self._wake.set)

    def _finish(self, now: float, work: _Work) -> None:
        """A job's thread has ended: for good, or to be resumed."""
        context, failure = work.context, work.failure
        stopped = context.stop_reason != "" and (
            isinstance(failure, JobInterrupted) or (failure is None and context.told_to_stop)
        )
        if stopped:
            result, text = "interrupted", "cancelled" if context.cancelled else context.stop_reason
        elif failure is not None:
            result, text = "failed", f"{failure}" or type(failure).__name__
        else:
            result, text = "ok", work.text
        with self._lock:
            ended = self._queue.end(
                now, result, text[:_TEXT_CHARACTERS],
                bookmark=context.bookmark, resume=stopped and not context.cancelled,
            )  # fmt: skip
            self._unsaved = True
            # Before it is saved: whoever waited for its end may look at once.
            self._events.ended(ended.kind, result)
        self._work = self._shown = None
        (self._directory / PROGRESS_FILE).unlink(missing_ok=True)
        _tell(ended, failure)

    def _show(self, work: _Work) -> None:
        """Leave how far the job is where `mailkeep jobs` finds it, and keep its bookmark now and then."""
        running = self._queue.state.running
        if running is None:
            return
        at = work.context.how_far()
        far = Far(job=running.job.id, done=at.done, total=at.total, text=at.text, waiting=at.waiting)
        if far != self._shown:
            with contextlib.suppress(OSError):  # a full disk is told of elsewhere
                save_progress(self._directory, far)
                self._shown = far
        if work.context.bookmark != running.job.bookmark and time.monotonic() - work.saved_at > _BOOKMARK_S:
            running.job.bookmark, work.saved_at = work.context.bookmark, time.monotonic()
            self._unsaved = True

    def _save(self) -> None:
        try:
            save_state(self._directory, self._queue.state)
        except OSError as exc:
            if not self._save_failed:
                log.error("the jobs' state cannot be saved, and is tried again: %s", exc)
            self._unsaved = self._save_failed = True
        else:
            self._unsaved = self._save_failed = False

    # -- requests

    def _take_requests(self) -> None:
        for request in channel.waiting(self._directory):
            with self._lock:
                # A request outlives a crash that comes between its answer and its removal.
                if request.id not in {answer.request for answer in self._queue.state.answers}:
                    answer = self._answer(request)
                    log.info("asked for by an operator: %s %s: %s", request.action, request.kind, answer.text)
                    self._queue.state.answer(answer)
                self._save()
                if self._unsaved:
                    return  # not durable yet: it is answered, and is removed when it is
            channel.withdraw(self._directory, request.id)

    def _answer(self, request: Request) -> Answer:
        try:
            return self._obey(request)
        except JobRefusedError as exc:
            return Answer(request=request.id, text=str(exc), refused=True)

    def _obey(self, request: Request) -> Answer:
        queue, kind, work = self._queue, request.kind, self._work
        match request.action:
            case "run":
                job, is_new = queue.submit(
                    kind, request.arguments, manual=True, force=request.force, again=request.again
                )
                text = f"job {job.id}" if is_new else f"job {job.id}, which was asked for already"
                if why := self._why_not_now(job.kind, force=job.force):
                    text += f": {why}"
                return Answer(request=request.id, text=text, job=job.id)
            case "pause" | "resume":
                changed = hold(queue.state, kind, paused=request.action == "pause")
                return Answer(
                    request=request.id, text=f"{request.action}d: {', '.join(changed) or 'nothing'}"
                )
            case "cancel":
                dropped = queue.drop(kind)
                is_running = work is not None and self.is_running(kind)
                if work is not None and is_running:
                    work.context.cancel()
                elif not dropped:
                    raise JobRefusedError(f"no {kind} runs or waits")
                return Answer(request=request.id, text=f"{dropped + is_running} cancelled")
            case _:
                raise JobRefusedError(f"this version does not know how to {request.action} a job")

    def _why_not_now(self, kind: str, *, force: bool) -> str:
        settings = self._settings
        if self.of_kind(kind).paused:
            return f"{kind} is paused; `mailkeep jobs resume {kind}` lets it run"
        if not force and not settings.window.is_open(time.time()):
            return f"waits for the window {settings.window.text}; --force does without"
        return ""


def _tell(ended: Ended, failure: BaseException | None) -> None:
    took = f"job {ended.id}, {ended.kind}, {ended.ended - ended.started:.1f} s"
    if ended.result == "failed":
        # A fault that tells what to do is an expected one; of any other the traceback is wanted.
        expected = hasattr(failure, "hint") or isinstance(failure, OSError)
        log.error("%s: failed: %s", took, ended.text, exc_info=None if expected else failure)
    else:
        log.info("%s: %s: %s", took, ended.result, ended.text)
