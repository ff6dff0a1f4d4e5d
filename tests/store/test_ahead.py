"""What is asked ahead, and what is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from store.ahead import Ahead


@pytest.fixture
def ahead() -> Iterator[Ahead]:
    made = Ahead()
    yield made
    made.close()


class Asked:
    """Answers that take their time, and how many were asked for at once."""

    def __init__(self, slow_s: float, unlucky: int | None = None) -> None:
        self._slow_s = slow_s
        self._unlucky = unlucky
        self._lock = threading.Lock()
        self.items: list[int] = []
        self.under_way = self.most = 0

    def __call__(self, item: int) -> int:
        with self._lock:
            self.items.append(item)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(self._slow_s)
        with self._lock:
            self.under_way -= 1
        if item == self._unlucky:
            raise ValueError("unlucky")
        return item * item


def test_what_is_at_hand_is_asked_for_one_after_the_other(
    ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.ahead._SLOW_S", 5.0)  # whatever else runs on this machine
    asked = Asked(0)
    answers = ahead.each(range(100), asked)
    for number in range(10):
        item, answer = next(answers)
        assert (item, answer()) == (number, number * number)
    assert asked.items == list(range(10))


def test_what_takes_its_time_is_asked_ahead(ahead: Ahead) -> None:
    asked = Asked(0.02, unlucky=13)
    answers = ahead.each(range(200), asked)
    _, answer = next(answers)
    assert (answer(), asked.items) == (0, [0]), "whoever wants one asks for one"
    for number, (item, get) in enumerate(answers, 1):
        assert item == number
        if item == 13:
            with pytest.raises(ValueError, match="unlucky"):
                get()
        else:
            assert get() == item * item
    assert sorted(asked.items) == list(range(200))
    assert 8 < asked.most <= 16


def test_whoever_goes_leaves_nothing_behind(ahead: Ahead) -> None:
    asked = Asked(0.02)
    answers = ahead.each(range(1000), asked)
    for _ in range(20):
        next(answers)[1]()
    answers.close()  # type: ignore[attr-defined]  # it is a generator
    ahead.close()
    assert asked.under_way == 0
    assert len(asked.items) < 100


def test_what_came_before_trouble_comes(ahead: Ahead) -> None:
    def items() -> Iterator[int]:
        yield from range(40)
        raise OSError("gone")

    came = []
    with pytest.raises(OSError, match="gone"):  # noqa: PT012 - all of them, until it is raised
        for item, answer in ahead.each(items(), Asked(0.01)):
            answer()
            came.append(item)
    assert came == list(range(40))


def test_firsts(ahead: Ahead) -> None:
    asked = Asked(0.02)

    def source(number: int) -> Iterator[int]:
        if number % 3:
            yield asked(number)
            yield asked(number + 100)

    assert ahead.firsts([source(n) for n in range(12)]) == [n * n if n % 3 else None for n in range(12)]
    assert asked.most > 2
    assert ahead.firsts([]) == []

    def broken() -> Iterator[int]:
        raise ValueError("broken")
        yield 1

    with pytest.raises(ValueError, match="broken"):
        ahead.firsts([source(1), source(2), broken()])


def test_firsts_ends_when_nobody_is_in_any_of_the_sources(ahead: Ahead) -> None:
    """They read in transactions that the caller ends."""

    asked = Asked(0.2)

    def slow() -> Iterator[int]:
        yield asked(1)

    def broken() -> Iterator[int]:
        raise ValueError("broken")
        yield 1

    with pytest.raises(ValueError, match="broken"):
        ahead.firsts([slow(), broken(), slow(), slow()])
    assert asked.under_way == 0
