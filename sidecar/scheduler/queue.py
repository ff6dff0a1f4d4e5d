"""What is to run next: merging, priorities, pause, the window. No threads, no files, and no clock of its own.

There is one job for the same work (kind and arguments) however often it is asked for; the later request gets
the same id, and may make it more urgent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sidecar.scheduler.kinds import JobKind, Settings
from sidecar.scheduler.state import Ended, Job, KindState, Running, State

log = logging.getLogger(__name__)

ALL = "all"
MAX_CRASHES = 3
_CLOCK_SLIP_S = 60.0


class JobRefusedError(Exception):
    """What is asked for cannot be done; the text says why."""

    hint = "`mailkeep jobs` shows what there is."
    exit_code = 1


def hold(state: State, kind: str, *, paused: bool) -> list[str]:
    """Pause a kind, or `all`, or let it go on; which ones. Raises JobRefusedError."""
    chosen = list(state.kinds) if kind == ALL else [kind]
    for name in chosen:
        if name not in state.kinds:
            raise _no_such(name, state.kinds)
    for name in chosen:
        state.kinds[name].paused = paused
    return chosen


def _no_such(kind: str, kinds: Iterable[str]) -> JobRefusedError:
    return JobRefusedError(f"there is no job {kind}; there are: {', '.join(kinds) or 'none'}")


@dataclass(slots=True)
class JobQueue:
    """The rules over a `State`; times are seconds since 1970. Not for several threads at once."""

    state: State
    kinds: Mapping[str, JobKind]

    def recover(self) -> None:
        """Take up what an earlier service left, which may have died in the middle of a job."""
        if self.state.running is not None:
            job = self.state.running.job
            job.crashes += 1
            self.state.running = None
            if job.crashes >= MAX_CRASHES:
                log.error(
                    "the service has died %d times while %s ran: it is given up until it is due again",
                    job.crashes, job.kind,
                )  # fmt: skip
            else:
                job.interrupted = True
                self.state.queue.insert(0, job)
        for job in [job for job in self.state.queue if job.kind not in self.kinds]:
            log.warning("job %d is dropped: this version has no %s", job.id, job.kind)
            self.state.queue.remove(job)
        self.state.kinds = {kind: self.state.kinds.get(kind, KindState()) for kind in self.kinds}

    # -- what is asked for

    def submit(
        self,
        kind: str,
        arguments: Mapping[str, str],
        *,
        manual: bool = False,
        force: bool = False,
        again: bool = False,
    ) -> tuple[Job, bool]:
        """The job for this work, and whether it is new. Raises JobRefusedError."""
        self._known(kind)
        if unknown := set(arguments) - self.kinds[kind].arguments:
            raise JobRefusedError(f"{kind} knows no argument {', '.join(sorted(unknown))}")
        running = self.state.running.job if self.state.running else None
        for job in [*([running] if running else []), *self.state.queue]:
            if (job.kind, job.arguments) == (kind, dict(arguments)):
                job.manual |= manual
                job.force |= force
                job.again |= again and job is running
                return job, False
        job = Job(id=self.state.next_id, kind=kind, arguments=dict(arguments), manual=manual, force=force)
        self.state.next_id += 1
        self.state.queue.append(job)
        return job, True

    def drop(self, kind: str) -> int:
        """Take what waits of a kind out of the queue; how many. Raises JobRefusedError."""
        self._known(kind)
        before = len(self.state.queue)
        self.state.queue = [job for job in self.state.queue if job.kind != kind]
        return before - len(self.state.queue)

    def _known(self, kind: str) -> None:
        if kind not in self.kinds:
            raise _no_such(kind, self.kinds)

    # -- what is due

    def submit_due(self, now: float, settings: Settings) -> bool:
        """Queue what is due, once however often it was missed; whether anything has changed."""
        changed = False
        for kind, state in self.state.kinds.items():
            schedule = settings.schedule(kind)
            # A new schedule counts from now. So does one whose last time lies ahead: the clock was set back.
            if state.schedule != schedule.text or not 0 < state.counted_from <= now + _CLOCK_SLIP_S:
                state.schedule, state.counted_from = schedule.text, now
                state.next = schedule.next_after(now)
                changed = True
            if state.next is not None and state.next <= now:
                self.submit(kind, {})
                state.counted_from = now
                state.next = schedule.next_after(now)
                changed = True
        return changed

    def take(self, now: float, settings: Settings) -> Running | None:
        """The most urgent job that may run now; it is running from here on."""
        job = next(self._ready(now, settings), None)
        if job is None or self.state.running is not None:
            return None
        self.state.queue.remove(job)
        self.state.running = Running(job=job, started=now)
        return self.state.running

    def why_stop(self, now: float, settings: Settings) -> str:
        """Why the running job must make way; "" if it may go on."""
        if self.state.running is None:
            return ""
        job = self.state.running.job
        if self.state.kinds[job.kind].paused:
            return "paused"
        if not job.force and not settings.window.is_open(now):
            return f"outside the window {settings.window.text}"
        if not job.manual and any(waiting.manual for waiting in self._ready(now, settings)):
            return "gives way to a job that somebody asked for"
        return ""

    def _ready(self, now: float, settings: Settings) -> Iterator[Job]:
        is_open = settings.window.is_open(now)
        urgent_first = sorted(
            self.state.queue, key=lambda job: (not job.manual, self.kinds[job.kind].priority, job.id)
        )
        for job in urgent_first:
            if not self.state.kinds[job.kind].paused and (job.force or is_open):
                yield job

    # -- what is done

    def end(self, now: float, result: str, text: str, *, bookmark: str = "", resume: bool = False) -> Ended:
        """The running job is over, or with `resume` goes on later."""
        running = self.state.running
        assert running is not None, "only a running job ends"  # noqa: S101 - a slip of the scheduler itself
        job = running.job
        ended = Ended(id=job.id, kind=job.kind, started=running.started, ended=now, result=result, text=text)
        self.state.running = None
        self.state.remember(ended)
        kind = self.state.kinds[job.kind]
        kind.last = ended
        if result == "ok":
            kind.last_success = now
        if resume:
            job.interrupted, job.bookmark, job.crashes = True, bookmark, 0
            self.state.queue.insert(0, job)
        elif job.again and result != "interrupted":
            job.again, job.interrupted, job.bookmark, job.crashes = False, False, "", 0
            self.state.queue.append(job)
        return ended
