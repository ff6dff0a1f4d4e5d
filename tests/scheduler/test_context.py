"""What a job has in hand: it stands back, pays for its bytes, and stops when told."""

from __future__ import annotations

import os
import threading
import time

import pytest

from sidecar.demo.ports import wait_until
from sidecar.scheduler import context as context_module
from sidecar.scheduler.context import JobContext, JobInterrupted, Progress
from sidecar.scheduler.latency import LatencyMeter
from sidecar.scheduler.niceness import stand_back


def test_it_waits_while_capture_is_slow() -> None:
    latency = [1.0]
    waited: list[float] = []
    context = JobContext(
        {}, busy_latency_s=lambda: 0.2, latency_s=lambda: latency[0], backed_off=waited.append
    )
    threading.Timer(0.4, lambda: latency.__setitem__(0, 0.1)).start()
    began = time.monotonic()
    context.yield_()
    took = time.monotonic() - began
    assert took >= 0.35
    assert waited == [pytest.approx(took, abs=0.3)]
    began = time.process_time()
    for _ in range(1000):
        context.yield_()
    assert time.process_time() - began < 0.5, "costs next to nothing where all is quiet"
    assert len(waited) == 1


def test_it_is_not_starved_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "BACKOFF_CAP_S", 0.3)
    context = JobContext({}, busy_latency_s=lambda: 0.2, latency_s=lambda: 9.0)
    began = time.monotonic()
    context.yield_()
    context.yield_()
    assert 0.6 <= time.monotonic() - began < 60


def test_it_says_why_it_waits() -> None:
    context = JobContext({}, busy_latency_s=lambda: 0.2, latency_s=lambda: 9.0)
    context.progress(3, 10, "packs")

    def work() -> None:
        with pytest.raises(JobInterrupted):
            context.yield_()

    thread = threading.Thread(target=work)
    thread.start()
    assert wait_until(lambda: context.how_far().waiting == "capture is busy", timeout_s=60)
    assert context.how_far() == Progress(3, 10, "packs", "capture is busy")
    context.stop("paused")
    thread.join(context_module.BACKOFF_CAP_S / 2)
    assert not thread.is_alive(), "a stop ends the waiting"
    assert context.how_far() == Progress(3, 10, "packs")


def test_bytes_cost_time() -> None:
    context = JobContext({}, io_rate_bytes=lambda: 1_000_000)
    context.yield_()
    began = time.monotonic()
    for _ in range(10):
        context.spent(100_000)
        context.yield_()
    assert 0.7 <= time.monotonic() - began < 10, "a megabyte a second, a quarter of it in advance"


def test_idle_time_is_not_saved_up() -> None:
    context = JobContext({}, io_rate_bytes=lambda: 1_000_000)
    context.spent(1)
    context.yield_()
    time.sleep(1)
    began = time.monotonic()
    context.spent(750_000)
    context.yield_()
    assert time.monotonic() - began >= 0.4


def test_a_rate_that_is_raised_meanwhile() -> None:
    rate = [1000]
    context = JobContext({}, io_rate_bytes=lambda: rate[0])
    context.spent(1_000_000)
    threading.Timer(0.2, lambda: rate.__setitem__(0, 0)).start()
    began = time.monotonic()
    context.yield_()
    assert time.monotonic() - began < 60, "at the first rate it would be a quarter of an hour"


def test_it_stops_with_a_reason() -> None:
    context = JobContext({})
    assert not context.stop_requested()
    context.stop("paused")
    context.stop("the service stops")
    assert not context.told_to_stop
    with pytest.raises(JobInterrupted, match="paused"):
        context.yield_()
    assert context.told_to_stop
    assert context.stop_requested()


def test_the_slowest_of_the_last_seconds() -> None:
    now = [100.0]
    meter = LatencyMeter(lambda: now[0])
    assert meter() == 0
    meter.note(0.5)
    meter.note(0.01)
    assert meter() == 0.5
    now[0] += 2.5
    assert meter() == 0.5
    meter.note(0.02)
    assert meter() == 0.5, "still within four seconds"
    now[0] += 2.0
    assert meter() == 0.02
    now[0] += 2.0
    assert meter() == 0, "nothing comes in: nobody is slow"
    meter.note(0.3)
    assert meter() == 0.3
    now[0] += 10.0
    meter.note(0.04)
    assert meter() == 0.04, "what came before the silence is forgotten"


def priorities() -> tuple[int, int]:
    """This thread's niceness and I/O priority, as the kernel has them."""
    import ctypes

    number = {"x86_64": 252, "aarch64": 31}[os.uname().machine]
    thread = threading.get_native_id()
    return os.getpriority(os.PRIO_PROCESS, thread), ctypes.CDLL(None).syscall(number, 1, thread)


def in_a_thread(nice: int, io_class: str, then_nice: int = 0) -> tuple[int, int]:
    seen = []

    def run() -> None:
        stand_back(nice, io_class)
        stand_back(then_nice, "none")
        inner = threading.Thread(target=lambda: seen.append(priorities()))
        inner.start()
        inner.join()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return seen[0]


@pytest.mark.skipif(
    os.uname().machine not in {"x86_64", "aarch64"}, reason="NOT TESTED: numbers not known here"
)
def test_a_thread_and_its_own_stand_back_and_no_other() -> None:
    before = priorities()
    nice = min(before[0] + 5, 19)
    assert in_a_thread(nice, "idle") == (nice, 3 << 13)
    assert in_a_thread(nice, "best-effort") == (nice, (2 << 13) | 7)
    assert in_a_thread(0, "none") == before, "never less nice than the service"
    assert in_a_thread(nice, "none", 1) == (nice, before[1])
    assert priorities() == before


def test_what_cannot_be_set_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr("platform.machine", lambda: "vax")
    stand_back(19, "idle")
    assert "niceness cannot be set" in caplog.text
