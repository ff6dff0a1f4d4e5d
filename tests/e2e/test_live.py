"""A live mailbox over IMAP, with a real Dovecot: what it tells, what it changes, what it says at faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.demo.dovecot import MASTER, PrivateDovecot
from sidecar.live.imap import ImapMailbox, ImapServer
from sidecar.live.mailbox import LiveError, LoginError
from sidecar.units import Address

StartDovecot = Callable[..., PrivateDovecot]
MAIL = b"Message-ID:\r\n <a@b>\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\nSubject: x\r\n\r\nbody\r\n"
THEN_US = 1_700_000_000_000_000


def server_of(dovecot: PrivateDovecot) -> ImapServer:
    address = Address("127.0.0.1", dovecot.imap_port)
    return ImapServer(address=address, master=MASTER, password=dovecot.password)


def test_append_look_fetch_delete(start_dovecot: StartDovecot) -> None:
    with ImapMailbox(server_of(start_dovecot(users=["anna"])), "anna") as mailbox:
        assert mailbox.make_folder("Größe.ä & b")
        assert not mailbox.make_folder("Größe.ä & b")
        assert mailbox.folders() == ["INBOX", "Größe.ä & b"]
        mailbox.append("Größe.ä & b", MAIL, received_us=THEN_US, flags=["\\Seen", "$Label1"])
        (found,) = mailbox.messages("Größe.ä & b")
        assert (found.size, found.received_us, found.message_id) == (len(MAIL), THEN_US, b"<a@b>")
        assert found.date == b"Mon, 1 Jan 2024 00:00:00 +0000"
        assert {"\\Seen", "$Label1"} <= set(found.flags)
        assert list(mailbox.fetch([found])) == [(found, MAIL)]
        assert list(mailbox.messages("Größe.ä & b", THEN_US, THEN_US + 1)) == [found]
        assert list(mailbox.messages("Größe.ä & b", THEN_US + 3 * 86_400_000_000)) == []
        mailbox.delete([found])
        assert list(mailbox.messages("Größe.ä & b")) == []
        assert list(mailbox.fetch([found])) == []


def test_a_parent_that_is_no_folder_is_made_one(start_dovecot: StartDovecot) -> None:
    with ImapMailbox(server_of(start_dovecot(users=["anna"])), "anna") as mailbox:
        below = mailbox.separator().join(["A", "B"])
        assert mailbox.make_folder(below)
        assert "A" not in mailbox.folders()
        assert mailbox.make_folder("A")
        mailbox.append("A", MAIL, received_us=THEN_US)
        assert not mailbox.make_folder("A")
        assert mailbox.folders() == ["INBOX", "A", below]


def test_looking_leaves_it_unread(start_dovecot: StartDovecot) -> None:
    with ImapMailbox(server_of(start_dovecot(users=["anna"])), "anna") as mailbox:
        mailbox.append("INBOX", MAIL, received_us=THEN_US)
        for _ in range(2):
            (found,) = mailbox.messages("INBOX")
            assert "\\Seen" not in found.flags
            list(mailbox.fetch([found]))


def test_what_it_cannot_do_is_told(start_dovecot: StartDovecot) -> None:
    dovecot = start_dovecot(users=["anna"])
    server = server_of(dovecot)
    with pytest.raises(LoginError, match="anna: refuses the login"):
        ImapMailbox(replace(server, password="wrong"), "anna")
    with pytest.raises(LoginError, match="no password for anna"):
        ImapMailbox(replace(server, master=""), "anna")
    with pytest.raises(LiveError, match="cannot be reached"):
        ImapMailbox(replace(server, address=Address("127.0.0.1", 1)), "anna")
    with ImapMailbox(replace(server, master="", passwords={"anna": "demo"}), "anna") as mailbox:
        with pytest.raises(LiveError, match="does not open Nowhere"):
            list(mailbox.messages("Nowhere"))
        dovecot.stop()
        with pytest.raises(LiveError, match="anna: does not"):
            list(mailbox.messages("INBOX"))


def test_folders_of_all_are_nobodys(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    """What is gone from a mailbox may well be in a folder that everybody sees."""
    public = (
        "100\nnamespace inbox {\n  inbox = yes\n  separator = .\n}\nnamespace public {\n  type = public\n"
        "  separator = .\n  prefix = Public.\n  location = maildir:~/Public\n  list = yes\n}"
    )
    dovecot = start_dovecot(users=["anna"], settings={"mail_max_userip_connections": public})
    with ImapMailbox(server_of(dovecot), "anna") as mailbox:
        mailbox.make_folder("Public.Team")
        mailbox.append("Public.Team", MAIL, received_us=THEN_US)
        assert list(mailbox.messages("Public.Team"))
        assert mailbox.folders() == ["INBOX"]


def test_odd_names(start_dovecot: StartDovecot) -> None:
    dovecot = start_dovecot(settings={"auth_username_chars": ""})
    for user in ("anna b@example.org", '(o"neil@example.org', "größe@example.org"):
        with ImapMailbox(server_of(dovecot), user) as mailbox:
            assert mailbox.folders() == ["INBOX"]
    for user in ("a\nb@example.org", "a\0b@example.org", "a\r\n1 NOOP@example.org"):
        with pytest.raises(LoginError, match="control character") as told:
            ImapMailbox(server_of(dovecot), user)
        assert str(told.value).isprintable()
