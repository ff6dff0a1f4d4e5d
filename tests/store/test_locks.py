"""One at a time has a lock; that it goes with its process is proven in tests/scheduler/test_state.py."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from store.locks import is_taken, take_lock, wait_for_lock


def test_one_has_it_until_it_is_let_go_of(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_taken(path)
    assert not path.exists(), "who only looks makes nothing"
    lock = take_lock(path)
    assert lock
    assert take_lock(path) is None
    assert is_taken(path)
    with lock:
        assert lock.held
    assert not lock.held
    lock.release()
    assert not is_taken(path)


def test_who_waits_has_it_next(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order: list[str] = []

    def wait() -> None:
        with wait_for_lock(path):
            order.append("second")

    with wait_for_lock(path):
        second = threading.Thread(target=wait)
        second.start()
        order.append("first")
    second.join()
    assert order == ["first", "second"]


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (tmp_path / "lock").symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        take_lock(tmp_path / "lock")
    assert not other.exists()
