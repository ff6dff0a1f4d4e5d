"""A store with mails that are hard to put back, a configuration for a private Dovecot, and the commands."""

from __future__ import annotations

import base64
import os
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path

from sidecar.demo.dovecot import MASTER, PrivateDovecot
from sidecar.live.imap import ImapMailbox, ImapServer
from sidecar.live.mailbox import LiveMessage
from sidecar.units import Address
from store.records import Envelope, Leg, Recipient
from store.store import Store
from tests.support.service import COMMAND

ANNA = b"anna@example.org"
ODD = (
    b"Subject: no Message-ID\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\n\r\nbody\r\n",
    b"Subject: no date, no Message-ID\r\n\r\nbody\r\n",
    b"Message-ID: <twice@x>\r\nSubject: first\r\n\r\nthe first\r\n",
    b"Message-ID: <twice@x>\r\nSubject: second\r\n\r\nthe second one\r\n",
    b"Message-ID: <8bit@x>\r\nSubject: Gr\xc3\xbc\xc3\x9fe \xff\r\nFrom: J\xf6rg\r\n\r\n\xe4\xf6\xfc\r\n",
    b"Message-ID: <end@x>\r\nSubject: no line end\r\n\r\nthe last line has none",
    b"Message-ID: <dots@x>\r\nSubject: dots\r\n\r\n.\r\n..\r\n.x\r\n",
    b"Message-ID: <long@x>\r\nSubject: long line\r\n\r\n" + b"x" * 5000 + b"\r\n",
)


def mail(number: int, size: int = 300) -> bytes:
    """One of many."""
    head = f"Message-ID: <{number}@many>\r\nSubject: mail {number}\r\nFrom: b@example.com\r\n\r\n".encode()
    return head + (b"line %d\r\n" % number) * (size // 10)


def large(size: int) -> bytes:
    """One with a big attachment."""
    body = base64.encodebytes(random.Random(7).randbytes(size * 3 // 4)).replace(b"\n", b"\r\n")
    return b"Message-ID: <large@x>\r\nContent-Transfer-Encoding: base64\r\n\r\n" + body


def fill(
    path: Path, messages: Iterable[bytes], *, to: bytes = ANNA, leg: Leg = Leg.LMTP, **attributes: bytes
) -> None:
    """Capture them."""
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for message in messages:
            ingest = store.begin()
            for at in range(0, len(message), 1 << 20):
                ingest.feed(message[at : at + (1 << 20)])
            ingest.commit(
                leg, Envelope(b"bert@example.com", (Recipient(to),)), queue_id=b"", attributes=attributes,
                done=lambda _error: None,
            )  # fmt: skip


def configure(directory: Path, dovecot: PrivateDovecot, *, password: str = "") -> Path:
    """A configuration file."""
    (directory / "passwords").write_text(f"{MASTER}:{password or dovecot.password}\n")
    file = directory / "mailkeep.toml"
    file.write_text(
        f'[store]\npath = "{directory / "store"}"\n'
        f'[lmtp]\ndownstream = "{dovecot.lmtp_address}"\n'
        f'[imap]\nserver = "127.0.0.1:{dovecot.imap_port}"\nmaster_user = "{MASTER}"\n'
        f'passwords = "{directory / "passwords"}"\n'
    )
    return file


def command(config: Path, *arguments: str) -> list[str]:
    """The command line."""
    return [*COMMAND, *arguments, "--config", str(config)]


def run(config: Path, *arguments: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(config, *arguments), capture_output=True, text=True, timeout=timeout_s, check=False,
        env={name: value for name, value in os.environ.items() if name != "MAILKEEP_CONFIG"},
    )  # fmt: skip


def live(dovecot: PrivateDovecot, user: bytes = ANNA) -> ImapMailbox:
    """The mailbox."""
    address = Address("127.0.0.1", dovecot.imap_port)
    return ImapMailbox(ImapServer(address=address, master=MASTER, password=dovecot.password), user.decode())


def contents(mailbox: ImapMailbox) -> list[tuple[LiveMessage, bytes]]:
    """All that is in all folders."""
    found = []
    for folder in mailbox.folders():
        found += list(mailbox.fetch(list(mailbox.messages(folder))))
    return found


def exact_counts(mailbox: ImapMailbox, messages: Iterable[bytes]) -> dict[bytes, int]:
    """How often each message is there to the byte, behind the fields that Dovecot puts first; `b""` counts
    what is none of them."""
    counts = dict.fromkeys(messages, 0)
    by_size: dict[int, list[bytes]] = {}
    for message in counts:
        by_size.setdefault(len(message), []).append(message)
    counts[b""] = 0
    for _, raw in contents(mailbox):
        counts[_original(raw, by_size) or b""] += 1
    return counts


def _original(raw: bytes, by_size: dict[int, list[bytes]]) -> bytes | None:
    begins = [0]
    for _ in range(12):  # Return-Path, Delivered-To, Received and its two folded lines
        begins.append(raw.find(b"\n", begins[-1]) + 1)
    for at in begins:
        for message in by_size.get(len(raw) - at, ()):
            if raw.endswith(message):
                return message
    return None
