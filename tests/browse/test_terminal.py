"""The command as a real process: on a pseudo-terminal, on none, and where textual is not installed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.support.mailstore import written
from tests.support.service import COMMAND


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with written(tmp_path / "store") as fill:
        fill.put(subject=b"\x1b]0;owned\x07lunch")
    return tmp_path / "store"


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "MAILKEEP_CONFIG", "COLORTERM"}}
    return {**kept, "TERM": "xterm-256color", **changes}


@pytest.mark.parametrize("no_color", [False, True])
def test_it_starts_quits_and_restores_the_terminal(path: Path, no_color: bool) -> None:
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(inner)
    process = subprocess.Popen(
        [*COMMAND, "browse", "--store", str(path)], stdin=inner, stdout=inner, stderr=inner,
        env=environment(**({"NO_COLOR": "1"} if no_color else {})), start_new_session=True,
    )  # fmt: skip
    shown = b""
    try:
        deadline = time.monotonic() + 60
        asked = False
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([outer], [], [], 0.1)[0]:
                shown += os.read(outer, 65536)
            if not asked and b"lunch" in shown:
                os.write(outer, b"q")
                asked = True
        assert process.wait(60) == 0, shown[-2000:]
        while select.select([outer], [], [], 0.2)[0]:
            shown += os.read(outer, 65536)
        assert termios.tcgetattr(inner) == before
    finally:
        process.kill()
        process.wait()
        os.close(inner)
        os.close(outer)
    assert b"\x1b]0;owned" not in shown
    assert b"\x1b[?1049h" in shown, "the alternate screen"
    assert shown.rindex(b"\x1b[?1049l") > shown.rindex(b"lunch")
    if no_color:
        assert b"\x1b[33" not in shown
        assert b"38;5;" not in shown
        assert b"38;2;" not in shown


def test_without_a_terminal_it_says_so(path: Path) -> None:
    ran = subprocess.run(
        [*COMMAND, "browse", "--store", str(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=environment(), timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("mailkeep: browse needs a terminal, and there is none\nOver ssh: ssh -t")


@pytest.mark.parametrize(
    ("term", "code", "said"),
    [
        ("dumb", "", b"browse cannot draw on this terminal (TERM is dumb)"),
        ("xterm", "import sys; sys.modules['textual'] = None; ", b"pip install 'mailkeep[browse]'"),
    ],
)
def test_what_is_missing_is_said(path: Path, term: str, code: str, said: bytes) -> None:
    outer, inner = pty.openpty()
    try:
        ran = subprocess.run(
            [sys.executable, "-P", "-c", f"{code}from sidecar.cli import main; main()", "browse",
             "--store", path],
            stdin=inner, stdout=inner, stderr=subprocess.PIPE, env=environment(TERM=term), timeout=60,
            check=False,
        )  # fmt: skip
    finally:
        os.close(inner)
        os.close(outer)
    assert ran.returncode == 2
    assert said in ran.stderr
