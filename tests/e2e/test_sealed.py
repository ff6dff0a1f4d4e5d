"""A sealed store behind real servers: mail goes through, and no word of it is on mailkeep's disk.

client --smtp--> Postfix --milter--> mailkeep (public key alone); Postfix --lmtp--> mailkeep --lmtp--> Dovecot
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.ports import wait_until
from sidecar.demo.postfix import PrivatePostfix
from sidecar.identity import write_identity
from tests.support.delivered import inbox
from tests.support.service import Service

pytestmark = pytest.mark.e2e

ANNA = "anna@demo.example"
WORDS = [f"Rotkehlchen{number:03d}" for number in range(200)]


def mail(words: list[str]) -> bytes:
    """One word each in subject, sender, body, a file's name, and a file's text (in base64)."""
    subject, sender, body, name, inside = words
    file = base64.encodebytes(inside.encode() * 3).replace(b"\n", b"\r\n").decode()
    return (
        "Date: Mon, 6 Jan 2025 10:00:00 +0000\r\n"
        f"From: {sender} <{sender}@client.example>\r\nTo: anna@demo.example\r\nSubject: {subject}\r\n"
        f"Message-ID: <{sender}.1@client.example>\r\nMIME-Version: 1.0\r\n"
        f"Content-Type: multipart/mixed; boundary=cut\r\n\r\n--cut\r\n\r\n{body}\r\n"
        f"--cut\r\nContent-Type: application/x-{name}; name={name}.bin\r\n"
        f"Content-Transfer-Encoding: base64\r\n\r\n{file}--cut--\r\n"
    ).encode()


def words_in(directories: list[Path]) -> list[str]:
    """Which planted words stand in which files, in text or base64."""
    found = []
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                found += [
                    f"{word} in {path}"
                    for word in WORDS
                    if word.encode() in data or base64.b64encode(word.encode() * 3)[:-4] in data
                ]
    return found


@pytest.fixture
def temporary(server_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of their own for temporary files and core dumps of everything started here."""
    directory = server_directory / "tmp"
    directory.mkdir(mode=0o777)
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(directory)
    return directory


def test_two_hundred_planted_words_are_nowhere_and_all_come_back(
    start_dovecot: Callable[..., PrivateDovecot],
    start_postfix: Callable[..., PrivatePostfix],
    server_directory: Path,
    temporary: Path,
) -> None:
    identity = server_directory / "key.txt"
    public = write_identity(identity, None)
    dovecot = start_dovecot(users=[ANNA])
    milter = f"unix:{server_directory}/milter.sock"
    service = Service(
        server_directory / "mailkeep",
        store={"path": str(server_directory / "store"), "pack_size": "64KiB"},
        lmtp={"downstream": dovecot.lmtp_address},
        milter={"listen": milter, "socket_mode": "0666"},
        encryption={"recipients": [public]},
        capture={"on_failure": "accept", "spool": str(server_directory / "spool")},
    )
    with service:
        postfix = start_postfix(lmtp=service.address, smtpd_milters=[milter])
        for at in range(0, 200, 5):
            sent = postfix.send(f"{WORDS[at + 1]}@client.example", [ANNA], mail(WORDS[at : at + 5]))
            assert sent.accepted
        assert wait_until(lambda: postfix.queue() == [], timeout_s=60), postfix.log_text()
        assert len(inbox(dovecot, ANNA)) == 40
        own = [server_directory / "store", server_directory / "spool", temporary]
        assert words_in(own) == []
        os.kill(service.pid, 6)  # SIGABRT: what would leave a core
        service.wait()
        assert words_in(own) == []
        service.start()
        postfix.send("last@client.example", [ANNA], mail(WORDS[:5]))
        assert wait_until(lambda: len(inbox(dovecot, ANNA)) == 41, timeout_s=60)

        blind = service.command("list")
        assert blind.returncode == 21
        assert b"--identity" in blind.stderr
        found = service.listed("--leg", "lmtp", "--identity", str(identity))
        assert sorted(one["subject"] for one in found) == sorted([*WORDS[0:200:5], WORDS[0]])
        seventh = next(one for one in found if one["subject"] == WORDS[35])
        assert mail(WORDS[35:40]) in service.output(
            "show", seventh["id"], "--raw", "--identity", str(identity)
        )
        service.output("compact", "--all", "--identity", str(identity))
        assert service.output("check", "--read-data", "--identity", str(identity))
        assert service.output("check")
        assert words_in(own) == []
