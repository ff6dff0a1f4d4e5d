"""What runs next: merging, priorities, pause, window, what was missed, what was left behind."""

from __future__ import annotations

from datetime import datetime

import pytest

from sidecar.scheduler.kinds import JobKind, Settings
from sidecar.scheduler.queue import JobQueue, JobRefusedError, hold
from sidecar.scheduler.schedule import Schedule
from sidecar.scheduler.state import Job, KindState, Running, State
from sidecar.scheduler.window import Window

NOON = datetime(2026, 6, 1, 12).timestamp()  # noqa: DTZ001 - local time is what windows mean
HOUR = 3600.0
DAY = 86_400.0
KINDS = {
    "compact": JobKind(lambda _: "", 20),
    "expire": JobKind(lambda _: "", 10),
    "check": JobKind(lambda _: "", 30, frozenset({"read_data"})),
}
ALWAYS = Settings()
NIGHT = Settings(window=Window.parse("22:00-06:00"))


def new(state: State | None = None) -> JobQueue:
    queue = JobQueue(state or State(), KINDS)
    queue.recover()
    return queue


def order(queue: JobQueue, settings: Settings = ALWAYS, now: float = NOON) -> list[int]:
    """The ids as they run, each to its end."""
    ran = []
    while running := queue.take(now, settings):
        ran.append(running.job.id)
        queue.end(now, "ok", "")
    return ran


def test_the_same_work_is_one_job() -> None:
    queue = new()
    first, is_new = queue.submit("check", {})
    assert (first.id, is_new) == (1, True)
    assert queue.submit("check", {}) == (first, False)
    other, is_new = queue.submit("check", {"read_data": "yes"})
    assert (other.id, is_new) == (2, True), "other arguments are other work"
    assert queue.submit("compact", {})[0].id == 3
    queue.take(NOON, ALWAYS)
    queue.take(NOON, ALWAYS)
    assert queue.submit("compact", {})[0].id == 3, "a running job is the same work too"
    assert len(queue.state.queue) == 2


def test_a_later_request_makes_the_job_more_urgent() -> None:
    queue = new()
    for kind in ("expire", "check"):
        queue.submit(kind, {})
    queue.submit("check", {}, manual=True, force=True)
    queue.submit("check", {})
    assert [(job.manual, job.force) for job in queue.state.queue] == [(False, False), (True, True)]
    assert order(queue) == [2, 1]


def test_priorities() -> None:
    queue = new()
    queue.submit("check", {})
    queue.submit("check", {"read_data": "yes"})
    queue.submit("compact", {})
    queue.submit("expire", {})
    queue.submit("compact", {}, manual=False)
    assert order(queue) == [4, 3, 1, 2]


def test_one_at_a_time() -> None:
    queue = new()
    queue.submit("check", {})
    queue.submit("compact", {})
    assert queue.take(NOON, ALWAYS) is not None
    assert queue.take(NOON, ALWAYS) is None


def test_again_only_for_what_runs() -> None:
    queue = new()
    queue.submit("check", {}, again=True)
    queue.submit("check", {}, again=True)
    assert order(queue) == [1], "it had not begun, so it does all that is wanted"
    queue.submit("check", {})
    queue.take(NOON, ALWAYS)
    queue.submit("check", {}, again=True)
    queue.end(NOON, "ok", "", bookmark="x")
    assert [(job.id, job.bookmark) for job in queue.state.queue] == [(2, "")]
    assert order(queue) == [2]


def test_what_is_asked_wrongly() -> None:
    queue = new()
    with pytest.raises(JobRefusedError, match="there is no job shred; there are: compact, expire, check"):
        queue.submit("shred", {})
    with pytest.raises(JobRefusedError, match="knows no argument depth"):
        queue.submit("check", {"depth": "1"})
    with pytest.raises(JobRefusedError, match="there is no job"):
        hold(queue.state, "shred", paused=True)
    assert queue.state.queue == []


def test_pause() -> None:
    queue = new()
    queue.submit("expire", {})
    queue.submit("check", {})
    assert hold(queue.state, "expire", paused=True) == ["expire"]
    assert order(queue) == [2]
    assert hold(queue.state, "all", paused=True) == ["compact", "expire", "check"]
    assert hold(queue.state, "all", paused=False) == ["compact", "expire", "check"]
    running = queue.take(NOON, ALWAYS)
    assert running is not None
    assert queue.why_stop(NOON, ALWAYS) == ""
    hold(queue.state, "expire", paused=True)
    assert queue.why_stop(NOON, ALWAYS) == "paused"
    queue.end(NOON, "interrupted", "paused", bookmark="half", resume=True)
    assert order(queue) == []
    hold(queue.state, "expire", paused=False)
    resumed = queue.take(NOON, ALWAYS)
    assert resumed is not None
    assert (resumed.job.id, resumed.job.bookmark, resumed.job.interrupted) == (1, "half", True)


def test_the_window() -> None:
    queue = new()
    queue.submit("check", {}, manual=True)
    queue.submit("compact", {}, manual=True, force=True)
    assert order(queue, NIGHT) == [2], "by hand too a job waits for the window, unless forced"
    queue.take(NOON + 11 * HOUR, NIGHT)
    assert queue.why_stop(NOON + 17 * HOUR, NIGHT) == ""
    assert queue.why_stop(NOON + 18 * HOUR, NIGHT) == "outside the window 22:00-06:00"
    queue.submit("check", {}, force=True)
    assert queue.why_stop(NOON + 18 * HOUR, NIGHT) == ""


def test_a_person_does_not_wait_for_a_scheduled_job() -> None:
    queue = new()
    queue.submit("check", {})
    queue.take(NOON, ALWAYS)
    queue.submit("expire", {})
    assert queue.why_stop(NOON, ALWAYS) == "", "a more important one waits"
    queue.submit("compact", {}, manual=True)
    assert "gives way" in queue.why_stop(NOON, ALWAYS)
    queue.end(NOON, "interrupted", "", resume=True)
    assert order(queue) == [3, 2, 1]


def every(text: str) -> Settings:
    return Settings(schedules={"compact": Schedule.parse(text)})


def test_what_was_missed_runs_once() -> None:
    queue = new()
    settings = every("every 1h")
    assert queue.submit_due(NOON, settings), "the first look sets the time"
    assert not queue.submit_due(NOON + HOUR - 1, settings)
    assert queue.submit_due(NOON + 5 * DAY, settings)
    assert not queue.submit_due(NOON + 5 * DAY + 1, settings)
    assert order(queue) == [1], "five days are one run"
    assert queue.state.kinds["compact"].next == NOON + 5 * DAY + HOUR
    for hour in range(1, 6):
        queue.submit_due(NOON + 5 * DAY + hour * HOUR, settings)
    assert [job.id for job in queue.state.queue] == [2], "what waits does not pile up"


def test_restarts_do_not_put_a_run_off() -> None:
    state = State()
    for minute in range(0, 61, 10):
        queue = new(state)
        queue.submit_due(NOON + minute * 60, every("every 1h"))
    assert [job.kind for job in queue.state.queue] == ["compact"]


def test_a_new_schedule_counts_from_now() -> None:
    queue = new()
    queue.submit_due(NOON, every("@monthly"))
    queue.submit_due(NOON + 20 * DAY, every("every 1d"))
    assert queue.state.queue == []
    assert queue.state.kinds["compact"].next == NOON + 21 * DAY
    queue.submit_due(NOON + 20 * DAY, every(""))
    assert queue.state.kinds["compact"].next is None


def test_a_clock_that_was_wrong() -> None:
    queue = new()
    queue.submit_due(NOON + 3650 * DAY, every("every 1d"))
    queue.submit_due(NOON, every("every 1d"))
    assert queue.state.kinds["compact"].next == NOON + DAY
    queue.submit_due(NOON + 3650 * DAY, every("every 1d"))
    assert order(queue) == [1]
    queue.submit_due(NOON + 1, every("every 1d"))
    assert queue.state.kinds["compact"].next == NOON + 1 + DAY


def test_a_service_that_died_under_a_job() -> None:
    state = State(next_id=8)
    state.running = Running(job=Job(id=7, kind="check", bookmark="half"), started=NOON)
    queue = new(state)
    (job,) = queue.state.queue
    assert (job.id, job.interrupted, job.crashes, job.bookmark) == (7, True, 1, "half")
    for _ in range(2):
        queue.take(NOON, ALWAYS)
        queue = new(queue.state)
    assert queue.state.queue == [], "three times is enough: it is the job that kills the service"
    assert queue.submit("check", {})[0].id == 8


def test_a_job_that_this_version_does_not_have() -> None:
    state = State(queue=[Job(id=1, kind="shred"), Job(id=2, kind="check")], kinds={"shred": KindState()})
    queue = new(state)
    assert [job.id for job in queue.state.queue] == [2]
    assert list(queue.state.kinds) == list(KINDS)


def test_success_is_remembered_apart_from_the_last_run() -> None:
    queue = new()
    for now, result in ((NOON, "ok"), (NOON + 1, "failed")):
        queue.submit("check", {})
        queue.take(now, ALWAYS)
        queue.end(now, result, result)
    kind = queue.state.kinds["check"]
    assert kind.last is not None
    assert (kind.last_success, kind.last.result) == (NOON, "failed")


def test_the_state_stays_small() -> None:
    queue = new()
    for number in range(100):
        queue.submit("check", {})
        queue.take(NOON, ALWAYS)
        queue.end(NOON, "ok", str(number))
    assert len(queue.state.history) == 20
    assert queue.state.history[-1].text == "99"
