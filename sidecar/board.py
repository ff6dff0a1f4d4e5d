"""The board: numbers in memory that several workers share, a row for each and one for their supervisor.

Made before the fork and inherited, so there is no file to find or to clean up, and what a killed worker had
counted stays. Each cell has one writer and is eight aligned bytes, which a reader gets whole; there are no
locks. A worker that is started again takes its row over and counts on, so a sum over rows never goes back.
"""

from __future__ import annotations

import enum
import mmap
from collections.abc import Iterable, MutableSequence, Sequence
from typing import cast

from blake3 import blake3

_CELL_BYTES = 8
_IDS = 1 << 16
"""places for queue ids; half a megabyte"""


class State(enum.IntEnum):
    """How a worker is."""

    ABSENT = 0
    STARTING = 1
    READY = 2
    STOPPING = 3


class Cell(enum.IntEnum):
    """What stands in a row before the metrics."""

    PID = 0
    STATE = 1
    HEARTBEAT = 2
    """when the worker's loop last went round, by the monotonic clock"""
    RELOADS = 3
    """how often it has taken up, or refused, a changed configuration"""
    FAILED = 4
    """1: its store takes no more"""
    LATENCY = 5
    """how long making mail durable took of late, in seconds"""
    ROLL = 6
    """the number of the last request to end the open packs (supervisor's row), or that a worker has met"""
    ROLL_ALL = 7
    """whether that request is for packs with little in them, too (supervisor's row)"""
    ENDED_CPU = 8
    """CPU seconds of the processes that had this row before and have ended"""
    STARTED = 9
    """1 once all workers have been ready (supervisor's row)"""


class Board:
    """Rows 1 to `workers` are theirs, row 0 is the supervisor's; each has `size` cells for metrics."""

    def __init__(self, workers: int, size: int) -> None:
        self.workers = workers
        self._row_cells = len(Cell) + size
        cells = (workers + 1) * self._row_cells
        # Anonymous and shared: the same memory in every process that is forked from now on.
        self._memory = mmap.mmap(-1, (cells + _IDS) * _CELL_BYTES)
        whole = memoryview(self._memory)
        self._cells = whole[: cells * _CELL_BYTES].cast("d")
        self._ids = whole[cells * _CELL_BYTES :].cast("Q")

    def get(self, row: int, cell: Cell) -> float:
        """One number of a row."""
        return self._cells[row * self._row_cells + cell]

    def put(self, row: int, cell: Cell, value: float) -> None:
        """Write one number of one's own row."""
        self._cells[row * self._row_cells + cell] = value

    def numbers(self, row: int) -> MutableSequence[float]:
        """The metrics of a row."""
        begin = row * self._row_cells
        cells = self._cells[begin + len(Cell) : begin + self._row_cells]
        return cast("MutableSequence[float]", cells)  # a memoryview is one in all that is used of it

    def all_numbers(self) -> list[Sequence[float]]:
        """The metrics of every row."""
        return [self.numbers(row) for row in range(self.workers + 1)]

    def others(self, row: int) -> list[int]:
        """The workers besides `row` that are ready."""
        return [n for n in range(1, self.workers + 1) if n != row and self.get(n, Cell.STATE) == State.READY]

    def left(self, row: int, gauges: Iterable[int], cpu_s: float) -> None:
        """A worker's process has ended, having used so much CPU: what was true of it is so no more."""
        numbers = self.numbers(row)
        for at in gauges:
            numbers[at] = 0.0
        for cell in (Cell.STATE, Cell.FAILED, Cell.LATENCY):
            self.put(row, cell, 0)
        self.put(row, Cell.ENDED_CPU, self.get(row, Cell.ENDED_CPU) + cpu_s)
        self.put(row, Cell.PID, 0)

    # -- queue ids that some worker has been given mail under

    def note_id(self, queue_id: bytes) -> None:
        """Some mail comes under this queue id."""
        name = _name(queue_id)
        self._ids[name % _IDS] = name

    def has_id(self, queue_id: bytes) -> bool:
        """Whether mail came under this queue id not long ago. Another id of the same name would be one of
        2**64; an id is forgotten when another takes its place, after about 65,000."""
        name = _name(queue_id)
        return self._ids[name % _IDS] == name


def _name(queue_id: bytes) -> int:
    return int.from_bytes(blake3(queue_id).digest(8), "little")
