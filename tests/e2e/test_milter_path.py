"""Mail captured as Postfix takes it in, with the milter alone.

client --smtp--> Postfix --milter--> mailkeep serve (no [lmtp])
                    |
                    +-----lmtp-----> sink, which mailkeep knows nothing of
"""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.demo.ports import free_port, wait_until
from sidecar.demo.postfix import PrivatePostfix
from tests.support.delivered import without_first_received
from tests.support.lmtp_sink import LmtpSink
from tests.support.postfix_log import statuses
from tests.support.service import Service
from tests.support.sink_thread import SinkThread

pytestmark = pytest.mark.e2e

ANNA, BERT, CARLA = "anna@demo.example", "bert@demo.example", "carla@demo.example"
SENDER = "sender@client.example"
HEADERS = (
    b"From: Sender <sender@client.example>\r\nTo: Anna <anna@demo.example>\r\n"
    b"Date: Mon, 6 Jan 2025 10:00:00 +0000\r\nMessage-ID: <1@client.example>\r\n"
)
MESSAGE = HEADERS + b"Subject: lunch\r\n\r\nAt noon?\r\n.\r\n\xe4 8-bit\r\n"


@dataclass
class Road:
    """What stands along it."""

    service: Service
    postfix: PrivatePostfix
    sink: LmtpSink

    def smtp(self) -> smtplib.SMTP:
        client = smtplib.SMTP("127.0.0.1", self.postfix.port, "client.demo.example", timeout=60)
        client.ehlo()
        return client

    def settle(self) -> None:
        """Wait until Postfix has nothing left to do."""
        assert wait_until(lambda: self.postfix.queue() == [], timeout_s=60), self.postfix.log_text()


@pytest.fixture
def road(server_directory: Path, require_servers: None) -> Iterator[Road]:
    sink = LmtpSink()
    milter = f"127.0.0.1:{free_port()}"
    with ExitStack() as running:
        thread = running.enter_context(SinkThread(sink))
        service = running.enter_context(Service(server_directory / "mailkeep", milter={"listen": milter}))
        postfix = running.enter_context(
            PrivatePostfix(
                server_directory,
                lmtp=thread.address,
                smtpd_milters=[f"inet:{milter}"],
                non_smtpd_milters=[f"inet:{milter}"],
            )
        )
        yield Road(service, postfix, sink)


def test_a_submission_is_captured_with_its_envelope_and_client(road: Road) -> None:
    """What only the milter can know: who was blind-copied, and who the client was.

    Setup: client --smtp--> Postfix --milter--> mailkeep; Postfix --lmtp--> sink.
    Test: sender, all three recipients (two of them in no header), the client's address and the queue id are
    kept; the bytes are what the sink got without Postfix's Received; no reply is known or invented; the
    service is ready, and counts one capture and no delivery.
    """
    sent = road.postfix.send(SENDER, [ANNA, BERT, CARLA], MESSAGE, options=["BODY=8BITMIME"])
    assert sent.accepted
    road.settle()

    [capture] = road.service.listed()
    assert capture["leg"] == "milter"
    assert capture["sender"] == SENDER
    assert capture["recipients"] == [{"address": who, "reply": None} for who in (ANNA, BERT, CARLA)]
    assert capture["queue_id"] == sent.queue_id
    shown = road.service.shown(capture["id"])
    assert shown["attributes"]["client_addr"] == "127.0.0.1"
    assert shown["delivered"] == []
    [delivered] = road.sink.delivered
    assert road.service.raw(capture["id"]) == MESSAGE == without_first_received(delivered.message)
    metrics = road.service.metrics()
    assert metrics['captured_messages_total{leg="milter"}'] == 1
    assert metrics["delivered_messages_total"] == 0
    assert road.service.page("/readyz")[0] == 200


def test_mail_of_a_local_program_is_captured(road: Road) -> None:
    """sendmail(1) goes by pickup and cleanup, not by smtpd.

    Setup: sendmail --> Postfix --milter (non_smtpd_milters)--> mailkeep.
    Test: captured with sender, recipients and queue id as mail by SMTP is.
    """
    road.postfix.submit(SENDER, [ANNA, BERT], MESSAGE.replace(b"\r\n", b"\n"))
    assert wait_until(lambda: len(road.sink.delivered) == 1, timeout_s=60), road.postfix.log_text()

    [capture] = road.service.listed()
    assert capture["sender"] == SENDER
    assert [who["address"] for who in capture["recipients"]] == [ANNA, BERT]
    assert f"{capture['queue_id']}: to=<{ANNA}>" in road.postfix.log_text()
    assert road.service.raw(capture["id"]) == without_first_received(road.sink.delivered[0].message)


def test_while_mailkeep_is_down_the_client_is_told_to_come_again(road: Road) -> None:
    """default_action=tempfail: no mail goes through without a copy, and none is bounced.

    Setup: client --smtp--> Postfix --milter--> (nobody); then mailkeep serve again.
    Test: 451 while it is down, and nothing is queued or delivered; 250, one capture and one delivery when it
    is back.
    """
    assert road.service.stop() == 0
    refused = road.postfix.send(SENDER, [ANNA], MESSAGE)
    assert refused.code == 451, refused
    assert road.postfix.queue() == []

    road.service.start()
    assert road.postfix.send(SENDER, [ANNA], MESSAGE).accepted
    road.settle()
    assert len(road.service.listed()) == 1
    assert len(road.sink.delivered) == 1


def test_a_store_that_is_full_defers_at_the_end_of_the_message(road: Road) -> None:
    """Not durable, not accepted.

    Setup: client --smtp--> Postfix --milter--> mailkeep serve whose reserve is larger than any disk.
    Test: 451 4.3.1 after the final dot, in the same session again, and nothing delivered.
    """
    assert road.service.stop() == 0
    road.service.configure(store={"reserve": "1000000GiB"})
    road.service.start()
    for _ in range(2):
        refused = road.postfix.send(SENDER, [ANNA], MESSAGE)
        assert refused.code == 451
        assert refused.text.startswith("4.3.1 ")
    assert road.postfix.queue() == []
    assert road.sink.delivered == []
    metrics = road.service.metrics()
    assert metrics['capture_failures_total{leg="milter",reason="full"}'] == 2
    assert road.service.page("/readyz")[0] == 503


def test_rset_and_several_messages_in_a_session(road: Road) -> None:
    """A session's messages are kept apart, and one that was taken back leaves no trace.

    Setup: client --smtp: MAIL RCPT RSET, MAIL RCPT DATA, MAIL RCPT RCPT DATA, MAIL RCPT and gone--> Postfix
    --milter--> mailkeep.
    Test: two captures, each with its own sender, recipients, body and queue id.
    """
    second = HEADERS + b"Subject: dinner\r\n\r\nAt eight?\r\n"
    with road.smtp() as client:
        assert client.mail("taken.back@client.example")[0] == 250
        assert client.rcpt(CARLA)[0] == 250
        assert client.rset()[0] == 250
        assert client.mail(SENDER)[0] == 250
        assert client.rcpt(ANNA)[0] == 250
        assert client.data(MESSAGE)[0] == 250
        assert client.mail("second@client.example")[0] == 250
        assert client.rcpt(BERT)[0] == 250
        assert client.rcpt(ANNA)[0] == 250
        assert client.data(second)[0] == 250
        assert client.mail("gone@client.example")[0] == 250
        assert client.rcpt(CARLA)[0] == 250
        client.close()
    road.settle()

    first, other = road.service.listed()
    assert (first["sender"], first["subject"]) == (SENDER, "lunch")
    assert [who["address"] for who in first["recipients"]] == [ANNA]
    assert (other["sender"], other["subject"]) == ("second@client.example", "dinner")
    assert [who["address"] for who in other["recipients"]] == [BERT, ANNA]
    assert first["queue_id"] != other["queue_id"]
    assert road.service.raw(other["id"]) == second
    assert wait_until(
        lambda: road.service.metrics()['in_flight_messages{leg="milter"}'] == 0, timeout_s=60
    ), "a message that was never ended is still counted"


def test_whom_postfix_refuses_and_what_is_refused_later(road: Road) -> None:
    """A capture at the milter is mail that was offered, not mail that was delivered.

    Setup: client --smtp--> Postfix --milter--> mailkeep; Postfix --lmtp--> sink that refuses Bert for good.
    Test: a recipient whom Postfix itself refuses is not in the capture; one whom the mailbox server refuses
    later is; a mail that is refused for everybody stays captured.
    """
    road.sink.final_replies[f"RCPT TO:<{BERT}>".encode()] = b"552 5.2.2 Quota exceeded\r\n"
    partly = road.postfix.send(SENDER, [ANNA, "someone@elsewhere.example", BERT], MESSAGE)
    wholly = road.postfix.send(SENDER, [BERT], MESSAGE)
    assert partly.accepted
    assert wholly.accepted
    assert list(partly.refused) == ["someone@elsewhere.example"]
    road.settle()

    captures = {capture["queue_id"]: capture for capture in road.service.listed()}
    assert set(captures) == {partly.queue_id, wholly.queue_id}
    assert [who["address"] for who in captures[partly.queue_id]["recipients"]] == [ANNA, BERT]
    assert [who["address"] for who in captures[wholly.queue_id]["recipients"]] == [BERT]
    log = road.postfix.log_text()
    assert statuses(log, partly.queue_id, ANNA) == ["sent"]
    assert statuses(log, partly.queue_id, BERT) == statuses(log, wholly.queue_id, BERT) == ["bounced"]


def test_sigterm_lets_a_message_at_the_milter_finish(road: Road) -> None:
    """A stop in the middle of a message loses neither the message nor the exit code.

    Setup: client --smtp--> Postfix --milter--> mailkeep, SIGTERM while the message's transaction is open.
    Test: the message is either captured and accepted, or answered 451 and not captured; exit code 0.
    """
    with road.smtp() as client:
        assert client.mail(SENDER)[0] == 250
        assert client.rcpt(ANNA)[0] == 250
        assert wait_until(
            lambda: road.service.metrics()['in_flight_messages{leg="milter"}'] == 1, timeout_s=60
        )
        road.service.signal(15)
        code, _ = client.data(MESSAGE)
        assert code in {250, 451}
    assert road.service.wait() == 0
    assert len(road.service.listed()) == (1 if code == 250 else 0)
    road.service.start()
    road.settle()
    assert len(road.sink.delivered) == (1 if code == 250 else 0)
