"""Replay against a real sink: exact bytes, right people, resumed without doubles, honest exit codes.

store (built here) --> mailkeep replay --> sink
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.ports import wait_until
from sidecar.replay.lmtp import with_detail
from sidecar.replay.mapping import MappingError, read_mapping
from store.deliveries import Query
from store.ids import now_us
from store.records import Erasure, Outcome, Outcomes
from store.store import Store
from store.writer import Submission
from tests.store.conftest import put_message
from tests.support.lmtp_sink import LmtpSink
from tests.support.service import COMMAND
from tests.support.sink_thread import SinkThread

MESSAGES = [b"Subject: mail %d\r\n\r\n.dot\r\n\0\xff line\r\n%s\r\n" % (n, b"x" * n * 1000) for n in range(5)]


Server = SinkThread[LmtpSink]


@pytest.fixture
def server() -> Iterator[Server]:
    with SinkThread(LmtpSink()) as running:
        yield running


@pytest.fixture
def ids(tmp_path: Path) -> list[str]:
    """Five deliveries to anna and carl; carl was refused in the first."""
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        names = []
        for number, message in enumerate(MESSAGES):
            delivery = put_message(store, message, to=(b"anna@example.org", b"carl@example.org"))
            outcomes = (Outcome(0, b"250 ok"), Outcome(1, b"550 no" if number == 0 else b"250 ok"))
            fact = Outcomes(delivery=delivery.id, time_us=now_us(), outcomes=outcomes)
            store.writer.submit(Submission(entries=[fact], lazy=True))
            names.append(delivery.id.hex())
    return names


def command(tmp_path: Path, server: Server, *arguments: str) -> list[str]:
    return [*COMMAND, "replay", "--store", str(tmp_path / "store"),
            "--downstream", server.address, *arguments]  # fmt: skip


def run(tmp_path: Path, server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MAILKEEP_CONFIG"}
    return subprocess.run(
        command(tmp_path, server, *arguments),
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip


def lines(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """A line for each target; the last one, the summary, is left out."""
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in found if "mailboxes" not in line]


@pytest.mark.parametrize("chunking", [True, False])
def test_everyone_who_got_it_gets_it_again(
    tmp_path: Path, server: Server, ids: list[str], chunking: bool
) -> None:
    server.sink.chunking = chunking
    result = run(tmp_path, server, "--since", "1h", "--json")
    assert result.returncode == 0, result.stderr
    assert len(lines(result)) == 9
    assert all(line["restored"] for line in lines(result))
    got = [(mail.recipients, mail.message) for mail in server.sink.delivered]
    anna, carl = b"RCPT TO:<anna@example.org>", b"RCPT TO:<carl@example.org>"
    wanted = [([who], message) for message in MESSAGES for who in (anna, carl)]
    wanted.remove(([carl], MESSAGES[0]))
    assert sorted(got) == sorted(wanted)
    assert {mail.mail for mail in server.sink.delivered} == {b"MAIL FROM:<>"}


def test_to_narrows_the_recipients_and_rcpt_replaces_them(
    tmp_path: Path, server: Server, ids: list[str]
) -> None:
    assert run(tmp_path, server, "--to", "Carl@example.org").returncode == 0
    assert {tuple(m.recipients) for m in server.sink.delivered} == {(b"RCPT TO:<carl@example.org>",)}
    assert len(server.sink.delivered) == 4
    server.sink.delivered.clear()
    assert run(tmp_path, server, ids[2][:8], "--rcpt", "dora@example.org").returncode == 0
    assert [(m.recipients, m.message) for m in server.sink.delivered] == [
        ([b"RCPT TO:<dora@example.org>"], MESSAGES[2])
    ]


def test_dry_run_sends_nothing(tmp_path: Path, server: Server, ids: list[str]) -> None:
    result = run(tmp_path, server, *ids, "--dry-run", "--json")
    assert result.returncode == 0
    assert len(lines(result)) == 9
    assert server.sink.connections == 0


def test_a_run_that_met_refusals_goes_on_with_what_is_missing(
    tmp_path: Path, server: Server, ids: list[str]
) -> None:
    server.sink.final_replies[b"RCPT TO:<carl@example.org>"] = b"452 4.2.2 full\r\n"
    result = run(tmp_path, server, "--since", "1h", "--json")
    assert result.returncode == 3
    assert [line["reply"] for line in lines(result) if not line["restored"]] == ["452 4.2.2 full"] * 4
    server.sink.final_replies.clear()
    server.sink.delivered.clear()
    result = run(tmp_path, server, "--since", "1h", "--json")
    assert result.returncode == 0
    assert {tuple(m.recipients) for m in server.sink.delivered} == {(b"RCPT TO:<carl@example.org>",)}
    assert sum(line["already"] for line in lines(result)) == 5
    server.sink.delivered.clear()
    assert run(tmp_path, server, "--since", "1h").returncode == 0  # that run had ended: this is a new one
    assert len(server.sink.delivered) == 9


def test_killed_in_the_middle_and_run_again(tmp_path: Path, server: Server, ids: list[str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "replay", "--store", str(tmp_path / "store"), "--rate", "4",
         "--downstream", server.address, "--since", "1h"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    for _ in range(3):
        assert process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)
    result = run(tmp_path, server, "--since", "1h", "--json")
    assert result.returncode in {0, 6}
    doubtful = [line for line in lines(result) if line["outcome"] == "in doubt"]
    assert len(doubtful) <= 2, "no more than what was in hand when it was killed"
    got = [(tuple(mail.recipients), mail.message) for mail in server.sink.delivered]
    assert len(set(got)) == len(got), "nothing came twice"
    assert len(got) >= 9 - len(doubtful)
    assert run(tmp_path, server, "--since", "1h", "--doubtful", "send").returncode == 0
    got = [(tuple(mail.recipients), mail.message) for mail in server.sink.delivered]
    assert len(set(got)) == 9
    assert len(got) <= 9 + len(doubtful)


def test_nobody_there(tmp_path: Path, server: Server, ids: list[str]) -> None:
    server.sink.greeting = b"421 go away\r\n"
    result = run(tmp_path, server, *ids, "--patience", "1s")
    assert result.returncode == 4
    assert result.stdout.count("not sent") == 9
    assert "gave up" in result.stderr


def test_wrong_usage(tmp_path: Path, server: Server, ids: list[str]) -> None:
    assert run(tmp_path, server).returncode == 2
    assert run(tmp_path, server, "--rcpt", "a b@x", ids[0]).returncode == 2
    assert run(tmp_path, server, "--to", "nobody@example.org").returncode == 4
    assert run(tmp_path, server, "ffffffffff").returncode == 17
    assert not server.sink.delivered


def test_damage_is_never_delivered(tmp_path: Path, server: Server, ids: list[str]) -> None:
    pack = tmp_path / "store/streams/host/0000000001.pack"
    data = bytearray(pack.read_bytes())
    for at in range(200, len(data), 500):
        data[at] ^= 1
    pack.write_bytes(data)
    result = run(tmp_path, server, "--since", "1h")
    assert result.returncode in {3, 4}
    assert all(mail.message in MESSAGES for mail in server.sink.delivered)


def test_a_recipient_that_is_refused(tmp_path: Path, server: Server, ids: list[str]) -> None:
    """This server does not answer a BDAT for nobody, as Dovecot would."""
    server.sink.rcpt_replies[b"RCPT TO:<carl@example.org>"] = b"550 5.1.1 who\r\n"
    result = run(tmp_path, server, "--since", "1h", "--json")
    assert result.returncode == 3
    assert [line["reply"] for line in lines(result) if not line["restored"]] == ["550 5.1.1 who"] * 4
    assert len(server.sink.delivered) == 5


def test_intents_come_first_and_are_settled(tmp_path: Path, server: Server, ids: list[str]) -> None:
    """What is shown of a message: each reply once, and nothing in doubt."""
    server.sink.final_replies[b"RCPT TO:<carl@example.org>"] = b"452 4.2.2 full\r\n"
    assert run(tmp_path, server, "--since", "1h").returncode == 3
    with Store.open(tmp_path / "store") as store:
        found = [stored for stored in store.deliveries(Query()) for _ in stored.replays]
        assert len(found) == 9
        assert not any(stored.in_doubt for stored in found)
        assert store.stats().counters.replays == 9
        replies = {(replay.recipient, replay.reply) for stored in found for replay in stored.replays}
    assert {reply[:3] for _, reply in replies} == {b"250", b"452"}


def test_a_connection_lost_after_the_end_leaves_a_doubt(
    tmp_path: Path, server: Server, ids: list[str]
) -> None:
    """Without IMAP nobody knows: it is told, never sent again by itself, and sent once more when asked to."""
    server.sink.drop_at = b"end"
    result = run(tmp_path, server, ids[0], "--json")
    assert result.returncode == 6, result.stderr
    assert "--doubtful send" in result.stderr
    server.sink.drop_at = b""
    result = run(tmp_path, server, ids[0], "--json")
    assert [line["outcome"] for line in lines(result)] == ["in doubt"]
    assert len(server.sink.delivered) == 1
    with Store.open(tmp_path / "store") as store:
        stored = store.delivery(store.resolve(ids[0]))
        assert [replay.recipient for replay in stored.in_doubt] == [b"anna@example.org"]
        assert not stored.replays
    assert run(tmp_path, server, ids[0], "--doubtful", "send").returncode == 0
    assert len(server.sink.delivered) == 2


@pytest.mark.parametrize("step", [b"MAIL", b"RCPT", b"BDAT"])
def test_a_message_that_ends_every_connection_does_not_end_the_run(
    tmp_path: Path, server: Server, ids: list[str], step: bytes
) -> None:
    server.sink.pipelining = False  # one step at a time: what has no end yet cannot be there
    server.sink.drop_at = step
    result = run(tmp_path, server, ids[1], ids[2], "--connections", "1", "--patience", "20s", "--json")
    outcomes = [line["outcome"] for line in lines(result)]
    if step == b"BDAT":
        assert outcomes == ["in doubt"] * 4
    else:
        assert outcomes == ["refused"] * 4
        assert server.sink.connections == 12
    assert not server.sink.delivered


def test_a_server_that_comes_back(tmp_path: Path, server: Server, ids: list[str]) -> None:
    server.sink.greeting = b"421 4.3.2 starting\r\n"
    process = subprocess.Popen(
        command(tmp_path, server, "--since", "1h", "--patience", "30s"), stdout=subprocess.PIPE
    )
    while server.sink.connections < 3:
        time.sleep(0.02)
    server.sink.greeting = b"220 ready\r\n"
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(server.sink.delivered) == 9


def test_ctrl_c_finishes_what_is_being_sent(tmp_path: Path, server: Server, ids: list[str]) -> None:
    process = subprocess.Popen(
        command(tmp_path, server, "--since", "1h", "--rate", "4"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "the rest was not looked at" in said
    planned = run(tmp_path, server, "--since", "1h", "--dry-run")
    before = len(server.sink.delivered)
    assert f"{9 - before} would be sent; {before} are back already" in planned.stderr
    before = len(server.sink.delivered)
    assert 1 <= before < 9
    result = run(tmp_path, server, "--since", "1h")
    assert result.returncode == 0, "nothing is in doubt"
    assert len(server.sink.delivered) == 9


def test_two_at_once_are_one_too_many(tmp_path: Path, server: Server, ids: list[str]) -> None:
    gate = server.sink.gates[b"end"] = asyncio.Event()
    first = subprocess.Popen(command(tmp_path, server, "--since", "1h"), stdout=subprocess.PIPE)
    assert wait_until(lambda: bool(server.sink.delivered), timeout_s=60)
    second = run(tmp_path, server, "--since", "1h")
    assert second.returncode == 12
    server.open(gate)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert len(server.sink.delivered) == 9


def test_several_at_once_and_as_few_round_trips_as_can_be(
    tmp_path: Path, server: Server, ids: list[str]
) -> None:
    assert run(tmp_path, server, "--all", "--connections", "3").returncode == 0
    assert server.sink.connections == 3
    assert run(tmp_path, server, "--all", "--connections", "1", "--again").returncode == 0
    in_order = [mail.message for mail in server.sink.delivered[9:]]
    assert in_order == [message for message in MESSAGES for _ in range(2)][1:], "by time, with one connection"


def test_the_report_has_a_line_for_each(tmp_path: Path, server: Server, ids: list[str]) -> None:
    server.sink.final_replies[b"RCPT TO:<carl@example.org>"] = b"552 5.2.2 full\r\n"
    result = run(tmp_path, server, "--all", "--report", str(tmp_path / "report"), "--json")
    told = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert sorted(told, key=str) == sorted(lines(result), key=str)
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["restored"], summary["refused"], summary["exit_code"]) == (5, 4, 3)
    assert summary["mailboxes"]["carl@example.org"]["last_refusal"] == "552 5.2.2 full"


def test_what_was_erased_stays_away_also_as_another_delivery(
    tmp_path: Path, server: Server, ids: list[str]
) -> None:
    with Store.open(tmp_path / "store") as store:
        store.start_writing("host")
        delivery = store.delivery(store.resolve(ids[0])).delivery
        put_message(store, MESSAGES[0], to=(b"dora@example.org",))
        fact = Erasure(
            delivery=delivery.id, time_us=now_us(), owner="o", reason="r",
            content=store.tombstone(delivery.content), facts=store.traces(delivery.id),
        )  # fmt: skip
        store.writer.submit(Submission(entries=[fact]))
    result = run(tmp_path, server, "--to", "dora@example.org")
    assert result.returncode == 4
    assert "erased" in result.stdout
    assert not server.sink.delivered


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a@x b@y c@z\n", "line 1: 3 words"),
        ("# nothing\n\na@x\n", "line 3: 1 words"),
        ("a@x b@y\nA@x c@y\n", "line 2: A@x is named a second time"),
        ("a@x b<@y\n", "line 1: 'b<@y' is no address"),
        ("# nothing\n", "it names no mailbox"),
    ],
)
def test_a_mapping_that_will_not_do(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "mapping"
    file.write_text(text)
    with pytest.raises(MappingError) as raised:
        read_mapping(file)
    assert f"{file}" in str(raised.value)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        (b"anna@example.org", b"anna+Old@example.org"),
        (b"anna", b"anna+Old"),
        (b'"an na"@example.org', b'"an na+Old"@example.org'),
        (b'"a\\"b"@x', b'"a\\"b+Old"@x'),
    ],
)
def test_a_folder_in_an_address(address: bytes, wanted: bytes) -> None:
    assert with_detail(address, b"+Old") == wanted
    assert with_detail(b"anna@x", b"+Old mail") == b'"anna+Old mail"@x'


def test_what_needs_imap_says_so(tmp_path: Path, server: Server, ids: list[str]) -> None:
    for arguments in (
        ["--all", "--missing-only"],
        ["--all", "--flags", "\\Seen"],
        ["--all", "--patience", "x"],
    ):
        result = run(tmp_path, server, *arguments)
        assert result.returncode == 2, arguments
        assert result.stderr
