"""The same request again, when something has changed in between: other processes, the clock, the store."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from sidecar.audit import Account, Difference, Kind
from sidecar.live.connect import imap_server
from sidecar.live.imap import ImapServer
from sidecar.replay import journal as journals
from sidecar.replay import presence as presences
from sidecar.replay.imap import ImapRoad
from sidecar.replay.journal import Journal
from sidecar.replay.lmtp import LmtpRoad
from sidecar.replay.lock import BeingDoneError
from sidecar.replay.perform import Performance, Request
from sidecar.replay.road import StoppedError
from sidecar.replay.run import Ended, Run, RunOptions, resume
from sidecar.replay.targets import Item, Outcome, Result, Target, Whereto, targets
from sidecar.sections import ImapConfig
from sidecar.select import Selection, select
from sidecar.units import Address
from store.fleet import Archive, Fleet
from store.ids import ContentId, now_us
from store.records import Expiry, Leg, Replay, ReplayRun
from store.store import Store
from store.writer import Submission
from tests.store.conftest import put_message
from tests.support.lmtp_sink import LmtpSink
from tests.support.service import COMMAND
from tests.support.sink_thread import SinkThread

Server = SinkThread[LmtpSink]
NAME = b"x" * 16
ANNA = b"anna@example.org"
MESSAGE = b"Subject: x\r\n\r\nbody\r\n"


@pytest.fixture
def server() -> Iterator[Server]:
    with SinkThread(LmtpSink()) as running:
        yield running


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


def perform(store: Store, server: Server, journal: Journal, what: list[Target]) -> tuple[Ended, list[Result]]:
    told: list[Result] = []
    how = Request(address=server.sink.address, lanes=1)
    ended = Performance(store, how, journal).perform(resume(store, journal, what), told.append)
    return ended, told


def note(store: Store, *entries: Replay | ReplayRun | Expiry) -> None:
    for entry in entries:
        durable = threading.Event()
        store.writer.submit(Submission(entries=[entry], done=lambda _error, durable=durable: durable.set()))
        assert durable.wait(60)
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
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
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
    presence._stopped = lambda: time.monotonic() > began + 60
    began = time.monotonic()
    presence._let_settle(now_us() + 3_600_000_000)
    assert 0.1 < time.monotonic() - began < 60


@pytest.mark.parametrize("reply", [b"250 ok", b""])
def test_the_same_bytes_go_once_though_their_first_delivery_has_expired(
    store: Store, server: Server, reply: bytes
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


def test_a_record_that_cannot_be_read_any_more_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the selection and the look into the mailbox: nothing may be left out in silence."""
    delivery = put_message(store, MESSAGE)
    (target,) = todo(store)
    note(store, Expiry(time_us=now_us(), rule="age", owner="o", deliveries=(delivery.id,)))
    server = ImapServer(address=Address("127.0.0.1", 1))
    monkeypatch.setattr(presences, "imap_server", lambda _config: server)
    (result,) = presences.Presence(store, ImapConfig()).sift([target])
    assert isinstance(result, Result)
    assert (result.outcome, result.target.delivery.id) == (Outcome.REFUSED, delivery.id)
    assert "expired" in result.why


def test_what_imap_cannot_say_does_not_keep_a_message_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("anna:secret\n")
    road = ImapRoad(store, ImapConfig(passwords=tmp_path / "passwords"))
    flags = '\\Seen Größe \\Recent $Later (x a\\b "q" \ufffd'.encode()
    delivery = replace(put_message(store, MESSAGE), leg=Leg.IMPORT, attributes={"flags": flags})
    assert road.flags(delivery) == ("\\Seen", "$Later")
    road.close()


def test_passwords_are_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "passwords").write_text("anna:secret\n")
    (tmp_path / "passwords").chmod(0o644)
    assert "secret" not in repr(imap_server(ImapConfig(passwords=tmp_path / "passwords")))
    assert "everybody can read" in caplog.text
    caplog.clear()
    (tmp_path / "passwords").chmod(0o640)
    imap_server(ImapConfig(passwords=tmp_path / "passwords"))
    assert not caplog.text


def test_what_was_told_of_an_audit_is_counted_and_not_kept() -> None:
    account = Account("anna", differences=[Difference(Kind.GONE), Difference(Kind.HOLE)])
    account.forget()
    assert not account.differences
    assert (account.count(Kind.HOLE), account.missing, account.count(*Kind)) == (1, 1, 2)


def _never_answers_append(connection: socket.socket, asked: threading.Event) -> None:
    with connection, connection.makefile("rb") as received:
        connection.sendall(b"* OK hello\r\n")
        for line in received:
            tag, _, command = line.strip().partition(b" ")
            if command.startswith(b"CAPABILITY"):
                connection.sendall(b"* CAPABILITY IMAP4rev1 MULTIAPPEND LITERAL+\r\n")
            if command.startswith(b"APPEND"):
                asked.set()
                received.read()
            else:
                connection.sendall(tag + b" OK done\r\n")


def test_a_second_ctrl_c_waits_for_no_server(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True) as filled:
        filled.start_writing("host")
        put_message(filled, MESSAGE)
    (tmp_path / "passwords").write_text("anna@example.org:secret\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (tmp_path / "mailkeep.toml").write_text(
            f'[store]\npath = "{tmp_path}/store"\n[lmtp]\ndownstream = "127.0.0.1:1"\n'
            f'[imap]\nserver = "127.0.0.1:{listener.getsockname()[1]}"\n'
            f'passwords = "{tmp_path}/passwords"\n'
        )
        process = subprocess.Popen(
            [*COMMAND, "replay", "--all", "--via", "imap", "--config",
             str(tmp_path / "mailkeep.toml")], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            listener.settimeout(60)
            asked = threading.Event()
            connection, _ = listener.accept()
            threading.Thread(target=_never_answers_append, args=(connection, asked), daemon=True).start()
            assert asked.wait(60)
            process.send_signal(signal.SIGINT)
            for pause_s in (0.5, 10, 10, 10):  # one that comes before the first was seen is no second
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(pause_s)
                    break
                process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "left at once" in told


def test_an_address_cannot_carry_a_command(store: Store, server: Server) -> None:
    put_message(store, MESSAGE, to=(b"anna@example.org>\r\nRCPT TO:<carl@example.org", b"bert@example.org"))
    ended, told = perform(store, server, begin(store), todo(store))
    assert (ended.targets, ended.back) == (2, 1)
    assert "control character" in told[0].why + told[1].why
    assert [mail.recipients for mail in server.sink.delivered] == [[b"RCPT TO:<bert@example.org>"]]


def test_the_same_mailbox_in_other_letters_gets_a_message_once(store: Store) -> None:
    put_message(store, MESSAGE, to=(b"Anna@Example.org",))
    put_message(store, MESSAGE, to=(b"anna@example.org",))
    assert len(todo(store)) == 1


def test_doubts_that_were_not_looked_for_are_told(store: Store, server: Server) -> None:
    class Stopped:
        def sift(self, targets: Iterable[Item], *, since_us: int = 0) -> Iterator[Item]:
            assert list(targets)
            stop.set()
            raise StoppedError
            yield

    put_message(store, MESSAGE)
    (target,) = todo(store)
    note(store, run_fact(), word(target, b"", now_us()))
    stop, told = threading.Event(), list[Result]()
    journal = begin(store)
    road = LmtpRoad(store, server.sink.address)

    async def put_back() -> Ended:
        run = Run(store, road, journal, RunOptions(lanes=1, looks=Stopped()), told.append, stop)
        return await run.put_back(resume(store, journal, [target]))

    assert asyncio.run(put_back()).in_doubt == 1
    assert [result.outcome for result in told] == [Outcome.IN_DOUBT]


class Absent:
    """Nothing is in the mailboxes. Who looks is told so many times that it is so, and then to stop."""

    def __init__(self, stop_after: int) -> None:
        self._stop_after = stop_after

    def sift(self, targets: Iterable[Item], *, since_us: int = 0) -> Iterator[Item]:
        for number, target in enumerate(targets):
            if number == self._stop_after:
                raise StoppedError
            assert isinstance(target, Target)
            yield dataclasses.replace(target, begun_us=0)


@pytest.mark.parametrize("how", ["looked for", "looked for in part", "sent untold", "fetched ahead"])
def test_doubts_that_are_not_come_to_when_it_is_stopped_are_told(
    store: Store, server: Server, how: str
) -> None:
    def far(_path: Path, _start: int, _end: int, *, again: bool = False) -> None:
        time.sleep(0.005)

    def tell(result: Result) -> None:
        told.append(result)
        stop.set()

    for number in range(40):
        put_message(store, MESSAGE + b"%d" % number)
    doubts = todo(store)
    note(store, run_fact(), *(word(target, b"", now_us()) for target in doubts))
    stop, told = threading.Event(), list[Result]()
    journal = begin(store)
    options = RunOptions(lanes=1, looks=Absent(2 if how == "looked for in part" else 100))
    if how == "sent untold":
        options = RunOptions(lanes=1, send_doubtful=True)
    archive: Archive = store
    if how == "fetched ahead":
        store.fill = store._packs._fill = far  # as a view has it
        archive = Fleet([store], store, "far")

    async def put_back() -> Ended:
        road = LmtpRoad(archive, server.sink.address)
        run = Run(archive, road, journal, options, tell, stop)
        return await run.put_back(resume(archive, journal, doubts))

    asyncio.run(put_back())
    if isinstance(archive, Fleet):
        archive.close()
    told_of = [result.target.delivery.id for result in told]
    assert sorted(told_of) == sorted(target.delivery.id for target in doubts), "each once"


def test_what_is_given_up_is_not_fetched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the server away, nobody waits until all that was selected has come from a replica."""
    had: list[ContentId] = []
    have = Store.have

    def slow(self: Store, content: ContentId, stop: Callable[[], bool]) -> None:
        had.append(content)
        time.sleep(0.003)  # from afar
        have(self, content, stop)

    monkeypatch.setattr(Store, "have", slow)
    for number in range(400):
        put_message(store, MESSAGE + b"%d" % number)
    selected = todo(store)
    journal = begin(store)
    fleet, told = Fleet([store], store, "far"), list[Result]()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        road = LmtpRoad(fleet, Address(*nobody.getsockname()))

        async def put_back() -> Ended:
            options = RunOptions(lanes=1, patience_s=0)
            run = Run(fleet, road, journal, options, told.append, threading.Event())
            return await run.put_back(resume(fleet, journal, selected))

        assert asyncio.run(put_back()).gave_up
    fleet.close()
    assert len(told) == 400
    assert len(had) < 100
