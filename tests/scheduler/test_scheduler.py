"""The scheduler with real threads and files: runs, stops, goes on, and outlives what befalls it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.metrics import Metrics
from sidecar.scheduler import control
from sidecar.scheduler import scheduler as scheduler_module
from sidecar.scheduler.channel import Request, new_request_id, send, take_lock
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.control import NoAnswerError, NotServedError, overview
from sidecar.scheduler.kinds import JobKind, Settings
from sidecar.scheduler.queue import JobRefusedError
from sidecar.scheduler.schedule import Schedule
from sidecar.scheduler.scheduler import Scheduler
from sidecar.scheduler.state import Job, KindState, Running, State, load_state, save_state
from sidecar.scheduler.watch import job_events, watch_jobs
from sidecar.scheduler.window import Window


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


class Steps:
    """A job of many small steps that goes on where it stopped; done when `total` steps are."""

    def __init__(self, total: int = 1_000_000) -> None:
        self.total = total
        self.done: list[int] = []
        self.threads: set[str] = set()
        self.contexts: list[JobContext] = []

    def __call__(self, context: JobContext) -> str:
        self.contexts.append(context)
        self.threads.add(threading.current_thread().name)
        number = int(context.bookmark or 0) - 1
        while (number := number + 1) < self.total:
            context.yield_()
            self.done.append(number)
            context.bookmark = str(number + 1)
            context.progress(number + 1, self.total, "steps")
            time.sleep(0.001)
        return f"{self.total} steps"


class Room:
    """A scheduler in a directory, which may be ended and begun anew."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.check = Steps()
        self.compact = Steps(3)
        self.expire: Callable[[JobContext], str] = lambda _: "nothing to expire"
        self.settings = Settings(nice=0, io_class="none")
        self.latency = 0.0
        self.metrics = Metrics("0")
        self.scheduler: Scheduler | None = None

    def start(self) -> Scheduler:
        kinds = {
            "compact": JobKind(self.compact, 20),
            "expire": JobKind(lambda context: self.expire(context), 10),
            "check": JobKind(self.check, 30, frozenset({"read_data"})),
        }
        self.scheduler = Scheduler(
            self.directory, kinds, self.settings,
            latency_s=lambda: self.latency, events=job_events(self.metrics), look_s=0.02,
        )  # fmt: skip
        watch_jobs(self.metrics, self.scheduler)
        self.scheduler.start()
        until(lambda: overview(self.directory).served)
        until(lambda: set(self.state.kinds) == set(kinds))
        return self.scheduler

    def stop(self) -> None:
        if self.scheduler:
            assert self.scheduler.stop(60)

    @property
    def state(self) -> State:
        return load_state(self.directory)

    def result(self, kind: str) -> tuple[str, str]:
        last = self.state.kinds[kind].last
        return (last.result, last.text) if last else ("", "")


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path / "jobs")
    yield room
    room.stop()


def test_a_job_runs_in_a_thread_of_its_own(room: Room) -> None:
    scheduler = room.start()
    threads = set(threading.enumerate())
    assert scheduler.submit("compact") == 1
    until(lambda: room.result("compact") == ("ok", "3 steps"))
    assert room.compact.threads == {"job"}
    until(lambda: set(threading.enumerate()) <= threads)
    assert room.metrics.value("job_runs_total", "compact", "ok") == 1
    assert room.metrics.value("job_last_success_timestamp_seconds", "compact") > 1_700_000_000
    assert room.metrics.value("job_last_duration_seconds", "compact") > 0
    assert room.metrics.value("jobs_queued") == 0


def test_what_is_due_runs_by_itself_and_once(room: Room) -> None:
    save_old = State(kinds={"compact": KindState(schedule="every 1h", counted_from=time.time() - 86_400)})
    save_old.kinds["compact"].next = time.time() - 80_000
    room.directory.mkdir()
    save_state(room.directory, save_old)
    room.settings = replace(room.settings, schedules={"compact": Schedule.parse("every 1h")})
    room.start()
    until(lambda: room.result("compact")[0] == "ok")
    time.sleep(0.1)
    assert len(room.state.history) == 1
    due = room.state.kinds["compact"].next
    assert due is not None
    assert due == pytest.approx(time.time() + 3600, abs=60)


def test_a_fault_is_told_and_the_next_job_runs(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: JobContext) -> str:
        raise ZeroDivisionError("by nought")

    room.expire = fail
    scheduler = room.start()
    scheduler.submit("expire")
    until(lambda: room.result("expire") == ("failed", "by nought"))
    assert "ZeroDivisionError" in caplog.text, "a bug keeps its traceback"
    caplog.clear()

    def leave(_: JobContext) -> str:
        raise SystemExit

    room.expire = leave
    scheduler.submit("expire")
    until(lambda: room.result("expire") == ("failed", "SystemExit"))
    scheduler.submit("compact")
    until(lambda: room.result("compact")[0] == "ok")
    assert room.metrics.value("job_runs_total", "expire", "failed") == 2
    assert room.metrics.value("job_last_success_timestamp_seconds", "expire") == 0


def test_pause_and_resume_while_it_runs(room: Room) -> None:
    room.start()
    assert control.run(room.directory, "check", {}).job == 1
    until(lambda: len(room.check.done) > 5)
    until(lambda: (far := overview(room.directory).far) is not None and far.total == 1_000_000)
    assert control.pause(room.directory, "check", paused=True) == "paused: check"
    until(lambda: room.state.running is None)
    assert room.metrics.value("job_paused", "check") == 1
    assert room.metrics.value("job_running", "check") == 0
    assert room.metrics.value("jobs_queued") == 1
    stood = len(room.check.done)
    assert "is paused" in control.run(room.directory, "check", {}).text
    control.run(room.directory, "compact", {})
    until(lambda: room.result("compact")[0] == "ok")
    assert len(room.check.done) == stood
    room.check.total = stood + 5
    control.pause(room.directory, "all", paused=False)
    until(lambda: room.result("check")[0] == "ok")
    assert room.check.done == list(range(stood + 5)), "nothing is done twice, nothing is left out"
    assert room.metrics.value("job_runs_total", "check", "interrupted") == 1


def test_cancel(room: Room) -> None:
    room.start()
    control.run(room.directory, "check", {})
    control.run(room.directory, "check", {"read_data": "yes"})
    until(lambda: room.check.done)
    assert control.cancel(room.directory, "check").text == "2 cancelled"
    until(lambda: room.result("check") == ("interrupted", "cancelled"))
    assert (room.state.queue, room.state.running) == ([], None)
    with pytest.raises(JobRefusedError, match="no check runs or waits"):
        control.cancel(room.directory, "check")


def test_the_same_work_asked_for_twice(room: Room) -> None:
    room.start()
    assert control.run(room.directory, "check", {}).job == 1
    until(lambda: room.check.done)
    again = control.run(room.directory, "check", {}, again=True)
    assert again.job == 1
    assert "asked for already" in again.text
    room.check.total = len(room.check.done) + 20
    until(lambda: [run.id for run in room.state.history] == [1, 1])
    assert len(room.check.contexts) == 2
    with pytest.raises(JobRefusedError, match="there is no job shred"):
        control.run(room.directory, "shred", {})


def test_outside_the_window_nothing_runs_unless_forced(room: Room) -> None:
    hour = time.localtime().tm_hour
    elsewhen = Window.parse(f"{(hour + 6) % 24:02}:00-{(hour + 8) % 24:02}:00")
    room.settings = replace(room.settings, window=elsewhen)
    scheduler = room.start()
    assert "waits for the window" in control.run(room.directory, "compact", {}).text
    time.sleep(0.2)
    assert room.compact.done == []
    assert control.run(room.directory, "compact", {}, force=True).job == 1
    until(lambda: room.result("compact")[0] == "ok")
    scheduler.settings = replace(room.settings, window=Window())
    scheduler.submit("check")
    until(lambda: room.check.done)
    scheduler.settings = room.settings
    until(lambda: room.result("check") == ("interrupted", f"outside the window {elsewhen.text}"))
    assert [job.id for job in room.state.queue] == [2]
    until(lambda: room.state.window == elsewhen.text)


def test_it_stands_back_while_capture_is_slow(room: Room) -> None:
    scheduler = room.start()
    scheduler.submit("check")
    until(lambda: room.check.done)
    room.latency = 0.5
    until(lambda: (far := overview(room.directory).far) is not None and far.waiting == "capture is busy")
    stood = len(room.check.done)
    time.sleep(0.2)
    assert len(room.check.done) == stood
    room.latency = 0.0
    until(lambda: len(room.check.done) > stood)
    assert 0.05 < room.metrics.value("job_backoff_seconds_total") < 120


def test_the_rate_and_the_threads_come_from_the_settings(room: Room) -> None:
    room.settings = replace(room.settings, threads=3, io_rate_bytes=1000)

    def spend(context: JobContext) -> str:
        context.spent(700)
        context.yield_()
        return f"{context.threads} threads, {context.arguments}"

    room.expire = spend
    room.start().submit("expire")
    until(lambda: room.result("expire") == ("ok", "3 threads, {}"))
    last = room.state.kinds["expire"].last
    assert last is not None
    assert last.ended - last.started >= 0.4


def test_a_stop_interrupts_and_a_start_goes_on(room: Room) -> None:
    scheduler = room.start()
    scheduler.submit("check", {"read_data": "yes"})
    scheduler.submit("check")
    until(lambda: len(room.check.done) > 5)
    room.stop()
    assert room.result("check") == ("interrupted", "the service stops")
    first, second = room.state.queue
    assert (first.id, first.bookmark, first.interrupted, first.crashes) == (
        1,
        str(len(room.check.done)),
        True,
        0,
    )
    assert second.id == 2
    with pytest.raises(NotServedError):
        control.run(room.directory, "check", {})
    done = len(room.check.done)
    room.check.total = done + 10
    room.start()
    until(lambda: len(room.state.history) == 3)
    assert room.check.done == [*range(done + 10), *range(done + 10)]
    assert [(run.id, run.result) for run in room.state.history] == [(1, "interrupted"), (1, "ok"), (2, "ok")]


def test_a_job_that_the_service_died_under_is_resumed(room: Room) -> None:
    room.directory.mkdir()
    job = Job(id=4, kind="compact", bookmark="2")
    save_state(room.directory, State(next_id=5, running=Running(job=job, started=1.0)))
    room.start()
    until(lambda: room.result("compact")[0] == "ok")
    assert room.compact.done == [2]


def test_what_runs_is_written_down_before_it_begins(room: Room) -> None:
    seen: list[State] = []

    def look(_: JobContext) -> str:
        seen.append(room.state)
        return ""

    room.expire = look
    room.start().submit("expire")
    until(lambda: seen)
    assert seen[0].running is not None
    assert seen[0].running.job.kind == "expire"


def test_a_damaged_state_is_no_obstacle(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    room.directory.mkdir()
    (room.directory / "state.json").write_bytes(b"\0" * 500)
    room.start().submit("compact")
    until(lambda: room.result("compact")[0] == "ok")
    assert "put aside" in caplog.text
    assert (room.directory / "state.json.damaged").exists()


def test_a_full_disk_is_outlived(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = room.start()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler_module, "save_state", full)
        patch.setattr(scheduler_module, "save_progress", full)
        scheduler.submit("compact")
        until(lambda: room.metrics.value("job_runs_total", "compact", "ok") == 1)
        request = Request(id=new_request_id(), action="pause", kind="check")
        send(room.directory, request)
        until(lambda: room.metrics.value("job_paused", "check") == 1)
        assert room.state.answers == []
        assert list((room.directory / "requests").iterdir()) != [], "not durable, so not removed"
    assert caplog.text.count("cannot be saved") == 1
    until(lambda: list((room.directory / "requests").iterdir()) == [])
    assert [answer.request for answer in room.state.answers] == [request.id]
    assert room.result("compact")[0] == "ok"


def test_a_request_is_obeyed_once(room: Room) -> None:
    """The service died after it had answered and before it had removed the request."""
    room.start()
    request = Request(id=new_request_id(), action="run", kind="compact")
    for _ in range(2):
        send(room.directory, request)
        until(lambda: list((room.directory / "requests").iterdir()) == [])
    until(lambda: room.state.history)
    assert room.state.next_id == 2
    send(room.directory, Request(id=new_request_id(), action="dance", kind="compact"))
    until(lambda: len(room.state.answers) == 2)
    assert room.state.answers[-1].refused


def test_a_job_that_does_not_stop(room: Room) -> None:
    let_go = threading.Event()

    def deaf(_: JobContext) -> str:
        let_go.wait(30)
        return "at last"

    room.expire = deaf
    scheduler = room.start()
    scheduler.submit("expire")
    until(lambda: room.metrics.value("job_running", "expire") == 1)
    assert not scheduler.stop(0.2)
    let_go.set()
    room.stop()
    assert room.result("expire") == ("ok", "at last"), "it was never told, so it is done"


def test_who_asks_right_after_the_start_is_heard(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the thread may come to its first look much later."""
    late = threading.Event()
    run = Scheduler._run

    def run_later(self: Scheduler) -> None:
        assert late.wait(60)
        run(self)

    monkeypatch.setattr(Scheduler, "_run", run_later)
    scheduler = Scheduler(room.directory, {"compact": JobKind(room.compact)}, room.settings, look_s=0.02)
    scheduler.start()
    threading.Timer(0.2, late.set).start()
    assert control.run(room.directory, "compact", {}).job == 1
    until(lambda: len(room.compact.done) == 3)
    assert scheduler.stop(60)


def test_two_services_on_one_store(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    room.directory.mkdir()
    held = take_lock(room.directory)
    assert held is not None
    other = Scheduler(room.directory, {"compact": JobKind(room.compact)}, room.settings, look_s=0.02)
    other.start()
    other.submit("compact")
    until(lambda: "another process runs the jobs" in caplog.text)
    assert room.compact.done == []
    held.release()
    until(lambda: len(room.compact.done) == 3)
    assert other.stop(60)


def test_pause_without_a_service(room: Room) -> None:
    with pytest.raises(JobRefusedError, match="no jobs yet"):
        control.pause(room.directory, "check", paused=True)
    assert not room.directory.exists()
    room.start()
    room.stop()
    assert control.pause(room.directory, "check", paused=True) == "paused: check"
    with pytest.raises(JobRefusedError, match="there is no job shred"):
        control.pause(room.directory, "shred", paused=True)
    room.start().submit("check")
    time.sleep(0.2)
    assert room.check.done == []
    assert control.pause(room.directory, "all", paused=False) == "resumed: compact, expire, check"
    until(lambda: room.check.done)


def test_nobody_answers(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.3)
    room.directory.mkdir()
    held = take_lock(room.directory)
    assert held is not None
    with pytest.raises(NoAnswerError):
        control.run(room.directory, "check", {})
    assert list((room.directory / "requests").iterdir()) == [], "what was not answered is not obeyed later"
    held.release()


def test_wait(room: Room) -> None:
    room.start()
    answer = control.run(room.directory, "compact", {})
    ended = control.wait(room.directory, answer.job, lambda _: None)
    assert ended is not None
    assert (ended.id, ended.result) == (1, "ok")
    answer = control.run(room.directory, "check", {})
    threading.Timer(0.3, room.stop).start()
    with pytest.raises(NotServedError, match="ended before job 2"):
        control.wait(room.directory, answer.job, lambda _: None)


def test_idle_is_one_thread_and_no_writing(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    before = set(threading.enumerate())
    room.start()
    assert len(set(threading.enumerate()) - before) == 1
    until(lambda: (room.directory / "state.json").exists())
    time.sleep(0.1)
    written = (room.directory / "state.json").stat().st_mtime_ns
    time.sleep(0.3)
    assert (room.directory / "state.json").stat().st_mtime_ns == written
    assert (room.directory / "state.json").stat().st_size < 2000
