"""The whole road, real servers on it, both legs captured.

client --smtp--> Postfix --milter--> mailkeep
                    |
                    +-----lmtp-----> mailkeep serve --lmtp--> Dovecot

The road is built once, the mails below are sent once, and each test looks at what came of them.
"""

from __future__ import annotations

import base64
import random
import re
import shutil
import smtplib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.ports import free_port, wait_until
from sidecar.demo.postfix import PrivatePostfix
from tests.conftest import processes_in
from tests.support.delivered import as_received, inbox, without_first_received
from tests.support.lmtp_sink import LmtpSink
from tests.support.postfix_log import fates, statuses
from tests.support.service import Service
from tests.support.sink_thread import SinkThread

pytestmark = pytest.mark.e2e

ANNA, BERT, CARLA = "anna@demo.example", "bert@demo.example", "carla@demo.example"
NOBODY = "nobody@demo.example"
SENDER = "sender@client.example"
UTF8_SENDER = "jürgen@client.example"

ATTACHMENT = base64.encodebytes(random.Random(1).randbytes(300_000)).replace(b"\n", b"\r\n")


def message(subject: str, body: bytes, headers: bytes = b"") -> bytes:
    return (
        b"From: Sender <sender@client.example>\r\nTo: Anna <anna@demo.example>\r\n"
        b"Date: Mon, 6 Jan 2025 10:00:00 +0000\r\nMessage-ID: <%b@client.example>\r\nSubject: %b\r\n%b\r\n%b"
    ) % (subject.replace(" ", "-").encode(), subject.encode(), headers, body)


def multipart(subject: str, text: bytes) -> bytes:
    return message(
        subject,
        b'--cut\r\nContent-Type: text/plain\r\n\r\n%b\r\n--cut\r\nContent-Type: image/png; name="plan"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n%b--cut--\r\n" % (text, ATTACHMENT),
        b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="cut"\r\n',
    )


@dataclass(frozen=True)
class Mail:
    """One mail of the day. `local`: handed in by sendmail(1), not by SMTP."""

    raw: bytes
    to: list[str] = field(default_factory=lambda: [ANNA])
    sender: str = SENDER
    options: tuple[str, ...] = ()
    local: bool = False


MAILS = {
    "plain": Mail(message("plain", b"At noon?\r\n")),
    "attachment": Mail(multipart("attachment", b"The plan.")),
    "same attachment": Mail(multipart("same attachment", b"Fwd: the plan."), [BERT], "carla@client.example"),
    "several recipients": Mail(message("several recipients", b"To all.\r\n"), [ANNA, BERT, CARLA]),
    "bcc": Mail(message("bcc", b"Bert is nowhere in here.\r\n"), [ANNA, BERT]),
    "8 bit": Mail(
        message("8 bit", bytes(range(128, 256)) + b"\r\n", b"X-Name: J\xfcrgen\r\n"),
        options=("BODY=8BITMIME",),
    ),
    "null sender": Mail(message("null sender", b"Your mail was not delivered.\r\n"), sender=""),
    "one refused": Mail(message("one refused", b"Who?\r\n"), [ANNA, NOBODY, BERT]),
    "all refused": Mail(message("all refused", b"Who?\r\n"), [NOBODY]),
    "long lines": Mail(
        message("long lines", b"x" * 998 + b"y\r\n" + b"0123456789" * 30_000 + b"\r\nend\r\n")
    ),
    "dots": Mail(message("dots", b".\r\n..\r\n. \r\n.leading\r\n\r\nFrom here\r\nblanks \t\r\n\r\n\r\n")),
    "folded": Mail(
        message("folded", b"\r\n", b"X-Folded: one\r\n\ttwo\r\n   three\r\nX-Tight:a\r\nX-Wide:  b\r\n")
    ),
    "local": Mail(message("local", b"From cron.\r\n"), [ANNA, BERT], local=True),
    "address detail": Mail(message("address detail", b"Tagged.\r\n"), ["anna+lists@demo.example"]),
    "headers alone": Mail(message("headers alone", b"").removesuffix(b"\r\n")),
}
DELIVERED = [name for name in MAILS if name != "all refused"]
"""at least one recipient has got these"""


class Road:
    """The servers, and for each mail its queue id and its two captures."""

    def __init__(self, directory: Path, running: ExitStack) -> None:
        self.dovecot = running.enter_context(PrivateDovecot(directory, users=[ANNA, BERT, CARLA]))
        milter = directory / "milter.sock"
        self.service = running.enter_context(
            Service(
                directory / "mailkeep",
                lmtp={"downstream": self.dovecot.lmtp_address},
                milter={"listen": f"unix:{milter}", "socket_mode": "0666"},
            )
        )
        self.postfix = running.enter_context(
            PrivatePostfix(
                directory,
                lmtp=self.service.address,
                smtpd_milters=[f"unix:{milter}"],
                non_smtpd_milters=[f"unix:{milter}"],
            )
        )
        self.queue_ids = {name: self._send(name, mail) for name, mail in MAILS.items()}
        assert wait_until(lambda: self.postfix.queue() == [], timeout_s=60), self.postfix.log_text()
        # Replies are written a moment after they were passed on.
        assert wait_until(self._all_replies_known, timeout_s=60)
        listed = self.service.listed()
        self.captures = {(found["queue_id"], found["leg"]): found for found in listed}
        assert len(self.captures) == len(listed), "something was captured twice"

    def _all_replies_known(self) -> bool:
        recipients = [who for found in self.service.listed("--leg", "lmtp") for who in found["recipients"]]
        return all(recipient["reply"] for recipient in recipients)

    def _send(self, name: str, mail: Mail) -> str:
        if not mail.local:
            sent = self.postfix.send(mail.sender, mail.to, mail.raw, options=mail.options)
            assert sent.accepted, (name, sent)
            return sent.queue_id
        self.postfix.submit(mail.sender, mail.to, mail.raw.replace(b"\r\n", b"\n"))
        found = re.compile(rf"cleanup\[\d+\]: (\w+): message-id=<{name}@client.example>")
        assert wait_until(lambda: found.search(self.postfix.log_text()) is not None, timeout_s=60)
        known = found.search(self.postfix.log_text())
        assert known
        return known[1]

    def lmtp(self, name: str) -> dict[str, Any]:
        return self.captures[self.queue_ids[name], "lmtp"]

    def milter(self, name: str) -> dict[str, Any]:
        return self.captures[self.queue_ids[name], "milter"]


@pytest.fixture(scope="module")
def road(require_servers: None) -> Iterator[Road]:
    directory = Path(tempfile.mkdtemp(prefix="mailkeep-")).resolve()
    directory.chmod(0o755)
    try:
        with ExitStack() as running:
            yield Road(directory, running)
        assert processes_in(directory) == {}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_both_legs_of_every_mail_are_captured_with_their_envelopes(road: Road) -> None:
    """Each leg's sender and recipients are those of its own transaction.

    Setup: client --smtp--> Postfix --milter--> mailkeep; Postfix --lmtp--> mailkeep --lmtp--> Dovecot.
    Test: the milter leg has everybody whom the client named (BCC too, and who was refused later), in the
    client's order; the LMTP leg has all whom Postfix asked for, too; a mail that Dovecot wanted for nobody
    has no LMTP leg.
    """
    assert len(road.captures) == len(MAILS) + len(DELIVERED)
    for name, mail in MAILS.items():
        offered = road.milter(name)
        assert [recipient["address"] for recipient in offered["recipients"]] == mail.to
        assert offered["sender"] == mail.sender
        assert offered["subject"] == name
        assert offered["message_id"] == f"<{name.replace(' ', '-')}@client.example>"
    for name in DELIVERED:
        delivered = road.lmtp(name)
        assert {recipient["address"] for recipient in delivered["recipients"]} == set(MAILS[name].to)
        assert delivered["sender"] == MAILS[name].sender
    assert (road.queue_ids["all refused"], "lmtp") not in road.captures


@pytest.mark.parametrize("name", MAILS)
def test_show_tells_to_whom_it_was_offered_and_delivered(road: Road, name: str) -> None:
    """`show` of either leg names both, joined by Postfix's queue id.

    Setup: Postfix --milter--> mailkeep: *offered*; Postfix --lmtp--> mailkeep --lmtp--> Dovecot: *delivered*.
    Test: `show --json` of both captures has the same offered and delivered ids; the text has both headings.
    Also for mail of a local program, whose queue id is known from its Received field alone.
    """
    legs = [road.milter(name), *([road.lmtp(name)] if name in DELIVERED else [])]
    for leg in legs:
        shown = road.service.shown(leg["id"])
        assert [offered["id"] for offered in shown["offered"]] == [legs[0]["id"]]
        assert [delivered["id"] for delivered in shown["delivered"]] == [leg["id"] for leg in legs[1:]]
    text = road.service.output("show", legs[-1]["id"][:12]).decode()
    assert "Offered to" in text
    assert ("Delivered to" in text) == (name in DELIVERED)


@pytest.mark.parametrize("name", DELIVERED)
def test_the_outcomes_are_dovecots_replies(road: Road, name: str) -> None:
    """What mailkeep has written down is what Postfix heard.

    Setup: Postfix <--lmtp-- mailkeep <--lmtp-- Dovecot: a reply for each recipient.
    Test: for each recipient the reply in `list --json` is the one in Postfix's log, to the letter: `Saved`
    for whom it was delivered to, the 550 that RCPT was answered with for whom Dovecot does not know.
    """
    heard = {fate.recipient: fate for fate in fates(road.postfix.log_text(), road.queue_ids[name])}
    kept = {recipient["address"]: recipient["reply"] for recipient in road.lmtp(name)["recipients"]}
    assert kept == {address: fate.reply for address, fate in heard.items()}
    for address, reply in kept.items():
        delivered = address != NOBODY
        assert heard[address].status == ("sent" if delivered else "bounced")
        assert reply.startswith("250 2.0.0 " if delivered else "550 5.1.1 ")


@pytest.mark.parametrize("name", DELIVERED)
def test_the_store_has_the_bytes_that_dovecot_has(road: Road, name: str) -> None:
    """Bytes in, the same bytes out.

    Setup: Postfix --lmtp--> mailkeep --lmtp--> Dovecot --imap--> test.
    Test: `show --raw` of the LMTP leg equals the message in each mailbox (as IMAP gives it, with CRLF)
    without the Return-Path, Delivered-To and Received that Dovecot puts on top, and ends with all that the
    client sent.
    """
    raw = road.service.raw(road.lmtp(name)["id"])
    sent = MAILS[name].raw
    assert len(raw) == road.lmtp(name)["size"]
    assert raw.endswith(sent)
    for recipient in road.lmtp(name)["recipients"]:
        if recipient["address"] == NOBODY:
            continue
        stored = inbox(road.dovecot, recipient["address"].replace("+lists", ""))
        assert stored.count(raw) == 1, (recipient, stored[-1][:1000], raw[:1000])


@pytest.mark.parametrize("name", DELIVERED)
def test_the_legs_differ_by_postfix_own_received_field(road: Road, name: str) -> None:
    """A milter is not shown the Received field of its own MTA; all else is the same.

    Setup: Postfix --milter--> mailkeep and Postfix --lmtp--> mailkeep, one queue file behind both.
    Test: the milter leg's bytes equal the LMTP leg's without the first Received. One difference is known and
    noted: whether an empty line follows when there is no body is not told to a milter, and it is written.
    """
    offered = road.service.raw(road.milter(name)["id"])
    delivered = without_first_received(road.service.raw(road.lmtp(name)["id"]))
    if name == "headers alone":
        assert offered == delivered + b"\r\n"
        assert road.milter(name)["notes"] == ["blank-line-unknown"]
    else:
        assert offered == delivered
        assert road.milter(name)["notes"] == []


def test_the_client_is_known_on_both_legs(road: Road) -> None:
    """Where mail came from is kept with it.

    Setup: client 127.0.0.1 --smtp--> Postfix --milter (macros)--> mailkeep, --lmtp (XFORWARD)--> mailkeep.
    Test: both captures of a mail by SMTP have the client's address among their attributes.
    """
    offered = road.service.shown(road.milter("plain")["id"])["attributes"]
    delivered = road.service.shown(road.lmtp("plain")["id"])["attributes"]
    assert offered["client_addr"] == "127.0.0.1"
    assert delivered["ADDR"] == "127.0.0.1"
    assert delivered["IDENT"] == road.queue_ids["plain"]
    assert delivered["HELO"] == "client.demo.example"


def test_the_metrics_agree_with_what_was_done(road: Road) -> None:
    """Prometheus sees the same mails.

    Setup: mails --> Postfix --> mailkeep --> Dovecot; GET /metrics, /readyz, /healthz.
    Test: captured by leg, delivered, outcomes by class and bytes are what the listing says; nothing failed,
    is in flight, went uncaptured or was taken for a retry (the milter's capture is none, though it has the
    same queue id); the second copy of the attachment was a duplicate; the service is ready.
    """
    metrics = road.service.metrics()
    legs = {
        leg: [found for (_, where), found in road.captures.items() if where == leg]
        for leg in ("lmtp", "milter")
    }
    for leg, captures in legs.items():
        assert metrics[f'captured_messages_total{{leg="{leg}"}}'] == len(captures)
        assert metrics[f'received_bytes_total{{leg="{leg}"}}'] == sum(found["size"] for found in captures)
        assert metrics[f'uncaptured_messages_total{{leg="{leg}"}}'] == 0
        assert metrics[f'in_flight_messages{{leg="{leg}"}}'] == 0
    replies = [who["reply"] for found in legs["lmtp"] for who in found["recipients"]]
    assert metrics["delivered_messages_total"] == len(DELIVERED)
    outcomes = {name: value for name, value in metrics.items() if name.startswith("outcomes_total")}
    for code in "25":
        given = sum(reply.startswith(code) for reply in replies)
        assert outcomes.pop(f'outcomes_total{{class="{code}xx",source="downstream"}}') == given > 0
    assert set(outcomes.values()) == {0}
    assert {value for name, value in metrics.items() if name.startswith("capture_failures_total")} == {0}
    assert metrics["retries_suppressed_total"] == metrics["redelivered_unknown_total"] == 0
    # The attachment came four times, in two mails on two legs.
    assert metrics["stored_duplicate_bytes_total"] >= 3 * 300_000
    assert metrics["stored_new_bytes_total"] + metrics["stored_duplicate_bytes_total"] > 1_200_000
    assert metrics["commit_seconds_count"] >= 1
    assert metrics["downstream_seconds_count"] == len(DELIVERED)
    assert metrics["last_commit_timestamp_seconds"] > 1.7e9
    assert road.service.page("/readyz") == (200, "ready\n")
    assert road.service.page("/healthz")[0] == 200


def test_the_store_checks_clean_while_it_is_written(road: Road) -> None:
    """Setup: mailkeep serve holding the store, Dovecot and Postfix behind and before it.

    Test: `check --read-data` beside it finds nothing.
    """
    assert road.service.command("check", "--read-data").returncode == 0


@pytest.mark.parametrize("name", ["attachment", "bcc", "8 bit"])
def test_a_deleted_mail_is_put_back_with_the_same_bytes(road: Road, name: str) -> None:
    """The reason for all of it.

    Setup: test --imap (delete)--> Dovecot; mailkeep replay ID --lmtp--> Dovecot --imap--> test.
    Test: gone after the delete, back after the replay, for the deleted recipient alone (`--to`), byte for
    byte, and `show` tells of the replay.
    """
    capture = road.lmtp(name)
    before = road.service.raw(capture["id"])
    with road.dovecot.mailbox(ANNA) as mailbox:
        wanted = [stored for stored in mailbox.messages() if as_received(stored.raw) == before]
        assert len(wanted) == 1
        mailbox.delete(wanted[0].uid)
        assert all(as_received(stored.raw) != before for stored in mailbox.messages())

    told = road.service.output("replay", capture["id"][:10], "--to", ANNA, "--json")

    assert b'"restored": true' in told
    assert inbox(road.dovecot, ANNA).count(before) == 1
    if BERT in MAILS[name].to:
        assert inbox(road.dovecot, BERT).count(before) == 1
    assert [replay["recipient"] for replay in road.service.shown(capture["id"])["replays"]] == [ANNA]


UTF8_MAIL = message("utf-8", "Grüße\r\n".encode(), "X-Name: Jürgen\r\n".encode())


def test_smtputf8_where_the_mailbox_server_has_it(server_directory: Path, require_servers: None) -> None:
    """What the mailbox server can do is what Postfix is offered.

    Setup: client --smtp, SMTPUTF8--> Postfix --lmtp--> mailkeep --lmtp--> sink that announces SMTPUTF8.
    Test: UTF-8 in sender and recipient arrives as it was, with SMTPUTF8 at MAIL, and is listed as text.
    """
    sink = LmtpSink(capabilities=(b"8BITMIME", b"ENHANCEDSTATUSCODES", b"SMTPUTF8"))
    with ExitStack() as running:
        thread = running.enter_context(SinkThread(sink))
        service = running.enter_context(
            Service(server_directory / "mailkeep", lmtp={"downstream": thread.address})
        )
        postfix = running.enter_context(PrivatePostfix(server_directory, lmtp=service.address))
        code, queue_id = _send_utf8(postfix, "zoë@demo.example")
        assert code == 250
        assert wait_until(lambda: postfix.queue() == [], timeout_s=60), postfix.log_text()
        assert statuses(postfix.log_text(), queue_id, "zoë@demo.example") == ["sent"]
        [delivered] = sink.delivered
        assert delivered.recipients == ["RCPT TO:<zoë@demo.example>".encode()]
        assert b" SMTPUTF8" in delivered.mail
        [found] = service.listed("--to", "zoë@demo.example")
        assert found["sender"] == UTF8_SENDER
        assert service.raw(found["id"]) == delivered.message


def test_smtputf8_where_the_mailbox_server_has_it_not(server_directory: Path, require_servers: None) -> None:
    """Dovecot 2.3 has no SMTPUTF8: nothing is promised in its name.

    Setup: client --smtp, SMTPUTF8--> Postfix --milter--> mailkeep; --lmtp--> mailkeep --lmtp--> Dovecot 2.3.
    Test: Postfix bounces the mail by itself, as it does without us; the milter leg has it, the LMTP leg not.
    """
    with ExitStack() as running:
        dovecot = running.enter_context(PrivateDovecot(server_directory))
        milter = f"127.0.0.1:{free_port()}"
        service = running.enter_context(
            Service(
                server_directory / "mailkeep",
                lmtp={"downstream": dovecot.lmtp_address},
                milter={"listen": milter},
            )
        )
        postfix = running.enter_context(
            PrivatePostfix(server_directory, lmtp=service.address, smtpd_milters=[f"inet:{milter}"])
        )
        code, queue_id = _send_utf8(postfix, "zoë@demo.example")
        assert code == 250
        assert wait_until(lambda: postfix.queue() == [], timeout_s=60), postfix.log_text()
        [fate] = fates(postfix.log_text(), queue_id)
        assert (fate.status, "SMTPUTF8 is required" in fate.reply) == ("bounced", True)
        [found] = service.listed()
        assert found["leg"] == "milter"
        assert found["sender"] == UTF8_SENDER
        assert [recipient["address"] for recipient in found["recipients"]] == ["zoë@demo.example"]


def _send_utf8(postfix: PrivatePostfix, recipient: str) -> tuple[int, str]:
    """Postfix's reply code, and the queue id. smtplib's own `send` cannot name such addresses."""
    with smtplib.SMTP("127.0.0.1", postfix.port, local_hostname="client.demo.example", timeout=60) as smtp:
        smtp.ehlo()
        smtp.command_encoding = "utf-8"
        smtp.mail(UTF8_SENDER, ["SMTPUTF8", "BODY=8BITMIME"])
        smtp.rcpt(recipient)
        code, text = smtp.data(UTF8_MAIL)
        return code, text.decode().rpartition("queued as ")[2]
