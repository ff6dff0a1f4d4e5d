"""`import` as a person runs it: once is enough, again does no harm, and what is wrong is told."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sidecar.sources.imap import PASSWORD_VARIABLE
from store.ids import now_us
from store.records import Erasure, Leg
from store.sealing import new_identity
from store.store import Store
from store.writer import Submission
from tests.support.mailstore import MESSAGE, NOON_US, mailkeep, written
from tests.support.service import COMMAND

NOON_S = NOON_US // 1_000_000
ANNA = ("--rcpt", "anna@example.org")
TORTURE = [
    b"Subject: 8-bit \xff\xfe \xe4\n\nx\n",
    b"Subject: NUL \0\n\n\0\0\n",
    b"no header and no final line end",
    b"Message-ID: <same@x>\n\none\n",
    b"Message-ID: <same@x>\n\ntwo\n",
    b"Subject: bare CR \r and dot\n\n.\n..\n",
    b"\n\n\n",
]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    Store.open(tmp_path / "store", create=True).close()
    return tmp_path / "store"


def put(path: Path, data: bytes, *, at_s: int = NOON_S) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (at_s, at_s))


def maildir(path: Path, messages: list[bytes]) -> Path:
    for number, message in enumerate(messages):
        put(path / f"cur/{NOON_S + number}.M{number}.host:2,S", message, at_s=NOON_S + number)
    return path


def contents(store: Path, *filters: str) -> list[bytes]:
    listed = mailkeep("list", "--store", store, "--limit", "0", "--json", *filters)
    return [mailkeep("show", "--store", store, "--raw", one["id"]).raw for one in listed.objects]


def test_everything_comes_back_byte_for_byte_and_once(store: Path, tmp_path: Path) -> None:
    source = maildir(tmp_path / "m", TORTURE)
    for _ in range(2):
        ran = mailkeep("import", source, *ANNA, "--store", store)
        assert ran.code == 0, ran.err
    assert "0 taken (0 B), 7 there already, 0 erased before, 0 skipped" in ran.err
    expected = [message.replace(b"\n", b"\r\n") for message in reversed(TORTURE)]
    assert contents(store, "--leg", "import", "--status", "imported") == expected
    (one,) = mailkeep("list", "--store", store, "--limit", "1", "--json").objects
    assert (one["leg"], one["status"], one["time"][:19]) == ("import", "imported", "2026-03-31T12:00:06")
    shown = mailkeep("show", "--store", store, one["id"]).out
    for line in (
        "Leg         import, imported",
        "Folder      INBOX",
        "Flags       \\Seen",
        "Origin      maildir:",
        "Imported    ",
    ):
        assert line in shown
    assert "Offered" not in shown
    assert "nothing matches" in mailkeep("list", "--store", store, "--as-of", "yesterday").err
    assert len(mailkeep("list", "--store", store, "--as-of", "0s", "--json").objects) == 7
    assert mailkeep("check", "--read-data", "--store", store).code == 0


def test_imported_mail_is_exported_and_planned_for_replay(store: Path, tmp_path: Path) -> None:
    mailkeep("import", maildir(tmp_path / "m", [MESSAGE]), *ANNA, "--store", store)
    export = ["export", "--store", store, "--leg", "import", "--format", "eml", "--output", tmp_path / "out"]
    assert mailkeep(*export).code == 0
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [MESSAGE]
    again = mailkeep("import", tmp_path / "out", *ANNA, "--store", store)
    assert "0 taken (0 B), 1 there already" in again.err
    planned = mailkeep("replay", "--store", store, "--leg", "import", "--to", "anna@example.org", "--dry-run")
    assert (planned.code, "anna@example.org" in planned.out) == (0, True)


def test_bad_files_are_told_and_skipped(store: Path, tmp_path: Path) -> None:
    source = maildir(tmp_path / "m", [MESSAGE, b""])
    (source / "cur/dangling").symlink_to("nowhere")
    ran = mailkeep("import", source, *ANNA, "--store", store)
    assert ran.code == 3
    assert [line.split(": ", 1)[1] for line in ran.lines] == [
        "is empty",
        "cannot be read: No such file or directory",
    ]
    assert "1 taken" in ran.err
    told = mailkeep("import", source, *ANNA, "--store", store, "--json").objects
    assert [one["result"] for one in told[:-1]] == ["there", "skipped", "skipped"]
    assert told[-1] == {"taken": 0, "there": 1, "erased": 0, "skipped": 2, "taken_bytes": 0}


def test_a_dry_run_writes_nothing(store: Path, tmp_path: Path) -> None:
    source = maildir(tmp_path / "m", [MESSAGE, MESSAGE, b"Subject: other\n\n"])
    ran = mailkeep("import", source, *ANNA, "--store", store, "--dry-run")
    assert (ran.code, ran.err) == (0, ran.err)
    assert "2 would be taken" in ran.err
    assert "1 there already" in ran.err
    assert contents(store) == []
    assert not list((store / "streams").iterdir())


def test_only_what_was_received_then(store: Path, tmp_path: Path) -> None:
    source = maildir(tmp_path / "m", [b"Subject: %d\n\n" % n for n in range(5)])
    interval = ["--since", "2026-03-31T12:00:01Z", "--until", "2026-03-31T12:00:03Z", "--folder", "old/"]
    assert mailkeep("import", source, *ANNA, "--store", store, *interval).code == 0
    assert contents(store) == [b"Subject: 2\r\n\r\n", b"Subject: 1\r\n\r\n"]
    (one, _) = mailkeep("list", "--store", store, "--json").objects
    assert "Folder      old/INBOX" in mailkeep("show", "--store", store, one["id"]).out


def test_a_directory_for_each_user(store: Path, tmp_path: Path) -> None:
    maildir(tmp_path / "all/anna@example.org", [MESSAGE])
    maildir(tmp_path / "all/carl@example.org/Maildir", [MESSAGE])
    put(tmp_path / "all/dora@example.org/notes.txt", b"\0")
    put(tmp_path / "all/README.txt", b"x")
    put(tmp_path / "all/.trash/cur/1", MESSAGE)
    ran = mailkeep("import", tmp_path / "all", "--per-user", "--store", store)
    assert ran.code == 3
    assert "no Maildir (cur, new)" in ran.out
    assert "mailkeep: not used, no user's directory: .trash, README.txt\n" in ran.err
    listed = mailkeep("list", "--store", store, "--json").objects
    assert {one["recipients"][0]["address"] for one in listed} == {"anna@example.org", "carl@example.org"}


def test_half_an_address_is_told_and_taken(store: Path, tmp_path: Path) -> None:
    bare = mailkeep("import", maildir(tmp_path / "b", [MESSAGE]), "--rcpt", "bert", "--store", store)
    assert "whole address" not in bare.err, "an empty store knows none"
    mailkeep("import", maildir(tmp_path / "m", [MESSAGE]), *ANNA, "--store", store)
    ran = mailkeep("import", tmp_path / "m", "--rcpt", "anna", "--store", store)
    assert (ran.code, "1 taken" in ran.err) == (0, True)
    assert "knows no recipient anna, but addresses such as anna@example.org: --rcpt takes" in ran.err
    assert "whole address" not in mailkeep("import", tmp_path / "m", "--rcpt", "Anna", "--store", store).err


def test_what_was_erased_is_left_out_and_told(tmp_path: Path) -> None:
    with written(tmp_path / "store") as fill:
        delivery = fill.put(MESSAGE, leg=Leg.LMTP)
        erasure = Erasure(
            delivery=delivery.id, time_us=now_us(), owner="o", reason="r",
            content=fill.store.tombstone(delivery.content),
        )  # fmt: skip
        fill.store.writer.submit(Submission(entries=[erasure]))
    ran = mailkeep("import", maildir(tmp_path / "m", [MESSAGE]), *ANNA, "--store", tmp_path / "store")
    assert (ran.code, ran.lines[0][:7]) == (0, "erased ")
    assert "0 taken (0 B), 0 there already, 1 erased before" in ran.err


def test_nothing_there_and_wrong_usage(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty/cur").mkdir(parents=True)
    assert mailkeep("import", tmp_path / "empty", *ANNA, "--store", store).code == 4
    for arguments, words in (
        ((*ANNA,), "give a SOURCE"),
        ((tmp_path / "empty",), "whose mail"),
        ((tmp_path / "empty", "--rcpt", "<>"), "no address"),
        ((tmp_path / "gone", *ANNA), "gone: cannot be read"),
        (("imap://a@127.0.0.1", "--per-user"), "for directories"),
        (("imap://a:b@127.0.0.1", *ANNA), "has a password"),
    ):
        ran = mailkeep("import", *arguments, "--store", store)
        assert (ran.code, words in ran.err) == (2, True), ran.err
    monkeypatch.setenv(PASSWORD_VARIABLE, "x")
    ran = mailkeep("import", "imap://a@127.0.0.1:1", *ANNA, "--store", store)
    assert (ran.code, "cannot be reached" in ran.err) == (40, True)


def test_a_sealed_store_needs_its_identity(tmp_path: Path) -> None:
    secret, recipient = new_identity()
    Store.open(tmp_path / "store", create=True, recipients=[recipient]).close()
    put(tmp_path / "key", secret.encode())
    (tmp_path / "key").chmod(0o600)
    source = maildir(tmp_path / "m", [MESSAGE])
    arguments = ["import", source, *ANNA, "--store", tmp_path / "store"]
    assert mailkeep(*arguments).code == 21
    for count in ("1 taken", "0 taken"):
        ran = mailkeep(*arguments, "--identity", tmp_path / "key")
        assert (ran.code, count in ran.err) == (0, True), ran.err


def test_killed_in_the_middle_it_goes_on(store: Path, tmp_path: Path) -> None:
    number = 2000
    messages = [
        b"Subject: %d\nMessage-ID: <same@x>\n\n" % n + os.urandom(300).hex().encode() for n in range(number)
    ]
    source = maildir(tmp_path / "m", messages)
    command = [*COMMAND, "import", str(source), *ANNA, "--store", str(store)]
    for name in (signal.SIGKILL, signal.SIGINT):
        before = _pack_bytes(store)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and _pack_bytes(store) < before + 60_000:
            time.sleep(0.005)
        process.send_signal(name)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if name is signal.SIGKILL else 130), err
    assert b"the same command goes on" in err
    with Store.open(store) as opened:
        assert 0 < opened.stats().counters.deliveries["import"] < number
    ran = mailkeep("import", source, *ANNA, "--store", store)
    assert ran.code == 0
    assert " 0 taken" not in ran.err
    with Store.open(store) as opened:
        assert opened.stats().counters.deliveries["import"] == number
    assert mailkeep("check", "--store", store).code == 0


def _pack_bytes(store: Path) -> int:
    return sum(path.stat().st_size for path in store.glob("streams/*/*.pack"))
