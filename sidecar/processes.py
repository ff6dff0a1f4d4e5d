"""What the processes of a service with several workers use, under the names that one process has.

CPU time, memory and open files are sums over the supervisor and its workers; a process that ended leaves its
CPU time behind, so that the sum goes on. The least of the limits counts, and the supervisor's start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.board import Board, Cell

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Use(NamedTuple):
    cpu_s: float
    resident: int
    virtual: int
    files: int
    most_files: float
    started_s: float


class ProcessesCollector(Collector):
    """Reads /proc for every process on the board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._booted_s = _booted_s()
        self._cpu_s = 0.0

    def collect(self) -> Iterator[Metric]:
        """The `process_*` metrics."""
        rows = range(self._board.workers + 1)
        ended_s = sum(self._board.get(row, Cell.ENDED_CPU) for row in rows)
        uses = [use for row in rows if (use := self._use(int(self._board.get(row, Cell.PID))))]
        # Between a process's end and the note of what it had used, neither tells: it must not go back.
        self._cpu_s = max(self._cpu_s, ended_s + sum(use.cpu_s for use in uses))
        gauges = {
            "virtual_memory_bytes": ("Virtual memory size in bytes.", sum(u.virtual for u in uses)),
            "resident_memory_bytes": ("Resident memory size in bytes.", sum(u.resident for u in uses)),
            "start_time_seconds": (
                "Start time of the process since unix epoch in seconds.",
                min((u.started_s for u in uses), default=0.0),
            ),
            "open_fds": ("Number of open file descriptors.", sum(u.files for u in uses)),
            "max_fds": (
                "Maximum number of open file descriptors.", min((u.most_files for u in uses), default=0.0),
            ),
        }  # fmt: skip
        yield CounterMetricFamily(
            "process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", self._cpu_s
        )
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"process_{name}", text, value)

    def _use(self, pid: int) -> _Use | None:
        """None for a process that is not there, or no more."""
        if pid == 0:
            return None
        there = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (there / "stat").read_text().rpartition(")")[2].split()
            limits = (there / "limits").read_text()
            most = limits.partition("Max open files")[2].split()[0]
            return _Use(
                (int(fields[11]) + int(fields[12])) / _TICKS,
                int(fields[21]) * _PAGE,
                int(fields[20]),
                sum(1 for _ in (there / "fd").iterdir()),
                float("inf") if most == "unlimited" else float(most),
                self._booted_s + int(fields[19]) / _TICKS,
            )
        return None


def _booted_s() -> float:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/stat").read_text().splitlines():
            if line.startswith("btime "):
                return float(line.split()[1])
    return 0.0
