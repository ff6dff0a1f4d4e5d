"""Mails back into a real Dovecot: exactly those that are missing, to the byte, one copy each.

store --> mailkeep replay | undelete --> Dovecot, by LMTP or IMAP --> looked at by IMAP

MAILKEEP_RESTORE_MAILS=10000 for the full figure: a tenth of them is deleted and put back.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.ports import free_port
from store.records import Leg
from tests.support import restoring
from tests.support.restoring import ANNA, ODD, configure, exact_counts, fill, live, mail, run

StartDovecot = Callable[..., PrivateDovecot]
MAILS = int(os.environ.get("MAILKEEP_RESTORE_MAILS", "400"))
DELETED = 60 if MAILS == 400 else MAILS // 10
NO_PENALTY = "0\nservice anvil {\n  unix_listener anvil-auth-penalty {\n    mode = 0\n  }\n}"
"""no waiting after a wrong password"""
LARGE_BYTES = 50_000_000


def killed_after(config: Path, lines: int, *arguments: str) -> int:
    """Run a command that is killed as soon as it has said so many lines; how many it had."""
    process = subprocess.Popen(
        restoring.command(config, *arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout
    said = sum(1 for _ in zip(range(lines), process.stdout, strict=False))
    process.kill()
    process.communicate(timeout=60)
    return said


@pytest.mark.timeout(300 if MAILS <= 1000 else 1800)
def test_undelete_puts_back_what_was_deleted_and_nothing_else(
    start_dovecot: StartDovecot, tmp_path: Path
) -> None:
    dovecot = start_dovecot()
    config = configure(tmp_path, dovecot)
    messages = [*ODD, restoring.large(LARGE_BYTES), *(mail(n) for n in range(MAILS - len(ODD) - 1))]
    fill(tmp_path / "store", messages)
    back = run(config, "replay", "--all", "--json", timeout_s=900)
    assert back.returncode == 0, back.stderr
    with live(dovecot) as mailbox:
        assert set(exact_counts(mailbox, messages).values()) <= {0, 1}
        everything = list(mailbox.messages("INBOX"))
        assert len(everything) == len(messages)
        odd = [found for found in everything if b"@many" not in found.message_id]
        others = [found for found in everything if b"@many" in found.message_id]
        gone = odd + random.Random(1).sample(others, DELETED - len(odd))
        mailbox.delete(gone)
        assert sum(exact_counts(mailbox, messages).values()) == MAILS - DELETED

    misspelt = run(config, "undelete", "anan@example.org", "--since", "1h")
    assert (misspelt.returncode, misspelt.stdout) == (4, "")
    assert "nothing was ever captured for anan@example.org" in misspelt.stderr
    planned = run(config, "undelete", ANNA.decode(), "--since", "1h", "--json", timeout_s=300)
    assert planned.returncode == 0
    assert f"{DELETED} are in no folder" in planned.stderr
    assert planned.stdout.count("\n") == DELETED
    with live(dovecot) as mailbox:
        assert sum(exact_counts(mailbox, messages).values()) == MAILS - DELETED, "it was only shown"

    what = ("undelete", ANNA.decode(), "--since", "1h", "--yes", "--json")
    for _ in range(2):
        killed_after(config, DELETED + DELETED // 4, *what)  # the plan's lines come first
    began = time.monotonic()
    last = run(config, *what, timeout_s=600)
    print(f"the last of three parts took {time.monotonic() - began:.1f} s")
    assert last.returncode == 0, last.stderr
    with live(dovecot) as mailbox:
        counts = exact_counts(mailbox, messages)
    assert counts.pop(b"") == 0
    assert Counter(counts.values()) == {1: MAILS}
    again = run(config, *what)
    assert (again.returncode, "0 are in no folder" in again.stderr) == (0, True)


def test_imap_gives_back_date_flags_and_folder(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    dovecot = start_dovecot()
    config = configure(tmp_path, dovecot)
    odd = [*ODD, b"Message-ID: <cr@x>\r\n\r\na lone \r return\r\n"]
    fill(tmp_path / "store", odd)
    fill(
        tmp_path / "store",
        [mail(1)],
        leg=Leg.IMPORT,
        folder="Größe/Old".encode(),
        flags=b"\\Seen $Later \\Recent",
    )
    result = run(
        config, "replay", "--all", "--via", "imap", "--flags", "\\Flagged", "--folder", "Back", "--limit", "1"
    )
    assert result.returncode == 0, result.stderr
    assert run(config, "replay", "--all", "--via", "imap").returncode == 0
    with live(dovecot) as mailbox:
        assert set(mailbox.folders()) >= {"INBOX", "Back"}
        (chosen,) = mailbox.messages("Back")
        assert "\\Flagged" in chosen.flags
        folder = next(name for name in mailbox.folders() if name.endswith("Old"))
        (kept,) = mailbox.messages(folder)
        assert {"\\Seen", "$Later"} <= set(kept.flags)
        inbox = dict(mailbox.fetch(list(mailbox.messages("INBOX"))))
        assert sorted(inbox.values()) == sorted(odd), "as they were, without a field more"
        assert all(not found.flags or set(found.flags) <= {"\\Recent"} for found in inbox)
        for found in inbox:
            assert abs(found.received_us / 1e6 - time.time()) < 120


def test_missing_only_says_how_it_knew(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    dovecot = start_dovecot()
    config = configure(tmp_path, dovecot)
    messages = [mail(n) for n in range(6)]
    fill(tmp_path / "store", messages)
    with live(dovecot) as mailbox:
        mailbox.make_folder("Elsewhere")
        mailbox.append("Elsewhere", messages[2], received_us=10**15)
        mailbox.append("INBOX", messages[4], received_us=10**15)
    result = run(config, "replay", "--all", "--missing-only", "--report", str(tmp_path / "report"))
    assert result.returncode == 0, result.stderr
    assert "already there: Elsewhere, by content" in result.stdout
    assert "2 already there" in result.stderr
    assert len((tmp_path / "report").read_text().splitlines()) == 6
    with live(dovecot) as mailbox:
        assert Counter(exact_counts(mailbox, messages).values()) == {1: 6, 0: 1}


@pytest.mark.parametrize("via", ["lmtp", "imap"])
def test_a_server_that_restarts_in_the_middle(start_dovecot: StartDovecot, tmp_path: Path, via: str) -> None:
    dovecot = start_dovecot()
    config = configure(tmp_path, dovecot)
    messages = [mail(n) for n in range(200)]
    fill(tmp_path / "store", messages)
    process = subprocess.Popen(
        restoring.command(config, "replay", "--all", "--via", via, "--rate", "150"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    for _ in range(60):
        assert process.stdout.readline()
    dovecot.stop()
    time.sleep(0.5)
    dovecot.start()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    with live(dovecot) as mailbox:
        assert Counter(exact_counts(mailbox, messages).values()) == {1: 200, 0: 1}


def test_full_mailbox_and_wrong_password(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    user = "anna@example.org"
    dovecot = start_dovecot(quota_bytes={user: 30_000}, settings={"auth_failure_delay": NO_PENALTY})
    config = configure(tmp_path, dovecot)
    fill(tmp_path / "store", [mail(n, 10_000) for n in range(5)])
    for via in ("lmtp", "imap"):
        result = run(config, "replay", "--all", "--via", via, "--connections", "1")
        assert result.returncode == (3 if via == "lmtp" else 4), result.stdout
        assert "Quota exceeded" in result.stdout
        assert "refused" in result.stderr
        assert "Quota exceeded" in result.stderr, "the reply stands in the table"
    configure(tmp_path, dovecot, password="wrong")
    result = run(config, "replay", "--all", "--via", "imap", "--again", "--connections", "1")
    assert result.returncode == 41
    assert "refuses the login" in result.stdout
    assert "Look at [imap]" in result.stderr
    result = run(config, "replay", "--all", "--missing-only", "--again")
    assert result.returncode == 41
    assert "Look at [imap]" in result.stderr
    result = run(config, "undelete", user, "--since", "1h")
    assert result.returncode == 41
    with live(dovecot) as mailbox:
        assert len(list(mailbox.messages("INBOX"))) in (2, 3)


def test_a_listener_of_its_own_runs_without_the_plugins(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    """As deploy/dovecot-restore.conf has it, with the quota plugin in the place of Sieve."""
    port = free_port()
    snippet = (Path(__file__).parents[2] / "deploy/dovecot-restore.conf").read_text()
    snippet = snippet.replace("mail_plugins=quota", "mail_plugins=").replace("2425", str(port))
    dovecot = start_dovecot(
        quota_bytes={ANNA.decode(): 100}, settings={"mail_debug": f"no\n{snippet}"}
    )  # fmt: skip
    config = configure(tmp_path, dovecot)
    fill(tmp_path / "store", [mail(n) for n in range(3)])
    assert run(config, "replay", "--all").returncode == 4
    result = run(config, "replay", "--all", "--downstream", f"127.0.0.1:{port}")
    assert result.returncode == 0, result.stderr
    with live(dovecot) as mailbox:
        assert len(list(mailbox.messages("INBOX"))) == 3


def test_a_folder_goes_into_the_address(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    dovecot = start_dovecot(
        settings={"lmtp_save_to_detail_mailbox": "yes", "lda_mailbox_autocreate": "yes",
                  "recipient_delimiter": "+"},
    )  # fmt: skip
    config = configure(tmp_path, dovecot)
    fill(tmp_path / "store", [mail(1)])
    result = run(config, "replay", "--all", "--folder", "Old mail")
    assert result.returncode == 0, result.stdout
    assert "lmtp_save" not in result.stderr
    with live(dovecot) as mailbox:
        assert [found.folder for found in mailbox.messages("Old mail")] == ["Old mail"]
        assert not list(mailbox.messages("INBOX"))


def test_a_folder_that_the_server_passes_over_is_told(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    dovecot = start_dovecot(settings={"recipient_delimiter": "+"})
    config = configure(tmp_path, dovecot)
    fill(tmp_path / "store", [mail(1)])
    with live(dovecot) as mailbox:
        mailbox.make_folder("Restored")
    result = run(config, "replay", "--all", "--folder", "Restored")
    assert result.returncode == 0, result.stdout
    assert "lmtp_save_to_detail_mailbox = yes" in result.stderr


def test_mailboxes_are_mapped_to_others(start_dovecot: StartDovecot, tmp_path: Path) -> None:
    dovecot = start_dovecot()
    config = configure(tmp_path, dovecot)
    for name in (b"anna", b"bert", b"carl"):
        fill(tmp_path / "store", [mail(n) + name for n in range(3)], to=name + b"@example.org")
    mapping = tmp_path / "mapping"
    mapping.write_text(
        "# who -> where\nAnna@example.org x@new.example\n\nbert@example.org y@new.example # moved\n"
    )
    result = run(config, "replay", "--all", "--mapping", str(mapping), "--json")
    assert result.returncode == 0, result.stderr
    with live(dovecot, b"x@new.example") as mailbox:
        assert len(list(mailbox.messages("INBOX"))) == 3
    with live(dovecot, b"carl@example.org") as mailbox:
        assert not list(mailbox.messages("INBOX"))
