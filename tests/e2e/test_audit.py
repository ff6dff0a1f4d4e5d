"""`mailkeep audit` with a real Dovecot: every planted difference is found and named, and nothing else is.

client --lmtp--> mailkeep --lmtp--> Dovecot <--imap-- mailkeep audit
"""

from __future__ import annotations

import smtplib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sidecar.audit import Auditor
from sidecar.demo.dovecot import MASTER, PrivateDovecot
from sidecar.demo.ports import wait_until
from sidecar.live.imap import ImapMailbox, ImapServer
from sidecar.live.mailbox import LiveMessage
from sidecar.live.maildir import Maildir
from sidecar.sections import ImapConfig
from sidecar.units import Address
from store.store import Store
from tests.e2e.test_corpus import corpus
from tests.store.conftest import put_message
from tests.support.mailstore import Ran, mailkeep
from tests.support.service import Service

StartDovecot = Callable[..., PrivateDovecot]
ANNA, BERT = "anna@demo.example", "bert@demo.example"
OF_EACH = 5


def mail(name: str, body: bytes = b"body\r\n", *, received: bool = True) -> bytes:
    front = b"Received: from client by mx; Mon, 6 Jan 2025 10:00:00 +0000\r\n" if received else b""
    head = (
        f"Date: Mon, 6 Jan 2025 10:00:00 +0000\r\nFrom: client@client.example\r\nTo: {ANNA}\r\n"
        f"Subject: {name}\r\nMessage-ID: <{name}@client.example>\r\n\r\n"
    )
    return front + head.encode() + body


def send(port: int, mails: Sequence[bytes], to: str = ANNA) -> None:
    with smtplib.LMTP("127.0.0.1", port) as client:
        for raw in mails:
            client.ehlo_or_helo_if_needed()
            client.docmd("MAIL FROM:<client@client.example>")
            client.docmd(f"RCPT TO:<{to}>")
            client.docmd("DATA")
            client.send(raw + b".\r\n")
            assert client.getreply()[0] == 250


class Stage:
    """A Dovecot, a mailkeep in front of it, and what one does with them."""

    def __init__(self, dovecot: PrivateDovecot, directory: Path) -> None:
        self.dovecot = dovecot
        passwords = directory / "passwords"
        passwords.write_text(f"{MASTER}:{dovecot.password}\n")
        self.service = Service(
            directory / "mailkeep",
            store={"path": str(directory / "store")},
            lmtp={"downstream": dovecot.lmtp_address},
            scheduler={"compact": "", "expire": "", "check": ""},
            imap={
                "server": f"127.0.0.1:{dovecot.imap_port}",
                "master_user": MASTER,
                "passwords": str(passwords),
            },
        )

    def mailbox(self, user: str = ANNA) -> ImapMailbox:
        address = Address("127.0.0.1", self.dovecot.imap_port)
        return ImapMailbox(ImapServer(address=address, master=MASTER, password=self.dovecot.password), user)

    def capture(self, *names: str, to: str = ANNA, body: bytes = b"body\r\n") -> None:
        send(self.service.port, [mail(name, body) for name in names], to)
        assert wait_until(self._replies_are_known, timeout_s=60)  # they are written a moment later

    def _replies_are_known(self) -> bool:
        listed = mailkeep("list", "--json", "--limit", "0", "--config", self.service.config_file).objects
        return all(recipient["reply"] for found in listed for recipient in found["recipients"])

    def bypass(self, *names: str, to: str = ANNA) -> None:
        """Into the mailbox without mailkeep seeing it."""
        send(self.dovecot.lmtp_port, [mail(name) for name in names], to)

    def audit(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        ran = self.told("--json", *arguments)
        assert ran.code == code, (ran.out, ran.err)
        return ran.objects

    def told(self, *arguments: str) -> Ran:
        return mailkeep("audit", "--config", self.service.config_file, *arguments)


@pytest.fixture
def stage(start_dovecot: StartDovecot, server_directory: Path) -> Iterator[Stage]:
    made = Stage(start_dovecot(users=[ANNA, BERT], settings={"auth_failure_delay": "0"}), server_directory)
    with made.service:
        yield made


def names(kind: str) -> list[str]:
    return [f"{kind}{number}" for number in range(OF_EACH)]


def of(mailbox: ImapMailbox, kind: str, folder: str = "INBOX") -> list[LiveMessage]:
    return [m for m in mailbox.messages(folder) if m.message_id.startswith(f"<{kind}".encode())]


def differences(told: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """(what it is, which planted kind) -> how many."""
    found: Counter[tuple[str, str]] = Counter()
    for line in told:
        if "difference" in line:
            message_id = line["delivery"]["message_id"] if "delivery" in line else line["message_id"]
            found[line["difference"], message_id.partition("@")[0].strip("<0123456789")] += 1
    return found


def plant(stage: Stage) -> None:
    """Five of each kind, among mail that is just where it belongs."""
    stage.bypass(*names("before"))
    time.sleep(1.1)  # a mailbox knows whole seconds
    stage.capture(*names("kept"), *names("moved"), *names("deleted"), *names("erased"), *names("back"))
    stage.capture(*names("nul"), body=b"a\0b\r\n")
    stage.capture(*names("detail"), to="Anna+lists@demo.example")
    stage.capture(*names("bert"), to=BERT)
    stage.capture("kept0", "kept1")  # again
    stage.bypass(*names("hole"))
    with stage.mailbox() as mailbox:
        for folder in ("Archive", "Sent", "Drafts", "Work"):
            mailbox.make_folder(folder)
        now_us = int(time.time()) * 1_000_000
        for number, message in enumerate(of(mailbox, "moved")):
            ((_, raw),) = mailbox.fetch([message])
            mailbox.append("Archive" if number % 2 else "Work", raw, received_us=message.received_us)
        mailbox.delete(of(mailbox, "moved"))
        mailbox.delete(of(mailbox, "deleted"))
        for name in names("sent"):
            mailbox.append("Sent", mail(name, received=False), received_us=now_us, flags=["\\Seen"])
        for name in names("draft"):
            mailbox.append("Drafts", mail(name, received=False), received_us=now_us)
            mailbox.append("INBOX", mail(f"flagged-{name}"), received_us=now_us, flags=["\\Draft"])
        for name in names("note"):
            mailbox.append("Work", mail(name, received=False), received_us=now_us)
        with stage.mailbox(BERT) as berts:
            for message, raw in berts.fetch(of(berts, "bert")):
                mailbox.append("Work", raw, received_us=message.received_us)
    for found in stage.service.listed("--to", ANNA):
        if found["subject"].startswith("erased"):
            stage.service.output("erase", found["id"], "--reason", "asked for", "--yes")


PLANTED = Counter(
    {
        ("before", "before"): 5, ("gone", "deleted"): 5, ("erased", "erased"): 5, ("hole", "hole"): 5,
        ("sent", "sent"): 5, ("draft", "draft"): 5, ("draft", "flagged-draft"): 5, ("appended", "note"): 5,
        ("other", "bert"): 5,
    }
)  # fmt: skip


def test_what_was_planted_is_found_and_nothing_else(stage: Stage) -> None:
    plant(stage)
    told = stage.audit(code=5)
    assert differences(told) == PLANTED
    accounts = {line["user"]: line for line in told if "live" in line}
    assert set(accounts) == {ANNA, BERT}
    # kept, moved, deleted, back, nul and detail; not what was erased
    assert accounts[ANNA] == {
        "user": ANNA, "delivered": 30, "live": 67, "present": 25, "by_headers": 0, "missing": 5, "holes": 5,
        "imported": 0, "error": None,
    }  # fmt: skip
    assert (accounts[BERT]["delivered"], accounts[BERT]["missing"], accounts[BERT]["holes"]) == (5, 0, 0)
    summary = told[-1]
    assert (summary["mailboxes"], summary["failed"]) == (2, 0)

    # the same, said otherwise
    assert differences(stage.audit("Anna+x@demo.example", code=5)) == PLANTED
    assert differences(stage.audit("--connections", "2", code=5)) == PLANTED
    assert differences(stage.audit(BERT)) == Counter()
    hour = stage.audit("--since", "1h", code=5)
    assert differences(hour) == PLANTED
    assert differences(stage.audit("--until", "1h")) == Counter()
    maildir = next((stage.dovecot.directory / "mail" / ANNA).glob("Maildir"))
    assert differences(stage.audit(ANNA, "--maildir", str(maildir), code=5)) == PLANTED
    text = stage.told(ANNA)
    assert text.code == 5
    assert text.out.count("  hole  ") == 5
    assert "5 hole, 5 before, 5 sent, 10 draft, 5 appended, 5 other, 5 erased, 5 gone" in text.err
    details = stage.told(ANNA, "--details").lines
    assert len(details) == sum(PLANTED.values()) + 2

    # what the store lacks is taken in, and is then no difference any more; the erased is left
    taken = stage.audit("--import-missing")
    left = Counter({key: PLANTED[key] for key in PLANTED if key[0] in {"gone", "erased", "draft", "other"}})
    assert differences(taken) == left
    assert taken[-1]["imported"] == 20
    assert differences(stage.audit()) == left
    found = [one for one in stage.service.listed("--to", ANNA) if one["leg"] == "import"]
    assert sorted(one["subject"] for one in found) == sorted(
        [*names("before"), *names("hole"), *names("sent"), *names("note")]
    )


def test_mail_that_was_put_back_and_is_gone_again(stage: Stage) -> None:
    stage.capture("one", "two")
    stage.service.output("replay", "--to", ANNA, "--since", "1h", "--downstream", stage.dovecot.lmtp_address)
    assert differences(stage.audit()) == Counter()
    with stage.mailbox() as mailbox:
        mailbox.delete(of(mailbox, "one"))
    told = stage.audit()
    assert differences(told) == Counter({("gone-again", "one"): 1})
    assert told[0]["detail"].startswith("put back in run")


def test_who_cannot_be_asked_is_told_and_the_others_are_audited(stage: Stage) -> None:
    stage.capture("one")
    stage.capture("two", to=BERT)
    stage.bypass("hole", to=BERT)
    passwords = Path(stage.service.sections["imap"]["passwords"])
    passwords.write_text(f"{ANNA}:wrong\n{BERT}:{stage.dovecot.password}\n")
    stage.service.configure(imap={"master_user": ""})
    told = stage.audit(code=41)
    assert differences(told) == Counter({("hole", "hole"): 1})
    errors = {line["user"]: line["error"] for line in told if "live" in line}
    assert errors[BERT] is None
    assert f"{ANNA}: refuses the login" in errors[ANNA]
    plain = stage.told()
    assert f"mailkeep: {ANNA}: IMAP server" in plain.err
    assert "1 could not be asked" in plain.err
    stage.dovecot.stop()
    told = stage.audit(code=40)
    assert [line["error"].split(": ")[1] for line in told if "live" in line] == ["cannot be reached"] * 2
    assert stage.audit("nobody@demo.example", code=41)[-1]["failed"] == 1
    stage.dovecot.start()


def test_the_job_tells_its_metrics(stage: Stage) -> None:
    stage.capture("one", "two")
    stage.bypass("hole")
    with stage.mailbox() as mailbox:
        mailbox.delete(of(mailbox, "one"))
    before = time.time()
    stage.service.output("jobs", "run", "audit", "--wait")
    metrics = stage.service.metrics()
    assert metrics["audit_holes"] == 1
    assert metrics["audit_missing"] == 1
    assert metrics["audit_timestamp_seconds"] >= before - 1
    stage.service.output("audit", "--import-missing")
    stage.service.output("jobs", "run", "audit", "--wait")
    assert stage.service.metrics()["audit_holes"] == 0
    stage.dovecot.stop()
    failed = stage.service.command("jobs", "run", "audit", "--wait")
    assert failed.returncode != 0
    assert f"1 of 1 mailbox could not be asked: {ANNA}".encode() in failed.stdout + failed.stderr
    assert "audit: anna@demo.example, INBOX 3, hole, from client@client.example, <hole@" in (
        stage.service.log_text()
    )
    assert stage.service.metrics()['job_runs_total{job="audit",result="failed"}'] == 1
    stage.dovecot.start()


# -- odd mail

ODD = [
    mail("nul", b"a\0b\r\n\0\r\n"),
    mail("eight-bit").replace(b"Subject: ", b"Subject: Gr\xf6\xdfe "),
    mail("bare-lf", b"one\ntwo\n"),
    mail("bare-cr", b"one\rtwo\r\r\nthree\r\n"),
    mail("no-end", b"no final line end"),
    mail("empty", b""),
    mail("dots", b".\r\n..\r\n.a\r\n"),
    mail("twice") + mail("twice"),
    mail("late-id").replace(b"Message-ID", b"Keywords: " + b"x" * 70_000 + b"\r\nMessage-ID"),
    mail("folded").replace(b"Message-ID: ", b"Message-ID:\r\n\t"),
    mail("two-ids").replace(b"Message-ID", b"Message-ID: <first@client.example>\r\nMessage-ID"),
    b"   begins with white space\r\n" + mail("blank"),
    b"Subject: no id\r\n\r\nbody\r\n",
    b"Subject: no id and a NUL\r\n\r\n\0\r\n",
    b"nothing but text\r\n",
    b"\0\r\n",
    b"\r\n",
    mail("large", b"x" * 70 + b"\r\n") + (b"y" * 70 + b"\r\n") * (50_000_000 // 72),
]


def odd_ones(dovecot: PrivateDovecot, directory: Path, mails: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Differences, when mails are delivered exactly as they were captured."""
    with Store.open(directory / "store", create=True) as store:
        store.start_writing("host")
        with smtplib.LMTP("127.0.0.1", dovecot.lmtp_port) as client:
            client.ehlo()
            for raw in mails:
                put_message(store, raw, to=(ANNA.encode(),))
                client.docmd("MAIL FROM:<client@client.example> BODY=8BITMIME")
                client.docmd(f"RCPT TO:<{ANNA}>")
                client.send(b"BDAT %d LAST\r\n" % len(raw) + raw)
                assert client.getreply()[0] == 250
        store.settle_index()
        auditor = Auditor(store, ImapConfig())
        auditor.scan()
        address = Address("127.0.0.1", dovecot.imap_port)
        server = ImapServer(address=address, master=MASTER, password=dovecot.password)
        told = []
        for mailbox in (
            ImapMailbox(server, ANNA), Maildir(dovecot.directory / "mail" / ANNA / "Maildir", ANNA)
        ):  # fmt: skip
            account = auditor.audit(ANNA, mailbox)
            mailbox.close()
            assert account.live == len(mails)
            assert account.by_headers == 0
            for one in account.differences:
                raw = b"".join(store.read(one.stored.delivery.content)) if one.stored else b""
                told.append((str(one.kind), raw[:300]))
        return told


def test_odd_mail_is_known_by_its_bytes(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    assert odd_ones(start_dovecot(users=[ANNA]), tmp_path, ODD) == []


def test_malformed_mail_is_known_by_its_bytes(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    told = odd_ones(start_dovecot(users=[ANNA]), tmp_path, corpus("torture"))
    # One without a Message-ID, for the store and Dovecot, and with CR CR LF, which Dovecot makes CR LF.
    assert [raw.count(b"\r\r\n") for kind, raw in told if kind == "unanswered"] == [1, 1]
    assert len(told) == 4
