"""The operator's side: look at the jobs, ask the scheduler for something, wait for a job's end.

Works on the files in `jobs/` alone, so it needs neither the store open nor the service's help to look.
Without a service, pausing still works (it is written down for the next one); running does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sidecar.scheduler import channel
from sidecar.scheduler.channel import Request, is_served, take_lock
from sidecar.scheduler.queue import JobRefusedError, hold
from sidecar.scheduler.state import (
    STATE_FILE,
    Answer,
    Ended,
    Far,
    Job,
    State,
    load_progress,
    load_state,
    look_at_state,
    save_state,
)

ANSWER_TIMEOUT_S = 15.0
_LOOK_S = 0.1
_WAIT_S = 0.5


class NotServedError(Exception):
    """No service runs the jobs of this store."""

    exit_code = 3

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class NoAnswerError(Exception):
    """The service runs and does not answer; the request was taken back."""

    hint = "See the service's log (`journalctl -u mailkeep`)."
    exit_code = 1


@dataclass(frozen=True, slots=True)
class Overview:
    """The jobs as they are now, or as they were when the service ended."""

    served: bool
    state: State
    far: Far | None


def overview(directory: Path) -> Overview:
    """Look, and change nothing. Raises OSError."""
    served = is_served(directory)
    state = look_at_state(directory)
    far = load_progress(directory) if served and state.running else None
    return Overview(served, state, far if far and state.running and far.job == state.running.job.id else None)


def run(
    directory: Path, kind: str, arguments: Mapping[str, str], *, force: bool = False, again: bool = False
) -> Answer:
    """Ask for a job. Raises NotServedError, NoAnswerError, JobRefusedError, OSError."""
    if not is_served(directory):
        raise NotServedError(
            f"serve is not running, so {kind} cannot run in the background",
            f"Start the service, or run `mailkeep {kind}` itself.",
        )
    return _ask(directory, "run", kind, arguments, force=force, again=again)


def cancel(directory: Path, kind: str) -> Answer:
    """Stop what runs of a kind and drop what waits. Raises as `run` does."""
    if not is_served(directory):
        raise NotServedError("serve is not running, and neither is a job", "Start the service first.")
    return _ask(directory, "cancel", kind, {})


def pause(directory: Path, kind: str, *, paused: bool) -> str:
    """Pause or resume a kind or `all`, with or without a service. Raises as `run` does."""
    action = "pause" if paused else "resume"
    if not is_served(directory):
        if not (directory / STATE_FILE).exists():
            raise JobRefusedError("there are no jobs yet: serve has not run any on this store")
        lock = take_lock(directory)
        if lock is not None:
            with lock:
                state = load_state(directory)
                changed = hold(state, kind, paused=paused)
                save_state(directory, state)
            return f"{action}d: {', '.join(changed) or 'nothing'}"
    return _ask(directory, action, kind, {}).text


def wait(directory: Path, job: int, show: Callable[[Overview], None]) -> Ended | None:
    """The end of a job; None when too much has happened since to know. Raises NotServedError, OSError."""
    while True:
        seen = overview(directory)
        state = seen.state
        if not any(waiting.id == job for waiting in _unfinished(state)):
            ended = [run for run in state.history if run.id == job]
            return ended[-1] if ended else None
        if not seen.served:
            raise NotServedError(
                f"the service has ended before job {job}", "The job is resumed when the service runs again."
            )
        show(seen)
        time.sleep(_WAIT_S)


def _unfinished(state: State) -> list[Job]:
    return [*state.queue, *([state.running.job] if state.running else [])]


def _ask(
    directory: Path, action: str, kind: str, arguments: Mapping[str, str], *, force: bool = False,
    again: bool = False,
) -> Answer:  # fmt: skip
    request = Request(
        id=channel.new_request_id(),
        action=action,
        kind=kind,
        arguments=dict(arguments),
        force=force,
        again=again,
    )
    channel.send(directory, request)
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        for answer in look_at_state(directory).answers:
            if answer.request == request.id:
                if answer.refused:
                    raise JobRefusedError(answer.text)
                return answer
    channel.withdraw(directory, request.id)
    raise NoAnswerError(f"serve has not answered in {ANSWER_TIMEOUT_S:.0f} s")
