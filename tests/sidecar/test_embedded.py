"""The demo's own mailbox server, over real sockets: who gets what, which reply, and what is on disk."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.demo.embedded import MaildirServer
from sidecar.demo.mailbox import StoredMail
from tests.e2e.dialogue import LmtpDialogue

ANNA, BERT, DORA = "anna@example.org", "bert@example.org", "dora@example.org"
RETURN_PATH = b"Return-Path: <sender@client.example>\r\n"
MESSAGE = b"Subject: dots\r\n\r\n.\r\n..two\r\nbare \n.\n and \r, NUL \0, \xff\r\n" + b"x" * 5000 + b"\r\n"
STUFFED = MESSAGE.replace(b"\r\n.", b"\r\n..")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MaildirServer]:
    with MaildirServer(tmp_path, users=[ANNA, BERT, DORA], quota_bytes={DORA: 1000}) as running:
        yield running


@pytest.fixture
def client(server: MaildirServer) -> Iterator[LmtpDialogue]:
    with LmtpDialogue(server.lmtp_port) as dialogue:
        yield dialogue


def raw_mails(server: MaildirServer, user: str) -> list[bytes]:
    with server.mailbox(user) as box:
        return [mail.raw for mail in box.messages()]


def test_it_says_what_it_can(client: LmtpDialogue) -> None:
    for keyword in (b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME", b"CHUNKING"):
        assert keyword in client.capabilities


def test_data_is_kept_to_the_byte(server: MaildirServer, client: LmtpDialogue) -> None:
    """Setup: client --lmtp DATA--> server. Test: only CRLF.CRLF ends it, dots are unstuffed, CRLF is kept."""
    client.begin(ANNA.encode())
    assert client.say(b"DATA").startswith(b"354")
    client.send(STUFFED + b".\r\n")
    assert client.reply().startswith(b"250 2.0.0 ")
    assert raw_mails(server, ANNA) == [RETURN_PATH + MESSAGE]
    assert raw_mails(server, BERT) == []


def test_chunks_are_kept_to_the_byte(server: MaildirServer, client: LmtpDialogue) -> None:
    """Setup: client --lmtp BDAT, BDAT, BDAT 0 LAST--> server, cut inside a line end, NOOP behind it."""
    client.begin(ANNA.encode())
    cut = MESSAGE.index(b"\r\n") + 1
    rest = MESSAGE[cut:]
    client.send(b"BDAT %d\r\n%bBDAT %d\r\n%bBDAT 0 LAST\r\nNOOP\r\n" % (cut, MESSAGE[:cut], len(rest), rest))
    assert [client.reply()[:3] for _ in range(4)] == [b"250"] * 4
    assert raw_mails(server, ANNA) == [RETURN_PATH + MESSAGE]


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_each_recipient_has_a_reply_of_his_own(
    server: MaildirServer, client: LmtpDialogue, verb: str
) -> None:
    """Setup: one message for four: known, unknown, over quota, known with a detail and in capitals.

    Test: the stranger is refused at RCPT; then a reply for each of the others, in their order.
    """
    assert client.say(b"MAIL FROM:<sender@client.example>").startswith(b"250")
    told = [
        client.say(b"RCPT TO:<%b>" % address)
        for address in (
            b"anna@example.org",
            b"eve@example.org",
            b"dora@example.org",
            b"BERT+lists@example.org",
        )
    ]
    assert [reply[:9] for reply in told] == [b"250 2.1.5", b"550 5.1.1", b"250 2.1.5", b"250 2.1.5"]
    if verb == "DATA":
        assert client.say(b"DATA").startswith(b"354")
        client.send(STUFFED + b".\r\n")
    else:
        client.send(b"BDAT %d LAST\r\n%b" % (len(MESSAGE), MESSAGE))
    assert [client.reply()[:9] for _ in range(3)] == [b"250 2.0.0", b"552 5.2.2", b"250 2.0.0"]
    assert raw_mails(server, ANNA) == raw_mails(server, BERT) == [RETURN_PATH + MESSAGE]
    assert raw_mails(server, DORA) == []


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([b"RCPT TO:<anna@example.org>"], b"503"),
        ([b"DATA"], b"503"),
        ([b"BDAT 0 LAST"], b"503"),
        ([b"MAIL FROM:<>", b"DATA"], b"503"),
        ([b"MAIL FROM:<>", b"MAIL FROM:<>"], b"503"),
        ([b"MAIL FROM:<>", b"RCPT TO:<anna@example.org>", b"BDAT 0", b"DATA"], b"503"),
        ([b"MAIL FROM:<>", b"RCPT TO:<anna@example.org>", b"BDAT 0", b"RCPT TO:<bert@example.org>"], b"503"),
        ([b"MAIL FROM:<>", b"RSET", b"RCPT TO:<anna@example.org>"], b"503"),
        ([b"MAIL FROM"], b"501"),
        ([b"EHLO client.example"], b"500"),
        ([b"VRFY anna"], b"252"),
        ([b"QUIT"], b"221"),
    ],
)
def test_commands_out_of_order_change_nothing(
    server: MaildirServer, client: LmtpDialogue, lines: list[bytes], code: bytes
) -> None:
    assert [client.say(line) for line in lines][-1].startswith(code)
    assert raw_mails(server, ANNA) == []


@pytest.mark.parametrize(
    "lines",
    [
        b"BDAT 5000\r\nhalf",
        b"BDAT 4\r\nhalf",
        b"BDAT 4\r\nhalfRSET\r\n",
        b"DATA\r\nhalf\r\n.",
    ],
)
def test_a_message_without_its_end_is_not_delivered(server: MaildirServer, lines: bytes) -> None:
    """Setup: the client goes away, or takes it back, before the end. Test: no mail, nothing left in tmp."""
    with LmtpDialogue(server.lmtp_port) as client:
        client.begin(ANNA.encode())
        client.send(lines)
        client.half_close()
        while client.reply():
            pass
    assert raw_mails(server, ANNA) == []
    assert list(server.directory.glob("*/Maildir/tmp/*")) == []


def test_a_fault_of_the_disk_is_a_451(server: MaildirServer, client: LmtpDialogue) -> None:
    """Setup: Bert's `new` is gone. Test: his is deferred, Anna's is delivered."""
    (server.directory / BERT / "Maildir" / "new").rmdir()
    client.begin(ANNA.encode(), BERT.encode())
    client.send(b"BDAT %d LAST\r\n%b" % (len(MESSAGE), MESSAGE))
    assert [client.reply()[:9] for _ in range(2)] == [b"250 2.0.0", b"451 4.3.0"]
    assert raw_mails(server, ANNA) == [RETURN_PATH + MESSAGE]


def test_a_chunk_of_unknown_length_ends_the_connection(client: LmtpDialogue) -> None:
    """What follows cannot be told from commands: none of it may be taken for one."""
    client.begin(ANNA.encode())
    client.send(b"BDAT many\r\nQUIT\r\n")
    assert client.reply().startswith(b"501")
    assert client.reply() == b""


def test_a_line_without_end_is_refused(client: LmtpDialogue) -> None:
    client.send(b"NOOP " + b"x" * 100_000)
    assert client.reply().startswith(b"500")


def test_a_mailbox_is_read_oldest_first_and_forgets_what_is_deleted(
    server: MaildirServer, client: LmtpDialogue
) -> None:
    messages = [b"Subject: %d\r\n\r\n" % number for number in range(12)]
    for message in messages:
        client.begin(ANNA.encode())
        client.send(b"BDAT %d LAST\r\n%b" % (len(message), message))
        assert client.reply().startswith(b"250")
    with server.mailbox(ANNA) as box:
        found = box.messages()
        assert [mail.raw for mail in found] == [RETURN_PATH + message for message in messages]
        box.delete(found[3].uid)
        assert box.messages() == found[:3] + found[4:]
        assert isinstance(found[0], StoredMail)
        with pytest.raises(KeyError):
            box.delete(found[3].uid)


def test_it_ends_while_somebody_is_connected(tmp_path: Path) -> None:
    with MaildirServer(tmp_path, users=[ANNA]) as server:
        client = LmtpDialogue(server.lmtp_port)
        client.begin(ANNA.encode())
        client.send(b"BDAT 5000\r\nhalf")
    with client:
        assert client.reply() == b""
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.lmtp_port), timeout=5):  # noqa: PT011 - refused or reset
        pass
