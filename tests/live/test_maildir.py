"""A Maildir on disk: what lies in it, what moves while one looks, and what is no Maildir."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.intake import Found
from sidecar.live.mailbox import LiveError
from sidecar.live.maildir import Maildir
from sidecar.live.matching import compare
from sidecar.sources.maildir import MaildirSource
from sidecar.sources.source import Wanted
from tests.live.test_matching import captured, mail
from tests.support.live_server import TRACE

MAIL = mail(1, b"a line\r\nanother\r\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path)
    return tmp_path


def make(folder: Path) -> None:
    for name in ("cur", "new", "tmp"):
        (folder / name).mkdir(parents=True)


def test_what_it_tells(root: Path) -> None:
    make(root / ".Archive.2024")
    make(root / ".Gr&APYA3w-e")
    stored = MAIL.replace(b"\r\n", b"\n")
    file = root / "cur" / "1700000000.M1P2.host,S=999,W=1:2,FSa"
    file.write_bytes(stored)
    os.utime(file, ns=(0, 1_700_000_000_500_000_000))
    (root / "dovecot-keywords").write_text("0 $Label1\n1 Junk\n")
    (root / ".Archive.2024" / "new" / "1700000001.M1P2.host").write_bytes(stored)
    (root / "tmp" / "half").write_bytes(b"half")
    with Maildir(root, "anna") as mailbox:
        assert mailbox.folders() == ["INBOX", "Archive.2024", "Größe"]
        (one,) = mailbox.messages("INBOX")
        assert (one.uid, one.size) == ("1700000000.M1P2.host,S=999,W=1", len(MAIL))
        assert one.flags == ("\\Flagged", "\\Seen", "$Label1")
        assert one.received_us == 1_700_000_000_000_000
        assert (one.message_id, one.date) == (b"<1@example.net>", b"Mon, 1 Jan 2024 00:00:00 +0000")
        assert list(mailbox.fetch([one])) == [(one, MAIL)]
        (two,) = mailbox.messages("Archive.2024")
        assert (two.flags, two.size) == ((), len(MAIL))
        assert list(mailbox.messages("INBOX", 1_700_000_000_000_001)) == []
        assert list(mailbox.messages("INBOX", 0, 1_700_000_000_000_000)) == []


def test_looking_leaves_everything_as_it_is(root: Path) -> None:
    (root / "new" / "1").write_bytes(MAIL)
    for place in (root, root / "new", root / "cur"):
        place.chmod(0o500)
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    with Maildir(root, "anna") as mailbox:
        assert len(list(mailbox.fetch(list(mailbox.messages("INBOX"))))) == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


@pytest.mark.parametrize(
    "stored",
    [b"a\nb\n", b"a\r\nb\r\n", b"a\r\nb\n", b"a\rb\r\r\n", b"", b"\n", b"x" * (1 << 20) + b"\n", b"no end",
     b"y" * ((1 << 20) - 1) + b"\r\nz\n", b"a\0b\n"],
)  # fmt: skip
def test_line_ends_and_sizes(root: Path, stored: bytes) -> None:
    (root / "cur" / "1:2,").write_bytes(stored)
    with Maildir(root, "anna") as mailbox:
        ((message, raw),) = mailbox.fetch(list(mailbox.messages("INBOX")))
    assert raw == stored.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert message.size == len(raw)


def test_a_size_in_the_name_is_taken_where_it_can_be_true(root: Path) -> None:
    (root / "cur" / "1,S=4,W=6:2,").write_bytes(b"a\nb\n")
    (root / "cur" / "2,S=4,W=60:2,").write_bytes(b"a\nb\n")
    with Maildir(root, "anna") as mailbox:
        assert {message.size for message in mailbox.messages("INBOX")} == {6}


def test_what_moves_is_found_again_and_what_is_gone_left_out(root: Path) -> None:
    for number in range(4):
        (root / "new" / f"{number}").write_bytes(MAIL)
    with Maildir(root, "anna") as mailbox:
        looking = mailbox.messages("INBOX")
        found = [next(looking)]
        (root / "new" / "1").rename(root / "cur" / "1:2,S")
        (root / "new" / "2").unlink()
        found += looking
        assert sorted(message.uid for message in found) == ["0", "1", "3"]
        (root / "new" / "0").rename(root / "cur" / "0:2,")
        (root / "cur" / "1:2,S").rename(root / "cur" / "1:2,FS")
        (root / "new" / "3").unlink()
        assert sorted(message.uid for message, _ in mailbox.fetch(found)) == ["0", "1"]


def test_folders_within_folders(root: Path) -> None:
    make(root / "Work" / "2024")
    make(root / "Work" / "2024" / "Q1")
    with Maildir(root, "anna") as mailbox:
        assert mailbox.folders() == ["INBOX", "Work/2024", "Work/2024/Q1"]


def test_names_are_read_as_the_import_reads_them(root: Path) -> None:
    """Each of the two once had a reading of its own: one made `MÃ¼ll` of the folder, and knew no P."""
    make(root / ".Müll")
    (root / ".Müll" / "cur" / "1700000000.M1P2.host:2,PS").write_bytes(MAIL)
    with Maildir(root, "anna") as mailbox:
        assert mailbox.folders() == ["INBOX", "Müll"]
        (live,) = mailbox.messages("Müll")
    (found,) = MaildirSource(root).messages(Wanted(recipient=b"anna@example.org"))
    assert isinstance(found, Found)
    assert (live.folder, live.flags) == (found.folder, found.flags) == ("Müll", ("$Forwarded", "\\Seen"))


def test_compared_with_what_was_captured(root: Path) -> None:
    make(root / ".Sub")
    (root / ".Sub" / "cur" / "1:2,S").write_bytes((TRACE + MAIL).replace(b"\r\n", b"\n"))
    (root / "new" / "2").write_bytes((TRACE + mail(2, b"a\0b\r\n")).replace(b"\r\n", b"\n"))
    wanted = [captured(MAIL), captured(mail(2, b"a\0b\r\n")), captured(mail(3))]
    with Maildir(root, "anna") as mailbox:
        comparison = compare(mailbox, wanted)
    assert [comparison.present[delivery.id].how for delivery in wanted[:2]] == ["content", "content"]
    assert len(comparison.present) == 2
    assert comparison.unknown == []


def test_what_is_no_maildir(tmp_path: Path) -> None:
    (tmp_path / "mbox").write_bytes(b"From bob\n")
    (tmp_path / "mdbox" / "storage").mkdir(parents=True)
    (tmp_path / "sdbox" / "mailboxes").mkdir(parents=True)
    make(tmp_path / "home" / "Maildir")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("nothing", "there is no such directory"),
        ("mbox", "is a file: mbox"),
        ("mdbox", "is dbox, which only Dovecot reads"),
        ("sdbox", "is dbox, which only Dovecot reads"),
        ("home", r".*did you mean .*home/Maildir\?"),
        ("empty", "is no Maildir"),
    ):
        with pytest.raises(LiveError, match=f"{name}: {said}"):
            Maildir(tmp_path / name, "anna")


def test_what_it_cannot_read_is_told(root: Path) -> None:
    with Maildir(root, "anna") as mailbox:
        with pytest.raises(LiveError, match="no folder Nowhere"):
            list(mailbox.messages("Nowhere"))
        (root / "cur" / "1:2,").write_bytes(b"\x1f\x8b...")
        with pytest.raises(LiveError, match="1:2, is compressed: ask over IMAP"):
            list(mailbox.messages("INBOX"))
        (root / "cur" / "1:2,").unlink()
        (root / "cur").rmdir()
        with pytest.raises(LiveError, match="is no Maildir"):
            mailbox.folders()
