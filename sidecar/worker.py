"""One of several processes that take mail: which it is, and what it knows of the others.

All of it is inherited from the supervisor over the fork. Who serves alone has no `Worker` and none of this.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.board import Board, Cell, State
from sidecar.config import Config
from sidecar.metric_table import PLACES
from store.neighbours import Neighbours

_ROLL_TIMEOUT_S = 30.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The worker `number`, from 1 on."""

    number: int
    board: Board
    neighbours: Neighbours
    config: Config
    """as it was at the start: what needs a restart is the same for all workers"""
    latest: Config
    """as it was at the last reload"""
    listeners: tuple[socket.socket, ...]
    """of the LMTP front; () where this worker has none"""
    milter: bool
    """whether it takes mail from the milter's socket"""
    lifeline: int
    """a file descriptor that comes to its end when the supervisor does"""

    @property
    def leads(self) -> bool:
        """Whether it does what only one may do: background jobs, the spool, and the HTTP endpoint."""
        return self.number == 1

    def begin(self) -> None:
        """The process is there."""
        self.board.put(self.number, Cell.PID, os.getpid())
        self.tell(State.STARTING)
        self.board.put(self.number, Cell.ROLL, self.board.get(0, Cell.ROLL))

    def tell(self, state: State) -> None:
        """How we are."""
        self.beat(0.0)
        self.board.put(self.number, Cell.STATE, state)
        self.board.numbers(self.number)[PLACES["workers_running",]] = state == State.READY

    def beat(self, latency_s: float) -> None:
        """We go round; making mail durable takes so long of late."""
        self.board.put(self.number, Cell.HEARTBEAT, time.monotonic())
        self.board.put(self.number, Cell.LATENCY, latency_s)

    def failed(self) -> None:
        """Our store takes no more, and we go on without it."""
        self.board.put(self.number, Cell.FAILED, 1)

    def generation(self) -> float:
        """Of the configuration: which change we are told of. To be asked before it is read."""
        return self.board.get(0, Cell.RELOADS)

    def reloaded(self, generation: float) -> None:
        """A changed configuration is taken up, or refused."""
        self.board.put(self.number, Cell.RELOADS, generation)

    # -- the others

    def connections(self) -> list[int]:
        """LMTP connections of each of the others that are ready."""
        at = PLACES["connections", "lmtp"]
        return [int(self.board.numbers(row)[at]) for row in self.board.others(self.number)]

    def latency_s(self) -> float:
        """How long making mail durable took the slowest of the others."""
        return max((self.board.get(n, Cell.LATENCY) for n in self.board.others(self.number)), default=0.0)

    def not_ready(self) -> list[str]:
        """Why mail is not taken as it should be, as far as the others are concerned."""
        if not self.board.get(0, Cell.STARTED):
            return ["starting: not all workers are ready"]
        rows = range(1, self.board.workers + 1)
        return [
            f"worker {row}: the store has failed"
            for row in rows
            if row != self.number and self.board.get(row, Cell.FAILED)
        ]

    def other_streams(self) -> list[str]:
        """The streams that the others write."""
        rows = range(1, self.board.workers + 1)
        return [self.config.store.stream_of(row) for row in rows if row != self.number]

    def note_id(self, queue_id: bytes) -> None:
        """We have been given mail under this queue id."""
        self.board.note_id(queue_id)

    def has_id(self, queue_id: bytes) -> bool:
        """Whether one of us has been given mail under this queue id, not long ago."""
        return self.board.has_id(queue_id)

    # -- open packs

    def ask_to_roll(self, *, everything: bool) -> None:
        """Let the others end their open packs, so that they may be compacted, and wait until they have."""
        board = self.board
        number = board.get(0, Cell.ROLL) + 1
        board.put(0, Cell.ROLL_ALL, everything)
        board.put(0, Cell.ROLL, number)
        end = time.monotonic() + _ROLL_TIMEOUT_S
        while time.monotonic() < end and any(
            board.get(row, Cell.ROLL) < number for row in board.others(self.number)
        ):
            time.sleep(_LOOK_S)

    def asked_to_roll(self) -> Callable[[], None] | None:
        """None, or what to call once the open pack has been ended as `roll_all` says."""
        number = self.board.get(0, Cell.ROLL)
        if self.board.get(self.number, Cell.ROLL) >= number:
            return None
        return lambda: self.board.put(self.number, Cell.ROLL, number)

    @property
    def roll_all(self) -> bool:
        """Whether a pack with little in it is to be ended as well."""
        return bool(self.board.get(0, Cell.ROLL_ALL))
