"""The same request again, when something has changed in between: other processes, the clock, the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.replay import journal as journals
from sidecar.replay import presence as presences
from sidecar.replay.journal import Journal
from sidecar.replay.lock import BeingDoneError
from sidecar.replay.perform import Performance, Request
from sidecar.replay.run import Ended, resume
from sidecar.replay.targets import Outcome, Result, Target, Whereto, targets
from sidecar.select import Selection, select
from store.ids import now_us
from store.records import Expiry, Replay, ReplayRun
from store.store import Store
from store.writer import Submission
from tests.sidecar.test_replay import SinkThread
from tests.store.conftest import put_message

NAME = b"x" * 16
ANNA = b"anna@example.org"
MESSAGE = b"Subject: x\r\n\r\nbody\r\n"


@pytest.fixture
def server() -> Iterator[SinkThread]:
    thread = SinkThread()
    yield thread
    thread.stop()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.start_writing("host")
        yield opened


def todo(store: Store) -> list[Target]:
    store.settle_index()
    return list(targets(select(store, Selection(leg="lmtp"), newest_first=False), Whereto()))


def begin(store: Store) -> Journal:
    store.settle_index()
    return Journal(store, NAME, road="x", owner="o")


def perform(
    store: Store, server: SinkThread, journal: Journal, what: list[Target]
) -> tuple[Ended, list[Result]]:
    told: list[Result] = []
    how = Request(address=server.sink.address, lanes=1)
    ended = Performance(store, how, journal).perform(resume(store, journal, what), told.append)
    return ended, told


def note(store: Store, *entries: Replay | ReplayRun | Expiry) -> None:
    for entry in entries:
        durable = threading.Event()
        store.writer.submit(Submission(entries=[entry], done=lambda _error, durable=durable: durable.set()))
        assert durable.wait(10)
    store.settle_index()


def run_fact() -> ReplayRun:
    return ReplayRun(run="1", time_us=now_us(), selection=NAME, owner="o", messages=0, finished=False)


def word(target: Target, reply: bytes, time_us: int) -> Replay:
    return Replay(
        delivery=target.delivery.id, time_us=time_us, run="1", recipient=target.recipient, downstream="x",
        reply=reply,
    )  # fmt: skip


def test_a_plan_that_another_process_has_carried_out_is_not_carried_out_again(
    store: Store, server: SinkThread
) -> None:
    """As when two administrators are asked "Put them back?" at once."""
    put_message(store, MESSAGE)
    first, second = begin(store), begin(store)
    assert perform(store, server, first, todo(store))[0].complete
    with pytest.raises(BeingDoneError, match="meanwhile"):
        perform(store, server, second, todo(store))
    assert len(server.sink.delivered) == 1


def test_what_is_begun_after_the_clock_was_set_back_is_in_doubt(
    store: Store, server: SinkThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_message(store, MESSAGE)
    (target,) = todo(store)
    note(
        store,
        run_fact(),
        word(target, b"", now_us() + 10**10),
        word(target, b"451 no", now_us() + 10**10 + 1),
    )
    killed = begin(store)
    list(resume(store, killed, [target]))
    note(store, killed._fact(target, b""))  # what is durable before it is sent; then SIGKILL
    ended, (result,) = perform(store, server, begin(store), [target])
    assert (result.outcome, ended.in_doubt) == (Outcome.IN_DOUBT, 1)
    assert not server.sink.delivered

    monkeypatch.setattr(journals, "now_us", iter(range(10**9, 0, -1)).__next__)
    backward = begin(store)
    times = [backward._fact(target, b"").time_us for _ in range(3)]
    assert times == sorted(set(times))


def test_a_doubt_of_the_future_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presences, "_SETTLED_S", 0.2)
    presence = object.__new__(presences.Presence)
    presence._stopped = lambda: time.monotonic() > began + 3
    began = time.monotonic()
    presence._let_settle(now_us() + 3_600_000_000)
    assert 0.1 < time.monotonic() - began < 2


@pytest.mark.parametrize("reply", [b"250 ok", b""])
def test_the_same_bytes_go_once_though_their_first_delivery_has_expired(
    store: Store, server: SinkThread, reply: bytes
) -> None:
    put_message(store, MESSAGE)
    (first,) = todo(store)
    put_message(store, MESSAGE)
    note(store, run_fact(), word(first, reply, now_us()))
    note(store, Expiry(time_us=now_us(), rule="age", owner="o", deliveries=(first.delivery.id,)))
    (second,) = todo(store)
    assert second.delivery.id != first.delivery.id
    _, (result,) = perform(store, server, begin(store), [second])
    assert result.outcome is (Outcome.EARLIER if reply else Outcome.IN_DOUBT)
    assert not server.sink.delivered
