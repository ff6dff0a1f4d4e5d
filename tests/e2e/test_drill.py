"""A drill with real servers, by two workers: the canary through Postfix into Dovecot's mailbox.

mailkeep drill --smtp--> Postfix --lmtp--> mailkeep (2 workers) --lmtp--> Dovecot
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.ports import LOOPBACK, wait_until
from sidecar.demo.postfix import PrivatePostfix
from tests.support.delivered import inbox
from tests.support.mailstore import mailkeep
from tests.support.service import Service

pytestmark = pytest.mark.e2e

ANNA, DRILL = "anna@demo.example", "drill@demo.example"


def mail(number: int) -> bytes:
    return (
        b"From: Sender <sender@client.example>\r\nTo: Anna <anna@demo.example>\r\n"
        b"Date: Mon, 6 Jan 2025 10:00:00 +0000\r\nMessage-ID: <%d@client.example>\r\nSubject: mail %d\r\n\r\n"
        b".number %d\r\n" % (number, number, number)
    )


def test_a_canary_through_postfix(
    server_directory: Path,
    start_dovecot: Callable[..., PrivateDovecot],
    start_postfix: Callable[..., PrivatePostfix],
) -> None:
    dovecot = start_dovecot(users=[ANNA, DRILL])
    service = Service(
        server_directory / "mailkeep",
        lmtp={"downstream": dovecot.lmtp_address, "workers": 2},
        drill={"recipient": DRILL, "sample": 10, "timeout": "2m"},
    )
    with service:
        postfix = start_postfix(lmtp=service.address)
        for number in range(3):
            assert postfix.send("sender@client.example", [ANNA], mail(number)).accepted
        assert wait_until(lambda: postfix.queue() == [], timeout_s=60), postfix.log_text()
        service.configure(drill={"via": f"{LOOPBACK}:{postfix.port}"})
        service.reload()

        told = json.loads(service.output("drill", "--json").splitlines()[-1])
        assert (told["proven"], told["messages"], told["restored"]) == (True, 4, 4)
        assert told["canary"]["reply"].startswith("250 2.0.0 ")
        (canary,) = inbox(dovecot, DRILL)
        assert service.raw(told["canary"]["id"]) == canary
        assert canary.startswith(b"Received: ")
        assert len(inbox(dovecot, ANNA)) == 3, "nothing of the sample went to its mailbox"
        first = service.metrics()["last_proven_restore_timestamp_seconds"]
        assert first > 0

        ran = mailkeep("jobs", "--config", service.config_file, "run", "drill", "--wait")
        assert ran.code == 0, ran.out + ran.err
        assert len(inbox(dovecot, DRILL)) == 2
        assert service.metrics()["last_proven_restore_timestamp_seconds"] > first
        postfix.stop()
        failed = service.command("drill", "--no-sample")
        assert failed.returncode == 6
        assert b"not proven: the canary cannot be handed in by SMTP" in failed.stdout
        assert service.metrics()["drill_failures_total"] == 1
