"""`mailkeep serve` with several workers: who they are, and one of them killed."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from tests.support.serving import Serving

READY_TIMEOUT_S = 60.0


class Workers(Serving):
    """`Serving` whose process is a supervisor."""

    def __init__(self, directory: Path, downstream: str, count: int = 2, extra: str = "") -> None:
        super().__init__(directory, downstream, extra)
        self.count = count
        self.configure(lmtp={"workers": count})

    def start(self) -> float:
        """Returns the seconds until all were ready."""
        began = time.monotonic()
        super().start()
        self.wait_ready()
        return time.monotonic() - began

    def pids(self) -> list[int]:
        """The workers' processes, the oldest first."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return sorted(int(pid) for pid in children.read_text().split())

    def writer(self, stream: str) -> int:
        """Of the worker that writes a stream."""
        lock = (self.store / "streams" / stream / "lock").stat().st_ino
        end = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < end:
            # What is locked and unlocked while it is read may hide another from us: then look again.
            locks = Path("/proc/locks").read_text()
            holders = re.findall(rf"FLOCK +ADVISORY +WRITE (\d+) [0-9a-f]+:[0-9a-f]+:{lock} ", locks)
            if mine := set(self.pids()) & {int(pid) for pid in holders}:
                return mine.pop()
        raise AssertionError(f"nobody writes {stream}")

    def kill_worker(self, stream: str) -> int:
        """SIGKILL to one worker, which the supervisor has noticed at return; which process it was."""
        pid = self.writer(stream)
        known = self._killed()
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + READY_TIMEOUT_S
        while self._killed() == known:
            assert time.monotonic() < end, "the supervisor does not notice: " + self.tail()
            time.sleep(0.005)
        return pid

    def _killed(self) -> int:
        return self.log_text().count("has ended by signal 9")

    def metric(self, name: str) -> float:
        """One sample. Raises OSError while nobody answers."""
        return self.metrics()[name.removeprefix("mailkeep_")]

    def wait_ready(self) -> None:
        """Until all workers are there."""
        end = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < end:
            try:
                if self.metric("mailkeep_workers_running") == self.count:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError("not all workers are ready: " + self.tail())
