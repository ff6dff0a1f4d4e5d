"""Mail of a real Dovecot imported beside captured mail, from its Maildir and over IMAP, while `serve` runs.

client --lmtp--> mailkeep serve --lmtp--> Dovecot <--imap append-- a client with old mail
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.demo.dovecot import MASTER, PrivateDovecot
from sidecar.live.imap import ImapMailbox, ImapServer
from sidecar.units import Address
from store.deliveries import Query
from store.records import Delivery, Leg
from store.store import Store
from tests.e2e.dialogue import LmtpDialogue
from tests.support.service import Service

ANNA = "anna@demo.example"
THEN_US = 1_500_000_000_000_000
CAPTURED = [b"Received: by mx; x\r\nSubject: captured %d\r\n\r\n.dot\r\nbody\r\n" % n for n in range(3)]
OLD = [b"Subject: old \xff %d\r\nMessage-ID: <same@x>\r\n\r\nbody\r\n" % n for n in range(6)]


@pytest.fixture
def dovecot(start_dovecot: Callable[..., PrivateDovecot]) -> PrivateDovecot:
    return start_dovecot(users=[ANNA])


@pytest.fixture
def service(dovecot: PrivateDovecot, server_directory: Path) -> Iterator[Service]:
    passwords = server_directory / "passwords"
    passwords.write_text(f"{MASTER}:{dovecot.password}\n")
    imap = {"server": f"127.0.0.1:{dovecot.imap_port}", "master_user": MASTER, "passwords": str(passwords)}
    with Service(
        server_directory / "mailkeep", lmtp={"downstream": dovecot.lmtp_address}, imap=imap
    ) as running:
        deliver(running, CAPTURED)
        with live(dovecot) as mailbox:
            mailbox.make_folder("Archive.Größe")
            for number, raw in enumerate(OLD):
                folder = "Archive.Größe" if number % 2 else "INBOX"
                time_us = THEN_US + number * 1_000_000
                mailbox.append(folder, raw, received_us=time_us, flags=["\\Seen", "$Mine"])
        yield running


def live(dovecot: PrivateDovecot) -> ImapMailbox:
    address = Address("127.0.0.1", dovecot.imap_port)
    return ImapMailbox(ImapServer(address=address, master=MASTER, password=dovecot.password), ANNA)


def deliver(service: Service, messages: list[bytes]) -> None:
    with LmtpDialogue(service.port) as lmtp:
        for message in messages:
            lmtp.begin(ANNA.encode())
            assert lmtp.say(b"DATA").startswith(b"354")
            lmtp.send(message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            assert lmtp.reply().startswith(b"250")


def run(service: Service, *arguments: str) -> dict[str, int]:
    """Import; the summary."""
    lines = service.output("import", *arguments, "--rcpt", ANNA, "--json").splitlines()
    summary: dict[str, int] = json.loads(lines[-1])
    return summary


def imported(service: Service) -> dict[bytes, Delivery]:
    with Store.open(service.store) as store:
        found = [one.delivery for one in store.deliveries(Query())]
        return {b"".join(store.read(one.content)): one for one in found if one.leg == Leg.IMPORT}


def test_maildir_and_imap_beside_captured_mail(service: Service, dovecot: PrivateDovecot) -> None:
    maildir = next(dovecot.directory.glob("mail/*/Maildir"))
    summary = run(service, str(maildir))
    assert summary == {
        "taken": 6, "there": 3, "erased": 0, "skipped": 0, "taken_bytes": sum(map(len, OLD)),
    }  # fmt: skip
    found = imported(service)
    assert set(found) == set(OLD)
    for number, raw in enumerate(OLD):
        attributes = found[raw].attributes
        assert attributes["folder"].decode() == ("Archive.Größe" if number % 2 else "INBOX")
        assert set(attributes["flags"].split()) == {b"\\Seen", b"$Mine"}
        assert found[raw].time_us // 1_000_000 == THEN_US // 1_000_000 + number

    # The same mailbox over IMAP is the same mail: nothing is taken, whatever road it came by.
    for source in (["--imap", ANNA], [str(maildir)]):
        again = run(service, *source)
        assert (again["taken"], again["there"]) == (0, 9)


def test_imap_goes_on_without_fetching_again(service: Service, dovecot: PrivateDovecot) -> None:
    assert run(service, "--imap", ANNA, "--connections", "3")["taken"] == 6
    found = imported(service)
    assert set(found) == set(OLD)
    origin = found[OLD[0]].attributes["origin"].decode()
    assert origin.startswith(f"imap://{ANNA}@127.0.0.1:{dovecot.imap_port}/INBOX;UIDVALIDITY=")
    assert found[OLD[1]].attributes["folder"] == "Archive.Größe".encode()

    with live(dovecot) as mailbox:
        new = b"Subject: new\r\n\r\n" + b"0123456789abcdef" * (1 << 16)
        mailbox.append("INBOX", new, received_us=THEN_US)
    deliver(service, [b"Received: by mx; x\r\nSubject: captured later\r\n\r\n"])
    output = service.output("import", "--imap", ANNA, "--rcpt", ANNA, "--json").splitlines()
    assert json.loads(output[-1])["taken"] == 1
    assert json.loads(output[-1])["there"] == 10
    assert len(output) == 1 + 1 + 4  # of captured mail nothing says where it lies: that alone is fetched
    assert new in imported(service)
    with live(dovecot) as mailbox:
        flags = {message.flags for message in mailbox.messages("INBOX") if "$Mine" not in message.flags}
    assert all("\\Seen" not in one for one in flags)
