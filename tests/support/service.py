"""`mailkeep serve` with any configuration, and what an operator and a scraper may ask of it.

`Serving`, for load, tells when it took mail.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sidecar.demo.ports import LOOPBACK, free_port, wait_until

COMMAND = (sys.executable, "-P", "-m", "sidecar.cli")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0
COMMAND_TIMEOUT_S = 120.0

Sections = dict[str, dict[str, Any]]


class Service:
    """Made with the sections of its configuration; a context manager that starts and stops it.

    [store] and [metrics] are always there, [lmtp] listens at a port of its own unless told otherwise.
    """

    def __init__(self, directory: Path, **sections: Mapping[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config_file = directory / "mailkeep.toml"
        self.log_file = directory / "serve.log"
        self.sections: Sections = {
            "store": {"path": str(directory / "store"), "stream": "host", "reserve": "1MiB"},
            "metrics": {"listen": f"{LOOPBACK}:{free_port()}"},
        }
        if "lmtp" in sections:
            self.sections["lmtp"] = {"listen": f"{LOOPBACK}:{free_port()}"}
        self.extra = ""
        """what else stands in the configuration, as TOML"""
        self.environment: dict[str, str] = {}
        """of the process, beside ours"""
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(**sections)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            if kind is None:
                assert self.stop() == 0, self.tail()
            else:
                self.kill()

    # -- its configuration

    def configure(self, **sections: Mapping[str, Any]) -> None:
        """Change keys and write the file; a start or `reload` takes them up."""
        for name, keys in sections.items():
            self.sections.setdefault(name, {}).update(keys)
        lines = []
        for name, keys in self.sections.items():
            # A JSON string or number is a TOML one.
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        self.config_file.write_text("\n".join(lines) + "\n" + self.extra)

    @property
    def address(self) -> str:
        """Where its LMTP front listens."""
        return str(self.sections["lmtp"]["listen"])

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def store(self) -> Path:
        return Path(self.sections["store"]["path"])

    # -- the process

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def start(self) -> float:
        """Returns when it is ready; how long that took, in seconds."""
        assert not self.running
        began = time.monotonic()
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--config", str(self.config_file)], stdout=log, stderr=log,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        settled = wait_until(lambda: not self.running or self.answers(), timeout_s=START_TIMEOUT_S)
        assert settled, self.tail()
        assert self.running, self.tail()
        return time.monotonic() - began

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended. Raises TimeoutExpired, and leaves nothing running."""
        assert self.process
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def reload(self) -> str:
        """SIGHUP; what it logged of the reload."""
        before = len(self.log_text())
        self.signal(signal.SIGHUP)
        assert wait_until(lambda: "reloaded" in self.log_text()[before:], timeout_s=60), self.tail()
        return self.log_text()[before:]

    def log_text(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def tail(self) -> str:
        return self.log_text()[-3000:]

    # -- HTTP

    def page(self, path: str) -> tuple[int, str]:
        """Status and body. Raises OSError when nobody answers."""
        try:
            with urllib.request.urlopen(
                f"http://{self.sections['metrics']['listen']}{path}", timeout=60
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def answers(self) -> bool:
        """Whether it runs, ready or complaining of something other than a start."""
        try:
            status, text = self.page("/readyz")
        except OSError:
            return False
        return status == 200 or "starting" not in text

    def metrics(self) -> dict[str, float]:
        """Every sample that Prometheus would take, by its name and labels as in the text. Raises OSError
        while it gets none."""
        status, text = self.page("/metrics")
        if status != 200:
            raise OSError(f"/metrics: {status} {text}")
        samples = [line.rpartition(" ") for line in text.splitlines() if line[:1] != "#"]
        return {name.removeprefix("mailkeep_"): float(value) for name, _, value in samples}

    # -- commands

    def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """An operator's command with this configuration."""
        return subprocess.run(
            [*COMMAND, arguments[0], "--config", str(self.config_file), *arguments[1:]],
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )

    def output(self, *arguments: str) -> bytes:
        """What a command that succeeds prints."""
        done = self.command(*arguments)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def listed(self, *filters: str) -> list[dict[str, Any]]:
        """`list --json`, oldest first."""
        found = self.output("list", "--json", "--limit", "0", *filters).splitlines()
        return [json.loads(line) for line in reversed(found)]

    def shown(self, delivery: str) -> dict[str, Any]:
        """`show --json`."""
        described: dict[str, Any] = json.loads(self.output("show", delivery, "--json"))
        return described

    def raw(self, delivery: str) -> bytes:
        """`show --raw`."""
        return self.output("show", delivery, "--raw")
