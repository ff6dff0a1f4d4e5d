"""Fixtures that any room may use."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell, which tells its children to ignore it: tests send it to theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def processes_in(directory: Path) -> dict[int, str]:
    """Processes that work in the directory or name it on their command line: id -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            at = (entry / "cwd").readlink()
        except OSError:  # it ended meanwhile
            continue
        if at.is_relative_to(directory) or f"{directory}" in command:
            found[int(entry.name)] = command
    return found


@pytest.fixture
def server_directory() -> Iterator[Path]:
    """A directory for servers and UNIX sockets, and the check that no process is left in it.

    pytest's tmp_path is closed to the users that mail servers run as, and too long for sockets.
    """
    directory = Path(tempfile.mkdtemp(prefix="mailkeep-")).resolve()
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        left = processes_in(directory)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)
    assert not left, f"processes left behind: {left}"
