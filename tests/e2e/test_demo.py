"""`mailkeep demo` as a newcomer runs it: what it prints, how it ends, and that nothing is left.

The fallback without Postfix and Dovecot needs no system package; the other combinations skip without them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.demo.ports import wait_until
from tests.conftest import processes_in
from tests.support.service import COMMAND

pytestmark = pytest.mark.e2e

HANGS_S = 300
NOTHING = "postfix,dovecot,milter"
PROOFS = (
    "captured, all that were to be",
    "the replies on record are those that",
    "refused were those that had to be, and nobody else",
    "every capture is what was sent, byte for byte",
    "every mail in every mailbox is its capture, byte for byte",
    "it is gone: 12 mails before, 11 now",
    "it is back: ",
    "the PDF of 176 KiB came",
    "every record, the chain of the history and every message in the store are sound",
    "the metrics agree, and count no failure",
    "it ended in order on SIGTERM, exit code 0",
)


class Demo:
    """A running demo whose temporary directory is below `directory`."""

    def __init__(self, directory: Path, *arguments: str, without: str = "") -> None:
        self.directory = directory
        environment = {**os.environ, "TMPDIR": str(directory), "MAILKEEP_DEMO_WITHOUT": without}
        self.process = subprocess.Popen(
            [*COMMAND, "demo", *arguments],
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        # A demo that hangs fails its test instead of holding up the run.
        self._alarm = threading.Timer(HANGS_S, self.process.kill)
        self._alarm.start()

    def read_until(self, words: str) -> None:
        assert self.process.stdout
        while words not in self.output:
            line = self.process.stdout.readline()
            assert line, self.output
            self.output += line

    def end(self) -> int:
        """Its exit code, with all that it printed in `output`."""
        assert self.process.stdout
        with self.process.stdout as pipe:
            self.output += pipe.read()
        code = self.process.wait()
        self._alarm.cancel()
        return code

    def left(self) -> list[object]:
        """Files and processes that should not be there any more."""
        return [*self.directory.iterdir(), *processes_in(self.directory).values()]


@pytest.fixture
def nothing_left(server_directory: Path) -> Iterator[Path]:
    """A directory for the demo's own, empty at the end, without processes."""
    yield server_directory
    assert list(server_directory.iterdir()) == []


def assert_held(demo: Demo) -> None:
    assert demo.end() == 0, demo.output
    for proof in PROOFS:
        assert f"✓ {proof}" in demo.output
    assert "✗" not in demo.output
    assert "NOT" not in demo.output
    assert re.search(r"^Everything held, in \d+ s\.", demo.output, re.MULTILINE)
    rows = re.findall(r"^ *(\d+)  \S.* [0-9.]+ (?:B|KiB|MiB) ", demo.output, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 21))
    assert re.search(r"\$ mailkeep replay [0-9a-f]{10}\n.*250 2\.0\.0 .*\n.*1 of 1 are back", demo.output)
    assert "nothing wrong" in demo.output
    assert "Ratio" in demo.output
    assert demo.left() == []


def test_all_of_it(require_servers: None, nothing_left: Path) -> None:
    """Setup: the real servers. Test: both legs, who refused whom, every proof; no process or file is left."""
    pytest.importorskip("milter")
    demo = Demo(nothing_left)
    assert_held(demo)
    for words in ("Postfix 3", "Dovecot 2.3", "milter on a unix socket", "OFFERED  "):
        assert words in demo.output
    assert "550 nobody@example.org (Dovecot)" in demo.output
    assert "554 eve@example.com (Postfix)" in demo.output
    assert "552 dora@example.org (Dovecot)" in demo.output
    assert "19 on their way to mailboxes, 20 as Postfix took them in" in demo.output
    assert "No " not in demo.output


def test_without_any_system_package(nothing_left: Path) -> None:
    """Setup: no Postfix, Dovecot, pymilter. Test: why is said, and every proof holds all the same."""
    demo = Demo(nothing_left, without=NOTHING)
    assert_held(demo)
    assert "No Dovecot: " in demo.output
    assert "No Postfix: " in demo.output
    assert "the milter, which is Postfix's to call, is not shown" in demo.output
    assert "OFFERED" not in demo.output
    assert "552 dora@example.org (the Maildir server)" in demo.output


@pytest.mark.parametrize("without", ["postfix", "dovecot", "milter"])
def test_without_one_of_them(require_servers: None, nothing_left: Path, without: str) -> None:
    demo = Demo(nothing_left, without=without)
    assert_held(demo)
    assert f"No {without.capitalize() if without != 'milter' else without}: " in demo.output


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("mailkeep serve:", signal.SIGINT),
        ("given to", signal.SIGTERM),
        ("DELIVERED", signal.SIGINT),
        ("it is gone", signal.SIGHUP),
        ("stats", signal.SIGINT),
    ],
)
def test_interrupted_it_leaves_nothing(nothing_left: Path, moment: str, number: signal.Signals) -> None:
    """Setup: a signal somewhere in the middle, and again. Test: exit code 130, no process or file left."""
    demo = Demo(nothing_left, without=NOTHING)
    demo.read_until(moment)
    demo.process.send_signal(number)
    demo.process.send_signal(number)
    assert demo.end() == 130, demo.output
    assert "Interrupted." in demo.output
    assert "Traceback" not in demo.output
    assert demo.left() == []


@pytest.mark.parametrize(
    "moment", ["Servers", "Dovecot 2", "mailkeep serve:", "Postfix 3", "given to", "it is gone"]
)
def test_interrupted_with_real_servers_it_leaves_nothing(
    require_servers: None, nothing_left: Path, moment: str
) -> None:
    demo = Demo(nothing_left)
    demo.read_until(moment)
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 130, demo.output
    assert demo.left() == []


@pytest.mark.parametrize("without", ["", NOTHING])
def test_kept_it_can_be_played_with(request: pytest.FixtureRequest, nothing_left: Path, without: str) -> None:
    """Setup: --keep. Test: what it says to try works; SIGTERM ends it with 0 and leaves nothing."""
    if not without:
        request.getfixturevalue("require_servers")
    demo = Demo(nothing_left, "--keep", without=without)
    demo.read_until("Ctrl-C here")
    told = re.search(r"export MAILKEEP_CONFIG=(\S+)\n  (.*) list ", demo.output)
    send = re.search(r"^  python3 -c \"(.*)\"$", demo.output, re.MULTILINE)
    assert told
    assert send
    subprocess.run([sys.executable, "-c", send[1]], check=True, timeout=120)
    config, command = told[1], told[2]

    def listed() -> str:
        return subprocess.run(
            f"{command} list --subject Hello --to anna@example.org --leg lmtp",
            shell=True, env={**os.environ, "MAILKEEP_CONFIG": config},
            capture_output=True, text=True, check=True, timeout=120,
        ).stdout  # fmt: skip

    assert wait_until(lambda: "250 anna@example.org" in listed(), timeout_s=60)
    if not without:
        gone = subprocess.run(
            f"{command} undelete anna@example.org --since 1h",
            shell=True, env={**os.environ, "MAILKEEP_CONFIG": config},
            capture_output=True, text=True, check=True, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "0 are in no folder" in gone.stderr
    demo.process.send_signal(signal.SIGTERM)
    assert demo.end() == 0, demo.output
    assert demo.left() == []


def test_a_failure_is_told_and_the_logs_are_kept(server_directory: Path) -> None:
    """Setup: serve is killed behind the demo's back. Test: exit code 1, where the logs are, nothing runs."""
    demo = Demo(server_directory, "--keep", without=NOTHING)
    demo.read_until("Ctrl-C here")
    [serve] = [pid for pid, command in processes_in(server_directory).items() if " serve " in command]
    os.kill(serve, signal.SIGKILL)
    assert demo.end() == 1
    assert "NOT everything held" in demo.output
    assert "mailkeep serve has ended by itself" in demo.output
    [log] = re.findall(r"^ +(/\S+/serve\.log)$", demo.output, re.MULTILINE)
    assert "ready" in Path(log).read_text()
    assert processes_in(server_directory) == {}


def test_the_environment_variable_is_checked(server_directory: Path) -> None:
    demo = Demo(server_directory, without="postfix,exim")
    assert demo.end() == 2
    assert "MAILKEEP_DEMO_WITHOUT names exim" in re.sub(r"\s+", " ", demo.output)
