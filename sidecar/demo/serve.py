"""A private `mailkeep serve`, and beside it the commands that an operator would type.

A process of its own, run as anybody runs it: started with --config, watched by /readyz, ended by SIGTERM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.demo.ports import LOOPBACK, free_port, wait_until
from sidecar.demo.process import ServerFailedError, ServerProcess, why_it_failed
from sidecar.demo.started import Started

# -P: never from the directory that we happen to be in, where anybody may have put a `store`.
_COMMAND = (sys.executable, "-P", "-m", "sidecar.cli")
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 40.0  # it gives 30 s to what is in flight
_COMMAND_TIMEOUT_S = 60.0
_HTTP_TIMEOUT_S = 10.0


class PrivateServe(Started):
    """A service with a store of its own under `directory`; a context manager that starts and stops it.

    downstream: the mailbox server's LMTP address. milter: with the milter front, on a unix socket. imap: the
    mailbox server's IMAP port with a master user and the password, None where it has none.
    """

    def __init__(
        self, directory: Path, *, downstream: str, milter: bool, imap: tuple[int, str, str] | None = None
    ) -> None:
        self.directory = directory.resolve() / "mailkeep"
        self.store = self.directory / "store"
        self.config = self.directory / "mailkeep.toml"
        self.log = self.directory / "serve.log"
        self.lmtp_port = free_port()
        self.metrics_port = free_port()
        self.milter = f"unix:{self.directory}/milter.sock" if milter else ""
        self._downstream = downstream
        self._imap = imap
        self._process: ServerProcess | None = None

    @property
    def lmtp_address(self) -> str:
        """HOST:PORT of the LMTP front."""
        return f"{LOOPBACK}:{self.lmtp_port}"

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start and wait until it captures mail. Raises ServerFailedError and leaves nothing running."""
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o755)  # Postfix's own user walks in to the milter's socket
        self.config.write_text(_toml(self._sections()))
        if self._imap:
            self._passwords.touch(mode=0o600)
            self._passwords.write_text(":".join(self._imap[1:]) + "\n")
        process = ServerProcess(
            [*_COMMAND, "serve", "--config", str(self.config)], output=self.log, environment=os.environ
        )
        if not wait_until(lambda: not process.running or self._ready(), timeout_s=_START_TIMEOUT_S) or (
            not process.running
        ):
            process.stop()
            raise ServerFailedError(f"mailkeep serve did not start:\n{why_it_failed(self.log)}")
        self._process = process

    def stop(self) -> int | None:
        """SIGTERM; the exit code once nothing of it is left. None when it did not run."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.stop(timeout_s=_STOP_TIMEOUT_S)
        return process.exit_code

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, under its name and labels as they stand there. Raises OSError."""
        samples = [line.rpartition(" ") for line in self._page("/metrics").splitlines() if line[:1] != "#"]
        return {name: float(value) for name, _, value in samples}

    def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run `mailkeep` with these arguments on this service's configuration."""
        return subprocess.run(  # noqa: S603 - no shell, and our own command line
            [*_COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            env={**os.environ, "MAILKEEP_CONFIG": str(self.config)},
            check=False,
        )

    def output(self, *arguments: str) -> bytes:
        """What a command prints that must succeed. Raises ServerFailedError."""
        done = self.command(*arguments)
        if done.returncode:
            complaint = done.stderr.decode(errors="replace").strip()
            raise ServerFailedError(f"mailkeep {' '.join(arguments)} failed ({done.returncode}): {complaint}")
        return done.stdout

    def listed(self) -> list[dict[str, Any]]:
        """`mailkeep list --json` of everything, oldest first."""
        lines = self.output("list", "--json", "--limit", "0").splitlines()
        return [json.loads(line) for line in reversed(lines)]

    @property
    def _passwords(self) -> Path:
        return self.directory / "imap-passwords"

    def _sections(self) -> dict[str, dict[str, str]]:
        sections = {
            "store": {"path": str(self.store), "stream": "demo", "reserve": "1MiB"},
            "lmtp": {"listen": self.lmtp_address, "downstream": self._downstream},
            "metrics": {"listen": f"{LOOPBACK}:{self.metrics_port}"},
        }
        if self._imap:
            port, master, _ = self._imap
            server = f"{LOOPBACK}:{port}"
            sections["imap"] = {"server": server, "master_user": master, "passwords": str(self._passwords)}
        if self.milter:
            sections["milter"] = {"listen": self.milter, "socket_mode": "0666"}
        return sections

    def _ready(self) -> bool:
        try:
            return self._page("/readyz") == "ready\n"
        except OSError:
            return False

    def _page(self, path: str) -> str:
        url = f"http://{LOOPBACK}:{self.metrics_port}{path}"
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text


def _toml(sections: Mapping[str, Mapping[str, str]]) -> str:
    lines: list[str] = []
    for name, keys in sections.items():
        # A JSON string is a TOML one.
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)
