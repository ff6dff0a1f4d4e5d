"""The private servers themselves, and what Dovecot does when the end of a message is withheld.

The second half is what the promise stands on: a message whose final dot (or last byte of the
last chunk) never came is not delivered, by TCP or UNIX socket, small or large.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.ports import LOOPBACK, wait_until
from sidecar.demo.postfix import PrivatePostfix
from sidecar.demo.process import ServerFailedError, session_members
from tests.conftest import processes_in
from tests.e2e.dialogue import LmtpDialogue
from tests.support.postfix_log import statuses

StartDovecot = Callable[..., PrivateDovecot]
StartPostfix = Callable[..., PrivatePostfix]

ANNA = "anna@demo.example"
BERT = "bert@demo.example"
HEADERS = (
    b"From: Sender <sender@client.example>\r\n"
    b"To: undisclosed-recipients:;\r\n"
    b"Date: Mon, 6 Jan 2025 10:00:00 +0000\r\n"
    b"Message-ID: <1@client.example>\r\n"
    b"Subject: a test\r\n"
    b" folded\tover\r\n"
    b"\r\n"
)
AWKWARD = (
    HEADERS
    + "Grüße in Latin-1: ".encode("latin-1")
    + b"\xe4\xf6\xfc\xff\r\n.\r\n..\r\n.leading dot\r\nFrom the start\r\ntrailing blanks  \t\r\n"
    + b"x" * 5000
    + b"\r\n\r\n\r\n"
)
ADDED = re.compile(rb"(?:(?:Return-Path|Delivered-To|Received):.*\r\n(?:[ \t].*\r\n)*)+")


def count(dovecot: PrivateDovecot, user: str) -> int:
    with dovecot.mailbox(user) as mailbox:
        return mailbox.count()


def test_mail_goes_through_postfix_into_dovecot_with_every_byte_kept(
    start_dovecot: StartDovecot, start_postfix: StartPostfix
) -> None:
    dovecot = start_dovecot()
    postfix = start_postfix(lmtp=dovecot.lmtp_address)

    sent = postfix.send("sender@client.example", [ANNA, BERT], AWKWARD, options=["BODY=8BITMIME"])

    assert sent.accepted
    assert len(sent.queue_id) > 12, "a long queue id does not repeat"
    for user in (ANNA, BERT):
        assert wait_until(lambda user=user: count(dovecot, user) == 1, timeout_s=60), postfix.log_text()
        with dovecot.mailbox(user) as mailbox:
            stored = mailbox.messages()[0]
            assert stored.raw.endswith(AWKWARD)
            assert ADDED.fullmatch(stored.raw.removesuffix(AWKWARD))
            mailbox.delete(stored.uid)
            assert mailbox.count() == 0
            assert mailbox.messages() == []


def test_lmtp_by_unix_socket_and_mail_from_a_local_program(
    start_dovecot: StartDovecot, start_postfix: StartPostfix
) -> None:
    dovecot = start_dovecot()
    postfix = start_postfix(lmtp=f"unix:{dovecot.lmtp_socket}")

    postfix.submit("sender@client.example", [ANNA], AWKWARD.replace(b"\r\n", b"\n"))

    assert wait_until(lambda: count(dovecot, ANNA) == 1, timeout_s=60), postfix.log_text()
    with dovecot.mailbox(ANNA) as mailbox:
        assert mailbox.messages()[0].raw.endswith(AWKWARD)


def test_nothing_is_taken_for_other_hosts(start_postfix: StartPostfix) -> None:
    postfix = start_postfix(lmtp=f"{LOOPBACK}:1")

    sent = postfix.send("sender@client.example", ["someone@elsewhere.example"], AWKWARD)

    assert not sent.accepted
    assert sent.refused["someone@elsewhere.example"][0] == 554
    assert postfix.queue() == []


def test_an_unknown_recipient_is_refused_at_rcpt(start_dovecot: StartDovecot) -> None:
    dovecot = start_dovecot(users=[ANNA])

    with LmtpDialogue(dovecot.lmtp_port) as lmtp:
        lmtp.begin(ANNA.encode())
        assert lmtp.say(b"RCPT TO:<nobody@demo.example>").startswith(b"550 5.1.1 ")


@pytest.mark.parametrize(("tempfail", "refusal"), [(False, b"552 5.2.2 "), (True, b"452 4.2.2 ")])
def test_a_recipient_over_quota_is_refused_in_its_place(
    start_dovecot: StartDovecot, tempfail: bool, refusal: bytes
) -> None:
    dovecot = start_dovecot(quota_bytes={BERT: 1000}, quota_full_tempfail=tempfail)

    with LmtpDialogue(dovecot.lmtp_port) as lmtp:
        lmtp.begin(ANNA.encode(), BERT.encode(), b"carla@demo.example")
        assert lmtp.say(b"DATA").startswith(b"354")
        lmtp.send(HEADERS + b"y" * 2000 + b"\r\n.\r\n")
        replies = [lmtp.reply() for _ in range(3)]

    assert replies[0].startswith(b"250 2.0.0 <anna@")
    assert replies[1].startswith(refusal + b"<bert@")
    assert replies[2].startswith(b"250 2.0.0 <carla@")
    assert [count(dovecot, user) for user in (ANNA, BERT, "carla@demo.example")] == [1, 0, 1]


def test_postfix_keeps_mail_while_dovecot_is_down_and_delivers_it_once(
    start_dovecot: StartDovecot, start_postfix: StartPostfix
) -> None:
    dovecot = start_dovecot()
    postfix = start_postfix(lmtp=dovecot.lmtp_address)
    dovecot.stop()

    sent = postfix.send("sender@client.example", [ANNA], HEADERS)

    assert sent.accepted
    assert wait_until(lambda: "status=deferred" in postfix.log_text(), timeout_s=60)
    assert [entry["queue_id"] for entry in postfix.queue()] == [sent.queue_id]
    dovecot.start()
    postfix.flush()
    assert wait_until(lambda: postfix.queue() == [], timeout_s=60), postfix.log_text()
    assert count(dovecot, ANNA) == 1


def test_an_empty_queue_is_in_the_log(start_dovecot: StartDovecot, start_postfix: StartPostfix) -> None:
    """Setup: the process that writes Postfix's log gets no time for a second. Test: the log is waited for."""
    postfix = start_postfix(lmtp=start_dovecot().lmtp_address)
    assert postfix.pid
    members = session_members(postfix.pid)
    [writer] = [pid for pid in members if b"postlogd" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(writer, signal.SIGSTOP)
    running = threading.Timer(1, os.kill, (writer, signal.SIGCONT))
    running.start()

    sent = postfix.send("sender@client.example", [ANNA], HEADERS)
    assert wait_until(lambda: postfix.queue() == [], timeout_s=60), postfix.log_text()
    assert statuses(postfix.log_text(), sent.queue_id, ANNA) == ["sent"]
    running.join()


def test_mail_and_queue_survive_a_stop(start_dovecot: StartDovecot, start_postfix: StartPostfix) -> None:
    dovecot = start_dovecot()
    postfix = start_postfix(lmtp=f"{LOOPBACK}:1")
    with LmtpDialogue(dovecot.lmtp_port) as lmtp:
        lmtp.begin(ANNA.encode())
        lmtp.say(b"DATA")
        lmtp.send(HEADERS + b".\r\n")
        assert lmtp.reply().startswith(b"250")
    queue_id = postfix.send("sender@client.example", [ANNA], HEADERS).queue_id
    sessions = [dovecot.pid, postfix.pid]

    for server in (dovecot, postfix):
        server.stop()
    assert [session_members(session) for session in sessions if session] == [[], []]
    for server in (dovecot, postfix):
        server.start()

    assert count(dovecot, ANNA) == 1
    # As a set: while Postfix moves it from one queue to another, it is listed in both.
    assert {entry["queue_id"] for entry in postfix.queue()} == {queue_id}


def test_a_taken_port_is_named(require_servers: None, server_directory: Path) -> None:
    dovecot = PrivateDovecot(server_directory)
    postfix = PrivatePostfix(server_directory, lmtp=f"{LOOPBACK}:1")
    for server, port in ((dovecot, dovecot.lmtp_port), (dovecot, dovecot.imap_port), (postfix, postfix.port)):
        with (
            socket.create_server((LOOPBACK, port)),
            pytest.raises(ServerFailedError, match=f"in use.* {port}"),
        ):
            server.start()


def test_a_start_that_fails_half_way_says_why_and_leaves_nothing(
    require_servers: None, server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.demo.dovecot._START_TIMEOUT_S", 6.0)
    monkeypatch.setattr("sidecar.demo.postfix._START_TIMEOUT_S", 6.0)

    # Both masters run, and their other services too; only the one that greets cannot.
    with pytest.raises(ServerFailedError, match=r"(?i)fatal.*nonsense"):
        PrivateDovecot(server_directory, settings={"auth_mechanisms": "nonsense"}).start()
    assert processes_in(server_directory) == {}
    with pytest.raises(ServerFailedError, match=r"(?i)fatal.*nonsense"):
        PrivatePostfix(server_directory, lmtp="127.0.0.1:1", settings={"smtpd_timeout": "nonsense"}).start()
    assert processes_in(server_directory) == {}


# ---- the end withheld --------------------------------------------------------------------------

SMALL = HEADERS + b"small\r\n"
LARGE = HEADERS + b"0123456789abcdef" * 4 * 64 + b"\r\n" + (b"z" * 76 + b"\r\n") * 40_000


def as_data(message: bytes) -> tuple[bytes, bytes]:
    """(all that comes before the end, the end) of a message sent with DATA."""
    return message, b".\r\n"


def as_chunks(message: bytes) -> tuple[bytes, bytes]:
    """The same with BDAT, the LAST chunk not yet announced."""
    return b"BDAT %d\r\n%b" % (len(message), message), b"BDAT 0 LAST\r\n"


def as_last_chunk(message: bytes) -> tuple[bytes, bytes]:
    """The same with one BDAT LAST whose final byte is missing."""
    return b"BDAT %d LAST\r\n%b" % (len(message), message[:-1]), message[-1:]


Framing = Callable[[bytes], tuple[bytes, bytes]]
framings = pytest.mark.parametrize("framing", [as_data, as_chunks, as_last_chunk])
messages = pytest.mark.parametrize("message", [SMALL, LARGE], ids=["small", "large"])
sockets = pytest.mark.parametrize("by", ["tcp", "unix"])


def send_all_but_the_end(lmtp: LmtpDialogue, framing: Framing, message: bytes) -> bytes:
    lmtp.begin(ANNA.encode(), BERT.encode())
    if framing is as_data:
        assert lmtp.say(b"DATA").startswith(b"354")
    before, end = framing(message)
    lmtp.send(before)
    if framing is as_chunks:
        assert lmtp.reply().startswith(b"250")
    return end


def ended_in_a_message(dovecot: PrivateDovecot) -> int:
    """How many LMTP connections ended with a message begun. Those that only waited for the greeting do not
    count: Dovecot may log their ends when the test is already under way."""
    return len(re.findall(r"lmtp\(\d+\): Info: Disconnect from .*\(state=DATA\)", dovecot.log_text()))


@framings
@messages
@sockets
def test_a_message_without_its_end_is_not_delivered(
    start_dovecot: StartDovecot, framing: Framing, message: bytes, by: str
) -> None:
    dovecot = start_dovecot()
    server = dovecot.lmtp_socket if by == "unix" else dovecot.lmtp_port

    with LmtpDialogue(server) as closed:
        send_all_but_the_end(closed, framing, message)
    with LmtpDialogue(server) as half_closed:
        send_all_but_the_end(half_closed, framing, message)
        half_closed.half_close()
        assert not half_closed.reply().startswith(b"2")

    # Dovecot has finished with both connections once it has logged their ends.
    assert wait_until(lambda: ended_in_a_message(dovecot) == 2, timeout_s=60), dovecot.log_text()
    assert "saved mail" not in dovecot.log_text()
    assert [count(dovecot, user) for user in (ANNA, BERT)] == [0, 0]


@framings
@messages
@sockets
def test_a_withheld_end_that_comes_later_delivers_once(
    start_dovecot: StartDovecot, framing: Framing, message: bytes, by: str
) -> None:
    dovecot = start_dovecot()

    with LmtpDialogue(dovecot.lmtp_socket if by == "unix" else dovecot.lmtp_port) as lmtp:
        end = send_all_but_the_end(lmtp, framing, message)
        assert [count(dovecot, user) for user in (ANNA, BERT)] == [0, 0]
        lmtp.send(end)
        replies = [lmtp.reply() for _ in range(2)]

    assert [reply[:4] for reply in replies] == [b"250 ", b"250 "]
    for user in (ANNA, BERT):
        with dovecot.mailbox(user) as mailbox:
            assert [stored.raw.endswith(message) for stored in mailbox.messages()] == [True]
