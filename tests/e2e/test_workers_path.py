"""Two workers on the whole road, one killed while mail flows.

client --smtp--> Postfix --milter--> mailkeep (2 workers)
                    |
                    +-----lmtp-----> mailkeep (2 workers) --lmtp--> Dovecot
"""

from __future__ import annotations

import os
import signal
import smtplib
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.ports import wait_until
from sidecar.demo.postfix import PrivatePostfix
from tests.support.delivered import as_received
from tests.support.service import Service

pytestmark = pytest.mark.e2e

USERS = [f"user{number}@demo.example" for number in range(4)]
CLIENTS, EACH = 6, 15


def message(number: int) -> bytes:
    return (
        b"From: Sender <sender@client.example>\r\nTo: Anna <anna@demo.example>\r\n"
        b"Date: Mon, 6 Jan 2025 10:00:00 +0000\r\nMessage-ID: <%d@client.example>\r\nSubject: mail %d\r\n\r\n"
        b"%s\r\n" % (number, number, b"a line of mail number %d\r\n" % number * 200)
    )


def subject_on(mail: bytes) -> bytes:
    """What follows the header fields that servers add on top."""
    return mail.partition(b"Subject: ")[2]


def test_mail_through_two_workers_one_of_which_is_killed(
    server_directory: Path,
    start_dovecot: Callable[..., PrivateDovecot],
    start_postfix: Callable[..., PrivatePostfix],
) -> None:
    """Nothing is lost, nobody is left without mail, and both legs of each message are found together.

    Setup: as drawn, the LMTP front on TCP and the milter on a unix socket, both with 2 workers.
    Test: 6 clients send 15 mails each; in the middle one worker gets SIGKILL. Postfix's deferred mail is
    flushed until the queue is empty. Every mail is in its mailbox with its bytes, and in the store, delivered
    and offered; both streams are there; `check --read-data` is clean; the other worker was never restarted.
    """
    dovecot = start_dovecot(users=USERS)
    milter = server_directory / "milter.sock"
    with Service(
        server_directory / "mailkeep",
        lmtp={"downstream": dovecot.lmtp_address, "workers": 2},
        milter={"listen": f"unix:{milter}", "socket_mode": "0666", "workers": 2},
    ) as service:
        postfix = start_postfix(
            lmtp=service.address, smtpd_milters=[f"unix:{milter}"], non_smtpd_milters=[f"unix:{milter}"]
        )

        def send(client: int) -> None:
            for number in range(client * EACH, (client + 1) * EACH):
                while True:  # a milter that is gone is answered 451, and a client comes again
                    try:
                        with smtplib.SMTP("127.0.0.1", postfix.port, "client.demo.example", 60) as smtp:
                            smtp.sendmail("s@client.example", [USERS[number % 4]], message(number))
                        break
                    except (smtplib.SMTPException, OSError):
                        continue

        children = Path(f"/proc/{service.pid}/task/{service.pid}/children")
        before = {int(pid) for pid in children.read_text().split()}
        with ThreadPoolExecutor(CLIENTS) as pool:
            sending = [pool.submit(send, client) for client in range(CLIENTS)]
            assert wait_until(
                lambda: service.metrics()['captured_messages_total{leg="lmtp"}'] >= CLIENTS * EACH / 4,
                timeout_s=60,
            )
            os.kill(max(before), signal.SIGKILL)
            for done in sending:
                done.result(90)

        def queue_is_empty() -> bool:
            postfix.flush()
            time.sleep(0.5)
            return postfix.queue() == []

        assert wait_until(queue_is_empty, timeout_s=90), postfix.log_text()[-3000:]
        after = {int(pid) for pid in children.read_text().split()}
        assert before & after == {min(before)}
        assert service.metrics()["worker_restarts_total"] == 1
        delivered: Counter[bytes] = Counter()
        for user in USERS:
            with dovecot.mailbox(user) as mailbox:
                delivered.update(subject_on(as_received(stored.raw)) for stored in mailbox.messages())
        assert set(delivered) == {subject_on(message(number)) for number in range(CLIENTS * EACH)}
        # A reply that was in the killed worker's memory is unknown, and its mail is delivered once more.
        twice = delivered.total() - CLIENTS * EACH
        assert twice <= service.metrics()["redelivered_unknown_total"]
        legs: dict[str, set[str]] = {}
        for found in service.listed():
            legs.setdefault(found["queue_id"], set()).add(found["leg"])
        both = [queue_id for queue_id, seen in legs.items() if seen == {"lmtp", "milter"}]
        assert len(both) >= CLIENTS * EACH
        assert not [queue_id for queue_id, seen in legs.items() if seen == {"lmtp"}]
        streams = [path.name for path in (service.store / "streams").iterdir()]
        assert sorted(streams) == ["host", "host-2"]
        service.output("check", "--read-data")
