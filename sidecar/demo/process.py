"""A server process together with all that it forks: started, watched and stopped as one.

The server leads a session of its own, so its children can be told from everything else
on the machine, and nothing but that session is ever signalled. When `stop` returns, no
process of it is left, also when the server itself died or hung half-way.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from sidecar.demo.ports import LOOPBACK, is_free, wait_until

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_COMPLAINT = re.compile(r"\b(?:fatal|error|panic)\b", re.IGNORECASE)
_KILL_TIMEOUT_S = 10.0
_MAX_PATH_BYTES = 70  # leaves room for the longest name that Dovecot makes below it


class ServerFailedError(Exception):
    """A private server did not start, or one of its commands failed; the text holds its last complaints."""


class ServerProcess:
    """A running server in a session of its own. Ends with `stop`.

    `environment`: all it gets; by default nothing but a PATH of the system's programs.
    """

    def __init__(
        self, command: Sequence[str], *, output: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        with output.open("ab") as sink:
            self._leader = subprocess.Popen(  # noqa: S603 - no shell, and our own command line
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o022,
                # MAIL_CONFIG and the like would point Postfix at another instance.
                env={"PATH": SYSTEM_PATH} if environment is None else environment,
            )

    @property
    def pid(self) -> int:
        """The leader's process id, which is also its session's."""
        return self._leader.pid

    @property
    def running(self) -> bool:
        """True while the leader lives."""
        return self._leader.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The leader's, as subprocess tells it; None while it runs."""
        return self._leader.poll()

    def members(self) -> list[int]:
        """Process ids of all that is left of the session, zombies aside."""
        return session_members(self.pid)

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """SIGTERM to the leader, SIGKILL to what is still there after the timeout."""
        if self.running:
            self._leader.terminate()
        if not wait_until(self._gone, timeout_s=timeout_s):
            for pid in self.members():
                _kill(pid)
            wait_until(self._gone, timeout_s=_KILL_TIMEOUT_S)

    def _gone(self) -> bool:
        return not self.running and not self.members()


def session_members(session: int) -> list[int]:
    """Process ids in a session, zombies aside (Linux: reads /proc)."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _session_of(entry) == session
    ]


def _session_of(process: Path) -> int | None:
    try:
        stat = (process / "stat").read_text(errors="replace")
    except OSError:  # it ended while we looked
        return None
    # proc(5): pid (comm) state ppid pgrp session ...; comm may itself hold brackets and blanks.
    state, _ppid, _pgrp, session = stat.rpartition(")")[2].split()[:4]
    return None if state == "Z" else int(session)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def server_directory(given: Path, name: str) -> Path:
    """Create `name` in the given directory, where servers that drop root can walk into it.

    The given directory is opened for that (mode +x for all). Raises ServerFailedError when one
    above it is closed, or when the path is too long for UNIX sockets (unix(7): 107 bytes in all).
    """
    directory = given.resolve() / name
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    directory.parent.chmod(directory.parent.stat().st_mode | 0o111)
    if len(os.fsencode(directory)) > _MAX_PATH_BYTES:
        raise ServerFailedError(f"{directory}: the path is too long for the UNIX sockets below it")
    closed = [parent for parent in directory.parents if not parent.stat().st_mode & 0o001]
    if os.geteuid() == 0 and closed:
        raise ServerFailedError(f"{directory}: {closed[0]} is closed to the users that mail servers run as")
    return directory


def refuse_taken(*ports: int) -> None:
    """Raises ServerFailedError when something listens there: its greeting would pass for our server's."""
    taken = [str(port) for port in ports if not is_free(port)]
    if taken:
        raise ServerFailedError(f"Address already in use: {LOOPBACK}, port {' and '.join(taken)}")


def why_it_failed(*logs: Path, count: int = 10) -> str:
    """The last complaints in the logs that exist (or, without any, their last lines), for an error's text."""
    texts = [log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists()]
    lines = [line for text in texts for line in text.splitlines()]
    complaints = [line for line in lines if _COMPLAINT.search(line)]
    return "\n".join((complaints or lines)[-count:])
