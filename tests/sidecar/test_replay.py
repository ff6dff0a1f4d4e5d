"""Replay against a real sink: exact bytes, right people, resumed without doubles, honest exit codes.

store (built here) --> mailkeep replay --> sink
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.ids import now_us
from store.records import Outcome, Outcomes
from store.store import Store
from store.writer import Submission
from tests.store.conftest import put_message
from tests.support.lmtp_sink import LmtpSink

MESSAGES = [b"Subject: mail %d\r\n\r\n.dot\r\n\0\xff line\r\n%s\r\n" % (n, b"x" * n * 1000) for n in range(5)]


class SinkThread:
    """The sink in an event loop of its own, so that tests can run commands and wait for them."""

    def __init__(self) -> None:
        self.sink = LmtpSink()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.sink.start(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.sink.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def server() -> Iterator[SinkThread]:
    thread = SinkThread()
    yield thread
    thread.stop()


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


def run(tmp_path: Path, server: SinkThread, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MAILKEEP_CONFIG"}
    return subprocess.run(
        [sys.executable, "-m", "sidecar.cli", "replay", "--store", str(tmp_path / "store"),
         "--downstream", str(server.sink.address), *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip


def lines(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """A line for each target; the last one, the summary, is left out."""
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in found if "mailboxes" not in line]


@pytest.mark.parametrize("chunking", [True, False])
def test_everyone_who_got_it_gets_it_again(
    tmp_path: Path, server: SinkThread, ids: list[str], chunking: bool
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
    tmp_path: Path, server: SinkThread, ids: list[str]
) -> None:
    assert run(tmp_path, server, "--to", "Carl@example.org").returncode == 0
    assert {tuple(m.recipients) for m in server.sink.delivered} == {(b"RCPT TO:<carl@example.org>",)}
    assert len(server.sink.delivered) == 4
    server.sink.delivered.clear()
    assert run(tmp_path, server, ids[2][:8], "--rcpt", "dora@example.org").returncode == 0
    assert [(m.recipients, m.message) for m in server.sink.delivered] == [
        ([b"RCPT TO:<dora@example.org>"], MESSAGES[2])
    ]


def test_dry_run_sends_nothing(tmp_path: Path, server: SinkThread, ids: list[str]) -> None:
    result = run(tmp_path, server, *ids, "--dry-run", "--json")
    assert result.returncode == 0
    assert len(lines(result)) == 9
    assert server.sink.connections == 0


def test_a_run_that_met_refusals_goes_on_with_what_is_missing(
    tmp_path: Path, server: SinkThread, ids: list[str]
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


def test_killed_in_the_middle_and_run_again(tmp_path: Path, server: SinkThread, ids: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar.cli", "replay", "--store", str(tmp_path / "store"), "--rate", "4",
         "--downstream", str(server.sink.address), "--since", "1h"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    for _ in range(3):
        assert process.stdout.readline()
    process.kill()
    process.communicate(timeout=10)
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


def test_nobody_there(tmp_path: Path, server: SinkThread, ids: list[str]) -> None:
    server.sink.greeting = b"421 go away\r\n"
    result = run(tmp_path, server, *ids, "--patience", "1s")
    assert result.returncode == 4
    assert result.stdout.count("not sent") == 9
    assert "gave up" in result.stderr


def test_wrong_usage(tmp_path: Path, server: SinkThread, ids: list[str]) -> None:
    assert run(tmp_path, server).returncode == 2
    assert run(tmp_path, server, "--rcpt", "a b@x", ids[0]).returncode == 2
    assert run(tmp_path, server, "--to", "nobody@example.org").returncode == 4
    assert run(tmp_path, server, "ffffffffff").returncode == 17
    assert not server.sink.delivered


def test_damage_is_never_delivered(tmp_path: Path, server: SinkThread, ids: list[str]) -> None:
    pack = tmp_path / "store/streams/host/0000000001.pack"
    data = bytearray(pack.read_bytes())
    for at in range(200, len(data), 500):
        data[at] ^= 1
    pack.write_bytes(data)
    result = run(tmp_path, server, "--since", "1h")
    assert result.returncode in {3, 4}
    assert all(mail.message in MESSAGES for mail in server.sink.delivered)
