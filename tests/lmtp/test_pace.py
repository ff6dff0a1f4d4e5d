"""The clock of a message that comes in, with a clock that is turned by hand."""

from __future__ import annotations

import pytest

from sidecar.front import FrontLimits
from sidecar.front.pace import Pace
from sidecar.front.policy import MIN_PACE_BYTES_S, STRETCH_BYTES

LIMITS = FrontLimits()
POSTFIX_S = 600.0
"""lmtp_data_done_timeout: from the dot that it has handed to the kernel"""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(LIMITS, clock)


def wait(pace: Pace, clock: Clock, seconds: float, *, store: bool) -> None:
    stalls = pace.store if store else pace.server
    began = clock.now
    clock.now += min(seconds, stalls.left_s)
    pace.waited(stalls, began)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 50.0, 99.0])
def test_however_it_is_stalled_the_last_reply_is_in_time(pace: Pace, clock: Clock, seconds: float) -> None:
    dot = clock.now  # the whole message, and its dot, is in the sockets' buffers
    for _ in range(2000):
        assert pace.came(1000) == clock.now + LIMITS.reply_timeout_s
        wait(pace, clock, seconds, store=True)
        wait(pace, clock, seconds, store=False)
    assert pace.delivery_deadline() == pytest.approx(dot + LIMITS.delivery_timeout_s)
    assert pace.delivery_deadline() < dot + POSTFIX_S
    # And there is still time to deliver.
    assert pace.delivery_deadline() - clock.now >= LIMITS.delivery_timeout_s / 3 - 0.001


def test_a_large_message_may_be_slow_all_the_way(pace: Pace, clock: Clock) -> None:
    for _ in range(1000):
        pace.came(STRETCH_BYTES // 8)
        assert pace.server.left_s > 5
        wait(pace, clock, 5, store=False)
    assert clock.now > 1000 + POSTFIX_S
    assert pace.delivery_deadline() - clock.now > LIMITS.delivery_timeout_s / 2


def test_a_client_has_its_idle_time_and_a_minimum_pace(pace: Pace, clock: Clock) -> None:
    assert pace.client_deadline() == clock.now + LIMITS.idle_timeout_s
    pace.came(7 * MIN_PACE_BYTES_S)
    assert pace.client_deadline() == clock.now + LIMITS.idle_timeout_s + 7


def test_our_waits_are_not_counted_against_the_client(pace: Pace, clock: Clock) -> None:
    before = pace.client_deadline()
    wait(pace, clock, 100, store=True)
    wait(pace, clock, 80, store=False)
    assert pace.client_deadline() == before + 180
