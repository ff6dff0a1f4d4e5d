"""What fails, and what then: nothing lost, nothing invented, nothing twice that could be known.

Postfix --lmtp--> mailkeep serve --lmtp--> Dovecot, each of them missing, slow, killed, full or told to stop
at the worst moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.ports import wait_until
from sidecar.demo.postfix import PrivatePostfix
from tests.e2e.dialogue import LmtpDialogue
from tests.support.delivered import inbox
from tests.support.lmtp_sink import LmtpSink
from tests.support.postfix_log import fates, statuses
from tests.support.reply_holder import ReplyHolder
from tests.support.service import Service
from tests.support.serving import stuffed
from tests.support.sink_thread import SinkThread

pytestmark = pytest.mark.e2e

StartDovecot = Callable[..., PrivateDovecot]
StartPostfix = Callable[..., PrivatePostfix]

ANNA, BERT, CARLA = "anna@demo.example", "bert@demo.example", "carla@demo.example"
SENDER = "sender@client.example"
HEADERS = (
    b"From: Sender <sender@client.example>\r\nTo: Anna <anna@demo.example>\r\n"
    b"Date: Mon, 6 Jan 2025 10:00:00 +0000\r\nMessage-ID: <1@client.example>\r\nSubject: a test\r\n\r\n"
)
SMALL = HEADERS + b"At noon?\r\n"
LARGE = HEADERS + b"0123456789abcdef\r\n" * 200
NO_DISK_IS_SO_LARGE = "1000000GiB"
DEADLINE_S = 60


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def delivered_by(postfix: PrivatePostfix) -> None:
    """Wait until Postfix has nothing left to do, its patience cut short."""

    def done() -> bool:
        if not postfix.queue():
            return True
        postfix.flush()
        return False

    assert wait_until(done, timeout_s=DEADLINE_S), postfix.log_text()


def say_message(
    lmtp: LmtpDialogue, message: bytes, *recipients: str, at_first_reply: Callable[[], None] = lambda: None
) -> list[bytes]:
    """One transaction, pipelined up to DATA; the final replies."""
    lines = [b"MAIL FROM:<sender@client.example>", *(b"RCPT TO:<%b>" % to.encode() for to in recipients)]
    lmtp.send(b"".join(line + b"\r\n" for line in lines))
    assert {lmtp.reply()[:4] for _ in lines} == {b"250 "}
    assert lmtp.say(b"DATA").startswith(b"354")
    lmtp.send(stuffed(message))
    first = lmtp.reply()
    at_first_reply()
    return [first, *(lmtp.reply() for _ in recipients[1:])]


# ---- one of several recipients ------------------------------------------------------------------


@pytest.mark.parametrize(("tempfail", "refusal"), [(False, b"552 5.2.2 "), (True, b"452 4.2.2 ")])
def test_a_recipient_over_quota_is_refused_in_its_place(
    start_dovecot: StartDovecot, server_directory: Path, running: ExitStack, tempfail: bool, refusal: bytes
) -> None:
    """Each recipient gets its own reply (RFC 2033 4.2), and they are kept as they were.

    Setup: client --lmtp (Anna, Bert, Carla)--> mailkeep --lmtp--> Dovecot, where Bert is over quota.
    Test: 250, 552 or 452, 250, in this order, on the wire and in `list`; Anna and Carla have the mail.
    """
    dovecot = start_dovecot(quota_bytes={BERT: 1000}, quota_full_tempfail=tempfail)
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": dovecot.lmtp_address})
    )
    with LmtpDialogue(service.port) as lmtp:
        replies = say_message(lmtp, LARGE, ANNA, BERT, CARLA)

    assert replies[0].startswith(b"250 2.0.0 <anna@")
    assert replies[1].startswith(refusal + b"<bert@")
    assert replies[2].startswith(b"250 2.0.0 <carla@")
    assert [inbox(dovecot, user) for user in (ANNA, BERT, CARLA)] == [[LARGE], [], [LARGE]]
    wanted = [
        {"address": who, "reply": reply.decode().rstrip()}
        for who, reply in zip((ANNA, BERT, CARLA), replies, strict=True)
    ]
    assert wait_until(lambda: service.listed()[0]["recipients"] == wanted, timeout_s=DEADLINE_S)
    metrics = service.metrics()
    assert metrics['outcomes_total{class="2xx",source="downstream"}'] == 2
    failed = "4xx" if tempfail else "5xx"
    assert metrics[f'outcomes_total{{class="{failed}",source="downstream"}}'] == 1


def test_over_quota_for_good_is_bounced_by_postfix(
    start_dovecot: StartDovecot, start_postfix: StartPostfix, server_directory: Path, running: ExitStack
) -> None:
    """Setup: Postfix --lmtp (Anna, Bert)--> mailkeep --lmtp--> Dovecot, where Bert is over quota: 552.

    Test: Postfix's log has `sent` for Anna and `bounced` for Bert, with Dovecot's words.
    """
    dovecot = start_dovecot(quota_bytes={BERT: 1000})
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": dovecot.lmtp_address})
    )
    postfix = start_postfix(lmtp=service.address)

    sent = postfix.send(SENDER, [ANNA, BERT], LARGE)
    delivered_by(postfix)

    assert statuses(postfix.log_text(), sent.queue_id, ANNA) == ["sent"]
    [fate] = [fate for fate in fates(postfix.log_text(), sent.queue_id) if fate.recipient == BERT]
    assert fate.status == "bounced"
    assert fate.reply.startswith("552 5.2.2 <bert@demo.example> Quota exceeded")
    assert len(inbox(dovecot, ANNA)) == 1


def test_over_quota_for_now_comes_again_for_that_recipient_alone(
    start_dovecot: StartDovecot, start_postfix: StartPostfix, server_directory: Path, running: ExitStack
) -> None:
    """Setup: Postfix --lmtp (Anna, Bert)--> mailkeep --lmtp--> Dovecot, where Bert is over quota: 452.

    Test: Anna's is `sent` once and she has one copy; Bert's is `deferred` until he has room, then `sent`, and
    he has one copy.
    """
    dovecot = start_dovecot(quota_bytes={BERT: 6000}, quota_full_tempfail=True)
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": dovecot.lmtp_address})
    )
    postfix = start_postfix(lmtp=service.address)
    with LmtpDialogue(service.port) as lmtp:
        assert say_message(lmtp, LARGE, BERT)[0].startswith(b"250")

    sent = postfix.send(SENDER, [ANNA, BERT], LARGE)
    assert wait_until(
        lambda: "deferred" in statuses(postfix.log_text(), sent.queue_id, BERT), timeout_s=DEADLINE_S
    )
    assert [entry["queue_id"] for entry in postfix.queue()] == [sent.queue_id]
    with dovecot.mailbox(BERT) as mailbox:
        mailbox.delete(mailbox.messages()[0].uid)
    delivered_by(postfix)

    assert statuses(postfix.log_text(), sent.queue_id, ANNA) == ["sent"]
    assert statuses(postfix.log_text(), sent.queue_id, BERT)[-1] == "sent"
    assert [len(inbox(dovecot, user)) for user in (ANNA, BERT)] == [1, 1]
    assert service.metrics()["redelivered_unknown_total"] == 0, "his 452 was known"


# ---- somebody is down ---------------------------------------------------------------------------


def test_dovecot_down(
    start_dovecot: StartDovecot, start_postfix: StartPostfix, server_directory: Path, running: ExitStack
) -> None:
    """Setup: Postfix --lmtp--> mailkeep --lmtp--> (nobody), then Dovecot.

    Test: 451 to Postfix, which keeps the mail; when Dovecot is back each recipient gets exactly one copy.
    """
    dovecot = start_dovecot()
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": dovecot.lmtp_address})
    )
    postfix = start_postfix(lmtp=service.address)
    first = postfix.send(SENDER, [ANNA], SMALL)  # once while it is there, so that mailkeep knows it
    delivered_by(postfix)
    dovecot.stop()

    sent = postfix.send(SENDER, [ANNA, BERT], SMALL)
    assert wait_until(lambda: len(fates(postfix.log_text(), sent.queue_id)) >= 2, timeout_s=DEADLINE_S)
    tried = fates(postfix.log_text(), sent.queue_id)
    assert {fate.status for fate in tried} == {"deferred"}
    assert any(fate.reply.startswith("451 4.4.1 ") for fate in tried), tried
    assert [entry["queue_id"] for entry in postfix.queue()] == [sent.queue_id]
    assert service.page("/healthz")[0] == 200

    dovecot.start()
    delivered_by(postfix)
    for user, expected in ((ANNA, 2), (BERT, 1)):
        assert len(inbox(dovecot, user)) == expected
        assert statuses(postfix.log_text(), sent.queue_id, user)[-1] == "sent"
    assert {capture["queue_id"] for capture in service.listed()} == {first.queue_id, sent.queue_id}


def test_dovecot_down_from_the_start(server_directory: Path, running: ExitStack) -> None:
    """Setup: client --lmtp--> mailkeep --lmtp--> (nobody, never).

    Test: LHLO is answered 451, for nothing true could be offered; never a 5xx, which would bounce mail.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": f"127.0.0.1:{port}"})
    )
    with LmtpDialogue(service.port) as lmtp:
        assert lmtp.capabilities.startswith(b"451 4.4.1 ")
        assert lmtp.say(b"LHLO again").startswith(b"451 4.4.1 ")


def test_mailkeep_down(
    start_dovecot: StartDovecot, start_postfix: StartPostfix, server_directory: Path, running: ExitStack
) -> None:
    """Setup: Postfix --lmtp--> (nobody), then mailkeep --lmtp--> Dovecot.

    Test: Postfix keeps the mail and nothing goes past mailkeep; when it is back, one copy, captured.
    """
    dovecot = start_dovecot()
    service = Service(server_directory / "mailkeep", lmtp={"downstream": dovecot.lmtp_address})
    postfix = start_postfix(lmtp=service.address)

    sent = postfix.send(SENDER, [ANNA], SMALL)
    assert wait_until(
        lambda: "deferred" in statuses(postfix.log_text(), sent.queue_id, ANNA), timeout_s=DEADLINE_S
    )
    assert inbox(dovecot, ANNA) == []

    running.enter_context(service)
    delivered_by(postfix)
    [stored] = inbox(dovecot, ANNA)
    [capture] = service.listed()
    assert service.raw(capture["id"]) == stored


# ---- the reply is lost --------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True], ids=["connection cut", "serve killed"])
def test_a_lost_reply_that_was_kept_makes_no_second_copy(
    start_dovecot: StartDovecot,
    start_postfix: StartPostfix,
    server_directory: Path,
    running: ExitStack,
    killed: bool,
) -> None:
    """Dovecot said 250, Postfix never heard it, mailkeep had written it down.

    Setup: Postfix --lmtp--> wire that keeps back the last replies --> mailkeep --lmtp--> Dovecot; then the
    wire is cut, or mailkeep gets SIGKILL and is started again; Postfix tries again.
    Test: the retry is answered with the replies of the first time and delivered to nobody: one copy each, and
    counted.
    """
    dovecot = start_dovecot()
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": dovecot.lmtp_address})
    )
    wire = running.enter_context(ReplyHolder(service.port))
    postfix = start_postfix(lmtp=wire.address)
    wire.holding = True

    sent = postfix.send(SENDER, [ANNA, BERT], SMALL)
    assert wire.held.wait(DEADLINE_S), service.tail()

    def replies() -> list[str | None]:
        return [who["reply"] for found in service.listed()[:1] for who in found["recipients"]]

    assert wait_until(lambda: len(replies()) == 2 and all(replies()), timeout_s=DEADLINE_S)
    first = replies()
    wire.holding = False
    if killed:
        service.kill()
        wire.cut()
        service.start()
    else:
        wire.cut()
    delivered_by(postfix)

    assert [len(inbox(dovecot, user)) for user in (ANNA, BERT)] == [1, 1]
    sent_replies = [fate.reply for fate in fates(postfix.log_text(), sent.queue_id) if fate.status == "sent"]
    assert sorted(sent_replies) == sorted(str(reply) for reply in first)
    metrics = service.metrics()
    assert metrics["retries_suppressed_total"] == 2
    assert metrics["redelivered_unknown_total"] == 0


def test_a_lost_reply_that_nobody_knows_is_delivered_again_and_counted(
    start_postfix: StartPostfix, server_directory: Path, running: ExitStack
) -> None:
    """The mailbox server has the message, its reply died with mailkeep: at least once, and said so.

    Setup: Postfix --lmtp--> mailkeep --lmtp--> sink that has the whole message and is slow to say so; SIGKILL
    mailkeep, start it again; Postfix tries again.
    Test: the sink gets the same bytes a second time, Postfix hears its 250, and one redelivery is counted.
    """
    gate = asyncio.Event()
    sink = LmtpSink(gates={b"end": gate})
    thread = running.enter_context(SinkThread(sink))
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": thread.address})
    )
    postfix = start_postfix(lmtp=service.address)

    sent = postfix.send(SENDER, [ANNA], SMALL)
    assert wait_until(lambda: len(sink.delivered) == 1, timeout_s=DEADLINE_S), service.tail()
    service.kill()
    thread.open(gate)
    service.start()
    delivered_by(postfix)

    once, again = sink.delivered
    assert once.message == again.message
    assert statuses(postfix.log_text(), sent.queue_id, ANNA)[-1] == "sent"
    metrics = service.metrics()
    assert metrics["redelivered_unknown_total"] == 1
    assert metrics["retries_suppressed_total"] == 0


def test_a_mailbox_server_that_dies_with_the_message_in_hand(
    start_postfix: StartPostfix, server_directory: Path, running: ExitStack
) -> None:
    """Whether it kept the message nobody can know: no 250 is invented, and the second delivery is counted.

    Setup: Postfix --lmtp--> mailkeep --lmtp--> sink that goes away with the whole message; then it is well.
    Test: Postfix hears 451 and tries again; the same bytes a second time, `sent`, one redelivery counted.
    """
    sink = LmtpSink(drop_at=b"end")
    thread = running.enter_context(SinkThread(sink))
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": thread.address})
    )
    postfix = start_postfix(lmtp=service.address, settings={"minimal_backoff_time": "1h"})

    sent = postfix.send(SENDER, [ANNA], SMALL)
    assert wait_until(lambda: len(fates(postfix.log_text(), sent.queue_id)) == 1, timeout_s=DEADLINE_S)
    sink.drop_at = b""
    delivered_by(postfix)

    first, second = fates(postfix.log_text(), sent.queue_id)
    assert (first.status, first.reply[:9]) == ("deferred", "451 4.4.2")
    assert second.status == "sent"
    once, again = sink.delivered
    assert once.message == again.message
    assert service.metrics()["redelivered_unknown_total"] == 1


# ---- signals ------------------------------------------------------------------------------------


def test_sigterm_in_mid_delivery(server_directory: Path, running: ExitStack) -> None:
    """What is in flight is finished; nothing new is begun.

    Setup: client --lmtp--> mailkeep --lmtp--> sink that has the message and is slow to answer; SIGTERM.
    Test: new connections are refused, /readyz says 503, the client gets the sink's own 250, the outcome is
    kept, exit code 0.
    """
    gate = asyncio.Event()
    sink = LmtpSink(gates={b"end": gate})
    thread = running.enter_context(SinkThread(sink))
    service = running.enter_context(
        Service(server_directory / "mailkeep", lmtp={"downstream": thread.address})
    )
    with LmtpDialogue(service.port) as lmtp:
        lmtp.begin(ANNA.encode())
        assert lmtp.say(b"DATA").startswith(b"354")
        lmtp.send(stuffed(SMALL))
        assert wait_until(lambda: len(sink.delivered) == 1, timeout_s=DEADLINE_S)
        service.signal(signal.SIGTERM)
        assert wait_until(lambda: _refuses(service.port), timeout_s=DEADLINE_S)
        assert service.page("/readyz")[0] == 503
        assert service.running
        thread.open(gate)
        assert lmtp.reply() == b"250 2.0.0 <anna@demo.example> Saved\r\n"
    assert service.wait() == 0
    [capture] = service.listed()
    assert capture["recipients"] == [{"address": ANNA, "reply": "250 2.0.0 <anna@demo.example> Saved"}]


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_sighup_takes_up_what_may_change(server_directory: Path, running: ExitStack) -> None:
    """Setup: client --lmtp--> mailkeep --lmtp--> sink, then SIGHUP with another sink, limit and log level.

    Test: the next connection's mail goes to the other sink, the second connection gets 421, debug lines
    appear; what needs a restart is named and stays; the process is the same.
    """
    sinks = [LmtpSink(), LmtpSink()]
    addresses = [running.enter_context(SinkThread(sink)).address for sink in sinks]
    service = running.enter_context(Service(server_directory / "mailkeep", lmtp={"downstream": addresses[0]}))
    pid = service.pid
    with LmtpDialogue(service.port) as lmtp:
        assert say_message(lmtp, SMALL, ANNA)[0].startswith(b"250")

    service.configure(
        lmtp={"downstream": addresses[1], "max_connections": 1},
        log={"level": "debug"},
        store={"reserve": "2MiB"},
    )
    logged = service.reload()
    assert "store.reserve" in logged
    assert "lmtp.downstream" in logged
    assert "lmtp.max_connections" in logged
    with LmtpDialogue(service.port) as lmtp:
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as second:
            assert second.recv(4) == b"421 "
        assert say_message(lmtp, LARGE, BERT)[0].startswith(b"250")

    assert [[mail.message for mail in sink.delivered] for sink in sinks] == [[SMALL], [LARGE]]
    assert service.pid == pid
    assert service.running


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ('[lmtp]\nlisten = "127.0.0.1:1"\ndownstrem = "127.0.0.1:2"\n', "downstream"),
        ("[lmtp\n", "not TOML"),
        ('[lmtp]\nlisten = "127.0.0.1:1"\ndownstream = "nowhere"\n', "downstream"),
    ],
)
def test_sighup_with_a_broken_file_changes_nothing(
    server_directory: Path, running: ExitStack, broken: str, named: str
) -> None:
    """Setup: client --lmtp--> mailkeep --lmtp--> sink, SIGHUP while the file is broken, then a whole one.

    Test: the log says what is wrong, mail goes on as before; the mended file is taken up.
    """
    sink = LmtpSink()
    service = running.enter_context(
        Service(
            server_directory / "mailkeep",
            lmtp={"downstream": running.enter_context(SinkThread(sink)).address},
        )
    )
    good = service.config_file.read_text()
    service.config_file.write_text(broken)
    logged = service.reload()
    assert "not reloaded" in logged
    assert named in logged
    with LmtpDialogue(service.port) as lmtp:
        assert say_message(lmtp, SMALL, ANNA)[0].startswith(b"250")
    assert len(sink.delivered) == 1

    service.config_file.write_text(good + "[log]\nlevel = 'debug'\n")
    assert "reloaded: log.level" in service.reload()


# ---- the disk is full ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(server_directory: Path) -> Iterator[Path]:
    """A file system of 48 MB that fills up for real. Only root may mount one."""
    disk = server_directory / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"NOT TESTED: no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=60)


@pytest.mark.parametrize("reserve", ["16MiB", "1B"], ids=["reserve reached", "no reserve"])
def test_a_full_disk_defers_mail_until_there_is_room(
    small_disk: Path, start_dovecot: StartDovecot, server_directory: Path, running: ExitStack, reserve: str
) -> None:
    """Not durable, not delivered; and no restart is needed when somebody has cleared up.

    Setup: client --lmtp--> mailkeep (store on a file system that somebody fills) --lmtp--> Dovecot.
    Test: 250 while there is room; 451 4.3.1 for each recipient when there is none (below the reserve, or not
    a byte left), Dovecot gets nothing, the process lives and what it has can be read; 250 again after the
    filler is gone, and the store is whole.
    """
    dovecot = start_dovecot()
    service = running.enter_context(
        Service(
            server_directory / "mailkeep",
            lmtp={"downstream": dovecot.lmtp_address},
            store={"path": str(small_disk / "store"), "reserve": reserve},
        )
    )
    with LmtpDialogue(service.port) as lmtp:
        assert say_message(lmtp, SMALL, ANNA)[0].startswith(b"250")
        assert wait_until(lambda: _all_is_written(service), timeout_s=DEADLINE_S)
        filler = small_disk / "filler"
        _fill(filler)

        for _ in range(2):
            replies = say_message(lmtp, _different(LARGE), ANNA, BERT)
            assert [reply[:10] for reply in replies] == [b"451 4.3.1 "] * 2
        assert service.running, service.tail()
        assert [len(inbox(dovecot, user)) for user in (ANNA, BERT)] == [1, 0]
        assert len(service.listed()) == 1

        filler.unlink()
        assert [r[:4] for r in say_message(lmtp, LARGE, ANNA, BERT)] == [b"250 "] * 2
    assert inbox(dovecot, ANNA) == [SMALL, LARGE]
    assert inbox(dovecot, BERT) == [LARGE]
    metrics = service.metrics()
    assert metrics['capture_failures_total{leg="lmtp",reason="full"}'] == 2
    assert metrics['captured_messages_total{leg="lmtp"}'] == 2
    assert service.page("/readyz") == (200, "ready\n")
    assert service.stop() == 0
    assert service.command("check", "--read-data").returncode == 0


def _fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass


def _all_is_written(service: Service) -> bool:
    """Replies known and index up to date: nothing of earlier mail waits for room on the disk."""
    replies = [who["reply"] for found in service.listed() for who in found["recipients"]]
    return all(replies) and service.metrics()["index_lag_commits"] == 0


def _different(message: bytes) -> bytes:
    """A message that the store cannot have already."""
    return message + os.urandom(60_000).hex().encode() + b"\r\n"


def test_sigterm_when_not_a_byte_is_left(small_disk: Path, running: ExitStack) -> None:
    """A disk that is full up to the last byte keeps nobody from stopping, and costs no mail.

    Setup: client --lmtp--> mailkeep (no reserve) --lmtp--> sink; the disk is filled in the moment between a
    message and its place in the index; then SIGTERM.
    Test: exit code 0 though the index cannot follow; with room again, a new start has every message.
    """
    sink = LmtpSink()
    thread = running.enter_context(SinkThread(sink))
    service = running.enter_context(
        Service(
            small_disk.parent / "mailkeep",
            lmtp={"downstream": thread.address},
            store={"path": str(small_disk / "store"), "reserve": "1B"},
        )
    )
    filler, rest = small_disk / "filler", small_disk / "rest"
    many = [f"user{number}@demo.example" for number in range(1000)]

    def left_behind() -> bool:
        return "the index falls behind" in service.log_text()

    def fill_the_rest() -> None:
        service.signal(signal.SIGSTOP)
        _fill(rest)
        service.signal(signal.SIGCONT)

    with LmtpDialogue(service.port) as lmtp:
        _fill(filler)
        os.truncate(filler, filler.stat().st_size - (16 << 20))
        for attempt in range(1, 10):  # on a busy machine the index may have been faster
            whom = [f"{attempt}.{who}" for who in many]
            replies = say_message(lmtp, _different(SMALL), *whom, at_first_reply=fill_the_rest)
            assert {reply[:4] for reply in replies} == {b"250 "}
            settled = wait_until(
                lambda: left_behind() or service.metrics()["index_lag_commits"] == 0, timeout_s=DEADLINE_S
            )
            assert settled, service.tail()
            if left_behind():
                break
            rest.unlink()
    assert left_behind()
    assert service.stop() == 0
    rest.unlink()
    filler.unlink()
    service.start()
    assert [len(found["recipients"]) for found in service.listed()] == [len(many)] * attempt
    assert len(sink.delivered) == attempt


def test_what_is_below_the_reserve_is_not_ready(server_directory: Path, running: ExitStack) -> None:
    """Setup: client --lmtp--> mailkeep whose reserve is larger than any disk --lmtp--> sink.

    Test: /readyz says 503 and why; 451 4.3.1; the sink never sees the end of a message.
    """
    sink = LmtpSink()
    thread = running.enter_context(SinkThread(sink))
    service = running.enter_context(
        Service(
            server_directory / "mailkeep",
            lmtp={"downstream": thread.address},
            store={"reserve": NO_DISK_IS_SO_LARGE},
        )
    )
    status, why = service.page("/readyz")
    assert status == 503
    assert "reserve" in why
    with LmtpDialogue(service.port) as lmtp:
        assert say_message(lmtp, SMALL, ANNA)[0].startswith(b"451 4.3.1 ")
    assert sink.delivered == []


def test_accept_lets_mail_through_uncaptured_and_takes_it_in_later(
    start_dovecot: StartDovecot, start_postfix: StartPostfix, server_directory: Path, running: ExitStack
) -> None:
    """on_failure = "accept": the mail goes through, and nobody is left in the dark about it.

    Setup: Postfix --lmtp--> mailkeep (accept, full by its reserve) --lmtp--> Dovecot; restarted with room.
    Test: delivered with Dovecot's own reply, counted as uncaptured and spooled, listed nowhere; after the
    restart it is in the store with its envelope and queue id, byte for byte, and the spool is empty.
    """
    dovecot = start_dovecot()
    service = running.enter_context(
        Service(
            server_directory / "mailkeep",
            lmtp={"downstream": dovecot.lmtp_address},
            capture={"on_failure": "accept"},
            store={"reserve": NO_DISK_IS_SO_LARGE},
        )
    )
    postfix = start_postfix(lmtp=service.address)

    sent = postfix.send(SENDER, [ANNA, BERT], LARGE)
    delivered_by(postfix)

    assert {fate.status for fate in fates(postfix.log_text(), sent.queue_id)} == {"sent"}
    [stored] = inbox(dovecot, ANNA)
    assert inbox(dovecot, BERT) == [stored]
    metrics = service.metrics()
    assert metrics['uncaptured_messages_total{leg="lmtp"}'] == 1
    assert metrics['captured_messages_total{leg="lmtp"}'] == 0
    assert metrics["spool_messages"] == 1
    assert "UNCAPTURED" in service.log_text()
    assert service.listed() == []

    assert service.stop() == 0
    service.configure(store={"reserve": "1MiB"})
    service.start()
    assert wait_until(lambda: service.metrics()["spool_messages"] == 0, timeout_s=DEADLINE_S), service.tail()
    [capture] = service.listed()
    assert capture["queue_id"] == sent.queue_id
    assert {who["address"] for who in capture["recipients"]} == {ANNA, BERT}
    assert "from-spool" in capture["notes"]
    assert service.raw(capture["id"]) == stored


def test_accept_can_be_switched_on_by_reload(server_directory: Path, running: ExitStack) -> None:
    """The disk is full, the operator decides that mail goes first.

    Setup: client --lmtp--> mailkeep (tempfail, full by its reserve) --lmtp--> sink; SIGHUP with accept.
    Test: 451 before; 250, delivered and counted as uncaptured after.
    """
    sink = LmtpSink()
    thread = running.enter_context(SinkThread(sink))
    service = running.enter_context(
        Service(
            server_directory / "mailkeep",
            lmtp={"downstream": thread.address},
            store={"reserve": NO_DISK_IS_SO_LARGE},
        )
    )
    with LmtpDialogue(service.port) as lmtp:
        assert say_message(lmtp, SMALL, ANNA)[0].startswith(b"451 4.3.1 ")
        service.configure(capture={"on_failure": "accept"})
        service.reload()
        assert say_message(lmtp, SMALL, ANNA)[0].startswith(b"250 ")
    assert [mail.message for mail in sink.delivered] == [SMALL]
    assert service.metrics()['uncaptured_messages_total{leg="lmtp"}'] == 1
