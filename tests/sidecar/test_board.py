"""What several workers count comes to one sum, which never goes back."""

from __future__ import annotations

import os

from sidecar.board import Board, Cell, State
from sidecar.metric_table import PLACES, SIZE, passing
from sidecar.metrics import Metrics


def series(metrics: Metrics) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in metrics.render().decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("mailkeep_"): float(value) for name, _, value in lines}


def test_each_counts_in_its_row_and_whoever_is_asked_adds_up() -> None:
    board = Board(2, SIZE)
    one, two = Metrics("1", board, 1), Metrics("1", board, 2)
    for metrics, size in ((one, 1000), (two, 500)):
        metrics.connection_opened("lmtp")
        metrics.message_captured("lmtp", size, size, 0)
        metrics.group_committed(1, 0.003, size)
    two.watch("index_lag_commits", lambda: 7)
    two.publish()
    one.watch("store_bytes", lambda: 12345)
    found = series(one)
    assert found['captured_messages_total{leg="lmtp"}'] == 2
    assert found['received_bytes_total{leg="lmtp"}'] == 1500
    assert found['connections{leg="lmtp"}'] == 2
    assert found["commit_seconds_count"] == 2
    assert found["commit_seconds_sum"] == 0.006
    assert found['commit_seconds_bucket{le="0.005"}'] == 2
    assert found["index_lag_commits"] == 7
    assert found["store_bytes"] == 12345
    assert found["last_commit_timestamp_seconds"] == two.value("last_commit_timestamp_seconds")
    assert found['build_info{version="1"}'] == 1


def test_a_worker_that_is_gone_leaves_its_counters_and_nothing_else() -> None:
    board = Board(1, SIZE)
    gone = Metrics("1", board, 1)
    gone.connection_opened("lmtp")
    gone.message_captured("lmtp", 1000, 1000, 0)
    board.put(1, Cell.STATE, State.READY)
    board.left(1, passing(), 1.5)
    after = Metrics("1", board, 1)
    after.message_captured("lmtp", 1000, 1000, 0)
    found = series(after)
    assert found['captured_messages_total{leg="lmtp"}'] == 2
    assert found['connections{leg="lmtp"}'] == 0
    assert found["process_cpu_seconds_total"] == 1.5
    assert board.get(1, Cell.STATE) == State.ABSENT


def test_processes_are_added_up() -> None:
    board = Board(1, SIZE)
    board.put(0, Cell.PID, os.getpid())
    once = series(Metrics("1", board))
    board.put(1, Cell.PID, os.getpid())
    twice = series(Metrics("1", board))
    assert once["process_resident_memory_bytes"] > 1e6
    assert 1.5 < twice["process_resident_memory_bytes"] / once["process_resident_memory_bytes"] < 2.5
    assert twice["process_start_time_seconds"] == once["process_start_time_seconds"] > 1.6e9
    assert twice["process_max_fds"] == once["process_max_fds"]


def test_it_is_shared_over_a_fork() -> None:
    board = Board(1, SIZE)
    pid = os.fork()
    if pid == 0:
        board.numbers(1)[PLACES["written_bytes_total",]] = 42.0
        board.note_id(b"4Qx")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert board.numbers(1)[PLACES["written_bytes_total",]] == 42.0
    assert board.has_id(b"4Qx")
    assert not board.has_id(b"4Qy")
