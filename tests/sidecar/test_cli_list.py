"""`list` finds by every filter, shows nothing raw, and gives machines all there is."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from store import looks
from store.records import Delivery, Leg
from store.store import Store
from tests.store.conftest import put_message
from tests.support.mailstore import NOON_US, SECOND_US, mailkeep, written
from tests.support.service import COMMAND

OK = b"250 2.0.0 <anna@example.org> Saved"
FULL = b"452-4.2.2 Mailbox\r\n452 4.2.2 is full"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("list") / "store"
    with written(path) as fill:
        fill.put(subject=b"one", queue_id=b"Q1", message_id=b"<1@x>", replies=[OK])
        fill.put(
            subject=b"=?utf-8?q?Zw=C3=B6lf_M=C3=A4use?=", to=[b"Anna@Example.ORG", b"carl@sub.example.net"],
            queue_id=b"Q2", message_id=b"2@x", replies=[OK, FULL],
        )  # fmt: skip
        fill.put(subject=b"three", sender=b"", to=[b"carl@sub.example.net"], replies=[FULL])
        fill.put(subject=b"four", leg=Leg.MILTER, queue_id=b"Q1", message_id=b"<1@x>")
        fill.put(subject=b"five", sender=b"Dora@Example.com", to=[b"[weird]?@example.net"])
        fill.put(subject=b"six", to=[b"anna@example.org", b"emil@example.net"], replies=[None, FULL])
        fill.put(subject=b"seven", to=[b"anna@example.org", b"emil@example.net"], replies=[OK, None])
    return path


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("", "seven six five four three mäuse one"),
        ("--to anna@example.org", "seven six four mäuse one"),
        ("--to ANNA@example.org --leg lmtp", "seven six mäuse one"),
        ("--to <anna@example.org> --status delivered", "one"),
        ("--to @example.net", "seven six five"),
        ("--to @*.example.net", "three mäuse"),
        ("--to *@*example.net", "seven six five three mäuse"),
        ("--to a*a@example.org", "seven six four mäuse one"),
        ("--to [weird]?@*", "five"),
        ("--to nobody@example.org", ""),
        ("--from dora@example.com", "five"),
        ("--from <>", "three"),
        ("--from @EXAMPLE.com --to carl@sub.example.net", "mäuse"),
        ("--queue-id Q1", "four one"),
        ("--queue-id Q1 --leg milter", "four"),
        ("--queue-id q1", ""),
        ("--message-id 1@x", "four one"),
        ("--message-id <1@x> --leg lmtp", "one"),
        ("--message-id <2@x>", "mäuse"),
        ("--message-id 2@x", "mäuse"),
        ("--subject MÄUSE", "mäuse"),
        ("--subject e", "seven five three mäuse one"),
        ("--status partial", "seven mäuse"),
        ("--status refused", "three"),
        ("--status pending", "six five"),
        ("--status offered", "four"),
        ("--since 2026-03-31T12:00:05Z", "seven six"),
        ("--until 2026-03-31T12:00:01Z", "one"),
        ("--since 2026-03-31T12:00:01Z --until 2026-03-31T12:00:03Z", "three mäuse"),
        ("--since 2026-03-31T12:00:01Z --to anna@example.org --until 2026-03-31T12:00:05Z", "four mäuse"),
    ],
)
@pytest.mark.parametrize("ids_per_look", [1, 2, 500])
def test_filters(
    store: Path, arguments: str, found: str, ids_per_look: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "IDS_PER_LOOK", ids_per_look)
    ran = mailkeep("list", "--store", store, "--json", *arguments.split())
    assert (ran.code, ran.err) == (0, "" if found else "mailkeep: nothing matches\n")
    assert [shown["subject"].lower().split()[-1] for shown in ran.objects] == found.split()


@pytest.mark.parametrize("option", ["--to", "--from", "--subject", "--queue-id", "--message-id"])
def test_an_empty_filter_is_a_slip(store: Path, option: str) -> None:
    ran = mailkeep("list", "--store", store, option, "")
    assert ran.code == 2
    assert "is empty" in ran.err


def test_json_has_everything_whole(store: Path) -> None:
    (shown,) = mailkeep("list", "--store", store, "--json", "--queue-id", "Q2").objects
    assert re.fullmatch("[0-9a-f]{32}", shown.pop("id"))
    assert re.fullmatch("[0-9a-f]{64}", shown.pop("content"))
    assert shown == {
        "time": "2026-03-31T12:00:01.000000Z",
        "leg": "lmtp",
        "status": "partial",
        "queue_id": "Q2",
        "sender": "bert@example.com",
        "recipients": [
            {"address": "Anna@Example.ORG", "reply": "250 2.0.0 <anna@example.org> Saved"},
            {"address": "carl@sub.example.net", "reply": "452-4.2.2 Mailbox\r\n452 4.2.2 is full"},
        ],
        "size": 47,
        "subject": "Zwölf Mäuse",
        "message_id": "2@x",
        "notes": [],
    }


def test_plain_lines_are_aligned_and_abbreviated(store: Path) -> None:
    lines = mailkeep("list", "--store", store, "--queue-id", "Q1").lines
    assert lines[0].split() == ["ID", "CAPTURED", "LEG", "STATUS", "FROM", "TO", "SIZE", "SUBJECT"]
    assert re.match(r"[0-9a-f]{10}  2026-03-31 \d\d:\d\d:03  milter  offered  ", lines[1])
    assert lines[2].endswith("250 anna@example.org  47 B  one")
    assert len({line.index("bert@") for line in lines[1:]} | {lines[0].index("FROM")}) == 1
    assert lines[0].index("SUBJECT") == lines[2].index("one")


def test_limits(store: Path) -> None:
    ran = mailkeep("list", "--store", store, "--limit", "2", "--json")
    assert [shown["subject"] for shown in ran.objects] == ["seven", "six"]
    assert "more than 2" in ran.err
    exact = mailkeep("list", "--store", store, "--limit", "7", "--json")
    assert (len(exact.objects), exact.err) == (7, "")
    assert len(mailkeep("list", "--store", store, "--limit", "0", "--json").objects) == 7
    assert mailkeep("list", "--store", store, "--limit", "-1").code == 2


def test_many_at_one_moment_are_each_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "IDS_PER_LOOK", 3)
    with written(tmp_path / "store") as fill:
        put: list[Delivery] = [fill.put(time_us=NOON_US + number // 5 * SECOND_US) for number in range(20)]
    found = mailkeep("list", "--store", tmp_path / "store", "--json", "--limit", "0").objects
    assert sorted(shown["id"] for shown in found) == sorted(delivery.id.hex() for delivery in put)
    times = [shown["time"] for shown in found]
    assert times == sorted(times, reverse=True)


HOSTILE = b"\x1b]0;owned\x07\x1b[2J [bold]x[/bold] \xff\x9b31m \xe2\x80\xae"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    with written(tmp_path / "store") as fill:
        fill.put(
            sender=b"a\x1b[31m\xe9@x\r\n", to=[b"\x00\x07@y", *(b"%d@z" % n for n in range(9))],
            subject=HOSTILE, message_id=b"<\xff\x1b>", queue_id=b"\xff",
            replies=[b"250 \x1b[0m \xff"],
        )  # fmt: skip
    return tmp_path / "store"


def test_hostile_mail_in_plain_lines_and_json(hostile: Path) -> None:
    ran = mailkeep("list", "--store", hostile)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", ran.out)
    assert len(ran.lines) == 2
    assert "[bold]x[/bold]" in ran.lines[1]
    assert "+6 more" in ran.lines[1]
    (shown,) = mailkeep("list", "--store", hostile, "--json").objects
    assert shown["sender"] == "a\x1b[31m\ufffd@x\r\n"
    assert shown["message_id"] == "<\ufffd\x1b>"
    assert shown["queue_id"] == "\ufffd"
    assert shown["recipients"][0] == {"address": "\x00\x07@y", "reply": "250 \x1b[0m \ufffd"}
    assert len(shown["recipients"]) == 10
    (by_bytes,) = mailkeep("list", "--store", hostile, "--json", "--queue-id", os.fsdecode(b"\xff")).objects
    assert by_bytes["id"] == shown["id"]


@pytest.mark.parametrize("columns", [80, 110, 200])
def test_a_terminal_gets_a_table_and_no_controls_of_the_mails(hostile: Path, columns: int) -> None:
    terminal, end = pty.openpty()
    command = [*COMMAND, "list", "--store", str(hostile)]
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONWARNINGS": "error"}
    with subprocess.Popen(command, stdout=end, env=environment) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # Linux says EIO when the other end has closed
                break
            if not piece:
                break
            shown += piece
        assert process.wait(60) == 0
    os.close(terminal)
    said = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)
    assert "─" in said
    assert "ID" in said
    assert "partial" in said
    assert "\\x1b" in said
    assert max(map(len, said.splitlines())) <= columns


@pytest.mark.parametrize("command", [("list",), ("find", "subject:mail"), ("find", "word")])
def test_a_partial_answer_is_told_each_time(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "store"
    with Store.open(path, create=True) as store:
        store.start_writing("ho\x1bst")
        ends = []
        for number in range(5):
            put_message(store, b"Subject: mail %d\r\n\r\nword\r\n" % number)
            ends.append(next(path.glob("streams/*/*.pack")).stat().st_size)
    arguments = (*command, "--store", path, "--json")
    mailkeep("find", "--build", "--store", path)
    ran = mailkeep(*arguments)
    assert (ran.code, len(ran.objects)) == (0, 5)
    pack = next(path.glob("streams/*/*.pack"))
    data = bytearray(pack.read_bytes())
    data[ends[1] : ends[2] - 100] = bytes(ends[2] - 100 - ends[1])  # the third, and not its commit
    pack.write_bytes(data)
    for told in ("delivery ", "part of ho\\x1bst is damaged or missing"):
        for _ in range(2):
            ran = mailkeep(*arguments)
            assert (ran.code, len(ran.objects)) == (1, 4), ran.err
            assert told in ran.err
            assert "\x1b" not in ran.err
        shutil.rmtree(path / "index")
